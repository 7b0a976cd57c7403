"""List, verify or download the public data sets."""

from __future__ import annotations

import argparse
import os
import sys

from heavytail.cli._command import data_dir, store_arguments
from heavytail.cli._complete import completes

EXAMPLE = "heavytail data list"
DURATION = ""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the action and the data sets."""
    parser.add_argument("action", choices=("list", "verify", "fetch"))
    names = parser.add_argument("names", nargs="*", metavar="NAME", help="data sets (default: all)")
    completes(names, "public")
    store_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print the state of every file; `verify` fails unless all are present, `fetch` unless all could be fetched."""
    from heavytail.data import fetch
    from heavytail.errors import DataError

    folder = data_dir(args)
    incomplete, failed = 0, 0
    for name in args.names or fetch.DATASETS:
        states = fetch.status(name, folder)
        dataset = fetch.DATASETS[name]
        print(f"{name}: {dataset.note}; {dataset.size / 1e6:.1f} MB", flush=True)
        if args.action == "fetch" and (args.names or dataset.published or "HEAVYTAIL_MIRROR" in os.environ):
            try:
                fetch.fetch(name, folder)
            except DataError as error:  # still fetch the other data sets
                print(f"heavytail: {error}", file=sys.stderr)
                failed += 1
            states = fetch.status(name, folder)
        incomplete += any(status.state != "present" for status in states)
        for status in states:
            print(f"  {status.state:12} {status.path}")
    if failed:
        return 2
    return 1 if args.action == "verify" and incomplete else 0
