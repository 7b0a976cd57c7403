"""The runner, with real worker processes: what several train is what one trains, and nothing that dies takes more."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heavytail.errors import HeavyTailError, SpecError
from heavytail.experiment.registry import Component
from heavytail.experiment.search import Grid
from heavytail.experiment.spec import RunSpec
from heavytail.experiment.store import RunStore
from heavytail.experiment.sweep import Arm, Sweep
from heavytail.train.options import Options
from heavytail.train.runner import Failure, Interrupted, remember, run_all
from tests.problems import BASE, ROOT, python, tiny


class Log:
    """A display that remembers; `on_progress` is called with every report."""

    def __init__(self, on_progress: Callable[[RunSpec], object] = lambda spec: None) -> None:
        self.events: list[tuple[str, str]] = []
        self.on_progress = on_progress

    def started(self, spec: RunSpec) -> None:
        self.events.append((spec.key, "started"))

    def progressed(self, spec: RunSpec, step: int, loss: float) -> None:
        self.on_progress(spec)

    def finished(self, spec: RunSpec, status: str) -> None:
        self.events.append((spec.key, status))


def work(specs: list[RunSpec], root: Path, workers: int, log: Log | None = None) -> tuple[RunStore, list[Failure]]:
    store = RunStore(root)
    failures = run_all(
        lambda: [s for s in specs if store.outcome(s) is None],
        store,
        Options(root / "data", workers=workers),
        log or Log(),
    )
    assert not multiprocessing.active_children()
    return store, failures


def test_two_workers_train_what_one_does(tmp_path: Path) -> None:
    """A search run by two worker processes ends with the same histories as in this process, each trained once."""
    arms = (Arm("gd", Component("gd"), Grid((-3.0, -2.0, -1.0), 1)), Arm("adam", Component("adam"), Grid((-2.0,))))
    sweep = Sweep("s", "S", "quick", "", {k: BASE[k] for k in ("data", "model", "steps")}, arms, (0, 1), (0, 1))
    stores = RunStore(tmp_path / "1"), RunStore(tmp_path / "2")
    for workers, store in enumerate(stores, start=1):
        log = Log()
        options = Options(tmp_path, workers=workers)
        assert run_all(lambda s=store: sweep.propose(s.outcome), store, options, log) == []  # type: ignore[misc]
        assert sweep.propose(store.outcome) == []
        keys = [key for key, event in log.events if event == "started"]
        assert len(keys) == len(set(keys)) == len(list(store.records()))
        assert sorted(log.events) == sorted([(k, e) for k in keys for e in ("started", "done")])
    for key, table, _ in stores[0].records():
        spec = RunSpec.from_dict(table)
        one, two = (store.load(spec) for store in stores)
        assert one is not None
        assert two is not None, key
        for name, value in one.arrays.items():
            np.testing.assert_array_equal(value, two.arrays[name], err_msg=name)
    chosen = [sweep.best("gd", store.outcome) for store in stores]
    assert chosen[0] == chosen[1] is not None


@pytest.mark.parametrize("kills", [1, 2])
def test_a_killed_workers_run_is_tried_once_more(tmp_path: Path, kills: int, caplog: pytest.LogCaptureFixture) -> None:
    """kill -9 of a worker in mid-run: another continues it; killed again, it is recorded as failed; others finish."""
    specs = [tiny(steps=1500, eval_every=100, seed=seed) for seed in range(3)]
    victims: list[RunSpec] = []

    def kill(spec: RunSpec) -> None:
        if len(victims) < kills and spec == (victims or [spec])[0]:
            victims.append(spec)
            for child in multiprocessing.active_children():
                assert child.pid is not None
                if RunStore(tmp_path).folder(spec) / "lock" in open_files(child.pid):
                    os.kill(child.pid, signal.SIGKILL)

    log = Log(kill)
    store, failures = work(specs, tmp_path, 2, log)
    assert len(victims) == kills
    died = f"{victims[0].describe()}: its worker process died (exit code -9)"
    assert [entry.getMessage() for entry in caplog.records] == [f"{died}; trying once more"]
    assert [failure.reason for failure in failures] == [died] * (kills - 1)
    assert [store.status(s) for s in specs if s != victims[0]] == ["done"] * 2
    assert store.status(victims[0]) == ("done" if kills == 1 else "failed")
    if failures:
        store, failures = work(specs, tmp_path, 1)
        assert failures == []
        assert store.status(victims[0]) == "done"


def open_files(pid: int) -> list[Path]:
    found = []
    for handle in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(handle.readlink())
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_damaged_is_trained_again_alone(tmp_path: Path, workers: int, caplog: pytest.LogCaptureFixture) -> None:
    """A flipped bit in one run: it is named and trained again, to the same history; the others are not touched."""
    specs = [tiny(seed=seed) for seed in range(3)]
    store, _ = work(specs, tmp_path, 1)
    before = [store.load(spec) for spec in specs]
    file = next(store.folder(specs[1]).glob("history-*"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 64
    file.write_bytes(content)
    log = Log()
    lookup = remember(RunStore(tmp_path))
    propose = lambda: [s for s in specs if lookup(s) is None]  # noqa: E731
    assert run_all(propose, store, Options(tmp_path, workers=workers), log) == []
    assert log.events == [(specs[1].key, "started"), (specs[1].key, "done")]
    assert f"{file} is damaged: its checksum differs" in caplog.text
    for spec, old in zip(specs, before, strict=True):
        new = store.load(spec)
        assert old is not None
        assert new is not None
        for name, value in old.arrays.items():
            np.testing.assert_array_equal(new.arrays[name], value, err_msg=name)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_that_cannot_be_read_does_not_end_the_others(tmp_path: Path, workers: int) -> None:
    """A run whose record cannot be read is a failure with its reason; the others are trained."""
    specs = [tiny(seed=seed) for seed in range(3)]
    store = RunStore(tmp_path)
    record = store.folder(specs[0]) / "status.json"
    record.parent.mkdir(parents=True)
    record.symlink_to("status.json")
    lookup = remember(store)
    propose = lambda: [s for s in specs if lookup(s) is None]  # noqa: E731
    [failure] = run_all(propose, store, Options(tmp_path, workers=workers), Log())
    assert failure.reason.startswith(f"{specs[0].describe()}: cannot read {record}: Too many levels of symbolic links")
    assert [store.status(s) for s in specs[1:]] == ["done"] * 2
    assert record.is_symlink()


@pytest.mark.slow
def test_a_worker_asked_to_end_is_replaced(tmp_path: Path) -> None:
    """SIGTERM to one worker alone interrupts its run, which another worker continues: nothing fails."""
    specs = [tiny(steps=1500, eval_every=100, seed=seed) for seed in range(2)]
    asked: list[int] = []

    def ask(spec: RunSpec) -> None:
        if not asked:
            pid = multiprocessing.active_children()[0].pid
            assert pid is not None
            os.kill(pid, signal.SIGTERM)
            asked.append(pid)

    log = Log(ask)
    store, failures = work(specs, tmp_path, 2, log)
    assert failures == []
    assert [store.status(s) for s in specs] == ["done"] * 2
    assert sorted(event for _, event in log.events) == ["done"] * 2 + ["interrupted"] + ["started"] * 3


@pytest.mark.parametrize("workers", [1, 2])
def test_what_fails_is_named_once_and_the_rest_goes_on(tmp_path: Path, workers: int) -> None:
    """Data that cannot be loaded block all their runs at once, an exception its own; the others are trained."""
    absent: dict[str, Any] = {"data": "ptb", "model": "linear"}
    too_large = tiny(data={"name": "simple-imbalanced", "num_classes": 2**23, "samples": 2**23})  # 256 TiB
    specs = [tiny(**absent, seed=0), too_large, tiny(seed=1), tiny(**absent, seed=2), tiny(seed=3)]
    log = Log()
    store, failures = work(specs, tmp_path, workers, log)
    no_data, out_of_memory = sorted(failures, key=lambda f: not f.no_data)
    assert (no_data.no_data, no_data.spec.data) == (True, Component("ptb"))
    assert out_of_memory.spec == too_large
    assert out_of_memory.reason.startswith(f"{too_large.describe()}: RuntimeError: ")
    assert "\n" not in no_data.reason + out_of_memory.reason
    assert [store.status(s) for s in specs] == ["failed", "failed", "done", "missing", "done"]
    assert 2 <= [event for _, event in log.events].count("failed") <= 1 + workers


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_wrong_setting_ends_the_work(tmp_path: Path, workers: int) -> None:
    """What the user has to change is raised with its message, not repeated for every run."""
    with pytest.raises(HeavyTailError, match="batch_size: expected at most 24 samples, got 99"):
        work([tiny(batch_size=99, seed=seed) for seed in range(3)], tmp_path, workers)


@pytest.mark.parametrize("finer", [{"steps": 8}, {"eval_every": 1}, {"probes": ["head-blocks"]}], ids=str)
def test_a_finished_run_does_not_answer_for_one_that_records_more(finer: dict[str, Any], tmp_path: Path) -> None:
    """Runs that differ only in what they record have one key; the one that records more is still to be trained."""
    coarse = {"steps": 4, "eval_every": 2}
    store, more = RunStore(tmp_path), tiny(**{**coarse, **finer})
    work([tiny(**coarse)], tmp_path, 1)
    lookup = remember(store)
    assert lookup(tiny(**coarse)) is not None
    assert more.key == tiny(**coarse).key
    assert lookup(more) is None
    work([more], tmp_path, 1)
    assert lookup(more) is not None


def test_nothing_to_do_starts_nothing(tmp_path: Path) -> None:
    """An empty proposal trains nothing; an unknown component is an error before anything is trained."""
    assert work([], tmp_path, 2) == (RunStore(tmp_path), []) or not list(tmp_path.iterdir())
    with pytest.raises(SpecError, match="unknown model 'liner'"):
        work([tiny(model="liner")], tmp_path, 2)


SCRIPT = """
import sys
from pathlib import Path
from heavytail.experiment.store import RunStore
from heavytail.train.runner import Interrupted, Options, run_all
from tests.problems import tiny
from tests.test_runner import LONG

