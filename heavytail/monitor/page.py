"""The report of a monitored training: the picture and last readings of a journal, in one page.

    FOLDER/monitor.{png,pdf,json}    the picture, and every number in it
    FOLDER/report.html               both, in one file

Shapes: E readings, G groups.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape
from pathlib import Path

import numpy as np

from heavytail.errors import StoreError
from heavytail.files import strict_json, write_atomic
from heavytail.monitor.journal import Track, read_journal
from heavytail.monitor.picture import draw_monitored
from heavytail.report.page import image, page

_COLUMNS = {
    "share": "share of rows",
    "loss": "loss (nats)",
    "accuracy": "accuracy",
    "p_correct": "p(correct)",
    "grad_norm": "gradient norm",
    "trace": "Hessian trace",
    "update_norm": "update norm",
}
_SPLITS = {"train": "Training", "test": "Validation"}


def write_monitored(folder: Path) -> Path:
    """Write the report of the journal in a folder into that folder, and return its path.

    Raises:
        DataError: there is no journal, or it is damaged.
        StoreError: the folder cannot be written.
    """
    tracks, counts, index = read_journal(folder)
    picture = draw_monitored(tracks, counts, index)
    png = picture.render("png")
    files = {
        "monitor.png": png,
        "monitor.pdf": picture.render("pdf"),
        "monitor.json": strict_json({"folder": folder.name, "panels": picture.plotted}),
        "report.html": page(f"Loss by token frequency: {folder.name}", _body(tracks, png)).encode(),
    }
    for name, content in files.items():
        try:
            write_atomic(folder / name, content)
        except OSError as error:
            raise StoreError(f"cannot write {folder / name}: {error.strerror or error}") from error
    return folder / "report.html"


def _body(tracks: dict[str, Track], png: bytes) -> Iterator[str]:
    yield f"<figure>{image(png, 'loss by frequency group')}<figcaption>Groups of classes that each hold about as many "
    yield "targets, from the most frequent (light) to the rarest (dark). Dashed: the first overall loss.</figcaption>"
    yield "</figure>"
    for split, track in tracks.items():
        yield f"<h2>{_SPLITS[split]}, step {track.step[-1]}</h2>"
        yield f'<p class="soft">Groups cut from {escape(track.cut)}'
        yield "; cut anew at every reading, as no counts were given.</p>" if track.recut else ".</p>"
        yield from _last_readings(track)


def _last_readings(track: Track) -> Iterator[str]:
    last = {name: values[-1] for name, values in track.groups.items()}
    shown = [name for name in _COLUMNS if name in last and any(map(math.isfinite, last[name]))]
    yield '<div class="scroll"><table><thead><tr><th class="number">group</th>'
    yield "".join(f'<th class="number">{_COLUMNS[name]}</th>' for name in shown) + "</tr></thead><tbody>"
    for g in range(len(last["loss"])):
        cells = [_cell(name, last[name][g]) for name in shown]
        yield f'<tr><td class="number">{g + 1}</td>{"".join(cells)}</tr>'
    overall = {name: values[-1] for name, values in track.overall.items()}
    cells = [_cell(name, overall.get(name, math.nan)) for name in shown]
    yield f'<tr class="picked"><td class="number">all</td>{"".join(cells)}</tr></tbody></table></div>'
    nonfinite = np.nansum(last["nonfinite"])
    if nonfinite:
        yield f'<p class="not-reproduced">{nonfinite:.0f} rows of this reading had a loss that is not finite; '
        yield "no mean includes them.</p>"


def _cell(name: str, value: float) -> str:
    text = "" if not math.isfinite(value) else f"{value:.1%}" if name in ("share", "accuracy") else f"{value:.4g}"
    return f'<td class="number">{text}</td>'
