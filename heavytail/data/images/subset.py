"""Subsets of a large, balanced image set: all, balanced, or heavy-tailed (section 3).

The paper's two small ImageNets: "balanced", 10 images of each class, and "heavy-tailed", ceil(1300 / k)
images of the k-th class, classes sorted by their number of images. With 1 000 classes they have 10 000 and 10
217 images.

C classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from heavytail.errors import DataError

Subset = Literal["all", "balanced", "heavy-tailed"]


def subset_sizes(
    counts: Sequence[int], subset: Subset, *, per_class: int = 10, largest: int | None = None
) -> NDArray[np.int64]:
    """Return the number of images of each class in the subset, [C].

    Classes with equal counts keep their order.

    >>> subset_sizes([5, 6, 6], "heavy-tailed").tolist()
    [2, 6, 3]

    Args:
        counts: available images of each class, [C].
        subset: "all", "balanced" or "heavy-tailed".
        per_class: images of each class if balanced.
        largest: images of the first class if heavy-tailed; all available ones if None.

    Raises:
        DataError: if a class has fewer images than the subset needs.
    """
    available = np.asarray(counts, dtype=np.int64)
    if subset == "all":
        return available
    if subset == "balanced":
        sizes = np.full_like(available, per_class)
    else:
        order = np.argsort(-available, kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(1, len(order) + 1)
        sizes = -(-(available.max() if largest is None else largest) // rank)
    short = np.flatnonzero(sizes > available)
    if len(short):
        worst = short[0]
        raise DataError(f"{subset} subset: needs {sizes[worst]} images of class {worst}, got {available[worst]}")
    return sizes


def digest(names: Iterable[str]) -> str:
    """Return the sha256 of a list of file names, which identifies a subset."""
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()
