"""Claims: thresholds are the ones fixed in advance, and every rule can come out both ways."""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heavytail.errors import SpecError
from heavytail.experiment.store import RunStore
from heavytail.results.claims import Claim, NotInformative, area, claim, gap_rules, lag, ratio, spearman, summary
from heavytail.results.figure import all_figures, figure
from heavytail.results.results import Results, SweepRef
from tests.problems import ROOT
from tests.reference.figures import EIGHT, decay, fill, history_of, write_presets

GAP = {
    "rare-stays": (">=", 0.9),
    "frequent-falls": ("<=", 0.75),
    "adam-lowers-all": ("<", 1.0),
    "adam-ahead": ("<=", 0.9),
    "ordered": (">=", 0.9),
    "rare-gap": ("<=", 0.8),
}
MEAN = {"overall-is-mean": ("<=", 1e-6)}
DIRECTION = {
    "direction-matters-m": ("<=", 0.8),
    "direction-matters+m": ("<=", 0.8),
    "direction-beats-length-m": ("<=", 0.8),
    "direction-beats-length+m": ("<=", 0.8),
    "sign-as-adam-m": ("<=", 1.5),
    "sign-as-adam+m": ("<=", 1.5),
    "normalising-helps-m": ("<=", 1.0),
    "normalising-helps+m": ("<=", 1.0),
    "momentum-helps": ("<=", 1.0),
    "momentum-is-less": ("<=", 1.0),
}
IMBALANCE = {
    "similar-when-uniform": ("<=", 0.1),
    "gap-appears": (">=", 0.1),
    "rare-gap-appears": (">=", 0.1),
}
PROBLEMS = {"transformer": "hurts", "linear": "helps", "cnn": "helps", "resnet18": "hurts"}
# What was fixed before any run on the verdict seeds (docs/claims.md). A change here is a change of the question: it
# needs a third edition and new seeds. The claims of the figures of curvature and theory are in THEORY below.
FIXED = {
    "fig01": GAP | MEAN | {"rare-not-below-init": (">=", 1.0)},
    "fig02": {
        "mnist-solved": ("<=", 0.1),
        "barcoded-stays": (">=", 0.9),
        "digits-fall": ("<=", 0.5),
        "adam-lowers-both": ("<=", 0.5),
        "gd-stalls": ("<=", 0.1),
        "equal-groups": ("within", (0.45, 0.55)),
    },
    "fig03": IMBALANCE,
    "fig04": {name: GAP[name] for name in ("ordered", "rare-gap", "adam-ahead", "adam-lowers-all")}
    | MEAN
    | {"rare-first-rises": (">", 1.0), "frequent-oscillates": (">", 0.0)},
    "fig05": DIRECTION,
    "fig10": GAP | MEAN,
    "fig11": {name: IMBALANCE[name] for name in ("gap-appears", "rare-gap-appears")},
    "fig12": {"similar-when-uniform": ("<=", 0.1)},
    "fig13": {"adam-unaffected": ("<=", 0.1), "sgd-degrades": (">", 0.0)},
    "fig14": {
        "balanced-solved": ("<=", 0.05),
        "combined-stays": (">=", 0.3),
        "stalls": ("<=", 0.1),
        "adam-faster": ("<", 1.0),
        "worse-with-imbalance": (">", 0.0),
    },
    "fig15": {
        "aligned-ordered": (">=", 0.9),
        "aligned-apart": (">=", 2.0),
        "orthogonal-level": ("<=", 1.0),
        "adam-lowers-all": ("<", 1.0),
    },
    "fig16": {"rare-rises": (">", 1.0), "all-fall": ("<", 1.0), "below-only-after-1k": (">=", 1.0)},
    "fig17": GAP | MEAN,
    "fig18": GAP | MEAN,
    "fig19": DIRECTION,
    "fig20": DIRECTION,
    "fig21": DIRECTION,
    "fig22": {
        f"{claim}-{name}": threshold
        for name, verb in PROBLEMS.items()
        for claim, threshold in {
            "weighted-ahead": ("<", 1.0),
            "weighted-rare": ("<=", 0.95),
            f"inverse-{verb}": ("<" if verb == "helps" else ">", 1.0),
        }.items()
    },
}
RISES = {"no-correlation-at-start": ("<=", 0.5), "correlated-at-end": (">=", 0.5), "gd-only-frequent": (">", 0.0)}
BLOCKS = {"blocks-stand-out": (">=", 100.0), "diagonally-dominant": (">=", 1 - 1e-9)}
THEORY = {
    "fig06": {
        "gd-closed-form": ("<=", 1e-12),
        "sign-alike": ("<=", 1e-6),
        "adam-alike": ("<=", 1e-6),
        "oscillates": (">=", 1.0),
        "diverges": (">", 1.0),
    },
    "fig07": {
        "traces-near-uniform": ("<=", 10.0),
        "no-correlation-at-start": ("<=", 0.5),
        "correlated-at-end": (">=", 0.5),
        "gradients-mirror-frequencies": (">=", 0.9),
        "imbalanced": (">=", 10.0),
        "traces-follow-gradients": (">=", 0.9),
    },
    "fig08": BLOCKS | {"trace-blocks": ("<=", 0.01)},
    "fig09": {
        f"slope-{kind}-{text}": ("within", (-1.3, -0.7))
        for kind in ("word", "bpe", "unigram")
        for text in ("ptb", "wikitext-2")
    },
    "fig23": {
        "adam-fits-rare": (">=", 0.9),
        "adam-similar": ("<=", 2.0),
        "gd-frequent-first": ("<=", -0.9),
        "gd-only-frequent": (">", 0.0),
    },
    "fig24": RISES,
    "fig25": RISES,
    "fig26": RISES,
    "fig27": {"negative": ("<", 0.0)},
    "fig28": BLOCKS,
    "prop2": {
        "eq1-exact": ("<", 1e-12),
        "eq2-under-its-assumption": ("<=", 1.0),
        "eq2-indicates": (">=", 0.9),
    },
    "thm3": {
        "gradient-flow-solves-its-ode": ("<=", 1e-8),
        "gradient-descent-follows": ("<=", 0.01),
        "gradient-time-exponent": ("within", (-1.05, -0.95)),
        "sign-flow-solves-its-ode": ("<=", 1e-8),
        "sign-descent-follows": ("<=", 0.01),
        "sign-time-exponent": ("within", (-0.05, 0.05)),
        "gradient-flow-statement": ("<=", 0.1),
        "sign-flow-statement": ("<=", 0.01),
    },
}
EXACT = {
    *((name, "overall-is-mean") for name in ("fig01", "fig04", "fig10", "fig17", "fig18")),
    ("fig02", "equal-groups"),
    *(("fig06", name) for name in THEORY["fig06"]),
    *((name, "diagonally-dominant") for name in ("fig08", "fig28")),
    *(("prop2", name) for name in ("eq1-exact", "eq2-under-its-assumption")),
    *(("thm3", name) for name in THEORY["thm3"]),
}
SWEEPS = sorted({(ref.preset, ref.variant) for name in FIXED for ref in figure(name).sweeps})
STEPS = 100


