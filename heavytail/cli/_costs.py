"""--dry-run: the runs that a command would train, wave by wave, and their cost. Nothing is trained or written."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from heavytail.cli._command import data_dir, options, run_store

if TYPE_CHECKING:
    from heavytail.experiment.search import Lookup
    from heavytail.experiment.sweep import Sweep
    from heavytail.experiment.waves import Waves

GPUS = ("a100", "h100", "h200", "rtx4090")


def costs_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --dry-run and --gpu."""
    parser.add_argument("--dry-run", action="store_true", help="train nothing; list the runs and their cost")
    parser.add_argument(
        "--gpu", choices=GPUS, default="h100", help="GPU for which --dry-run counts hours (default: h100)"
    )


def searches(problem: str, sweep: Sweep, lookup: Lookup, guesses: dict[str, float]) -> Iterator[tuple[str, str, Waves]]:
    """Yield problem, optimizer and waves of each search of a sweep, as `print_costs` takes them."""
    from heavytail.experiment.waves import expected

    for label, waves in expected(sweep, lookup, guesses).items():
        yield problem, label, waves


def print_costs(found: Iterable[tuple[str, str, Waves]], args: argparse.Namespace) -> int:
    """Print a line for each search that lacks runs, and their sums.

    Args:
        found: problem, optimizer, and waves of missing runs of each search.
        args: of the command line.
    """
    from heavytail.errors import DataError
    from heavytail.train import cost

    chosen = options(args)
    workers = chosen.num_workers()
    speed = cost.speed()
    costs = cost.Costs(data_dir(args), cost.recorded_seconds(run_store(args)))
    runs = 0
    total = idle = now = hours = 0.0
    print(
        f"{'problem':40} {'optimizer':24} {'runs':>4} {'in waves of':12} {'steps':>6} {'parameters':>11} "
        f"{'operations':>10} {'memory':>8} {'hours here':>10} {'on ' + args.gpu:>10}"
    )
    for problem, optimizer, waves in found:
        try:
            row = costs.row([chosen.shard.of(wave) for wave in waves])
        except DataError as error:
            print(f"{problem:40} {optimizer:24} not counted: {error}")
            continue
        if row is None:
            continue
        print(
            f"{problem:40} {optimizer:24} {row.runs:4} {' + '.join(map(str, row.waves)):12} {row.spec.steps:6} "
            f"{row.cost.parameters:11,} {row.operations:10.2g} {row.cost.memory / 2**30:5.1f} GB "
            f"{_hours(row.hours(speed.idle, workers)):>10} {_hours(row.gpu_hours(args.gpu)):>10}"
            + ("  (data not available)" if row.cost.nominal else "")
            + ("  (as recorded)" if row.recorded is not None else ""),
            flush=True,
        )
        runs += row.runs
        total += row.operations
        idle += row.hours(speed.idle, workers)
        now += row.hours(speed.now, workers)
        hours += row.gpu_hours(args.gpu)
    share = f"{cost.UTILISATION:.0%}"
    print(f"{runs} runs that are not stored, if no step size diverges early: {total:.3g} floating-point operations")
    beside = f"; {_duration(3600 * now)} beside what runs now" if now > 1.3 * idle else ""
    print(
        f"here: about {_duration(3600 * idle)} on an idle machine{beside} (recorded times where there are any, "
        f"otherwise {share} of the time in matrix products, at {speed.idle / 1e9:.0f} GFLOP/s)"
    )
    print(f"on one {args.gpu}: about {hours:.3g} hours ({share} of its peak); memory is that of one run")
    return 0


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.2g}"


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.0f} seconds"
