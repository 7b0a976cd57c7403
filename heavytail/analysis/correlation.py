"""Correlation of two positive quantities of the classes on log-log axes, with confidence intervals.

Pearson's r of the logarithms (interval by Fisher's transform), Spearman's rho (the same, with the variance of Bonett
and Wright 2000), and the slope of least squares (Student's t). Classes where either quantity is zero, infinite or
undefined have no logarithm and are left out.

Shapes: C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heavytail.errors import SpecError


class Interval(NamedTuple):
    """A number and its confidence interval; NaN if undefined."""

    value: float
    low: float
    high: float


UNDEFINED = Interval(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Correlation:
    """Correlation and slope of y on x over the classes.

    Attributes:
        pearson: correlation of log y and log x.
        spearman: rank correlation of y and x; ties share their mean rank.
        slope: slope of log y on log x: y ~ x^slope.
        num: number of classes used.
    """

    pearson: Interval
    spearman: Interval
    slope: Interval
    num: int


def loglog(x: ArrayLike, y: ArrayLike, where: ArrayLike | None = None, *, confidence: float = 0.95) -> Correlation:
    """Return the correlation and the slope of log y on log x.

    Args:
        x, y: one number per class [C].
        where: classes to use [C] bool; all by default.
        confidence: level of the intervals, in (0, 1).

    Raises:
        SpecError: the shapes differ, or the confidence is out of range.

    >>> fit = loglog([1, 10, 100, 1000], [2, 20, 200, 2000])
    >>> round(fit.pearson.value, 6), round(fit.slope.value, 6), fit.num
    (1.0, 1.0, 4)
    """
    from scipy import stats

    if not 0 < confidence < 1:
        raise SpecError(f"confidence: expected a number in (0, 1), got {confidence}")
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    chosen = np.ones(x.shape, bool) if where is None else np.asarray(where, dtype=bool)
    if not (x.ndim == 1 and x.shape == y.shape == chosen.shape):
        raise SpecError(f"x, y, where: expected one number per class, got shapes {x.shape}, {y.shape}, {chosen.shape}")
    with np.errstate(divide="ignore", invalid="ignore"):
        u, v = np.log(x), np.log(y)
    finite = chosen & np.isfinite(u) & np.isfinite(v)
    u, v = u[finite], v[finite]
    num = len(u)
    if num < 3 or _constant(u) or _constant(v):
        return Correlation(UNDEFINED, UNDEFINED, UNDEFINED, num)
    r = float(np.corrcoef(u, v)[0, 1])
    rho = float(np.corrcoef(stats.rankdata(u), stats.rankdata(v))[0, 1])
    slope = r * float(v.std() / u.std())
    width = float(stats.norm.ppf(0.5 + confidence / 2))
    # residual variance (1 - r^2) Var(v), with num - 2 degrees of freedom
    error = float(v.std() / u.std()) * math.sqrt(max(0.0, 1 - r * r) / (num - 2))
    reach = float(stats.t.ppf(0.5 + confidence / 2, num - 2)) * error
    return Correlation(
        pearson=_fisher(r, width, 1.0, num),
        spearman=_fisher(rho, width, 1.0 + rho * rho / 2, num),
        slope=Interval(slope, slope - reach, slope + reach),
        num=num,
    )


def frequency_halves(counts: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the more frequent and the rarer half of the classes that have samples, [C] bool each.

    Of an odd number the middle class is in neither, and ties keep the order of the classes.

    >>> [half.tolist() for half in frequency_halves([5, 0, 9, 1, 1])]
    [[True, False, True, False, False], [False, False, False, True, True]]
    """
    counts = np.asarray(counts)
    order = np.argsort(-counts, kind="stable")[: int((counts > 0).sum())]
    half = len(order) // 2
    frequent, rare = np.zeros(len(counts), bool), np.zeros(len(counts), bool)
    frequent[order[:half]] = True
    rare[order[len(order) - half :]] = True
    return frequent, rare


def _fisher(r: float, width: float, variance: float, num: int) -> Interval:
    """Interval of a correlation: atanh(r) is about normal with variance `variance` / (num - 3)."""
    r = min(1.0, max(-1.0, r))
    if num < 4:
        return Interval(r, -1.0, 1.0)
    if abs(r) == 1:
        return Interval(r, r, r)
    reach = width * math.sqrt(variance / (num - 3))
    return Interval(r, math.tanh(math.atanh(r) - reach), math.tanh(math.atanh(r) + reach))


def _constant(values: NDArray[np.float64]) -> bool:
    """Whether values are equal up to rounding: their correlation would be that of rounding errors."""
    return bool(np.ptp(values) <= 8 * np.finfo(np.float64).eps * max(1.0, np.abs(values).max()))
