"""Claims of figures 4 and 16, recomputed from the tables of their runs by code that shares nothing with the figures."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import polars as pl
import pytest

from heavytail.experiment.store import RunStore
from heavytail.report.tables import write_tables
from heavytail.results.claims import Claim
from heavytail.results.figure import figure
from heavytail.results.results import Results
from heavytail.train.options import Options
from heavytail.train.progress import display
from heavytail.train.runner import search

SEEDS = (11, 12, 13)
HOLDS: dict[str, Callable[[float, Any], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
LINEAR = """
name = "linear"
title = "made small"
[run]
data = { name = "random-heavy-tail", groups = 5 }
model = "linear"
steps = 40
[sweep]
lr = { decades = { gd = [-2, -1], adam = [-3, -2] } }
optim = [{ name = "gd", momentum = 0.9 }, { name = "adam", beta1 = 0.9 }]
[scale.small]
"""
LONG = """
name = "linear-long"
title = "made small"
[run]
data = { name = "random-heavy-tail", groups = 5 }
model = "linear"
steps = 300
[sweep]
lr = 0.03
optim = [{ name = "gd", momentum = 0.0 }]
[scale.small]
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Real runs of both problems, searched and judged as at small scale."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "linear.toml").write_text(LINEAR)
    (folder / "linear-long.toml").write_text(LONG)
    made = Results(RunStore(folder), "small", presets=folder)
    sweeps = [made.sweep(ref) for name in ("fig04", "fig16") for ref in figure(name).sweeps]
    with display(quiet=True) as shown:
        assert search(sweeps, made.store, Options(folder, "cpu", 1), shown) == []
    return made


def tables(results: Results, name: str, label: str, out: Path) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of history.parquet of every verdict seed."""
    (ref,) = figure(name).sweeps
    for seed, history in zip(SEEDS, results.histories(ref, label), strict=True):
        assert history.spec.seed == seed
        folder = out / f"{label}-{seed}"
        folder.mkdir()
        write_tables(history, folder)
        yield pl.read_parquet(folder / "history.parquet").to_dicts()


def curves(table: list[dict[str, Any]]) -> tuple[list[float], list[list[float]]]:
    """Return the overall loss at every step, and that of every group of classes with equal counts, frequent first.

    The classes of one group have one count in this data set, and no two groups share it.
    """
    sums: dict[tuple[int, int], tuple[float, int]] = {}
    for row in table:
        if row["split"] == "train":
            for group in (row["count"], -1):
                total, count = sums.get((group, row["step"]), (0.0, 0))
                sums[group, row["step"]] = (total + row["loss"] * row["count"], count + row["count"])
    steps = sorted({step for _, step in sums})
    groups = sorted({group for group, _ in sums}, reverse=True)
    *by_group, overall = ([sums[group, step][0] / sums[group, step][1] for step in steps] for group in groups)
    return overall, by_group


def final(curve: list[float]) -> float:
    """Return the mean over the last tenth of the rows."""
    rows = curve[len(curve) - max(1, len(curve) // 10) :]
    return sum(rows) / len(rows)


def check(claims: list[Claim], expected: dict[str, list[float]]) -> None:
    """Compare claims with recomputed values per seed, their median, and the verdict that these give."""
    measured = {claim.claim: claim for claim in claims if claim.kind == "measured"}
    assert measured.keys() == expected.keys()
    for name, values in expected.items():
        claim = measured[name]
        assert claim.per_seed == pytest.approx(values, rel=1e-5), name
        assert claim.measured == pytest.approx(median(values), rel=1e-5), name
        holds = {HOLDS[claim.comparison](value, claim.threshold) for value in values}
        decided = {frozenset({True}): "reproduced", frozenset({False}): "not reproduced"}
        assert claim.verdict == decided.get(frozenset(holds), "undecided"), name


def test_figure_4(results: Results, tmp_path: Path) -> None:
    """The claims of figure 4 agree, seed by seed, with their definitions written as loops over history.parquet."""
    values: dict[str, list[float]] = {}
    both = zip(*(tables(results, "fig04", label, tmp_path) for label in ("gd+m", "adam+m")), strict=True)
    for gd_table, adam_table in both:
        (gd, gd_groups), (adam, adam_groups) = curves(gd_table), curves(adam_table)
        ends = [final(curve) for curve in gd_groups]
        num = len(ends)
        ranks = [sum(other < end for other in ends) for end in ends]
        ordered = 1 - 6 * sum((rank - g) ** 2 for g, rank in enumerate(ranks)) / (num * (num**2 - 1))
        rare = gd_groups[-1]
        for name, value in {
            "ordered": ordered,
            "rare-gap": final(adam_groups[-1]) / final(rare),
            "adam-ahead": final(adam) / final(gd),
            "adam-lowers-all": max(final(curve) / curve[0] for curve in adam_groups),
            "rare-first-rises": max(rare) / rare[0],
            "frequent-oscillates": max(b - a for a, b in zip(gd_groups[0], gd_groups[0][1:], strict=False))
            / gd_groups[0][0],
        }.items():
            values.setdefault(name, []).append(value)
        assert min(final(adam) / adam[0], final(gd) / gd[0]) < 0.9  # informative
        assert max(final(adam) / adam[0], final(rare) / rare[0]) > 0.01
    check(figure("fig04").claims(results), values)
    (mean,) = (claim for claim in figure("fig04").claims(results) if claim.kind == "exact")
    assert (mean.claim, mean.verdict) == ("overall-is-mean", "reproduced")


def test_figure_16(results: Results, tmp_path: Path) -> None:
    """The claims of figure 16 agree, seed by seed, with the losses at 1 %, 10 % and 100 % of the run."""
    values: dict[str, list[float]] = {}
    for table in tables(results, "fig16", "gd-m", tmp_path):
        _, groups = curves(table)
        assert all(len(curve) == 301 and math.isfinite(sum(curve)) for curve in groups)
        for name, value in {
            "rare-rises": groups[-1][3] / groups[-1][0],
            "below-only-after-1k": groups[-1][30] / groups[-1][0],
            "all-fall": max(curve[300] / curve[0] for curve in groups),
        }.items():
            values.setdefault(name, []).append(value)
    check(figure("fig16").claims(results), values)
