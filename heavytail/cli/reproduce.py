"""Reproduce figures of the paper and check their claims.

Trains the runs that are not stored yet, then writes OUT/figures, OUT/claims.json, OUT/timing.json and OUT/report.html.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
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

if TYPE_CHECKING:
    from heavytail.results.claims import Claim
    from heavytail.results.figure import Figure
    from heavytail.results.results import Results, SweepRef

EXAMPLE = "heavytail reproduce fig04"
DURATION = "12 runs, 2 minutes on one CPU core"
GPUS = ("a100", "h100", "h200", "rtx4090")


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
    parser.add_argument("--dry-run", action="store_true", help="train nothing; list the runs and their cost")
    parser.add_argument(
        "--gpu", choices=GPUS, default="h100", help="GPU for which --dry-run counts hours (default: h100)"
    )
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
        return _print_costs(figures, args)
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


def _print_costs(figures: Sequence[Figure], args: argparse.Namespace) -> int:
    from heavytail.errors import DataError
    from heavytail.results.results import Results
    from heavytail.train import cost

    store = run_store(args)
    results, speed, recorded = Results(store, args.scale), cost.speed(), cost.recorded_seconds(store)
    total = idle = now = hours = 0.0
    print(
        f"{'problem':40} {'optimizer':24} {'runs':>4} {'steps':>6} {'parameters':>11} {'operations':>10} {'memory':>8} "
        f"{'hours here':>10} {'on ' + args.gpu:>10}"
    )
    for ref in _searches(figures, results):
        name = " ".join(filter(None, [ref.preset, ref.variant]))
        try:
            for row in cost.rows(results.sweep(ref), data_dir(args), recorded):
                print(
                    f"{name:40} {row.arm.label:24} {row.runs:4} {row.spec.steps:6} {row.cost.parameters:11,} "
                    f"{row.operations:10.2g} {row.cost.memory / 2**30:5.1f} GB "
                    f"{_hours(row.hours(speed.idle)):>10} {_hours(row.gpu_hours(args.gpu)):>10}"
                    + ("  (data not available)" if row.cost.nominal else "")
                    + ("  (as recorded)" if row.recorded is not None else "")
                )
                total += row.operations
                idle += row.hours(speed.idle)
                now += row.hours(speed.now)
                hours += row.gpu_hours(args.gpu)
        except DataError as error:
            print(f"{name:40} not counted: {error}")
    share = f"{cost.UTILISATION:.0%}"
    print(f"all runs, if no step size diverges early: {total:.3g} floating-point operations")
    beside = f"; {_duration(3600 * now)} beside what runs now" if now > 1.3 * idle else ""
    print(
        f"here: about {_duration(3600 * idle)} on an idle machine{beside} (recorded times where there are any, "
        f"otherwise {share} of the time in matrix products, at {speed.idle / 1e9:.0f} GFLOP/s)"
    )
    print(f"on one {args.gpu}: about {hours:.3g} hours ({share} of its peak); memory is that of one run")
    return 0


def _searches(figures: Sequence[Figure], results: Results) -> list[SweepRef]:
    """Return the searches of the figures, each once: with its probes if any figure reads them."""
    searches: dict[str, tuple[SweepRef, str]] = {}
    for ref in sorted((ref for figure in figures for ref in figure.sweeps), key=lambda ref: ref.probed):
        sweep = results.sweep(ref)
        for arm in sweep.arms:
            key = sweep.spec(arm, arm.grid.exponents[0], 0).key
            searches[key] = replace(ref, optim=()), arm.label
    labels: dict[SweepRef, list[str]] = {}
    for ref, label in searches.values():
        labels.setdefault(ref, []).append(label)
    return [replace(ref, optim=tuple(names)) for ref, names in labels.items()]


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.2g}"


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.0f} seconds"