def as_in_the_paper(preset, variant, label, lr, seed):
    """GD leaves rare groups behind, sign descent and Adam do not; on balanced data all are alike."""
    base = label[:-2]
    t = np.arange(STEPS + 1)
    if variant in ("mnist", "barcoded"):  # both solve it soon, Adam sooner
        return np.interp(t, [0, 20 if base == "adam" else 50, STEPS], [5, 0.1, 0.1])[:, None].repeat(2, axis=1)
    if variant in ("uniform", "orthogonal", "full"):
        return decay(5, [0.2] * 4, STEPS)
    if preset == "linear-long":
        return np.interp(t, [0, 1, 10, 100], [5, 5.2, 5.1, 1])[:, None] - [0.7, 0.5, 0.3, 0] * (t > 0)[:, None]
    if variant.startswith("weighted"):
        if preset == "cnn":
            return decay(5, [0.5, 3], STEPS)
        hurts = variant == "weighted-inverse" and preset != "linear"
        return decay(5, [5, 4, 4, 3] if hurts else [1, 1.5, 2, 3], STEPS)
    if preset == "cnn":
        return decay(5, {"gd": [1, 5], "adam": [0.1, 1], "normalized-gd": [1, 4.8], "sign": [0.1, 1.2]}[base], STEPS)
    ends = {
        "gd": [1, 2.5, 4, 5.2],
        "adam": [0.2, 0.3, 0.4, 0.5] if preset == "simple-vit" else [0.5, 0.8, 1, 1.5],
        "normalized-gd": [1, 2.4, 3.9, 5],
        "sign": [0.6, 1, 1.2, 1.8],
    }
    losses = decay(5, ends[base], STEPS)
    if (preset, label) == ("linear", "gd+m"):
        losses[10:30:2, 0] += 0.5  # oscillates
    return losses


