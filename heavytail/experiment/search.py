"""The paper's step-size search (appendix A.3): a grid, its candidates, and the selected one."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from heavytail.errors import SpecError, unknown
from heavytail.experiment.spec import RunSpec
from heavytail.experiment.store import UNSTABLE, Outcome

_LARGEST = 100  # largest magnitude of a step size's decimal exponent
_MOST_REFINED = 20
Lookup = Callable[[RunSpec], "Outcome | None"]


@dataclass(frozen=True)
class Grid:
    """Step sizes as powers of ten.

    Attributes:
        exponents: decimal exponents of the sparse grid, ascending.
        refine: number of half powers on each side of the best sparse exponent; None trains `exponents` on all seeds.
    """

    exponents: tuple[float, ...]
    refine: int | None = None

    @property
    def fixed(self) -> bool:
        """Whether this is a single step size, which needs no search."""
        return self.refine is None and len(self.exponents) == 1

    @classmethod
    def parse(cls, value: object, where: str) -> Grid:
        """Read a grid.

        Args:
            value: `0.01`, `[0.01, 0.1]`, `{exponents = [-1, -0.5]}` or `{decades = [-6, 1]}`, the tables with an
                optional `refine`.
            where: the setting, for messages.

        Raises:
            SpecError: the value has another form, or its step sizes are not distinct or not in 1e-100 to 1e100.
        """
        refine = None
        if isinstance(value, Mapping):
            for key in value:
                if key not in ("decades", "exponents", "refine"):
                    raise unknown(f"setting of {where}:", key, ("decades", "exponents", "refine"))
            refine = value.get("refine")
            if refine is not None and not (type(refine) is int and 0 <= refine <= _MOST_REFINED):
                raise SpecError(f"{where}.refine: expected an integer from 0 to {_MOST_REFINED}, got {refine!r}")
        exponents = _exponents(value)
        if exponents is None:
            raise SpecError(f"{where}: expected a step size, a list of them, or decades = [low, high], got {value!r}")
        if len(set(exponents)) < len(exponents) or not all(abs(e) <= _LARGEST for e in exponents):
            raise SpecError(f"{where}: expected different step sizes from 1e-{_LARGEST} to 1e{_LARGEST}, got {value!r}")
        return cls(tuple(sorted(exponents)), refine)


def _exponents(value: object) -> list[float] | None:
    """Return the decimal exponents of a grid; None if it has another form."""
    match value:
        case {"decades": [low, high], **rest} if "exponents" not in rest and type(low) is type(high) is int:
            if low <= high:
                # Cut off a too long range: the caller checks the bounds of the exponents.
                return [_float(e) for e in range(low, min(high, low + 2 * _LARGEST + 1) + 1)]
        case {"exponents": [_, *_] as exponents, **rest} if "decades" not in rest and all(map(_is_number, exponents)):
            return list(map(_float, exponents))
        case int() | float() | [_, *_]:
            lrs: list[Any] = value if isinstance(value, list) else [value]
            if all(_is_number(lr) and lr > 0 for lr in lrs):
                return [math.log10(lr) for lr in lrs]
    return None


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


@dataclass(frozen=True)
class Candidate:
    """One step size, with the outcomes of its seeds."""

    exponent: float
    specs: tuple[RunSpec, ...]
    outcomes: tuple[Outcome, ...]

    @property
    def lr(self) -> float:
        """The step size."""
        return self.specs[0].lr

    @property
    def loss(self) -> float:
        """Maximum over seeds of the final training loss; infinite if any seed diverged or was ended early."""
        finals = [o.final_loss for o in self.outcomes]
        return max(finals) if all(map(math.isfinite, finals)) else math.inf

    @property
    def peak(self) -> float:
        """Maximum over seeds of the largest recorded loss relative to the initial one."""
        peaks = [o.peak_ratio for o in self.outcomes]
        return max(peaks) if all(map(math.isfinite, peaks)) else math.inf

    @property
    def ended(self) -> tuple[RunSpec, ...]:
        """The runs that were ended early and whose final loss matters; none if another seed diverged."""
        if any(o.status == "diverged" for o in self.outcomes):
            return ()
        return tuple(spec for spec, outcome in zip(self.specs, self.outcomes, strict=True) if outcome.ended)

    @property
    def least(self) -> float:
        """Lower bound of `loss` by the seeds that were not ended early."""
        return max((o.final_loss for o in self.outcomes if not o.ended), default=-math.inf)

    @property
    def stable(self) -> bool:
        """Whether no seed's loss ever exceeded 1.05 times its initial value."""
        return self.peak <= UNSTABLE


@dataclass(frozen=True)
class Best:
    """The selected step size of one optimizer, and why each other candidate was rejected.

    Attributes:
        label: label of the optimizer.
        chosen: the selected candidate; None if none was stable.
        candidates: all evaluated step sizes, ascending.
        reasons: why each was selected or rejected, in the order of `candidates`.
        warning: set if the choice is the smallest or largest candidate, else None.
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
    """Select a step size by the paper's rule, and record why each other candidate was rejected."""
    ordered = sorted(candidates, key=lambda c: c.exponent)
    smallest = _smallest(ordered)
    chosen = None if smallest is None else _stable_up_to(smallest, ordered)
    reasons = tuple(_reason(c, smallest, chosen) for c in ordered)
    return Best(label, chosen, tuple(ordered), reasons)


def _smallest(ordered: Sequence[Candidate]) -> Candidate | None:
    """The candidate with the smallest loss, the first of equals; None if all diverged."""
    return min((c for c in ordered if math.isfinite(c.loss)), key=lambda c: c.loss, default=None)


