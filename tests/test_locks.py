"""Locks where the file system has no flock: leases among real processes, some of which stand for other machines.

flock is taken away, or made to be granted to everybody, by tests/fixtures/platforms in every child process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from heavytail import locks
from heavytail.experiment.store import LEASES, RunStore
from tests.problems import ROOT, at_once, output, python, tiny
from tests.test_store import TRAIN

PLATFORMS = ROOT / "tests" / "fixtures" / "platforms"
NO_FLOCK = ["refused", "granted"]
# Arguments: folder, name of the machine ("" for this one), seconds until a lease expires, what to do.
CHILD = """
import os, sys, time
from pathlib import Path
from heavytail import locks
from heavytail.experiment.store import RunStore
from tests.problems import made_up, tiny

folder, machine, expire, what = sys.argv[1:]
if machine:
    locks.machine = lambda: machine
locks.EXPIRE_SECONDS, locks.RENEW_SECONDS, locks.POLL_SECONDS, locks.SETTLE_SECONDS = float(expire), 0.1, 0.05, 0.2
store, spec = RunStore(Path(folder)), tiny()

if what == "jumps":  # a file server whose clock jumps back and forth
    times = iter([10**9, 3 * 10**9, 5, 2 * 10**9] * 1000)
    os.utime, utime = lambda path, *_: utime(path, (next(times),) * 2), os.utime
if what == "critical":
    for _ in range(5):
        with store.lock(spec):
            os.close(os.open(Path(folder) / "inside", os.O_CREAT | os.O_EXCL))  # fails if another is inside
            time.sleep(0.02)
            os.unlink(Path(folder) / "inside")
    print("ok")
elif what == "try":
    with store.try_lock(spec.key, "", 1) as held:
        print(held)
else:
    with store.lock(spec):
        print("ready", flush=True)
        if what == "commit":
            sys.stdin.readline()
            store.save(made_up(spec), step=10)
        while what != "commit":
            time.sleep(0.05)
