"""Compare the results of two reproductions, A and B: verdicts and numbers that changed, figures that only one has.

Prints the most important changes and writes one page with all of them, the pictures of both side by side. A and B are
--out folders of `heavytail reproduce`, or folders under docs/results. A monitored training is shown by
`heavytail monitor`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from heavytail.report.difference import Change, Difference

EXAMPLE = "heavytail report docs/results/small docs/results/quick"
DURATION = ""
SHOWN = 20  # changes in the terminal; those of verdicts are all shown


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the two folders and where to write."""
    parser.add_argument("a", type=Path, metavar="A", help="results of `heavytail reproduce`")
    parser.add_argument("b", type=Path, metavar="B", help="the results to compare with them")
    parser.add_argument(
        "--out", type=Path, default=Path("comparison.html"), metavar="FILE", help="the page (default: comparison.html)"
    )
    parser.add_argument("--strict", action="store_true", help="exit with 1 if B does not reproduce a claim that A does")
    parser.add_argument("--json", action="store_true", help="print all differences as JSON")


def run(args: argparse.Namespace) -> int:
    """Write the page, print the differences."""
    from heavytail.files import expanded, plain
    from heavytail.report.difference import Difference, Side, write_difference

    page = expanded(args.out)
    difference = Difference(Side.read(expanded(args.a)), Side.read(expanded(args.b)))
    write_difference(difference, page)
    if args.json:
        print(json.dumps(plain({**difference.to_dict(), "page": str(page)}), indent=1))
    else:
        _print(difference)
        print(f"page: {page}")
    return 1 if args.strict and difference.lost else 0


def _print(difference: Difference) -> None:
    from heavytail.cli._table import print_table
    from heavytail.report.difference import KINDS, MOVED

    print_table(("", "A", "B"), difference.facts())
    print()
    changes = difference.changes
    verdicts = sum(change.kind != MOVED for change in changes)
    shown = changes[: max(SHOWN, verdicts)]
    if shown:
        rows = [*map(_cells, shown)]
        of_kind = dict(zip(KINDS, ("red", "green", "yellow", ""), strict=True))
        colours = {row[2]: of_kind[change.kind] for row, change in zip(rows, shown, strict=True)}
        print_table(
            ("figure", "claim", "verdict", "measured", "threshold", "distance"), rows, colours=colours, numeric=(5,)
        )
    shared = len(difference.a.claims.keys() & difference.b.claims.keys())
    print(f"{verdicts} verdicts and {len(changes) - verdicts} numbers alone differ, of {shared} claims in both")
    if len(shown) < len(changes):
        print(f"the page has {len(changes) - len(shown)} smaller changes of numbers")
    for letter, side in (("A", difference.a), ("B", difference.b)):
        if figures := difference.figures_only(side):
            print(f"drawn in {letter} only: {', '.join(figures)}")
        if claims := [f"{row['figure']} {row['claim']}" for row in difference.claims_only(side)]:
            listed = ", ".join(claims) if len(claims) <= SHOWN else f"{len(claims)}, in the page"
            print(f"claims of {letter} only: {listed}")


def _cells(change: Change) -> list[str]:
    """A line of the table; what is the same in A and B is printed once."""
    from heavytail.report.difference import limit
    from heavytail.report.page import four_digits

    pairs = [
        [side["verdict"] for side in (change.a, change.b)],
        [four_digits(side["measured"]) for side in (change.a, change.b)],
        [limit(side) for side in (change.a, change.b)],
    ]
    distance = "" if change.distance is None else f"{change.distance:+.2g}"
    cells = [" -> ".join(dict.fromkeys(pair)) for pair in pairs]
    return [change.b["figure"], change.b["claim"], *cells, distance]
