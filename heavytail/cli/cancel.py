"""Cancel the jobs that a store has in the queue of a cluster.

Runs in progress commit their step. The command that submitted the jobs continues them when it is repeated.
"""

from __future__ import annotations

import argparse

from heavytail.cli._command import data_dir, run_store, scale_argument, store_arguments

EXAMPLE = "heavytail cancel"
DURATION = ""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sweep and the store's folder."""
    parser.add_argument("file", nargs="?", metavar="FILE.toml", help="of this TOML file or preset only")
    scale_argument(parser)
    parser.add_argument("--variant", default="", help="variant of the preset")
    store_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Cancel, and print the number of jobs."""
    from heavytail.experiment.sweep import Sweep
    from heavytail.train import executors
    from heavytail.train.runner import remember

    store, keys = run_store(args), None
    if args.file is not None:
        sweep = Sweep.load(args.file, scale=args.scale, variant=args.variant).pinned(data_dir(args))
        keys = {spec.key for spec in sweep.propose(remember(store))}
    number = 0
    for name in executors.names():
        cancel = getattr(executors.executor(name), "cancel", None)
        number += cancel(store.root, keys) if cancel is not None else 0
    print(f"{number} jobs cancelled under {store.root}")
    return 0
