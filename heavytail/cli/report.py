"""Deprecated: use `heavytail monitor FOLDER`. To be removed in the release after 0.1."""

from __future__ import annotations

import argparse
import sys

from heavytail.cli import monitor
from heavytail.cli.monitor import DURATION, arguments

EXAMPLE = monitor.EXAMPLE


def run(args: argparse.Namespace) -> int:
    """Run `heavytail monitor`."""
    print("heavytail: `report` is deprecated; use: heavytail monitor FOLDER", file=sys.stderr)
    return monitor.run(args)


__all__ = ["DURATION", "EXAMPLE", "arguments", "run"]
