"""RunStore: what is committed survives anything, and what is missing is known exactly."""

from __future__ import annotations

import contextlib
import dataclasses
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heavytail.errors import DamagedError, StoreError, UnreadableError
from heavytail.experiment.registry import Component
from heavytail.experiment.spec import RunSpec
from heavytail.experiment.store import History, RunStore, Status
from heavytail.files import write_atomic
from tests.problems import at_once, made_up, missing_steps, output, python, tiny

SAVE_FOREVER = """
import itertools, pickle, sys, numpy as np
from heavytail.experiment.store import History, RunStore
root, pickled = sys.argv[1:]
store, spec = RunStore(root), pickle.load(open(pickled, "rb"))
with store.lock(spec):
    for step in itertools.count(1):
        rows = {"train/step": np.arange(step), "train/loss": np.full(step, float(step))}
        store.save(History(spec, "running", rows), step=step, checkpoint={"x": np.full(5000, step)})
        if step == 3:
            print("ready", flush=True)
"""


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "store")


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    """A spec with its key worked out, so that a child process need not import torch for it."""
    spec = tiny(steps=10**6)
    _ = spec.key, spec.resolved
    file = tmp_path / "spec.pickle"
    file.write_bytes(pickle.dumps(spec))
    return file


def files(store: RunStore, spec: RunSpec) -> set[str]:
    return {f.name.partition("-")[0] for f in store.folder(spec).iterdir()}


# -- committing and reading back ---------------------------------------------------------------------------------------


def test_measurements_of_other_data_are_not_joined(tmp_path: Path) -> None:
    """A finished run whose data have other class counts is replaced, and none of its rows stays."""
    store = RunStore(tmp_path)
    often, rarely = tiny(eval_every=1), tiny(eval_every=5)
    for spec, counts in ((often, [3, 1]), (rarely, [2, 2])):
        history = made_up(spec)
        history.arrays["samples"] = np.array(counts)
        store.save(history, step=10)
    found = store.load(rarely)
    assert found is not None
    assert found.arrays["train/step"].tolist() == [0, 5, 10]
    assert store.status(often) == "missing"


def test_what_is_saved_is_loaded(store: RunStore) -> None:
    """Arrays, their types and shapes - 0-dimensional ones included -, status and environment come back."""
    spec = tiny()
    history = made_up(spec)
    state = {"scalar": np.float32(3.0).reshape(()), "transposed": np.arange(6).reshape(2, 3).T}
    store.save(history, step=10, checkpoint=state)
    loaded = store.load(spec)
    assert loaded is not None
    assert (loaded.status, loaded.environment, store.status(spec)) == ("done", history.environment, "done")
    assert loaded.arrays.keys() == history.arrays.keys()
    for name, value in history.arrays.items():
        np.testing.assert_array_equal(loaded.arrays[name], value, strict=True)
    partial = store.load_partial(tiny(steps=20))
    assert partial is not None
    for name, value in state.items():
        np.testing.assert_array_equal(partial[2][name], value, strict=True)


def test_a_commit_leaves_nothing_behind(store: RunStore) -> None:
    """Array files that are no longer named are deleted."""
    spec = tiny()
    for end in (2, 4, 6):
        store.save(made_up(spec, "running", end=end, value=end), step=end, checkpoint={"x": np.full(3, end)})
    assert sorted(f.name.partition("-")[0] for f in store.folder(spec).iterdir()) == [
        "checkpoint",
        "env.json",
        "history",
        "spec.json",
        "status.json",
    ]


def test_killed_at_any_moment_the_last_commit_is_there(store: RunStore, tmp_path: Path, pickled: Path) -> None:
    """A writer that is killed again and again, in the middle of committing, always leaves a consistent commit."""
    spec = pickle.loads(pickled.read_bytes())
    reached = []
    for attempt in range(4):
        with python(SAVE_FOREVER, store.root, pickled) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            assert store.status(spec) == "running"
            time.sleep(0.007 * attempt)
            child.kill()
        assert store.status(spec) == "interrupted"  # nobody holds the lock any more
        partial = store.load_partial(spec)
        assert partial is not None
        history, step, checkpoint = partial
        np.testing.assert_array_equal(history.arrays["train/loss"], np.full(step, float(step)))
        np.testing.assert_array_equal(checkpoint["x"], np.full(5000, step))
        reached.append(step)
    assert max(reached) > 3  # some were killed while committing
    store.save(made_up(spec, "running", end=1), step=1)
    assert not list(store.folder(spec).glob(".*")), "temporary files of killed writers pile up"


