"""The sweep: the paper's search rule, and presets that refuse what they do not know."""

from __future__ import annotations

import json
import math
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from heavytail.errors import DataError, SpecError
from heavytail.experiment.preset import overlay, preset_names, read_preset
from heavytail.experiment.registry import Component
from heavytail.experiment.search import Best, Candidate, Grid, select
from heavytail.experiment.spec import RunSpec
from heavytail.experiment.store import Outcome
from heavytail.experiment.sweep import Arm, Sweep
from heavytail.experiment.waves import expected
from tests.problems import BASE, tiny, tiny_preset
from tests.reference import sweep as reference

RUN = {k: v for k, v in BASE.items() if k not in ("optim", "lr")}
HALVES = [e / 2 for e in range(-12, 7)]
DIVERGED = (math.inf, math.inf)


def outcome(final: float, peak: float) -> Outcome:
    return Outcome("diverged" if math.isinf(final) else "done", final, peak, 3 if math.isinf(final) else 10)


def candidates(table: reference.Table) -> list[Candidate]:
    exponents = sorted({e for e, _ in table})
    seeds = sorted({s for _, s in table})
    return [
        Candidate(e, tuple(tiny(lr=10**e, seed=s) for s in seeds), tuple(outcome(*table[e, s]) for s in seeds))
        for e in exponents
    ]


def sweep(grid: Grid, seeds: tuple[int, ...]) -> Sweep:
    return Sweep("made-up", "Made up", "quick", "", RUN, (Arm("gd", Component("gd"), grid),), seeds, seeds)


def exponent(spec: RunSpec) -> float:
    return round(2 * math.log10(spec.lr)) / 2


# Few different losses, so that ties are frequent, and peaks on both sides of the limit and on it.
OUTCOME = st.one_of(
    st.just(DIVERGED),
    st.tuples(st.sampled_from([0.1, 0.5, 0.5, 2.0, 7.0]), st.sampled_from([1.0, 1.05, 1.0500001, 3.0, 1e4])),
)
TABLE = st.fixed_dictionaries({(e, s): OUTCOME for e in HALVES for s in (0, 1)})


# -- the rule ----------------------------------------------------------------------------------------------------------


@given(table=TABLE, exponents=st.sets(st.sampled_from(HALVES), min_size=1, max_size=6))
def test_select_is_the_papers_rule(table: reference.Table, exponents: set[float]) -> None:
    """On any outcomes, ties included, selection agrees with the rule written as loops; each reason is given."""
    part = {k: v for k, v in table.items() if k[0] in exponents}
    best = select("gd", candidates(part)[::-1])  # whatever the order
    chosen = reference.select(part, sorted(exponents), (0, 1))
    assert (best.chosen.exponent if best.chosen else None) == chosen
    assert [c.exponent for c in best.candidates] == sorted(exponents)
    assert all(best.reasons)
    selected = [c.exponent for c, r in zip(best.candidates, best.reasons, strict=True) if r.startswith("selected")]
    assert selected == ([] if chosen is None else [chosen])


@settings(max_examples=60)
@given(table=TABLE, low=st.integers(-4, 0), length=st.integers(0, 2), refine=st.integers(0, 2))
@example({(e, s): (0.1, 2.0) for e in HALVES for s in (0, 1)} | {(-1.0, 0): (0.1, 1.0)}, -1, 0, 1)
def test_the_search_runs_what_the_rule_says_and_ends(
    table: reference.Table, low: int, length: int, refine: int
) -> None:
    """Running what is proposed until nothing is reaches the reference's choice by exactly the reference's runs."""
    grid = Grid(tuple(float(e) for e in range(low, low + length + 1)), refine)
    search = sweep(grid, (0, 1))
    done: dict[tuple[float, int], Outcome] = {}

    def lookup(spec: RunSpec) -> Outcome | None:
        return done.get((exponent(spec), spec.seed))

    for _ in range(20):
        proposed = {(exponent(spec), spec.seed) for spec in search.propose(lookup)}
        if not proposed:
            break
        assert search.best("gd", lookup) is None
        assert not proposed & done.keys()
        done |= {name: outcome(*table[name]) for name in proposed}
    else:
        pytest.fail("the search does not end")
    best = search.best("gd", lookup)
    assert best is not None
    chosen, runs = reference.search(table, grid.exponents, refine, (0, 1))
    assert (best.chosen.exponent if best.chosen else None) == chosen
    assert done.keys() == runs


