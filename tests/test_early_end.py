"""Ending hopeless runs of a search early: it never changes the selected step size, and it saves their time."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heavytail.cli import main
from heavytail.experiment.search import Grid, select, undecided
from heavytail.experiment.spec import RunSpec
from heavytail.experiment.store import UNSTABLE, Outcome, RunStore
from heavytail.experiment.sweep import Sweep
from heavytail.train import cost
from heavytail.train.engine import train
from heavytail.train.executors import attempt
from heavytail.train.options import Options
from heavytail.train.runner import remember
from tests.problems import made_up, tiny, tiny_preset
from tests.reference import sweep as reference
from tests.test_sweep import HALVES, TABLE, candidates, exponent, outcome, sweep

STORED = Path(__file__).parent / "fixtures" / "grids.json"
UNSTABLE_LR = 30.0  # of `tiny`: its loss rises at once, and it does not diverge


def whole(final: float, peak: float, late: bool = False) -> Outcome:
    """Return the outcome of a whole run.

    Args:
        final: its final loss.
        peak: its largest loss relative to the initial one.
        late: whether a run that diverges does so before an unstable loss is recorded.
    """
    unstable = peak > UNSTABLE and not (late and math.isinf(final))
    return replace(outcome(final, peak), unstable=(1, min(peak, 9.0)) if unstable else None)


def searched(
    table: reference.Table, grid: Grid, *, late: bool = False, seeds: tuple[int, ...] = (0, 1)
) -> tuple[float | None, set[tuple[float, int]], set[tuple[float, int]]]:
    """Search a table of outcomes with runs that end early; return the choice, all runs, and the whole ones."""
    search, done = sweep(grid, seeds), {}

    def lookup(spec: RunSpec) -> Outcome | None:
        return done.get((exponent(spec), spec.seed, spec.may_end))

    for _ in range(40):
        proposed = search.propose(lookup)
        if not proposed:
            best = search.best("gd", lookup)
            assert best is not None
            finished = {(e, seed) for (e, seed, _), one in done.items() if not one.ended}
            chosen = best.chosen.exponent if best.chosen else None
            if chosen is None:
                assert not best.candidates[0].ended, "figures show the runs of the smallest step size"
            return chosen, {(e, seed) for e, seed, _ in done}, finished
        for spec in proposed:
            name = exponent(spec), spec.seed
            assert (*name, spec.may_end) not in done, "a run is proposed again"
            one = whole(*table[name], late)
            done[*name, spec.may_end] = one.early if spec.may_end else one
    raise AssertionError("the search does not end")


# -- the selection -----------------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(table=TABLE, low=st.integers(-4, 0), length=st.integers(0, 2), refine=st.integers(0, 2), late=st.booleans())
def test_the_selection_is_that_of_whole_runs(
    table: reference.Table, low: int, length: int, refine: int, late: bool
) -> None:
    """On any outcomes - losses that rise first and end lowest included - the search selects what it would select with
    all runs trained to the end, from the same step sizes."""
    grid = Grid(tuple(float(e) for e in range(low, low + length + 1)), refine)
    chosen, runs, _ = searched(table, grid, late=late)
    expected, wanted = reference.search(table, grid.exponents, refine, (0, 1))
    assert chosen == expected
    assert runs == wanted


@settings(max_examples=200)
@given(table=TABLE, exponents=st.sets(st.sampled_from(HALVES), min_size=1, max_size=6), data=st.data())
def test_what_is_decided_holds_for_every_end(
    table: reference.Table, exponents: set[float], data: st.DataObject
) -> None:
    """If no ended run is needed, any final losses of the ended runs give the same selection."""
    part = {k: v for k, v in table.items() if k[0] in exponents}
    known = [
        replace(c, outcomes=tuple(whole(*part[c.exponent, spec.seed]).early for spec in c.specs))
        for c in candidates(part)
    ]
    if undecided(known):
        return
    chosen = select("gd", known).chosen
    final = st.sampled_from([0.0, 0.1, 0.5, 1.0, 7.0, math.inf])
    for candidate in known:
        for spec, one in zip(candidate.specs, candidate.outcomes, strict=True):
            if one.ended:
                part[candidate.exponent, spec.seed] = data.draw(final), one.peak_ratio
    other = select("gd", candidates(part)).chosen
    assert (chosen and chosen.exponent) == (other and other.exponent)


def grids() -> list[dict[str, Any]]:
    """Return the stored grids: per step size the recorded losses, null from divergence on."""
    stored: list[dict[str, Any]] = json.loads(STORED.read_text())
    return stored


def facts(grid: dict[str, Any]) -> tuple[reference.Table, dict[float, int], dict[float, int]]:
    """Return the outcomes of a stored grid, and per step size the last row of the whole run and of the ended one."""
    table, last, short = {}, {}, {}
    for e, losses in zip(grid["exponents"], grid["losses"], strict=True):
        finite = [loss for loss in losses if loss is not None]
        done = len(finite) == len(losses)
        table[e, 0] = (losses[-1], max(losses) / losses[0]) if done else (math.inf, math.inf)
        last[e] = len(finite) - 1 if done else len(finite)
        unstable = [row for row, loss in enumerate(finite) if loss > UNSTABLE * finite[0]]
        short[e] = min(last[e], unstable[0] + 1) if unstable else last[e]  # it ends before the next record
    return table, last, short


def searches() -> list[tuple[dict[str, Any], Grid]]:
    """Return each stored grid as searches: all step sizes at once, and half powers around the best power of ten."""
    found = []
    for grid in grids():
        exponents = tuple(grid["exponents"])
        found.append((grid, Grid(exponents)))
        if exponents[1] - exponents[0] == 0.5:
            found.append((grid, Grid(tuple(e for e in exponents[1:-1] if e == int(e)), refine=1)))
    return found


@pytest.mark.parametrize(
    ("stored", "grid"), searches(), ids=lambda one: one["optimizer"] if isinstance(one, dict) else ""
)
def test_stored_histories_select_the_same(stored: dict[str, Any], grid: Grid) -> None:
    """The searches of real histories, with and without early ends: the same step size."""
    table, _, _ = facts(stored)
    if grid.refine is None:
        expected = reference.select(table, list(grid.exponents), (0,))
    else:
        expected, _ = reference.search(table, grid.exponents, grid.refine, (0,))
    assert searched(table, grid, seeds=(0,))[0] == expected


def test_a_third_of_hopeless_step_sizes_costs_at_most_three_quarters() -> None:
    """Of all stored searches in which at least a third of the runs are unstable or diverge: their updates, with early
    ends, are at most 0.75 of those of all runs to the end."""
    spent, all_rows = 0, 0
    for stored, grid in searches():
        table, last, short = facts(stored)
        _, runs, finished = searched(table, grid, seeds=(0,))
        hopeless = [e for e, _ in runs if table[e, 0][1] > UNSTABLE]
        if 3 * len(hopeless) >= len(runs):
            spent += sum(last[e] if (e, 0) in finished else short[e] for e, _ in runs)
            all_rows += len(runs) * (len(stored["losses"][0]) - 1)
    assert all_rows > 0
    assert spent <= 0.75 * all_rows


def test_stored_histories_are_of_all_kinds() -> None:
    """Among the stored grids, unstable step sizes end lowest of all in some, rise to the end in many, and diverge."""
    lowest = rising = diverged = 0
    for stored in grids():
        table, _, _ = facts(stored)
        smallest = min(final for final, _ in table.values())
        for e, losses in zip(stored["exponents"], stored["losses"], strict=True):
            final, peak = table[e, 0]
            unstable = UNSTABLE < peak < math.inf
            lowest += unstable and final == smallest
            rising += unstable and final > losses[0]
            diverged += math.isinf(final)
    assert lowest >= 2
    assert rising >= 10
    assert diverged >= 10


# -- the engine --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"eval_every": 3},
        {"batch_size": 8, "train_stats": "running", "eval_every": 3},
        {"batch_size": 8},
        {"optim": {"name": "gd", "momentum": 0.9}},
    ],
)
def test_an_ended_run_is_continued_bit_for_bit(changes: dict[str, Any], tmp_path: Path) -> None:
    """A run ends after its first recorded loss above 1.05 times the initial one, says so, and continues to the same
    history as a run that was never ended."""
    spec = tiny(lr=UNSTABLE_LR, steps=20, **changes)
    store, other = RunStore(tmp_path / "a"), RunStore(tmp_path / "b")
    whole = train(spec, other, data_dir=tmp_path)
    assert whole.status == "done"
    first = int(whole.step[whole.loss > UNSTABLE * whole.loss[0]][0])
    history = train(replace(spec, may_end=True), store, data_dir=tmp_path)
    record = store.read(spec.key)[1]
    assert (history.status, record["status"], record["step"]) == ("interrupted", "interrupted", first + 1)
    assert history.ended == record["ended"]
    assert record["ended"].startswith(f"unstable: its loss at step {first} is ")
    assert store.outcome(spec) is None
    full = other.outcome(spec)
    assert full is not None
    short = store.outcome(replace(spec, may_end=True))
    assert repr(short) == repr(full.early)  # its final loss is NaN
    assert short is not None
    assert short.ended
    assert short.peak_ratio == float(whole.loss[whole.step == first][0] / whole.loss[0])
    again = attempt(replace(spec, may_end=True), store, Options(tmp_path))
    assert (again.kind, again.text) == ("finished", "ended")
    continued = train(spec, store, data_dir=tmp_path)
    assert continued.status == "done"
    assert continued.ended is None
    assert "ended" not in store.read(spec.key)[1]
    assert continued.arrays.keys() == whole.arrays.keys()
    for name, value in whole.arrays.items():
        np.testing.assert_array_equal(continued.arrays[name], value)


def test_a_stable_run_is_trained_to_its_end(tmp_path: Path) -> None:
    """A run that may end, and stays below 1.05 times its initial loss, is the same run, stored as such."""
    spec = tiny(lr=0.1)
    assert replace(spec, may_end=True).key == spec.key
    assert train(replace(spec, may_end=True), RunStore(tmp_path), data_dir=tmp_path).status == "done"
    assert "may_end" not in RunStore(tmp_path).read(spec.key)[0]


def test_only_losses_that_the_run_records_count(tmp_path: Path) -> None:
    """A run ended by a row that another spec does not record is not ended for that one."""
    store, spec = RunStore(tmp_path), tiny(steps=10)
    history = made_up(spec, "interrupted", end=3)
    history.arrays["train/loss"][3] = 2.0
    history.ended = "unstable"
    store.save(history, step=4, checkpoint={"x": np.ones(1)})
    assert store.outcome(replace(spec, may_end=True)) is not None
    assert store.outcome(replace(spec, eval_every=5, may_end=True)) is None


# -- whole searches ----------------------------------------------------------------------------------------------------

HOPELESS = tiny_preset(
    40,
    "seeds = [0]",
    'name = "gd"\nlr = { exponents = [-2, -1.5, -1, -0.5, 0, 0.5, 1.5, 2, 2.5] }',
    'name = "sign"\nlr = { decades = [-4, 1], refine = 1 }',
)


def steps(store: RunStore) -> int:
    """Return the updates of all runs."""
    return sum(record["step"] for _, _, record in store.records())


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    (tmp_path / "mine.toml").write_text(HOPELESS)
    return tmp_path / "mine.toml"


def whole_search(preset: Path, store: RunStore) -> Sweep:
    """Train a search with all runs to the end."""
    search = Sweep.load(preset)
    lookup = remember(store)
    while proposed := search.propose(lambda spec: None if spec.may_end else lookup(spec)):
        for spec in proposed:
            train(replace(spec, may_end=False), store, data_dir=preset.parent)
    return search


@pytest.mark.parametrize("executor", [
    ["--jobs", "1"],
    ["--jobs", "2"],
    ["--shard", "1/2", "--jobs", "1"],
    pytest.param(["--executor", "ray", "--jobs", "2"], marks=pytest.mark.cluster),
])  # fmt: skip
def test_every_executor_selects_what_whole_runs_select(
    executor: list[str], preset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """However the runs are trained: the step sizes of a search without early ends, by fewer updates."""
    whole, store = RunStore(tmp_path / "whole"), RunStore(tmp_path / "store")
    search = whole_search(preset, whole)
    command = ["sweep", str(preset), "--root", str(store.root), "--data-dir", str(tmp_path), *executor]
    if "--shard" in executor:
        for _ in range(6):
            for shard in ("1/2", "2/2"):
                assert main([*command, "--shard", shard]) == 0
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "unstable: ended at step " in printed
    for label in ("gd", "sign"):
        mine, theirs = (search.best(label, remember(one)) for one in (store, whole))
        assert mine is not None
        assert theirs is not None
        assert mine.chosen is not None
        assert theirs.chosen is not None
        assert mine.chosen.exponent == theirs.chosen.exponent
        assert mine.chosen.loss == theirs.chosen.loss
    keys = store.keys()
    assert set(keys) == set(whole.keys())
    assert steps(store) < steps(whole)
    before = dict(zip(keys, map(store.signature, keys), strict=True))
    assert main(command) == 0  # trains nothing
    assert dict(zip(keys, map(store.signature, keys), strict=True)) == before


def test_the_times_of_ended_runs_count(tmp_path: Path) -> None:
    """The recorded seconds of a problem are the median over finished and ended runs."""
    store = RunStore(tmp_path)
    for seed, (status, seconds) in enumerate([("done", 8.0), ("interrupted", 2.0), ("interrupted", 4.0)]):
        history = made_up(tiny(seed=seed), status, end=None if status == "done" else 3)  # type: ignore[arg-type]
        history.timing = {"seconds": seconds, "steps_per_second": 1.0}
        history.ended = "unstable" if seconds == 2.0 else None
        store.save(history, step=10 if status == "done" else 4)
    assert cost.recorded_seconds(store) == {cost.problem(tiny().resolved): 5.0}
