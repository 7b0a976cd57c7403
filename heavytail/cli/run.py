"""Train one run and write its losses per class and per frequency group.

Runs are stored: repeating the command of a finished run trains nothing; that of an interrupted run continues it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from heavytail.cli._command import (
    assignment,
    data_dir,
    device_arguments,
    on_argument,
    optimizer,
    options,
    quiet_argument,
    run_store,
    store_arguments,
    writable,
)
from heavytail.cli._complete import completes
from heavytail.errors import HeavyTailError, SpecError

EXAMPLE = (
    "heavytail run --data random-heavy-tail --set data.groups=5 --model linear "
    "--optim adam --lr 0.1 --steps 100 --out out"
)
DURATION = "4 seconds on one CPU core"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the settings of a run."""
    for kind, text in (("data", "data set"), ("model", "model")):
        named = f"{text} (see: heavytail list {kind})"
        completes(parser.add_argument(f"--{kind}", required=True, metavar="NAME", help=named), kind)
    named = "optimizer (see: heavytail list optim), or the import path of one, module:Class"
    completes(parser.add_argument("--optim", metavar="NAME", help=named), "optim")
    on_argument(parser)
    parser.add_argument("--lr", type=float, required=True, help="step size")
    parser.add_argument("--steps", type=int, required=True, help="number of updates")
    parser.add_argument("--batch-size", type=int, help="samples per update (default: all, the full batch)")
    parser.add_argument(
        "--eval-every", type=int, default=1, metavar="K", help="record losses every K steps (default: 1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of data, initialization and batches (default: 0)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="another setting: data.path=x.npz, model.init=zero, optim.momentum=0.9, optim.betas=[0.9,0.95], ...",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of history.parquet and groups.parquet")
    store_arguments(parser)
    device_arguments(parser)
    quiet_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Train the run and write its tables."""
    from heavytail.experiment.registry import registry
    from heavytail.experiment.spec import RunSpec
    from heavytail.report.tables import write_tables
    from heavytail.train.distributed import joined
    from heavytail.train.engine import load_data
    from heavytail.train.progress import display
    from heavytail.train.runner import remember, run_all

    table: dict[str, Any] = {kind: {"name": getattr(args, kind)} for kind in ("data", "model")}
    table["optim"] = optimizer(args.optim, args.on)
    table |= {"lr": args.lr, "steps": args.steps, "seed": args.seed, "eval_every": args.eval_every}
    if args.batch_size is not None:
        table["batch_size"] = args.batch_size
    spec = RunSpec.from_dict(_with_settings(table, args.set))
    spec = replace(spec, data=registry("data").pin(spec.data, data_dir(args)))
    out, store = writable(args.out), run_store(args)
    lookup = remember(store)
    spec.resolved  # noqa: B018 - raise on unknown names before training
    stored = lookup(spec) is not None
    with joined(options(args, 1)) as chosen, display(quiet=args.quiet or not chosen.first) as progress:
        failures = run_all(lambda: [] if lookup(spec) else [spec], store, chosen, progress)
    if failures:
        raise failures[0].error or HeavyTailError(failures[0].reason)
    if not chosen.first:
        return 0
    if not stored:  # the data of a stored run may be gone; those of this one are still in memory
        print(f"data: {load_data(spec, chosen.data_dir)}")
    history = store.load(spec)
    assert history is not None
    paths = write_tables(history, out)
    print(f"{history.status}: loss {history.loss[0]:.4f} at step 0, {history.loss[-1]:.4f} at step {history.step[-1]}")
    print("\n".join(map(str, paths)))
    return 0


def _with_settings(table: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Lay `data.path=x` and the like over a run's table; a value is TOML, or else a string."""
    from heavytail.experiment.preset import overlay

    for setting in settings:
        path, value = assignment(setting)
        if path.count(".") > (2 if path.startswith("optim.") else 1):
            raise SpecError(f"--set: expected KEY=VALUE or COMPONENT.KEY=VALUE, got '{setting}'")
        for key in reversed(path.split(".")):
            value = {key: value}
        table = overlay(table, value)
    return table
