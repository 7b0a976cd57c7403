"""Cores, the cache folder and file locks on Linux, macOS and Windows.

Linux and macOS have flock, which is advisory and which a renamed file keeps. Windows locks a byte instead, and an open
file can be neither renamed nor deleted there.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    HAS_FLOCK = False
else:
    HAS_FLOCK = True

_TAKEN = (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK)  # the last is what Windows reports after ten seconds
_POLL_SECONDS = 0.05


def num_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the number of cores this process may use: its affinity, and the quota of its container.

    Args:
        cgroup: where Linux has the quota; the folder does not exist on other systems.
    """
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        usable = os.process_cpu_count() or 1
    else:
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(usable, _quota(cgroup))))


def _quota(cgroup: Path) -> float:
    """The cores of a container, by version 2 or 1 of cgroups; infinite without a quota."""
    for files in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        with contextlib.suppress(OSError, ValueError):  # "max" is no number
            quota, period = (int(n) for file in files for n in (cgroup / file).read_text(encoding="utf-8").split())
            if quota > 0 and period > 0:
                return quota / period
    return math.inf


def user_cache() -> Path:
    """Return heavytail's folder in the user's cache folder: $XDG_CACHE_HOME, or ~/.cache.

    Without a home folder, or with a read-only one, as in many containers: a folder in the temporary folder that only
    this user can read.

    Raises:
        PermissionError: that name in the temporary folder belongs to somebody else.
    """
    place = os.path.expanduser(os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "heavytail"))
    above = place
    while not os.path.isdir(above) and above != os.path.dirname(above):
        above = os.path.dirname(above)
    if not place.startswith("~") and (above == place or os.access(above, os.W_OK)):
        return Path(place)
    user = os.getuid() if hasattr(os, "getuid") else ""
    folder = Path(tempfile.gettempdir()) / f"heavytail-{user}".rstrip("-")
    folder.mkdir(mode=0o700, exist_ok=True)
    if user != "" and folder.lstat().st_uid != user:
        raise PermissionError(errno.EACCES, "belongs to another user; set HEAVYTAIL_ROOT", str(folder))
    return folder


def lock(handle: int) -> None:
    """Lock an open file until it is closed; wait while another process holds the lock.

    Raises:
        OSError: the file system has no locks.
    """
    if HAS_FLOCK:
        fcntl.flock(handle, fcntl.LOCK_EX)
        return
    while not try_lock(handle):
        time.sleep(_POLL_SECONDS)


def try_lock(handle: int, *, shared: bool = False) -> bool:
    """Lock an open file unless another process holds the lock; return whether it is locked.

    Args:
        handle: the file's descriptor.
        shared: leave the lock to other processes that ask for it shared; Windows has no such locks.

    Raises:
        OSError: the file system has no locks.
    """
    try:
        if HAS_FLOCK:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        else:
            msvcrt: Any = import_module("msvcrt")
            os.lseek(handle, 0, os.SEEK_SET)  # it locks at the current position
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise
    return True
