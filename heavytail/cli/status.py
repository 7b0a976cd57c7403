"""List the stored runs with their status and step."""

from __future__ import annotations

import argparse

from heavytail.cli._command import run_store, store_arguments
from heavytail.errors import DamagedError, HeavyTailError, SpecError, printable

EXAMPLE = "heavytail status"
DURATION = ""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the store's folder."""
    store_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print one line per stored run."""
    from heavytail.experiment.spec import RunSpec

    store = run_store(args)
    keys = store.keys()
    for key in keys:
        try:
            table, record = store.read(key)
            spec = RunSpec.from_dict(table)
        except HeavyTailError as error:  # of this run only
            damaged = "damaged" if isinstance(error, DamagedError | SpecError) else "unreadable"
            print(f"{key}  {damaged:12} {printable(str(error))}")
            continue
        status = store.current(key, record)
        reason = f": {record['error']}" if status == "failed" else ""
        line = f"{key}  {status:12} step {record['step']:>6} of {spec.steps:<6}  {spec.describe()}{reason}"
        print(printable(line))
    print(f"{len(keys)} runs under {store.root}")
    return 0
