"""Per-class sums and frequency groups, from which every loss plot of the paper is made (section 2).

Sums and counts are accumulated over batches, chunks and processes; means are formed once, on reading. The mean of a
class without samples is NaN, never 0.

Shapes: M rows (samples or predicted tokens), C classes, G groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heavytail.errors import SpecError

if TYPE_CHECKING:  # torch takes over a second to import, and the audit needs frequency groups alone
    import torch
    from torch import Tensor

__all__ = ["ClassStats", "FrequencyGroups"]


def sum_by_group(values: NDArray[Any], index: NDArray[Any], num_groups: int) -> NDArray[np.float64]:
    """Return the sums over each group's classes [..., G] of values [..., C].

    Args:
        values: one value of each class [..., C].
        index: group of each class [C] int.
        num_groups: G; a group without classes sums to 0.

    >>> sum_by_group(np.array([1.0, 2.0, 4.0]), np.array([2, 0, 2]), 3)
    array([2., 0., 5.])
    """
    order = np.argsort(index, kind="stable")
    present, starts = np.unique(index[order], return_index=True)
    sums = np.zeros((*values.shape[:-1], num_groups))
    sums[..., present] = np.add.reduceat(values[..., order], starts, axis=-1, dtype=np.float64)
    return sums


@dataclass(frozen=True, eq=False)
class FrequencyGroups:
    """A partition of the classes by training frequency; create one with `from_counts` or `from_index`.

    Attributes:
        index: group of each class, 0 for the most frequent; every group 0..G-1 has a class [C] int64.
        share: share of the training samples in each group [G] float64.
    """

    index: NDArray[np.int64]
    share: NDArray[np.float64]

    @classmethod
    def from_counts(cls, counts: ArrayLike, num_groups: int = 10) -> FrequencyGroups:
        """Cut the classes, most frequent first, into groups that hold about the same number of samples.

        A class belongs to the group in which its first sample falls, one without samples to the last group.
        Groups left empty by a class with more than 1/G of the samples are dropped, so there may be fewer.

        Args:
            counts: training samples of each class [C] int.
            num_groups: groups to cut into, G.

        Raises:
            SpecError: if counts are not integers, are negative or all 0, or if `num_groups` is below 1.

        >>> FrequencyGroups.from_counts([1, 7, 1, 1], num_groups=3).index  # the second third is all class 1
        array([1, 0, 1, 1])
        """
        n_k = _as_counts(counts)
        if not isinstance(num_groups, int | np.integer):
            raise SpecError(f"num_groups: expected an integer, got {num_groups!r}")
        if num_groups < 1:
            raise SpecError(f"num_groups: expected at least 1, got {num_groups}")
        order = np.argsort(-n_k, kind="stable")
        if int(num_groups) * float(n_k.sum(dtype=np.float64)) >= 2.0**62:  # Python's integers do not wrap
            n_k = n_k.astype(object)
        before = np.cumsum(n_k[order]) - n_k[order]
        group = np.empty(len(n_k), np.int64)
        group[order] = num_groups * before // n_k.sum()  # in integers: a cut on a class boundary is exact
        group[n_k == 0] = group[n_k > 0].max()
        return cls.from_index(group, n_k.astype(np.int64))

    @classmethod
    def from_index(cls, index: ArrayLike, counts: ArrayLike) -> FrequencyGroups:
        """Use given groups, such as the natural ones of the synthetic data; gaps in the numbers are closed.

        Args:
            index: group of each class, in the order of the groups [C] int.
            counts: training samples of each class [C] int.

        Raises:
            SpecError: if the lengths differ or either is not made of integers of at least 0.
        """
        n_k = _as_counts(counts)
        given = _as_integers("index", index)
        if given.shape != n_k.shape:
            raise SpecError(f"index: expected one group for each of {len(n_k)} classes, got {given.shape}")
        group = np.unique(given, return_inverse=True)[1].astype(np.int64)
        samples = np.bincount(group, weights=n_k)  # in float64, exact up to 2^53 samples
        share = samples / samples.sum()
        for array in (group, share):
            array.setflags(write=False)
        return cls(group, share)

    @property
    def num_groups(self) -> int:
        """Number of groups, G."""
        return len(self.share)

    @property
    def num_classes(self) -> int:
        """Number of classes, C."""
        return len(self.index)

    def sum(self, values: ArrayLike) -> NDArray[np.float64]:
        """Return the sums over each group's classes [..., G] of values [..., C]."""
        return sum_by_group(self._per_class("values", values), self.index, self.num_groups)

    def _per_class(self, name: str, values: ArrayLike) -> NDArray[np.float64]:
        array = np.asarray(values, np.float64)
        if array.ndim == 0 or array.shape[-1] != self.num_classes:
            raise SpecError(f"{name}: expected [..., {self.num_classes}], got {list(array.shape)}")
        return array


