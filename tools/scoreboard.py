"""What README and docs/results show of the published results, generated from those alone (see tools.publish).

README.md                          between two comments: claims by scale and kind, highlights, times and machines
docs/results/README.md             the whole file: claims reproduced per figure and scale, linked to the pictures
docs/results/claims.md             the whole file: the measured number and the verdict of every claim at every scale
docs/results/optimizers/README.md  the whole file: what `heavytail compare` found (tools.optimizers)
heavytail/report/times.json        the whole file: seconds of figures and runs, for estimates (tools.times)
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from heavytail.errors import StoreError
from heavytail.files import Row, read_json, write_atomic
from heavytail.report.difference import limit
from heavytail.results.claims import summary
from heavytail.results.figure import Figure, all_figures
from tools import optimizers, times
from tools.publish import SCALES

BEGIN = "<!-- made by `python -m tools`: do not edit -->"
NOTHING = "—"
TIMES = Path("heavytail/report/times.json")  # in the README's folder
END = "<!-- end of what `python -m tools` made -->"
VERDICTS = ("reproduced", "not reproduced", "undecided", "not run")
EARLIER = "¹"  # of figures that were published with the first edition of the claims
SIGNS = {"reproduced": "✓", "not reproduced": "✗", "undecided": "?"}
HIGHLIGHTS = (  # figure, claim, and the data in words
    ("fig01", "rare-gap", "GPT-2 on text"),
    ("fig02", "barcoded-stays", "CNN"),
    ("fig03", "gap-appears", "ResNet18 on images"),
    ("fig04", "rare-gap", "softmax regression on heavy-tailed labels"),
    ("fig05", "direction-matters-m", "last layer of a transformer"),
    ("fig12", "similar-when-uniform", "vision transformer on nearly balanced labels"),
    ("fig18", "rare-gap", "one-layer transformer on text, full batch"),
)

Claims = Mapping[str, Sequence[Row]]  # rows of claims.json by scale


def pages(readme: Path, published: Path) -> dict[Path, str]:
    """Return the text that each file made from the published results should have.

    Raises:
        StoreError: the README cannot be read, or has no place for the totals.
    """
    try:
        text = readme.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise StoreError(f"cannot read {readme}: {reason}; --readme names the file with the totals") from error
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(END) < text.index(BEGIN):
        raise StoreError(f"{readme} has no place for the totals: expected the lines {BEGIN} and {END}, once each")
    claims: Claims = {scale: read_json(published / scale / "claims.json", []) for scale in SCALES}
    made = [scale for scale in SCALES if claims[scale]]
    spent = [line for scale in SCALES for line in _spent(scale, published / scale)]
    link = Path(os.path.relpath(published, readme.parent)).as_posix()
    compared = [*optimizers.summary(published, link)]
    parts = [[*_totals(claims, made)], [*_highlights(claims, made, link)], [*spent, *compared]]
    lines = [line for part in parts if part for line in (*part, "")]
    table = [
        "# Results",
        "",
        "Claims reproduced of claims made; exact ones (identities that only a bug can break) are",
    ]
    table += ["counted apart. [Every claim with its number](claims.md).", "", *_table(claims, published), ""]
    if any(_earlier(rows) for rows in claims.values()):
        table += [
            f"{EARLIER} Claims of the first edition, on seeds that were known when the second one was written.",
            "",
        ]
    table += spent
    return {
        readme: "\n".join([text[: text.index(BEGIN)] + BEGIN, "", *lines, text[text.index(END) :]]),
        published / "README.md": _whole(table),
        **({published / "claims.md": _whole([*_every(claims, made)])} if made else {}),
        readme.parent / TIMES: times.text(published),
        **({published / "optimizers" / "README.md": _whole(optimizers.page(published))} if compared else {}),
    }


def _whole(lines: Sequence[str]) -> str:
    """The text of a generated file."""
    return "\n".join([BEGIN, "", *lines]).rstrip() + "\n"


def stale(readme: Path, published: Path) -> list[Path]:
    """Return the files that `update` would change."""
    return [*_changed(readme, published)]


def update(readme: Path, published: Path) -> list[Path]:
    """Write the totals and the page of published results; return the files that changed."""
    changed = _changed(readme, published)
    for file, text in changed.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, text.encode())
    return [*changed]


def _changed(readme: Path, published: Path) -> dict[Path, str]:
    """The new texts of the files that do not have them yet."""
    texts = pages(readme, published)
    return {file: text for file, text in texts.items() if not file.is_file() or file.read_bytes() != text.encode()}


def _totals(claims: Claims, made: Sequence[str]) -> Iterator[str]:
    """The number of claims of each kind and verdict, by scale."""
    if not made:
        return
    yield f"| scale | of | measured claims | {' | '.join(VERDICTS)} | exact claims reproduced |"
    yield "|---|---|---|" + "---|" * (len(VERDICTS) + 1)
    sources = {figure.id: "later work" if figure.later else "the paper" for figure in all_figures()}
    for scale in made:
        for source in ("the paper", "later work"):
            rows = [row for row in claims[scale] if sources.get(row["figure"], "the paper") == source]
            measured = [row["verdict"] for row in rows if row.get("kind") != "exact"]
            exact = [row["verdict"] for row in rows if row.get("kind") == "exact"]
            counts = [str(len(measured)), *(str(measured.count(verdict)) for verdict in VERDICTS)]
            share = f"{exact.count('reproduced')} of {len(exact)}" if exact else NOTHING
            if rows:
                yield f"| `{scale}` | {source} | {' | '.join(counts)} | {share} |"
    for scale in made:
        if earlier := {row["figure"] for row in _earlier(claims[scale])}:
            yield ""
            are = "figure is still that" if len(earlier) == 1 else "figures are still those"
            yield f"At `{scale}` scale {len(earlier)} {are} of the first edition of the claims."


def _earlier(rows: Sequence[Row]) -> list[Row]:
    """The claims that were judged by their first edition, which had no kinds."""
    return [row for row in rows if "kind" not in row]


def _highlights(claims: Claims, made: Sequence[str], link: str) -> Iterator[str]:
    """The measured numbers of a few claims."""
    rows = {(scale, row["figure"], row["claim"]): row for scale in made for row in claims[scale]}
    lines = []
    for figure, claim, where in HIGHLIGHTS:
        mine = {scale: rows[scale, figure, claim] for scale in made if (scale, figure, claim) in rows}
        if mine:
            first = next(iter(mine.values()))
            picture = f"[{figure}]({link}/{[*mine][-1]}/figures/{figure}.png)"
            cells = [_measured(mine[scale]) if scale in mine else NOTHING for scale in made]
            lines.append(f"| {picture} | {where}: {first['statement']} | {limit(first)} | {' | '.join(cells)} |")
    if lines:
        yield f"| figure | measured | threshold | {' | '.join(made)} |"
        yield "|---|---|---|" + "---|" * len(made)
        yield from lines


def _every(claims: Claims, made: Sequence[str]) -> Iterator[str]:
    """Every claim of the published figures, with its measured number and verdict at each scale."""
    yield from (
        "# Every claim",
        "",
        "The measured number (below the paper's scale the median over seeds) and the verdict:",
    )
    yield "✓ reproduced, ✗ not reproduced, ? undecided. E marks exact claims, identities that only a bug can break."
    yield from ("[The paper's words, and the first edition's verdicts](../claims.md).", "")
    yield f"| figure | claim | | threshold | {' | '.join(made)} |"
    yield "|---|---|---|---|" + "---|" * len(made)
    found: dict[tuple[str, str], dict[str, Row]] = {}
    for scale in made:
        for row in claims[scale]:
            found.setdefault((row["figure"], row["claim"]), {})[scale] = row
    for (figure, claim), mine in sorted(found.items(), key=lambda item: item[0][0]):
        row = next(iter(mine.values()))
        exact = " E" if row.get("kind") == "exact" else ""
        cells = [_measured(mine[scale]) if scale in mine else NOTHING for scale in made]
        statement = row["statement"].replace("|", "&#124;")
        yield f"| {figure} | {claim}{exact} | {statement} | {limit(row)} | {' | '.join(cells)} |"


def _measured(row: Row) -> str:
    number = NOTHING if row["measured"] is None else f"{row['measured']:.3g}"
    return f"{number} {SIGNS.get(row['verdict'], row['verdict'])}"


def _table(claims: Claims, published: Path) -> Iterator[str]:
    """The number of claims reproduced per figure and scale."""
    yield f"| figure | | {' | '.join(SCALES)} |"
    yield "|---|---|" + "---|" * len(SCALES)
    for figure in all_figures():
        cells = [_cell(figure, scale, claims[scale], published) for scale in SCALES]
        if any(cell != NOTHING for cell in cells):
            yield f"| {figure.id} | {figure.title.replace('|', '&#124;')} | {' | '.join(cells)} |"
    totals = (f"**{summary(rows)}**" if rows else NOTHING for rows in claims.values())
    yield f"| all | | {' | '.join(totals)} |"


def _cell(figure: Figure, scale: str, claims: Sequence[Row], published: Path) -> str:
    """The number of claims reproduced, "drawn" for a figure without claims, a dash for an unpublished one."""
    place = f"{scale}/figures/{figure.id}"
    if not (published / f"{place}.json").is_file():
        return NOTHING
    drawn = (published / f"{place}.png").is_file()
    mine = [row for row in claims if row["figure"] == figure.id]
    text = summary(mine) + EARLIER * bool(_earlier(mine)) if mine else "drawn" if drawn else "not drawn"
    return f"[{text}]({place}.png)" if drawn else text


def _spent(scale: str, folder: Path) -> Iterator[str]:
    """A line with the time and the machines of a scale."""
    timing: list[Row] = read_json(folder / "timing.json", [])
    if not timing:
        return
    machines: list[Row] = read_json(folder / "environment.json", [])
    on = dict.fromkeys(_machine(table) for table in machines)
    trained, seconds = (sum(row[key] for row in timing) for key in ("trained", "seconds"))
    stored = max(row["reused"] for row in timing)
    # Times of drawing say nothing about a scale whose runs were trained before.
    words = (
        f"{trained} runs trained, {_duration(seconds)} in all" if trained >= stored else f"{stored} stored runs drawn"
    )
    yield f"- {scale}: {words}" + (f"; {', '.join(on)}" if on else "")


def _machine(environment: Row) -> str:
    device = environment.get("device", "cpu")
    return (
        f"{environment.get('processor', device) if device == 'cpu' else device}, torch {environment.get('torch', '?')}"
    )


def _duration(seconds: float) -> str:
    for unit, size in (("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.0f} seconds"
