"""Paired differences over seeds: the t-test, and the share of a gap that is closed with its jackknife interval.

Shapes: n seeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
LEVEL = 0.01  # a difference is one at p < LEVEL
_CONFIDENCE = 0.95


def paired_p(differences: Array) -> float:
    """Return p of the two-sided paired t-test on differences [n]: 1 if all are 0, 0 if all are another equal number.

    >>> round(paired_p(np.array([1.0, 2.0, 3.0])), 4)
    0.0742
    """
    from scipy.special import stdtr

    n = len(differences)
    if np.ptp(differences) == 0:
        return 0.0 if differences[0] else 1.0
    t = differences.mean() / (differences.std(ddof=1) / np.sqrt(n))
    return float(2 * stdtr(n - 1, -abs(t)))


@dataclass(frozen=True)
class Share:
    """A share of a gap, with its 95 % interval."""

    value: float
    low: float
    high: float


def closed(gd: Array, adam: Array, other: Array) -> Share | None:
    """Return the share of the gap between gradient descent and Adam that an optimizer closes: 0 is GD's loss, 1 Adam's.

    The interval is the jackknife's over seeds, with Student's t of n - 1 degrees of freedom.

    Args:
        gd, adam, other: losses [n], seed by seed.

    Returns:
        None where there is no gap: GD's mean loss is not larger than Adam's, or their difference has p >= 0.01.
    """
    from scipy.special import stdtrit

    gap, gained = gd - adam, gd - other
    if not gap.mean() > 0 or paired_p(gap) >= LEVEL:
        return None
    n = len(gap)
    without = (gained.sum() - gained) / (gap.sum() - gap)
    error = np.sqrt((n - 1) / n * np.square(without - without.mean()).sum())
    half = float(stdtrit(n - 1, (1 + _CONFIDENCE) / 2) * error)
    value = float(gained.sum() / gap.sum())
    return Share(value, value - half, value + half)
