"""List the stored runs: status, step, age, seconds of training, host.

With a sweep, lists its runs alone, those that are still missing too.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from heavytail.cli._command import load_sweep, run_store, store_arguments, sweep_arguments
from heavytail.errors import printable

if TYPE_CHECKING:
    from heavytail.experiment.listing import Row
    from heavytail.experiment.store import RunStore
    from heavytail.experiment.sweep import Sweep

EXAMPLE = "heavytail status"
DURATION = ""
SECONDS = 2.0  # between two looks of --watch
IDLE_SECONDS = 30.0  # a command draws figures and evaluates between two runs
FAILED = ("failed", "damaged", "unreadable")
AT_REST = ("done", "diverged", "ended", "missing", "queued")
REMEDY = {
    "failed": "its command tries it again",
    "damaged": "its command trains it again",
    "unreadable": "nothing is lost if it becomes readable",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sweep, which rows to print, how often, and the store's folder."""
    sweep_arguments(parser, required=False)
    parser.add_argument("--failed", action="store_true", help="only runs that failed or are damaged, with the reason")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print JSON")
    how.add_argument("--watch", action="store_true", help="print again every 2 seconds until no run is in progress")
    store_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print one line per run, once or until the end."""
    from heavytail.experiment.listing import Row, rows
    from heavytail.train import executors

    store, sweep = run_store(args), load_sweep(args)
    if sweep is None:

        def look() -> tuple[list[Row], bool]:
            found, waiting = rows(store), executors.queued(store.root)
            unknown = waiting - {row.key for row in found}  # not stored yet
            found = [*_marked(found, waiting), *(Row(key, "queued") for key in sorted(unknown))]
            latest = max((row.committed or 0.0 for row in found), default=0.0)
            busy = any(row.status in ("running", "queued") for row in found)
            return found, busy or time.time() - latest < IDLE_SECONDS
    else:
        look = _of_sweep(sweep, store)
    if args.watch:
        return _watch(store, look, failed=args.failed)
    found, _ = look()
    shown = [row for row in found if row.status in FAILED] if args.failed else found
    if args.json:
        from heavytail.files import strict_json

        table = {"root": str(store.root), "runs": [row.to_dict() for row in shown]}
        print(strict_json(table).decode(), end="")
        return 0
    for line in _lines(shown, failed=args.failed):
        print(line)
    print(_summary(found, store))
    return 0


def _of_sweep(sweep: Sweep, store: RunStore) -> Callable[[], tuple[list[Row], bool]]:
    """Return a function that returns the rows of a sweep's runs, and whether any is missing."""
    from heavytail.experiment.listing import Row, rows
    from heavytail.experiment.spec import RunSpec
    from heavytail.experiment.store import Outcome
    from heavytail.train import executors
    from heavytail.train.runner import remember

    remembered = remember(store)

    def look() -> tuple[list[Row], bool]:
        asked: dict[str, RunSpec] = {}

        def lookup(spec: RunSpec) -> Outcome | None:
            asked[spec.key] = spec
            return remembered(spec)

        missing = {spec.key for spec in sweep.propose(lookup)}
        stored = {row.key: row for row in rows(store)}
        found = []
        for key, spec in asked.items():
            row = stored.get(key, Row(key, "missing", spec.describe(), steps=spec.steps))
            # A run that is finished, but shorter or without the sweep's probes, is to be continued.
            short = key in missing and row.status in ("done", "diverged")
            found.append(Row(key, "missing", row.label, row.step, spec.steps) if short else row)
        return _marked(found, executors.queued(store.root)), bool(missing)

    return look


def _marked(found: Sequence[Row], waiting: set[str]) -> list[Row]:
    """The rows, with the status "queued" for unfinished runs that wait in a queue."""
    idle = ("missing", "interrupted")
    return [replace(row, status="queued") if row.key in waiting and row.status in idle else row for row in found]


def _watch(store: RunStore, look: Callable[[], tuple[list[Row], bool]], *, failed: bool) -> int:
    """Print the unfinished runs and the totals again and again; elsewhere than on a terminal, new totals only."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console()
    shown = ""
    try:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                found, busy = look()
                total = _summary(found, store)
                if console.is_terminal:
                    unfinished = [row for row in found if row.status not in AT_REST]
                    lines = _lines([r for r in unfinished if r.status in FAILED or not failed], failed=failed)
                    fit = lines[: max(1, console.height - 3)]
                    more = [f"and {len(lines) - len(fit)} more"] if len(fit) < len(lines) else []
                    live.update(Text("\n".join([*fit, *more, total]), no_wrap=True, overflow="ellipsis"), refresh=True)
                elif total != shown:
                    print(total, flush=True)
                shown = total
                if not busy:
                    return 0
                time.sleep(SECONDS)
    except KeyboardInterrupt:
        return 0


def _lines(found: Sequence[Row], *, failed: bool) -> list[str]:
    """Return one line per run, below a header; one sentence per run that failed."""
    now = time.time()
    if failed:
        return [printable(_sentence(row, now)) for row in found]
    if not found:
        return []
    header = f"{'key':20}  {'status':11} {'step':>16}  {'age':>6} {'training':>9}  {'host':12} run"
    return [header, *(printable(_line(row, now)) for row in found)]


def _line(row: Row, now: float) -> str:
    step = f"{row.step} of {row.steps}" if row.steps else ""
    seconds = "" if row.seconds is None else f"{row.seconds:.1f} s"
    text = ": ".join(filter(None, [row.label, row.reason]))
    return f"{row.key:20}  {row.status:11} {step:>16}  {_age(row, now):>6} {seconds:>9}  {row.host or '':12} {text}"


def _sentence(row: Row, now: float) -> str:
    where = f" on {row.host}" if row.host else ""
    when = f", {_age(row, now)} ago" if row.committed is not None else ""
    progress = f" at step {row.step} of {row.steps}" if row.steps else ""
    run = f"{row.key}  {row.label}" if row.label else row.key
    return f"{run}: {row.status}{progress}{where}{when}: {row.reason}; {REMEDY[row.status]}"


def _age(row: Row, now: float) -> str:
    """The time since the last commit; 0 if the clocks of two machines differ."""
    if row.committed is None:
        return ""
    age = max(0.0, now - row.committed)
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if age >= 2 * size:
            return f"{age / size:.0f} {unit}"
    return f"{age:.0f} s"


def _summary(found: Sequence[Row], store: RunStore) -> str:
    counts = Counter(row.status for row in found)
    total = ", ".join(f"{number} {status}" for status, number in counts.most_common())
    return printable(f"{len(found)} runs under {store.root}" + (f": {total}" if total else ""))
