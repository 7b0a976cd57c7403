"""The monitor and the audit, one row and one class at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence


def class_sums(
    logits: Sequence[Sequence[float]], targets: Sequence[int], num_classes: int, ignore_index: int | None
) -> dict[str, list[float]]:
    """Sums per class of finite losses, hits, probabilities and rows, and the number of losses that are not finite."""
    names = ("count", "loss", "correct", "p_correct", "nonfinite")
    sums = {name: [0.0] * num_classes for name in names}
    for row, y in zip(logits, targets, strict=True):
        if y == ignore_index:
            continue
        top = max(row)
        loss = (
            math.log(sum(math.exp(z - top) for z in row)) + top - row[y] if all(map(math.isfinite, row)) else math.nan
        )
        if not math.isfinite(loss):
            sums["nonfinite"][y] += 1
            continue
        sums["count"][y] += 1
        sums["loss"][y] += loss
        sums["correct"][y] += row[y] >= top
        sums["p_correct"][y] += math.exp(-loss)
    return sums


def zipf_likelihood(counts: Sequence[int], exponent: float) -> float:
    """Log-likelihood of an exponent, for counts in descending order."""
    total = sum(k**-exponent for k in range(1, len(counts) + 1))
    return sum(n * (-exponent * math.log(k) - math.log(total)) for k, n in enumerate(counts, 1))


def flow_group_losses(pi: Sequence[float], group: Sequence[int], times: Sequence[float]) -> list[list[float]]:
    """Mean loss of each group after gradient flow from zero, by small Euler steps on every class's two logits."""
    c, t, dt = len(pi), 0.0, 1e-3
    a, b = [0.0] * c, [0.0] * c
    found = []
    for end in times:
        while t < end:
            for k in range(c):
                wrong = (c - 1) * math.exp(b[k] - a[k])
                push = pi[k] * wrong / (1 + wrong)
                a[k] += dt * push
                b[k] -= dt * push / (c - 1)
            t += dt
        losses = [math.log1p((c - 1) * math.exp(b[k] - a[k])) for k in range(c)]
        row = []
        for g in range(max(group) + 1):
            members = [k for k in range(c) if group[k] == g]
            row.append(sum(pi[k] * losses[k] for k in members) / sum(pi[k] for k in members))
        found.append(row)
    return found
