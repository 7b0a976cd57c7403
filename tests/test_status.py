"""`heavytail status`: a row per run, from its record and its lock, also where thousands of runs are stored."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from heavytail.cli import main
from heavytail.cli import status as command
from heavytail.experiment import listing
from heavytail.experiment.listing import Row, rows
from heavytail.experiment.spec import RunSpec
from heavytail.experiment.store import RunStore
from tests.problems import made_up, python, tiny, tiny_preset

HOLD = """
import pickle, sys
from heavytail.experiment.store import RunStore
store, spec = RunStore(sys.argv[1]), pickle.load(open(sys.argv[2], "rb"))
with store.lock(spec):
    print("ready", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "store")


@contextlib.contextmanager
def held(store: RunStore, spec: RunSpec, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a process that holds the lock of a run until it is killed, at the latest at the end."""
    _ = spec.key, spec.resolved
    (folder / "spec.pickle").write_bytes(pickle.dumps(spec))
    with python(HOLD, store.root, folder / "spec.pickle", stdin=-1) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        try:
            yield child
        finally:
            child.kill()


def filled(store: RunStore) -> dict[str, RunSpec]:
    """Store a run of every status."""
    specs = {
        name: tiny(seed=seed) for seed, name in enumerate(("done", "diverged", "interrupted", "failed", "damaged"))
    }
    store.save(made_up(specs["done"]), step=10)
    store.save(made_up(specs["diverged"], "diverged", end=4), step=4)
    store.save(made_up(specs["interrupted"], "running", end=2), step=3)
    store.mark_failed(specs["failed"], "out of memory")
    store.save(made_up(specs["damaged"]), step=10)
    file = store.folder(specs["damaged"]) / "status.json"
    file.write_text(file.read_text().replace('"step": 10', '"step": 11'))
    return specs


def printed(arguments: list[str], store: RunStore, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(["status", *arguments, "--root", str(store.root)]) == 0
    return capsys.readouterr().out


def test_a_row_has_what_the_record_has(store: RunStore) -> None:
    """Status, label, step, host and the time of the last commit of every run; a damaged one has the reason."""
    specs = filled(store)
    found = {row.status: row for row in rows(store)}
    assert {status: row.key for status, row in found.items()} == {name: spec.key for name, spec in specs.items()}
    for status in ("done", "diverged", "interrupted", "failed"):
        row, spec = found[status], specs[status]
        assert (row.label, row.steps, row.host) == (spec.describe(), 10, socket.gethostname())
        assert row.committed is not None
        assert abs(time.time() - row.committed) < 60
    assert [found[s].step for s in ("done", "diverged", "interrupted", "failed")] == [10, 4, 3, 0]
    assert found["failed"].reason == "out of memory"
    assert "its checksum differs" in found["damaged"].reason


def test_a_run_in_progress_is_shown_before_its_first_commit(store: RunStore, tmp_path: Path) -> None:
    """A locked run is running, with its label and host, from its first second until its process dies."""
    spec = tiny()
    with held(store, spec, tmp_path) as child:
        [row] = rows(store)
        assert row == Row(spec.key, "running", spec.describe(), steps=10, host=socket.gethostname())
        assert store.holder(spec.key)["pid"] == child.pid
        store.save(made_up(spec, "interrupted", end=2), step=3)
        assert [(row.status, row.step) for row in rows(store)] == [("running", 3)]  # resumed, not committed yet
    assert [(row.status, row.step) for row in rows(store)] == [("interrupted", 3)]


def test_a_failed_attempt_at_a_finished_run_is_shown(store: RunStore) -> None:
    """A finished run that is measured again, and fails, is listed as failed until the attempt is finished, too."""
    spec = tiny(probes=["head-blocks"])
    store.save(made_up(tiny()), step=10)
    store.mark_failed(spec, "no memory for the probe")
    assert [(row.status, row.reason) for row in rows(store)] == [("failed", "no memory for the probe")]
    store.save(made_up(spec), step=10)
    assert [row.status for row in rows(store)] == ["done"]


def test_unchanged_records_of_a_large_store_are_not_read_again(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the second look on only changed records are read; a damaged cache is made again, a small store has none."""
    specs = filled(store)
    first = rows(store)
    assert not (store.root / listing.CACHE).exists()
    monkeypatch.setattr(listing, "WORTHWHILE", 1)
    assert rows(store) == first
    read: list[str] = []
    original = store.read

    def counted(key: str, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        read.append(key)
        return original(key, **options)

    monkeypatch.setattr(store, "read", counted)
    assert rows(store) == first
    assert read == []
    store.save(made_up(specs["interrupted"]), step=10)
    assert sorted(row.status for row in rows(store)) == ["damaged", "diverged", "done", "done", "failed"]
    assert read == [specs["interrupted"].key]
    cache = store.root / listing.CACHE
    for content in (b"", b"garbage", cache.read_bytes()[:-9], cache.read_bytes().replace(b"done", b"lost")):
        cache.write_bytes(content)
        read.clear()
        assert sorted(row.status for row in rows(store)) == ["damaged", "diverged", "done", "done", "failed"]
        assert len(read) == 5


def test_failed_runs_are_sentences_with_the_remedy(store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    """--failed prints one line per run that failed or is damaged: which, where, why, and how it is tried again."""
    specs = filled(store)
    failed, damaged, total = printed(["--failed"], store, capsys).splitlines()
    here = socket.gethostname()
    assert failed.startswith(
        f"{specs['failed'].key}  linear on random-heavy-tail, gd lr 0.1, seed 3: failed at step 0 of "
    )
    assert failed.endswith(" s ago: out of memory; its command tries it again")
    assert f" on {here}, " in failed
    assert damaged.startswith(f"{specs['damaged'].key}: damaged, ")
    assert damaged.endswith("its checksum differs; its command trains it again")
    assert total == f"5 runs under {store.root}: 1 done, 1 diverged, 1 interrupted, 1 failed, 1 damaged"


def test_json_is_read_by_machines(store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    """--json has every field of every run; --failed keeps those that failed."""
    filled(store)
    table = json.loads(printed(["--json"], store, capsys))
    assert table["root"] == str(store.root)
    assert [run["status"] for run in table["runs"]] == ["done", "diverged", "interrupted", "failed", "damaged"]
    assert set(table["runs"][0]) == {
        *("key", "status", "label", "step", "steps", "seconds", "host", "committed", "reason")
    }
    failed = json.loads(printed(["--json", "--failed"], store, capsys))["runs"]
    assert [run["status"] for run in failed] == ["failed", "damaged"]


def test_a_sweep_lists_its_runs_and_those_that_are_missing(
    tmp_path: Path, store: RunStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a sweep, the runs that its search needs now are listed, stored or missing, and no others."""
    (tmp_path / "mine.toml").write_text(tiny_preset(5, "seeds = [0]", 'name = "gd"\nlr = [0.01, 0.1, 1.0]'))
    sweep = str(tmp_path / "mine.toml")
    store.save(made_up(tiny(seed=7)), step=10)
    assert printed([sweep], store, capsys).endswith(f"3 runs under {store.root}: 3 missing\n")
    assert main(["sweep", sweep, "--jobs", "1", "--root", str(store.root), "--shard", "1/2"]) == 0
    lines = printed([sweep], store, capsys).splitlines()
    counts = [sum(f" {status} " in line for line in lines[1:-1]) for status in ("done", "missing")]
    assert sum(counts) == 3
    assert counts[1] > 0
    assert main(["sweep", sweep, "--jobs", "1", "--root", str(store.root)]) == 0
    assert printed([sweep, "--watch"], store, capsys) == f"3 runs under {store.root}: 3 done\n"
    assert main(["status", "--variant", "x"]) == 2
    assert "--variant: expected a sweep with it, got 'x' alone" in capsys.readouterr().err


def test_watch_ends_with_the_last_run(
    store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--watch prints the totals as they change, and ends when no process trains and none has just committed."""
    monkeypatch.setattr(command, "SECONDS", 0.1)
    monkeypatch.setattr(command, "IDLE_SECONDS", 0.3)
    spec = tiny()
    store.save(made_up(spec, "running", end=2), step=3)
    with held(store, spec, tmp_path) as child:
        timer = threading.Timer(1.0, child.kill)
        timer.start()
        before = time.monotonic()
        assert printed(["--watch"], store, capsys).splitlines() == [
            f"1 runs under {store.root}: 1 running",
            f"1 runs under {store.root}: 1 interrupted",
        ]
        assert time.monotonic() - before > 0.9
        timer.join()


def test_ctrl_c_ends_watch(store: RunStore, tmp_path: Path) -> None:
    """Ctrl-C ends --watch with exit code 0: the runs go on."""
    arguments = [sys.executable, "-m", "heavytail", "status", "--watch", "--root", str(store.root)]
    with (
        held(store, tiny(), tmp_path),
        subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env={**os.environ}) as watch,
    ):
        assert watch.stdout is not None
        assert watch.stdout.readline() == f"1 runs under {store.root}: 1 running\n"
        watch.send_signal(signal.SIGINT)
        assert watch.wait(timeout=30) == 0