def the_opposite(preset, variant, label, lr, seed):
    """GD fits rare groups first, Adam and sign descent are behind, balanced data are no easier."""
    base = label[:-2]
    momentum = 0.0 if label == "gd-m" else 0.02  # makes GD worse
    line = np.linspace(0, 1, STEPS + 1)[:, None]
    t = np.arange(STEPS + 1)
    if variant == "mnist":
        return decay(5, [4.9] * 2, STEPS)
    if variant == "barcoded":
        return decay(5, [4.0 if base == "gd" else 4.9] * 2, STEPS)
    if variant == "uniform":
        return decay(5, [4.0 if base == "gd" else 1.0] * 4, STEPS)
    if variant == "full":
        return decay(5, [2.4 if base == "gd" else 0.2] * 4, STEPS)
    if variant == "orthogonal":
        return decay(5, [1, 2, 3, 4], STEPS)
    if preset == "linear-long":
        rare = np.interp(t, [0, 1, 10, 100], [5, 4, 1, 1])
        return np.stack([np.interp(t, [0, 100], [5, 5.4]), rare, rare, rare], axis=1)
    if variant.startswith("weighted"):
        if preset == "cnn":
            return decay(5, [4, 4], STEPS)
        return decay(5, [1.0 if variant == "weighted-inverse" and preset != "linear" else 4.0] * 4, STEPS)
    if preset == "cnn":
        ends = {"gd": [2.5 + momentum, momentum], "adam": [3, 3], "normalized-gd": [5, 1], "sign": [8, 8]}[base]
        return 5 + (np.array(ends) - 5) * line
    ends = {
        "gd": [4.5 + momentum, 4, 3, 1],
        "adam": [5.2, 4, 3.5, 4],
        "normalized-gd": [5.9, 5.9, 2, 1],
        "sign": [8, 8, 8, 8],
    }
    return decay(5, ends[base], STEPS)


def results_of(folder, losses, sweeps=SWEEPS, **options):
    """Return results over a store in which every run of the sweeps ended with these losses."""
    write_presets(folder, sweeps, steps=STEPS, seeds=1, rates=[1.0])
    store = RunStore(folder)
    fill(store, folder, sweeps, losses, **options)
    return Results(store, "quick", presets=folder)


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    return results_of(tmp_path_factory.mktemp("paper"), as_in_the_paper)


@pytest.fixture(scope="module")
def opposite(tmp_path_factory):
    return results_of(tmp_path_factory.mktemp("opposite"), the_opposite)


@pytest.mark.parametrize("name", [*FIXED, *THEORY])
def test_thresholds_are_those_fixed_before_any_run(name):
    """The declared claims of a figure are exactly the agreed ones, with their comparisons, thresholds and kinds."""
    expected = (FIXED | THEORY)[name]
    assert {rule.id: (rule.comparison, rule.threshold) for rule in figure(name).rules} == expected
    exact = {(name, rule.id) for rule in figure(name).rules if rule.kind == "exact"}
    assert exact == {one for one in EXACT if one[0] == name}


