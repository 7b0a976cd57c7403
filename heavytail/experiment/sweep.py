"""Sweep: a problem times its optimizers, and the paper's search for the step size (section 5 of its appendix A).

The search, as code: powers of ten on the first seed; half powers around the best of them on all seeds; selected is the
step size with the smallest *maximum over seeds of the final training loss*; a selection whose loss exceeds
1.05 times its initial value at any recorded step falls back to the next smaller step size until it is stable. Diverged
runs count as infinite. Nothing here trains: `propose` says what is still to be run, given what has been.

A sweep is read from a preset (TOML): the tables are overlaid in the order run <- variant <- scale <- scale.variant.
This module does not import torch.
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from heavytail.errors import DataError, SpecError, unknown
from heavytail.experiment.registry import Component
from heavytail.experiment.search import Best, Candidate, Grid, Lookup, select, warn_at_edge
from heavytail.experiment.spec import RunSpec

SCALES = ("paper", "small", "quick")


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
        run: the table that every run shares.
        arms: the optimizers.
        seeds: the first one searches the sparse grid; all of them judge the dense one.
        probes: measured along each selected run of the first seed, once its search is finished, and no other.
    """

    name: str
    title: str
    scale: str
    variant: str
    run: Mapping[str, Any]
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    probes: tuple[Component, ...] = ()
    _specs: dict[tuple[str, float, int], RunSpec] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def load(cls, preset: str | Path, *, scale: str = "quick", variant: str = "") -> Sweep:
        """Read a preset by name, or a user's own by its path; raise SpecError on anything it does not know."""
        table = read_preset(preset)
        name = str(table.get("name", preset))
        known = {"name", "title", "paper", "run", "sweep", "variant", "scale"}
        for key in table:
            if key not in known:
                raise unknown(f"table of preset {name}:", key, known)
        scales, variants = table.get("scale", {}), table.get("variant", {})
        if scale not in scales and (scales or scale not in SCALES):
            raise unknown(f"scale of preset {name}:", scale, scales or SCALES)
        if variant and variant not in variants:
            raise unknown(f"variant of preset {name}:", variant, variants)
        chosen = scales.get(scale, {})
        for key in chosen.get("variant", {}):
            if key not in variants:
                raise unknown(f"variant of preset '{name}' in its scale '{scale}'", key, variants)
        merged: dict[str, Any] = {"run": table.get("run", {}), "sweep": table.get("sweep", {})}
        for layer in (variants.get(variant, {}), chosen, chosen.get("variant", {}).get(variant, {})):
            merged = overlay(merged, {k: v for k, v in layer.items() if k not in ("variant", "title")})
        for key in merged:
            if key not in ("run", "sweep"):
                raise unknown(f"table of preset {name}:", key, ("run", "sweep", "variant"))
        search = merged["sweep"]
        for key in search:
            if key not in ("seeds", "optim", "lr", "probes"):
                raise unknown(f"setting of preset {name}, sweep:", key, ("seeds", "optim", "lr", "probes"))
        seeds = search.get("seeds", [0])
        if not (isinstance(seeds, list) and seeds and all(isinstance(s, int) for s in seeds)):
            raise SpecError(f"sweep.seeds: expected a list of integers, got {seeds!r}")
        if len(set(seeds)) < len(seeds):
            raise SpecError(f"sweep.seeds: expected different integers, got {seeds!r}")
        for key in ("optim", "lr", "seed"):
            if key in merged["run"]:
                raise SpecError(f"run.{key}: the sweep sets it, expected none, got {merged['run'][key]!r}")
        arms = tuple(_arms(search.get("optim", []), search.get("lr")))
        if not arms:
            raise SpecError(f"preset '{name}': expected at least one [[sweep.optim]], got none")
        labels = [arm.label for arm in arms]
        for label in labels:
            if labels.count(label) > 1:
                raise SpecError(f"preset '{name}': two optimizers are called '{label}'; give each a label of its own")
        titled = (table, chosen, variants.get(variant, {}), chosen.get("variant", {}).get(variant, {}))
        title = next((layer["title"] for layer in reversed(titled) if "title" in layer), name)
        probes = tuple(Component.parse(p, "sweep.probes") for p in search.get("probes", []))
        sweep = cls(name, title, scale, variant, merged["run"], arms, tuple(seeds), probes)
        # Refuse a bad table now, not at the first run.
        replace(sweep.spec(arms[0], arms[0].grid.exponents[0], seeds[0]), probes=probes)
        return sweep

    def only(self, labels: tuple[str, ...]) -> Sweep:
        """Return the sweep with these optimizers alone, in this order."""
        return replace(self, arms=tuple(self.arm(label) for label in labels))

    def unprobed(self) -> Sweep:
        """Return the sweep that searches the same step sizes and measures nothing more along the selected runs."""
        return replace(self, probes=())

    def arm(self, label: str) -> Arm:
        """Return the optimizer called `label`."""
        for arm in self.arms:
            if arm.label == label:
                return arm
        raise unknown(f"optimizer of preset {self.name}:", label, [e.label for e in self.arms])

    def spec(self, arm: Arm, exponent: float, seed: int) -> RunSpec:
        """Return the run of one optimizer, step size 10^exponent and seed."""
        name = (arm.label, exponent, seed)
        if name not in self._specs:
            lr = float(f"{10.0**exponent:.12g}")  # a step size given as 0.003 is 0.003 again
            table = {**self.run, "optim": arm.optim, "lr": lr, "seed": seed}
            self._specs[name] = RunSpec.from_dict(table)
        return self._specs[name]

    def propose(self, lookup: Lookup) -> list[RunSpec]:
        """Return the runs that the search needs next; none when it is finished.

        Args:
            lookup: the outcome of a finished run, None for one that is not finished.
        """
        proposed = []
        for arm in self.arms:
            best, todo = self._search(arm, lookup)
            probed = None if best is None else self.probed(best)
            if probed is not None and lookup(probed) is None:
                todo = [probed]
            proposed += todo
        return proposed

    def probed(self, best: Best) -> RunSpec | None:
        """Return the selected run of the first seed with the sweep's probes; None without probes or a selection.

        It has the key of the run that was selected: training it replaces that one by itself and the measurements.
        """
        if not self.probes or best.chosen is None:
            return None
        return replace(best.chosen.specs[0], probes=self.probes)

    def best(self, label: str, lookup: Lookup) -> Best | None:
        """Return the selected step size of one optimizer; None while its search is not finished."""
        return self._search(self.arm(label), lookup)[0]

    def _search(self, arm: Arm, lookup: Lookup) -> tuple[Best | None, list[RunSpec]]:
        """The search as far as the finished runs allow: its result, or the runs that it needs next."""
        grid = arm.grid
        if grid.refine is None:
            judged, todo = self._judge(arm, grid.exponents, self.seeds, lookup)
            return (None, todo) if todo else (select(arm.label, judged), [])
        sparse, todo = self._judge(arm, grid.exponents, self.seeds[:1], lookup)
        if todo:
            return None, todo
        centre = select(arm.label, sparse).chosen
        if centre is None:
            return select(arm.label, sparse), []
        exponents = [centre.exponent + k / 2 for k in range(-grid.refine, grid.refine + 1)]
        while True:
            dense, todo = self._judge(arm, exponents, self.seeds, lookup)
            if todo:
                return None, todo
            best = select(arm.label, dense)
            if best.chosen is not None or exponents[0] <= grid.exponents[0] - 1:
                return warn_at_edge(best, grid), []
            exponents.insert(0, exponents[0] - 0.5)  # every dense one was unstable: the next smaller

    def _judge(
        self, arm: Arm, exponents: tuple[float, ...] | list[float], seeds: tuple[int, ...], lookup: Lookup
    ) -> tuple[list[Candidate], list[RunSpec]]:
        judged, todo = [], []
        for exponent in exponents:
            specs = tuple(self.spec(arm, exponent, seed) for seed in seeds)
            outcomes = [lookup(spec) for spec in specs]
            todo += [spec for spec, outcome in zip(specs, outcomes, strict=True) if outcome is None]
            judged.append(Candidate(exponent, specs, tuple(o for o in outcomes if o is not None)))
        return judged, todo

    @cached_property
    def caption(self) -> str:
        """What a figure says about the scale it was made at."""
        return "paper's scale" if self.scale == "paper" else f"{self.scale} scale, not the paper's"


