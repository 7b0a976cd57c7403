"""Locks on files among processes of one or several machines: flock, or leases where the file system has no flock.

A lease is a file beside the lock that names its holder, who renews its time every ten seconds; it is taken over from a
dead holder. Machines do not compare their clocks: whoever waits sees whether the time of the lease *changes*, and
counts the seconds without a change by a clock of its own that no one can set. A holder on the same machine is dead as
soon as its process is. A holder that was stopped for long and has lost its lease finds out at its next commit.

A file system has no flock if it refuses it, grants it twice, or is mounted such that it holds on one machine alone (NFS
with `nolock` or `local_lock`, Lustre without `flock`). The first process that finds this leaves a marker, by which
machines that would find otherwise use leases there, too.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heavytail.errors import StoreError, TakenOverError
from heavytail.system import HAS_FLOCK, lock, try_lock

RENEW_SECONDS = 10.0
EXPIRE_SECONDS = 120.0  # NFS may show a change after a minute only
SETTLE_SECONDS = 1.0  # between taking over an expired lease and trusting that no one else has
POLL_SECONDS = 0.5
LOCAL = {"nfs": ("nolock", "local_lock=all", "local_lock=flock"), "nfs4": ("local_lock=all", "local_lock=flock")}


class Held:
    """A lock by flock of an open file; it ends when the file is closed."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def take(self, *, wait: bool) -> bool:
        """Take the lock; return whether it is held."""
        if try_lock(self._handle):
            return True
        if wait:
            lock(self._handle)
        return wait

    def check(self) -> None:
        """Raise TakenOverError if another process has the lock now."""

    def release(self) -> None:
        """Give the lock back, as far as closing the file does not."""


@contextlib.contextmanager
def locked(file: Path, note: bytes = b"", *, wait: bool = True, marker: Path | None = None) -> Iterator[Held | None]:
    """Hold a lock file; yield None if another process holds it, which never happens if `wait`.

    The file is not deleted: then two processes could hold locks on two files of one name. The system releases the lock
    when the process dies; a lease is taken over.

    Args:
        file: the lock file; it is created if needed.
        note: what to write into it for people and other processes.
        wait: wait while another process holds it.
        marker: file that tells other machines to use leases.

    Raises:
        StoreError: the file cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = open(file, "ab")  # noqa: SIM115 - closed below, the lock with it
        leases = _leases(file.parent, marker)
    except OSError as error:
        raise StoreError(f"cannot write {file.parent}: {error.strerror or error}") from error
    with handle:
        try:
            held = _Lease(_place(file)) if leases else Held(handle.fileno())
            taken = held.take(wait=wait)
        except OSError as error:
            raise StoreError(f"cannot lock {file}: {error.strerror or error}") from error
        if not taken:
            yield None
            return
        with contextlib.suppress(OSError):  # a full disk; the lock is held all the same
            handle.truncate(0)
            handle.write(note)
            handle.flush()
        try:
            yield held
        finally:
            held.release()


def is_locked(file: Path) -> bool:
    """Return whether a process holds the lock of a file; False if that cannot be found out."""
    try:
        lease = _read(_place(file))
        if lease is not None:
            return not (lease.dead() or _age(_place(file)) > EXPIRE_SECONDS)
        with open(file, "rb") as handle:
            return not try_lock(handle.fileno(), shared=True)
    except OSError:  # no such file, or no locks
        return False


def _place(file: Path) -> Path:
    return file.with_name(f"{file.name}.lease")


# -- file systems ------------------------------------------------------------------------------------------------------


def has_flock(folder: Path) -> bool:
    """Return whether locks of files in a folder hold among all processes that can write there.

    Raises:
        OSError: the folder cannot be written.
    """
    device = folder.stat().st_dev
    if device not in _known:
        _known[device] = not _local(folder) and _excludes(folder)
    return _known[device]


_known: dict[int, bool] = {}  # by the number of the file system


def _excludes(folder: Path) -> bool:
    """Whether a file that is locked once cannot be locked again."""
    if not HAS_FLOCK:
        return True  # Windows has its own locks
    with tempfile.NamedTemporaryFile(prefix=".flock-", dir=folder) as one, open(one.name, "rb") as two:
        try:
            return try_lock(one.fileno()) and not try_lock(two.fileno())
        except OSError:
            return False


def _local(folder: Path, table: Path = Path("/proc/self/mountinfo")) -> bool:
    """Whether the mount of a folder keeps locks on this machine."""
    try:
        lines = table.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return False
    device = folder.stat().st_dev
    for line in lines:
        place, _, source = line.partition(" - ")
        if place.split()[2] == f"{os.major(device)}:{os.minor(device)}":
            kind, _, *options = source.split()
            given = {option for part in options for option in part.split(",")}
            if kind == "lustre":
                return "flock" not in given
            return any(option in given for option in LOCAL.get(kind, ()))
    return False


def _leases(folder: Path, marker: Path | None) -> bool:
    """Whether locks in a folder are leases; leave the marker if so."""
    if marker is not None and marker.exists():
        return True
    if has_flock(folder):
        return False
    if marker is not None:
        with contextlib.suppress(OSError):
            marker.touch()
    return True


# -- leases ------------------------------------------------------------------------------------------------------------


@functools.cache
def machine() -> str:
    """Return what identifies this machine, its boot and its processes' numbers: a container has numbers of its own."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


