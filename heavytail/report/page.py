"""The files of a reproduction: pictures, the numbers behind them, the claims, and one HTML page of it all.

    OUT/figures/figNN.{png,pdf,json}        the picture, and every number in it with the step-size searches behind it
    OUT/figures/figNN-search.png            those searches, drawn
    OUT/claims.json                         every claim with its measured number, threshold and verdict
    OUT/timing.json                         when each `reproduce` into OUT began, how long it took, what it trained
    OUT/report.html                         all of it in one file, nothing loaded from elsewhere

Every file is written atomically, is strict JSON where it is JSON, and the page is made from the other files alone.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from heavytail.files import Row, read_json, write_atomic
from heavytail.report.files import VERDICTS


def write_report(out: Path, *, title: str = "heavytail: figures and claims") -> Path:
    """Write OUT/report.html from the other files under OUT, and return its path.

    Raises:
        StoreError: a file under OUT cannot be read.
    """
    claims: list[Row] = read_json(out / "claims.json", [])
    figures = [read_json(file, {}) for file in sorted((out / "figures").glob("*.json"))]
    path = out / "report.html"
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(path, page(title, _body(figures, claims, out / "figures")).encode())
    return path


# -- files -----------------------------------------------------------------------------------------------------------


# -- page ------------------------------------------------------------------------------------------------------------

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2125; --soft: #5c6670; --line: #d9dee3; --back: #ffffff; --card: #f6f8fa;
  --good: #1a7f37; --bad: #b42318; --idle: #6b7280; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #9aa5b0; --line: #343b43; --back: #14171a;
  --card: #1c2126; --good: #4cc26a; --bad: #ff8a80; --idle: #9aa5b0; } }
body { max-width: 72rem; margin: 2rem auto 4rem; padding: 0 1.2rem; background: var(--back); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.2rem; margin: 2.6rem 0 .1rem; }
a { color: inherit; } .soft, figcaption { color: var(--soft); } .soft { font-size: .9rem; margin: 0 0 .8rem; }
figure { margin: 0 0 1rem; } img { width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
  border-radius: 6px; padding: .5rem; box-sizing: border-box; } figcaption { font-size: .9rem; margin-top: .3rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .88rem; }
th { text-align: left; color: var(--soft); font-weight: 600; }
th, td { padding: .3rem .7rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.verdict { white-space: nowrap; font-weight: 600; }
.reproduced { color: var(--good); } .not-reproduced { color: var(--bad); }
.not-run { color: var(--idle); } .picked td { font-weight: 600; }
details { margin: .8rem 0; background: var(--card); border: 1px solid var(--line); border-radius: 6px;
  padding: .5rem .9rem; }
summary { cursor: pointer; } details img { max-width: 44rem; display: block; margin: .6rem 0; }
details h3 { font-size: .92rem; margin: 1rem 0 .2rem; }
.missing { background: var(--card); border: 1px dashed var(--line); border-radius: 6px;
  padding: .9rem; color: var(--soft); }
.tally { display: flex; gap: 1.6rem; margin: 1rem 0; } .tally b { font-size: 1.5rem; display: block; }
"""


def page(title: str, body: Iterable[str]) -> str:
    """Return a whole HTML page in the look of the report; the body is HTML already, the title is not."""
    head = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
    )
    return "\n".join([*head, *body, "</body></html>\n"])


def image(content: bytes, alt: str) -> str:
    """Return the HTML of a PNG that is part of the page."""
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(content).decode()}">'


def _body(figures: Sequence[Row], claims: Sequence[Row], folder: Path) -> Iterator[str]:
    titles = {figure["figure"]: figure["title"] for figure in figures}
    scales = sorted({row["scale"] for row in [*figures, *claims]})
    yield f'<p class="soft">Scale: {escape(", ".join(scales)) or "none"}. The thresholds of the claims were fixed '
    yield "before any run and are the same at every scale; below the paper's, a verdict is about a smaller problem.</p>"
    yield '<div class="tally">'
    for verdict in VERDICTS:
        number = sum(row["verdict"] == verdict for row in claims)
        yield f'<span class="{_css(verdict)}"><b>{number}</b>{verdict}</span>'
    yield "</div>"
    yield from _claims_table(claims, linked=True)
    for figure in figures:
        yield from _section(figure, [row for row in claims if row["figure"] == figure["figure"]], folder)
    for name in dict.fromkeys(row["figure"] for row in claims if row["figure"] not in titles):
        yield f'<h2 id="{escape(name)}">{escape(name)}</h2>'
        yield from _claims_table([row for row in claims if row["figure"] == name])
    yield from _environment(figures)


