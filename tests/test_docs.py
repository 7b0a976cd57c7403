"""The pages of docs/: links lead to files, formats.md names the fields that files have, AGENTS.md is short."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from heavytail.cli import main
from heavytail.experiment.store import RunStore
from heavytail.report.tables import class_table, group_table
from heavytail.results.claims import Claim
from heavytail.results.figure import all_figures
from tests.problems import ROOT, made_up, tiny

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FORMATS = (ROOT / "docs" / "formats.md").read_text()
RESULTS = ROOT / "docs" / "results" / "quick"


def fields(after: str) -> set[str]:
    """The names in the first column of the table that follows a piece of text in formats.md."""
    table = FORMATS.split(after)[1].lstrip().partition("\n\n")
    lines = (table[0] if table[0].startswith("|") else table[2].partition("\n\n")[0]).splitlines()
    return {name for line in lines[2:] for name in re.findall(r"`([\w/]+)`", line.split(" | ")[0])}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    """Every relative link of a page leads to a file or a folder."""
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_fields_of_claims_and_figures_are_documented() -> None:
    """formats.md names exactly the fields of claims.json and figNN.json."""
    claim = Claim("fig99", "c", "s", 1.0, "<=", 1.0, "quick").to_dict()
    figure = json.loads((RESULTS / "figures" / "fig04.json").read_text())
    assert fields("`claims.json`, one object per claim:") == set(claim)
    assert fields("`figures/figNN.json`:") == set(figure) - {"note"}


def test_the_columns_of_tables_are_documented() -> None:
    """formats.md names exactly the columns of history.parquet and groups.parquet."""
    history = made_up(tiny())
    history.arrays |= {"train/correct": history.arrays["train/class_loss"]}
    documented = fields("`groups.parquet`: the same per frequency group.")
    assert documented == set(class_table(history).columns) | set(group_table(history).columns)


def test_the_fields_of_a_record_are_documented(tmp_path: Path) -> None:
    """formats.md names every field of a stored run's status.json, and every file."""
    store, spec = RunStore(tmp_path), tiny()
    store.save(made_up(spec), step=spec.steps)
    section = FORMATS.split("## The run store")[1].split("\n## ")[0]
    folder = store.folder(spec)
    assert set(json.loads((folder / "status.json").read_text())) <= set(re.findall(r"`(\w+)`", section))
    names = {re.sub(r"-\w+\.", "-SUM.", file.name) for file in folder.iterdir()}
    assert names <= set(re.findall(r"`([\w.-]+)`", section))


def test_agents_is_short() -> None:
    """AGENTS.md has at most 40 lines."""
    assert len((ROOT / "AGENTS.md").read_text().splitlines()) <= 40


def test_the_index_of_figures_is_true(capsys: pytest.CaptureFixture[str]) -> None:
    """figures.md names the file and the presets of every published figure, as `heavytail list figures` does."""
    assert main(["list", "figures"]) == 0
    printed = capsys.readouterr().out
    rows = re.findall(r"^\| ([\w-]+) \| `(.*?)` \| (.*) \|$", (ROOT / "docs" / "figures.md").read_text(), re.M)
    assert [row[0] for row in rows] == sorted(file.stem for file in (RESULTS / "figures").glob("*.json"))
    for name, file, presets in rows:
        assert (ROOT / "heavytail" / file).is_file()
        origin = f"{file}; presets: {presets.replace('`', '')}" if presets else file
        assert re.search(rf"^  {name} .*{re.escape(f'({origin})')}$", printed, re.M)


def test_claims_are_documented() -> None:
    """docs/claims.md has every claim of a figure of the paper, its threshold, kind and quote, in their order."""
    text = (ROOT / "docs" / "claims.md").read_text()
    section = text.split("## The second edition")[1].split("\n## ")[0]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in section.splitlines()]
    documented = [row[:4] for row in cells if row and re.match(r"(fig|prop|thm)\d", row[0])]
    claims = []
    for made in all_figures():
        if made.id.startswith(("fig", "prop", "thm")):
            for rule in made.rules:
                name = f"{rule.id} E" if rule.kind == "exact" else rule.id
                threshold = f"{rule.comparison} {_shown(rule.threshold)}"
                claims.append([made.id, name, threshold, rule.quote.replace("|", "\\|")])
    assert documented == claims
    exact = sum(claim[1].endswith(" E") for claim in claims)
    assert f"{len(claims) - exact} measured and {exact} exact claims." in text


def test_claims_beyond_the_paper_are_documented() -> None:
    """docs/claims.md has every claim of the other figures, its threshold, kind and quote, in their order."""
    section = (ROOT / "docs" / "claims.md").read_text().split("## Beyond the paper")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("| ")]
    others = [made for made in all_figures() if not made.id.startswith(("fig", "prop", "thm"))]
    expected = [
        [
            made.id,
            f"{rule.id} E" if rule.kind == "exact" else rule.id,
            f"{rule.comparison} {_shown(rule.threshold)}",
            rule.quote or "–",
        ]
        for made in others
        for rule in made.rules
    ]
    assert rows[1:] == expected


def _shown(threshold: float | tuple[float, float]) -> str:
    if isinstance(threshold, tuple):
        return f"[{threshold[0]:g}, {threshold[1]:g}]"
    return f"{threshold:g}"
