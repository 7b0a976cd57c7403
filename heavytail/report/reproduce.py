"""Reproduce figures: train the missing runs, draw each figure once its runs are finished, check its claims.

This is the only module that uses both figures and training; neither imports the other. OPENING and the figures that
need no training are drawn first, the others in the order in which they can be finished soonest. After each figure
claims.json is rewritten, and report.html every few seconds, so that an interruption leaves all complete figures.
Figures whose runs, code and files have not changed are not drawn again (see `drawn`).
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from heavytail.experiment.spec import RunSpec
from heavytail.experiment.store import Outcome, RunStore
from heavytail.experiment.sweep import Sweep
from heavytail.report import drawing, drawn
from heavytail.report.files import add_timing, write_claims
from heavytail.report.page import write_report
from heavytail.report.plan import Plan, published
from heavytail.results.claims import Claim, summary
from heavytail.results.figure import Figure
from heavytail.results.results import Results
from heavytail.train.forecast import Forecast, Progress
from heavytail.train.options import Options
from heavytail.train.runner import Failure, Interrupted, remember, run_all

SECONDS = 10  # between two versions of the page, and two reloads of it, while runs are trained
HEADLINE = "fig04"  # the main result, from runs that ten other figures share
OPENING = ("fig06", HEADLINE)  # drawn before all others: a picture after seconds, and the main result


def reproduce(
    figures: list[Figure],
    store: RunStore,
    out: Path,
    *,
    scale: str,
    options: Options,
    display: Progress,
    on_page: Callable[[Path], object] = lambda page: None,
) -> list[Claim]:
    """Write figures under `out`, each as soon as its runs are finished, and return all their claims.

    A figure whose data are not available, or one of whose runs failed, is not drawn; its claims are "not run", with the
    reason. If drawing a figure raises an error, the others are still drawn and the error is raised at the end. Under
    torchrun, rank 0 draws the figures; other ranks return no claims.

    Args:
        figures: the figures.
        store: the stored runs.
        out: folder of the results, made if needed.
        scale: scale of the presets.
        options: how to train.
        display: receives progress events.
        on_page: called with the path of report.html once it exists; the page reloads itself until all is done.

    Raises:
        Interrupted: after Ctrl-C or SIGTERM; the message has the number of complete figures and the ids of the others.
    """
    results = Results(store, scale, data_dir=options.data_dir)
    started, clock = datetime.now(UTC), time.perf_counter()
    work = _Work(figures, results, store, out, options, _Tally(display), on_page)
    finished = False
    try:
        work.draw_complete()
        failures = run_all(work.propose, store, options, work.display)
        if not options.first:
            return []
        work.draw_rest(failures)
        finished = True
        return sorted(work.claims, key=lambda claim: claim.figure)
    except (Interrupted, KeyboardInterrupt) as error:  # the latter while figures are drawn, and after a second Ctrl-C
        if work.shown:
            work.write_page(reload=None)  # an open page stops reloading itself
        missing = ", ".join(figure.id for figure in work.pending)
        done = f"{len(figures) - len(work.pending)} of {len(figures)} figures are in {out}"
        stopped = str(error) or "stopped; the same command continues"
        raise Interrupted(f"{stopped}; {done}" + (f"; missing: {missing}" if missing else "")) from None
    finally:
        if options.first:
            trained = work.display.trained
            row = {
                "started": f"{started:%Y-%m-%dT%H:%M:%SZ}",
                "seconds": round(time.perf_counter() - clock, 1),
                "scale": scale,
                "figures": [figure.id for figure in figures],
                "trained": len(trained),
                "reused": len(work.used() - trained),
                "finished": finished,
                "figure_seconds": work.figure_seconds(),
            }
            add_timing(out, row)


@dataclass
class _Work:
    """The figures still to be drawn, and the claims of those that are.

    Attributes:
        figures: all of them.
        pending: those not drawn yet, in the order in which their runs are trained.
        claims: of the figures drawn so far.
        drawing: seconds that drawing each of them took.
    """

    figures: list[Figure]
    results: Results
    store: RunStore
    out: Path
    options: Options
    display: _Tally
    on_page: Callable[[Path], object]
    pending: list[Figure] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    drawing: dict[str, float] = field(default_factory=dict)
    error: Exception | None = None
    planned: bool = False
    shown: bool = False
    page_clock: float = -math.inf  # when the page was last written

    def __post_init__(self) -> None:
        self.pending = sorted(self.figures, key=lambda f: (f.id not in OPENING, bool(f.sweeps), f.id))
        self.sweeps = {ref: self.results.sweep(ref) for figure in self.figures for ref in figure.sweeps}
        self.lookup = remember(self.store)

    def propose(self) -> list[RunSpec]:
        """Draw a complete figure; return the runs that the others need next: figure by figure, longest runs first.

        Beside the headline's runs only short ones are useful: a long one would delay the next stage of its search. One
        figure at a time is drawn, because runs that have ended are not replaced meanwhile; for the same reason the plan
        of many figures, which takes three seconds, is made while the headline's first runs are trained.
        """
        if not self.planned and (self.display.ended or len(self.pending) == 1 or not self._headline_pending()):
            self.planned = True
            self.plan()
        self.draw_complete(at_most=1)
        seconds = self.display.seconds
        runs = [sorted(self._missing(figure), key=seconds, reverse=True) for figure in self.pending]
        if self._headline_pending():
            return [*runs[0], *sorted(itertools.chain(*runs[1:]), key=seconds)]
        return [*itertools.chain(*runs)]

    def draw_complete(self, at_most: int | None = None) -> None:
        """Draw pending figures whose runs are finished; while the headline's are not, those of OPENING only."""
        ready = [figure.id for figure in self.pending if not self._missing(figure)]
        if self._headline_pending() and HEADLINE not in ready:
            ready = [name for name in ready if name in OPENING]
        self._finish(dict.fromkeys(ready[:at_most]))

    def _headline_pending(self) -> bool:
        """Whether the headline is not drawn yet, and can be: none of the runs has failed so far."""
        return not self.display.failed and any(figure.id == HEADLINE for figure in self.pending)

    def draw_rest(self, failures: list[Failure]) -> None:
        """Write the figures whose runs failed, with the reason; raise the error of a figure, if there was one."""
        missing: dict[str, str | None] = {}
        for figure in self.pending:
            reasons = [_failed(self.sweeps[ref], failures) for ref in figure.sweeps]
            reasons.append(self.options.elsewhere)
            missing[figure.id] = next(filter(None, reasons), None) if self._missing(figure) else None
        self._finish(missing)
        if self.error is not None:
            raise self.error

    def plan(self) -> None:
        """Sort the pending figures: the headline first, then by the estimated time of the runs that it adds."""
        if not self.pending:
            return
        plan = Plan(self.results, self.lookup, self.options.data_dir)
        remaining = {figure.id: figure for figure in self.pending}
        planned: dict[str, float] = {}
        self.pending = []
        while remaining:
            runs = {name: plan.runs(figure) for name, figure in remaining.items()}
            costs = {name: sum(mine[key] for key in mine.keys() - planned) for name, mine in runs.items()}
            name = min(costs, key=lambda name: (name != HEADLINE, costs[name], name))
            self.pending.append(remaining.pop(name))
            planned |= runs[name]
        times = published(self.results.scale).get("seconds", {})
        drawing = {figure.id: times.get(figure.id, {"drawing": 0.0})["drawing"] for figure in self.pending}
        self.display.drawing = drawing
        workers = self.options.num_workers()
        self.display.plan(planned, plan.estimates.by_problem, workers, besides=sum(drawing.values()))
        names = ", ".join(figure.id for figure in self.pending)
        self.display.announce(f"{len(self.pending)} to draw after training, in this order: {names}")

    def used(self, *figures: Figure) -> set[str]:
        """Return the keys of the finished runs that figures read; of all by default."""
        keys = set()

        def lookup(spec: RunSpec) -> Outcome | None:
            outcome = self.lookup(spec)
            if outcome is not None:
                keys.add(spec.key)
            return outcome

        for ref in {ref for figure in figures or self.figures for ref in figure.sweeps}:
            self.sweeps[ref].propose(lookup)
        return keys

    def figure_seconds(self) -> dict[str, dict[str, float]]:
        """Return per drawn figure the seconds of drawing it, and of all runs that it reads, as their records have them.

        Runs that several figures share count for each of them.
        """
        used = {figure.id: self.used(figure) for figure in self.figures if figure.id in self.drawing}
        records = self.store.records(sorted(set().union(*used.values())))
        timed = {key: record.get("timing", {}).get("seconds", 0.0) for key, _, record in records}
        return {
            name: {"runs": round(sum(timed.get(key, 0.0) for key in keys), 1), "drawing": round(self.drawing[name], 1)}
            for name, keys in used.items()
        }

    def _missing(self, figure: Figure) -> list[RunSpec]:
        return [spec for ref in figure.sweeps for spec in self.sweeps[ref].propose(self.lookup)]

    def _finish(self, missing: dict[str, str | None]) -> None:
        """Draw pending figures that are not drawn yet, given the reason for each one's missing runs, by id."""
        if not self.options.first:
            self.pending = [figure for figure in self.pending if figure.id not in missing]
            return
        tasks, known = [], []
        for figure in [figure for figure in self.pending if figure.id in missing]:
            complete = missing[figure.id] is None and not self._missing(figure)
            key = drawn.key_of(figure, self.results, self._signatures(figure)) if complete else ""
            claims = drawn.recall(self.out, figure, key, self.results.scale)
            if claims is None:
                tasks.append(drawing.Task(figure, missing[figure.id], key))
            else:
                known.append((figure, claims))
        if known:
            write_claims(self.out, [claim for _, claims in known for claim in claims])
        for figure, claims in known:
            self._done(figure, claims, 0.0)
        for task, made in drawing.draw(tasks, self.results, self.out, self.options.num_local()):
            if isinstance(made, Exception):  # a bug in a figure must not hide the others; raised after they are drawn
                made.add_note(f"while drawing {task.figure.id}")
                self.error = self.error or made
                self.pending.remove(task.figure)
                continue
            write_claims(self.out, made.claims)
            self._done(task.figure, *made)
            if time.monotonic() - self.page_clock > SECONDS:
                self.write_page()
        if missing:
            self.write_page()

    def _done(self, figure: Figure, claims: list[Claim], seconds: float) -> None:
        """Announce a figure whose files are written, with its claims."""
        self.pending.remove(figure)
        self.drawing[figure.id] = seconds
        self.claims += claims
        self.display.drawn(figure.id, len(self.figures) - len(self.pending), len(self.figures), claims)

    def write_page(self, reload: int | None = SECONDS) -> None:
        """Write report.html; while figures are pending, an open one reloads after `reload` seconds."""
        pending = sorted(figure.id for figure in self.pending)
        page = write_report(self.out, pending=pending, reload=reload if pending else None)
        self.page_clock = time.monotonic()
        if not self.shown:
            self.shown = True
            self.on_page(page)

    def _signatures(self, figure: Figure) -> dict[str, str]:
        """A checksum of every run that a figure reads, by key."""
        return {key: self.store.signature(key) for key in self.used(figure)}


