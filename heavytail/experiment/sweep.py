"""Sweep: a problem times its optimizers, and the paper's search for the step size (section 5 of its appendix A).

The search trains powers of ten on the first seed, then half powers around the best of them on all seeds. It selects the
step size with the smallest *maximum over seeds of the final training loss*. If the loss of the selection exceeds 1.05
times its initial value at any recorded step, the next smaller step size is selected until one is stable. Diverged runs
have an infinite loss. Nothing here trains: `propose` returns the missing runs, given the finished ones.

A run of the search may end as soon as it is unstable; where its final loss could change the selection it is continued
to its end (`search.settle`).

Figures and claims read the runs of the verdict seeds at the selected step size. At the paper's scale these are the
seeds of the search; at a reduced scale they are fresh (`preset.PROTOCOL`), and their runs are proposed once the
search is finished. A single step size is not searched for: it is trained on the verdict seeds alone.

A sweep is read from a preset (see `preset`). This module does not import torch.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_origin

from heavytail.errors import SpecError, unknown
from heavytail.experiment.preset import Preset, known
from heavytail.experiment.registry import Component, is_path, registry, type_hints
from heavytail.experiment.search import Best, Candidate, Grid, Lookup, fixed, select, settle, warn_at_edge
from heavytail.experiment.spec import RunSpec

IMPORTED_GRID = {"decades": [-5, 1], "refine": 1}  # step sizes of an optimizer without a recipe
_SETTINGS = ("seeds", "verdict_seeds", "optim", "lr", "probes")
# A label is the name of a folder of `sweep --out` and of a line in plots.
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.+-]*")


@dataclass(frozen=True)
class Arm:
    """One optimizer of a sweep: its label in figures ("gd+m"), the component, and its step sizes."""

    label: str
    optim: Component
    grid: Grid


@dataclass(frozen=True)
class Sweep:
    """A problem, its optimizers and seeds.

    Attributes:
        name, title: of the preset.
        scale: "paper", "small" or "quick".
        variant: name of the variant, "" for none.
        run: settings shared by all runs.
        arms: the optimizers.
        seeds: of the search: the sparse grid uses the first, the dense one all of them.
        verdict_seeds: of the runs at the selected step size that figures and claims read.
        probes: measured along the runs of the verdict seeds once the search is finished, and along no other run.
    """

    name: str
    title: str
    scale: str
    variant: str
    run: Mapping[str, Any]
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    verdict_seeds: tuple[int, ...]
    probes: tuple[Component, ...] = ()
    _specs: dict[tuple[str, float, int], tuple[RunSpec, RunSpec]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @classmethod
    def load(cls, preset: str | Path, *, scale: str = "quick", variant: str = "") -> Sweep:
        """Read a preset by name or by the path of a .toml file.

        Args:
            preset: name or path.
            scale: "paper", "small" or "quick".
            variant: of the preset, "" for none.

        Raises:
            DataError: the file cannot be read.
            SpecError: a setting is unknown or invalid.
        """
        tables = Preset.load(preset, scale, variant)
        known(tables.sweep, _SETTINGS, f"setting of preset {tables.name}, sweep:")
        for key in ("optim", "lr", "seed"):
            if key in tables.run:
                raise SpecError(f"run.{key}: the sweep sets it, expected none, got {tables.run[key]!r}")
        arms = _arms(tables.sweep.get("optim", []), tables.sweep.get("lr"))
        if not arms:
            raise SpecError(f"preset '{tables.name}': expected at least one [[sweep.optim]], got none")
        seeds = _seeds(tables.sweep.get("seeds", [0]), "seeds")
        verdict_seeds = _seeds(tables.sweep.get("verdict_seeds", [*seeds]), "verdict_seeds")
        probes = _probes(tables.sweep.get("probes", []))
        sweep = cls(tables.name, tables.title, scale, variant, tables.run, arms, seeds, verdict_seeds, probes)
        # Raise on an invalid table now, not at the first run.
        replace(sweep.spec(arms[0], arms[0].grid.exponents[0], seeds[0]), probes=probes)
        return sweep

    def only(self, labels: tuple[str, ...]) -> Sweep:
        """Return the sweep restricted to these optimizers, in this order."""
        return replace(self, arms=tuple(self.arm(label) for label in labels))

    def pinned(self, data_dir: Path) -> Sweep:
        """Return the sweep with the content of its data in the data folder named (see `Registry.pin`)."""
        data = registry("data").pin(Component.parse(self.run["data"], "data"), data_dir)
        return replace(self, run={**self.run, "data": data}, _specs={})

    def unprobed(self) -> Sweep:
        """Return the same search without probes along the selected runs."""
        return replace(self, probes=())

    def arm(self, label: str) -> Arm:
        """Return the optimizer called `label`."""
        for arm in self.arms:
            if arm.label == label:
                return arm
        raise unknown(f"optimizer of preset {self.name}:", label, [e.label for e in self.arms])

    def spec(self, arm: Arm, exponent: float, seed: int) -> RunSpec:
        """Return the run of one optimizer, step size 10^exponent and seed."""
        return self._pair(arm, exponent, seed)[0]

    def _pair(self, arm: Arm, exponent: float, seed: int) -> tuple[RunSpec, RunSpec]:
        """A run, and the same run if it may end early."""
        name = (arm.label, exponent, seed)
        if name not in self._specs:
            lr = float(f"{10.0**exponent:.12g}")  # so that 0.003 in a preset is exactly 0.003
            table = {**self.run, "optim": arm.optim, "lr": lr, "seed": seed}
            spec = RunSpec.from_dict(table)
            self._specs[name] = spec, replace(spec, may_end=True)
        return self._specs[name]

    def propose(self, lookup: Lookup) -> list[RunSpec]:
        """Return the runs that the search needs next, then those of the verdict seeds; none when all are finished.

        Args:
            lookup: the outcome of a finished run, None for one that is not finished.
        """
        proposed = []
        for arm in self.arms:
            best, todo = self._search(arm, lookup)
            if best is not None:
                todo = [spec for spec in self.verdict(best) if lookup(spec) is None]
            proposed += todo
        return proposed

    def verdict(self, best: Best) -> tuple[RunSpec, ...]:
        """Return the runs of the verdict seeds at the selected step size, with the sweep's probes; none without one.

        Probes do not change the key of a run: the measurements are added to a run that the search has trained.
        """
        if best.chosen is None:
            return ()
        arm, exponent = self.arm(best.label), best.chosen.exponent
        return tuple(self._probed(self.spec(arm, exponent, seed)) for seed in self.verdict_seeds)

    def _probed(self, spec: RunSpec) -> RunSpec:
        return replace(spec, probes=self.probes) if self.probes else spec

    def best(self, label: str, lookup: Lookup) -> Best | None:
        """Return the selected step size of one optimizer; None while its search is not finished."""
        return self._search(self.arm(label), lookup)[0]

    def _search(self, arm: Arm, lookup: Lookup) -> tuple[Best | None, list[RunSpec]]:
        """The result of a search, or the runs that it needs next, given the finished runs."""
        grid = arm.grid
        if grid.fixed:
            (only,), todo = self.judge(arm, grid.exponents, self.verdict_seeds, lookup)
            return (None, [*map(self._probed, todo)]) if todo else (fixed(arm.label, only), [])
        if grid.refine is None:
            judged, todo = self._settled(arm, grid.exponents, self.seeds, lookup)
            return (None, todo) if todo else _complete(warn_at_edge(select(arm.label, judged), grid), lookup)
        sparse, todo = self._settled(arm, grid.exponents, self.seeds[:1], lookup)
        if todo:
            return None, todo
        centre = select(arm.label, sparse).chosen
        if centre is None:
            return _complete(select(arm.label, sparse), lookup)
        exponents = [centre.exponent + k / 2 for k in range(-grid.refine, grid.refine + 1)]
        while True:
            dense, todo = self._settled(arm, exponents, self.seeds, lookup)
            if todo:
                return None, todo
            best = select(arm.label, dense)
            if best.chosen is not None or exponents[0] <= grid.exponents[0] - 1:
                return _complete(warn_at_edge(best, grid), lookup)
            exponents.insert(0, exponents[0] - 0.5)  # every dense candidate was unstable: try the next smaller

    def _settled(
        self, arm: Arm, exponents: Sequence[float], seeds: Sequence[int], lookup: Lookup
    ) -> tuple[list[Candidate], list[RunSpec]]:
        """Judge with runs that may end early; those that `select` needs to their end are missing, too."""
        judged, todo = self.judge(arm, exponents, seeds, lookup, may_end=True)
        return (judged, todo) if todo else settle(judged, lookup)

    def judge(
        self, arm: Arm, exponents: Sequence[float], seeds: Sequence[int], lookup: Lookup, *, may_end: bool = False
    ) -> tuple[list[Candidate], list[RunSpec]]:
        """Return step sizes 10^exponent of one optimizer with their finished runs, and the runs that they miss.

        Args:
            arm: the optimizer.
            exponents: of the step sizes.
            seeds: of their runs.
            lookup: the outcome of a finished run.
            may_end: whether unstable runs may end early.
        """
        judged, todo = [], []
        for exponent in exponents:
            pairs = [self._pair(arm, exponent, seed) for seed in seeds]
            outcomes = [lookup(whole) or (lookup(short) if may_end else None) for whole, short in pairs]
            todo += [pair[may_end] for pair, outcome in zip(pairs, outcomes, strict=True) if outcome is None]
            specs = tuple(whole for whole, _ in pairs)
            judged.append(Candidate(exponent, specs, tuple(o for o in outcomes if o is not None)))
        return judged, todo

    @cached_property
    def caption(self) -> str:
        """The scale in words for captions, and whether it is the paper's."""
        return "paper's scale" if self.scale == "paper" else f"{self.scale} scale, not the paper's"