def _section(figure: Row, claims: Sequence[Row], folder: Path) -> Iterator[str]:
    name = figure["figure"]
    yield f'<section id="{escape(name)}"><h2>{escape(figure["title"])}</h2>'
    yield f'<p class="soft">{escape(name)} · {escape(figure["paper"])} · {escape(figure["scale"])} scale</p>'
    image = _image(folder / f"{name}.png", figure["title"])
    if image:
        yield f"<figure>{image}<figcaption>{escape(figure['caption'])}</figcaption></figure>"
    else:
        yield f'<p class="missing">Not drawn: {escape(figure["missing"] or "its picture is gone")}.</p>'
    yield from _claims_table(claims)
    if figure["search"]:
        yield "<details><summary>Step sizes: what was tried, and why each was chosen or lost</summary>"
        yield _image(folder / f"{name}-search.png", f"step-size search of {name}")
        for table in figure["search"]:
            yield from _search_table(table)
        yield "</details>"
    yield "</section>"


def _claims_table(claims: Sequence[Row], *, linked: bool = False) -> Iterator[str]:
    if not claims:
        return
    yield '<div class="scroll"><table><thead><tr>' + ("<th>figure</th>" if linked else "")
    yield '<th>claim</th><th>verdict</th><th class="number">measured</th><th>threshold</th>'
    yield "<th>what is measured</th></tr></thead><tbody>"
    for row in claims:
        name = escape(row["figure"])
        yield "<tr>" + (f'<td><a href="#{name}">{name}</a></td>' if linked else "")
        yield f'<td>{escape(row["claim"])}</td><td class="verdict {_css(row["verdict"])}">{escape(row["verdict"])}</td>'
        yield f'<td class="number">{_number(row["measured"])}</td>'
        yield f"<td>{escape(row['comparison'])}&nbsp;{_number(row['threshold'])}</td><td>{escape(row['statement'])}"
        yield f'<div class="soft">{escape(row["reason"])}</div></td></tr>' if row["reason"] else "</td></tr>"
    yield "</tbody></table></div>"


def _search_table(table: Row) -> Iterator[str]:
    where = " ".join(filter(None, [table["preset"], table["variant"]]))
    selected = "no stable step size" if table["selected"] is None else f"step size {_number(table['selected'])}"
    yield f"<h3>{escape(where)}, {escape(table['optimizer'])}: {selected}</h3>"
    if table["warning"]:
        yield f'<p class="soft">{escape(table["warning"])}</p>'
    yield '<div class="scroll"><table><thead><tr><th class="number">step size</th>'
    yield '<th class="number">final loss, worst seed</th><th>outcome</th></tr></thead><tbody>'
    for row in table["candidates"]:
        picked = ' class="picked"' if row["lr"] == table["selected"] else ""
        yield f'<tr{picked}><td class="number">{_number(row["lr"])}</td><td class="number">{_number(row["loss"])}</td>'
        yield f"<td>{escape(row['reason'])}</td></tr>"
    yield "</tbody></table></div>"


def _environment(figures: Sequence[Row]) -> Iterator[str]:
    found: list[Row] = []
    for figure in figures:
        found += [table for table in figure["environments"] if table not in found]
    for table in found:
        yield '<h2>Environment</h2><div class="scroll"><table><tbody>'
        for key, value in table.items():
            yield f"<tr><th>{escape(key)}</th><td>{escape(str(value))}</td></tr>"
        yield "</tbody></table></div>"


def _image(file: Path, alt: str) -> str:
    try:
        return image(file.read_bytes(), alt)
    except FileNotFoundError:
        return ""


def _number(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, list):
        return "[" + ", ".join(map(_number, value)) + "]"
    return f"{value:.4g}"


def _css(verdict: str) -> str:
    return escape(verdict.replace(" ", "-"))
