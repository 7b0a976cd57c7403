"""Measure speed and memory against named baselines: `python -m benchmarks [GROUP ...]`.

One line for each ratio: its median over interleaved rounds, its quartiles, and its target, if any. A missed
target is printed and is not an error.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from benchmarks import audit, curvature, head, monitor, pool, quick, startup, step
from benchmarks.timing import Options, Row
from heavytail.files import write_atomic
from heavytail.train.environment import environment

GROUPS = {
    "head": head,
    "step": step,
    "curvature": curvature,
    "monitor": monitor,
    "pool": pool,
    "quick": quick,
    "start": startup,
    "audit": audit,
}


def main(arguments: list[str] | None = None) -> None:
    """Print the table and write the file."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"{', '.join(GROUPS)} (default: all)")
    parser.add_argument("--rounds", type=int, help="measured rounds of each case (default: as suits it)")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="cases with one of these words")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data-dir", type=Path, default=Path(os.environ.get("HEAVYTAIL_DATA", "data")))
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: test that every case runs")
    parser.add_argument("--json", type=Path, help="file for the numbers and the environment")
    args = parser.parse_args(arguments)
    unknown = [group for group in args.groups if group not in GROUPS]
    if unknown:
        parser.error(f"no group '{unknown[0]}'; choose from {', '.join(GROUPS)}")
    if args.rounds is not None and args.rounds < 1:
        parser.error(f"--rounds: expected at least 1, got {args.rounds}")
    torch.set_num_threads(args.threads)
    options = Options(args.rounds, args.device, args.data_dir, args.tiny, tuple(args.only))
    started, load = time.monotonic(), os.getloadavg()[0]
    print(f"{args.threads} threads, load {load:.2f} before; medians of ratios within interleaved rounds (quartiles)")
    measured: dict[str, list[dict[str, object]]] = {}
    for group in args.groups or GROUPS:
        print(f"\n{(GROUPS[group].__doc__ or '').splitlines()[0]}", flush=True)
        case = ""
        for row in GROUPS[group].rows(options):
            if args.tiny:
                row = replace(row, target=None)
            if row.case != case:
                case = row.case
                print(f"  {case}", flush=True)
            print(line(row), flush=True)
            measured.setdefault(group, []).append({**asdict(row), "verdict": row.verdict})
    print(f"\n{time.monotonic() - started:.0f} s")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        table = {"environment": {**environment(args.device), "load": load}, "tiny": args.tiny, "rows": measured}
        write_atomic(args.json, (json.dumps(table, indent=1, allow_nan=False) + "\n").encode())
        print(args.json)


def line(row: Row) -> str:
    """Return a row as text."""
    what = f"{row.name} / {row.base}" if row.base else row.name
    if row.unit == "x":
        digits = 4 if row.value < 0.05 else 2
        amount = f"{row.value:8.{digits}f}  ({row.low:.{digits}f} - {row.high:.{digits}f})"
    else:
        amount = f"{row.value:8.0f} {row.unit}"
    target = "" if row.target is None else f"target {row.target:g}: {row.verdict}"
    return f"    {what:40} {amount:28} {target}".rstrip()


if __name__ == "__main__":
    main()