def test_every_figure_of_the_paper_has_fixed_claims():
    """No figure of the paper has claims beside the agreed ones, and every claim has its place in the paper."""
    claims = {one.id: one.rules for one in all_figures() if one.rules and one.id.startswith(("fig", "prop", "thm"))}
    assert claims.keys() == {*FIXED, *THEORY}
    assert all(rule.quote for rules in claims.values() for rule in rules)


@pytest.mark.parametrize("name", FIXED)
def test_every_claim_can_be_reproduced(name, paper):
    """Losses as the paper shows them reproduce every claim of the figure."""
    claims = figure(name).claims(paper)
    assert {c.claim: c.verdict for c in claims} == dict.fromkeys(FIXED[name], "reproduced"), claims


@pytest.mark.parametrize("name", FIXED)
def test_every_claim_can_fail(name, opposite):
    """Losses that go the other way reproduce no measured claim of the figure."""
    claims = [claim for claim in figure(name).claims(opposite) if claim.kind == "measured"]
    expected = [one for one in FIXED[name] if (name, one) not in EXACT]
    assert {c.claim: c.verdict for c in claims} == dict.fromkeys(expected, "not reproduced"), claims


def test_exact_claims_can_fail(tmp_path):
    """A store with an overall loss that is not the mean of its groups, and groups of unequal size, is noticed."""
    sweeps = [("linear", ""), ("cnn", ""), ("cnn", "mnist")]
    counts = {"linear": [100] * 4, "cnn": [100, 150]}
    results = results_of(tmp_path, as_in_the_paper, sweeps, counts=counts)
    (shares,) = [c for c in figure("fig02").claims(results) if c.claim == "equal-groups"]
    assert (shares.verdict, shares.measured) == ("not reproduced", pytest.approx(0.4))
    assert mean_of(results).verdict == "reproduced"
    sweep = results.sweep(SweepRef("linear"))
    spec = sweep.spec(sweep.arm("adam+m"), 0.0, 0)
    history = history_of(spec, as_in_the_paper("linear", "", "adam+m", 1.0, 0), np.full(4, 100))
    history.arrays["train/loss"][7] *= 1 + 2e-6
    store = RunStore(tmp_path / "other")
    fill(store, tmp_path, [("linear", "")], as_in_the_paper, labels=["gd+m"])
    store.save(history, step=STEPS)
    wrong = mean_of(Results(store, "quick", presets=tmp_path))
    assert (wrong.verdict, wrong.measured) == ("not reproduced", pytest.approx(2e-6, rel=0.1))


def mean_of(results):
    return next(c for c in figure("fig04").claims(results) if c.claim == "overall-is-mean")


RATIOS = ("ahead", "rare-gap", "direction", "sign-as", "helps", "is-less", "weighted", "inverse")
AREAS = ("gap-appears", "uniform", "adam-unaffected", "sgd-degrades", "adam-faster", "worse-with")


def scaled(losses, factor):
    """Losses whose distance from 5 nats is scaled."""
    return lambda *which: 5 + (losses(*which) - 5) * factor


@pytest.mark.parametrize("name", ["fig03", "fig04", "fig05", "fig11", "fig12", "fig13", "fig14", "fig22"])
def test_where_nobody_has_moved_nothing_is_compared(name, tmp_path):
    """Comparisons of optimizers of which none has come below 0.9 of its initial loss are undecided."""
    sweeps = sorted({(ref.preset, ref.variant) for ref in figure(name).sweeps})
    results = results_of(tmp_path, scaled(as_in_the_paper, 0.05), sweeps)
    claims = {c.claim: c for c in figure(name).claims(results)}
    found = [c for one, c in claims.items() if any(part in one for part in (*RATIOS, *AREAS))]
    assert found
    assert {c.verdict for c in found} == {"undecided"}
    assert all("not informative" in c.reason and math.isfinite(c.measured) for c in found)


