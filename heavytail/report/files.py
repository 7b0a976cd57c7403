"""The files of a reproduction: images, the numbers behind them, and the claims.

    OUT/figures/figNN.{png,pdf,json}        the figure, and every number in it with its step-size searches
    OUT/figures/figNN-search.png            plots of those searches
    OUT/claims.json                         every claim with its measured number, threshold and verdict
    OUT/timing.json                         start, duration and trained runs of each `reproduce` into OUT
    OUT/report.html                         all of the above in one file (written by `page`)
    OUT/.drawn.json                         which figures need not be drawn again (see `drawn`)

Every file is written atomically, JSON is strict, and files are checked field by field on reading.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from heavytail.errors import DamagedError, StoreError
from heavytail.files import Row, check_shape, checksum, read_json, strict_json, write_atomic
from heavytail.locks import locked
from heavytail.plotting.panels import draw, search_picture
from heavytail.plotting.style import applied
from heavytail.results.claims import Claim
from heavytail.results.figure import Figure
from heavytail.results.results import MissingRuns, Results

VERDICTS = ("reproduced", "not reproduced", "undecided", "not run")
FIGURE_ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")  # also the name of its files
LOCK = ".lock"  # held while a file is read, changed and replaced: several `reproduce` may write into one OUT
_REMEDY = "; delete it and run `heavytail reproduce` again"

_CLAIM = {
    **dict.fromkeys(("figure", "claim", "verdict", "scale", "comparison", "statement", "reason"), str),
    "measured": (float, None),
    "threshold": (float, [float]),
    "per_seed?": [(float, None)],
    "margin?": (float, None),
    **dict.fromkeys(("kind?", "quote?"), str),
}
_SEARCH = {
    **dict.fromkeys(("preset", "variant", "optimizer"), str),
    "selected": (float, None),
    "candidates": [{"lr": float, "loss": (float, None), "reason": str}],
    "warning": (str, None),
}
_NUMBERS = [(float, None)]
_SERIES = {
    "kind": str,
    "label": str,
    **dict.fromkeys(("x?", "low?", "high?", "edges?"), _NUMBERS),
    "y?": (_NUMBERS, float, None),
    "header?": [str],
    "rows?": [[str]],
    "colour?": str,
    "dash?": bool,
}
_PANEL = {
    **dict.fromkeys(("title", "xlabel", "ylabel"), str),
    "series": [_SERIES],
    "notes": [str],
    "xscale?": str,
    "yscale?": str,
    "ylim?": [float],
}
_FIGURE = {
    **dict.fromkeys(("figure", "title", "paper", "scale", "caption"), str),
    "missing": (str, None),
    "panels?": [_PANEL],
    "search": [_SEARCH],
    "environments": [dict],
}


def figure_files(name: str) -> list[str]:
    """Return the names of a figure's files under OUT/figures: pictures, and the numbers in them."""
    return [f"{name}.png", f"{name}.pdf", f"{name}-search.png", f"{name}.json"]


def write_figure(figure: Figure, results: Results, out: Path, *, missing: str | None = None) -> list[Claim]:
    """Write the files of a figure under OUT/figures, and return its claims.

    A figure whose runs are missing has no image; its JSON file holds the reason.

    Args:
        figure: the figure.
        results: finished runs.
        out: folder of the reproduction.
        missing: the reason for unfinished runs (no data, out of memory), if known.
    """
    assert FIGURE_ID.fullmatch(figure.id), f"{figure.id!r} is not a file name"
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
    *images, numbers = figure_files(figure.id)
    for name in images:
        if name in pictures:
            write_atomic(folder / name, pictures[name])
        else:
            (folder / name).unlink(missing_ok=True)  # an image of an earlier run would not match the new numbers
    write_atomic(folder / numbers, strict_json(record))
    return claims


def write_claims(out: Path, claims: Iterable[Claim]) -> list[Row]:
    """Replace the rows of these claims' figures in OUT/claims.json, and return all rows."""
    new = [claim.to_dict() for claim in claims]
    replaced = {row["figure"] for row in new}
    with locked(out / LOCK):
        rows = [row for row in read_claims(out) if row["figure"] not in replaced]
        rows = sorted([*rows, *new], key=lambda row: row["figure"])
        write_atomic(out / "claims.json", strict_json(rows))
    return rows


def add_timing(out: Path, row: Row) -> None:
    """Append a row for one `reproduce` to OUT/timing.json; later ones reuse stored runs."""
    with locked(out / LOCK):
        rows = _read(out / "timing.json", [dict]) or []
        write_atomic(out / "timing.json", strict_json([*rows, row]))


def check_folder(folder: Path) -> None:
    """Raise StoreError unless a folder has the results of a reproduction, as written or as published."""
    if not folder.is_dir():
        raise StoreError(f"{folder}: no such folder; expected the --out folder of `heavytail reproduce`")
    if not ((folder / "claims.json").is_file() and (folder / "figures").is_dir()):
        other = {"monitor.jsonl": "monitor", "compare.json": "compare"}
        made = next((f"; `heavytail {name}` made it" for file, name in other.items() if (folder / file).is_file()), "")
        raise StoreError(f"{folder} is not the folder of a reproduction: expected claims.json and figures/ in it{made}")


def read_claims(out: Path) -> list[Row]:
    """Return the rows of OUT/claims.json, empty if there is no such file; DamagedError if it is damaged."""
    return _read(out / "claims.json", [_CLAIM]) or []


def read_figures(out: Path) -> list[Row]:
    """Return the records of OUT/figures/*.json by name; DamagedError names a damaged one."""
    records: list[Row] = []
    for file in sorted((out / "figures").glob("*.json")):
        with suppress(FileNotFoundError):  # another process has just removed it
            records.append(_read_figure(file, checksum(file)))
    return records


@lru_cache(maxsize=128)  # the report is rewritten while figures are drawn, and most of them have not changed
def _read_figure(file: Path, checksum: str) -> Row:
    record: dict[str, Any] | None = _read(file, {})
    if record is None:
        raise FileNotFoundError(file)
    if "note" in record and "environments" not in record:  # a published figure: they are in a file of their own
        tables = _read(file.parents[1] / "environment.json", [{"figures": [str]}]) or []
        mine = [table for table in tables if file.stem in table["figures"]]
        record["environments"] = [{key: table[key] for key in table if key != "figures"} for table in mine]
    try:
        check_shape(record, _FIGURE)
    except ValueError as error:
        raise DamagedError(f"{file} is damaged: {error}{_REMEDY}") from error
    if record["figure"] != file.stem or not FIGURE_ID.fullmatch(file.stem):
        expected = f"expected the file's own name, got {record['figure']!r}"
        raise DamagedError(f"{file} is damaged: content.figure: {expected}{_REMEDY}")
    return record


def _read(file: Path, shape: object) -> Any:
    try:
        return read_json(file, None, shape)
    except DamagedError as error:
        raise DamagedError(f"{error}{_REMEDY}") from error
