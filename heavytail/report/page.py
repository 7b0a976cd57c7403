"""HTML pages in a single file: the report of a reproduction, generated from its other files.

A page is a title and sections of images and tables, as plain data; `page.html.j2` renders them and escapes every
string. `page.js` adds search, keyboard and charts of the plotted numbers, which uPlot draws; without scripts the
pictures stay. The content security policy admits these scripts by their hashes, and forbids every request. The
monitor's page (`monitor.page`) uses the same sections.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from io import BytesIO
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from heavytail.files import Row, checksum, write_atomic
from heavytail.report.drawn import code
from heavytail.report.files import VERDICTS, read_claims, read_figures

SIGNS = {
    "reproduced": "\N{CHECK MARK}",
    "not reproduced": "\N{MULTIPLICATION SIGN}",
    "undecided": "?",
    "not run": "\N{EN DASH}",
    "no longer reproduced": "\N{BLACK DOWN-POINTING TRIANGLE}",
    "reproduced now": "\N{BLACK UP-POINTING TRIANGLE}",
    "other verdict": "\N{NOT EQUAL TO}",
    "other number": "\N{ALMOST EQUAL TO}",
}
POINTS = 400  # of a series in the page; the JSON file beside it has all of them
EXACT = "exact, "
CHARTED = ("line", "band", "points", "steps", "level")  # kinds of series that page.js draws
SCRIPTS = ("uplot/uPlot.iife.min.js", "page.js")
STYLES = ("uplot/uPlot.min.css", "page.css")


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
        verdicts: of each row, for tables of claims.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    numeric: Sequence[int] = ()
    title: str = ""
    note: str = ""
    picked: int = -1
    verdicts: Sequence[str] = ()


@dataclass(frozen=True)
class Picture:
    """A picture of a section.

    Attributes:
        image: content of a PNG file; empty for none.
        alt: what the image shows, in words.
        panels: the numbers in the image, as charts that replace it (see `charted`).
        replaceable: whether the charts show everything that the image shows.
        caption: text below the image.
        heading: a line above it.
        missing: the reason for a missing image.
    """

    image: bytes = b""
    alt: str = ""
    panels: Sequence[Row] = ()
    replaceable: bool = True
    caption: str = ""
    heading: str = ""
    missing: str = ""


@dataclass(frozen=True)
class Section:
    """A part of a page under its own heading.

    Attributes:
        heading, note: its first lines.
        id: anchor for links on the page.
        pictures: side by side where there is room.
        tables: shown below the pictures.
        warning: a line in red below the tables.
        command: the command that makes this section.
        links: relative paths of its files.
        verdicts: number of its claims by verdict, for a section in the index; None for any other.
        live: data of a part that one of the page's `more_scripts` draws; None for no such part.
        summary, details, details_image: heading, tables and PNG of a collapsed part.
    """

    heading: str = ""
    note: str = ""
    id: str = ""
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    warning: str = ""
    command: str = ""
    links: Sequence[str] = ()
    verdicts: Mapping[str, int] | None = None
    live: Mapping[str, Any] | None = None
    summary: str = ""
    details: Sequence[Table] = ()
    details_image: bytes = b""


def render(
    title: str,
    sections: Sequence[Section],
    *,
    note: str = "",
    facts: Sequence[tuple[str, str]] = (),
    tally: Mapping[str, int] | None = None,
    reload: int | None = None,
    more_scripts: Sequence[str] = (),
) -> bytes:
    """Return a page as the content of an HTML file.

    Args:
        title: of the page.
        sections: in reading order.
        note: a line below the title.
        facts: names and values below the note.
        tally: verdict -> number of claims, shown large.
        reload: seconds after which an open page reloads, None for never.
        more_scripts: files of this folder that run after SCRIPTS.
    """
    style, scripts = "\n".join(map(_asset, STYLES)), [*map(_asset, (*SCRIPTS, *more_scripts))]
    sources = " ".join(map(_hash, scripts))
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {sources}; "
        "base-uri 'none'; form-action 'none'"
    )
    page = _template().render(
        title=title,
        sections=sections,
        note=note,
        facts=facts,
        tally=tally,
        reload=reload,
        policy=policy,
        style=Markup(style),
        scripts=[*map(Markup, scripts)],
    )
    return page.lstrip().encode()


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters |= {
        "base64": lambda content: base64.b64encode(_small(content)).decode(),
        "style": _style,
        "sign": lambda verdict: SIGNS.get(verdict.removeprefix(EXACT), ""),
    }
    return environment.from_string(_asset("page.html.j2"))


@cache
def _asset(name: str) -> str:
    return resources.files("heavytail.report").joinpath(name).read_text("utf-8")


def _hash(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


@lru_cache(maxsize=256)  # a page is written anew after every figure
def _small(content: bytes) -> bytes:
    """Return a PNG with 64 colours, a quarter of its size; what is not an image as it is."""
    from PIL import Image

    try:
        with Image.open(BytesIO(content)) as opened:
            picture = opened.convert("RGB")
    except OSError:
        return content
    smaller = BytesIO()
    # Not the median cut, which mixes the colours of thin lines.
    picture.quantize(64, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(smaller, "PNG")
    return min(content, smaller.getvalue(), key=len)


def charted(panels: Sequence[Row]) -> list[Row]:
    """Return the series of a picture that page.js can draw: at most POINTS of each, floats to five digits."""
    shown: list[Row] = []
    for panel in panels:
        series = [_thinned(one) for one in panel["series"] if one["kind"] in CHARTED]
        if series:
            words = {key: _plain(panel[key]) for key in ("title", "xlabel", "ylabel")}
            view = {key: panel[key] for key in ("xscale", "yscale", "ylim") if key in panel}
            shown.append({**words, **view, "notes": [*map(_plain, panel["notes"])], "series": series})
    return shown


def _thinned(series: Row) -> Row:
    """Return a series with at most POINTS of its points: half of them at even places, half at logarithmic ones."""
    arrays = {key: series[key] for key in ("x", "low", "high", "edges", "y") if isinstance(series.get(key), list)}
    number = min(map(len, arrays.values()), default=0)
    half = POINTS // 2
    kept: Sequence[int] = range(number)
    if number > POINTS:
        even = {round(i * (number - 1) / (half - 1)) for i in range(half)}
        kept = sorted(even | {round(number ** (i / (half - 1))) - 1 for i in range(half)})
    fewer = {
        key: [_five_digits(v) for v in [*(value[i] for i in kept), *value[number:]]] for key, value in arrays.items()
    }
    level = {"y": series["y"]} if series["kind"] == "level" else {}
    style = {key: series[key] for key in ("colour", "dash") if key in series}
    return {"kind": series["kind"], "label": _plain(series["label"]), **fewer, **level, **style}


def _five_digits(value: float | None) -> float | None:
    return value if value is None or isinstance(value, int) else float(f"{value:.5g}")


def _plain(text: str) -> str:
    """Return a label without the mathematics that only matplotlib understands.

    >>> _plain(r"SGD, $1/\\sqrt{\\pi_k}$")
    'SGD, 1/√π_k'
    """
    for markup, plain in ((r"\sqrt", "√"), (r"\pi", "π"), ("$", ""), ("{", ""), ("}", "")) if "$" in text else ():
        text = text.replace(markup, plain)
    return text


def _alt(record: Row) -> str:
    """Return in words what the picture of a figure shows."""
    panels = []
    for panel in record.get("panels", ()):
        labels = list(dict.fromkeys(re.sub(r"^group \d+$", "frequency groups", s["label"]) for s in panel["series"]))
        axes = " against ".join(filter(None, [panel["ylabel"], panel["xlabel"]]))
        described = ": ".join(filter(None, [panel["title"], axes]))
        panels.append(_plain(described + (f" ({', '.join(filter(None, labels[:6]))})" if any(labels) else "")))
    return f"{record['title']}. " + "; ".join(panels[:12])


def write_report(
    out: Path,
    *,
    title: str = "heavytail: figures and claims",
    pending: Sequence[str] = (),
    reload: int | None = None,
) -> Path:
    """Write OUT/report.html from the other files under OUT, and return its path; leave a page that is up to date.

    Args:
        out: folder of the results.
        title: heading of the page.
        pending: ids of figures that are still to be drawn; the page names those that have no picture yet.
        reload: seconds after which an open page reloads; None for never.

    Raises:
        StoreError: a file under OUT is damaged.
    """
    path, made_of = out / "report.html", _made_of(out, title, *pending, reload)
    if _is_page_of(path, made_of):
        return path
    claims, figures = read_claims(out), read_figures(out)
    by_figure: dict[str, list[Row]] = {row["figure"]: [] for row in [*figures, *claims]}
    for row in claims:
        by_figure[row["figure"]].append(row)
    drawn = {
        figure["figure"]: _figure_section(figure, by_figure[figure["figure"]], out / "figures") for figure in figures
    }
    rest = [
        Section(name, id=name, tables=_claims_table(by_figure[name]), verdicts=tally_of(by_figure[name]))
        for name in by_figure
        if name not in drawn
    ]
    every = [Section("All claims", id="all", tables=_claims_table(claims, linked=True))] if claims else []
    note = (
        "The thresholds of the claims are the same at every scale. Below the paper's, a verdict is about a smaller "
        "problem, and comes from seeds that the step-size search has not used."
    )
    out.mkdir(parents=True, exist_ok=True)
    sections = [*drawn.values(), *rest, *every, *_environments(figures)]
    facts = facts_of(claims, figures, [name for name in pending if name not in drawn])
    page = render(title, sections, note=note, facts=facts, tally=tally_of(claims), reload=reload)
    write_atomic(path, page + _seal(made_of, page))
    return path


def _made_of(out: Path, *arguments: object) -> str:
    """A checksum of everything that the report is made of."""
    files = [out / "claims.json", *sorted((out / "figures").glob("*.*"))]
    parts = [code(), repr(arguments), *(f"{file.name} {checksum(file)}" for file in files)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _seal(made_of: str, page: bytes) -> bytes:
    """The last line of a report: checksums of its sources and of the page itself."""
    return f"\n<!-- {made_of} {hashlib.sha256(page).hexdigest()} -->\n".encode()


def _is_page_of(path: Path, made_of: str) -> bool:
    """Whether a file is the whole report made of these sources."""
    content = _content(path)
    page = content[: -len(_seal(made_of, b""))]
    return content == page + _seal(made_of, page)


def _verdict(claim: Row) -> str:
    """Return the verdict on a claim; exact claims are counted apart."""
    return (EXACT if claim.get("kind") == "exact" else "") + str(claim["verdict"])


def verdict_cell(claim: Row) -> Cell:
    """Return the verdict on a claim with its sign and colour."""
    return Cell(f"{SIGNS.get(claim['verdict'], '')} {_verdict(claim)}".strip(), f"verdict {_style(claim['verdict'])}")


def tally_of(claims: Sequence[Row]) -> dict[str, int]:
    """Return the number of claims by verdict; exact claims are counted apart."""
    counts = Counter(map(_verdict, claims))
    exact = [EXACT + verdict for verdict in VERDICTS if counts[EXACT + verdict]]
    return {verdict: counts[verdict] for verdict in (*VERDICTS, *exact)}


def facts_of(claims: Sequence[Row], figures: Sequence[Row], waiting: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Return what identifies a reproduction: scale, number of figures, versions, machine; names and values.

    Args:
        claims: rows of claims.json.
        figures: the records of the figures.
        waiting: ids of the figures that have none yet.
    """
    environments = [table for figure in figures for table in figure["environments"]]

    def values(key: str) -> str:
        return ", ".join(dict.fromkeys(str(table[key]) for table in environments if table.get(key) not in (None, "")))

    scale = ", ".join(sorted({row["scale"] for row in [*figures, *claims]})) or "none"
    drawn = sum(figure["missing"] is None for figure in figures)
    facts = [("scale", scale), ("figures", f"{drawn} of {len(figures) + len(waiting)} drawn")]
    if waiting:
        facts.append(("not yet", ", ".join(waiting)))
    names = ("heavytail", "commit", "torch", "processor", "device", "threads", "platform")
    return facts + [(name, values(name)) for name in names if values(name)]