class _Tally(Forecast):
    """Forwards progress events, shows the remaining time, and collects the keys of trained runs."""

    def __init__(self, display: Progress) -> None:
        super().__init__(display)
        self.trained: set[str] = set()
        self.ended = self.failed = False  # any run
        self.drawing: Mapping[str, float] = {}  # estimated seconds of drawing each figure

    def drawn(self, figure: str, done: int, figures: int, claims: Sequence[Claim]) -> None:
        """Announce a figure."""
        remark = f"{done} of {figures} figures"
        verdict = f", claims reproduced: {summary(claim.to_dict() for claim in claims)}" if claims else ""
        self.announce(f"{figure} done{verdict} ({remark})")
        self.add(self.drawing.get(figure, 0.0), remark)

    def finished(self, spec: RunSpec, status: str) -> None:
        """Count the run as done, and as trained unless it failed."""
        if status in ("done", "diverged", "ended"):
            self.trained.add(spec.key)
        self.ended = True
        self.failed |= status == "failed"
        super().finished(spec, status)


def _failed(sweep: Sweep, failures: list[Failure]) -> str | None:
    """The reason for an unfinished sweep; None if no failure concerns it."""
    ours = RunSpec.from_dict({**sweep.run, "optim": sweep.arms[0].optim, "lr": 1.0})
    shared = ("model", "loss", "batch_size", "precision")
    for failure in failures:
        theirs = failure.spec
        alike = failure.no_data or all(getattr(theirs, name) == getattr(ours, name) for name in shared)
        if theirs.data == ours.data and alike:
            return failure.reason
    return None
