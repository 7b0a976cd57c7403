"""Render a monitored training as one HTML page: loss, accuracy and p(correct) by frequency group.

FOLDER is the folder that a `heavytail.Journal` wrote to, here or in a framework's callback.
"""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLE = "python examples/plain_loop.py --out runs && heavytail monitor runs/adamw"
DURATION = "a minute on one CPU core"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the journal's folder."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder of a heavytail.Journal")


def run(args: argparse.Namespace) -> int:
    """Write the page into the folder and print its path."""
    from heavytail.monitor.page import write_monitored

    print(f"page: {write_monitored(args.folder)}")
    return 0
