"""Faults at random moments and places: no commit is ever wrong, and the final histories are those of no fault.

A few of each here; `make test-faults` does 50 kills of a process group, 50 of a worker, 20 of a rank under torchrun and
2 000 byte faults (HEAVYTAIL_FAULTS = 1).
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from heavytail.experiment.spec import RunSpec
from heavytail.experiment.store import History, RunStore
from heavytail.train.options import Options
from heavytail.train.runner import remember, run_all
from tests.problems import ROOT, python, tiny
from tests.test_distributed import OFTEN, SMALL, TEXT, free_port, start, torchrun
from tests.test_runner import LONG, SCRIPT, Log, work

FULL = os.environ.get("HEAVYTAIL_FAULTS") == "1"


def expect_equal(store: RunStore, expected: list[tuple[RunSpec, History | None]]) -> None:
    """Fail unless every run is finished with exactly the arrays of an undisturbed one."""
    for spec, whole in expected:
        history = store.load(spec)
        assert history is not None
        assert whole is not None
        assert history.arrays.keys() == whole.arrays.keys()
        for name, value in whole.arrays.items():
            np.testing.assert_array_equal(history.arrays[name], value, err_msg=name)


def test_a_damaged_byte_is_harmless_or_named_and_its_run_alone_trained_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One changed byte in any file of a store changes no result: the run is read as it was, or named and redone."""
    rng = random.Random(0)
    specs = [tiny(seed=seed, optim=optim, steps=4) for seed, optim in ((0, "gd"), (1, "adam"), (2, "adam"))]
    store, failures = work(specs, tmp_path, 1)
    assert failures == []
    expected = [(spec, store.load(spec)) for spec in specs]
    redone = 0
    for _ in range(2000 if FULL else 40):
        file = rng.choice([f for f in sorted((tmp_path / "runs").rglob("*")) if f.is_file() and f.stat().st_size])
        content = bytearray(file.read_bytes())
        content[rng.randrange(len(content))] ^= rng.randrange(1, 256)
        file.write_bytes(content)
        caplog.clear()
        log, lookup = Log(), remember(RunStore(tmp_path))
        assert run_all(lambda: [s for s in specs if lookup(s) is None], store, Options(tmp_path, workers=1), log) == []  # noqa: B023
        trained = {key for key, _ in log.events}
        assert trained <= {file.parent.name}
        assert bool(trained) == (str(file) in caplog.text)
        redone += len(trained)
        expect_equal(store, expected)
        if file.name.startswith("checkpoint"):  # read only to continue: then it must be noticed
            found = store.load_partial(tiny(**{**vars_of(specs, file), "steps": 6}))
            assert found is None
            work([s for s in specs if s.key == file.parent.name], tmp_path, 1)
            file.unlink()
    assert redone > 0
    print(f"byte faults: {redone} runs trained again")


def vars_of(specs: list[RunSpec], file: Path) -> dict[str, object]:
    [spec] = [spec for spec in specs if spec.key == file.parent.name]
    return {"seed": spec.seed, "optim": spec.optim.name}


@pytest.mark.parametrize("victim", ["group", "worker"])
def test_killed_at_random_moments_the_histories_are_the_same(victim: str, tmp_path: Path) -> None:
    """kill -9 of the whole process group, or of a worker, again and again; then the command is run to its end."""
    rng = random.Random(victim)
    whole, _ = work(LONG, tmp_path / "whole", 1)
    expected = [(spec, whole.load(spec)) for spec in LONG]
    root = tmp_path / "killed"
    kills = 0
    while kills < (50 if FULL else 1):
        with python(SCRIPT, root, 2, start_new_session=True, cwd=ROOT) as script:
            assert script.stdout is not None
            line = script.stdout.readline()
            if line.startswith("failures"):  # finished before it could be killed: once more from the start
                subprocess.run(["rm", "-rf", str(root)], check=True)
                continue
            time.sleep(rng.random() * 0.5)
            if victim == "worker":
                for child in children(script.pid, b"spawn_main")[:1]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child, signal.SIGKILL)
                time.sleep(rng.random() * 0.2)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(script.pid, signal.SIGKILL)
            script.communicate(timeout=60)
        kills += 1
        store = RunStore(root)
        for key in store.keys():  # noqa: SIM118 - not a dict
            store.read(key)  # whole, whenever it was killed
    store, failures = work(LONG, root, 1)
    assert failures == []
    expect_equal(store, expected)
    left = [file.name for file in root.rglob(".*")]
    assert left == [], "temporary files of killed writers"
    print(f"{kills} kills of a {victim}")


