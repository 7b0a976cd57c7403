"""The difference between two reproductions: what has changed, in which order, and its page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from heavytail.errors import StoreError
from heavytail.report.difference import GAINED, LOST, MOVED, OTHER, Difference, Side, write_difference
from tests.test_report import HOSTILE, claim_row, figure_record, poisoned, write_tables


def row(name: str, verdict: str = "reproduced", measured: float | None = 0.5, **changes: Any) -> dict[str, Any]:
    return claim_row(figure="fig04", claim=name, verdict=verdict, measured=measured, **changes)


def sides(tmp_path: Path, a: list[dict[str, Any]], b: list[dict[str, Any]], **figure: Any) -> Difference:
    """The difference between two folders with these claims of figure 4."""
    for name, rows in (("a", a), ("b", b)):
        (tmp_path / name).mkdir()
        write_tables(tmp_path / name, figure_record(**figure), rows)
    return Difference(Side.read(tmp_path / "a"), Side.read(tmp_path / "b"))


def test_changes_are_sorted_by_importance(tmp_path: Path) -> None:
    """Lost verdicts, then gained, then other ones, then numbers; the largest in units of the threshold first."""
    before = [row(name) for name in ("lost", "doubtful", "gone", "small", "large", "none", "equal")]
    before += [row("exact-lost", kind="exact"), row("exact", kind="exact"), row("gained", "not reproduced")]
    after = [
        row("lost", "not reproduced", 3.0),
        row("doubtful", "undecided", 30.0),
        row("gone", "not run", None),
        row("small", measured=0.6),
        row("large", measured=-0.9),
        row("none", measured=None),
        row("equal"),
        row("exact-lost", "not reproduced", 1.5, kind="exact"),
        row("exact", measured=0.9, kind="exact"),
        row("gained", "reproduced"),
    ]
    found = sides(tmp_path, before, after)
    assert [(change.b["claim"], change.kind) for change in found.changes] == [
        ("exact-lost", LOST),
        ("lost", LOST),
        ("doubtful", LOST),
        ("gained", GAINED),
        ("gone", OTHER),
        ("none", MOVED),
        ("large", MOVED),
        ("small", MOVED),
        ("exact", MOVED),
    ]
    assert found.lost == ["fig04 lost", "fig04 doubtful", "fig04 gone", "fig04 exact-lost"]


@pytest.mark.parametrize(
    ("threshold", "distance"), [(2.0, 0.5), (-2.0, 0.5), (0.0, 1.0), ([1.0, 5.0], 0.5), ([1.0, 1.0], 1.0)]
)
def test_distances_have_the_unit_of_margins(tmp_path: Path, threshold: Any, distance: float) -> None:
    """A distance is in units of the threshold: 1 for 0, half the width of an interval."""
    found = sides(tmp_path, [row("c", threshold=threshold)], [row("c", measured=1.5, threshold=threshold)])
    assert found.changes[0].distance == distance


@pytest.mark.parametrize("field", ["comparison", "threshold", "statement"])
def test_a_claim_that_itself_has_changed_is_marked(tmp_path: Path, field: str) -> None:
    """Another threshold or quantity is another claim: its change says so."""
    other = {"comparison": ">=", "threshold": 3.0, "statement": "other"}[field]
    found = sides(tmp_path, [row("c")], [row("c", measured=0.6, **{field: other})])
    assert found.changes[0].redefined
    assert found.to_dict()["claims"][0]["redefined"]


def test_what_only_one_has(tmp_path: Path) -> None:
    """Claims of shared figures, and drawn figures, that only one has."""
    found = sides(tmp_path, [row("old"), row("both")], [row("new"), row("both")], missing=None)
    assert [one["claim"] for one in found.claims_only(found.a)] == ["old"]
    assert [one["claim"] for one in found.claims_only(found.b)] == ["new"]
    assert found.figures_only(found.a) == found.figures_only(found.b) == []
    (tmp_path / "b" / "figures" / "fig04.json").unlink()
    less = Difference(found.a, Side.read(tmp_path / "b"))
    assert less.figures_only(less.a) == ["fig04"]


def test_equal_results_have_no_changes(tmp_path: Path) -> None:
    """A folder and itself: no change, and a page that says so without pictures."""
    found = sides(tmp_path, [row("c")], [row("c")], missing=None)
    assert found.changes == []
    write_difference(found, tmp_path / "page.html")
    assert "<h2>panel" not in (tmp_path / "page.html").read_text()
    assert "<figure" not in (tmp_path / "page.html").read_text()


def test_markup_is_text(tmp_path: Path) -> None:
    """Names of claims and figures that are markup are shown as text."""
    found = sides(tmp_path, [], [poisoned(claim_row())])
    (tmp_path / "c").mkdir()
    write_tables(tmp_path / "c", poisoned(figure_record()), [poisoned(claim_row(measured=0.5))])
    write_difference(Difference(found.b, Side.read(tmp_path / "c")), tmp_path / "page.html")
    assert HOSTILE not in (tmp_path / "page.html").read_text()


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    """A file in the way is one line."""
    found = sides(tmp_path, [], [])
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write .*page\.html"):
        write_difference(found, tmp_path / "file" / "page.html")
