"""Reproduce figures of the paper and check their claims.

Trains the runs that are not stored yet, then writes OUT/figures, OUT/claims.json, OUT/timing.json and OUT/report.html.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heavytail.cli._command import (
    browse,
    data_dir,
    device_arguments,
    executor_arguments,
    options,
    quiet_argument,
    run_store,
    scale_argument,
    store_arguments,
    writable,
)
from heavytail.cli._complete import completes
from heavytail.cli._costs import costs_arguments, print_costs, searches

if TYPE_CHECKING:
    from heavytail.experiment.waves import Waves
    from heavytail.results.claims import Claim
    from heavytail.results.figure import Figure

EXAMPLE = "heavytail reproduce fig04"
DURATION = "12 runs, 2 minutes on one CPU core"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the figures, their scale, and where to write."""
    names = parser.add_argument(
        "figures", nargs="*", metavar="figNN", help="figures (default: all; see: heavytail list figures)"
    )
    completes(names, "figures")
    scale_argument(parser)
    parser.add_argument("--out", type=Path, help="folder of the results (default: results/SCALE)")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a checked claim is not reproduced")
    parser.add_argument("--open", action="store_true", help="open the report in a browser as soon as it exists")
    costs_arguments(parser)
    store_arguments(parser)
    device_arguments(parser)
    executor_arguments(parser)
    quiet_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Train missing runs, draw figures, check claims, write the report."""
    from heavytail.report.reproduce import reproduce
    from heavytail.results.figure import all_figures, figure
    from heavytail.train.distributed import joined
    from heavytail.train.progress import display

    figures = [figure(name) for name in args.figures] or all_figures()
    if args.dry_run:
        return print_costs(_searches(figures, args), args)
    out = writable(args.out or Path("results") / args.scale)
    settings: dict[str, Any] = {"on_page": browse} if args.open else {}
    with joined(options(args)) as chosen, display(quiet=args.quiet or not chosen.first) as progress:
        claims = reproduce(
            figures, run_store(args), out, scale=args.scale, options=chosen, display=progress, **settings
        )
    if not chosen.first:
        return 0
    _print_claims(claims)
    print(f"report: {out / 'report.html'}")
    return 1 if args.strict and any(c.verdict == "not reproduced" for c in claims) else 0


def _print_claims(claims: Sequence[Claim]) -> None:
    from heavytail.cli._table import print_table
    from heavytail.results.claims import summary

    columns = ("figure", "claim", "kind", "measured", "threshold", "margin", "verdict")
    rows = []
    for claim in claims:
        measured = "" if claim.measured is None else f"{claim.measured:.4g}"
        margin = "" if claim.margin is None else f"{claim.margin:+.2f}"
        threshold = f"{claim.comparison} {claim.threshold}"
        rows.append((claim.figure, claim.claim, claim.kind, measured, threshold, margin, claim.verdict))
    print_table(columns, rows, numeric=(3, 5))
    print(f"claims reproduced: {summary(claim.to_dict() for claim in claims) or 'none to check'}")


def _searches(figures: Sequence[Figure], args: argparse.Namespace) -> Iterator[tuple[str, str, Waves]]:
    """The missing runs of the figures' searches; those with probes first, as they serve the others, too."""
    from heavytail.results.results import Results
    from heavytail.train.runner import remember

    store = run_store(args)
    results, lookup, guesses = Results(store, args.scale, data_dir=data_dir(args)), remember(store), dict[str, float]()
    refs = dict.fromkeys(ref for figure in figures for ref in figure.sweeps)
    for ref in sorted(refs, key=lambda ref: not ref.probed):
        name = " ".join(filter(None, [ref.preset, ref.variant]))
        yield from searches(name, results.sweep(ref), lookup, guesses)