class Say:
    def started(self, spec): pass
    def progressed(self, spec, step, loss): print("progress", spec.seed, step, flush=True)
    def finished(self, spec, status): print("finished", spec.seed, status, flush=True)

if __name__ == "__main__":
    store = RunStore(sys.argv[1])
    propose = lambda: [s for s in LONG if store.outcome(s) is None]
    try:
        failures = run_all(propose, store, Options(Path(sys.argv[1]), workers=int(sys.argv[2])), Say())
    except Interrupted as stopped:
        print(stopped)
        sys.exit(3)
    print("failures", failures)
"""
LONG = [tiny(steps=2000, eval_every=500, seed=seed) for seed in range(2)]


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_ctrl_c_commits_and_the_same_command_continues(tmp_path: Path, workers: int) -> None:
    """SIGINT to the whole process group: every run commits where it is; run again, all end as if never stopped."""
    with python(SCRIPT, tmp_path / "stopped", workers, start_new_session=True, cwd=ROOT) as script:
        assert script.stdout is not None
        assert script.stderr is not None
        seen: set[str] = set()
        while len(seen) < workers:  # every worker is in the middle of a run
            kind, seed, _ = script.stdout.readline().split()
            assert kind == "progress"
            seen.add(seed)
        os.killpg(script.pid, signal.SIGINT)
        out, err = script.communicate(timeout=60)
    assert (script.returncode, err) == (3, "")
    assert "stopped; everything trained so far is stored, the same command continues" in out
    stopped, whole = RunStore(tmp_path / "stopped"), RunStore(tmp_path / "whole")
    assert [stopped.status(spec) for spec in LONG][:workers] == ["interrupted"] * workers
    found = stopped.load_partial(LONG[0])
    assert found is not None
    assert 0 < found[1] < 2000
    work(LONG, stopped.root, 1)
    work(LONG, whole.root, 1)
    for spec in LONG:
        one, two = stopped.load(spec), whole.load(spec)
        assert one is not None
        assert two is not None
        for name, value in two.arrays.items():
            np.testing.assert_array_equal(one.arrays[name], value, err_msg=name)


def test_a_second_ctrl_c_is_not_waited_for(tmp_path: Path) -> None:
    """The first request to stop waits for the step, the second raises KeyboardInterrupt at once."""

    def twice(spec: RunSpec) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        work([tiny(steps=3000)], tmp_path, 1, Log(twice))
    assert signal.getsignal(signal.SIGINT) == before
    with pytest.raises(Interrupted):
        work([tiny(steps=3000)], tmp_path, 1, Log(lambda spec: os.kill(os.getpid(), signal.SIGTERM)))
    assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.slow
def test_workers_do_not_outlive_their_parent(tmp_path: Path) -> None:
    """Workers whose parent is killed stop by themselves, with their runs committed."""
    with python(SCRIPT, tmp_path, 2, cwd=ROOT) as script:
        assert script.stdout is not None
        script.stdout.readline()
        script.kill()
    store = RunStore(tmp_path)
    deadline = time.monotonic() + 20
    while any(store.locked(spec.key) for spec in LONG):
        assert time.monotonic() < deadline, "a worker trains for nobody"
        time.sleep(0.05)
    assert "interrupted" in {store.status(spec) for spec in LONG}
