"""Compare optimizers on heavy-tailed problems: does it help the tail?

Searches the step size of each optimizer beside those of gradient descent and Adam, trains all of them on fresh seeds,
and prints which helps the rarest classes. The rule is in docs/compare.md. An interrupted comparison is continued by the
same command, and finished runs are shared between comparisons.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heavytail.cli._command import (
    assignment,
    data_dir,
    device_arguments,
    executor_arguments,
    on_argument,
    optimizer,
    options,
    quiet_argument,
    run_store,
    scale_argument,
    store_arguments,
    writable,
)
from heavytail.cli._complete import completes
from heavytail.cli._costs import costs_arguments, print_costs
from heavytail.errors import DataError, HeavyTailError, SpecError, reason, unknown

if TYPE_CHECKING:
    from heavytail.compare.comparison import Comparison
    from heavytail.experiment.registry import Component
    from heavytail.experiment.search import Lookup
    from heavytail.experiment.spec import RunSpec
    from heavytail.experiment.store import RunStore
    from heavytail.train.options import Options
    from heavytail.train.runner import Failure

EXAMPLE = "heavytail compare sign --problems bigram --seeds 3 --out out"
DURATION = "57 runs, 90 seconds on two CPU cores"
UNPRICED = {"seconds_per_step": None, "state_bytes": None, "machine": None}
_ROUNDS = 3  # of timing
_LOG = logging.getLogger("heavytail")
NAMES = ("linear", "memory", "bigram", "transformer", "cnn")  # PROBLEMS of heavytail.compare


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the optimizers, the problems and where to write."""
    optimizers = parser.add_argument(
        "optimizers",
        nargs="*",
        metavar="OPT",
        help="name of an optimizer (see: heavytail list optim), or its import path: torch.optim.Muon, module:Class",
    )
    completes(optimizers, "optim")
    problems = parser.add_argument(
        "--problems", nargs="+", default=list(NAMES), metavar="PROBLEM", help=f"of {', '.join(NAMES)} (default: all)"
    )
    completes(problems, NAMES)
    scale_argument(parser)
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="number of verdict seeds, >= 3 (default: 5)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of every optimizer that has it, betas=[0.9,0.95]; of a part of --on, hidden.momentum=0.9",
    )
    on_argument(parser)
    parser.add_argument("--out", type=Path, default=Path("compare"), help="folder of the results (default: compare)")
    store_arguments(parser)
    device_arguments(parser)
    executor_arguments(parser)
    costs_arguments(parser)
    quiet_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Search, train, print and write; a failing optimizer does not hide the others."""
    from heavytail.compare.comparison import NOT_JUDGED, Comparison
    from heavytail.compare.page import write
    from heavytail.train.distributed import joined
    from heavytail.train.forecast import Estimates, Forecast
    from heavytail.train.progress import display
    from heavytail.train.runner import Interrupted, remember, run_all

    comparison = Comparison.of(
        candidates(args.optimizers, args.on, args.set),
        list(dict.fromkeys(args.problems)),
        scale=args.scale,
        num_seeds=args.seeds,
        data_dir=data_dir(args),
    )
    store = run_store(args)
    lookup = remember(store)
    if args.dry_run:
        return print_costs(((t.problem, t.optimizer, t.waves(lookup)) for t in comparison.trials), args)
    out = writable(args.out)
    failures: list[Failure] = []
    interrupted = None
    with joined(options(args)) as chosen, display(quiet=args.quiet or not chosen.first) as progress:
        forecast, shown = Forecast(progress), chosen.first and not args.quiet
        if shown:
            estimates, seconds = Estimates(store, data_dir(args)), dict[str, float]()
            for trial in comparison.trials:
                seconds |= estimates.runs([chosen.shard.of(wave) for wave in trial.waves(lookup)])
            if seconds:
                forecast.plan(seconds, estimates.by_problem, chosen.num_workers())
        propose = _telling(comparison, lookup, store, forecast.announce if shown else None)
        try:
            failures = run_all(propose, store, chosen, forecast)
        except Interrupted as error:  # what is finished is shown
            interrupted = error
    if not chosen.first:
        return 0
    rows = [row | UNPRICED for row in comparison.rows(lookup, store, lambda spec: _reason(spec, failures))]
    command = "heavytail " + shlex.join(sys.argv[1:])
    paths = write(rows, out, scale=args.scale, command=command)  # before the timing, which may be interrupted
    if not interrupted:
        _measure_prices(comparison, rows, chosen, progress.announce)
        paths = write(rows, out, scale=args.scale, command=command)
    _print(rows)
    print("\n".join(map(str, paths)))
    if interrupted is not None:
        raise interrupted
    if failures:
        raise HeavyTailError(failures[0].reason)
    if chosen.elsewhere and any(row["verdict"] == NOT_JUDGED for row in rows):
        print(f"{chosen.elsewhere}; once they are stored here, repeat this command", file=sys.stderr)
    return 0


def _telling(
    comparison: Comparison, lookup: Lookup, store: RunStore, announce: Callable[[str], None] | None
) -> Callable[[], list[RunSpec]]:
    """Return a function that proposes the runs needed next, and announces each verdict once its runs are finished."""
    told = _finished(comparison.missing(lookup))

    def propose() -> list[RunSpec]:
        missing = comparison.missing(lookup)
        finished = _finished(missing) if announce else set()
        for problem, name in sorted(finished - told):
            (*_, row) = comparison.only(problem, name).rows(lookup, store, lambda spec: None)
            if announce and row["sentence"]:
                announce(_verdict(row))
        told.update(finished)
        return [spec for specs in missing.values() for spec in specs]

    return propose


def _finished(missing: Mapping[tuple[str, str], Sequence[RunSpec]]) -> set[tuple[str, str]]:
    """The trials that lack no runs, neither their own nor those of the baselines."""
    from heavytail.compare.comparison import BASELINES

    return {
        (problem, name)
        for problem, name in missing
        if not any(missing[problem, each] for each in (name, *BASELINES.values()))
    }


def _verdict(row: Mapping[str, Any]) -> str:
    """The verdict on one optimizer in words."""
    return f"{row['optimizer']} on {row['problem']}: {row['sentence']}"


def candidates(names: Sequence[str], on: Sequence[str], settings: Sequence[str]) -> dict[str, Component]:
    """Return the optimizers to compare by their names in tables.

    Args:
        names: of optimizers; with `on`, each trains the roles that `on` does not name.
        on: ROLE=OPT of every optimizer.
        settings: KEY=VALUE of every optimizer that has the setting.

    Raises:
        SpecError: there is none, or no optimizer has one of the settings.
    """
    from heavytail.experiment.preset import overlay
    from heavytail.experiment.registry import Component

    if not names and not on:
        raise SpecError("OPT: expected the name of an optimizer, got none (see: heavytail list optim)")
    each: list[str | None] = [*dict.fromkeys(names)] or [None]
    tables = {", ".join([*([name] if name else []), *on]): optimizer(name, on) for name in each}
    for setting in settings:
        path, value = assignment(setting)
        places = {name: _place(table, path) for name, table in tables.items()}
        if not any(places.values()):
            known = sorted({k for table in tables.values() for k in _settings(table["name"])})
            raise unknown("setting of the optimizers", path, known)
        for name, place in places.items():
            if place:
                key, _, inner = place.partition(".")
                tables[name] = overlay(tables[name], {key: {inner: value} if inner else value})
    return {name: Component.parse(table, "optim") for name, table in tables.items()}


def _place(table: Mapping[str, Any], path: str) -> str:
    """Where `--set PATH=VALUE` goes in the table of an optimizer, "" if the optimizer has no such setting.

    Beside --on the settings of the optimizer compared are those of its part, `rest`.
    """
    key, _, inner = path.partition(".")
    compared = table.get("rest", {}).get("name")
    if compared is not None and not inner and key in _settings(compared):
        return f"rest.{key}"
    if key == "rest" and inner and compared is not None:
        return path if inner == "lr_scale" or inner in _settings(compared) else ""
    return path if key in _settings(table["name"]) else ""


def _settings(name: str) -> list[str]:
    """The settings of an optimizer."""
    from heavytail.experiment.registry import registry

    return [field.name for field in dataclasses.fields(registry("optim").recipe(name)) if field.init]


def _reason(spec: RunSpec, failures: Sequence[Failure]) -> str | None:
    """Why a run could not be trained; runs on data that are not available are not tried one by one."""
    for failure in failures:
        if failure.spec.key == spec.key or (failure.no_data and failure.spec.data == spec.data):
            return failure.reason
    return None


def _measure_prices(
    comparison: Comparison, rows: Sequence[dict[str, Any]], chosen: Options, announce: Callable[[str], None]
) -> None:
    """Set the seconds of a step and the bytes of state at the selected step sizes; announce each problem.

    They stay null where this machine has not the data, or no GPU though a cluster has trained on some. The time is the
    smallest of three, for which the optimizers of a problem take turns (decision 7).
    """
    import torch

    from heavytail.train.engine import price
    from heavytail.train.environment import environment

    device = chosen.device_of(0)
    if device.startswith("cuda") and not torch.cuda.is_available():
        return
    about = environment(device)
    threads = about["threads"]
    machine = f"{about['processor']}, {about['device']}, {threads} thread{'s' * (threads != 1)}"
    for problem in dict.fromkeys(trial.problem for trial in comparison.trials):
        announce(f"timing the steps on {problem}")
        for _ in range(_ROUNDS):
            for trial, row in zip(comparison.trials, rows, strict=True):
                if trial.problem == problem and row["lr"] is not None:
                    spec = trial.sweep.spec(trial.arm, math.log10(row["lr"]), trial.sweep.verdict_seeds[0])
                    try:
                        seconds, state = price(spec, chosen.data_dir, device)
                    except DataError:  # runs stored by another machine, whose data are not here
                        continue
                    except Exception as error:  # a price less, not a comparison
                        _LOG.warning("%s on %s: not timed: %s", trial.optimizer, problem, reason(error))
                        continue
                    least = min(seconds, row["seconds_per_step"] or seconds)
                    row |= {"seconds_per_step": least, "state_bytes": state, "machine": machine}


def _print(rows: Sequence[dict[str, Any]]) -> None:
    from heavytail.cli._table import print_table
    from heavytail.compare.comparison import BETTER, UNSTABLE, WORSE, tests
    from heavytail.compare.page import COLUMNS, cells

    print_table(COLUMNS, cells(rows), colours={BETTER: "green", WORSE: "red", UNSTABLE: "red"})
    print()
    for row in rows:
        if row["sentence"]:
            print(_verdict(row))
    print(tests(rows))