@dataclass(frozen=True)
class _Read:
    """A lease as it was read."""

    holder: dict[str, Any]
    stamp: tuple[int, int, bytes]

    def dead(self) -> bool:
        """Whether its holder was a process of this machine that has died."""
        pid = self.holder.get("pid")
        if not HAS_FLOCK or self.holder.get("machine") != machine() or not isinstance(pid, int):
            return False  # on Windows, asking for a process by a signal would end it
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        except OSError:  # another user's
            return False
        return _started(pid) != self.holder.get("started")


def _started(pid: int) -> str | None:
    """When a process started, by which it differs from a later one of the same number; None outside Linux."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _read(place: Path) -> _Read | None:
    """The lease at a place; None if there is none. Opening the file asks a file server for its current time."""
    try:
        with open(place, "rb") as handle:
            content, stat = handle.read(), os.fstat(handle.fileno())
    except FileNotFoundError:
        return None
    try:
        holder = json.loads(content)
    except ValueError:  # being written
        holder = {}
    return _Read(holder if isinstance(holder, dict) else {}, (stat.st_mtime_ns, stat.st_ino, content))


def _age(place: Path) -> float:
    """Seconds since a lease was renewed, both times by the clock of its file system; 0 in a read-only folder."""
    try:
        with tempfile.NamedTemporaryFile(prefix=".now-", dir=place.parent) as now:
            return os.fstat(now.fileno()).st_mtime - os.stat(place).st_mtime
    except OSError:
        return 0.0


class _Lease(Held):
    """A lease of this process at a place, beside the lock file."""

    def __init__(self, place: Path) -> None:
        self._place = place
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}
        self._content = json.dumps({**holder, "machine": machine(), "token": uuid.uuid4().hex}).encode()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self, *, wait: bool) -> bool:
        """Take the lease, from a dead holder too; return whether it is held.

        Raises:
            OSError: the folder cannot be written.
        """
        perhaps_dead = _age(self._place) > EXPIRE_SECONDS
        seen: tuple[int, int, bytes] | None = None
        since = time.monotonic()
        while not self._create():
            lease = _read(self._place)
            if lease is None:  # released meanwhile
                continue
            if lease.stamp != seen:
                if seen is not None and not wait:
                    return False
                seen, since = lease.stamp, time.monotonic()
            if lease.dead() or time.monotonic() - since > EXPIRE_SECONDS:
                if self._replace(lease):
                    break
            elif not (wait or perhaps_dead):
                return False
            else:
                time.sleep(POLL_SECONDS)
        self._thread = threading.Thread(target=self._renew, daemon=True, name="heavytail-lease")
        self._thread.start()
        return True

    def check(self) -> None:
        """Raise TakenOverError if another process has taken the lease over."""
        if not self._mine():
            raise TakenOverError(f"{self._place}: another process has taken over, as this one did not renew its lease")

    def release(self) -> None:
        """Give the lease back, unless another process has it."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        with contextlib.suppress(OSError):
            if self._mine():
                self._place.unlink()

    def _mine(self) -> bool:
        lease = _read(self._place)
        return lease is not None and lease.stamp[2] == self._content

    def _create(self) -> bool:
        """Create the lease whole, if there is none."""
        with self._draft() as draft:
            try:
                os.link(draft, self._place)
            except FileExistsError:
                return self._mine()  # a file server may have lost its answer
            except OSError:  # a file system without hard links
                return self._create_in_place()
            return True

    def _create_in_place(self) -> bool:
        try:
            with open(self._place, "xb") as handle:
                handle.write(self._content)
        except FileExistsError:
            return False
        return True

    def _replace(self, dead: _Read) -> bool:
        """Replace a dead holder's lease; False if it is no longer the same, or another process was later."""
        with self._draft() as draft:
            now = _read(self._place)
            if now is None or now.stamp != dead.stamp:
                return False
            os.replace(draft, self._place)
        time.sleep(SETTLE_SECONDS)
        return self._mine()

    @contextlib.contextmanager
    def _draft(self) -> Iterator[str]:
        """A file beside the lease with its content."""
        handle, name = tempfile.mkstemp(prefix=f".{self._place.name}.", dir=self._place.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(self._content)
            yield name
        finally:
            with contextlib.suppress(OSError):
                os.unlink(name)

    def _renew(self) -> None:
        """Renew the time of the lease while it is held, by the clock of the file system."""
        while not self._stop.wait(RENEW_SECONDS):
            with contextlib.suppress(OSError):  # the server may be back at the next one
                if self._mine():
                    os.utime(self._place)