def _arms(tables: object, shared: object) -> Iterator[Arm]:
    """The optimizers of a [[sweep.optim]] list; settings given as lists are crossed."""
    if not isinstance(tables, list):
        raise SpecError(f"sweep.optim: expected an array of tables, got {tables!r}")
    for table in tables:
        if not isinstance(table, Mapping):
            raise SpecError(f"sweep.optim: expected a table, got {table!r}")
        settings = {k: v for k, v in table.items() if k not in ("lr", "label")}
        name = settings.get("name", "?")
        lr = table.get("lr", shared)
        if lr is None:
            raise SpecError(f"sweep.optim {name}: expected lr, got none")
        axes = [[(k, v) for v in (value if isinstance(value, list) else [value])] for k, value in settings.items()]
        for combination in itertools.product(*axes):
            component = Component.parse(dict(combination), "optim")
            rate = lr
            if isinstance(lr, Mapping) and _momentum(component) in lr:
                rate = lr[_momentum(component)]
            label = table.get("label", f"{component.name}{_momentum(component)}")
            yield Arm(label, component, Grid.parse(rate, f"sweep.optim {label}: lr"))


def _momentum(component: Component) -> str:
    """The paper's suffix: "+m" with momentum (Adam: beta1), "-m" without, nothing where neither is a setting."""
    value = component.params.get("momentum", component.params.get("beta1"))
    return "" if value is None else "+m" if value > 0 else "-m"