"""


@pytest.fixture(params=NO_FLOCK)
def platform(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def environment(platform: str) -> dict[str, str]:
    return {"PYTHONPATH": f"{PLATFORMS}{os.pathsep}{ROOT}", "SIMULATED_PLATFORM": platform}


@contextlib.contextmanager
def child(
    platform: str, folder: Path, what: str, machine: str = "", expire: float = 60.0
) -> Iterator[subprocess.Popen[str]]:
    """Start a process on a file system without flock; kill it at the end."""
    with python(CHILD, folder, machine, expire, what, stdin=-1, env=environment(platform)) as process:
        try:
            if what not in ("critical", "try"):
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n", process.communicate()[1]
            yield process
        finally:
            process.send_signal(signal.SIGCONT)
            process.kill()


def ready(platform: str, folder: Path, machine: str = "", expire: float = 60.0) -> float:
    """Return the seconds until a new process has the lock."""
    start = time.monotonic()
    with child(platform, folder, "hold", machine, expire):
        return time.monotonic() - start


def test_two_processes_train_a_run_once(platform: str, tmp_path: Path) -> None:
    """Of two processes started on the same run one trains; the other waits and reads the same history."""
    store, log = RunStore(tmp_path / "store"), tmp_path / "log"
    children = [python(TRAIN, store.root, log, stdin=-1, env=environment(platform)) for _ in range(2)]
    results = at_once(children)
    assert results[0] == results[1] != ""
    assert log.read_text() == "loaded\n"
    assert not list(tmp_path.rglob("*lock.lease*"))
    assert (store.root / LEASES).exists()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    """Of six processes that take a lease left by a dead one, and then pass it around, never two are inside."""
    with child("refused", tmp_path, "hold", "elsewhere") as process:
        process.kill()
    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(child("refused", tmp_path, "critical", expire=1.0)) for _ in range(6)]
        for process in started:
            assert process.communicate(timeout=120)[0] == "ok\n"


def test_a_dead_process_of_this_machine_has_no_lock(platform: str, tmp_path: Path) -> None:
    """The lease of a killed process is taken over at once, however long leases last; status asks no one to wait."""
    store = RunStore(tmp_path)
    with child(platform, tmp_path, "hold") as process:
        assert store.locked(tiny().key)
        process.kill()
        process.wait()
        assert not store.locked(tiny().key)
    assert ready(platform, tmp_path) < 50  # of which Python takes two to start, or more on a busy machine


def test_a_dead_machine_loses_its_lock_by_rule(tmp_path: Path) -> None:
    """The lease of a killed process of another machine is taken over once it has not changed for the given time."""
    with child("refused", tmp_path, "hold", "elsewhere") as process:
        process.kill()
    assert RunStore(tmp_path).locked(tiny().key)
    assert ready("refused", tmp_path, expire=4.0) > 4.0


@pytest.mark.parametrize("what", ["hold", "jumps"])
def test_a_living_process_keeps_its_lock(what: str, tmp_path: Path) -> None:
    """While its holder renews it, a lease does not expire, even if the times that it is given jump by decades."""
    with child("refused", tmp_path, what, "elsewhere"):
        with python(CHILD, tmp_path, "", 1.0, "hold", stdin=-1, env=environment("refused")) as waiting:
            time.sleep(6)  # of which it takes two to start
            waiting.kill()
            assert waiting.communicate()[0] == ""
        tried = output(CHILD, tmp_path, "", 1.0, "try", env=environment("refused"))
        assert tried == "False"


def test_a_process_that_was_stopped_does_not_overwrite_the_next_one(tmp_path: Path) -> None:
    """A stopped holder loses its lease; when it goes on, its commit is refused, and the other's stays."""
    store, spec = RunStore(tmp_path), tiny()
    with child("refused", tmp_path, "commit", "elsewhere") as stopped:
        stopped.send_signal(signal.SIGSTOP)
        with child("refused", tmp_path, "commit", expire=1.0) as other:
            assert other.stdin is not None
            assert stopped.stdin is not None
            stopped.stdin.write("go\n")
            stopped.stdin.flush()
            stopped.send_signal(signal.SIGCONT)
            _, error = stopped.communicate(timeout=60)
            assert "TakenOverError" in error
            assert "another process has taken over" in error
            assert store.status(spec) == "missing"
            other.stdin.write("go\n")
            other.stdin.flush()
            assert other.wait(timeout=60) == 0
    assert store.status(spec) == "done"


def test_machines_with_flock_follow_those_without(tmp_path: Path) -> None:
    """Once a process has found no flock, others use leases in that store, too."""
    with child("refused", tmp_path, "hold", "elsewhere"):
        assert output(CHILD, tmp_path, "", 60.0, "try") == "False"
    (tmp_path / "other").mkdir()
    assert output(CHILD, tmp_path / "other", "", 60.0, "try") == "True"
    assert not list((tmp_path / "other").rglob("*lock.lease*"))


@pytest.mark.parametrize(
    ("mount", "local"),
    [
        ("nfs4 server:/x rw,vers=4.2,local_lock=none", False),
        ("nfs server:/x rw,vers=3,nolock,local_lock=all", True),
        ("nfs server:/x rw,vers=3,local_lock=flock", True),
        ("nfs server:/x rw,vers=3,local_lock=posix", False),
        ("lustre server:/x rw,localflock", True),
        ("lustre server:/x rw,flock", False),
        ("ext4 /dev/sda1 rw", False),
    ],
)
def test_mounts_that_keep_locks_on_one_machine(mount: str, local: bool, tmp_path: Path) -> None:
    """The options of a folder's mount say whether its locks hold on one machine only."""
    device = tmp_path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    (tmp_path / "mountinfo").write_text(f"1 0 0:1 / / rw - tmpfs x rw\n36 35 {number} / /data rw shared:1 - {mount}\n")
    assert locks._local(tmp_path, tmp_path / "mountinfo") == local
    assert not locks._local(tmp_path, tmp_path / "none")
