"""Zipf's exponent by brute force: the likelihood written out, class by class, and searched for its largest value."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence


def log_likelihood(exponent: float, counts: Sequence[int], low: int, high: int) -> float:
    """Sum over samples of log p_k, with p_k = k^-s / sum_j j^-s over ranks low..high."""
    norm = math.log(math.fsum(j**-exponent for j in range(low, high + 1)))
    return math.fsum(counts[k - 1] * (-exponent * math.log(k) - norm) for k in range(low, high + 1))


def exponent(counts: Sequence[int], low: int, high: int) -> float:
    """The exponent of largest likelihood, by golden-section search."""
    a, b, ratio = -3.0, 5.0, (math.sqrt(5) - 1) / 2
    while b - a > 1e-7:
        c, d = b - ratio * (b - a), a + ratio * (b - a)
        if log_likelihood(c, counts, low, high) > log_likelihood(d, counts, low, high):
            b = d
        else:
            a = c
    return (a + b) / 2


def slope(counts: Sequence[int], low: int, high: int) -> float:
    """Slope of the regression of log count on log rank, from its textbook formula."""
    x = [math.log(k) for k in range(low, high + 1)]
    y = [math.log(counts[k - 1]) for k in range(low, high + 1)]
    mx, my = math.fsum(x) / len(x), math.fsum(y) / len(y)
    return math.fsum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / math.fsum((a - mx) ** 2 for a in x)


def law_likelihood(weights: Sequence[float], counts: Sequence[int]) -> float:
    """Sum over samples of log p_k, with p_k = weight_k / sum of weights."""
    norm = math.log(math.fsum(weights))
    return math.fsum(n * (math.log(w) - norm) for n, w in zip(counts, weights, strict=True))


def largest(likelihood: Callable[[list[float]], float], start: list[float]) -> float:
    """The largest likelihood over two parameters, by coordinate steps of ever smaller size."""
    best, value, size = list(start), likelihood(start), 0.5
    while size > 1e-7:
        better = False
        for i in range(len(best)):
            for j in range(len(best)):
                for a, b in ((size, 0.0), (-size, 0.0), (size, size), (size, -size), (-size, size), (-size, -size)):
                    trial = list(best)
                    trial[i] += a
                    trial[j] += b if i != j else 0.0
                    tried = likelihood(trial)
                    if tried > value:
                        best, value, better = trial, tried, True
        size = size if better else size / 2
    return value


def mandelbrot(counts: Sequence[int], low: int, high: int) -> float:
    """Largest log likelihood of p_k ~ (k + q)^-s over ranks low..high, q > -low."""
    ranks = range(low, high + 1)
    return largest(
        lambda at: law_likelihood([(k - low + math.exp(at[1])) ** -at[0] for k in ranks], counts[low - 1 : high]),
        [1.0, math.log(low)],
    )


def log_normal(counts: Sequence[int], low: int, high: int) -> float:
    """Largest log likelihood of p_k ~ k^-s exp(-b log^2 k) over ranks low..high."""
    logs = [math.log(k / low) for k in range(low, high + 1)]
    return largest(
        lambda at: law_likelihood([math.exp(-at[0] * x - at[1] * x * x) for x in logs], counts[low - 1 : high]),
        [1.0, 0.0],
    )