def _figure_section(figure: Row, claims: Sequence[Row], folder: Path) -> Section:
    name = figure["figure"]
    panels = figure.get("panels", [])
    tables = [
        Table(one["header"], one["rows"], title=_plain(panel["title"]))
        for panel in panels
        for one in panel["series"]
        if one["kind"] == "table"
    ]
    files = [f"{name}.{kind}" for kind in ("png", "pdf", "json") if (folder / f"{name}.{kind}").exists()]
    picture = None if tables and not charted(panels) else picture_of(figure, folder)
    return Section(
        heading=figure["title"],
        note=f"{name} · {figure['paper']} · {figure['scale']} scale",
        id=name,
        pictures=[picture] if picture else [],
        tables=[*tables, *_claims_table(claims)],
        command=f"heavytail reproduce {name} --scale {figure['scale']}",
        links=[f"figures/{file}" for file in files],
        verdicts=tally_of(claims),
        summary="Step-size search: every candidate, and why it was selected or rejected",
        details=[_search_table(search) for search in figure["search"]],
        details_image=_content(folder / f"{name}-search.png"),
    )


def picture_of(figure: Row, folder: Path, heading: str = "") -> Picture:
    """Return the picture of a figure's record, whose files are in `folder`."""
    panels = figure.get("panels", [])
    charts = charted(panels)
    return Picture(
        image=_content(folder / f"{figure['figure']}.png"),
        alt=_alt(figure),
        panels=charts,
        replaceable=len(charts) == len(panels),
        caption=figure["caption"],
        heading=heading,
        missing=figure["missing"] or "the image file is missing",
    )


