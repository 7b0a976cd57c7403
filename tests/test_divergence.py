"""Runs that diverge: no claim is reproduced by an infinite loss, and no figure fails on one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest

from heavytail.experiment.spec import RunSpec
from heavytail.experiment.store import History, Outcome, RunStore
from heavytail.experiment.sweep import Sweep
from heavytail.plotting.panels import draw
from heavytail.results.claims import Claim
from heavytail.results.figure import all_figures, figure
from heavytail.results.results import Results, SweepRef
from tests.reference.figures import decay
from tests.test_claims import STEPS, as_in_the_paper

SEEDS = (11, 12, 13)  # of the verdicts at small scale
SEARCHED = {one.id: one for one in all_figures() if one.sweeps and not any(ref.probed for ref in one.sweeps)}
NAMES = sorted(SEARCHED.keys() - {"thm3", "table1"})  # those that read losses by frequency group
PAPER = {"cnn", "gpt2", "linear", "linear-inputs", "linear-long", "one-layer-transformer", "resnet18"}
PAPER |= {"resnet18-layernorm", "simple-vit", "two-layer-transformer"}
Pair = tuple[SweepRef, str]
_SWEEPS: dict[SweepRef, Sweep] = {}
_KNOWN: dict[str, dict[str, tuple[Pair, float]]] = {}  # by figure and key of the run


@dataclass
class MadeUp:
    """A store in which every run of a figure is finished, but for those that are `missing` or `diverge`.

    Attributes:
        name: of the figure.
        missing: an optimizer of a sweep without runs.
        diverges: whether a run diverges, at a third of its steps.
    """

    name: str
    missing: Pair | None = None
    diverges: Callable[[Pair, int], bool] = lambda pair, seed: False

    def __post_init__(self) -> None:
        self.refs, self.known = SEARCHED[self.name].sweeps, _KNOWN.setdefault(self.name, {})
        self.results = Results(cast(RunStore, self), "small", _sweeps=_SWEEPS)

    def which(self, spec: RunSpec) -> tuple[Pair, float]:
        """The sweep and optimizer of a run, and the distance of its step size from the middle of the grid."""
        if spec.key not in self.known:
            for ref in self.refs:
                sweep = self.results.sweep(ref)
                for arm in sweep.arms:
                    exponent, middle = math.log10(spec.lr), arm.grid.exponents[len(arm.grid.exponents) // 2]
                    if arm.optim == spec.optim and sweep.spec(arm, exponent, spec.seed).key == spec.key:
                        self.known[spec.key] = (ref, arm.label), abs(exponent - middle)
        return self.known[spec.key]

    def load(self, spec: RunSpec) -> History | None:
        (ref, label), distance = self.which(spec)
        if (ref, label) == self.missing:
            return None
        if ref.preset in PAPER:
            losses = as_in_the_paper(ref.preset, ref.variant, label, spec.lr, spec.seed)
        else:
            losses = decay(
                5, {"gd+m": [1, 2.5, 4, 5.2], "decay 1": [0.5, 1, 2, 4]}.get(label, [0.5, 0.8, 1, 1.5]), STEPS
            )
        losses = 5 + (losses - 5) * (1 - 0.01 * distance)
        step = np.linspace(0, spec.steps, STEPS + 1).round()
        diverged = self.diverges((ref, label), spec.seed)
        shown = slice(0, STEPS // 3 if diverged else None)
        arrays: dict[str, Any] = {"group": np.arange(losses.shape[1])}
        for split in ("train", "test"):
            arrays |= {
                f"{split}/step": step[shown].astype(int),
                f"{split}/loss": losses[shown].mean(axis=1),
                f"{split}/class_loss": losses[shown].astype(np.float32),
                f"{split}/count": np.full(losses.shape[1], 100),
            }
        return History(spec, "diverged" if diverged else "done", arrays, {"device": "made up"})

    def outcome(self, spec: RunSpec) -> Outcome | None:
        history = self.load(spec)
        if history is None:
            return None
        if history.status == "diverged":
            return Outcome("diverged", math.inf, math.inf, int(history.step[-1]))
        return Outcome("done", history.final_loss, history.peak_ratio, spec.steps)

    def claims(self) -> dict[str, Claim]:
        return {made.claim: made for made in figure(self.name).claims(self.results) if made.kind == "measured"}


def pairs(name: str) -> list[Pair]:
    made = MadeUp(name)
    return [(ref, label) for ref in made.refs for label in made.results.labels(ref)]


@pytest.mark.parametrize("name", NAMES)
def test_an_infinite_loss_reproduces_nothing(name: str) -> None:
    """A claim that needs an optimizer is not reproduced if it diverges at every step size, or on a verdict seed."""
    for pair in pairs(name):
        needing = {one for one, made in MadeUp(name, missing=pair).claims().items() if made.verdict == "not run"}
        if name == "clipping" and pair[0].preset == "clipping":
            continue  # its claims are about the better of two bounds
        for seeds in ((0, *SEEDS), SEEDS, SEEDS[1:2]):
            claims = MadeUp(name, diverges=lambda one, seed, at=pair, s=seeds: one == at and seed in s).claims()
            assert not [claims[one] for one in needing if claims[one].verdict == "reproduced"], pair
            told = [made for made in claims.values() if "not informative" in made.reason]
            assert {made.claim for made in told} <= needing
            assert all(made.verdict == "undecided" for made in told)


@pytest.mark.parametrize("seeds", [(0, *SEEDS), SEEDS], ids=["every step size", "verdict seeds"])
@pytest.mark.parametrize("name", NAMES)
def test_every_figure_is_drawn_without_a_stable_run(name: str, seeds: tuple[int, ...]) -> None:
    """Where every optimizer diverges, the figure and its claims are still made."""
    made = MadeUp(name, diverges=lambda pair, seed: seed in seeds)
    assert not [claim for claim in made.claims().values() if claim.verdict == "reproduced"]
    assert draw(figure(name), made.results).plotted
