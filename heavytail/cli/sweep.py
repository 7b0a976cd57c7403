"""Search step sizes for a preset or your own TOML file.

Prints every step size tried for each optimizer, its loss, and why it was selected or rejected.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from heavytail.cli._command import (
    device_arguments,
    executor_arguments,
    load_sweep,
    options,
    quiet_argument,
    run_store,
    store_arguments,
    sweep_arguments,
    writable,
)
from heavytail.cli._costs import costs_arguments, print_costs, searches
from heavytail.errors import HeavyTailError

if TYPE_CHECKING:
    from heavytail.experiment.search import Best
    from heavytail.experiment.spec import RunSpec
    from heavytail.experiment.store import RunStore

EXAMPLE = "heavytail sweep simple-imbalanced"
DURATION = "2 runs, 35 seconds on one CPU core"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sweep, its scale, and where to write."""
    sweep_arguments(parser)
    parser.add_argument("--out", type=Path, help="folder for the tables of each optimizer's selected run")
    store_arguments(parser)
    device_arguments(parser)
    executor_arguments(parser)
    costs_arguments(parser)
    quiet_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Search, and print the searches that are complete even if another one failed."""
    from heavytail.train.distributed import joined
    from heavytail.train.progress import display
    from heavytail.train.runner import remember, search

    sweep = load_sweep(args)
    assert sweep is not None, "the file is required"
    store = run_store(args)
    if args.dry_run:
        return print_costs(searches(args.file, sweep, remember(store), {}), args)
    out = None if args.out is None else writable(args.out)
    with joined(options(args)) as chosen, display(quiet=args.quiet or not chosen.first) as progress:
        failures = search([sweep], store, chosen, progress)
    if not chosen.first:
        return 0
    lookup, chosen_rates = remember(store), list[str]()
    for arm in sweep.arms:
        best = sweep.best(arm.label, lookup)
        if best is None:
            continue
        _print(arm.label, best)
        chosen_rates.append(f"{arm.label} {best.chosen.lr:.4g}" if best.chosen else f"{arm.label} none stable")
        if out is not None:
            _write_tables(sweep.unprobed().verdict(best), store, out / arm.label)
    if chosen_rates:
        print(f"step sizes: {', '.join(chosen_rates)}")
    if failures:
        raise HeavyTailError(failures[0].reason)
    if chosen.elsewhere and sweep.propose(lookup):
        print(f"{chosen.elsewhere}; once they are stored here, repeat this command", file=sys.stderr)
    return 0


def _print(label: str, best: Best) -> None:
    print(label)
    for lr, loss, reason in best.table():
        print(f"  lr {lr:<10.4g} loss {loss:<10.4g} {reason}")
    if best.warning:
        print(f"warning: {best.warning}", file=sys.stderr)


def _write_tables(specs: Sequence[RunSpec], store: RunStore, out: Path) -> None:
    from heavytail.report.tables import write_tables

    for spec in specs:
        history = store.load(spec)
        if history is None:  # it has failed, or is left to another shard
            continue
        write_tables(history, writable(out / f"seed{spec.seed}"))
