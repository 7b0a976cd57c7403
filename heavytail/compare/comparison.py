"""The comparison: every optimizer on every problem, beside gradient descent and Adam, and the verdict on each.

Nothing here trains: `Comparison.missing` returns the missing runs, given the finished ones, and `rows` reads those.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from heavytail.compare.search import SPARSE, Found, search, unmoved
from heavytail.compare.statistics import LEVEL, RESOLUTION, Array, Share, closed, differs, paired_p
from heavytail.errors import SpecError, StoreError, unknown
from heavytail.experiment.registry import Component, registry
from heavytail.experiment.search import Candidate, Grid, Lookup
from heavytail.experiment.spec import RunSpec
from heavytail.experiment.store import History, RunStore
from heavytail.experiment.sweep import Arm, Sweep
from heavytail.experiment.waves import Waves, waves

PROBLEMS = ("linear", "memory", "bigram", "transformer", "cnn")
PRESET: str | Path = "compare"  # its variants are the problems
GD, ADAM = "gd+m", "adam+m"  # labels of the baselines in the preset
BASELINES = {GD: "GD", ADAM: "Adam"}
SEARCH_SEEDS = (0, 1, 2)
FIRST_SEED, FEWEST_SEEDS = 100, 3
UNSTABLE, BETTER, WORSE, SAME = "unstable", "better on the tail", "worse on the tail", "no difference found"
BASELINE, NOT_JUDGED = "baseline", "not judged"


@dataclass(frozen=True)
class Trial:
    """One optimizer on one problem.

    Attributes:
        optimizer: its name in tables.
        problem: name of the problem.
        sweep: the problem's runs and seeds.
        arm: the optimizer.
    """

    optimizer: str
    problem: str
    sweep: Sweep
    arm: Arm

    def search(self, lookup: Lookup) -> Found:
        """Return the selected step size and the runs that are needed next, those of the verdict seeds last."""
        chosen, todo = search(self.sweep, self.arm, lookup)
        if chosen is None or todo:
            return chosen, todo
        return chosen, [spec for spec in self.verdict(chosen) if lookup(spec) is None]

    def waves(self, lookup: Lookup) -> Waves:
        """Return the runs that the search is expected to need, wave by wave."""
        middle = self.sweep.spec(self.arm, SPARSE[len(SPARSE) // 2], self.sweep.seeds[0])
        return waves(lambda found: self.search(found)[1], lookup, middle.lr)

    def verdict(self, chosen: Candidate) -> list[RunSpec]:
        """Return the runs that the verdict rests on."""
        return [self.sweep.spec(self.arm, chosen.exponent, seed) for seed in self.sweep.verdict_seeds]


@dataclass(frozen=True)
class Losses:
    """Losses of one trial over the verdict seeds; n seeds, E recorded steps, G groups.

    Attributes:
        step: recorded steps [E].
        overall: [n, E].
        groups: after the last step [n, G]; NaN for a group without samples.
    """

    step: Array
    overall: Array
    groups: Array

    @property
    def rarest(self) -> Array:
        """Of the last group [n]."""
        last: Array = self.groups[:, -1]
        return last

    @classmethod
    def read(cls, trial: Trial, chosen: Candidate, store: RunStore) -> Losses | None:
        """Read the runs of the verdict seeds; None if one of them diverged."""
        histories = [_history(store, spec) for spec in trial.verdict(chosen)]
        if any(h.status == "diverged" or not np.isfinite(h.loss).all() for h in histories):
            return None
        overall = np.stack([h.loss for h in histories])
        return cls(histories[0].step, overall, np.stack([h.group_loss()[-1] for h in histories]))


def _history(store: RunStore, spec: RunSpec) -> History:
    history = store.load(spec)
    if history is None:
        raise StoreError(f"{store.folder(spec)}: the run of {spec.describe()} is gone; repeat the command")
    return history


@dataclass(frozen=True)
class Comparison:
    """All trials of a comparison; those of the baselines come first."""

    trials: tuple[Trial, ...]

    @classmethod
    def of(
        cls,
        optimizers: Mapping[str, Component],
        problems: Sequence[str],
        *,
        scale: str,
        num_seeds: int,
        data_dir: Path,
    ) -> Comparison:
        """Return the comparison of optimizers on problems.

        Args:
            optimizers: the components by their names in tables.
            problems: names of PROBLEMS.
            scale: "paper", "small" or "quick".
            num_seeds: number of verdict seeds.
            data_dir: the data folder.

        Raises:
            SpecError: an optimizer, one of its settings or a problem is unknown, or there are too few seeds.
        """
        if num_seeds < FEWEST_SEEDS:
            raise SpecError(f"--seeds: expected at least {FEWEST_SEEDS}, got {num_seeds}")
        for problem in problems:
            if problem not in PROBLEMS:
                raise unknown("problem", problem, PROBLEMS)
        seeds = tuple(range(FIRST_SEED, FIRST_SEED + num_seeds))
        grid = Grid(SPARSE, refine=1)
        trials: list[Trial] = []
        for problem in problems:
            sweep = Sweep.load(PRESET, scale=scale, variant=problem).pinned(data_dir)
            sweep = replace(sweep, seeds=SEARCH_SEEDS, verdict_seeds=seeds)
            arms = {name: sweep.arm(label) for label, name in BASELINES.items()}
            for name, component in optimizers.items():
                registry("optim").make(component)  # raise on an unknown name or setting before any training
                arms[name] = Arm(name, component, grid)
            trials += [Trial(name, problem, replace(sweep, _specs={}), arm) for name, arm in arms.items()]
        return cls(tuple(sorted(trials, key=lambda t: t.optimizer not in BASELINES.values())))

    def missing(self, lookup: Lookup) -> dict[tuple[str, str], list[RunSpec]]:
        """Return the runs that each trial needs next, by problem and optimizer; none when it is finished."""
        return {(trial.problem, trial.optimizer): trial.search(lookup)[1] for trial in self.trials}

    def only(self, problem: str, optimizer: str) -> Comparison:
        """Return the comparison of one optimizer on one problem; its trial is the last one."""
        names = (*BASELINES.values(), optimizer)
        return Comparison(tuple(t for t in self.trials if t.problem == problem and t.optimizer in names))

    def rows(self, lookup: Lookup, store: RunStore, reason: Callable[[RunSpec], str | None]) -> list[dict[str, Any]]:
        """Return the content of compare.json: one row per trial, baselines included.

        Args:
            lookup: the outcome of a finished run.
            store: of the runs.
            reason: why a run could not be trained; None if it was not tried.
        """
        measured: dict[tuple[str, str], Losses | None] = {}
        made: list[dict[str, Any]] = []
        for trial in self.trials:
            chosen, todo = trial.search(lookup)
            losses = Losses.read(trial, chosen, store) if chosen is not None and not todo else None
            measured[trial.problem, trial.optimizer] = losses
            row = _facts(trial, chosen if not todo else None, losses)
            gd, adam = (
                (measured[trial.problem, name] for name in BASELINES.values())
                if not _is_baseline(trial)
                else (None, None)
            )
            if todo:
                row |= _verdict(NOT_JUDGED, next(filter(None, map(reason, todo)), "runs are missing"))
            elif chosen is None and unmoved(trial.sweep, trial.arm, lookup):
                row |= _verdict(NOT_JUDGED, "step() changes no parameter; does it need a closure?")
            elif losses is None:
                row |= _verdict(
                    UNSTABLE, "no step size is stable" if chosen is None else "a run with a verdict seed diverged"
                )
            elif _is_baseline(trial):
                row |= _verdict(BASELINE, "")
            elif gd is None or adam is None:
                failed = BASELINES[GD] if gd is None else BASELINES[ADAM]
                (why,) = (r["sentence"] for r in made if (r["optimizer"], r["problem"]) == (failed, trial.problem))
                row |= _verdict(NOT_JUDGED, f"the baseline {failed}: {why}")
            else:
                row |= judge(losses, gd, adam)
            made.append(row)
        return made


def _is_baseline(trial: Trial) -> bool:
    return trial.optimizer in BASELINES.values()


def _facts(trial: Trial, chosen: Candidate | None, losses: Losses | None) -> dict[str, Any]:
    """What is measured of one trial alone; null where there is no finished run."""
    return {
        "optimizer": trial.optimizer,
        "settings": trial.arm.optim.to_dict(),
        "problem": trial.problem,
        "scale": trial.sweep.scale,
        "lr": None if chosen is None else chosen.lr,
        "seeds": list(trial.sweep.verdict_seeds),
        "loss": None if losses is None else losses.overall[:, -1].tolist(),
        "loss_rarest": None if losses is None else losses.rarest.tolist(),
        "group_losses": None
        if losses is None
        else [float(g) if np.isfinite(g) else None for g in losses.groups.mean(axis=0)],
        "closed_overall": None,
        "closed_overall_interval": None,
        "closed_rarest": None,
        "closed_rarest_interval": None,
        "p_value": None,
        "steps_to_adam": None,
    }


def judge(losses: Losses, gd: Losses, adam: Losses) -> dict[str, Any]:
    """Return the measures of docs/compare.md on the same seeds, and the verdict."""
    difference = adam.rarest - losses.rarest
    p = paired_p(difference)
    verdict = SAME
    if differs(difference):
        verdict = BETTER if difference.mean() > 0 else WORSE
    overall = closed(gd.overall[:, -1], adam.overall[:, -1], losses.overall[:, -1])
    rarest = closed(gd.rarest, adam.rarest, losses.rarest)
    reached = np.median(losses.overall, axis=0) <= np.median(adam.overall[:, -1]) + RESOLUTION
    return {
        "closed_overall": overall and overall.value,
        "closed_overall_interval": overall and [overall.low, overall.high],
        "closed_rarest": rarest and rarest.value,
        "closed_rarest_interval": rarest and [rarest.low, rarest.high],
        "p_value": p,
        "steps_to_adam": int(losses.step[reached.argmax()]) if reached.any() else None,
        **_verdict(verdict, sentence(verdict, p, len(difference), overall, rarest)),
    }


def sentence(verdict: str, p: float, seeds: int, overall: Share | None, rarest: Share | None) -> str:
    """Return the verdict in words, made from the measures alone.

    >>> sentence(SAME, 0.2, 5, Share(0.9, 0.8, 1.0), None)
    'no gap from GD to Adam on the rarest group, closes 90 % overall; no difference from Adam found (p = 0.2, 5 seeds)'
    """
    if rarest is None:
        share, closes = "no gap from GD to Adam on the rarest group", "closes "
    else:
        value, low, high = (f"{100 * x:.0f}" for x in (rarest.value, rarest.low, rarest.high))
        share, closes = f"closes {value} % [{low}, {high}] of the gap on the rarest group", ""
    share += f", {closes}{100 * overall.value:.0f} % overall" if overall is not None else ""
    words = {BETTER: "better than Adam on it", WORSE: "worse than Adam on it", SAME: "no difference from Adam found"}
    return f"{share}; {words[verdict]} (p = {p:.2g}, {seeds} seeds)"


def _verdict(verdict: str, text: str) -> dict[str, Any]:
    return {"verdict": verdict, "sentence": text}


def tests(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the number of tests, and how many found an optimizer better or worse than Adam, in words."""
    verdicts = [row["verdict"] for row in rows if row["p_value"] is not None]
    better, worse = verdicts.count(BETTER), verdicts.count(WORSE)
    tested = f"{len(verdicts)} test{'s' * (len(verdicts) != 1)} at p < {LEVEL}"
    chance = f"(differences expected by chance: {LEVEL * len(verdicts):.2g})"
    return f"{tested}: better than Adam in {better}, worse in {worse}, no difference found in the others {chance}"
