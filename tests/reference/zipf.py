"""Zipf's exponent by brute force: the likelihood written out, class by class, and searched for its largest value."""

from __future__ import annotations

import math
from collections.abc import Sequence


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
