"""Frequency groups and class means with exact fractions and loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction


def frequency_groups(counts: Sequence[int], num_groups: int) -> list[int]:
    """Group of each class: deal the samples out one class after another and see where each class starts."""
    n = sum(counts)
    ranked = sorted((k for k in range(len(counts)) if counts[k]), key=lambda k: (-counts[k], k))
    raw, dealt = {}, 0
    for k in ranked:
        start = Fraction(dealt, n)
        raw[k] = max(g for g in range(num_groups) if start >= Fraction(g, num_groups))
        dealt += counts[k]
    used = sorted(set(raw.values()))
    return [used.index(raw[k]) if k in raw else len(used) - 1 for k in range(len(counts))]


def class_sums(targets: Sequence[int], values: Sequence[float], num_classes: int) -> list[float]:
    """Sum of the values of each class's rows."""
    return [math.fsum(v for y, v in zip(targets, values, strict=True) if y == k) for k in range(num_classes)]