def children(pid: int, command: bytes) -> list[int]:
    """The child processes with a word in their command line, which a resource tracker, say, does not have."""
    found = []
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # it ended
            found += [int(c) for c in tasks.read_text().split() if command in Path(f"/proc/{c}/cmdline").read_bytes()]
    return found


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="processes are found under /proc")
def test_a_killed_rank_leaves_no_trace(tmp_path: Path) -> None:
    """kill -9 of a rank of a transformer with dropout; the same command ends with the history of an undisturbed run."""
    rng = random.Random("rank")
    sizes = {"steps": 1200 if FULL else 200, "batch_size": 10, "eval_every": 50, "test_every": 100}
    model = {**SMALL, "dropout": 0.1}
    run = RunSpec.from_dict({"data": TEXT, "model": model, "optim": "adam", "lr": 0.003, "seed": 1, **sizes})
    assert finish(launch(run, tmp_path / "whole")) == [0] * (1 if FULL else 2)
    whole = RunStore(tmp_path / "whole").load(run)
    assert whole is not None
    assert whole.environment["processes"] == 2
    store = RunStore(tmp_path / "killed")
    kills, starts = [0, 0], 0
    while sum(kills) < (20 if FULL else 1):
        before, starts = committed(store, run), starts + 1
        commands = launch(run, store.root)
        early = FULL and rng.random() < 0.25  # killed while it starts: torchrun then ends the other rank
        while commands[0].poll() is None and len(ranks(commands)) < 2:
            time.sleep(0.05)
        while commands[0].poll() is None and committed(store, run) == before and not early:
            time.sleep(0.02)
        time.sleep(rng.random() * (4 if early else 0.5))
        victim = rng.randrange(2)
        if (pid := ranks(commands).get(victim)) is not None:
            os.kill(pid, signal.SIGKILL)
            kills[victim] += 1
        finish(commands)
        if store.status(run) == "done":  # before it could be killed: once more from the start
            subprocess.run(["rm", "-rf", str(store.root)], check=True)
    assert finish(launch(run, store.root)) == [0] * (1 if FULL else 2)
    expect_equal(store, [(run, whole)])
    history = store.load(run)
    assert history is not None
    print(f"{kills[0]} kills of rank 0, {kills[1]} of rank 1, in {starts} starts; resumed {len(history.resumed)} times")


def launch(run: RunSpec, root: Path) -> list[subprocess.Popen[str]]:
    """Start a run with two ranks: under torchrun, or, to save its own start, as torchrun would."""
    if FULL:
        return [torchrun(run, root, OFTEN)]
    port = free_port()
    return [start(run, root, rank, port, OFTEN) for rank in range(2)]


def finish(commands: list[subprocess.Popen[str]]) -> list[int]:
    """Wait for commands and return their exit codes."""
    for command in commands:
        command.communicate(timeout=300)
    return [command.returncode for command in commands]


def ranks(commands: list[subprocess.Popen[str]]) -> dict[int, int]:
    """The process id of each rank that runs."""
    found = [c.pid for c in commands] if len(commands) > 1 else children(commands[0].pid, b"heavytail")
    known = {}
    for pid in found:
        with contextlib.suppress(OSError):  # it ended
            for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                if entry.startswith(b"RANK="):
                    known[int(entry.removeprefix(b"RANK="))] = pid
    return known


def committed(store: RunStore, run: RunSpec) -> int:
    """The last step that is stored, 0 without one."""
    if store.status(run) == "done":
        return run.steps
    found = store.load_partial(run)
    return 0 if found is None else found[1]
