"""The smallest real problems: what the tests of the core train, store and search."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from heavytail.experiment import store as stores
from heavytail.experiment.spec import RunSpec
from heavytail.experiment.store import Array, History, RunStore, Status

ROOT = Path(__file__).parents[1]
BASE = {
    "data": {"name": "random-heavy-tail", "groups": 3},  # 24 samples, 32 inputs, 7 classes
    "model": "linear",
    "optim": "gd",
    "lr": 0.1,
    "steps": 10,
}


def tiny(**changes: Any) -> RunSpec:
    """Return a run of a few milliseconds."""
    return RunSpec.from_dict({**BASE, **changes})


def tiny_preset(steps: int, sweep: str, *optimizers: str) -> str:
    """Return the TOML of a preset named "mine" on the smallest data, from the lines of its sweep and optimizers."""
    run = f'[run]\ndata = {{ name = "random-heavy-tail", groups = 3 }}\nmodel = "linear"\nsteps = {steps}\n'
    arms = "".join(f"[[sweep.optim]]\n{lines}\n" for lines in optimizers)
    return f'name = "mine"\ntitle = "Mine"\n{run}[sweep]\n{sweep}\n{arms}'


def made_up(spec: RunSpec, status: Status = "done", *, end: int | None = None, value: float = 1.0) -> History:
    """Return a history with every row that `spec` asks for up to step `end`, of 2 classes, all losses `value`."""
    end = spec.steps if end is None else end
    arrays: dict[str, Array] = {"group": np.array([0, 1]), "objective": np.full(end, value)}
    for split, every in (("train", spec.eval_every), ("test", spec.test_every)):
        steps = np.array([s for s in spec.recorded_steps(every) if s <= end])
        if len(steps):
            arrays |= {
                f"{split}/step": steps,
                f"{split}/loss": np.full(len(steps), value),
                f"{split}/class_loss": np.full((len(steps), 2), value, np.float32),
                f"{split}/count": np.array([3, 1]),
            }
    for probe in spec.probes:
        arrays |= {f"probe/{probe.name}/step": np.arange(end + 1), f"probe/{probe.name}/norm": np.arange(end + 1.0)}
    return History(spec, status, arrays, {"torch": "made up"})


def missing_steps(store: RunStore, spec: RunSpec) -> list[int]:
    """Return the steps that `spec` records and the store does not have."""
    file = store.folder(spec) / "status.json"
    return stores.missing_steps(json.loads(file.read_text()) if file.exists() else None, spec)


def python(code: str, *args: object, **options: Any) -> subprocess.Popen[str]:
    """Start a fresh interpreter on a script, with one thread, and return it with its output piped."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **options.pop("env", {})}
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def at_once(children: Sequence[subprocess.Popen[str]]) -> list[str]:
    """Let processes go on that have printed "ready"; return what each prints to its end, which must be a good one."""
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n", child.communicate()[1]
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    results = [child.communicate(timeout=60) for child in children]
    assert all(child.returncode == 0 for child in children), results
    return [printed for printed, _ in results]


def output(code: str, *args: object, **options: Any) -> str:
    """Run a script in a fresh interpreter and return what it prints; an error there is one here."""
    with python(code, *args, **options) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out.strip()
