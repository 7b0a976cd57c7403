"""Merge stores of runs, such as those of shards: `store merge SOURCE... DESTINATION`.

Every run of the sources is added to the last folder, the destination; the sources are not changed. Of two attempts at
one run the more advanced one is kept. A run whose two histories differ, or that is damaged in a source, is named; the
destination keeps what it has, and the exit code is 1. A run in progress is left for the next merge.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from pathlib import Path

from heavytail.errors import SpecError, printable

EXAMPLE = (
    "heavytail run --data random-heavy-tail --set data.groups=3 --model linear --optim gd --lr 0.1 --steps 9 "
    "--root laptop --out out && heavytail store merge laptop desktop"
)
DURATION = "4 seconds on one CPU core"
NAMED = ("conflict", "damaged", "unreadable")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the action and the folders."""
    parser.add_argument("action", choices=("merge",))
    parser.add_argument("source", nargs="+", type=Path, metavar="SOURCE", help="store to read: a folder with runs/")
    parser.add_argument("destination", type=Path, metavar="DESTINATION", help="store to add the runs to; may be new")


def run(args: argparse.Namespace) -> int:
    """Merge each source, and print what became of its runs."""
    from heavytail.experiment.merging import merge
    from heavytail.experiment.store import RunStore

    destination = RunStore(args.destination)
    sources = [RunStore(source) for source in args.source]
    for source in sources:
        if not (source.root / "runs").is_dir():
            raise SpecError(f"SOURCE: expected a store, a folder with runs/, got {source.root}")
        if destination.root.exists() and os.path.samefile(source.root, destination.root):
            raise SpecError(f"SOURCE: expected another folder than DESTINATION, got {source.root} twice")
    failed = False
    for source in sources:
        counts: Counter[str] = Counter()
        for one in merge(source, destination):
            counts[one.what] += 1
            if one.what in (*NAMED, "in progress"):
                name = " ".join(filter(None, [one.key, one.label]))
                print(printable(": ".join(filter(None, [one.what, name, one.reason]))), file=sys.stderr)
        failed |= any(counts[what] for what in NAMED)
        total = ", ".join(f"{number} {what}" for what, number in counts.most_common()) or "no runs"
        print(printable(f"{source.root} -> {destination.root}: {total}"))
    return 1 if failed else 0
