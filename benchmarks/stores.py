"""Times of commands on a large store, the table of docs/log.md: `python -m benchmarks.stores [RUNS [FOLDER]]`.

Four real runs of figure 4's problem are trained and copied under the keys of other seeds, so that every checksum is
right. Each command is a fresh process; the time is the smallest of three, after a first one where that one differs: it
reads all records, copies all runs, draws the figure.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from heavytail.experiment.listing import CACHE
from heavytail.experiment.store import History, RunStore
from heavytail.experiment.sweep import Sweep
from heavytail.train.engine import train

RUNS = 5000
REPETITIONS = 3
STEPS = 100
FIGURE = "fig06"  # of few short runs
RATES = {"gd+m": -1.0, "adam+m": -2.0}


def main(runs: int, folder: Path) -> None:
    """Build the store, then print one line per command as soon as it is measured."""
    store = RunStore(folder / "store")
    fill(store, runs, folder)
    print(f"{len(store.keys())} runs")
    root = str(store.root)
    (store.root / CACHE).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as other:
        for name, command in {
            "status": ["status", "--root", root],
            "status --json": ["status", "--json", "--root", root],
            "store merge": ["store", "merge", root, other],
            f"reproduce {FIGURE}": ["reproduce", FIGURE, "--root", root, "--out", str(folder / "out")],
        }.items():
            first, later = seconds(command, 1), seconds(command)
            print(f"{name:16} first {first:6.2f} s, later {later:6.2f} s", flush=True)


def fill(store: RunStore, runs: int, folder: Path) -> None:
    """Add copies of real runs to a store until it has `runs` of them; every hundredth has failed."""
    real = histories(RunStore(folder / "real"))
    for number in range(len(store.keys()), runs):
        original = real[number % len(real)]
        spec = replace(original.spec, seed=1000 + number)
        state = {"parameters": original.arrays["train/class_loss"].ravel()}
        with store.lock(spec):
            if number % 100 == 99:
                store.mark_failed(spec, "OutOfMemoryError: made up")
                continue
            copy = History(
                spec, original.status, original.arrays, dict(original.environment), timing=dict(original.timing)
            )
            store.save(copy, step=spec.steps, checkpoint=state)


def histories(store: RunStore) -> list[History]:
    """Train the real runs, or read them."""
    sweep = Sweep.load("linear")
    specs = [
        replace(sweep.spec(sweep.arm(label), exponent, seed), steps=STEPS)
        for label, exponent in RATES.items()
        for seed in (0, 1)
    ]
    return [train(spec, store, data_dir=Path()) for spec in specs]


def seconds(command: list[str], repetitions: int = REPETITIONS) -> float:
    """Return the smallest wall time of a command of heavytail."""
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "heavytail", *command], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return min(times)


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else RUNS
    with tempfile.TemporaryDirectory() as scratch:
        main(count, Path(sys.argv[2] if len(sys.argv) > 2 else scratch))
