"""The search rule of docs/compare.md: the paper's, on a grid that grows until the best step size is not at its end."""

from __future__ import annotations

import math
from collections.abc import Sequence

from heavytail.experiment.registry import registry
from heavytail.experiment.search import Candidate, Lookup
from heavytail.experiment.spec import RunSpec
from heavytail.experiment.store import Outcome
from heavytail.experiment.sweep import Arm, Sweep

SPARSE = tuple(float(e) for e in range(-5, 2))
FARTHEST = 12.0  # the grid ends at 10^-12 and 10^12, where every loss has become 0 or did not change
REFUSED = Outcome("diverged", math.inf, math.inf, 0)
Found = tuple[Candidate | None, list[RunSpec]]


def search(sweep: Sweep, arm: Arm, lookup: Lookup) -> Found:
    """Return the selected step size and the runs that are needed next; the former is final if there are none.

    Powers of ten are tried with the first seed, then half powers around the best of them with all seeds. A step size is
    stable if the optimizer accepts it and no recorded loss exceeds 1.05 times the initial one; of the stable ones that
    with the smallest worst final loss is selected, the smaller one of two with the same loss. None is selected where
    none is stable.
    """
    lookup = _accepting(arm, lookup)
    exponents, step = [*SPARSE], 1.0
    seeds = sweep.seeds[:1]
    while True:
        judged, todo = sweep.judge(arm, exponents, seeds, lookup, may_end=True)
        if todo:
            return None, todo
        if exponents == [*SPARSE] and _same(judged):
            return None, []
        best = _best(judged)
        if best is None and (step == 1.0 or exponents[0] <= SPARSE[0]):
            return None, []
        # Where no candidate is stable with every seed, smaller ones may be.
        place = best.exponent if best is not None else exponents[0]
        if place == exponents[0] > -FARTHEST:
            exponents.insert(0, exponents[0] - step)
        elif place == exponents[-1] < FARTHEST:
            exponents.append(exponents[-1] + step)
        elif step == 1.0:
            step, seeds = 0.5, sweep.seeds
            exponents = [e for e in (place - step, place, place + step) if abs(e) <= FARTHEST]
        else:
            return best, []


def unmoved(sweep: Sweep, arm: Arm, lookup: Lookup) -> bool:
    """Whether the loss is the same at all powers of ten: the optimizer does nothing without a closure."""
    judged, todo = sweep.judge(arm, [*SPARSE], sweep.seeds[:1], _accepting(arm, lookup), may_end=True)
    return not todo and _same(judged)


def _accepting(arm: Arm, lookup: Lookup) -> Lookup:
    """A lookup in which runs at a step size that the optimizer refuses have diverged."""
    refuses = getattr(registry("optim").make(arm.optim), "refuses", None)
    return lookup if refuses is None else lambda spec: lookup(spec) or (REFUSED if refuses(spec.lr) else None)


def _same(judged: Sequence[Candidate]) -> bool:
    accepted = [c for c in judged if REFUSED not in c.outcomes]
    return all(c.stable and c.loss == accepted[0].loss for c in accepted)


def _best(candidates: Sequence[Candidate]) -> Candidate | None:
    """The first of the stable candidates with the smallest loss."""
    return min((c for c in candidates if c.stable), key=lambda c: c.loss, default=None)
