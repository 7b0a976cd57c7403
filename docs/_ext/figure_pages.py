"""One page per figure, made at build time from the figure itself, its presets and the published claims.

The pages are written below docs/figures/, which is not committed: their sources are heavytail/figures/*.py,
heavytail/experiment/presets/*.toml and docs/results/.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sphinx.application import Sphinx

from heavytail.results.claims import summary
from heavytail.results.figure import Figure, all_figures

SCALES = ("quick", "small", "paper")
Row = dict[str, Any]


def write_pages(app: Sphinx) -> None:
    """Write docs/figures/figNN.md of every figure, and their index."""
    docs = Path(app.srcdir)
    folder = docs / "figures"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    templates = Environment(loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined)
    templates.filters["cell"] = _cell
    claims = {scale: _read(docs / "results" / scale / "claims.json") for scale in SCALES}
    rows = []
    for figure in all_figures():
        mine = {scale: [row for row in claims[scale] if row["figure"] == figure.id] for scale in SCALES}
        page = templates.get_template("figure.md.j2").render(_page(figure, mine, docs))
        (folder / f"{figure.id}.md").write_text(page, encoding="utf-8")
        rows.append((figure, [summary(mine[scale]) or "-" for scale in SCALES]))
    index = templates.get_template("figures.md.j2").render(scales=SCALES, rows=rows)
    (folder / "index.md").write_text(index, encoding="utf-8")


def _page(figure: Figure, claims: dict[str, list[Row]], docs: Path) -> dict[str, Any]:
    drawn = [s for s in SCALES if (docs / "results" / s / "figures" / f"{figure.id}.png").exists()]
    published = [scale for scale in SCALES if claims[scale]]
    rows = {scale: {row["claim"]: row for row in claims[scale]} for scale in published}
    names = list(dict.fromkeys(name for scale in published for name in rows[scale]))
    return {
        "figure": figure,
        "scale": drawn[-1] if drawn else None,
        "published": published,
        "claims": [_claim(name, [rows[scale].get(name) for scale in published]) for name in names],
        "presets": list(dict.fromkeys(ref.preset for ref in figure.sweeps)),
    }


def _claim(name: str, rows: list[Row | None]) -> Row:
    first = next(row for row in rows if row is not None)
    verdicts = []
    for row in rows:
        measured = "" if row is None or row["measured"] is None else f" ({row['measured']:.3g})"
        verdicts.append("-" if row is None else row["verdict"] + measured)
    return {**first, "name": name, "threshold": json.dumps(first["threshold"]), "verdicts": verdicts}


def _read(file: Path) -> list[Row]:
    rows: list[Row] = json.loads(file.read_text()) if file.exists() else []
    return rows


def _cell(text: str) -> str:
    """Text as Markdown shows it literally, in a cell of a table."""
    for mark in "\\|*_`":
        text = text.replace(mark, "\\" + mark)
    return text.replace("<", "&lt;")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the hook."""
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True}
