"""Results: finished runs of a store, reduced to the curves that figures read; nothing here trains.

A figure names the sweeps that it needs; `Results` selects each optimizer's step size by the paper's rule and reduces
the histories of its verdict seeds to curves per frequency group, so that a [E, C] array is held for one run at a time.
`for_seed` restricts all of it to one seed; a claim is measured on each.

Shapes: S verdict seeds, E recorded steps, C classes, G frequency groups. Losses are in nats.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heavytail.errors import HeavyTailError, SpecError, StoreError
from heavytail.experiment.registry import Component, registry
from heavytail.experiment.search import Best
from heavytail.experiment.spec import RunSpec
from heavytail.experiment.store import History, RunStore
from heavytail.experiment.sweep import Sweep

Array = NDArray[Any]
SPLITS = ("train", "test")


class MissingRuns(HeavyTailError):
    """The runs that a figure needs are not finished; the message names the command that runs them."""


@dataclass(frozen=True)
class SweepRef:
    """A reference to a sweep of a preset, as figures declare them.

    Attributes:
        preset: name of the preset.
        optim: labels of the optimizers ("gd+m", "adam-m"); empty for all of the preset.
        variant: of the preset, "" for none.
        probed: whether the figure reads the preset's probes, measured along the selected runs.
        shown: share of the runs' steps that the figure shows and judges, by scale; all of them where it is not given.
    """

    preset: str
    optim: tuple[str, ...] = ()
    variant: str = ""
    probed: bool = False
    shown: Mapping[str, float] = field(default_factory=dict, hash=False)

    def load(self, scale: str, presets: Path | None = None) -> Sweep:
        """Load the sweep, restricted to these optimizers.

        Args:
            scale: "paper", "small" or "quick".
            presets: folder to read the preset from; by default one that comes with the package.
        """
        preset = self.preset if presets is None else presets / f"{self.preset}.toml"
        sweep = Sweep.load(preset, scale=scale, variant=self.variant)
        sweep = sweep if self.probed else sweep.unprobed()
        return sweep.only(self.optim) if self.optim else sweep


@dataclass(frozen=True)
class Selected:
    """One optimizer at its selected step size, on one split of the data: the runs of the verdict seeds.

    If no step size was stable, the curves are empty and the final losses infinite; the initial losses are given. If a
    run diverged, its losses are infinite from there on. "Final" is the mean over the last tenth of the recorded rows
    (at least one), which a trough of an oscillation cannot decide.

    Attributes:
        label: label of the optimizer.
        best: the search that selected its step size.
        split: "train" or "test".
        stochastic: whether the runs used mini-batches ("SGD") or not ("GD").
        steps: number of steps of a run that does not diverge.
        step: recorded steps [E].
        loss: overall loss of every seed [S, E].
        group_loss: loss of every frequency group [S, E, G], most frequent group first; NaN for one without samples.
        start: overall loss of every seed at step 0 [S].
        group_start: the same for each group [S, G].
        group: frequency group of each class [C].
        counts: samples of each class in the split [C]. Histories of 0.1.0 have none of the training split where their
            rows sum mini-batches; these are the draws of all rows.
        environments: versions and devices of the runs, without duplicates.
    """

    label: str
    best: Best
    split: str
    stochastic: bool
    steps: int
    step: Array
    loss: Array
    group_loss: Array
    start: Array
    group_start: Array
    group: Array
    counts: Array
    environments: tuple[Mapping[str, Any], ...] = ()

    @property
    def lr(self) -> float | None:
        """The selected step size, None if none was stable."""
        return self.best.chosen.lr if self.best.chosen else None

    @property
    def failure(self) -> str:
        """Why its losses are infinite at the end: no stable step size, or a divergence; empty if they are not."""
        if self.lr is None:
            return f"{self.label} has no stable step size"
        return "" if np.isfinite(self.loss).all() else f"{self.label} diverged at its selected step size"

    @property
    def num_groups(self) -> int:
        """G."""
        return int(self.group_start.shape[1])

    @property
    def initial_loss(self) -> float:
        """Median over seeds of the overall loss at step 0."""
        return float(np.median(self.start))

    @property
    def initial_group_loss(self) -> Array:
        """Median over seeds of each group's loss at step 0, [G]."""
        return np.median(self.group_start, axis=0)

    @property
    def final_loss(self) -> float:
        """Median over seeds of the overall loss, averaged over the last tenth of the rows."""
        return float(np.median(self._last(self.loss))) if self.step.size else float("inf")

    @property
    def final_group_loss(self) -> Array:
        """Median over seeds of each group's loss, averaged over the last tenth of the rows, [G]."""
        if not self.step.size:
            return np.where(np.isnan(self.initial_group_loss), np.nan, np.inf)
        return np.median(self._last(self.group_loss), axis=0)

    def until(self, share: float) -> Selected:
        """Return the first part of the run, up to a share of its steps; "final" is then the end of that part."""
        rows = int(np.searchsorted(self.step, share * self.steps, side="right"))
        return replace(self, step=self.step[:rows], loss=self.loss[:, :rows], group_loss=self.group_loss[:, :rows])

    def only(self, place: int) -> Selected:
        """Return the run of one verdict seed, by its place (the last if there are fewer); all if none was stable."""
        if self.best.chosen is None:
            return self
        place = min(place, len(self.loss) - 1)
        mine = slice(place, place + 1)
        return replace(
            self,
            loss=self.loss[mine],
            group_loss=self.group_loss[mine],
            start=self.start[mine],
            group_start=self.group_start[mine],
        )

    def _last(self, losses: Array) -> Array:
        """The mean of losses [S, E, ...] over the last tenth of the rows."""
        mean: Array = losses[:, -max(1, len(self.step) // 10) :].mean(axis=1)
        return mean

    def curve(self) -> tuple[Array, Array, Array, Array]:
        """Return steps, and the median, minimum and maximum over seeds of the overall loss; [E] each."""
        return self.step, np.median(self.loss, axis=0), self.loss.min(axis=0), self.loss.max(axis=0)

    def group_curves(self) -> Array:
        """Return the median over seeds of each group's loss, [E, G]."""
        return np.median(self.group_loss, axis=0)

    def group_loss_at(self, step: int) -> Array:
        """Return the median over seeds of each group's loss at the last recorded step up to `step`, [G]."""
        if not self.step.size:
            return self.final_group_loss
        row = np.searchsorted(self.step, step, side="right") - 1
        losses: Array = self.group_curves()[row]
        return losses


@dataclass(frozen=True)
class Results:
    """The finished runs of a store, at one scale.

    Attributes:
        store: store of the runs.
        scale: "paper", "small" or "quick".
        presets: folder to read presets from; by default those that come with the package.
        figure: id of the current figure, for the command in error messages.
        data_dir: the data folder, for figures of the data themselves.
        place: place of the only verdict seed that is read; None for all of them.
        failures: of the runs selected so far (`Selected.failure`).
    """

    store: RunStore
    scale: str
    presets: Path | None = None
    figure: str = ""
    data_dir: Path | None = None
    place: int | None = None
    failures: list[str] = field(default_factory=list, repr=False)
    _sweeps: dict[SweepRef, Sweep] = field(default_factory=dict, repr=False)
    _searches: dict[tuple[str, str, str], Best] = field(default_factory=dict, repr=False)
    _selected: dict[tuple[str, str, str], dict[str, Selected]] = field(default_factory=dict, repr=False)

    def for_figure(self, name: str) -> Results:
        """Return these results with a figure's name in messages; the cache is shared."""
        return replace(self, figure=name)

    def for_seed(self, place: int | None) -> Results:
        """Return these results with one verdict seed of each sweep, by its place; the cache is shared."""
        return replace(self, place=place, failures=[])

    def sweep(self, ref: SweepRef) -> Sweep:
        """Return a sweep, restricted to the optimizers of the reference."""
        if ref not in self._sweeps:
            sweep = ref.load(self.scale, self.presets)
            self._sweeps[ref] = sweep if self.data_dir is None else sweep.pinned(self.data_dir)
        return self._sweeps[ref]

    def labels(self, ref: SweepRef) -> tuple[str, ...]:
        """Return the labels of the optimizers of a reference."""
        return ref.optim or tuple(arm.label for arm in self.sweep(ref).arms)

    def data_title(self, ref: SweepRef) -> str:
        """Return the title of a sweep's data set; a smaller scale may use another data set."""
        component = Component.parse(self.sweep(ref).run["data"], "data")
        return str(registry("data").make(component).title)

    def search(self, ref: SweepRef, label: str) -> Best:
        """Return the finished search for an optimizer's step size; raises MissingRuns if it is not finished."""
        key = (ref.preset, ref.variant, label)
        if key not in self._searches:
            best = self.sweep(ref).best(label, self.store.outcome)
            if best is None:
                sweep = " ".join(filter(None, [ref.preset, ref.variant]))
                raise MissingRuns(
                    f"{sweep}, {label}: its step-size search is not finished; "
                    f"run `heavytail reproduce {self.figure or 'FIGURE'} --scale {self.scale}`"
                )
            self._searches[key] = best
        return self._searches[key]

    def selected(self, ref: SweepRef, label: str, split: str = "train") -> Selected:
        """Return one optimizer at its selected step size: the runs of its verdict seeds, or of one, as far as shown.

        Args:
            ref: the sweep.
            label: of the optimizer.
            split: "train" or "test".

        Raises:
            MissingRuns: the search is not finished, or a run of a verdict seed is missing.
            SpecError: the preset records no losses on this split.
        """
        key = (ref.preset, ref.variant, label)
        if key not in self._selected:
            self._selected[key] = self._reduce(ref, self.search(ref, label))
        if split not in self._selected[key]:
            raise SpecError(f"test_every: preset '{ref.preset}' records no losses on '{split}'; expected 1 or more")
        run = self._selected[key][split].until(ref.shown.get(self.scale, 1.0))
        run = run if self.place is None else run.only(self.place)
        if run.failure:
            self.failures.append(run.failure)
        return run

    def probed(self, ref: SweepRef, label: str) -> History:
        """Return the run of a verdict seed (by default the first), with the measurements of probes under probe/<name>/.

        Raises:
            MissingRuns: the search is not finished, or selected nothing, or the run has not been measured yet, or it
                diverged.
        """
        assert ref.probed, f"{ref} has no probes"
        specs = self.sweep(ref).verdict(self.search(ref, label))
        if not specs:
            raise MissingRuns(f"{ref.preset}, {label}: no step size was stable, so no run was measured")
        history = self._load(specs[min(self.place or 0, len(specs) - 1)], ref, label)
        if history.status == "diverged":
            raise MissingRuns(f"{ref.preset}, {label}: its run with seed {history.spec.seed} diverged")
        return history

    def histories(self, ref: SweepRef, label: str) -> Iterator[History]:
        """Yield the runs of the verdict seeds, or of one; those of the smallest step size searched if none was stable.

        Raises:
            MissingRuns: the search is not finished, or a run is missing.
        """
        best, sweep = self.search(ref, label), self.sweep(ref).unprobed()
        specs = sweep.verdict(best) if best.chosen else best.candidates[0].specs
        for spec in specs if self.place is None else specs[min(self.place, len(specs) - 1) :][:1]:
            yield self._load(spec, ref, label)

    def _load(self, spec: RunSpec, ref: SweepRef, label: str) -> History:
        history = self.store.load(spec)
        if history is None:
            lacks = "is not measured" if spec.probes else "is missing"
            raise MissingRuns(
                f"{' '.join(filter(None, [ref.preset, ref.variant]))}, {label}: its run with seed {spec.seed} {lacks}; "
                f"run `heavytail reproduce {self.figure or 'FIGURE'} --scale {self.scale}`"
            )
        return history

    def _reduce(self, ref: SweepRef, best: Best) -> dict[str, Selected]:
        """Read the runs of the verdict seeds one by one."""
        runs: dict[str, list[_Run]] = {split: [] for split in SPLITS}
        counts: dict[str, Array] = {}
        group: Array | None = None  # of the first seed, as the counts: small data sets differ from seed to seed
        environments: list[Mapping[str, Any]] = []
        for history in replace(self, place=None).histories(ref, best.label):
            group = history.arrays["group"] if group is None else group
            if history.environment not in environments:
                environments.append(history.environment)
            for split in SPLITS:
                step = history.arrays.get(f"{split}/step")
                if step is not None and step.size:
                    diverged = history.status == "diverged"
                    losses = history.arrays[f"{split}/loss"].astype(np.float64), history.group_loss(split)
                    runs[split].append(_Run(step, *losses, diverged))
                    count = history.arrays[f"{split}/count"]
                    if count.ndim == 2:
                        count = history.arrays.get("samples", count.sum(axis=0))
                    counts.setdefault(split, count)
        shared = {
            "stochastic": history.spec.batch_size is not None,
            "steps": history.spec.steps,
            "group": group,
            "environments": tuple(environments),
        }
        return {
            split: _stack(best, split, mine, counts=counts[split], **shared) for split, mine in runs.items() if mine
        }


@dataclass(frozen=True)
class _Run:
    """Recorded steps [E], loss [E] and group loss [E, G] of one seed."""

    step: Array
    loss: Array
    group_loss: Array
    diverged: bool

    def padded(self, rows: int, losses: Array) -> Array:
        """Return losses [E, ...] with `rows` rows: infinite after the end of a diverged run, NaN staying NaN."""
        after = np.where(np.isnan(losses[:1]), np.nan, np.inf)
        if self.diverged:  # not even its last row counts as an outcome, if it has all of them
            losses = losses[: rows - 1]
        padded: Array = np.concatenate([losses, *[after] * (rows - len(losses))])
        return padded


def _stack(best: Best, split: str, runs: list[_Run], **shared: Any) -> Selected:
    """Stack the runs of all seeds."""
    widths = {run.group_loss.shape[1] for run in runs}
    if len(widths) > 1:
        raise StoreError(f"{best.label}: its seeds have different numbers of frequency groups ({sorted(widths)})")
    rows = slice(None) if best.chosen else slice(0)  # without a stable step size there are no curves
    longest = max(runs, key=lambda run: len(run.step)).step
    return Selected(
        label=best.label,
        best=best,
        split=split,
        step=longest[rows],
        loss=np.stack([run.padded(len(longest), run.loss) for run in runs])[:, rows],
        group_loss=np.stack([run.padded(len(longest), run.group_loss) for run in runs])[:, rows],
        start=np.array([run.loss[0] for run in runs]),
        group_start=np.stack([run.group_loss[0] for run in runs]),
        **shared,
    )
