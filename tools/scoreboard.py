"""The README's table: the number of claims reproduced per published figure and scale, linked to the plot.

Generated from the published results only (see tools.publish), between two comments in the README.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from heavytail.errors import StoreError
from heavytail.files import Row, read_json, write_atomic
from heavytail.results.claims import summary
from heavytail.results.figure import Figure, all_figures
from tools.publish import SCALES

BEGIN = "<!-- made by `python -m tools`: do not edit -->"
NOTHING = "—"
END = "<!-- end of what `python -m tools` made -->"


def updated(readme: Path, published: Path) -> str:
    """Return the text of a README with the table of published results in place of the old table.

    Raises:
        StoreError: the README cannot be read, or has no place for the table.
    """
    try:
        text = readme.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise StoreError(f"cannot read {readme}: {reason}; --readme names the file with the table") from error
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(END) < text.index(BEGIN):
        raise StoreError(f"{readme} has no place for the table: expected the lines {BEGIN} and {END}, once each")
    link = Path(os.path.relpath(published, readme.parent)).as_posix()
    return "\n".join([text[: text.index(BEGIN)] + BEGIN, "", *table(published, link), "", text[text.index(END) :]])


def update(readme: Path, published: Path) -> bool:
    """Update the table of a README; return whether it changed."""
    text = updated(readme, published)
    stale = text != readme.read_text(encoding="utf-8")
    if stale:
        write_atomic(readme, text.encode())
    return stale


def table(published: Path, link: str) -> Iterator[str]:
    """Yield the lines of the table.

    Args:
        published: folder of the published results.
        link: the same, as seen from the README.
    """
    claims: dict[str, list[Row]] = {scale: read_json(published / scale / "claims.json", []) for scale in SCALES}
    yield f"| figure | | {' | '.join(SCALES)} |"
    yield "|---|---|" + "---|" * len(SCALES)
    for figure in all_figures():
        cells = [_cell(figure, scale, claims[scale], published, link) for scale in SCALES]
        if any(cell != NOTHING for cell in cells):
            yield f"| {figure.id} | {figure.title.replace('|', '&#124;')} | {' | '.join(cells)} |"
    totals = (f"**{summary(rows)}**" if rows else NOTHING for rows in claims.values())
    yield f"| all | | {' | '.join(totals)} |"
    lines = [line for scale in SCALES for line in _made(scale, published / scale)]
    yield from ["", *lines] if lines else []


def _cell(figure: Figure, scale: str, claims: list[Row], published: Path, link: str) -> str:
    """The number of claims reproduced, "drawn" for a figure without claims, a dash for an unpublished one."""
    place = f"{scale}/figures/{figure.id}"
    if not (published / f"{place}.json").is_file():
        return NOTHING
    drawn = (published / f"{place}.png").is_file()
    mine = [row for row in claims if row["figure"] == figure.id]
    text = summary(mine) if mine else "drawn" if drawn else "not drawn"
    return f"[{text}]({link}/{place}.png)" if drawn else text


def _made(scale: str, folder: Path) -> Iterator[str]:
    """A line with the time and the machines of a scale."""
    timing: list[Row] = read_json(folder / "timing.json", [])
    if not timing:
        return
    machines: list[Row] = read_json(folder / "environment.json", [])
    on = dict.fromkeys(_machine(table) for table in machines)
    trained, seconds = (sum(row[key] for row in timing) for key in ("trained", "seconds"))
    yield f"- {scale}: {trained} runs trained, {_spent(seconds)} in all" + (f"; {', '.join(on)}" if on else "")


def _machine(environment: Row) -> str:
    device = environment.get("device", "cpu")
    return (
        f"{environment.get('processor', device) if device == 'cpu' else device}, torch {environment.get('torch', '?')}"
    )


def _spent(seconds: float) -> str:
    for unit, size in (("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.0f} seconds"
