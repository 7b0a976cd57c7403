"""From figures to claims: find the runs they need, train what is missing, draw, measure, report.

The one place where figures and training meet; neither knows the other.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from heavytail.figures import Claim, Figure, Need, Results
from heavytail.report import write_claims, write_figure, write_report
from heavytail.spec import RunSpec
from heavytail.store import Outcome, RunStore
from heavytail.sweep import Sweep
from heavytail.train.runner import Display, Failure, Options, run_all


def reproduce(
    figures: list[Figure],
    store: RunStore,
    out: Path,
    *,
    scale: str,
    options: Options,
    display: Display,
) -> list[Claim]:
    """Make figures under `out`, and return their claims.

    Args:
        figures: what to make.
        store: where runs are.
        out: folder of the results, made if needed.
        scale: of the presets.
        options: how to train.
        display: is told what happens.
    """
    sweeps = [need.load(scale) for need in unique_needs(figures)]
    failures = search(sweeps, store, options, display)
    results = Results(store, scale, reasons=_reasons(sweeps, failures))
    claims = [claim for figure in figures for claim in write_figure(figure, results, out)]
    write_claims(out, claims)
    write_report(out)
    return claims


def unique_needs(figures: list[Figure]) -> list[Need]:
    """Return what the figures need, each once."""
    return list(dict.fromkeys(need for figure in figures for need in figure.needs))


def search(sweeps: list[Sweep], store: RunStore, options: Options, display: Display) -> list[Failure]:
    """Train whatever the step-size searches of these sweeps ask for; return what could not be trained."""
    lookup = remember(store)
    return run_all(lambda: [s for sweep in sweeps for s in sweep.propose(lookup)], store, options, display)


def remember(store: RunStore) -> Callable[[RunSpec], Outcome | None]:
    """Return a lookup that reads each finished run once: a finished run stays finished."""
    known: dict[tuple[str, int], Outcome] = {}

    def lookup(spec: RunSpec) -> Outcome | None:
        name = (spec.key, spec.steps)
        if name not in known:
            outcome = store.outcome(spec)
            if outcome is None:
                return None
            known[name] = outcome
        return known[name]

    return lookup


def _reasons(sweeps: list[Sweep], failures: list[Failure]) -> dict[tuple[str, str], str]:
    """Why a sweep, by preset and variant, is not finished."""
    reasons = {}
    for sweep in sweeps:
        data = sweep.spec(sweep.entries[0], 0.0, sweep.seeds[0]).data
        for failure in failures:
            if failure.spec.data == data:
                reasons[sweep.name, sweep.variant] = failure.reason
    return reasons
