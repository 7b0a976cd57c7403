"""The runs that a step-size search still needs, wave by wave, before any of them is trained.

A search is carried out with made-up outcomes: nothing diverges, and the optimum is the best step size so far, or the
middle of the grid. One whose optimum is at the edge of its grid takes a few runs more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from heavytail.experiment.search import Lookup
from heavytail.experiment.spec import RunSpec
from heavytail.experiment.store import Outcome
from heavytail.experiment.sweep import Sweep

Waves = list[list[RunSpec]]  # sparse grid, dense grid, verdict seeds
_WORSE = 1e6  # than any loss of a finished run, so that an optimum among finished runs stays one


def keys(found: Waves) -> list[str]:
    """Return the keys of all runs, in order; one that is run again with probes comes twice."""
    return [spec.key for wave in found for spec in wave]


def waves(propose: Callable[[Lookup], list[RunSpec]], lookup: Lookup, guess: float) -> Waves:
    """Return the waves of one optimizer's search.

    Args:
        propose: returns the runs that the search needs next, none when it has finished.
        lookup: the outcome of a finished run, None for one that is not finished.
        guess: the optimum where no finished run tells it.
    """
    planned: set[str] = set()
    measured: set[str] = set()  # with probes

    def outcome(spec: RunSpec) -> Outcome | None:
        finished = lookup(spec)
        if finished is not None or spec.key not in (measured if spec.probes else planned):
            return finished
        return Outcome("done", _WORSE * (1 + abs(spec.lr - guess) / (spec.lr + guess)), 1.0, spec.steps)

    found: Waves = []
    while todo := propose(outcome):
        planned |= {spec.key for spec in todo}
        measured |= {spec.key for spec in todo if spec.probes}
        found.append(todo)
    return found


def expected(sweep: Sweep, lookup: Lookup, guesses: dict[str, float]) -> dict[str, Waves]:
    """Return the waves of each optimizer's search, by label.

    Args:
        sweep: the problem.
        lookup: the outcome of a finished run, None for one that is not finished.
        guesses: the optimum assumed for each problem and optimizer, filled here, so that all searches of one agree.
    """
    found = {}
    for arm in sweep.arms:
        middle = sweep.spec(arm, arm.grid.exponents[len(arm.grid.exponents) // 2], sweep.seeds[0])
        guess = guesses.setdefault(replace(middle, lr=1.0, seed=0).key, middle.lr)
        found[arm.label] = waves(sweep.only((arm.label,)).propose, lookup, guess)
    return found
