"""Merging stores: the union of runs, whatever has happened to either store, and whenever the merge is interrupted."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from heavytail.cli import main
from heavytail.experiment.merging import merge
from heavytail.experiment.spec import RunSpec
from heavytail.experiment.store import History, RunStore
from tests.problems import made_up, python, tiny, tiny_preset
from tests.test_status import held

Files = dict[str, bytes]


@pytest.fixture
def stores(tmp_path: Path) -> tuple[RunStore, RunStore]:
    return RunStore(tmp_path / "a"), RunStore(tmp_path / "b")


def merged(a: RunStore, b: RunStore) -> list[str]:
    """Merge a into b, and return what became of each run."""
    return [one.what for one in merge(a, b)]


def content(store: RunStore, spec: RunSpec) -> Files:
    """Return the files of a run, without its lock."""
    folder = store.folder(spec)
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != "lock")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def rising(spec: RunSpec, status: str = "done", *, end: int | None = None) -> History:
    """Return a history whose losses count the steps."""
    history = made_up(spec, status, end=end)  # type: ignore[arg-type]
    history.arrays["train/loss"] = history.arrays["train/step"].astype(float)
    history.arrays["objective"] = np.arange(len(history.arrays["objective"]), dtype=float)
    return history


def test_a_copy_has_the_same_files(stores: tuple[RunStore, RunStore]) -> None:
    """A run that the destination lacks is copied byte for byte, with its checkpoint, its new attempt and its time."""
    a, b = stores
    spec, probed = tiny(), tiny(probes=["head-blocks"])
    a.save(rising(spec), step=10, checkpoint={"x": np.ones(3)})
    a.save(rising(probed, "running", end=4), step=5, checkpoint={"x": np.zeros(2)})
    before = content(a, spec)
    assert merged(a, b) == ["copied"]
    assert content(b, spec) == before == content(a, spec)
    assert len([name for name in before if name.startswith("attempt/")]) == 5
    times = [(store.folder(spec) / "status.json").stat().st_mtime_ns for store in stores]
    assert times[0] == times[1]
    assert merged(a, b) == ["same"]
    assert content(b, spec) == before


@pytest.mark.parametrize(
    ("mine", "theirs", "what", "step"),
    [
        (("interrupted", 3), ("done", 10), "advanced", 10),
        (("done", 10), ("interrupted", 3), "same", 10),
        (("interrupted", 3), ("interrupted", 6), "advanced", 6),
        (("interrupted", 6), ("interrupted", 3), "same", 6),
        (("running", 6), ("diverged", 8), "advanced", 8),
        (("diverged", 8), ("done", 10), "conflict", 8),
        (("interrupted", 9), ("diverged", 8), "conflict", 9),
        (("failed", 0), ("interrupted", 3), "advanced", 3),
        (("interrupted", 3), ("failed", 0), "same", 3),
    ],
)
def test_the_more_advanced_attempt_is_kept(
    mine: tuple[str, int], theirs: tuple[str, int], what: str, step: int, stores: tuple[RunStore, RunStore]
) -> None:
    """Of two attempts at one trajectory the one that contains the other is kept; if neither does, the destination's."""
    a, b = stores
    spec = tiny()
    for store, (status, end) in ((b, mine), (a, theirs)):
        if status == "failed":
            store.mark_failed(spec, "out of memory")
        else:
            store.save(rising(spec, status, end=end), step=end, checkpoint={"x": np.full(2, end)})
    kept = content(b, spec)
    assert merged(a, b) == [what]
    assert b.read(spec.key)[1]["step"] == step
    assert content(b, spec) == (content(a, spec) if what == "advanced" else kept)


def test_the_farther_of_two_unfinished_runs_is_kept(stores: tuple[RunStore, RunStore]) -> None:
    """The source has finished 10 steps and begun a longer run; the destination's own is farther, and stays."""
    a, b = stores
    short, long = tiny(steps=10), tiny(steps=20)
    a.save(rising(short), step=10, checkpoint={"x": np.ones(1)})
    a.save(rising(long, "interrupted", end=12), step=12, checkpoint={"x": np.full(1, 12)})
    b.save(rising(long, "interrupted", end=18), step=18, checkpoint={"x": np.full(1, 18)})
    merged(a, b)
    found = b.load_partial(long)
    assert found is not None
    assert (b.status(short), found[1]) == ("done", 18)


