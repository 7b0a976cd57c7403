"""Render monitored trainings as one HTML page: loss, accuracy and p(correct) by frequency group.

FOLDER is that of a `heavytail.Journal`, written directly or by a callback. Several folders share a page.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from heavytail.errors import DataError, printable

EXAMPLE = "python examples/plain_loop.py --out runs && heavytail monitor runs/adamw"
DURATION = "a minute on one CPU core"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the journals' folders and --watch."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", nargs="+", help="folder of a heavytail.Journal")
    parser.add_argument("--watch", action="store_true", help="rewrite the page as the journals grow, until Ctrl-C")


def run(args: argparse.Namespace) -> int:
    """Write the page into the (first) folder and print its path; under --watch wait for readings that are missing."""
    from heavytail.files import expanded
    from heavytail.monitor.page import write_compared, write_monitored

    folders = [expanded(folder) for folder in args.folder]
    written: list[int] | None = None
    while True:
        sizes = [file.stat().st_size if file.exists() else 0 for file in (f / "monitor.jsonl" for f in folders)]
        if sizes != written:
            try:
                page = write_monitored(folders[0]) if len(folders) == 1 else write_compared(folders)
                print(f"page: {page}", flush=True)
            except DataError as error:
                if not args.watch:
                    raise
                print(f"waiting: {printable(str(error))}", file=sys.stderr, flush=True)
            written = sizes
        if not args.watch:
            return 0
        time.sleep(1.0)