@pytest.mark.parametrize("name", ["fig04", "fig05", "fig18", "fig22"])
def test_solved_losses_are_not_compared(name, tmp_path):
    """A ratio of final losses that are all below 0.01 of their initial value is noise: undecided."""
    sweeps = sorted({(ref.preset, ref.variant) for ref in figure(name).sweeps})

    def solved(preset, variant, label, lr, seed):
        rng = np.random.default_rng(len(preset + variant + label))
        shape = (STEPS + 1, 2 if preset == "cnn" else 4)
        return np.where(np.arange(STEPS + 1)[:, None] < 30, 5.0, rng.uniform(1e-3, 0.04, shape))

    claims = {c.claim: c for c in figure(name).claims(results_of(tmp_path, solved, sweeps))}
    found = [c for one, c in claims.items() if any(part in one for part in RATIOS)]
    assert found
    assert {c.verdict for c in found} == {"undecided"}


def test_areas_are_measured_over_the_run(paper):
    """A and D are the mean over rows of L / init, written as a loop; solving both in the end does not hide a gap."""
    uniform, heavy = (SweepRef("resnet18", ("gd+m", "adam+m"), variant) for variant in ("uniform", "heavy-tailed"))
    for ref in (uniform, heavy):
        for rare in (False, True):
            areas = []
            for label in ("gd+m", "adam+m"):
                losses = as_in_the_paper(ref.preset, ref.variant, label, 1.0, 0)
                curve = [row[-1] if rare else sum(row) / len(row) for row in losses]
                areas.append(sum(value / curve[0] for value in curve) / len(curve))
                run = paper.selected(ref, label)
                assert area(run, rare=rare) == pytest.approx(areas[-1], rel=1e-6)
            runs = [paper.selected(ref, label) for label in ("gd+m", "adam+m")]
            assert lag(*runs, rare=rare) == pytest.approx(areas[0] - areas[1], abs=1e-6)


def test_measured_numbers_are_the_ones_put_in(paper):
    """Claims measure what they state, worked out by hand from the losses put in."""
    measured = {(n, c.claim): c.measured for n in FIXED for c in figure(n).claims(paper)}
    fall = lambda t: (1 - np.exp(-4 * t)) / (1 - math.exp(-4))  # noqa: E731
    end = lambda loss: 5 + (loss - 5) * fall(np.linspace(0.91, 1, 10)).mean()  # noqa: E731
    half = lambda loss: 5 + (loss - 5) * fall(np.linspace(0.46, 0.5, 5)).mean()  # noqa: E731
    gd, adam = end(12.7 / 4), end(3.8 / 4)
    over = fall(np.linspace(0, 1, 101)).mean()  # of the whole run
    by_hand = {
        ("fig18", "rare-stays"): end(5.2) / 5,
        ("fig18", "frequent-falls"): end(1) / 5,
        ("fig18", "adam-lowers-all"): end(1.5) / 5,
        ("fig18", "adam-ahead"): adam / gd,
        ("fig18", "ordered"): 1.0,
        ("fig18", "rare-gap"): end(1.5) / end(5.2),
        ("fig04", "rare-first-rises"): 5.2 / 5,
        ("fig19", "direction-matters+m"): half(1.8) / half(5),
        ("fig19", "direction-beats-length-m"): half(4.6 / 4) / half(12.3 / 4),
        ("fig05", "direction-beats-length-m"): end(4.6 / 4) / end(12.3 / 4),
        ("fig05", "sign-as-adam+m"): end(4.6 / 4) / adam,
        ("fig05", "normalising-helps-m"): end(12.3 / 4) / gd,
        ("fig05", "momentum-helps"): 1.0,
        ("fig05", "momentum-is-less"): end(1.8) / end(5.2),
        ("fig02", "digits-fall"): end(1) / 5,
        ("fig02", "gd-stalls"): 0.0,
        ("fig02", "equal-groups"): 0.5,
        ("fig03", "similar-when-uniform"): 0.0,
        ("fig03", "gap-appears"): (12.7 - 3.8) / 4 / 5 * over,
        ("fig03", "rare-gap-appears"): (5.2 - 1.5) / 5 * over,
        ("fig13", "adam-unaffected"): (1.4 / 4 - 0.2) / 5 * over,
        ("fig14", "balanced-solved"): 0.1 / 5,
        ("fig14", "combined-stays"): end(3) / 5,
        ("fig15", "aligned-apart"): end(5.2) / end(1),
        ("fig15", "orthogonal-level"): 1 / 1.5,
        ("fig16", "rare-rises"): 5.2 / 5,
        ("fig16", "all-fall"): 1 / 5,
        ("fig16", "below-only-after-1k"): 5.1 / 5,
        ("fig22", "weighted-rare-cnn"): end(3) / 5,
        ("fig22", "inverse-hurts-resnet18"): end(4) / gd,
    }
    for key, value in by_hand.items():
        assert measured[key] == pytest.approx(value, rel=1e-6, abs=1e-9), key


