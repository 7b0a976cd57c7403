"""One row per stored run, read from its record alone: what `heavytail status` prints.

ROOT/.status keeps the rows of unchanged records, so that a store of thousands of runs is listed without reading them
again. It is written for large stores only, may be deleted at any time, and is ignored if it cannot be read. This
module does not import torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from heavytail.errors import DamagedError, HeavyTailError, UnreadableError
from heavytail.experiment.spec import describe
from heavytail.experiment.store import ATTEMPT, RunStore
from heavytail.files import check_shape, write_atomic

CACHE = ".status"
WORTHWHILE = 200  # records read; for fewer no cache is written
_SPEC = {kind: (str, {"name": str}) for kind in ("data", "model", "optim")} | {"lr": float, "steps": int, "seed": int}


@dataclass(frozen=True)
class Row:
    """A run of a store.

    Attributes:
        key: of the run.
        status: "done", "diverged", "ended" (early, see `RunSpec.may_end`), "running", "interrupted", "failed",
            "damaged", "unreadable", "missing" for a run that is not stored, or "queued" for one that waits in the queue
            of a cluster.
        label: the run in words, "" if its spec cannot be read.
        step: number of updates made at its last commit.
        steps: number of updates asked for.
        seconds: of training so far; None for runs stored before November 2026.
        host: where it was last committed; None if that is not recorded.
        committed: time of its last commit in seconds since 1970, by the clock of the file system; None without one.
        reason: why it failed, was ended or cannot be read, else "".
    """

    key: str
    status: str
    label: str = ""
    step: int = 0
    steps: int = 0
    seconds: float | None = None
    host: str | None = None
    committed: float | None = None
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the row as a plain table; the time of the last commit as UTC."""
        when = None if self.committed is None else datetime.fromtimestamp(self.committed, UTC)
        return {**asdict(self), "committed": when and f"{when:%Y-%m-%dT%H:%M:%SZ}"}


def rows(store: RunStore) -> list[Row]:
    """Return a row per stored run, oldest commit first; runs that have begun but have no commit are last.

    Raises:
        UnreadableError: the folder of runs cannot be read.
    """
    cached, kept, found = _cached(store.root), {}, []
    for key, files in _entries(store.root / "runs"):
        stamp = [number for stat in files for number in ((stat.st_mtime_ns, stat.st_size, stat.st_ino) if stat else ())]
        row = cached[key][1] if key in cached and cached[key][0] == stamp else _read(store, key, files)
        if row.status != "unreadable":  # perhaps only now
            kept[key] = stamp, row
        status = _now(store, row)
        found.append(row if status == row.status else replace(row, status=status))
    if sum(key not in cached or cached[key][0] != stamp for key, (stamp, _) in kept.items()) >= WORTHWHILE:
        _write(store.root, kept)
    return sorted(
        (row for row in found if row.status != "missing"), key=lambda row: (row.committed or float("inf"), row.key)
    )


def _now(store: RunStore, row: Row) -> str:
    """The status in a record, but "running" if and only if a process holds the lock of an unfinished run."""
    if row.status in ("running", "interrupted", "ended", "failed", "missing"):
        return "running" if store.locked(row.key) else {"running": "interrupted"}.get(row.status, row.status)
    return row.status


def _entries(folder: Path) -> Iterator[tuple[str, list[os.stat_result | None]]]:
    """Yield every key with the stat of its record and of its new attempt's, None where there is none."""
    try:
        names = [entry.name for entry in os.scandir(folder) if entry.is_dir()]
    except FileNotFoundError:
        return
    except OSError as error:
        raise UnreadableError(f"cannot read {folder}: {error.strerror or error}") from error
    for name in names:
        place = os.path.join(folder, name)
        yield name, [_stat(os.path.join(place, *inside, "status.json")) for inside in ((), (ATTEMPT,))]


def _stat(file: str) -> os.stat_result | None:
    try:
        return os.stat(file)
    except OSError:  # reading the file will raise the error
        return None


def _read(store: RunStore, key: str, files: list[os.stat_result | None]) -> Row:
    """The row of a record; of the new attempt at a finished run, if there is one."""
    committed = max((stat.st_mtime for stat in files if stat is not None), default=None)
    if files == [None, None]:
        return _begun(store, key)
    try:
        table, record = store.read(key, attempt=files[1] is not None)
        try:
            check_shape(table, _SPEC, "spec")
        except ValueError as error:
            raise DamagedError(f"{store.root / 'runs' / key} is damaged: {error}") from error
    except HeavyTailError as error:  # of this run only
        status = "damaged" if isinstance(error, DamagedError) else "unreadable"
        return Row(key, status, committed=committed, reason=str(error))
    ended = record.get("ended", "") if record["status"] == "interrupted" else ""
    return Row(
        key,
        "ended" if ended else record["status"],
        describe(table),
        record["step"],
        table["steps"],
        record.get("timing", {}).get("seconds"),
        record.get("host"),
        committed,
        (record["error"] or "") if record["status"] == "failed" else ended,
    )


def _begun(store: RunStore, key: str) -> Row:
    """The row of a run without a record, from its lock."""
    holder = store.holder(key)
    return Row(key, "missing", holder.get("run", ""), 0, holder.get("steps", 0), host=holder.get("host"))


# -- the cache ---------------------------------------------------------------------------------------------------------

_Stamped = dict[str, tuple[list[int], Row]]
_COLUMNS = [field.name for field in fields(Row) if field.name != "key"]


def _cached(root: Path) -> _Stamped:
    """The rows of the cache by key, each with the times, sizes and inodes of its records."""
    try:
        digest, _, content = (root / CACHE).read_bytes().partition(b"\n")
    except OSError:
        return {}
    if hashlib.sha256(content).hexdigest().encode() != digest:
        return {}
    table = json.loads(content)
    if table["columns"] != _COLUMNS:  # of another version
        return {}
    return {key: (stamp, Row(key, *values)) for key, (stamp, *values) in table["rows"].items()}


def _write(root: Path, kept: Mapping[str, tuple[list[int], Row]]) -> None:
    table = {
        "columns": _COLUMNS,
        "rows": {key: [stamp, *(getattr(row, name) for name in _COLUMNS)] for key, (stamp, row) in kept.items()},
    }
    content = json.dumps(table).encode()
    with contextlib.suppress(OSError):  # a folder that cannot be written, a full disk
        write_atomic(root / CACHE, hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