def test_a_reader_never_sees_half_a_commit(store: RunStore) -> None:
    """Loading a finished run works at every moment of its being replaced by a longer one."""
    spec, longer = tiny(steps=5), tiny(steps=10)
    store.save(made_up(spec), step=5)
    code = """
import pickle, sys
from heavytail.experiment.store import RunStore
store, histories = RunStore(sys.argv[1]), pickle.load(sys.stdin.buffer)
print("ready", flush=True)
for _ in range(30):
    for history in histories:
        store.save(history, step=len(history.arrays["train/step"]) - 1)
"""
    histories = [made_up(spec, value=1.0), made_up(longer, value=2.0)]
    with python(code, store.root, stdin=-1) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.buffer.write(pickle.dumps(histories))
        child.stdin.close()
        assert child.stdout.readline() == "ready\n"
        seen = set()
        while child.poll() is None:
            loaded = store.load(spec)
            assert loaded is not None
            assert len(set(loaded.loss)) == 1
            seen.add(loaded.loss[0])
    assert child.returncode == 0
    assert seen == {1.0, 2.0}


def test_write_atomic_replaces_or_leaves(tmp_path: Path) -> None:
    """A write that fails leaves the old content and no temporary file."""
    file = tmp_path / "file"
    write_atomic(file, b"old")
    with pytest.raises(TypeError):
        write_atomic(file, "text, not bytes")  # type: ignore[arg-type]
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["truncated", "flipped", "deleted", "status", "step", "list", "empty"])
def test_damage_is_named_and_the_run_counts_as_not_trained(
    store: RunStore, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A truncated, altered or missing file is an error of one line that names it, and a run to train again."""
    spec = tiny()
    store.save(made_up(spec), step=10, checkpoint={"x": np.ones(3)})
    file = next(store.folder(spec).glob("history-*"))
    record = store.folder(spec) / "status.json"
    content = bytearray(file.read_bytes())
    if damage == "truncated":
        file.write_bytes(content[:-8])
    elif damage == "flipped":
        content[-1] ^= 1
        file.write_bytes(content)
    elif damage == "deleted":
        file.unlink()
    else:
        file, text = record, record.read_text()
        file.write_text(
            {"step": text.replace('"step": 10', '"step": 4'), "list": "[]", "empty": ""}.get(damage, text[:9])
        )
    with pytest.raises(DamagedError, match=r"^[^\n]*$") as caught:
        store.load(spec)
    assert file.name in str(caught.value)
    assert "delete" not in str(caught.value)
    assert store.outcome(spec) is store.finished(spec) is store.load_partial(spec) is None
    assert [entry.getMessage().count(file.name) for entry in caplog.records] == [1]  # reported once
    store.save(made_up(spec, value=2.0), step=10)
    loaded = store.load(spec)
    assert loaded is not None
    assert loaded.loss[0] == 2.0


RECORDS = ['{"a": 1}', "[]", "3", "null", "[" * 10**5, '"\\ud800"', "\x00", '{"status": "done"}', "1" * 10**5]


@pytest.mark.parametrize("content", RECORDS)
def test_a_record_of_another_shape_is_named(store: RunStore, content: str) -> None:
    """Whatever JSON, or none, stands in status.json: the run is named and others are listed."""
    store.save(made_up(tiny(seed=1)), step=10)
    store.save(made_up(tiny()), step=10)
    (store.folder(tiny()) / "status.json").write_text(content)
    with pytest.raises(DamagedError, match=r"status\.json is damaged: [^\n]*$"):
        store.load(tiny())
    assert store.status(tiny()) == "damaged"
    assert [key for key, _, _ in store.records()] == [tiny(seed=1).key]
    assert len(store.keys()) == 2


def test_every_byte_of_a_record_is_covered(store: RunStore) -> None:
    """A flipped bit anywhere in status.json is an error or changes nothing that is read."""
    spec = tiny()
    store.save(made_up(spec), step=10, checkpoint={"x": np.ones(3)})
    file = store.folder(spec) / "status.json"
    content, whole = file.read_bytes(), store.read(spec.key)
    random = np.random.default_rng(0)
    for place in random.integers(len(content), size=300):
        damaged = bytearray(content)
        damaged[place] ^= 1 << random.integers(8)
        file.write_bytes(damaged)
        with contextlib.suppress(DamagedError):
            assert store.read(spec.key) == whole


@pytest.mark.parametrize("failure", ["loop", "folder"])
def test_what_cannot_be_read_is_not_called_damaged(store: RunStore, failure: str) -> None:
    """A failure to read says which one it is; the run may be whole, so nothing advises to delete it."""
    spec = tiny()
    store.save(made_up(spec), step=10)
    file = next(store.folder(spec).glob("history-*"))
    file.unlink()
    if failure == "loop":
        file.symlink_to(file.name)
    else:
        file.mkdir()
    with pytest.raises(UnreadableError, match=rf"^cannot read .*{file.name}: [^\n]*$") as caught:
        store.outcome(spec)
    assert not isinstance(caught.value, DamagedError)
    assert "delete" not in str(caught.value)


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    """A store that cannot be written is an error of one line that names the folder."""
    (tmp_path / "file").write_text("")
    store, spec = RunStore(tmp_path / "file" / "store"), tiny()
    with pytest.raises(StoreError, match=r"^cannot write .*file/store/runs/\w+: [^\n]+$"):
        store.save(made_up(spec), step=10)
    with pytest.raises(StoreError, match=r"^cannot write .*file/store/runs/\w+: [^\n]+$"), store.lock(spec):
        pass


# -- what is missing ---------------------------------------------------------------------------------------------------

PROBE = Component("no-op")


@pytest.fixture(autouse=True)
def no_op_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    from heavytail.probes import REGISTRY

    monkeypatch.setitem(REGISTRY._recipes, "no-op", dataclasses.make_dataclass("NoOp", [], frozen=True))
    monkeypatch.setitem(REGISTRY._versions, "no-op", 1)


@pytest.mark.parametrize(
    ("stored", "status", "end", "asked", "missing"),
    [
        ({}, "done", 10, {}, []),
        ({}, "done", 10, {"eval_every": 5}, []),
        ({}, "done", 10, {"steps": 6}, []),
        ({}, "done", 10, {"steps": 13}, [11, 12, 13]),
        ({"eval_every": 5}, "done", 10, {"steps": 13, "eval_every": 5}, [13]),
        ({"eval_every": 5}, "done", 10, {"steps": 15, "eval_every": 5}, [15]),
        ({"eval_every": 5}, "done", 10, {"eval_every": 4}, [4, 8]),
        ({"eval_every": 5}, "done", 10, {"steps": 7, "eval_every": 5}, [7]),
        ({}, "done", 10, {"test_every": 5}, [0, 5, 10]),
        ({"test_every": 5}, "done", 10, {}, []),
        ({"test_every": 5}, "done", 10, {"test_every": 10}, []),
        ({}, "done", 10, {"probes": [PROBE]}, list(range(11))),
        ({"probes": [PROBE]}, "done", 10, {}, []),
        ({}, "interrupted", 4, {}, [5, 6, 7, 8, 9, 10]),
        ({}, "diverged", 4, {}, []),
        ({}, "diverged", 4, {"steps": 10**6}, []),
        ({}, "diverged", 4, {"steps": 3}, []),
        ({}, "diverged", 4, {"steps": 4}, []),
        ({"eval_every": 5}, "diverged", 7, {"eval_every": 2}, [2, 4, 6]),
        ({"eval_every": 5}, "diverged", 7, {"steps": 7, "eval_every": 5}, []),
        ({"eval_every": 5}, "diverged", 7, {"steps": 6, "eval_every": 5}, [6]),
    ],
)
def test_missing_steps(
    store: RunStore, stored: dict[str, Any], status: Status, end: int, asked: dict[str, Any], missing: list[int]
) -> None:
    """Missing are the recorded steps that are asked for and not there; what comes after divergence never is."""
    assert tiny(**stored).key == tiny(**asked).key
    store.save(made_up(tiny(**stored), status, end=end), step=end, checkpoint={})
    assert missing_steps(store, tiny(**asked)) == missing


def test_nothing_stored_is_all_missing(store: RunStore) -> None:
    """A run that was never started lacks every step, and reading it is no error."""
    spec = tiny(eval_every=5)
    assert missing_steps(store, spec) == [0, 5, 10]
    assert store.status(spec) == "missing"
    assert store.load(spec) is store.load_partial(spec) is store.outcome(spec) is None
    assert not store.root.exists()
    assert list(store.records()) == []


def test_divergence_is_seen_only_by_runs_that_reach_it(store: RunStore) -> None:
    """A run that diverged at step 4 is diverged for every run of 4 steps or more and done for shorter ones."""
    store.save(made_up(tiny(), "diverged", end=4), step=4)
    for steps, status in ((3, "done"), (4, "diverged"), (10, "diverged"), (99, "diverged")):
        spec = tiny(steps=steps)
        outcome, history = store.outcome(spec), store.load(spec)
        assert outcome is not None
        assert history is not None
        assert outcome.status == history.status == store.status(spec) == status
        assert (outcome.final_loss, history.final_loss) == ((1.0, 1.0) if status == "done" else (np.inf, np.inf))


def test_a_longer_run_is_cut(store: RunStore) -> None:
    """A stored run answers for a shorter or coarser one with exactly the rows that one would have."""
    long = tiny(steps=12, test_every=4, probes=[PROBE])
    history = made_up(long)
    history.arrays["train/loss"] = np.arange(1.0, 14.0)
    history.arrays["test/loss"] = np.array([1.0, 5.0, 9.0, 13.0])
    store.save(history, step=12)
    short = store.load(tiny(steps=8, eval_every=4, test_every=8))
    assert short is not None
    np.testing.assert_array_equal(short.step, [0, 4, 8])
    np.testing.assert_array_equal(short.loss, [1.0, 5.0, 9.0])
    np.testing.assert_array_equal(short.arrays["test/loss"], [1.0, 9.0])
    np.testing.assert_array_equal(short.arrays["probe/no-op/step"], np.arange(9))
    np.testing.assert_array_equal(short.arrays["train/count"], [3, 1])
    assert short.arrays["objective"].shape == (8,)
    outcome = store.outcome(tiny(steps=8, eval_every=4))
    assert outcome is not None
    assert (outcome.final_loss, outcome.last_step) == (9.0, 8)


def test_an_earlier_step_cannot_be_resumed_for(store: RunStore) -> None:
    """A checkpoint is offered for steps at or after it, never for an earlier one."""
    store.save(made_up(tiny(eval_every=5)), step=10, checkpoint={"x": np.ones(1)})
    assert store.load_partial(tiny(steps=20, eval_every=5)) is not None
    assert store.load_partial(tiny(steps=20, eval_every=4)) is None
    assert store.load_partial(tiny(steps=20, eval_every=5, probes=[PROBE])) is None


# -- fresh attempts at a finished run ----------------------------------------------------------------------------------


def test_a_fresh_attempt_replaces_a_finished_run_only_at_the_end(store: RunStore) -> None:
    """While a run is trained anew for a probe, what was finished stays readable; then the new one takes its place."""
    old, new = tiny(), tiny(probes=[PROBE])
    store.save(made_up(old, value=1.0), step=10, checkpoint={"x": np.zeros(1)})
    for status in ("running", "interrupted"):
        store.save(made_up(new, status, end=4, value=2.0), step=5, checkpoint={"x": np.ones(1)})  # type: ignore[arg-type]
        loaded = store.load(old)
        assert loaded is not None
        assert loaded.loss[0] == 1.0
        assert (store.status(old), store.status(new), store.load(new)) == ("done", "interrupted", None)
    partial = store.load_partial(new)
    assert partial is not None
    assert (partial[1], partial[0].loss[0]) == (5, 2.0)
    store.mark_failed(new, "out of memory")
    assert (store.status(old), store.status(new)) == ("done", "failed")
    store.save(made_up(new, value=2.0), step=10)
    for spec in (old, new):
        loaded = store.load(spec)
        assert loaded is not None
        assert loaded.loss[0] == 2.0
    assert files(store, new) == {"env.json", "history", "spec.json", "status.json"}


def numbered(spec: RunSpec, status: Status = "done", *, end: int | None = None) -> History:
    """A history whose losses are the steps, so that rows can be told apart."""
    history = made_up(spec, status, end=end)
    for split in ("train", "test"):
        if f"{split}/step" in history.arrays:
            history.arrays[f"{split}/loss"] = history.arrays[f"{split}/step"].astype(float)
    return history


def test_fewer_steps_keep_the_longer_run(store: RunStore) -> None:
    """A row that only a shorter run asks for is added to the longer one, which stays with its checkpoint."""
    long, short = tiny(steps=12, eval_every=4, test_every=6), tiny(steps=9, eval_every=4)
    store.save(numbered(long), step=12, checkpoint={"x": np.full(1, 12.0)})
    assert missing_steps(store, short) == [9]
    store.save(numbered(short, "interrupted", end=8), step=9, checkpoint={"x": np.full(1, 9.0)})
    assert store.status(long) == "done"
    store.save(numbered(short), step=9, checkpoint={"x": np.full(1, 9.0)})
    for spec, steps in ((long, [0, 4, 8, 12]), (short, [0, 4, 8, 9])):
        history = store.load(spec)
        assert history is not None
        assert history.step.tolist() == history.loss.tolist() == steps
        assert len(history.arrays["objective"]) == spec.steps
    assert store.load(long).arrays["test/step"].tolist() == [0, 6, 12]  # type: ignore[union-attr]
    partial = store.load_partial(tiny(steps=20, eval_every=4))
    assert partial is not None
    assert (partial[1], partial[2]["x"].tolist()) == (12, [12.0])
    assert files(store, long) == {"checkpoint", "env.json", "history", "spec.json", "status.json"}


def test_a_probe_asked_for_later_keeps_what_others_measured(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every probe's measurements stay, at fewer steps, too; a run of more steps asks for those that it lacks."""
    from heavytail.probes import REGISTRY

    monkeypatch.setitem(REGISTRY._recipes, "other", REGISTRY._recipes["no-op"])
    monkeypatch.setitem(REGISTRY._versions, "other", 1)
    one, two, short = (
        tiny(probes=[PROBE]),
        tiny(probes=[Component("other")]),
        tiny(steps=4, probes=[Component("other")]),
    )
    store.save(made_up(one), step=10)
    store.save(made_up(short), step=4)
    assert store.load(one) is not None
    assert store.load(short) is not None
    assert missing_steps(store, two) == [5]
    assert store.load_partial(two) is None
    store.save(made_up(two), step=10, checkpoint={"x": np.zeros(1)})
    both = store.load(tiny(probes=[PROBE, Component("other")]))
    assert both is not None
    assert [len(both.arrays[f"probe/{name}/norm"]) for name in ("no-op", "other")] == [11, 11]
    store.save(made_up(tiny(steps=15, probes=[PROBE])), step=15)  # continued with one of the probes
    assert store.load(both.spec) is not None
    assert missing_steps(store, tiny(steps=15, probes=[PROBE])) == []
    assert missing_steps(store, tiny(steps=15, probes=[Component("other")])) == [11]


@pytest.mark.parametrize(
    ("old", "new"),
    [(("done", 10), ("diverged", 7)), (("diverged", 4), ("done", 10)), (("diverged", 4), ("diverged", 6))],
)
def test_attempts_that_contradict_each_other_are_not_mixed(
    store: RunStore, old: tuple[Status, int], new: tuple[Status, int]
) -> None:
    """A new attempt that diverges elsewhere replaces the old one whole."""
    for (status, end), value in ((old, 1.0), (new, 2.0)):
        store.save(made_up(tiny(), status, end=end, value=value), step=end)
    history = store.load(tiny())
    assert history is not None
    assert (history.status, set(history.loss), history.step[-1]) == (new[0], {2.0}, new[1])


def test_nan_is_nan_only_where_it_is_nan(store: RunStore) -> None:
    """A class without samples leaves its group alone; a NaN or infinite loss with samples is never a number."""
    history = made_up(tiny(steps=1))
    history.arrays["group"] = np.array([0, 0, 1, 1, 2])
    history.arrays["train/count"] = np.array([3, 1, 2, 0, 0])
    history.arrays["train/class_loss"] = np.array([[1.0, 5.0, 7.0, np.nan, np.nan], [np.nan, 1.0, np.inf, np.nan, 0.0]])
    expected = [[2.0, 7.0, np.nan], [np.nan, np.inf, np.nan]]
    np.testing.assert_array_equal(history.group_loss(), expected)
    total, count = history.sums("train", "class_loss", history.arrays["group"])
    np.testing.assert_array_equal(total, [[8.0, 14.0, 0.0], [np.nan, np.inf, 0.0]])
    np.testing.assert_array_equal(count, [[4, 2, 0]] * 2)


def test_a_failure_is_noted_beside_what_was_committed(store: RunStore) -> None:
    """A failed run says so, keeps its checkpoint, and a finished one cannot fail."""
    spec = tiny()
    store.mark_failed(spec, "out of memory")  # before anything was committed
    assert (store.status(spec), store.load_partial(spec)) == ("failed", None)
    [(key, table, record)] = store.records()
    assert (key, record["error"]) == (spec.key, "out of memory")
    assert RunSpec.from_dict(table) == spec.resolved
    store.save(made_up(spec, "running", end=4), step=5, checkpoint={"x": np.ones(1)})
    store.mark_failed(spec, "out of memory")
    assert store.status(spec) == "failed"
    assert store.load_partial(spec) is not None
    store.save(made_up(spec), step=10)
    store.mark_failed(spec, "too late")
    assert store.status(spec) == "done"


def test_records_are_listed_oldest_first(store: RunStore) -> None:
    """Every stored run is listed once, with its table and its status."""
    specs = [tiny(seed=seed) for seed in (2, 0, 1)]
    for spec in specs:
        store.save(made_up(spec), step=10)
        time.sleep(0.01)
    listed = list(store.records())
    assert [key for key, _, _ in listed] == [spec.key for spec in specs]
    assert [table["seed"] for _, table, _ in listed] == [2, 0, 1]
    assert {record["status"] for _, _, record in listed} == {"done"}


# -- two processes -----------------------------------------------------------------------------------------------------


def test_a_lock_is_held_once_and_dies_with_its_process(store: RunStore, pickled: Path) -> None:
    """A second process waits for the first, and gets the lock as soon as that one is killed."""
    spec = pickle.loads(pickled.read_bytes())
    assert not store.locked(spec.key)
    with python(SAVE_FOREVER, store.root, pickled) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert store.locked(spec.key)
        child.kill()
    assert not store.locked(spec.key)
    with store.lock(spec):
        assert store.locked(spec.key)
    assert not store.locked(spec.key)


TRAIN = """
import sys, time
from pathlib import Path
from dataclasses import dataclass
from heavytail.data import REGISTRY
from heavytail.data.synthetic import RandomHeavyTail
from heavytail.experiment.store import RunStore
from heavytail.train.engine import train
from tests.problems import tiny

root, log = map(Path, sys.argv[1:])

@REGISTRY.register("logged")
@dataclass(frozen=True)
class Logged:
    def load(self, *, seed, data_dir):
        with open(log, "a") as out:
            out.write("loaded\\n")
        time.sleep(0.5)  # the other process comes to the lock meanwhile
        return RandomHeavyTail(3).load(seed=seed, data_dir=data_dir)

print("ready", flush=True)
sys.stdin.readline()
history = train(tiny(data="logged"), RunStore(root), data_dir=root)
print(history.status, history.loss.tobytes().hex())
"""


def test_two_processes_train_a_run_once(store: RunStore, tmp_path: Path) -> None:
    """Of two processes started on the same run one trains; the other waits and reads the same history."""
    log = tmp_path / "log"
    children = [python(TRAIN, store.root, log, stdin=-1) for _ in range(2)]
    results = at_once(children)
    assert results[0] == results[1] != ""
    assert results[0].startswith("done ")
    assert log.read_text() == "loaded\n"


def test_spec_and_store_files_are_readable_without_torch(store: RunStore) -> None:
    """Listing the runs of a store imports no torch."""
    store.save(made_up(tiny()), step=10)
    code = """
import sys
from heavytail.experiment.store import RunStore
[(key, spec, record)] = RunStore(sys.argv[1]).records()
print(record["status"], spec["lr"], "torch" in sys.modules)
"""
    assert output(code, store.root) == "done 0.1 False"