@pytest.mark.parametrize(
    ("measured", "comparison", "threshold", "holds"),
    [
        (0.9, "<=", 0.9, True),
        (0.91, "<=", 0.9, False),
        (0.9, ">=", 0.9, True),
        (0.89, ">=", 0.9, False),
        (1.0, "<", 1.0, False),
        (0.99, "<", 1.0, True),
        (0.0, ">", 0.0, False),
        (0.01, ">", 0.0, True),
        (0.67, "within", (0.67, 1.5), True),
        (1.5, "within", (0.67, 1.5), True),
        (1.51, "within", (0.67, 1.5), False),
        (0.66, "within", (0.67, 1.5), False),
        (math.inf, ">=", 0.9, True),
        (math.inf, "<=", 0.9, False),
        (-math.inf, "<=", 0.9, True),
    ],
)
def test_verdict(measured, comparison, threshold, holds):
    """The verdict compares the measured number with the threshold as declared, ends included where it says so."""
    claim = Claim("fig99", "c", "s", measured, comparison, threshold, "quick")
    assert claim.verdict == ("reproduced" if holds else "not reproduced")


@pytest.mark.parametrize(
    ("per_seed", "verdict"),
    [
        ((0.5,), "reproduced"),
        ((0.5, 0.9, 0.1), "reproduced"),
        ((0.5, 0.91, 0.1), "undecided"),
        ((0.95, 0.91, 0.1), "undecided"),
        ((0.95, 0.91, 2.0), "not reproduced"),
        ((0.5, math.nan, 0.1), "undecided"),
        ((math.inf, math.inf, math.nan), "not reproduced"),
    ],
)
def test_a_verdict_needs_all_seeds(per_seed, verdict):
    """Reproduced on every verdict seed, not reproduced on none, undecided where seeds disagree."""
    values = iter(per_seed)
    rule = claim("c", "<=", 0.9, "a statement", lambda results: next(values), quote="figure 9", kind="exact")
    made = rule.check("fig99", Results(RunStore(Path("none")), "small"), seeds=len(per_seed))
    assert (made.verdict, made.kind, made.quote) == (verdict, "exact", "figure 9")
    np.testing.assert_array_equal(made.measured, np.median(per_seed))
    row = json.loads(json.dumps(made.to_dict(), allow_nan=False))
    assert row["per_seed"] == [value if math.isfinite(value) else None for value in per_seed]


@pytest.mark.parametrize("doubtful", [(0,), (2,), (0, 1, 2)])
@pytest.mark.parametrize("value", [0.5, 2.0])
def test_a_doubtful_seed_leaves_a_claim_undecided(doubtful, value):
    """Where the runs of a seed cannot decide a comparison the claim is undecided, with the reason and the number."""

    def measure(results):
        if results.place in doubtful:
            raise NotInformative(value, "all is solved")
        return value

    results = Results(RunStore(Path("none")), "small")
    made = claim("c", "<=", 0.9, "a statement", measure).check("fig99", results, seeds=3)
    assert (made.verdict, made.measured, made.per_seed) == ("undecided", value, (value,) * 3)
    assert made.to_dict()["reason"] == "not informative: all is solved"


