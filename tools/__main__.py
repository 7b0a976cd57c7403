"""python -m tools OUT...: update docs/results and the README's table from reproductions.

Exit status: 0 done, 1 the table is out of date (--check), 2 wrong input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from heavytail.errors import HeavyTailError, SpecError
from tools import scoreboard
from tools.publish import publish


def main(argv: Sequence[str] | None = None) -> int:
    """Publish the folders given; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools", description="Update docs/results and the README table.")
    parser.add_argument("folders", nargs="*", type=Path, metavar="OUT", help="results of `reproduce` (default: none)")
    parser.add_argument("--to", type=Path, default=Path("docs/results"), help="published results (docs/results)")
    parser.add_argument("--readme", type=Path, default=Path("README.md"), help="file with the table (README.md)")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the table is out of date")
    args = parser.parse_args(argv)
    try:
        return _check(args) if args.check else _publish(args)
    except HeavyTailError as error:
        print(f"tools: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _check(args: argparse.Namespace) -> int:
    if args.folders:
        raise SpecError(f"--check writes nothing: expected no folder, got {args.folders[0]}")
    same: bool = scoreboard.updated(args.readme, args.to) == args.readme.read_text(encoding="utf-8")
    print(f"{args.readme}: {'agrees' if same else 'does not agree'} with {args.to}")
    return 0 if same else 1


def _publish(args: argparse.Namespace) -> int:
    scoreboard.updated(args.readme, args.to)  # refuse a README without a place for the table before writing anything
    for folder in publish(args.folders, args.to):
        print(folder)
    print(f"{args.readme}: {'updated' if scoreboard.update(args.readme, args.to) else 'is up to date'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
