"""From figures to claims: find the runs they need, train what is missing, draw, measure, report.

The one place where figures and training meet; neither knows the other.
"""

from __future__ import annotations

from pathlib import Path

from heavytail.figures import Claim, Figure, Results
from heavytail.report import write_claims, write_figure, write_report
from heavytail.spec import RunSpec
from heavytail.store import RunStore
from heavytail.sweep import Sweep
from heavytail.train.runner import Display, Failure, Options, search


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

    A figure whose data cannot be had, or one of whose runs failed, is not drawn; its claims are "not run", with the
    reason. Of several processes that train together the first one makes the figures; the others return no claims.

    Args:
        figures: what to make.
        store: where runs are.
        out: folder of the results, made if needed.
        scale: of the presets.
        options: how to train.
        display: is told what happens.
    """
    results = Results(store, scale, data_dir=options.data_dir)
    sweeps = {need: results.sweep(need) for figure in figures for need in figure.needs}
    failures = search(list(sweeps.values()), store, options, display)
    if not options.first:
        return []
    claims: list[Claim] = []
    for figure in figures:
        reason = next((why for need in figure.needs if (why := _failed(sweeps[need], failures))), None)
        claims += write_figure(figure, results, out, missing=reason)
    write_claims(out, claims)
    write_report(out)
    return claims


def _failed(sweep: Sweep, failures: list[Failure]) -> str | None:
    """Why a sweep could not be finished, if it could not."""
    ours = RunSpec.from_dict({**sweep.run, "optim": sweep.entries[0].optim, "lr": 1.0})
    shared = ("model", "loss", "batch_size", "precision")
    for failure in failures:
        theirs = failure.spec
        alike = failure.no_data or all(getattr(theirs, name) == getattr(ours, name) for name in shared)
        if theirs.data == ours.data and alike:
            return failure.reason
    return None
