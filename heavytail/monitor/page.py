"""The report of a monitored training: the picture and last readings of a journal, in one page.

    FOLDER/monitor.{png,pdf,json}    the picture, and every number in it
    FOLDER/report.html               both, in one file

Shapes: E readings, G groups.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from heavytail.files import Row, expanded, plain, strict_json, write_result
from heavytail.monitor.journal import Track, read_journal
from heavytail.monitor.picture import draw_monitored
from heavytail.report.page import Picture, Section, Table, charted, render

_COLUMNS = {
    "share": "share of rows",
    "loss": "loss (nats)",
    "accuracy": "accuracy",
    "p_correct": "p(correct)",
    "grad_norm": "gradient norm",
    "trace": "Hessian trace",
    "update_norm": "update norm",
}
_SPLITS = {"train": "Training", "test": "Validation", "eval": "Validation"}


def write_monitored(folder: Path) -> Path:
    """Write the report of the journal in a folder into that folder, and return its path.

    Raises:
        DataError: there is no journal, or it is damaged.
        StoreError: the folder cannot be written.
    """
    folder = expanded(folder)
    tracks, counts, index = read_journal(folder)
    picture = draw_monitored(tracks, counts, index)
    [name] = _names([folder])
    png = picture.render("png")
    files = {
        "monitor.png": png,
        "monitor.pdf": picture.render("pdf"),
        "monitor.json": strict_json({"folder": name, "panels": picture.plotted}),
        "report.html": _page(name, tracks, png, charted(plain(picture.plotted))),
    }
    for file, content in files.items():
        write_result(folder / file, content)
    return folder / "report.html"


def write_compared(folders: Sequence[Path]) -> Path:
    """Write the journals of several runs under one another into one page, FOLDER/runs.html of the first.

    Raises:
        DataError, StoreError: as `write_monitored`.
    """
    sections: list[Section] = []
    folders = [*map(expanded, folders)]
    for folder, name in zip(folders, _names(folders), strict=True):
        tracks, counts, index = read_journal(folder)
        picture = draw_monitored(tracks, counts, index)
        panels = charted(plain(picture.plotted))
        sections += [
            Section(heading=name, pictures=[Picture(picture.render("png"), panels=panels)]),
            *(_split_section(f"{name}: {_SPLITS.get(split, split)}", track) for split, track in tracks.items()),
        ]
    file = folders[0] / "runs.html"
    write_result(file, render("Loss by token frequency", sections))
    return file


def _names(folders: Sequence[Path]) -> list[str]:
    """Return a name for each folder: the end of its path, as long as it takes to tell it from those of other runs."""
    paths = [Path(os.path.abspath(folder)) for folder in folders]
    names = []
    for path in paths:
        others = [other.parts for other in paths if other != path]
        ends = (path.parts[-number:] for number in range(1, len(path.parts) + 1))
        end = next((end for end in ends if all(other[-len(end) :] != end for other in others)), path.parts)
        names.append(str(Path(*end)))
    return names


def _page(name: str, tracks: dict[str, Track], png: bytes, panels: Sequence[Row]) -> bytes:
    caption = (
        "Groups of classes with about equal numbers of targets, from the most frequent (light) to the rarest (dark). "
        "Dashed: the first overall loss."
    )
    splits = [_split_section(_SPLITS.get(split, split), track) for split, track in tracks.items()]
    picture = Picture(png, caption=caption, panels=panels)
    return render(f"Loss by token frequency: {name}", [Section(pictures=[picture]), *splits])


def _split_section(name: str, track: Track) -> Section:
    """Return the last reading of every group, and of all samples in the last row."""
    last = {column: values[-1] for column, values in track.groups.items()}
    overall = {column: values[-1] for column, values in track.overall.items()}
    shown = [column for column in _COLUMNS if column in last and any(map(math.isfinite, last[column]))]
    numbers = [str(g + 1) for g in range(len(last["loss"]))]
    labels = [*track.names, *numbers[len(track.names) :]]  # earlier readings may have had more groups
    groups = [[labels[g], *(_number(c, last[c][g]) for c in shown)] for g in range(len(last["loss"]))]
    everything = ["all", *(_number(c, overall.get(c, math.nan)) for c in shown)]
    nonfinite = np.nansum(last["nonfinite"])
    return Section(
        heading=f"{name}, step {track.step[-1]}",
        note=f"Groups cut from {track.cut}"
        + ("; cut again at every reading, because no counts were given." if track.recut else "."),
        tables=[
            Table(
                columns=["group", *(_COLUMNS[column] for column in shown)],
                rows=[*groups, everything],
                numeric=range(len(shown) + 1),
                picked=len(groups),
            )
        ],
        warning=f"{nonfinite:.0f} rows of this reading had a loss that is not finite; no mean includes them."
        if nonfinite
        else "",
    )


def _number(column: str, value: float) -> str:
    if not math.isfinite(value):
        return ""
    return f"{value:.1%}" if column in ("share", "accuracy") else f"{value:.4g}"
