"""Times of one sweep by each executor, the table of docs/log.md: `python -m benchmarks.executors [STEPS [RUNS]]`.

All runs are one wave. Each executor is a fresh command on an empty store, with two runs at a time, beside the local one
with one run at a time. Slurm and Ray are started on this machine; an executor that cannot be is left out.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from tests import slurm

STEPS = 600
RUNS = 60
SWEEP = """\
name = "mine"
title = "Mine"
[run]
data = {{ name = "random-heavy-tail", groups = 3 }}
model = "linear"
steps = {steps}
[sweep]
seeds = {seeds}
verdict_seeds = [0]
lr = [0.001, 0.01]
[[sweep.optim]]
name = "gd"
"""


def main(steps: int, runs: int, folder: Path) -> None:
    """Print one line per executor as soon as it is measured."""
    (folder / "mine.toml").write_text(SWEEP.format(steps=steps, seeds=[*range(runs // 2)]))
    print(f"{runs // 2 * 2} runs of {steps} steps, load {os.getloadavg()[0]:.1f} before", flush=True)
    alone = measure(folder, "local", 1)
    print(f"local, one at a time  {alone:6.1f} s", flush=True)
    with contextlib.ExitStack() as stack:
        names = ["local"]
        if find_spec("ray") is not None:
            names.append("ray")
        if find_spec("submitit") is not None and slurm.obstacle() is None:
            (folder / "cluster").mkdir()
            stack.enter_context(slurm.cluster(folder / "cluster"))
            names.append("slurm")
        for name in names:
            taken = measure(folder, name, 2)
            print(f"{name + ', two at a time':21} {taken:6.1f} s, {alone / taken:.2f} of the throughput", flush=True)


def measure(folder: Path, executor: str, jobs: int) -> float:
    """Return the wall seconds of the sweep."""
    command = ["sweep", str(folder / "mine.toml"), "--root", str(folder / f"{executor}-{jobs}"), "--device", "cpu"]
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "heavytail", *command, "--executor", executor, "--jobs", str(jobs)],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return time.perf_counter() - start


if __name__ == "__main__":
    given = [int(text) for text in sys.argv[1:]]
    with tempfile.TemporaryDirectory() as scratch:
        main(*(given + [STEPS, RUNS][len(given) :]), Path(scratch))
