"""Counting a corpus: words and integer labels, against the minimum in Python and polars."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.timing import Options, Row, interleave
from heavytail.audit.counting import count


def rows(options: Options) -> Iterator[Row]:
    """Return the time of counting words relative to splitting them, and of labels relative to polars' counting."""
    scale = 1 if options.tiny else 1000
    with tempfile.TemporaryDirectory() as folder:
        text, labels = Path(folder) / "words.txt", Path(folder) / "labels.parquet"
        generator = np.random.default_rng(0)
        words = generator.zipf(1.5, 2_000 * scale) % 50_000
        stems = ["wört"] + 15 * ["word"]  # few texts are ASCII alone
        lines = [f"{stems[k % 16]}{k}, it's" for k in words.tolist()]
        text.write_text("\n".join(lines), encoding="utf-8")
        pl.DataFrame({"y": generator.zipf(1.5, 2_000 * scale) % 50_000}).write_parquet(labels)

        def split() -> None:
            counts: Counter[str] = Counter()
            with text.open(encoding="utf-8") as stream:
                for line in stream:
                    counts.update(line.split())

        contenders = {
            "Counter, str.split": split,
            "audit, words": lambda: count(text),
            "polars, value_counts": lambda: pl.read_parquet(labels)["y"].value_counts(),
            "audit, labels": lambda: count(labels, column="y"),
        }
        timing = interleave(contenders, rounds=options.rounds or 5, warmup=1)
        megabytes = round(text.stat().st_size / 1e6)
    yield timing.row(f"{megabytes} MB of text", "audit, words", "Counter, str.split")
    yield timing.row(f"{len(words)} labels in parquet", "audit, labels", "polars, value_counts")
