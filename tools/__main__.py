"""python -m tools OUT...: update docs/results and the README's totals from reproductions.

Exit status: 0 done, 1 a generated text is out of date (--check), 2 wrong input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from heavytail.errors import HeavyTailError, SpecError
from tools import optimizers, scoreboard
from tools.publish import publish


def main(argv: Sequence[str] | None = None) -> int:
    """Publish the folders given; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools", description="Update docs/results and the README totals.")
    parser.add_argument(
        "folders", nargs="*", type=Path, metavar="OUT", help="results of `reproduce` or `compare` (default: none)"
    )
    parser.add_argument("--to", type=Path, default=Path("docs/results"), help="published results (docs/results)")
    parser.add_argument("--readme", type=Path, default=Path("README.md"), help="file with the totals (README.md)")
    parser.add_argument("--keep", action="store_true", help="replace only the figures that OUT has, not their scale")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a generated text is out of date")
    args = parser.parse_args(argv)
    try:
        return _check(args) if args.check else _publish(args)
    except HeavyTailError as error:
        print(f"tools: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _check(args: argparse.Namespace) -> int:
    if args.folders:
        raise SpecError(f"--check writes nothing: expected no folder, got {args.folders[0]}")
    stale = scoreboard.stale(args.readme, args.to)
    for file in stale:
        print(f"{file}: does not agree with {args.to}")
    if not stale:
        print(f"{args.readme} agrees with {args.to}")
    return 1 if stale else 0


def _publish(args: argparse.Namespace) -> int:
    scoreboard.pages(args.readme, args.to)  # refuse a README without a place for the totals before writing anything
    compared = [folder for folder in args.folders if optimizers.is_comparison(folder)]
    for folder in publish([folder for folder in args.folders if folder not in compared], args.to, keep=args.keep):
        print(folder)
    for folder in compared:
        print(*optimizers.publish(folder, args.to), sep="\n")
    for file in scoreboard.update(args.readme, args.to):
        print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
