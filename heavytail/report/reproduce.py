"""From figures to claims: find the runs they need, train what is missing, draw, measure, report.

The one place where figures and training meet; neither knows the other.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

from heavytail.experiment.spec import RunSpec
from heavytail.experiment.store import Outcome, RunStore
from heavytail.experiment.sweep import Sweep
from heavytail.report.files import add_timing, write_claims, write_figure
from heavytail.report.page import write_report
from heavytail.results.claims import Claim
from heavytail.results.figure import Figure
from heavytail.results.results import Results
from heavytail.train.options import Options
from heavytail.train.runner import Display, Failure, remember, search


def reproduce(
    figures: list[Figure],
    store: RunStore,
    out: Path,
    *,
    scale: str,
    options: Options,
    display: Display,
) -> list[Claim]:
    """Make figures under `out`, and return their claims; how long it took is written down even if it is stopped.

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
    sweeps = {ref: results.sweep(ref) for figure in figures for ref in figure.sweeps}
    started, clock, tally, finished = datetime.now(UTC), time.perf_counter(), _Tally(display), False
    try:
        failures = search(list(sweeps.values()), store, options, tally)
        if not options.first:
            return []
        claims: list[Claim] = []
        for figure in figures:
            reason = next((why for ref in figure.sweeps if (why := _failed(sweeps[ref], failures))), None)
            claims += write_figure(figure, results, out, missing=reason)
        write_claims(out, claims)
        write_report(out)
        finished = True
        return claims
    finally:
        if options.first:
            row = {
                "started": f"{started:%Y-%m-%dT%H:%M:%SZ}",
                "seconds": round(time.perf_counter() - clock, 1),
                "scale": scale,
                "figures": [figure.id for figure in figures],
                "trained": len(tally.trained),
                "reused": len(_used(list(sweeps.values()), store) - tally.trained),
                "finished": finished,
            }
            add_timing(out, row)


class _Tally:
    """Passes on what a display is told, and keeps the keys of the runs that were trained."""

    def __init__(self, display: Display) -> None:
        self._display = display
        self.trained: set[str] = set()

    def started(self, spec: RunSpec) -> None:
        self._display.started(spec)

    def progressed(self, spec: RunSpec, step: int, loss: float) -> None:
        self._display.progressed(spec, step, loss)

    def finished(self, spec: RunSpec, status: str) -> None:
        if status in ("done", "diverged"):
            self.trained.add(spec.key)
        self._display.finished(spec, status)


def _used(sweeps: list[Sweep], store: RunStore) -> set[str]:
    """The keys of the finished runs that the searches look at."""
    lookup, used = remember(store), set()

    def noted(spec: RunSpec) -> Outcome | None:
        outcome = lookup(spec)
        if outcome is not None:
            used.add(spec.key)
        return outcome

    for sweep in sweeps:
        sweep.propose(noted)
    return used


def _failed(sweep: Sweep, failures: list[Failure]) -> str | None:
    """Why a sweep could not be finished, if it could not."""
    ours = RunSpec.from_dict({**sweep.run, "optim": sweep.arms[0].optim, "lr": 1.0})
    shared = ("model", "loss", "batch_size", "precision")
    for failure in failures:
        theirs = failure.spec
        alike = failure.no_data or all(getattr(theirs, name) == getattr(ours, name) for name in shared)
        if theirs.data == ours.data and alike:
            return failure.reason
    return None