def _complete(best: Best, lookup: Lookup) -> tuple[Best | None, list[RunSpec]]:
    """A selection; or the runs to continue if nothing is selected: figures show those of the smallest step size."""
    shown = best.candidates[0].specs if best.chosen is None else ()
    missing = [spec for spec in shown if lookup(spec) is None]
    return (None, missing) if missing else (best, [])


def _seeds(value: object, name: str) -> tuple[int, ...]:
    if not (isinstance(value, list) and value and all(type(seed) is int for seed in value)):
        raise SpecError(f"sweep.{name}: expected a list of integers, got {value!r}")
    if len(set(value)) < len(value):
        raise SpecError(f"sweep.{name}: expected different integers, got {value!r}")
    return tuple(value)


def _probes(value: object) -> tuple[Component, ...]:
    if not isinstance(value, list):
        raise SpecError(f"sweep.probes: expected a list, got {value!r}")
    return tuple(Component.parse(probe, "sweep.probes") for probe in value)


def _arms(tables: object, shared: object) -> tuple[Arm, ...]:
    """Return the optimizers of a [[sweep.optim]] list; settings given as lists are crossed.

    Args:
        tables: the list.
        shared: `sweep.lr`, the grid of optimizers without one.
    """
    if not isinstance(tables, list):
        raise SpecError(f"sweep.optim: expected an array of tables, got {tables!r}")
    arms: list[Arm] = []
    for table in tables:
        if not isinstance(table, Mapping):
            raise SpecError(f"sweep.optim: expected a table, got {table!r}")
        name = table.get("name")
        path = name if isinstance(name, str) and is_path(name) else None
        rate = table.get("lr", IMPORTED_GRID if path and shared is None else shared)
        if rate is None:
            raise SpecError(f"sweep.optim {table.get('name', '?')}: expected lr, got none")
        if empty := [k for k, v in table.items() if v == []]:
            raise SpecError(f"sweep.optim {name or '?'}.{empty[0]}: expected at least one value, got []")
        # A list of numbers is one value of an imported optimizer (betas), and several of a recipe.
        several = [k for k, v in table.items() if isinstance(v, list) and not (path and _takes_list(path, k, v))]
        settings = {k: v if k in several else [v] for k, v in table.items() if k not in ("lr", "label")}
        for values in itertools.product(*settings.values()):
            optim = Component.parse(dict(zip(settings, values, strict=True)), "sweep.optim")
            suffix = momentum_suffix(optim)
            label = table.get("label", f"{re.split('[.:]', optim.name)[-1]}{suffix}")
            if not (isinstance(label, str) and _LABEL.fullmatch(label)):
                raise SpecError(f"sweep.optim.label: expected letters, digits, spaces and _.+-, got {label!r}")
            if any(arm.label == label for arm in arms):
                raise SpecError(
                    f"sweep.optim: expected different labels, got '{label}' twice; set label on one of them"
                )
            arms.append(Arm(label, optim, _grid(rate, (label, optim.name, suffix), f"sweep.optim {label}: lr")))
    names = {name for arm in arms for name in (arm.label, arm.optim.name)}
    if isinstance(shared, Mapping) and isinstance(decades := shared.get("decades"), Mapping):
        known(decades, names, "optimizer of sweep.lr.decades:")
    return tuple(arms)