@dataclass(eq=False)
class ClassStats:
    """Sums over the rows of each class, on one device; `a + b` merges two.

    Attributes:
        count: rows of each class [C] int64.
        loss_sum: sum of their losses [C] float64 (nats).
        correct: number of rows predicted correctly [C] int64.
        p_correct_sum: probabilities of the correct class, summed [C] float64.
    """

    count: Tensor
    loss_sum: Tensor
    correct: Tensor
    p_correct_sum: Tensor

    @classmethod
    def zeros(cls, num_classes: int, device: torch.device | str | None = None) -> ClassStats:
        """Return the statistics of no rows."""
        import torch

        whole = torch.zeros(2, num_classes, dtype=torch.int64, device=device)
        real = torch.zeros(2, num_classes, dtype=torch.float64, device=device)
        return cls(whole[0], real[0], whole[1], real[1])

    @property
    def num_classes(self) -> int:
        """Number of classes, C."""
        return len(self.count)

    def update(
        self,
        targets: Tensor,
        losses: Tensor,
        correct: Tensor,
        p_correct: Tensor,
        *,
        ignore_index: int | None = None,
    ) -> None:
        """Add rows, as `linear_cross_entropy` returns them, in place and without synchronizing the device.

        Args:
            targets: class of each row [...] int64.
            losses: loss of each row [...].
            correct: whether each row was predicted correctly [...] bool.
            p_correct: probability of each row's class [...].
            ignore_index: value in `targets` of rows that are left out.

        Raises:
            SpecError: the shapes differ, or targets are not integers or (on a CPU) not classes; then nothing is added.
        """
        import torch

        if targets.is_floating_point() or targets.dtype == torch.bool:
            raise SpecError(f"targets: expected integers, got {targets.dtype}")
        for name, value in (("losses", losses), ("correct", correct), ("p_correct", p_correct)):
            if value.shape != targets.shape:
                raise SpecError(f"{name}: expected {list(targets.shape)} like targets, got {list(value.shape)}")
        index = targets.reshape(-1).long()
        one = torch.ones_like(index)
        rows = [x.detach().reshape(-1) for x in (losses, correct, p_correct)]
        if ignore_index is not None:
            valid = index != ignore_index
            index, one = index * valid, one * valid
            rows = [torch.where(valid, x, 0) for x in rows]
        # Before anything is added. Reading the range synchronizes a GPU, and breaks a compiled graph.
        if index.device.type == "cpu" and not torch.compiler.is_compiling() and index.numel():
            low, high = (int(end) for end in index.aminmax())
            if low < 0 or high >= self.num_classes:
                wrong = low if low < 0 else high
                raise SpecError(f"targets: expected classes 0 to {self.num_classes - 1}, got {wrong}")
        for total, value in zip(
            (self.count, self.loss_sum, self.correct, self.p_correct_sum), (one, *rows), strict=True
        ):
            total.index_add_(0, index, value.to(total.dtype))

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the sums themselves, in the order of the attributes; they may be changed in place."""
        return tuple(getattr(self, field.name) for field in fields(self))

    def __add__(self, other: ClassStats) -> ClassStats:
        """Return the statistics of both sets of rows."""
        if other.num_classes != self.num_classes:
            raise SpecError(f"num_classes: expected {self.num_classes} to add, got {other.num_classes}")
        return self._map(lambda mine, theirs: mine + theirs, other)

    def mean_loss(self) -> Tensor:
        """Return the mean loss of each class, NaN where it has no rows [C] float64 (nats)."""
        return self.loss_sum / self.count

    def accuracy(self) -> Tensor:
        """Return the accuracy on each class, NaN where it has no rows [C] float64."""
        return self.correct.double() / self.count

    def mean_p_correct(self) -> Tensor:
        """Return the mean probability of the correct class, NaN where a class has no rows [C] float64."""
        return self.p_correct_sum / self.count

    def overall_loss(self) -> float:
        """Return the mean loss over all rows, NaN if there are none (nats)."""
        return float(self.loss_sum.sum() / self.count.sum())

    def _map(self, function: Callable[..., Tensor], *others: ClassStats) -> ClassStats:
        return ClassStats(*(function(*(getattr(s, f.name) for s in (self, *others))) for f in fields(self)))


def _as_integers(name: str, values: ArrayLike) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise SpecError(f"{name}: expected integers [C], got {array.dtype} {list(array.shape)}")
    if len(array) and array.min() < 0:
        raise SpecError(f"{name}: expected at least 0, got {array.min()}")
    if len(array) and array.max() > np.iinfo(np.int64).max:
        raise SpecError(f"{name}: expected numbers below 2^63, got {array.max()}")
    return array.astype(np.int64)


def _as_counts(values: ArrayLike) -> NDArray[np.int64]:
    counts = _as_integers("counts", values)
    if not counts.any():
        raise SpecError("counts: expected at least one sample, got none")
    return counts