def test_a_grid_without_refinement_is_run_on_all_seeds() -> None:
    """`refine` left out: exactly these step sizes, every seed, at once."""
    search = sweep(Grid((-2.0, -1.0)), (0, 1, 2))
    assert [(exponent(s), s.seed) for s in search.propose(lambda spec: None)] == [
        (e, seed) for e in (-2.0, -1.0) for seed in (0, 1, 2)
    ]
    best = search.best("gd", lambda spec: outcome(spec.lr + spec.seed, 1.0))
    assert best is not None
    assert best.chosen is not None
    assert (best.chosen.exponent, best.chosen.loss) == (-2.0, 2.01)


def test_every_reason_of_a_worked_example() -> None:
    """Six step sizes, each losing in a way of its own: the reason says which."""
    best = select(
        "gd",
        candidates(
            {
                (-4.0, 0): (3.0, 1.0),
                (-3.0, 0): (2.0, 1.05),
                (-2.0, 0): (1.5, 1.06),
                (-1.0, 0): (1.0, 1.2),
                (0.0, 0): (4.0, 30.0),
                (1.0, 0): DIVERGED,
            }
        ),
    )
    assert best.chosen is not None
    assert best.chosen.exponent == -3.0
    assert list(best.table()) == [
        (10**-4.0, 3.0, "final loss 3 > 2"),
        (10**-3.0, 2.0, "selected: next smaller stable step size"),
        (10**-2.0, 1.5, "unstable: peaked at 1.06 x its initial loss"),
        (10**-1.0, 1.0, "unstable: peaked at 1.2 x its initial loss"),
        (1.0, 4.0, "unstable: peaked at 30 x its initial loss, and final loss 4 > 1"),
        (10.0, math.inf, "diverged at step 3 (seed 0)"),
    ]


def test_the_worst_seed_decides() -> None:
    """The mean over seeds would choose 0.1 and the best seed 1; the maximum chooses 0.01."""
    table = {
        (-2.0, 0): (1.9, 1.0),
        (-2.0, 1): (2.0, 1.0),
        (-1.0, 0): (0.5, 1.0),
        (-1.0, 1): (2.1, 1.0),
        (0.0, 0): (0.1, 1.0),
        (0.0, 1): DIVERGED,
    }
    best = select("gd", candidates(table))
    assert best.chosen is not None
    assert best.chosen.exponent == -2.0
    assert best.reasons == (
        "selected: smallest worst-seed final loss",
        "final loss 2.1 > 2",
        "diverged at step 3 (seed 1)",
    )


def test_no_stable_step_size_selects_nothing() -> None:
    """All diverged, or all unstable: nothing is chosen and every reason says so."""
    for table, reason in (
        ({(0.0, 0): DIVERGED, (1.0, 0): DIVERGED}, "diverged at step 3 (seed 0)"),
        ({(0.0, 0): (1.0, 2.0), (1.0, 0): (1.0, 2.0)}, "unstable: peaked at 2 x its initial loss"),
    ):
        best = select("gd", candidates(table))
        assert best.chosen is None
        assert all(r.startswith(reason) for r in best.reasons)


@pytest.mark.parametrize(
    ("optimum", "side"), [(-3.5, "smallest"), (-3.0, None), (-1.5, None), (0.0, None), (0.5, "largest")]
)
def test_a_choice_at_the_edge_warns(optimum: float, side: str | None) -> None:
    """Selecting the outermost of all step sizes that were run asks for a wider grid; an inner one does not."""
    for grid in (Grid((-3.0, -2.0, -1.0, 0.0), 1), Grid((-3.5, -3.0, -1.5, 0.0, 0.5), None)):  # refined, or a list
        check_edge(sweep(grid, (0,)), optimum, side)