@pytest.mark.parametrize("way", [(0, 1), (1, 0)])
def test_a_longer_unfinished_run_is_kept_beside_a_finished_one(
    way: tuple[int, int], stores: tuple[RunStore, RunStore]
) -> None:
    """The steps that a run of 20 has made are not lost to a finished one of 10, whichever way they are merged."""
    a, b = (stores[i] for i in way)
    short, long = tiny(steps=10), tiny(steps=20)
    stores[0].save(rising(short), step=10, checkpoint={"x": np.ones(1)})
    stores[1].save(rising(long, "interrupted", end=15), step=15, checkpoint={"x": np.full(1, 15)})
    merged(a, b)
    assert b.status(short) == "done"
    found = b.load_partial(long)
    assert found is not None
    assert (found[1], found[2]["x"].tolist()) == (15, [15])
    kept = content(b, short)
    assert merged(a, b) == ["same"]
    assert content(b, short) == kept


STATES = [(None, 5), (None, 25), (10, None), (10, 15), (10, 25), (20, None), (20, 25)]  # finished at, unfinished at


@pytest.mark.parametrize("mine", STATES)
@pytest.mark.parametrize("theirs", STATES)
def test_the_farthest_steps_of_both_are_kept(
    mine: tuple[int | None, int | None], theirs: tuple[int | None, int | None], stores: tuple[RunStore, RunStore]
) -> None:
    """A longer run continues from the farthest commit of both, and no attempt that a finished run passed stays."""
    for store, (finished, unfinished) in zip(stores, (theirs, mine), strict=True):
        if finished is not None:
            store.save(rising(tiny(steps=finished)), step=finished, checkpoint={"x": np.full(1, finished)})
        if unfinished is not None:
            history = rising(tiny(steps=40), "interrupted", end=unfinished)
            store.save(history, step=unfinished, checkpoint={"x": np.full(1, unfinished)})
    a, b = stores
    before, [what] = content(b, tiny()), merged(a, b)
    found = b.load_partial(tiny(steps=40))
    assert found is not None
    farthest = max(filter(None, (*mine, *theirs)))
    assert (found[1], found[2]["x"].tolist()) == (farthest, [farthest])
    ends = [finished for finished, _ in (mine, theirs) if finished is not None]
    assert b.status(tiny(steps=max(ends, default=40))) == ("done" if ends else "interrupted")
    attempt = b.committed(tiny().key, attempt=True)
    assert attempt is None or attempt.record["step"] > max(ends)
    kept = content(b, tiny())
    assert (kept == before) == (what == "same")
    assert merged(a, b) == ["same"]
    assert content(b, tiny()) == kept


def test_what_lies_beside_a_damaged_run_is_kept(stores: tuple[RunStore, RunStore]) -> None:
    """The destination's finished run is damaged, and replaced; the unfinished one that went on from it stays."""
    a, b = stores
    for store in stores:
        store.save(rising(tiny(steps=10)), step=10, checkpoint={"x": np.ones(1)})
    b.save(rising(tiny(steps=40), "interrupted", end=25), step=25, checkpoint={"x": np.full(1, 25)})
    for file in b.folder(tiny()).glob("*.safetensors"):
        file.write_bytes(b"damaged")
    merged(a, b)
    found = b.load_partial(tiny(steps=40))
    assert found is not None
    assert (b.status(tiny()), found[1]) == ("done", 25)


def test_finished_runs_join_their_measurements(stores: tuple[RunStore, RunStore]) -> None:
    """A longer run and a probe of a shorter one end up in one run, whichever way they are merged."""
    a, b = stores
    long, probed = tiny(steps=20), tiny(steps=10, probes=["head-blocks"])
    a.save(rising(long), step=20, checkpoint={"x": np.ones(1)})
    b.save(rising(probed), step=10)
    assert merged(a, b) == ["advanced"]
    assert merged(b, a) == ["advanced"]
    for store in stores:
        assert (store.status(long), store.status(probed)) == ("done", "done")
        assert store.load_partial(tiny(steps=30)) is not None  # with the checkpoint of the longer one
    assert merged(a, b) == merged(b, a) == ["same"]


def test_different_histories_are_named_and_kept(
    stores: tuple[RunStore, RunStore], capsys: pytest.CaptureFixture[str]
) -> None:
    """Two finished histories of one key that differ in one bit: both are named, neither store changes, exit code 1."""
    a, b = stores
    spec, other = tiny(), tiny(seed=1)
    history = rising(spec)
    b.save(history, step=10)
    history.arrays["train/loss"][7] = np.nextafter(7.0, 8.0)
    a.save(history, step=10)
    a.save(rising(other), step=10)
    before = content(a, spec), content(b, spec)
    assert main(["store", "merge", str(a.root), str(b.root)]) == 1
    printed = capsys.readouterr()
    assert printed.out == f"{a.root} -> {b.root}: 1 conflict, 1 copied\n"
    assert printed.err == (
        f"conflict: {spec.key} {spec.describe()}: done at step 10 in {b.folder(spec)} (kept) and "
        f"done at step 10 in {a.folder(spec)} have different histories\n"
    )
    assert (content(a, spec), content(b, spec)) == before
    assert b.status(other) == "done"