def _claims_table(claims: Sequence[Row], *, linked: bool = False) -> list[Table]:
    columns = ("claim", "verdict", "measured", "threshold", "margin", "quantity")
    rows = [
        (
            row["claim"],
            verdict_cell(row),
            Cell(four_digits(row["measured"]), "number", note=_seeds(row)),
            f"{row['comparison']}\N{NO-BREAK SPACE}{four_digits(row['threshold'])}",
            four_digits(row.get("margin")),
            Cell(row["statement"], note=". ".join(filter(None, [row.get("quote"), row["reason"]]))),
        )
        for row in claims
    ]
    verdicts = [*map(_verdict, claims)]
    if not rows:
        return []
    if not linked:
        return [Table(columns, rows, numeric=[2, 4], verdicts=verdicts)]
    named = [(Cell(claim["figure"], target=claim["figure"]), *row) for claim, row in zip(claims, rows, strict=True)]
    return [Table(("figure", *columns), named, numeric=[3, 5], verdicts=verdicts)]


def _seeds(claim: Row) -> str:
    """Return the values on several seeds."""
    values = claim.get("per_seed", [])
    return ", ".join(map(four_digits, values)) if len(values) > 1 else ""


def _search_table(search: Row) -> Table:
    where = " ".join(filter(None, [search["preset"], search["variant"]]))
    lrs = [row["lr"] for row in search["candidates"]]
    selected = search["selected"]
    return Table(
        columns=("step size", "final loss, worst seed", "outcome"),
        rows=[(four_digits(row["lr"]), four_digits(row["loss"]), row["reason"]) for row in search["candidates"]],
        numeric=[0, 1],
        title=f"{where}, {search['optimizer']}: "
        + ("no stable step size" if selected is None else f"step size {four_digits(selected)}"),
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


def four_digits(value: Any) -> str:
    """Return a number, a list of numbers or None (a dash) as text, to four digits."""
    if value is None:
        return "–"
    if isinstance(value, list):
        return "[" + ", ".join(map(four_digits, value)) + "]"
    return f"{value:.4g}"


def _style(verdict: str) -> str:
    return verdict.removeprefix(EXACT).replace(" ", "-")