def check_edge(search: Sweep, optimum: float, side: str | None) -> None:
    best = search.best("gd", lambda spec: outcome(1 + abs(exponent(spec) - optimum), 1.0))
    assert best is not None
    assert best.chosen is not None
    assert best.chosen.exponent == optimum
    if side is None:
        assert best.warning is None
    else:
        assert best.warning == f"gd: selected lr {10**optimum:.3g} is at the {side} edge of the grid; widen it"


def test_a_final_loss_that_is_not_a_number_is_infinite() -> None:
    """NaN is never the smallest, however it came to be recorded, and has a reason."""
    nan = [Candidate(0.0, (tiny(),), (Outcome("done", math.nan, math.nan, 10),))]
    assert nan[0].loss == nan[0].peak == math.inf
    best: Best = select("gd", nan)
    assert best.chosen is None
    assert all(best.reasons)


# -- verdict seeds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in preset_names() if "scale" in read_preset(name)])
def test_verdicts_come_from_fresh_seeds(name: str) -> None:
    """Below the paper's scale every preset searches on seed 0 and judges on seeds that the search has not used."""
    for variant in ("", *read_preset(name).get("variant", {})):
        paper, small, quick = (Sweep.load(name, scale=scale, variant=variant) for scale in ("paper", "small", "quick"))
        assert paper.verdict_seeds == paper.seeds
        assert (small.seeds, small.verdict_seeds) == ((0,), (11, 12, 13))
        assert (quick.seeds, quick.verdict_seeds) == ((0,), (14,))


def test_a_preset_without_scales_is_judged_on_its_own_seeds(tmp_path: Path) -> None:
    """One's own problem has no reduced scale: its seeds serve the search and the verdict, unless it says otherwise."""
    file = tmp_path / "mine.toml"
    file.write_text(tiny_preset(10, "lr = [0.1, 1.0]\nseeds = [3, 4]", 'name = "gd"'))
    assert Sweep.load(file).verdict_seeds == Sweep.load(file).seeds == (3, 4)
    file.write_text(tiny_preset(10, "lr = [0.1, 1.0]\nverdict_seeds = [5]", 'name = "gd"'))
    assert (Sweep.load(file).seeds, Sweep.load(file).verdict_seeds) == ((0,), (5,))
    file.write_text(PRESET + "[scale.small.sweep]\nverdict_seeds = [5]\n")
    assert (Sweep.load(file, scale="small").seeds, Sweep.load(file, scale="small").verdict_seeds) == ((0,), (5,))


@pytest.mark.parametrize("refine", [None, 1])
@pytest.mark.parametrize("probes", [(), (Component("head-blocks", {"at": [0]}),)])
def test_verdict_runs_follow_the_search(refine: int | None, probes: tuple[Component, ...]) -> None:
    """Once the search has selected, its step size is run on every verdict seed, with the probes; nothing else is."""
    search = replace(sweep(Grid((-2.0, -1.0), refine), (0,)), verdict_seeds=(11, 12), probes=probes)
    done: dict[tuple[str, int], Outcome] = {}

    def lookup(spec: RunSpec) -> Outcome | None:
        return done.get((spec.key, len(spec.probes)))

    rounds: list[list[RunSpec]] = []
    while proposed := search.propose(lookup):
        rounds.append(proposed)
        # Fresh seeds have another optimum, which must not be selected.
        done |= {(s.key, len(s.probes)): outcome(abs(exponent(s) + (1 if s.seed == 0 else 2)), 1.0) for s in proposed}
    best = search.best("gd", lookup)
    assert best is not None
    assert [(exponent(s), s.seed, s.probes) for s in rounds[-1]] == [(-1.0, 11, probes), (-1.0, 12, probes)]
    assert tuple(rounds[-1]) == search.verdict(best)
    assert {s.seed for proposed in rounds[:-1] for s in proposed} == {0}
    assert not any(s.probes for proposed in rounds[:-1] for s in proposed)
    assert len(rounds) == (3 if refine else 2)
    planned = expected(search, lambda spec: None, {})["gd"]
    assert [len(wave) for wave in planned] == [len(proposed) for proposed in rounds]


