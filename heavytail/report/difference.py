"""The difference between two reproductions, called A and B: claims, figures, machines; and its page.

Claims are sorted by importance: those that B no longer reproduces, those that only B reproduces, other changes of the
verdict, then changes of the number alone. Within these, the largest changes come first, in units of the threshold as
margins are (docs/formats.md). Exact claims come first where the verdict differs, and last where only the number does.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from heavytail.files import Row, write_result
from heavytail.report.files import VERDICTS, check_folder, read_claims, read_figures
from heavytail.report.page import (
    Cell,
    Section,
    Table,
    facts_of,
    four_digits,
    picture_of,
    render,
    tally_of,
    verdict_cell,
)

LOST, GAINED, OTHER, MOVED = "no longer reproduced", "reproduced now", "other verdict", "other number"
KINDS = (LOST, GAINED, OTHER, MOVED)
COLUMNS = ("figure", "claim", "change", "A", "B", "measured", "threshold", "distance")


@dataclass(frozen=True)
class Side:
    """One of the two reproductions: its folder as given, its claims by (figure, claim), and its figures by id."""

    folder: Path
    claims: dict[tuple[str, str], Row]
    figures: dict[str, Row]

    @classmethod
    def read(cls, folder: Path) -> Side:
        """Read the results of `reproduce`, as written or as published in docs/results.

        Raises:
            StoreError: the folder has no such results, or a damaged file.
        """
        check_folder(folder)
        claims = {(row["figure"], row["claim"]): row for row in read_claims(folder)}
        return cls(folder, claims, {row["figure"]: row for row in read_figures(folder)})

    @cached_property
    def facts(self) -> dict[str, str]:
        """Folder, scale, number of figures, versions, machine, and number of claims by verdict."""
        claims = [*self.claims.values()]
        verdicts = {f"claims {name}": str(number) for name, number in tally_of(claims).items() if number}
        return {"folder": str(self.folder), **dict(facts_of(claims, [*self.figures.values()])), **verdicts}


@dataclass(frozen=True)
class Change:
    """A claim that both reproductions have, with different verdicts or numbers.

    Attributes:
        kind: one of KINDS.
        a, b: its rows of claims.json.
    """

    kind: str
    a: Row
    b: Row

    @property
    def distance(self) -> float | None:
        """B's number minus A's in units of A's threshold; None unless both are finite."""
        one, two = self.a["measured"], self.b["measured"]
        return None if one is None or two is None else (two - one) / _unit(self.a["threshold"])

    @property
    def redefined(self) -> bool:
        """Whether the claim itself has changed: its threshold, or the quantity that it measures."""
        return any(self.a[key] != self.b[key] for key in ("comparison", "threshold", "statement"))

    @property
    def importance(self) -> tuple[int, bool, int, float]:
        """Sorts the most important change first."""
        exact, size = self.b.get("kind") == "exact", math.inf if self.distance is None else abs(self.distance)
        return KINDS.index(self.kind), exact == (self.kind == MOVED), VERDICTS.index(self.b["verdict"]), -size

    def to_dict(self) -> dict[str, Any]:
        """Return the change as plain data."""
        kept = ("verdict", "measured", "comparison", "threshold", "scale")
        sides = {name: {key: row[key] for key in kept} for name, row in (("a", self.a), ("b", self.b))}
        about = {"figure": self.b["figure"], "claim": self.b["claim"], "change": self.kind}
        return {**about, "distance": self.distance, "redefined": self.redefined, **sides}

    def cells(self) -> list[str | Cell]:
        """Return a cell for each of COLUMNS."""
        a, b = self.a, self.b
        measured = [four_digits(row["measured"]) for row in (a, b)]
        return [
            Cell(b["figure"], target=b["figure"]),
            b["claim"],
            Cell(self.kind, note="the claim itself has changed" if self.redefined else ""),
            verdict_cell(a),
            verdict_cell(b),
            " \N{RIGHTWARDS ARROW} ".join(measured),
            ", ".join(dict.fromkeys([limit(a), limit(b)])),
            "" if self.distance is None else f"{self.distance:+.2g}",
        ]


@dataclass(frozen=True)
class Difference:
    """Everything in which two reproductions differ."""

    a: Side
    b: Side

    @cached_property
    def changes(self) -> list[Change]:
        """The claims of both whose verdict or number differs, the most important first."""
        changes = []
        for name, one in self.a.claims.items():
            two = self.b.claims.get(name)
            if two is not None and (kind := _kind(one, two)):
                changes.append(Change(kind, one, two))
        return sorted(changes, key=lambda change: change.importance)

    @property
    def lost(self) -> list[str]:
        """The claims, "figure claim", that A reproduces, and that B does not reproduce or does not have."""
        held = [name for name, row in self.a.claims.items() if row["verdict"] == "reproduced"]
        return [" ".join(name) for name in held if self.b.claims.get(name, {}).get("verdict") != "reproduced"]

    def figures_only(self, side: Side) -> list[str]:
        """Return the figures that are drawn in one reproduction only."""
        other = self.b if side is self.a else self.a
        return sorted(_drawn(side) - _drawn(other))

    def claims_only(self, side: Side) -> list[Row]:
        """Return the claims that one reproduction only has, of figures that both have."""
        other = self.b if side is self.a else self.a
        shared = {figure for figure, _ in other.claims}
        return [row for name, row in side.claims.items() if name not in other.claims and name[0] in shared]

    def facts(self) -> list[tuple[str, str, str]]:
        """Return name, A's value and B's value of each fact; a dash where one has none."""
        names = dict.fromkeys([*self.a.facts, *self.b.facts])
        return [(name, self.a.facts.get(name, "–"), self.b.facts.get(name, "–")) for name in names]

    def to_dict(self) -> dict[str, Any]:
        """Return the difference as plain data."""
        sides = (("a", self.a), ("b", self.b))
        return {
            **{name: side.facts for name, side in sides},
            "claims": [change.to_dict() for change in self.changes],
            "lost": self.lost,
            "figures_only": {name: self.figures_only(side) for name, side in sides},
            "claims_only": {
                name: [f"{row['figure']} {row['claim']}" for row in self.claims_only(side)] for name, side in sides
            },
        }


