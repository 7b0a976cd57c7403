"""HTML pages in a single file: the report of a reproduction, generated from its other files.

A page is a title and sections of images and tables, as plain data; `page.html.j2` renders them and escapes every
string. The monitor's page (`monitor.page`) uses the same sections.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from heavytail.files import Row, write_atomic
from heavytail.report.files import VERDICTS, read_claims, read_figures


@dataclass(frozen=True)
class Cell:
    """A table cell that is more than text.

    Attributes:
        text: its content.
        style: CSS class.
        target: id of the section that it links to.
        note: a second line in small print.
    """

    text: str
    style: str = ""
    target: str = ""
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        columns: headings; none for a table without a header.
        rows: cells, one per column.
        numeric: indices of right-aligned columns.
        title, note: lines above the table.
        picked: index of the row in bold, -1 for none.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    numeric: Sequence[int] = ()
    title: str = ""
    note: str = ""
    picked: int = -1


@dataclass(frozen=True)
class Section:
    """A part of a page under its own heading.

    Attributes:
        heading, note: its first lines.
        id: anchor for links on the page.
        image: content of a PNG file; empty for none.
        caption: text below the image.
        missing: the reason for a missing image.
        tables: shown below the image.
        warning: a line in red below the tables.
        summary, details, details_image: heading, tables and PNG of a collapsed part.
    """

    heading: str = ""
    note: str = ""
    id: str = ""
    image: bytes = b""
    caption: str = ""
    missing: str = ""
    tables: Sequence[Table] = ()
    warning: str = ""
    summary: str = ""
    details: Sequence[Table] = ()
    details_image: bytes = b""


def render(
    title: str,
    sections: Sequence[Section],
    *,
    note: str = "",
    tally: Mapping[str, int] | None = None,
    reload: int | None = None,
) -> bytes:
    """Return a page as the content of an HTML file.

    Args:
        title: of the page.
        sections: in reading order.
        note: a line below the title.
        tally: verdict -> number of claims, shown large.
        reload: seconds after which an open page reloads, None for never.
    """
    page = _template().render(title=title, sections=sections, note=note, tally=tally, reload=reload)
    return page.encode()


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"base64": lambda content: base64.b64encode(content).decode(), "style": _style}
    return environment.from_string((resources.files("heavytail.report") / "page.html.j2").read_text())


def write_report(out: Path, *, title: str = "heavytail: figures and claims", reload: int | None = None) -> Path:
    """Write OUT/report.html from the other files under OUT, and return its path.

    With `reload`, an open page reloads after that many seconds.

    Raises:
        StoreError: a file under OUT is damaged.
    """
    claims, figures = read_claims(out), read_figures(out)
    scales = ", ".join(sorted({row["scale"] for row in [*figures, *claims]})) or "none"
    note = (
        f"Scale: {scales}. The thresholds of the claims were fixed before any run and are the same at every scale; "
        "below paper scale, a verdict is about a smaller problem."
    )
    tally = {verdict: sum(row["verdict"] == verdict for row in claims) for verdict in VERDICTS}
    by_figure: dict[str, list[Row]] = {row["figure"]: [] for row in [*figures, *claims]}
    for row in claims:
        by_figure[row["figure"]].append(row)
    drawn = {
        figure["figure"]: _figure_section(figure, by_figure[figure["figure"]], out / "figures") for figure in figures
    }
    sections = [
        Section(tables=_claims_table(claims, linked=True)),
        *drawn.values(),
        *(Section(name, id=name, tables=_claims_table(by_figure[name])) for name in by_figure if name not in drawn),
        *_environments(figures),
    ]
    path = out / "report.html"
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(path, render(title, sections, note=note, tally=tally, reload=reload))
    return path


def _figure_section(figure: Row, claims: Sequence[Row], folder: Path) -> Section:
    name = figure["figure"]
    return Section(
        heading=figure["title"],
        note=f"{name} · {figure['paper']} · {figure['scale']} scale",
        id=name,
        image=_content(folder / f"{name}.png"),
        caption=figure["caption"],
        missing=figure["missing"] or "the image file is missing",
        tables=_claims_table(claims),
        summary="Step-size search: every candidate, and why it was selected or rejected",
        details=[_search_table(search) for search in figure["search"]],
        details_image=_content(folder / f"{name}-search.png"),
    )


def _claims_table(claims: Sequence[Row], *, linked: bool = False) -> list[Table]:
    columns = ("claim", "verdict", "measured", "threshold", "quantity")
    rows = [
        (
            row["claim"],
            Cell(row["verdict"], f"verdict {_style(row['verdict'])}"),
            _number(row["measured"]),
            f"{row['comparison']}\N{NO-BREAK SPACE}{_number(row['threshold'])}",
            Cell(row["statement"], note=row["reason"]),
        )
        for row in claims
    ]
    if not rows:
        return []
    if not linked:
        return [Table(columns, rows, numeric=[2])]
    named = [(Cell(claim["figure"], target=claim["figure"]), *row) for claim, row in zip(claims, rows, strict=True)]
    return [Table(("figure", *columns), named, numeric=[3])]


def _search_table(search: Row) -> Table:
    where = " ".join(filter(None, [search["preset"], search["variant"]]))
    lrs = [row["lr"] for row in search["candidates"]]
    selected = search["selected"]
    return Table(
        columns=("step size", "final loss, worst seed", "outcome"),
        rows=[(_number(row["lr"]), _number(row["loss"]), row["reason"]) for row in search["candidates"]],
        numeric=[0, 1],
        title=f"{where}, {search['optimizer']}: "
        + ("no stable step size" if selected is None else f"step size {_number(selected)}"),
        note=search["warning"] or "",
        picked=lrs.index(selected) if selected in lrs else -1,
    )


def _environments(figures: Sequence[Row]) -> list[Section]:
    unique: list[Row] = []
    for figure in figures:
        unique += [table for table in figure["environments"] if table not in unique]
    return [Section("Environment", tables=[Table((), [(k, str(v)) for k, v in table.items()])]) for table in unique]


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return b""


def _number(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, list):
        return "[" + ", ".join(map(_number, value)) + "]"
    return f"{value:.4g}"


def _style(verdict: str) -> str:
    return verdict.replace(" ", "-")