@pytest.mark.parametrize("probes", [(), (Component("head-blocks", {"at": [0]}),)])
def test_a_given_step_size_is_not_searched_for(probes: tuple[Component, ...]) -> None:
    """A single step size is trained on the verdict seeds alone, at once with the probes; an unstable one stays."""
    search = replace(sweep(Grid((-2.0,)), (0, 1)), verdict_seeds=(11, 12), probes=probes)
    proposed = search.propose(lambda spec: None)
    assert [(s.seed, s.probes) for s in proposed] == [(11, probes), (12, probes)]
    assert expected(search, lambda spec: None, {}) == {"gd": [proposed]}
    for peak in (1.0, 3.0):
        best = search.best("gd", lambda spec, peak=peak: outcome(1.0, peak))
        assert best is not None
        assert best.chosen is not None
        assert search.propose(lambda spec, peak=peak: outcome(1.0, peak)) == []
    best = search.best("gd", lambda spec: outcome(*(DIVERGED if spec.seed == 12 else (1.0, 1.0))))
    assert best is not None
    assert (best.chosen, best.reasons) == (None, ("diverged at step 3 (seed 12)",))


# -- step sizes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.01, Grid((-2.0,))),
        (1, Grid((0.0,))),
        ([0.1, 0.001], Grid((-3.0, -1.0))),
        ({"decades": [-2, 0]}, Grid((-2.0, -1.0, 0.0))),
        ({"decades": [-1, -1], "refine": 2}, Grid((-1.0,), 2)),
        ({"exponents": [-1, -2.5], "refine": 0}, Grid((-2.5, -1.0), 0)),
    ],
)
def test_a_grid_is_read(value: object, expected: Grid) -> None:
    """Every spelling of step sizes, ascending."""
    assert Grid.parse(value, "lr") == expected


@pytest.mark.parametrize(
    "value",
    [
        *(0, -1, "0.1", [], [0.1, 0], None, True, {}),
        *({"decades": d} for d in ([0, -1], [-1.5, 0], [0])),
        *({"decades": [-1, 0], "refine": r} for r in (-1, 1.5)),
        *({"exponents": e} for e in ([], ["a"])),
        *({"decades": [-1, 0], "exponents": [-1]}, {"refine": 1}, {"decade": [-1, 0]}),
    ],
)
def test_a_wrong_grid_is_refused(value: object) -> None:
    """Anything else is an error that names the field."""
    with pytest.raises(SpecError, match="lr"):
        Grid.parse(value, "lr")


@pytest.mark.parametrize("lr", [0.003, 0.01, 0.07, 1e-5, 3e-4, 123.0])
def test_a_step_size_that_is_given_is_the_one_that_is_run(lr: float) -> None:
    """Going through its exponent does not change a step size, nor then the key of its run."""
    search = sweep(Grid.parse(lr, "lr"), (0,))
    assert [spec.lr for spec in search.propose(lambda spec: None)] == [lr]


# -- presets -----------------------------------------------------------------------------------------------------------

OPTIMIZERS = ('name = "gd"\nmomentum = [0.0, 0.9]', 'name = "adam"\nlr = 0.01')
VARIANTS = """
[variant.weighted]
title = "Mine, weighted"
run.loss = { weights = "inverse" }
run.steps = 20
[scale.paper]
[scale.quick]
run.steps = 30
[scale.quick.variant.weighted]
run.steps = 40
sweep.seeds = [7]
"""
PRESET = tiny_preset(10, "seeds = [0, 1]\nlr = { decades = [-2, 0] }", *OPTIMIZERS) + VARIANTS


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    file = tmp_path / "mine.toml"
    file.write_text(PRESET)
    return file


def test_overlays_come_in_order(preset: Path) -> None:
    """run <- variant <- scale <- scale.variant: each lays over the one before."""
    steps = {
        (scale, variant): Sweep.load(preset, scale=scale, variant=variant).run["steps"]
        for scale in ("paper", "quick")
        for variant in ("", "weighted")
    }
    assert steps == {("paper", ""): 10, ("paper", "weighted"): 20, ("quick", ""): 30, ("quick", "weighted"): 40}
    weighted = Sweep.load(preset, scale="quick", variant="weighted")
    assert (weighted.seeds, weighted.title, weighted.run["loss"]) == ((7,), "Mine, weighted", {"weights": "inverse"})
    assert weighted.run["data"] == {"name": "random-heavy-tail", "groups": 3}