def _stable_up_to(limit: Candidate, ordered: Sequence[Candidate]) -> Candidate | None:
    """The largest stable step size that is not larger than another one."""
    return next((c for c in reversed(ordered) if c.exponent <= limit.exponent and c.stable), None)


def undecided(candidates: Sequence[Candidate]) -> list[RunSpec]:
    """Return the runs that were ended early and whose final loss could change the selection.

    A run is ended early only once it is unstable, so that it cannot be selected itself. It matters only if its final
    loss could be the smallest of all and a stable step size lies between it and the one selected without it. If no
    run is returned, `select` returns the same for every final loss that the ended runs could have had.
    """
    ordered = sorted(candidates, key=lambda c: c.exponent)
    smallest = _smallest(ordered)
    if smallest is None:  # then no step size is stable, whatever the others' losses
        return []
    chosen = _stable_up_to(smallest, ordered)
    needed = (c for c in ordered if c.least <= smallest.loss and _stable_up_to(c, ordered) is not chosen)
    return [spec for candidate in needed for spec in candidate.ended]


def settle(candidates: Sequence[Candidate], lookup: Lookup) -> tuple[list[Candidate], list[RunSpec]]:
    """Return the candidates with what is known of them, and the runs to continue before `select` may be called.

    Rounds start from what is known where the runs may end, whichever of them are finished, so that the same runs
    are continued in whatever order, and on whichever machines, they are trained.

    Args:
        candidates: the step sizes; runs without an outcome are not allowed.
        lookup: the outcome of a finished run, None for one that is not finished.
    """
    known = [replace(c, outcomes=tuple(o.early for o in c.outcomes)) for c in candidates]
    while needed := {spec.key for spec in undecided(known)}:
        known, missing = _finish(known, needed, lookup)
        if missing:
            return known, missing
    ended = {spec.key for candidate in known for spec in candidate.ended}
    return _finish(known, ended, lookup)[0], []


def _finish(
    candidates: Sequence[Candidate], keys: Collection[str], lookup: Lookup
) -> tuple[list[Candidate], list[RunSpec]]:
    """The candidates with the ends of these runs, where they are finished, and those of these runs that are not."""
    finished, missing = [], []
    for candidate in candidates:
        outcomes = []
        for spec, outcome in zip(candidate.specs, candidate.outcomes, strict=True):
            whole = lookup(spec) if spec.key in keys else None
            outcomes.append(whole or outcome)
            if spec.key in keys and whole is None:
                missing.append(spec)
        finished.append(replace(candidate, outcomes=tuple(outcomes)))
    return finished, missing


def fixed(label: str, candidate: Candidate) -> Best:
    """Return a step size that is given, not searched for: selected unless a seed diverged."""
    for spec, outcome in zip(candidate.specs, candidate.outcomes, strict=True):
        if not math.isfinite(outcome.final_loss):
            reason = f"diverged at step {outcome.last_step} (seed {spec.seed})"
            return Best(label, None, (candidate,), (reason,))
    return Best(label, candidate, (candidate,), ("selected: the only step size",))


def _reason(candidate: Candidate, smallest: Candidate | None, chosen: Candidate | None) -> str:
    """Return why a candidate was selected or rejected.

    Args:
        candidate: the candidate.
        smallest: the one with the smallest loss, None if all diverged.
        chosen: the selected one, `smallest` or the next smaller stable step size; None if there is none.
    """
    for spec, outcome in zip(candidate.specs, candidate.outcomes, strict=True):
        if outcome.ended:
            peak = f"{outcome.peak_ratio:.3g} x its initial loss"
            return f"unstable: ended at step {outcome.last_step}, at {peak} (seed {spec.seed})"
        if not math.isfinite(outcome.final_loss):
            return f"diverged at step {outcome.last_step} (seed {spec.seed})"
    assert smallest is not None, "some candidate has a finite loss"
    if candidate is chosen:
        worst = "smallest worst-seed final loss" if candidate is smallest else "next smaller stable step size"
        return f"selected: {worst}"
    unstable = f"unstable: peaked at {candidate.peak:.3g} x its initial loss"
    if candidate.exponent <= smallest.exponent and not candidate.stable:
        return unstable
    if not candidate.stable:
        return f"{unstable}, and {_compared(candidate.loss, smallest.loss)}"
    if chosen is not None and candidate.loss > chosen.loss:
        return _compared(candidate.loss, chosen.loss)
    if candidate.exponent > smallest.exponent:
        return _compared(candidate.loss, smallest.loss)
    return "smaller than the selected step size, the largest stable one"


def _compared(loss: float, smallest: float) -> str:
    """Return the comparison of a final loss with the smallest one, with as many digits as distinguish them."""
    if loss == smallest:
        return f"final loss {loss:.4g} is equal, at a larger step size"
    digits = next(d for d in range(4, 18) if f"{loss:.{d}g}" != f"{smallest:.{d}g}")
    return f"final loss {loss:.{digits}g} > {smallest:.{digits}g}"


def warn_at_edge(best: Best, grid: Grid) -> Best:
    judged = {*grid.exponents, *(candidate.exponent for candidate in best.candidates)}
    low, high = min(judged), max(judged)
    if best.chosen is None or low < best.chosen.exponent < high:
        return best
    side = "smallest" if best.chosen.exponent <= low else "largest"
    warning = f"{best.label}: selected lr {best.chosen.lr:.3g} is at the {side} edge of the grid; widen it"
    return Best(best.label, best.chosen, best.candidates, best.reasons, warning)