@pytest.mark.parametrize(
    ("measured", "comparison", "threshold", "margin"),
    [
        (0.45, "<=", 0.9, 0.5),
        (0.99, "<=", 0.9, -0.1),
        (1.8, ">=", 0.9, 1.0),
        (0.0, ">=", 0.9, -1.0),
        (0.25, ">", 0.0, 0.25),
        (-0.25, "<", 0.0, 0.25),
        (-0.9, "<=", -0.9, 0.0),
        (-1.0, "within", (-1.3, -0.7), 1.0),
        (-0.7, "within", (-1.3, -0.7), 0.0),
        (-0.4, "within", (-1.3, -0.7), -1.0),
        (math.inf, ">=", 0.9, None),
        (math.nan, ">=", 0.9, None),
        (None, ">=", 0.9, None),
    ],
)
def test_margin(measured, comparison, threshold, margin):
    """The margin is the distance from the threshold in its units, positive where the claim holds."""
    made = Claim("fig99", "c", "s", measured, comparison, threshold, "quick")
    assert made.margin == (None if margin is None else pytest.approx(margin, abs=1e-12))
    if margin:
        assert (made.verdict == "reproduced") == (margin > 0)


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([], ""),
        (["reproduced", "not reproduced"], "1 of 2"),
        (["reproduced", "undecided", "undecided", "not run"], "1 of 4, 2 undecided, 1 not run"),
        (["not run", "not run"], "not run"),
        (["exact reproduced"], "exact 1 of 1"),
        (["exact not reproduced", "reproduced"], "1 of 1; exact 0 of 1"),
    ],
)
def test_exact_claims_are_counted_apart(rows, text):
    """A total of claims never adds identities to measurements."""
    made = [{"verdict": row.removeprefix("exact "), "kind": ["measured", "exact"]["exact" in row]} for row in rows]
    assert summary(made) == text


@pytest.mark.parametrize(
    ("comparison", "threshold"), [("<=", 1.0), (">=", 1.0), ("<", 1.0), (">", 1.0), ("within", (0.0, 1.0))]
)
def test_undefined_is_not_reproduced(comparison, threshold):
    """NaN meets no threshold, and becomes null with its reason in JSON."""
    claim = Claim("fig99", "c", "s", math.nan, comparison, threshold, "quick")
    assert claim.verdict == "not reproduced"
    assert claim.to_dict()["measured"] is None
    assert "NaN" in claim.to_dict()["reason"]


@pytest.mark.parametrize("measured", [None, 0.5, math.inf, math.nan])
def test_claim_as_a_table(measured):
    """A claim's table begins with figure, claim, verdict, measured, threshold, scale, and is strict JSON."""
    table = Claim("fig99", "c", "s", measured, "within", (0.0, 1.0), "small", "because").to_dict()
    assert list(table)[:6] == ["figure", "claim", "verdict", "measured", "threshold", "scale"]
    assert json.loads(json.dumps(table, allow_nan=False))["threshold"] == [0.0, 1.0]
    assert "because" in table["reason"]


def test_a_claim_without_its_runs_is_not_run(tmp_path):
    """With an empty store every claim still appears, with its threshold, and the command that makes its runs."""
    write_presets(tmp_path, SWEEPS, steps=STEPS, seeds=1)
    results = Results(RunStore(tmp_path), "quick", presets=tmp_path)
    for name, rules in FIXED.items():
        claims = figure(name).claims(results)
        assert {c.claim: (c.comparison, c.threshold) for c in claims} == rules
        assert {c.verdict for c in claims} == {"not run"}
        assert all(f"heavytail reproduce {name} --scale quick" in c.reason for c in claims)


def test_claims_whose_runs_are_there_are_checked(tmp_path):
    """A missing optimizer leaves the claims on the others standing: only those that need it are not run."""
    present = [label for label in EIGHT if label != "normalized-gd-m"]
    results = results_of(tmp_path, as_in_the_paper, [("linear", "")], labels=present)
    verdicts = {c.claim: c.verdict for c in figure("fig19").claims(results)}
    missing = {"direction-matters-m", "direction-beats-length-m", "normalising-helps-m"}
    assert verdicts == {name: "not run" if name in missing else "reproduced" for name in DIRECTION}