def test_lists_of_settings_are_crossed_and_labelled(preset: Path) -> None:
    """One table with a list of momenta is as many optimizers, each with its label, part and grid."""
    loaded = Sweep.load(preset, scale="paper")
    assert [(e.label, e.optim, e.grid.exponents) for e in loaded.arms] == [
        ("gd-m", Component("gd", {"momentum": 0.0}), (-2.0, -1.0, 0.0)),
        ("gd+m", Component("gd", {"momentum": 0.9}), (-2.0, -1.0, 0.0)),
        ("adam", Component("adam"), (-2.0,)),
    ]
    assert [e.label for e in loaded.only(("adam", "gd-m")).arms] == ["adam", "gd-m"]
    with pytest.raises(SpecError, match=r"unknown optimizer of preset mine: 'gd\+n'; did you mean 'gd"):
        loaded.arm("gd+n")
    spec = loaded.spec(loaded.arm("gd+m"), -1.0, 5)
    assert (spec.optim, spec.lr, spec.seed, spec.steps) == (Component("gd", {"momentum": 0.9}), 0.1, 5, 10)


def test_step_sizes_by_momentum(preset: Path) -> None:
    """A table {"+m", "-m"} gives each momentum its own step sizes."""
    text = PRESET.replace("momentum = [0.0, 0.9]", 'momentum = [0.0, 0.9]\nlr = { "-m" = 0.1, "+m" = [0.01, 1.0] }')
    preset.write_text(text)
    loaded = Sweep.load(preset)
    assert [e.grid.exponents for e in loaded.arms] == [(-1.0,), (-2.0, 0.0), (-2.0,)]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[sweep]", "[swep]\n[sweep]", "unknown table of preset mine: 'swep'; did you mean 'sweep'"),
        ("steps = 10", "step = 10", "unknown run setting 'step'; did you mean 'steps'"),
        ("steps = 10", "steps = '10'", "steps: expected int, got '10'"),
        ("seeds = [0, 1]", "seed = [0, 1]", "unknown setting of preset mine, sweep: 'seed'; did you mean 'seeds'"),
        ("seeds = [0, 1]", "seeds = 3", "sweep.seeds: expected a list of integers, got 3"),
        ("seeds = [0, 1]", "seeds = []", r"sweep.seeds: expected a list of integers, got \[\]"),
        ("seeds = [0, 1]", "verdict_seeds = [0, 0]", r"sweep.verdict_seeds: expected different integers, got \[0, 0\]"),
        ("seeds = [0, 1]", "seeds = [0, 0]", r"sweep.seeds: expected different integers, got \[0, 0\]"),
        ("decades", "decade", "'decade'; did you mean 'decades'"),
        ("run.steps = 30", "runs.steps = 30", "unknown table of preset mine: 'runs'; did you mean 'run'"),
        ("run.loss", "rum.loss", None),  # in a variant that is not asked for
        ("steps = 10", "lr = 0.1\nsteps = 10", "run.lr: the sweep sets it"),
        ("steps = 10", "seed = 1\nsteps = 10", "run.seed: the sweep sets it"),
        ("steps = 10", "optim = 'gd'\nsteps = 10", "run.optim: the sweep sets it"),
        ("momentum = [0.0, 0.9]", "beta = [0.0, 0.9]", "expected different labels, got 'gd' twice; set label"),
        ("momentum = [0.0, 0.9]", "label = 'x'\nmomentum = [0.0, 0.9]", "expected different labels, got 'x' twice"),
        (
            'name = "adam"\nlr',
            'name = "adam"\nlr = { "+m" = 1.0 }\nbeta2',
            r"unknown setting of sweep.optim adam: lr: '\+m'",
        ),
        (
            "momentum = [0.0, 0.9]",
            'momentum = [0.0, 0.9]\nlr = { "+m" = 1.0 }',
            r"unknown setting of sweep.optim gd-m: lr: '\+m'",
        ),
        ("lr = { decades = [-2, 0] }\n", "", "sweep.optim gd: expected lr, got none"),
        ("[scale.quick.variant.weighted]", "[scale.quick.variant.weigthed]", "'weigthed'; did you mean 'weighted'"),
        ("[run]", "[run", "preset .*mine.toml: "),
    ],
)
def test_a_wrong_preset_is_refused(preset: Path, old: str, new: str, message: str | None) -> None:
    """Nothing that a preset says is ignored: what is unknown is named, on one line."""
    assert PRESET.count(old) >= 1
    preset.write_text(PRESET.replace(old, new, 1))
    if message is None:
        Sweep.load(preset)
        return
    with pytest.raises(SpecError, match=message) as caught:
        _ = [Sweep.load(preset, scale=scale) for scale in ("paper", "quick")]
    assert "\n" not in str(caught.value)


