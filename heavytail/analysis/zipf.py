"""Zipf's law, n_k ~ 1/k^s for the k-th most frequent class: its exponent s, and a test of the fit (figure 9).

Ranks come from the same samples as the counts. Rare classes are then sorted by noise and unseen ones are missing, which
biases a fit over all ranks by many times its interval. `estimate` therefore uses only the ranks of classes with
at least sqrt(N)/4 samples; docs/zipf.md has the coverage study behind this rule. Real text follows no power law
exactly: the fit is compared with two laws with one more parameter, and an exponent has an interval only if neither they
nor the residuals reject it.

    Zipf             p_k ~ k^-s
    Zipf-Mandelbrot  p_k ~ (k + q)^-s
    log-normal       p_k ~ k^-s exp(-b log^2 k), a log-normal density over ranks where b > 0

Shapes: C classes, N samples, K fitted ranks.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heavytail.errors import DataError

LOW, HIGH = 10, 1_000  # ranks of figure 9: the first few classes and the rarest follow other laws
LEAST = 30  # minimum samples of a fitted class
FEWEST = 5  # minimum number of fitted ranks
REJECTED = 7.88  # twice the gain in log likelihood: one parameter more, 0.5 %

Array = NDArray[np.float64]


class Zipf(NamedTuple):
    """Zipf's exponent over given ranks.

    Attributes:
        slope: slope of log count on log rank by least squares; Zipf's law with exponent s has slope -s.
        exponent: s by maximum likelihood.
        low, high: the ends of its 95 % confidence interval, for ranks that are known and samples that are independent
            of each other but need not follow Zipf's law exactly (the "sandwich" variance).
    """

    slope: float
    exponent: float
    low: float
    high: float


class Law(NamedTuple):
    """Zipf's exponent over the ranks with enough samples, and the quality of the fit.

    Attributes:
        exponent: s by maximum likelihood; NaN if fewer than FEWEST ranks can be fitted.
        low, high: the ends of its 95 % confidence interval, NaN where Zipf's law is rejected.
        first, last: the fitted ranks, counted from 1; `last` is 0 where there are too few.
        share: fraction of the samples in these ranks.
        least: minimum samples of a fitted class.
        misfit: Pearson's chi-square per degree of freedom of Zipf's law, Zipf-Mandelbrot and the log-normal; about 1
            or less where a law fits.
        gain: twice the gain in log likelihood of Zipf-Mandelbrot and of the log-normal over Zipf's law.
        mandelbrot: s and q of Zipf-Mandelbrot.
    """

    exponent: float
    low: float
    high: float
    first: int
    last: int
    share: float
    least: float
    misfit: tuple[float, float, float]
    gain: tuple[float, float]
    mandelbrot: tuple[float, float]

    @property
    def fits(self) -> bool:
        """Whether Zipf's law was fitted and not rejected."""
        return math.isfinite(self.low)


_NAN = math.nan
_NOTHING = Law(_NAN, _NAN, _NAN, 1, 0, _NAN, _NAN, (_NAN, _NAN, _NAN), (_NAN, _NAN), (_NAN, _NAN))


def fit(counts: ArrayLike, low: int = LOW, high: int = HIGH) -> Zipf:
    """Fit Zipf's law to the samples of the classes ranked `low` to `high`.

    With p_k(s) = k^-s / sum_j j^-s over these ranks, the likelihood is largest if the mean of log k under p(s) is that
    of the samples; its variance under p(s) is the Fisher information of one sample.

    Args:
        counts: samples of each class [C], the most frequent class first.
        low, high: the first and the last rank, counted from 1.

    Raises:
        DataError: fewer than `high` classes have samples.

    >>> fit([round(1e9 / k**1.1) for k in range(1, 1001)]).exponent.__round__(6)
    1.1
    """
    n_k = np.asarray(counts, np.float64)
    if not 1 <= low < high or len(n_k) < high or n_k[:high].min() <= 0:
        seen = int((n_k > 0).sum())
        raise DataError(f"counts: expected samples of at least {high} classes to fit ranks {low} to {high}, got {seen}")
    n_k = n_k[low - 1 : high]
    log_k = np.log(np.arange(low, high + 1))
    slope = float(np.polyfit(log_k, np.log(n_k), 1)[0])
    exponent, error = _exponent(n_k, log_k)
    return Zipf(slope, exponent, exponent - 1.96 * error, exponent + 1.96 * error)


