"""RunSpec: the definition of one training run, and the key under which it is stored.

The *trajectory* fields determine the parameters after t steps; the key is their hash. The *observation* fields are the
number of steps and the measurements to record; runs that differ only in them share a folder, and a longer run continues
a stored shorter one. This module does not import torch, but filling in the defaults of components for a key does.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from heavytail.errors import SpecError, unknown
from heavytail.experiment.registry import Component, check_type, registry, type_hints

# `train_stats` also only observes, but runs that differ in it would overwrite each other's history in a shared folder,
# so it is in the key. Running sums depend on `eval_every`, which is then in the key too.
OBSERVATION = ("steps", "eval_every", "test_every", "probes")
UNSTORED = ("may_end",)
MOST_ROWS = 1_000_000  # records of one run; more are a mistake and do not fit in memory
COMPONENTS = {"data": None, "model": None, "loss": "cross-entropy", "optim": None}  # kind -> default name


@dataclass(frozen=True)
class RunSpec:
    """One training run.

    Attributes:
        data, model, optim, loss: the components, by name and settings.
        lr: constant step size.
        steps: T, number of updates; history rows run from 0 (the initial point) to T.
        batch_size: samples (sequences) of one update; None is the full batch.
        microbatch: samples of one forward and backward pass, whose gradients are accumulated; None is the default of
            the model's recipe, or else the whole batch.
        precision: "float32", "float64", "tf32" (GPU products only) or "bf16" (autocast).
        seed: seed of the initialisation, the order of mini-batches and dropout.
        data_seed: seed of the data; None is `seed` (the release varies both together, erratum 10).
        eval_every: losses per class are recorded at every multiple of this step count, and at the last step.
        test_every: the same for the test split; 0 never evaluates it.
        train_stats: "exact" records the losses at W_t over the whole training split (free for full batches);
            "running" sums the losses of the mini-batches since the previous record (row 0 has the first one's), without
            a separate pass.
        probes: additional measurements along the run.
        may_end: whether the run may end at its first recorded loss above 1.05 times the initial one: a step size of a
            search that cannot be selected. It is how to train, is not stored, and is no setting of presets.
    """

    data: Component
    model: Component
    optim: Component
    lr: float
    steps: int
    loss: Component = Component("cross-entropy")
    batch_size: int | None = None
    microbatch: int | None = None
    precision: Literal["float32", "float64", "tf32", "bf16"] = "float32"
    seed: int = 0
    data_seed: int | None = None
    eval_every: int = 1
    test_every: int = 0
    train_stats: Literal["exact", "running"] = "exact"
    probes: tuple[Component, ...] = ()
    may_end: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise SpecError(f"lr: expected a positive finite number, got {self.lr}")
        object.__setattr__(self, "lr", float(self.lr))  # so that 1 and 1.0 give the same key
        for name, low in (
            ("steps", 1),
            ("eval_every", 1),
            ("test_every", 0),
            ("batch_size", 1),
            ("microbatch", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < low:
                raise SpecError(f"{name}: expected an integer >= {low}, got {value}")
        for name in ("eval_every", "test_every"):
            every = getattr(self, name)
            if every and self.steps // every > MOST_ROWS:
                least = -(-self.steps // MOST_ROWS)
                raise SpecError(f"{name}: expected at least {least} for {self.steps} steps, got {every}")
        names = [probe.name for probe in self.probes]
        if len(names) != len(set(names)):
            raise SpecError(f"probes: expected each name once, got {', '.join(names)}")
        if self.train_stats == "running" and self.batch_size is None:
            raise SpecError("train_stats: 'running' needs a batch_size; a full batch always gives exact losses")

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> RunSpec:
        """Read a plain table (TOML, JSON); raise SpecError on unknown, missing or mistyped fields."""
        hints = type_hints(cls)
        fields = set(_settings())
        values: dict[str, Any] = {}
        for key, value in table.items():
            if key not in fields:
                raise unknown("run setting", key, fields)
            if key in COMPONENTS:
                values[key] = Component.parse(value, key, default=COMPONENTS[key])
            elif key == "probes":
                if not isinstance(value, list | tuple):
                    raise SpecError(f"probes: expected a list, got {value!r}")
                values[key] = tuple(Component.parse(p, "probe") for p in value)
            else:
                values[key] = check_type(value, hints[key], key)
        for key in ("data", "model", "optim", "lr", "steps"):
            if key not in values:
                raise SpecError(f"{key}: expected a value, got none")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return the plain table that `from_dict` reads."""
        table = {name: getattr(self, name) for name in _settings()}
        table.update({kind: table[kind].to_dict() for kind in COMPONENTS})
        table["probes"] = [p.to_dict() for p in self.probes]
        return table

    @cached_property
    def resolved(self) -> RunSpec:
        """The same run with all defaults of all components filled in; raises SpecError for unknown names."""
        changes: dict[str, Any] = {kind: registry(kind).resolve(getattr(self, kind)) for kind in COMPONENTS}
        changes["probes"] = tuple(registry("probe").resolve(p) for p in self.probes)
        if self.microbatch is None:
            changes["microbatch"] = getattr(registry("model").recipe(self.model.name), "microbatch", None)
        if self.data_seed is None:
            changes["data_seed"] = self.seed
        return dataclasses.replace(self, **changes)

    @cached_property
    def key(self) -> str:
        """Twenty hexadecimal digits that identify the trajectory: a hash of its fields and the components' versions."""
        table = {k: v for k, v in self.resolved.to_dict().items() if k not in OBSERVATION}
        if self.train_stats == "running":
            table["eval_every"] = self.eval_every
        table["versions"] = {kind: registry(kind).version(getattr(self, kind)) for kind in COMPONENTS}
        text = json.dumps(table, sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:20]

    @cached_property
    def measured(self) -> list[dict[str, Any]]:
        """The probes with their versions as plain JSON, to compare with those of a stored run."""
        tables = [{**p.to_dict(), "version": registry("probe").version(p)} for p in self.resolved.probes]
        plain: list[dict[str, Any]] = json.loads(json.dumps(tables))  # tuples become lists, as in a stored record
        return plain

    def recorded_steps(self, every: int | None = None) -> list[int]:
        """Return the steps at which losses are recorded: multiples of `every` (default eval_every), and the last."""
        every = self.eval_every if every is None else every
        return [*range(0, self.steps, every), self.steps] if every else []

    def describe(self) -> str:
        """Return a short name for progress lines and tables."""
        return describe(self.to_dict())


def _settings() -> list[str]:
    """The fields that are stored."""
    return [f.name for f in dataclasses.fields(RunSpec) if f.name not in UNSTORED]


def describe(table: Mapping[str, Any]) -> str:
    """Return a short name of a run, given its plain table."""
    model, data, optim = (table[kind]["name"] for kind in ("model", "data", "optim"))
    return f"{model} on {data}, {optim} lr {table['lr']:.3g}, seed {table['seed']}"


def derive_seed(seed: int, purpose: str) -> int:
    """Return an independent 63-bit seed for one purpose ("data", "init", "order", ...).

    >>> derive_seed(0, "init") != derive_seed(0, "data")
    True
    """
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
