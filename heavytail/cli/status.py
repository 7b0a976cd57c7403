"""List the stored runs with their status and step."""

from __future__ import annotations

import argparse

from heavytail.cli._command import run_store, store_arguments

EXAMPLE = "heavytail status"
DURATION = ""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the store's folder."""
    store_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print one line per stored run."""
    from heavytail.experiment.spec import RunSpec

    store = run_store(args)
    count = 0
    for key, table, record in store.records():
        spec = RunSpec.from_dict(table)
        status = record["status"]
        if status == "running" and not store.locked(key):
            status = "interrupted"
        print(f"{key}  {status:12} step {record['step']:>6} of {spec.steps:<6}  {spec.describe()}")
        count += 1
    print(f"{count} runs under {store.root}")
    return 0