def estimate(counts: ArrayLike, low: int = 1, high: int | None = None) -> Law:
    """Fit Zipf's law to ranks `low` to at most `high` of the classes with at least max(LEAST, sqrt(N)/4) samples.

    Args:
        counts: samples of each class [C], the most frequent class first.
        low, high: the first rank, counted from 1, and the last one; all if None.

    >>> law = estimate([round(1e6 / k) for k in range(1, 10001)])
    >>> round(law.exponent, 3), law.last, law.fits
    (1.0, 1277, True)
    """
    n_k = np.asarray(counts, np.float64)
    total = n_k.sum()
    least = max(LEAST, math.sqrt(total) / 4)
    last = min(int((n_k >= least).sum()), len(n_k) if high is None else high)
    if last - low + 1 < FEWEST:
        return _NOTHING._replace(least=least)
    n_k, rank = n_k[low - 1 : last], np.arange(low, last + 1, dtype=np.float64)
    log_k = np.log(rank)
    exponent, error = _exponent(n_k, log_k)
    log_p = [_log_p(-exponent * log_k)]
    s, q = _mandelbrot(n_k, rank)
    log_p += [_log_p(-s * np.log(rank + q)), _log_p(_log_normal(n_k, log_k))]
    zipf, *others = (float(n_k @ values) for values in log_p)
    gain = tuple(max(0.0, 2 * (other - zipf)) for other in others)
    misfit = tuple(_chi_square(n_k, values, parameters) for values, parameters in zip(log_p, (1, 2, 2), strict=True))
    # Sorting makes counts smoother than noise, so that chi-square alone rejects too rarely.
    rejected = max(gain) > REJECTED or misfit[0] > 1 + 3 * math.sqrt(2 / (len(n_k) - 2))
    half = math.nan if rejected else 1.96 * error
    share = float(n_k.sum() / total)
    return Law(exponent, exponent - half, exponent + half, low, last, share, least, misfit, gain, (s, q))  # type: ignore[arg-type]


def _exponent(n_k: Array, log_k: Array) -> tuple[float, float]:
    """The most likely exponent and its standard error."""
    from scipy.optimize import brentq

    total = n_k.sum()
    mean = n_k @ log_k / total
    exponent = float(brentq(lambda s: _moments(s, log_k)[0] - mean, -20.0, 200.0, xtol=1e-12))
    spread = float(n_k @ (log_k - mean) ** 2 / total)  # of the samples, not of the model as in Fisher's information
    return exponent, math.sqrt(spread / total) / _moments(exponent, log_k)[1]


def _moments(exponent: float, log_k: Array) -> tuple[float, float]:
    """Mean and variance of log k under p(s)."""
    p = np.exp(_log_p(-exponent * log_k))
    mean = float(p @ log_k)
    return mean, float(p @ (log_k - mean) ** 2)


def _mandelbrot(n_k: Array, rank: Array) -> tuple[float, float]:
    """The most likely s and q of Zipf-Mandelbrot, q above minus the first rank."""
    from scipy.optimize import minimize_scalar

    def loss(x: float) -> float:
        log_k = np.log(rank - rank[0] + math.exp(x))
        return float(-(n_k @ _log_p(-_exponent(n_k, log_k)[0] * log_k)) / n_k.sum())

    # exp(x) is the first rank plus q, so that small and large q are searched alike; q = 0 is among the candidates.
    found = minimize_scalar(loss, bounds=(-2.0, math.log(2 * rank[-1])), method="bounded", options={"xatol": 1e-6})
    q = math.exp(found.x) - rank[0] if found.fun < loss(math.log(rank[0])) else 0.0
    return _exponent(n_k, np.log(rank + q))[0], q


def _log_normal(n_k: Array, log_k: Array) -> Array:
    """Log of the most likely log-normal up to a constant [K], by Newton's method on its two parameters."""
    features = np.stack([log_k, log_k**2])
    features = (features - features.mean(1, keepdims=True)) / features.std(1, keepdims=True)
    target, weight = features @ n_k / n_k.sum(), np.zeros(2)

    def loss(weight: Array) -> float:
        values = weight @ features
        return float(np.logaddexp.reduce(values) - weight @ target)

    for _ in range(100):
        p = np.exp(_log_p(weight @ features))
        mean = features @ p
        hessian = (features * p) @ features.T - np.outer(mean, mean)
        step = np.linalg.solve(hessian + 1e-12 * np.eye(2), target - mean)
        scale = 1.0
        while loss(weight + scale * step) > loss(weight) and scale > 1e-6:
            scale /= 2
        weight = weight + scale * step
        if abs(step).max() < 1e-10:
            break
    values: Array = weight @ features
    return values


def _log_p(values: Array) -> Array:
    """Log probabilities of unnormalised ones [K]."""
    log_p: Array = values - np.logaddexp.reduce(values)
    return log_p


def _chi_square(n_k: Array, log_p: Array, parameters: int) -> float:
    """Pearson's chi-square per degree of freedom."""
    expected = n_k.sum() * np.exp(log_p)
    return float(((n_k - expected) ** 2 / expected).sum() / max(len(n_k) - 1 - parameters, 1))
