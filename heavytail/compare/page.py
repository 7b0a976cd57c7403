"""The files of a comparison: compare.json, compare.png and compare.html."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from heavytail.compare.comparison import tests
from heavytail.compare.picture import draw
from heavytail.files import write_atomic
from heavytail.report.page import Picture, Section, Table, render

COLUMNS = (
    "problem",
    "optimizer",
    "step size",
    "loss",
    "rarest",
    "closed",
    "closed, rarest",
    "p",
    "steps to Adam",
    "ms a step",
    "state",
    "verdict",
)
Row = Mapping[str, Any]


def write(rows: Sequence[Row], out: Path, *, scale: str, command: str) -> list[Path]:
    """Write the files of a comparison and return their paths.

    Args:
        rows: of `Comparison.rows`, with `seconds_per_step` and `state_bytes`.
        out: the folder.
        scale: of the problems.
        command: that makes these files.
    """
    content = json.dumps(list(rows), indent=1, allow_nan=False) + "\n"
    picture = draw(rows, scale).render("png")
    table = Table(COLUMNS, cells(rows), numeric=range(2, len(COLUMNS) - 1))
    words = Table(
        ("problem", "optimizer", "in words"),
        [(r["problem"], r["optimizer"], r["sentence"]) for r in rows if r["sentence"]],
    )
    section = Section(
        f"Comparison at {scale} scale",
        id="comparison",
        pictures=[
            Picture(
                picture,
                "final loss by frequency group, and the share of the gap between GD and Adam that an optimizer closes",
                caption=f"{tests(rows)}. Shares of the gap beyond -0.5 and 1.5 and losses below 1e-4 nats are drawn at "
                "these values.",
            )
        ],
        tables=(table, words),
        command=command,
        links=("compare.json", "compare.png"),
    )
    page = render("heavytail: does it help the tail?", [section], note="The rule is docs/compare.md's.")
    files = {"compare.json": content.encode(), "compare.png": picture, "compare.html": page}
    for name, value in files.items():
        write_atomic(out / name, value)
    return [out / name for name in files]


def cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Return the table of a comparison, as text; a row a trial."""
    return [
        (
            row["problem"],
            row["optimizer"],
            _number(row["lr"]),
            _mean(row["loss"]),
            _mean(row["loss_rarest"]),
            _percent(row["closed_overall"]),
            _percent(row["closed_rarest"]),
            _number(row["p_value"], "{:.2g}"),
            _number(row["steps_to_adam"], "{}"),
            "–" if row["seconds_per_step"] is None else f"{1000 * row['seconds_per_step']:.3g}",
            "–" if row["state_bytes"] is None else _size(row["state_bytes"]),
            row["verdict"],
        )
        for row in rows
    ]


def _number(value: float | None, form: str = "{:.3g}") -> str:
    return "–" if value is None else form.format(value)


def _mean(values: Sequence[float] | None) -> str:
    return "–" if values is None else f"{sum(values) / len(values):.4g}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
