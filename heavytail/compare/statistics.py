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
RESOLUTION = 1e-6  # nats; smaller mean differences are rounding errors of losses in float32
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


def differs(differences: Array) -> bool:
    """Whether differences [n] have p < LEVEL and a mean that float32 resolves.

    >>> differs(np.array([1.0, 1.1, 0.9])), differs(np.array([1.0, 1.1, 0.9]) * 1e-7)
    (True, False)
    """
    return bool(abs(differences.mean()) > RESOLUTION) and paired_p(differences) < LEVEL


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
        None where there is no gap: GD's mean loss is not larger than Adam's, or `differs` finds no difference.
    """
    from scipy.special import stdtrit

    gap, gained = gd - adam, gd - other
    if not (gap.mean() > 0 and differs(gap)):
        return None
    n = len(gap)
    without = (gained.sum() - gained) / (gap.sum() - gap)
    error = np.sqrt((n - 1) / n * np.square(without - without.mean()).sum())
    half = float(stdtrit(n - 1, (1 + _CONFIDENCE) / 2) * error)
    value = float(gained.sum() / gap.sum())
    return Share(value, value - half, value + half)