# Field, and values of which none is allowed in it.
WRONG = {
    "extends": ("'mine.toml'", "'MINE'", "3", "['linear']", "'no-such'"),
    "scale": ("[1]", "3", "'quick'"),
    "scale.quick": ("[1]", "3"),
    "scale.quick.run": ("3", "[1]"),
    "scale.quick.variant": ("3", "[1]"),
    "scale.quick.variant.weighted": ("3", "[1]"),
    "scale.quick.title": ("3", "[1]"),
    "variant": ("3", "[1]"),
    "variant.weighted": ("3", "[1]"),
    "name": ("3", "[1]"),
    "title": ("3", "{ a = 1 }"),
    "run": ("3", "[1]", "'x'"),
    "run.data": ("3", "[1]", "{ a = 1 }"),
    "run.steps": ("true", "nan", "1.5", "{ a = 1 }", "[1]", "2026-11-25"),
    "sweep": ("3", "[1]"),
    "sweep.seeds": ("[true]", "[0.5]", "{ a = 1 }", "'ab'"),
    "sweep.verdict_seeds": ("[true]", "[]", "3"),
    "sweep.probes": ("3", "'head-blocks'", "[3]", "[[]]", "[{ at = [0] }]"),
    "sweep.optim": (
        "{ name = 'gd' }",
        "[3]",
        "[{ name = 3 }]",
        "[{ name = [] }]",
        "[{ momentum = 0.9 }]",
        "[{ name = 'gd', momentum = { a = 1 } }]",
        "[{ name = 'gd', momentum = 'x' }]",
        "[{ name = 'gd', momentum = [true] }]",
        "[{ name = 'adam', beta1 = [[0.9]] }]",
        *(
            f"[{{ name = 'gd', label = {label} }}]"
            for label in ("3", "''", "'/tmp/x'", "'../x'", "'a/b'", '"\\u001b[1m"')
        ),
    ),
    "sweep.lr": (
        *(
            "true",
            "0",
            "-1.0",
            "nan",
            "inf",
            "1e200",
            "[]",
            "[0.1, 0.1]",
            "[0.1, 1e-200]",
            "[0.1, nan]",
            "'x'",
            "[[1]]",
        ),
        *(
            "{}",
            "{ refine = 1 }",
            "{ decades = 3 }",
            "{ decades = [1] }",
            "{ decades = [1, 0] }",
            "{ decades = [true, 2] }",
        ),
        *("{ decades = [-400, 1] }", "{ decades = [0, 1_000_000_000_000] }", f"{{ decades = [-1{'0' * 400}, 1] }}"),
        *("{ decades = { gd = [0, 1] } }", "{ decades = { gd = [0, 1], adm = [0, 1] } }", "{ decades = { gd = 3 } }"),
        *(
            f"{{ exponents = {e} }}"
            for e in ("[400]", "[nan]", "[inf]", "[true]", "[1, 1.0]", "[]", "3", f"[1{'0' * 400}]")
        ),
        *("{ decades = [0, 1], exponents = [0] }", "{ exponents = [0], decades = [0, 1] }"),
        *(f"{{ decades = [-1, 0], refine = {r} }}" for r in ("true", "-1", "1.0", "1_000_000", "'x'", "[1]")),
    ),
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in WRONG.items() for value in values])
def test_a_wrong_value_is_one_line(tmp_path: Path, field: str, value: str) -> None:
    """Whatever stands in a field of a preset, a wrong value is a SpecError of one line, and quick."""
    table = tomllib.loads(PRESET.replace("lr = 0.01\n", ""))
    *path, last = field.split(".")
    inner = table
    for key in path:
        inner = inner[key]
    inner[last] = "?"
    file = tmp_path / "mine.toml"
    file.write_text(f"{as_toml(table)}\n".replace('"?"', value.replace("MINE", str(file)), 1))
    assert tomllib.loads(file.read_text())
    with pytest.raises(SpecError) as caught:
        _ = [Sweep.load(file, scale=scale, variant=v) for scale, v in (("paper", ""), ("quick", "weighted"))]
    assert "\n" not in str(caught.value)


