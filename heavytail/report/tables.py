"""A run's history as tables: long-form parquet files that any data-frame library reads.

history.parquet  step, split, class, loss, count, correct: one row per recorded step, split and class with samples
groups.parquet   step, split, group, loss, count, correct: the same per frequency group, 1 = most frequent

Losses are means in nats.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import polars as pl

from heavytail.experiment.store import Array, History
from heavytail.files import write_result


def class_table(history: History) -> pl.DataFrame:
    """Return the losses per class in long form."""
    return _long(history, "class", np.arange(len(history.arrays["group"])), first=0)


def group_table(history: History) -> pl.DataFrame:
    """Return the losses per frequency group in long form."""
    return _long(history, "group", history.arrays["group"], first=1)


def write_tables(history: History, out: Path) -> list[Path]:
    """Write history.parquet and groups.parquet into a folder, and return their paths."""
    tables = {"history.parquet": class_table(history), "groups.parquet": group_table(history)}
    paths = []
    for name, table in tables.items():
        content = io.BytesIO()
        table.write_parquet(content)
        write_result(out / name, content.getvalue())
        paths.append(out / name)
    return paths


def _long(history: History, label: str, index: Array, first: int) -> pl.DataFrame:
    frames = []
    for split in ("train", "test"):
        if f"{split}/step" not in history.arrays:
            continue
        steps = history.arrays[f"{split}/step"]
        loss, count = history.sums(split, "class_loss", index)
        correct = history.sums(split, "correct", index, weighted=False)[0]
        rows, columns = np.nonzero(count)
        frames.append(
            pl.DataFrame(
                {
                    "step": steps[rows],
                    "split": np.full(len(rows), split),
                    label: columns + first,
                    "loss": loss[rows, columns] / count[rows, columns],
                    "count": count[rows, columns].astype(np.int64),
                    "correct": np.rint(correct[rows, columns]).astype(np.int64),
                }
            )
        )
    return pl.concat(frames)
