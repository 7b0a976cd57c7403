"""The files of a reproduction: pictures, the numbers behind them, the claims, and one HTML page of it all.

    OUT/figures/figNN.{png,pdf,json}        the picture, and every number in it with the step-size searches behind it
    OUT/figures/figNN-search.png            those searches, drawn
    OUT/claims.json                         every claim with its measured number, threshold and verdict
    OUT/timing.json                         when each `reproduce` into OUT began, how long it took, what it trained
    OUT/report.html                         all of it in one file, nothing loaded from elsewhere

Every file is written atomically, is strict JSON where it is JSON, and the page is made from the other files alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from heavytail.files import Row, read_json, strict_json, write_atomic
from heavytail.plotting.panels import draw, search_picture
from heavytail.plotting.style import applied
from heavytail.results.claims import Claim
from heavytail.results.figure import Figure
from heavytail.results.results import MissingRuns, Results

VERDICTS = ("reproduced", "not reproduced", "not run")


def write_figure(figure: Figure, results: Results, out: Path, *, missing: str | None = None) -> list[Claim]:
    """Draw a figure under OUT/figures, and return its claims; without its runs there is no picture, and a reason.

    Args:
        figure: what to make.
        results: finished runs.
        out: folder of the reproduction.
        missing: why runs could not be finished (no data, out of memory), if that is known; what can be made without
            them is.
    """
    folder = out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    claims = figure.claims(results, missing)
    record: dict[str, Any] = {
        "figure": figure.id,
        "title": figure.title,
        "paper": figure.paper,
        "scale": results.scale,
        "caption": figure.caption(results),
        "missing": None,
        "panels": [],
        "search": [],
        "environments": [],
    }
    pictures: dict[str, bytes] = {}
    try:
        picture = draw(figure, results)
        pictures = {f"{figure.id}.{kind}": picture.render(kind) for kind in ("png", "pdf")}
        if figure.sweeps:
            with applied():
                pictures[f"{figure.id}-search.png"] = search_picture(results, figure.sweeps).render("png")
        record |= {
            "panels": picture.plotted,
            "search": figure.search(results),
            "environments": figure.environments(results),
        }
    except MissingRuns as error:
        record["missing"] = missing or str(error)
    for name in (f"{figure.id}.png", f"{figure.id}.pdf", f"{figure.id}-search.png"):
        if name in pictures:
            write_atomic(folder / name, pictures[name])
        else:
            (folder / name).unlink(missing_ok=True)  # of an earlier run: it would stand beside other numbers
    write_atomic(folder / f"{figure.id}.json", strict_json(record))
    return claims


def write_claims(out: Path, claims: Iterable[Claim]) -> list[Row]:
    """Write OUT/claims.json and return its rows; claims of figures that are not among these stay as they were."""
    out.mkdir(parents=True, exist_ok=True)
    new = [claim.to_dict() for claim in claims]
    made = {row["figure"] for row in new}
    rows: list[Row] = [row for row in read_json(out / "claims.json", []) if row["figure"] not in made]
    rows = sorted([*rows, *new], key=lambda row: row["figure"])
    write_atomic(out / "claims.json", strict_json(rows))
    return rows


def add_timing(out: Path, row: Row) -> None:
    """Add one `reproduce` to OUT/timing.json; the first of several trains, and the others reuse what it trained."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "timing.json", strict_json([*read_json(out / "timing.json", []), row]))
