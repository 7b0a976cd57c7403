"""Results: finished runs of a store, reduced to the curves that figures read; nothing here trains.

A figure names the sweeps that it needs; `Results` selects each optimizer's step size by the paper's rule and reduces
the histories of its seeds to curves per frequency group, so that a [E, C] array is held for one run at a time.

Shapes: S seeds, E recorded steps, C classes, G frequency groups. Losses are in nats.
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
from heavytail.experiment.search import Best, Candidate
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
    """

    preset: str
    optim: tuple[str, ...] = ()
    variant: str = ""
    probed: bool = False

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
    """One optimizer at its selected step size, on one split of the data.

    If no step size was stable, the curves are empty and the final losses infinite; the initial losses are given.

    Attributes:
        label: label of the optimizer.
        best: the search that selected its step size.
        split: "train" or "test".
        stochastic: whether the runs used mini-batches ("SGD") or not ("GD").
        step: recorded steps [E].
        loss: overall loss of every seed [S, E].
        group_loss: loss of every frequency group [S, E, G], most frequent group first; NaN for one without samples.
        initial_loss: median over seeds of the overall loss at step 0.
        initial_group_loss: the same for each group [G].
        group: frequency group of each class [C].
        counts: samples of each class [C]; where rows sum mini-batches, those of all rows.
        environments: versions and devices of the runs, without duplicates.
    """

    label: str
    best: Best
    split: str
    stochastic: bool
    step: Array
    loss: Array
    group_loss: Array
    initial_loss: float
    initial_group_loss: Array
    group: Array
    counts: Array
    environments: tuple[Mapping[str, Any], ...] = ()

    @property
    def lr(self) -> float | None:
        """The selected step size, None if none was stable."""
        return self.best.chosen.lr if self.best.chosen else None

    @property
    def num_groups(self) -> int:
        """G."""
        return len(self.initial_group_loss)

    @property
    def final_loss(self) -> float:
        """Median over seeds of the overall loss at the last step."""
        return float(np.median(self.loss[:, -1])) if self.step.size else float("inf")

    @property
    def final_group_loss(self) -> Array:
        """Median over seeds of each group's loss at the last step, [G]."""
        if not self.step.size:
            return np.where(np.isnan(self.initial_group_loss), np.nan, np.inf)
        return np.median(self.group_loss[:, -1], axis=0)

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
    """

    store: RunStore
    scale: str
    presets: Path | None = None
    figure: str = ""
    data_dir: Path | None = None
    _sweeps: dict[SweepRef, Sweep] = field(default_factory=dict, repr=False)
    _searches: dict[tuple[str, str, str], Best] = field(default_factory=dict, repr=False)
    _selected: dict[tuple[str, str, str], dict[str, Selected]] = field(default_factory=dict, repr=False)

    def for_figure(self, name: str) -> Results:
        """Return these results with a figure's name in messages; the cache is shared."""
        return replace(self, figure=name)

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
        """Return one optimizer at its selected step size.

        Args:
            ref: the sweep.
            label: of the optimizer.
            split: "train" or "test".

        Raises:
            MissingRuns: the search is not finished.
            SpecError: the preset records no losses on this split.
        """
        key = (ref.preset, ref.variant, label)
        if key not in self._selected:
            self._selected[key] = _reduce(self.search(ref, label), self.store)
        if split not in self._selected[key]:
            raise SpecError(f"test_every: preset '{ref.preset}' records no losses on '{split}'; expected 1 or more")
        return self._selected[key][split]

    def probed(self, ref: SweepRef, label: str) -> History:
        """Return the selected run of the first seed, with the measurements of probes under probe/<name>/.

        Raises:
            MissingRuns: the search is not finished, or selected nothing, or the run has not been measured yet.
        """
        assert ref.probed, f"{ref} has no probes"
        best = self.search(ref, label)
        spec = self.sweep(ref).probed(best)
        if spec is None:
            raise MissingRuns(f"{ref.preset}, {label}: no step size was stable, so no run was measured")
        history = self.store.load(spec)
        if history is None:
            raise MissingRuns(
                f"{' '.join(filter(None, [ref.preset, ref.variant]))}, {label}: its selected run is not measured; "
                f"run `heavytail reproduce {self.figure or 'FIGURE'} --scale {self.scale}`"
            )
        return history

    def histories(self, candidate: Candidate) -> Iterator[History]:
        """Yield the histories of a candidate step size, seed by seed; for figures that read more than losses."""
        return _histories(candidate, self.store)


def _histories(candidate: Candidate, store: RunStore) -> Iterator[History]:
    for spec in candidate.specs:
        history = store.load(spec)
        assert history is not None, "the search only judges finished runs"
        yield history


def _reduce(best: Best, store: RunStore) -> dict[str, Selected]:
    """Read the seeds of the selected step size one by one; of the smallest one if none was selected."""
    candidate = best.chosen or best.candidates[0]
    rows: dict[str, list[tuple[Array, Array, Array]]] = {split: [] for split in SPLITS}
    counts: dict[str, Array] = {}
    environments: list[Mapping[str, Any]] = []
    for history in _histories(candidate, store):
        group = history.arrays["group"]
        if history.environment not in environments:
            environments.append(history.environment)
        for split in SPLITS:
            step = history.arrays.get(f"{split}/step")
            if step is not None and step.size:
                rows[split].append((step, history.arrays[f"{split}/loss"], history.group_loss(split)))
                count = history.arrays[f"{split}/count"]
                counts.setdefault(split, count.sum(axis=0) if count.ndim == 2 else count)
    return {
        split: _selected(
            best,
            split,
            seeds,
            stochastic=candidate.specs[0].batch_size is not None,
            group=group,
            counts=counts[split],
            environments=tuple(environments),
        )
        for split, seeds in rows.items()
        if seeds
    }


def _selected(best: Best, split: str, seeds: list[tuple[Array, Array, Array]], **shared: Any) -> Selected:
    """Stack (steps [E], loss [E], group loss [E, G]) of every seed."""
    widths = {groups.shape[1] for _, _, groups in seeds}
    if len(widths) > 1:
        raise StoreError(f"{best.label}: its seeds have different numbers of frequency groups ({sorted(widths)})")
    rows = slice(None) if best.chosen else slice(0)  # without a stable step size there are no curves
    shortest = min(len(step) for step, _, _ in seeds)
    return Selected(
        label=best.label,
        best=best,
        split=split,
        step=seeds[0][0][rows],
        loss=np.stack([loss[:shortest] for _, loss, _ in seeds]).astype(np.float64)[:, rows],
        group_loss=np.stack([groups[:shortest] for _, _, groups in seeds])[:, rows],
        initial_loss=float(np.median([loss[0] for _, loss, _ in seeds])),
        initial_group_loss=np.median([groups[0] for _, _, groups in seeds], axis=0),
        **shared,
    )