@pytest.mark.parametrize("part", ["status.json", "history-*", "checkpoint-*"])
def test_damaged_runs_are_named_and_left(
    part: str, stores: tuple[RunStore, RunStore], capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that is damaged in the source is not taken; one that is damaged in the destination is replaced."""
    a, b = stores
    spec = tiny()
    for store in stores:
        store.save(rising(spec), step=10, checkpoint={"x": np.ones(1)})
    intact = content(b, spec)
    [file] = a.folder(spec).glob(part)
    file.write_bytes(file.read_bytes()[:-3] + b"xyz")
    assert main(["store", "merge", str(a.root), str(b.root)]) == 1
    assert f"damaged: {spec.key}: {file} is damaged" in capsys.readouterr().err
    assert content(b, spec) == intact
    assert main(["store", "merge", str(b.root), str(a.root)]) == 0
    assert content(a, spec) == intact


@pytest.mark.parametrize("live", [0, 1])
def test_a_run_in_progress_is_left(
    live: int, stores: tuple[RunStore, RunStore], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """While a process holds a run of either store, it is named and not taken; afterwards it is."""
    a, b = stores
    spec = tiny()
    a.save(rising(spec), step=10)
    with held(stores[live], spec, tmp_path):
        assert main(["store", "merge", str(a.root), str(b.root)]) == 0
        assert f"in progress: {spec.key} {spec.describe()}\n" == capsys.readouterr().err
        assert b.status(spec) == "missing"
    assert main(["store", "merge", str(a.root), str(b.root)]) == 0
    assert content(b, spec) == content(a, spec)


MERGE = """
import sys
from heavytail.experiment.merging import merge
from heavytail.experiment.store import RunStore
for one in merge(*map(RunStore, sys.argv[1:])):
    print(one.what, flush=True)
"""


def test_killed_at_any_moment_both_stores_are_valid(stores: tuple[RunStore, RunStore]) -> None:
    """A merge that is killed again and again leaves whole runs only, and is completed by the next one."""
    a, b = stores
    specs = [tiny(seed=seed) for seed in range(60)]
    for spec in specs:
        a.save(rising(spec), step=10, checkpoint={"x": np.arange(5000)})
        b.save(rising(spec, "interrupted", end=3), step=3, checkpoint={"x": np.arange(900)})
    before = [content(a, spec) for spec in specs]
    states = set()
    for reached in (1, 10, 20):
        with python(MERGE, a.root, b.root) as child:
            assert child.stdout is not None
            for _ in range(reached):
                assert child.stdout.readline().strip() in ("advanced", "same")
            child.kill()
        for spec in specs:
            commit = b.committed(spec.key)  # checks every file
            assert commit is not None
            assert commit.checkpoint is not None
            states.add(commit.record["status"])
    assert states == {"done", "interrupted"}
    assert set(merged(a, b)) == {"advanced", "same"}
    assert [content(b, spec) for spec in specs] == before == [content(a, spec) for spec in specs]


def test_shards_in_stores_of_their_own_are_one_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two shards trained into two stores, merged: the same command without a shard finds every run, and trains nothing.

    Each wave of the search is one turn: train both shards, merge both ways.
    """
    grid = 'name = "gd"\nlr = { decades = [-2, 0], refine = 1 }'
    (tmp_path / "mine.toml").write_text(tiny_preset(3, "seeds = [0, 1]", grid))
    sweep = ["sweep", str(tmp_path / "mine.toml"), "--jobs", "1", "--root"]
    assert main([*sweep, str(tmp_path / "whole")]) == 0
    expected = capsys.readouterr().out
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    for _ in range(3):
        for root, shard in ((a, "1/2"), (b, "2/2")):
            assert main([*sweep, root, "--shard", shard]) == 0
        for one, other in ((a, b), (b, a)):
            if (Path(one) / "runs").is_dir():
                assert main(["store", "merge", one, other]) == 0
    assert set(RunStore(tmp_path / "a").keys()) == set(RunStore(tmp_path / "whole").keys())
    shutil.copytree(a, tmp_path / "copy")
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "a").rglob("status.json")}
    capsys.readouterr()
    assert main([*sweep, a]) == 0
    assert capsys.readouterr().out == expected
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "a").rglob("status.json")} == times


@pytest.mark.parametrize("folders", [["none", "b"], ["a", "a"], ["a"]])
def test_wrong_folders_are_one_line(
    folders: list[str], tmp_path: Path, stores: tuple[RunStore, RunStore], capsys: pytest.CaptureFixture[str]
) -> None:
    """A source without runs, a source that is the destination, and a missing destination are refused."""
    stores[0].save(rising(tiny()), step=10)
    try:
        code = main(["store", "merge", *(str(tmp_path / name) for name in folders)])
    except SystemExit as stop:
        code = int(str(stop.code))
    assert code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "SOURCE: expected " in error or "required: DESTINATION" in error
