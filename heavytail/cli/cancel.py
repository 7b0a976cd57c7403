"""Cancel the jobs that a store has in the queue of a cluster.

Runs in progress commit their step. The command that submitted the jobs continues them when it is repeated.
"""

from __future__ import annotations

import argparse

from heavytail.cli._command import load_sweep, run_store, store_arguments, sweep_arguments

EXAMPLE = "heavytail cancel"
DURATION = ""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sweep and the store's folder."""
    sweep_arguments(parser, required=False)
    store_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Cancel, and print the number of jobs."""
    from heavytail.train import executors
    from heavytail.train.runner import remember

    store, sweep = run_store(args), load_sweep(args)
    keys = None if sweep is None else {spec.key for spec in sweep.propose(remember(store))}
    print(f"{executors.cancel(store.root, keys)} jobs cancelled under {store.root}")
    return 0