def as_toml(value: Any) -> str:
    """Return plain tables as TOML, with inline tables below the first level."""
    inline = lambda v: (  # noqa: E731
        "{ " + ", ".join(f"{k} = {inline(x)}" for k, x in v.items()) + " }"
        if isinstance(v, dict)
        else "[" + ", ".join(map(inline, v)) + "]"
        if isinstance(v, list)
        else json.dumps(v)
    )
    return "\n".join(f"{key} = {inline(item)}" for key, item in value.items())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name = '\xff'", "expected UTF-8 text, got byte 0xff"),
        (b"\xff\xfen\x00", "expected UTF-8 text, got byte 0xff"),
        (b"x = " + b"[" * 100_000, "preset"),
        (b"x = " + b"9" * 5000, "preset"),
        (b"x = 2026-13-45", "preset"),
        (b"\x00", "preset"),
    ],
)
def test_a_file_that_is_not_toml_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    """Bytes that are no preset are a SpecError of one line that names the file."""
    file = tmp_path / "mine.toml"
    file.write_bytes(content)
    with pytest.raises(SpecError, match=message) as caught:
        Sweep.load(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_preset_of_ones_own_extends_a_shipped_one(tmp_path: Path) -> None:
    """It is laid over it, under its own name or the same one; the shipped ones do not extend each other in a circle."""
    for name in ("mine", "linear"):
        file = tmp_path / f"{name}.toml"
        file.write_text('extends = "linear"\n[run]\nsteps = 7\n[scale.quick.run]\nsteps = 8\n')
        extended, shipped = Sweep.load(file), Sweep.load("linear")
        assert extended.run == {**shipped.run, "steps": 8}
        assert extended.arms == shipped.arms
        assert Sweep.load(file, scale="paper").run["steps"] == 7
    for name in preset_names():
        read_preset(name)


def test_step_sizes_by_optimizer(preset: Path) -> None:
    """`decades` by name or label of the optimizer; a scale replaces those it names, and what it does not name stays."""
    text = PRESET.replace("lr = 0.01\n", "").replace(
        "{ decades = [-2, 0] }", "{ decades = { gd = [-2, 0], adam = [-5, -4] } }"
    )
    preset.write_text(
        text + '[scale.paper.sweep]\nlr = { decades = { "gd+m" = [0, 1], adam = [-3, -2] }, refine = 2 }\n'
    )
    grids = {scale: [arm.grid for arm in Sweep.load(preset, scale=scale).arms] for scale in ("quick", "paper")}
    assert grids["quick"] == [Grid((-2.0, -1.0, 0.0)), Grid((-2.0, -1.0, 0.0)), Grid((-5.0, -4.0))]
    assert grids["paper"] == [Grid((-2.0, -1.0, 0.0), 2), Grid((0.0, 1.0), 2), Grid((-3.0, -2.0), 2)]


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ({-2.0: 1.0, -1.0: 1.0}, "final loss 1 is equal, at a larger step size"),
        ({-2.0: 1.0, -1.0: 1.0 + 1e-12}, r"final loss 1\.000000000001 > 1"),
        ({-2.0: 1.0, -1.0: 1.00001}, r"final loss 1\.00001 > 1"),
        ({-2.0: 1.0, -1.0: 2.0}, "final loss 2 > 1"),
    ],
)
def test_a_reason_compares_what_it_prints(table: dict[float, float], reason: str) -> None:
    """Two losses that differ are printed with as many digits as it takes; equal ones are called equal."""
    best = select("gd", candidates({(e, seed): (loss, 1.0) for e, loss in table.items() for seed in (0, 1)}))
    assert re.fullmatch(reason, best.reasons[1])


