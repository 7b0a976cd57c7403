"""How heavy a tail is: the exponent s of Zipf's law, n_k ~ 1/k^s for the k-th most frequent class (figure 9).

Two estimates over the same ranks. The least-squares slope of log n_k on log k weighs every rank alike and is what the
paper's plots show; maximum likelihood weighs every sample alike and comes with an interval.

Shapes: C classes; K = high - low + 1 ranks.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heavytail.errors import DataError

LOW, HIGH = 10, 1_000  # ranks: the first few classes and the rarest follow laws of their own


class Zipf(NamedTuple):
    """Two estimates of Zipf's exponent.

    Attributes:
        slope: of log count on log rank by least squares; Zipf's law with exponent s has slope -s.
        exponent: s by maximum likelihood.
        low, high: the ends of its 95 % confidence interval, for samples that are independent of each other but need not
            follow Zipf's law exactly (the "sandwich" variance). Words depend on their neighbours: it is a lower bound.
    """

    slope: float
    exponent: float
    low: float
    high: float


def fit(counts: ArrayLike, low: int = LOW, high: int = HIGH) -> Zipf:
    """Fit Zipf's law to the samples of the classes ranked `low` to `high`.

    With p_k(s) = k^-s / sum_j j^-s over these ranks, the likelihood is largest where the mean of log k under p(s) is
    that of the samples; its variance under p(s) is the Fisher information of one sample.

    Args:
        counts: samples of each class [C], the most frequent class first.
        low, high: the first and the last rank, counted from 1.

    Raises:
        DataError: there are fewer than `high` classes with a sample.

    >>> fit([round(1e9 / k**1.1) for k in range(1, 1001)]).exponent.__round__(6)
    1.1
    """
    from scipy.optimize import brentq

    n_k = np.asarray(counts, np.float64)
    if not 1 <= low < high or len(n_k) < high or n_k[:high].min() <= 0:
        seen = int((n_k > 0).sum())
        raise DataError(f"counts: expected samples of at least {high} classes to fit ranks {low} to {high}, got {seen}")
    n_k = n_k[low - 1 : high]
    log_k = np.log(np.arange(low, high + 1))
    slope = float(np.polyfit(log_k, np.log(n_k), 1)[0])

    total = n_k.sum()
    mean = n_k @ log_k / total
    exponent = float(brentq(lambda s: _moments(s, log_k)[0] - mean, -20.0, 200.0, xtol=1e-12))
    spread = float(n_k @ (log_k - mean) ** 2 / total)  # of the samples, where Fisher's information has the model's
    error = math.sqrt(spread / total) / _moments(exponent, log_k)[1]
    return Zipf(slope, exponent, exponent - 1.96 * error, exponent + 1.96 * error)


def _moments(exponent: float, log_k: NDArray[np.float64]) -> tuple[float, float]:
    """Mean and variance of log k under p(s)."""
    weight = np.exp(-exponent * (log_k - log_k[0]))
    p = weight / weight.sum()
    mean = float(p @ log_k)
    return mean, float(p @ (log_k - mean) ** 2)
