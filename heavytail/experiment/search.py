"""The search for a step size, by the paper's rule (appendix A.3): a grid, its candidates, the one selected."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from heavytail.errors import SpecError, unknown
from heavytail.experiment.spec import RunSpec
from heavytail.experiment.store import Outcome

UNSTABLE = 1.05
Lookup = Callable[[RunSpec], "Outcome | None"]


@dataclass(frozen=True)
class Grid:
    """Step sizes as powers of ten.

    Attributes:
        exponents: of the sparse grid, ascending.
        refine: half powers tried on each side of the best sparse one; None trains exactly `exponents` on all seeds.
    """

    exponents: tuple[float, ...]
    refine: int | None = None

    @classmethod
    def parse(cls, value: object, where: str) -> Grid:
        """Read `0.01`, `[0.01, 0.1]`, `{exponents = [-1, -0.5]}` or `{decades = [-6, 1], refine = 2}`."""
        if isinstance(value, Mapping):
            for key in value:
                if key not in ("decades", "exponents", "refine"):
                    raise unknown(f"setting of {where}:", key, ("decades", "exponents", "refine"))
            refine = value.get("refine")
            if refine is not None and not (isinstance(refine, int) and refine >= 0):
                raise SpecError(f"{where}.refine: expected an integer >= 0, got {refine!r}")
            match value.get("decades"), value.get("exponents"):
                case [int(low), int(high)], None if low <= high:
                    return cls(tuple(float(e) for e in range(low, high + 1)), refine)
                case None, [_, *_] as exponents if all(isinstance(e, int | float) for e in exponents):
                    return cls(tuple(sorted(map(float, exponents))), refine)
        values = [value] if isinstance(value, int | float) else value
        if isinstance(values, list) and values and all(type(v) in (int, float) and v > 0 for v in values):
            return cls(tuple(sorted(math.log10(v) for v in values)))
        raise SpecError(f"{where}: expected a step size, a list of them, or decades = [low, high], got {value!r}")


@dataclass(frozen=True)
class Candidate:
    """One step size, judged over the seeds that were run."""

    exponent: float
    specs: tuple[RunSpec, ...]
    outcomes: tuple[Outcome, ...]

    @property
    def lr(self) -> float:
        """The step size."""
        return self.specs[0].lr

    @property
    def loss(self) -> float:
        """Maximum over seeds of the final training loss; infinite if any seed diverged."""
        finals = [o.final_loss for o in self.outcomes]
        return max(finals) if all(map(math.isfinite, finals)) else math.inf

    @property
    def peak(self) -> float:
        """Maximum over seeds of the largest recorded loss relative to the initial one."""
        peaks = [o.peak_ratio for o in self.outcomes]
        return max(peaks) if all(map(math.isfinite, peaks)) else math.inf

    @property
    def stable(self) -> bool:
        """Whether no seed's loss ever exceeded 1.05 times its initial value."""
        return self.peak <= UNSTABLE


@dataclass(frozen=True)
class Best:
    """The selected step size of one optimizer, and why each other candidate lost.

    Attributes:
        label: of the optimizer.
        chosen: None if no candidate was stable.
        candidates: all that were judged, ascending.
        reasons: why each was chosen or lost, in the order of `candidates`.
        warning: set where the choice is the outermost of all that were judged, else None.
    """

    label: str
    chosen: Candidate | None
    candidates: tuple[Candidate, ...]
    reasons: tuple[str, ...]
    warning: str | None = None

    def table(self) -> Iterator[tuple[float, float, str]]:
        """Yield (lr, max over seeds of the final loss, reason)."""
        for candidate, reason in zip(self.candidates, self.reasons, strict=True):
            yield candidate.lr, candidate.loss, reason


def select(label: str, candidates: list[Candidate]) -> Best:
    """Select a step size by the paper's rule; every other candidate is told why it lost."""
    ordered = sorted(candidates, key=lambda c: c.exponent)
    ranked = sorted((c for c in ordered if math.isfinite(c.loss)), key=lambda c: c.loss)
    smallest = ranked[0] if ranked else None
    chosen = smallest
    if smallest is not None:
        fallbacks = [c for c in ordered if c.exponent <= smallest.exponent and c.stable]
        chosen = fallbacks[-1] if fallbacks else None
    reasons = tuple(_reason(c, smallest, chosen) for c in ordered)
    return Best(label, chosen, tuple(ordered), reasons)


def _reason(candidate: Candidate, smallest: Candidate | None, chosen: Candidate | None) -> str:
    for spec, outcome in zip(candidate.specs, candidate.outcomes, strict=True):
        if not math.isfinite(outcome.final_loss):
            return f"diverged at step {outcome.last_step} (seed {spec.seed})"
    unstable = f"unstable: peaked at {candidate.peak:.3g} x its initial loss"
    if candidate is chosen:
        if candidate is smallest:
            return "selected: smallest worst-seed final loss"
        return "selected: next smaller stable step size"
    if candidate is smallest or (smallest and candidate.exponent < smallest.exponent and not candidate.stable):
        return unstable
    assert smallest is not None
    if candidate.exponent > smallest.exponent and not candidate.stable:
        return f"{unstable}, and final loss {candidate.loss:.4g} > {smallest.loss:.4g}"
    return f"final loss {candidate.loss:.4g} > {(chosen or smallest).loss:.4g}"


def warn_at_edge(best: Best, grid: Grid) -> Best:
    judged = {*grid.exponents, *(candidate.exponent for candidate in best.candidates)}
    low, high = min(judged), max(judged)
    if best.chosen is None or low < best.chosen.exponent < high:
        return best
    side = "smallest" if best.chosen.exponent <= low else "largest"
    warning = f"{best.label}: selected lr {best.chosen.lr:.3g} is at the {side} edge of the grid; widen it"
    return Best(best.label, best.chosen, best.candidates, best.reasons, warning)
