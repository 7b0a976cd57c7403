"""Attempts at one trajectory: a record with its measurements, and what two of them have in common.

Runs of one key have one trajectory, so that their commits differ only in how far they went and what they measured.

Shapes: E recorded steps, T steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
FINISHED = ("done", "diverged")


@dataclass(frozen=True)
class Commit:
    """A record with its arrays; without a checkpoint here, the record keeps the one that it names."""

    record: Mapping[str, Any]
    arrays: dict[str, Array]
    checkpoint: Mapping[str, Array] | None = None


def merged(old: Commit, new: Commit) -> Commit:
    """Return the longer of two finished attempts at one trajectory, with the measurements that only the other one has.

    Attempts that contradict each other are not merged: the new one replaces the old.
    """
    if _contradict(old, new):
        return new
    base, other = (new, old) if new.record["step"] >= old.record["step"] else (old, new)
    arrays = {name: value for name, value in base.arrays.items() if not name.startswith("probe/")}
    for split in ("train", "test"):
        arrays |= _union(arrays, other.arrays, split)
    probes, following = [], {}
    for name, (commit, table) in _measured(old, new).items():
        probes.append(table)
        following[name] = commit.record["observed"].get("probe_next", {}).get(name)
        arrays |= {key: value for key, value in commit.arrays.items() if key.startswith(f"probe/{name}/")}
    observed = {"probes": probes, "probe_next": following}
    record = {"spec": new.record["spec"], "environment": new.record["environment"], **base.record}
    record["observed"] = observed
    return Commit(record, arrays, base.checkpoint)


def agree(a: Commit, b: Commit) -> bool:
    """Return whether two attempts can be of one trajectory.

    All measurements that both have are equal, bit for bit, and neither has passed a step at which the other diverged.
    """
    if _contradict(a, b):
        return False
    settings = [{table["name"]: table for table in commit.record["observed"]["probes"]} for commit in (a, b)]
    for name in a.arrays.keys() & b.arrays.keys():
        mine, theirs = a.arrays[name], b.arrays[name]
        path = name.split("/")
        if path[0] == "probe" and settings[0].get(path[1]) != settings[1].get(path[1]):
            continue
        if name == "objective":
            common = min(len(mine), len(theirs))
            mine, theirs = mine[:common], theirs[:common]
        elif len(path) > 1 and not per_run(name, mine):
            steps = [commit.arrays["/".join([*path[:-1], "step"])] for commit in (a, b)]
            mine, theirs = mine[np.isin(steps[0], steps[1])], theirs[np.isin(steps[1], steps[0])]
        if mine.shape != theirs.shape or not np.array_equal(mine, theirs, equal_nan=mine.dtype.kind == "f"):
            return False
    return True


def _contradict(a: Commit, b: Commit) -> bool:
    """Whether their data differ, or one has reached or passed the step at which only the other one diverged.

    The class counts of one key differ where a tokenizer has been learned again.
    """
    samples = [commit.arrays["samples"] for commit in (a, b) if "samples" in commit.arrays]
    if len(samples) == 2 and not np.array_equal(samples[0], samples[1]):
        return True
    ends = [(commit.record["status"], commit.record["step"]) for commit in (a, b)]
    return any(one[0] == "diverged" and other[1] >= one[1] and one != other for one, other in (ends, ends[::-1]))


def _measured(old: Commit, new: Commit) -> dict[str, tuple[Commit, dict[str, Any]]]:
    """The commit and settings of every probe: those of the new commit, unless the old one measured more steps."""
    found = {table["name"]: (old, table) for table in old.record["observed"]["probes"]}
    for table in new.record["observed"]["probes"]:
        name = table["name"]
        before = found.get(name)
        if before is not None and before[1] == table:
            reach = [c.record["observed"].get("probe_next", {}).get(name) for c in (old, new)]
            if reach[0] is None or (reach[1] is not None and reach[0] > reach[1]):
                continue
        found[name] = new, table
    return found


def _union(base: dict[str, Array], other: dict[str, Array], split: str) -> dict[str, Array]:
    """The arrays of one split with the rows of both, in the order of steps; where both have a row, the base's."""
    mine, theirs = ({n: v for n, v in arrays.items() if n.startswith(f"{split}/")} for arrays in (base, other))
    step = f"{split}/step"
    if not mine or not theirs:
        return mine or theirs
    extra = ~np.isin(theirs[step], mine[step])
    if not extra.any() or mine.keys() != theirs.keys():
        return mine
    order = np.argsort(np.concatenate([mine[step], theirs[step][extra]]), kind="stable")
    return {
        name: value if per_run(name, value) else np.concatenate([value, theirs[name][extra]])[order]
        for name, value in mine.items()
    }


def per_run(name: str, value: Array) -> bool:
    """Whether an array of a split has no axis of steps: exact passes see the same samples every time."""
    return name.endswith("/count") and value.ndim == 1