def write_difference(difference: Difference, file: Path) -> None:
    """Write the page of a difference.

    Raises:
        StoreError: the file cannot be written.
    """
    a, b = difference.a, difference.b
    changes = difference.changes
    tally = {kind: sum(change.kind == kind for change in changes) for kind in KINDS}
    sections = [_facts_section(difference)]
    if changes:
        sections.append(Section("Claims that changed", id="all", tables=[_table(changes)]))
    if alone := [(side, row) for side in (a, b) for row in difference.claims_only(side)]:
        rows = [(row["figure"], row["claim"], _letter(difference, side), verdict_cell(row)) for side, row in alone]
        sections.append(Section("Claims that only one has", tables=[Table(("figure", "claim", "in", "verdict"), rows)]))
    by_figure = {name: [one for one in changes if one.b["figure"] == name] for name in (*a.figures, *b.figures)}
    first = {name: changes.index(mine[0]) if mine else len(changes) for name, mine in by_figure.items()}
    made = [
        _figure_section(difference, name, by_figure[name]) for name in sorted(by_figure, key=lambda n: (first[n], n))
    ]
    sections += [section for section in made if section is not None]
    note = (
        "Claims whose verdict or number differs, the most important first; distances are in units of the threshold. "
        "Pictures whose plotted numbers are equal are left out."
    )
    page = render("heavytail: two reproductions", sections, note=note, tally=tally)
    write_result(file, page)


def _facts_section(difference: Difference) -> Section:
    rows = [
        (name, Cell(one, "" if one == two else "differs"), Cell(two, "" if one == two else "differs"))
        for name, one, two in difference.facts()
    ]
    tables = [Table(("", "A", "B"), rows)]
    lines = [
        (f"drawn in {_letter(difference, side)} only", ", ".join(names))
        for side in (difference.a, difference.b)
        if (names := difference.figures_only(side))
    ]
    return Section("What is compared", tables=[*tables, *([Table((), lines)] if lines else [])])


def _figure_section(difference: Difference, name: str, changes: Sequence[Change]) -> Section | None:
    """The changes and the pictures of a figure; None if there are neither."""
    a, b = (side.figures.get(name) for side in (difference.a, difference.b))
    same = a is not None and b is not None and a.get("panels") == b.get("panels") and a["missing"] == b["missing"]
    if same and not changes:
        return None
    record = b or a
    assert record is not None
    pictures = [
        picture_of(one, side.folder / "figures", f"{letter}: {side.folder}, {one['scale']} scale")
        for letter, side, one in (("A", difference.a, a), ("B", difference.b, b))
        if one is not None and not (same and letter == "A")
    ]
    where = "" if a and b else f" · in {'A' if a else 'B'} only"
    return Section(
        heading=record["title"],
        note=f"{name} · {record['paper']}{where}" + (" · the same plotted numbers in both" if same else ""),
        id=name,
        pictures=pictures,
        tables=[_table(changes)] if changes else [],
        verdicts=Counter(change.kind for change in changes),
    )


def _table(changes: Sequence[Change]) -> Table:
    kinds = [change.kind for change in changes]
    return Table(COLUMNS, [change.cells() for change in changes], numeric=(7,), verdicts=kinds)


def _letter(difference: Difference, side: Side) -> str:
    return "A" if side is difference.a else "B"


def _kind(a: Row, b: Row) -> str:
    """What has changed of a claim; "" for nothing."""
    before, now = a["verdict"], b["verdict"]
    if before != now:
        lost = before == "reproduced" and now != "not run"
        return LOST if lost else GAINED if now == "reproduced" else OTHER
    return MOVED if a["measured"] != b["measured"] else ""


def _drawn(side: Side) -> set[str]:
    return {name for name, record in side.figures.items() if record["missing"] is None}


def limit(claim: Row) -> str:
    """Return the comparison and the threshold of a claim."""
    return f"{claim['comparison']} {four_digits(claim['threshold'])}"


def _unit(threshold: Any) -> float:
    """The unit of a claim's margin: its threshold, 1 for 0, half the width of an interval."""
    if isinstance(threshold, list):
        return float(abs(threshold[-1] - threshold[0]) / 2) or 1.0
    return float(abs(threshold)) or 1.0