def overlay(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `top` laid over it, table by table; a table that names another component replaces it whole.

    >>> overlay({"data": {"name": "a", "m": 1}}, {"data": {"m": 2}})
    {'data': {'name': 'a', 'm': 2}}
    >>> overlay({"data": {"name": "a", "m": 1}}, {"data": {"name": "b"}})
    {'data': {'name': 'b'}}
    """
    merged = dict(base)
    for key, value in top.items():
        old = merged.get(key)
        if isinstance(old, str) and isinstance(value, Mapping) and "name" not in value:
            old = {"name": old}
        if (
            isinstance(old, Mapping)
            and isinstance(value, Mapping)
            and value.get("name", old.get("name")) == old.get("name")
        ):
            merged[key] = overlay(old, value)
        else:
            merged[key] = value
    return merged


def preset_names() -> list[str]:
    """Return the names of the presets that come with the package."""
    folder = resources.files("heavytail.experiment") / "presets"
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))


def read_preset(preset: str | Path) -> dict[str, Any]:
    """Return the tables of a preset, by name or by the path of a .toml file.

    A preset with `extends = "other"` is laid over that one. `paper` names the figures of the paper whose settings the
    preset claims to have at scale "paper"; it is not inherited.
    """
    if str(preset).endswith(".toml"):
        try:
            text = Path(preset).read_text()
        except OSError as error:
            raise DataError(f"cannot read preset {preset}: {error.strerror}") from error
    else:
        names = preset_names()
        if preset not in names:
            raise unknown("preset", preset, names)
        text = (resources.files("heavytail.experiment") / "presets" / f"{preset}.toml").read_text()
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"preset {preset}: {error}") from error
    base = table.pop("extends", None)
    # Only a preset that comes with the package can be extended, and none of those in a circle.
    return table if base is None else overlay(read_preset(base) | {"paper": ""}, table)
