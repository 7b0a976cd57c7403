"""List, verify or download the public data sets."""

from __future__ import annotations

import argparse

from heavytail.cli._command import data_dir, store_arguments

EXAMPLE = "heavytail data list"
DURATION = ""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the action and the data sets."""
    parser.add_argument("action", choices=("list", "verify", "fetch"))
    parser.add_argument("names", nargs="*", metavar="NAME", help="data sets (default: all)")
    store_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print the state of every file; `verify` fails unless all are present."""
    from heavytail.data import fetch

    folder = data_dir(args)
    incomplete = 0
    for name in args.names or fetch.DATASETS:
        if args.action == "fetch":
            fetch.fetch(name, folder)
        states = fetch.status(name, folder)
        incomplete += any(status.state != "present" for status in states)
        print(f"{name}: {fetch.DATASETS[name].note}")
        for status in states:
            print(f"  {status.state:12} {status.path}")
    return 1 if args.action == "verify" and incomplete else 0
