"""Write a page on theorem 3: gradient flow beside sign flow, with sliders for classes, frequencies and step sizes.

The page needs no training, no data and no network.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from heavytail.cli._command import browse

EXAMPLE = "heavytail theory"
DURATION = ""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add where to write."""
    parser.add_argument(
        "--out", type=Path, default=Path("theory.html"), metavar="FILE", help="the page (default: theory.html)"
    )
    parser.add_argument("--open", action="store_true", help="open the page in a browser")


def run(args: argparse.Namespace) -> int:
    """Write the page, and open it."""
    from heavytail.files import expanded
    from heavytail.report.theory import write_theory

    page = expanded(args.out)
    write_theory(page)
    print(f"page: {page}")
    if args.open:
        browse(page)
    return 0