def test_a_reason_is_true() -> None:
    """A stable candidate below the fallback may have a smaller loss than it; no reason says the opposite."""
    losses = {-3.0: (0.4, 1.0), -2.0: (0.5, 1.0), -1.0: (0.1, 2.0), 0.0: (0.3, 1.0)}
    best = select("gd", candidates({(e, s): pair for e, pair in losses.items() for s in (0, 1)}))
    assert best.chosen is not None
    assert best.chosen.exponent == -2.0
    assert best.reasons[0] == "smaller than the selected step size, the largest stable one"
    assert best.reasons[3] == "final loss 0.3 > 0.1"


@pytest.mark.parametrize(
    ("optim", "message"),
    [
        ("[]", "at least one"),
        ("[{name = 'gd', momentum = []}]", "gd.momentum: expected at least one"),
        ("3", "expected an array of tables, got 3"),
        ("['gd']", "expected a table, got 'gd'"),
    ],
)
def test_a_sweep_needs_optimizers(preset: Path, optim: str, message: str) -> None:
    """A list of optimizers that is none is refused."""
    head, _, _ = PRESET.partition("[[sweep.optim]]")
    preset.write_text(f"{head}optim = {optim}\n")
    with pytest.raises(SpecError, match=message):
        Sweep.load(preset)


def test_what_is_asked_of_a_preset_must_exist(preset: Path, tmp_path: Path) -> None:
    """Unknown presets, scales and variants name the nearest; a missing file is a DataError."""
    with pytest.raises(SpecError, match=r"unknown scale of preset mine: 'quik'; did you mean 'quick'\?"):
        Sweep.load(preset, scale="quik")
    with pytest.raises(SpecError, match=r"unknown variant of preset mine: 'weight'; did you mean 'weighted'\?"):
        Sweep.load(preset, variant="weight")
    with pytest.raises(SpecError, match="unknown preset 'no-such'"):
        Sweep.load("no-such")
    with pytest.raises(DataError, match=r"cannot read preset .*none\.toml: No such file"):
        Sweep.load(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("base", "top", "expected"),
    [
        ({"a": {"x": 1}}, {"a": {"y": 2}}, {"a": {"x": 1, "y": 2}}),
        ({"a": {"x": {"y": 1}}}, {"a": {"x": {"z": 2}}}, {"a": {"x": {"y": 1, "z": 2}}}),
        ({"a": "gd"}, {"a": {"momentum": 0.9}}, {"a": {"name": "gd", "momentum": 0.9}}),
        ({"a": {"name": "gd", "momentum": 0.9}}, {"a": "adam"}, {"a": "adam"}),
        ({"a": {"name": "gd", "momentum": 0.9}}, {"a": {"name": "adam"}}, {"a": {"name": "adam"}}),
        ({"a": {"name": "gd", "momentum": 0.9}}, {"a": {"name": "gd"}}, {"a": {"name": "gd", "momentum": 0.9}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
    ],
)
def test_overlay(base: dict[str, Any], top: dict[str, Any], expected: dict[str, Any]) -> None:
    """Tables merge, another name replaces, everything else replaces; the operands stay."""
    before = repr((base, top))
    assert overlay(base, top) == expected
    assert repr((base, top)) == before


def _everything() -> list[tuple[str, str, str]]:
    found = []
    for name in preset_names():
        table = read_preset(name)
        for scale in table.get("scale", {}):
            found += [(name, scale, variant) for variant in ("", *table.get("variant", {}))]
    return found


@pytest.mark.parametrize(("name", "scale", "variant"), _everything())
def test_every_preset_loads_at_every_scale(name: str, scale: str, variant: str) -> None:
    """All presets are free of unknown settings, and every component of their runs exists."""
    loaded = Sweep.load(name, scale=scale, variant=variant)
    proposed = loaded.propose(lambda spec: None)
    assert {spec.optim.name for spec in proposed} == {arm.optim.name for arm in loaded.arms}
    for arm in loaded.arms:
        assert loaded.spec(arm, arm.grid.exponents[0], 0).key
