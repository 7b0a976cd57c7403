"""The groups of a monitor: cut from counts, given for each class, by name, or the many, medium and few of the field.

Shapes: C classes, G groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from heavytail.errors import SpecError
from heavytail.metrics import FrequencyGroups

__all__ = ["Grouping", "class_counts", "named_groups"]

Counts = NDArray[np.int64]
_SHOTS = ("many", "medium", "few")  # > 100, 20 to 100, < 20 training samples (Liu et al., 2019, OLTR)


class Grouping(NamedTuple):
    """Groups of classes, with their names (none: numbered) and their origin."""

    groups: FrequencyGroups
    names: tuple[str, ...]
    cut: str


def class_counts(counts: ArrayLike | Tensor | Mapping[int, int], num_classes: int | None) -> Counts:
    """Return counts [C] from an array of whole numbers of any type, or from a mapping of classes to counts.

    Raises:
        SpecError: not whole numbers, or more of them than classes.
    """
    if isinstance(counts, Mapping):
        keys = np.array(list(counts), dtype=np.int64) if counts else np.zeros(0, np.int64)
        if len(keys) and keys.min() < 0:
            raise SpecError(f"counts: expected classes of at least 0, got {keys.min()}")
        dense = np.zeros(int(keys.max()) + 1 if len(keys) else 0, np.float64)
        dense[keys] = list(counts.values())
        counts = dense
    array = np.asarray(counts.detach().cpu().numpy() if isinstance(counts, Tensor) else counts)
    if np.issubdtype(array.dtype, np.floating) and np.array_equal(array, np.floor(array)):
        array = array.astype(np.int64)
    if num_classes is not None and array.ndim == 1:
        if len(array) > num_classes:
            raise SpecError(f"num_classes: expected {len(array)}, got {num_classes}")
        if len(array) < num_classes and np.issubdtype(array.dtype, np.integer):
            array = np.concatenate([array, np.zeros(num_classes - len(array), array.dtype)])
    return array


def named_groups(groups: Any, counts: Counts | None, num_classes: int | None, num_groups: int) -> Grouping | None:
    """Return the grouping that the arguments of a monitor describe; None if it is cut from the targets seen.

    Raises:
        SpecError: `groups` is none of the documented forms.
    """
    if groups is None:
        if counts is None:
            return None
        return Grouping(FrequencyGroups.from_counts(counts, num_groups), (), "the counts given")
    if isinstance(groups, FrequencyGroups):
        return Grouping(groups, (), "the groups given")
    if isinstance(groups, str):
        if groups != "shots":
            raise SpecError(f"groups: expected 'shots', a mapping of names to classes, or groups, got '{groups}'")
        if counts is None:
            raise SpecError("counts: expected some for groups='shots', got none")
        index = np.where(counts > 100, 0, np.where(counts >= 20, 1, 2))
        names = tuple(_SHOTS[g] for g in np.unique(index))
        return Grouping(FrequencyGroups.from_index(index, counts), names, "the counts given: > 100, 20 to 100, < 20")
    if isinstance(groups, Mapping):
        return _by_name(groups, num_classes)
    index = np.asarray(groups.detach().cpu().numpy() if isinstance(groups, Tensor) else groups)
    if index.ndim != 1 or not np.issubdtype(index.dtype, np.integer):
        raise SpecError(f"groups: expected the group of each class [C], whole numbers, got {index.dtype} {index.shape}")
    return Grouping(FrequencyGroups.from_index(index, np.ones(len(index), np.int64)), (), "the groups given")


def _by_name(groups: Mapping[str, ArrayLike], num_classes: int | None) -> Grouping:
    """Groups in the order given; classes in none of them form "other", the last."""
    members = {name: np.asarray(ids).reshape(-1) for name, ids in groups.items()}
    if num_classes is None:
        raise SpecError("num_classes: expected it beside groups by name, got None")
    index = np.full(num_classes, -1, np.int64)
    for g, (name, ids) in enumerate(members.items()):
        if not isinstance(name, str) or not name:
            raise SpecError(f"groups: expected texts as names, got {name!r}")
        if not len(ids) or not np.issubdtype(ids.dtype, np.integer):
            raise SpecError(f"groups: expected class numbers for '{name}', got {ids.dtype} {list(ids.shape)}")
        if ids.min() < 0 or ids.max() >= num_classes:
            wrong = ids[(ids < 0) | (ids >= num_classes)][0]
            raise SpecError(f"groups: expected classes 0 to {num_classes - 1} in '{name}', got {wrong}")
        twice = ids[(index[ids] >= 0) & (index[ids] != g)]
        if len(twice):
            raise SpecError(f"groups: expected each class once, got {twice[0]} in '{name}' and another")
        index[ids] = g
    names = list(members)
    if (index < 0).any():
        if "other" in members:
            raise SpecError("groups: expected every class in a group beside 'other', which holds the rest by itself")
        index[index < 0] = len(names)
        names.append("other")
    return Grouping(FrequencyGroups.from_index(index, np.ones(num_classes, np.int64)), tuple(names), "the groups given")