def _takes_list(path: str, setting: str, value: list[object]) -> bool:
    """Whether a list is one value of a setting of an imported optimizer, and not several values to cross."""
    hint = type_hints(registry("optim").recipe(path)).get(setting)
    return get_origin(hint) is tuple and not any(isinstance(v, list) for v in value)


def _grid(rate: object, names: tuple[str, str, str], where: str) -> Grid:
    """Return the grid of one optimizer; `decades` may be keyed by label or name, the whole by "+m" and "-m"."""
    if isinstance(rate, Mapping):
        rate = rate.get(names[2], rate)
    if isinstance(rate, Mapping) and isinstance(decades := rate.get("decades"), Mapping):
        keys = [name for name in names[:2] if name in decades]
        if not keys:
            raise SpecError(f"{where}.decades: expected [low, high] for '{names[1]}', got none")
        rate = {**rate, "decades": decades[keys[0]]}
    return Grid.parse(rate, where)


def momentum_suffix(optim: Component) -> str:
    """Return the suffix of an optimizer's label: "+m" with momentum (Adam: beta1), "-m" without, "" if not a setting.

    >>> momentum_suffix(Component("adam", {"beta1": 0.9})), momentum_suffix(Component("gd", {"momentum": 0.0}))
    ('+m', '-m')
    """
    for key in ("momentum", "beta1"):
        value = optim.params.get(key)
        if value is not None:
            if type(value) not in (int, float):
                raise SpecError(f"sweep.optim {optim.name}: {key}: expected a number, got {value!r}")
            return "+m" if value > 0 else "-m"
    return ""
