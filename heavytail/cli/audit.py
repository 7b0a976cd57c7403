"""Measure class imbalance in a corpus, and estimate how much slower gradient descent is on each frequency group."""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

from heavytail.cli._command import writable

EXAMPLE = "heavytail audit README.md --groups 5"
DURATION = ""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the corpus, how to read it, and where to write."""
    parser.add_argument(
        "path",
        type=Path,
        metavar="PATH",
        help="text, .jsonl, .json, .csv, .tsv, each also compressed; .parquet, .arrow, .npy, .npz; or a folder",
    )
    parser.add_argument(
        "--tokenizer", default="words", help="words (default), bpe, unigram, or a tokenizer's JSON file"
    )
    parser.add_argument("--vocab", type=int, metavar="N", help="keep N types, with <unk> (default: all; learned: 4000)")
    parser.add_argument(
        "--column", metavar="NAME", help="column of a table, or messages.content inside (default: text)"
    )
    parser.add_argument("--labels", action="store_true", help="each cell of the column is one class, not a text")
    parser.add_argument("--dtype", metavar="TYPE", help="the files are raw token ids of this type, e.g. uint16")
    parser.add_argument("--groups", type=int, default=10, metavar="G", help="frequency groups (default: 10)")
    parser.add_argument("--out", type=Path, help="folder of audit.json and audit.png")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the audit, and write it with its picture to --out."""
    from heavytail.audit.audit import audit
    from heavytail.files import strict_json, write_atomic
    from heavytail.system import num_cores

    out = writable(args.out) if args.out is not None else None
    result = audit(
        args.path,
        tokenizer=args.tokenizer,
        vocab=args.vocab,
        column=args.column,
        labels=args.labels,
        dtype=args.dtype,
        num_groups=args.groups,
        jobs=num_cores(),
    )
    if isinstance(sys.stdout, io.TextIOWrapper):  # class names may have characters that the terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    numbers = strict_json(result.to_dict())
    print(numbers.decode() if args.json else result, end="" if args.json else "\n")
    if out is not None:
        from heavytail.audit.picture import draw_audit

        write_atomic(out / "audit.json", numbers)
        write_atomic(out / "audit.png", draw_audit(result).render("png"))
        if not args.json:
            print(f"\n{out / 'audit.json'}\n{out / 'audit.png'}")
    return 0
