"""The paper's step-size search, naively: loops over a table of outcomes, from the text of its section 5 alone.

A table maps (exponent, seed) to (final loss, peak ratio); a diverged run is (inf, inf). Exponents are powers of ten.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Table = Mapping[tuple[float, int], tuple[float, float]]


def select(table: Table, exponents: Sequence[float], seeds: Sequence[int]) -> float | None:
    """Smallest worst-seed final loss (the smaller step size of equals), then down until stable; None if never."""
    selected = None
    smallest = math.inf
    for exponent in sorted(exponents):
        worst = -math.inf
        for seed in seeds:
            final, _ = table[exponent, seed]
            worst = math.inf if not math.isfinite(final) else max(worst, final)
        if worst < smallest:
            selected, smallest = exponent, worst
    if selected is None:
        return None
    for exponent in sorted(exponents, reverse=True):
        if exponent > selected:
            continue
        stable = True
        for seed in seeds:
            _, peak = table[exponent, seed]
            if not peak <= 1.05:
                stable = False
        if stable:
            return exponent
    return None


def search(
    table: Table, sparse: Sequence[float], refine: int, seeds: Sequence[int]
) -> tuple[float | None, set[tuple[float, int]]]:
    """The sparse grid on the first seed, half powers around its best on all; and the set of runs that took.

    Where all of the dense grid is unstable it grows downwards by half powers, to one power below the sparse grid.
    """
    runs = {(exponent, seeds[0]) for exponent in sparse}
    centre = select(table, sparse, seeds[:1])
    if centre is None:
        return None, runs
    dense = []
    for k in range(-refine, refine + 1):
        dense.append(centre + 0.5 * k)
    while True:
        runs |= {(exponent, seed) for exponent in dense for seed in seeds}
        found = select(table, dense, seeds)
        if found is not None or min(dense) <= min(sparse) - 1:
            return found, runs
        dense.append(min(dense) - 0.5)
