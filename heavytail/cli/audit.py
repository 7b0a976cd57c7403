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


def run(args: argparse.Namespace) -> int:
    """Print the audit, and write it with its picture to --out."""
    from heavytail.audit.audit import audit
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
    print(result)
    if out is not None:
        from heavytail.audit.picture import draw_audit
        from heavytail.files import strict_json, write_atomic

        write_atomic(out / "audit.json", strict_json(result.to_dict()))
        write_atomic(out / "audit.png", draw_audit(result).render("png"))
        print(f"\n{out / 'audit.json'}\n{out / 'audit.png'}")
    return 0