def test_a_known_reason_is_told(tmp_path):
    """Where it is known why runs could not be finished, the claims that need them say so, and no others."""
    present = [label for label in EIGHT if label != "normalized-gd-m"]
    results = results_of(tmp_path, as_in_the_paper, [("linear", "")], labels=present)
    claims = figure("fig19").claims(results, "out of memory")
    assert {c.reason for c in claims if c.verdict == "not run"} == {"out of memory"}
    assert {c.reason for c in claims if c.verdict != "not run"} == {""}


def test_no_stable_step_size_counts_as_an_infinite_loss(tmp_path):
    """Claims on an optimizer that always diverged are computed with infinity, which reproduces none of them."""

    def losses(preset, variant, label, lr, seed):
        return None if label == "gd+m" else as_in_the_paper(preset, variant, label, lr, seed)

    results = results_of(tmp_path, losses, [("one-layer-transformer", "")])
    claims = {c.claim: c for c in figure("fig18").claims(results)}
    assert (claims["adam-ahead"].measured, claims["adam-ahead"].verdict) == (0.0, "undecided")
    assert claims["adam-lowers-all"].verdict == "reproduced"
    assert (claims["rare-stays"].measured, claims["rare-stays"].verdict) == (math.inf, "undecided")
    assert claims["frequent-falls"].verdict == "not reproduced"
    assert claims["ordered"].verdict == "not reproduced"  # no order among equals
    reason = claims["rare-stays"].to_dict()["reason"]
    assert reason == "measured: infinite (inf); not informative: gd+m has no stable step size"


MEASURING = [*sorted((ROOT / "heavytail/figures").glob("*.py")), ROOT / "heavytail/results/claims.py"]


@pytest.mark.parametrize("file", MEASURING, ids=lambda file: file.stem)
def test_extremes_of_measurements_keep_nan(file):
    """`max` and `min` of Python drop a NaN that does not come first, so that no measurement may pass through them."""
    calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    found = [
        f"{file.name}:{node.lineno}"
        for node in calls
        if isinstance(node.func, ast.Name)
        and node.func.id in ("max", "min")
        and len(node.args) == 1
        and not any(keyword.arg == "key" for keyword in node.keywords)
    ]
    assert not found


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [(1.0, 2.0, 0.5), (0.0, 0.0, 1.0), (1.0, 0.0, math.inf), (0.0, 1.0, 0.0), (1.0, math.inf, 0.0)],
)
def test_ratio(a, b, expected):
    """A ratio of losses is 1 for 0/0, infinite for x/0, and a plain quotient otherwise."""
    assert ratio(a, b) == expected


def test_ratio_of_unknowns():
    """Two infinite losses, or a NaN, compare as NaN."""
    assert all(math.isnan(ratio(a, b)) for a, b in [(math.inf, math.inf), (math.nan, 0.0), (1.0, math.nan)])


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=12))
def test_spearman_is_the_correlation_of_ranks(pairs):
    """The rank correlation is Pearson's of mean ranks, counted pair by pair, and NaN where one side is constant."""
    ranks = [[sum((w < v) + (w == v) / 2 for w in side) for v in side] for side in zip(*pairs, strict=True)]
    x, y = np.array(pairs, dtype=float).T
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert math.isnan(spearman(x, y))
    else:
        assert spearman(x, y) == pytest.approx(np.corrcoef(ranks)[0, 1], abs=1e-12)


def test_a_gap_claim_must_exist():
    """A misspelt claim is refused with the nearest name."""
    with pytest.raises(SpecError, match="did you mean 'rare-gap'"):
        gap_rules(SweepRef("linear"), "rare-gaps")


def test_every_claim_has_a_statement():
    """Every claim of every figure says what it measures, and its threshold fits its comparison."""
    for made in all_figures():
        for rule in made.rules:
            assert len(rule.statement) > 10, (made.id, rule.id)
            assert isinstance(rule.threshold, tuple) == (rule.comparison == "within"), (made.id, rule.id)
