"""The union of two stores: every run of one is taken over by the other, unless that one has more of it.

The shards of a search may be trained into stores of their own. Runs of one key have one trajectory, so that of two
attempts at it the more advanced one is kept if it contains the other. Attempts that differ where both have measured are
a conflict; the destination keeps its own. Each run is read whole and checked, and committed atomically under its lock,
so that a merge can be interrupted at any moment and repeated. The source is never written.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from heavytail.errors import DamagedError, UnreadableError
from heavytail.experiment.attempt import FINISHED, Commit, agree, merged
from heavytail.experiment.spec import describe
from heavytail.experiment.store import RunStore


@dataclass(frozen=True)
class Merged:
    """What became of one run of the source.

    Attributes:
        key: of the run.
        label: the run in words, "" if its spec cannot be read.
        what: "copied" to a destination that had none of it; "advanced": the destination's was less far, had fewer
            measurements, or was damaged; "same": the destination has all of it; and of runs that the destination keeps
            as they are: "in progress" in one of the stores, "damaged" or "unreadable" in the source, "conflict".
        reason: for "damaged", "unreadable" and "conflict".
    """

    key: str
    label: str
    what: Literal["copied", "advanced", "same", "in progress", "damaged", "unreadable", "conflict"]
    reason: str = ""


def merge(source: RunStore, destination: RunStore) -> Iterator[Merged]:
    """Add every run of `source` to `destination`; yield what became of each.

    Raises:
        StoreError: the destination cannot be written or locked; the runs merged so far are complete.
    """
    keys = source.keys()
    for key in keys:
        try:
            commit, attempt = source.committed(key), source.committed(key, attempt=True)
        except UnreadableError as error:  # of this run only
            yield Merged(key, "", "damaged" if isinstance(error, DamagedError) else "unreadable", str(error))
            continue
        if commit is None:  # deleted meanwhile
            continue
        label = describe(commit.record["spec"])
        if source.locked(key):
            yield Merged(key, label, "in progress")
            continue
        with destination.try_lock(key, label, commit.record["spec"]["steps"]) as held:
            yield _take(source, destination, key, commit, attempt) if held else Merged(key, label, "in progress")


def _take(source: RunStore, destination: RunStore, key: str, theirs: Commit, attempt: Commit | None) -> Merged:
    """Merge one run; the lock of the destination's is held."""
    label = describe(theirs.record["spec"])
    damage = False
    try:
        mine, other = destination.committed(key), destination.committed(key, attempt=True)
    except DamagedError:
        mine, other, damage = None, None, True
    except UnreadableError as error:
        return Merged(key, label, "unreadable", str(error))
    if mine is not None and not agree(mine, theirs):
        return Merged(key, label, "conflict", _contradiction(source, destination, key, mine, theirs))
    best = theirs if mine is None else _best(mine, theirs)
    taken = best is not mine
    rest = mine if best is theirs else theirs
    if attempt is not None and not (best is theirs or _same(best, theirs)):
        attempt = attempt if _farther(attempt, best) and agree(attempt, best) else None
    if rest is not None and _farther(rest, best):
        attempt = max(filter(None, (rest, attempt)), key=_step)
    further = attempt is not None and (other is None or (_step(attempt) > _step(other) and agree(other, attempt)))
    if attempt is not None and further:  # first, so that an interruption leaves what `best` replaces
        destination.adopt(key, attempt, attempt=True)
    if taken:
        destination.adopt(key, best)
        # What lies beside a damaged record may be the farthest there is, and stays.
        if not damage and not further and not (other is not None and _farther(other, best)):
            destination.drop_attempt(key)
    if taken and best is theirs:
        _keep_time(source, destination, key)
    if damage or (mine is not None and (taken or further)):
        return Merged(key, label, "advanced")
    return Merged(key, label, "copied" if taken else "same")


def _step(commit: Commit) -> int:
    return int(commit.record["step"])


def _best(mine: Commit, theirs: Commit) -> Commit:
    """The more advanced of two attempts at one trajectory, or one with the measurements of both."""
    finished = [commit.record["status"] in FINISHED for commit in (mine, theirs)]
    if all(finished):
        both = merged(mine, theirs)
        return mine if _same(both, mine) else both
    return theirs if (finished[1], theirs.record["step"]) > (finished[0], mine.record["step"]) else mine


def _farther(commit: Commit, finished: Commit) -> bool:
    """Whether an unfinished run has passed the last step of a finished one, which a longer run continues from there."""
    statuses = [one.record["status"] in FINISHED for one in (commit, finished)]
    return statuses == [False, True] and _step(commit) > _step(finished)


def _same(a: Commit, b: Commit) -> bool:
    """Whether two commits that agree have the same measurements up to the same step."""
    return a.arrays.keys() == b.arrays.keys() and all(a.arrays[name].shape == b.arrays[name].shape for name in a.arrays)


def _contradiction(source: RunStore, destination: RunStore, key: str, mine: Commit, theirs: Commit) -> str:
    """Both histories in words: their status, step, and folder."""
    parts = [
        f"{commit.record['status']} at step {commit.record['step']} in {store.root / 'runs' / key}"
        for commit, store in ((mine, destination), (theirs, source))
    ]
    return f"{parts[0]} (kept) and {parts[1]} have different histories"


def _keep_time(source: RunStore, destination: RunStore, key: str) -> None:
    """Give a copied record the time of its commit, by which runs are listed."""
    files = [store.root / "runs" / key / "status.json" for store in (source, destination)]
    with contextlib.suppress(OSError):  # the file system does not allow it: the run is listed as new
        time = files[0].stat().st_mtime_ns
        os.utime(files[1], ns=(time, time))
