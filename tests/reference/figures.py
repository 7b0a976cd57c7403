"""Finished runs made by hand: histories with chosen losses, committed to a real store under presets of their own.

Imports nothing of the figures: what the figures read back is compared with the numbers put in here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from heavytail.experiment.store import History, RunStore
from heavytail.experiment.sweep import Sweep

EIGHT = [f"{base}{m}" for m in ("-m", "+m") for base in ("gd", "adam", "normalized-gd", "sign")]
OPTIMIZERS = """
[[sweep.optim]]
name = "gd"
momentum = [0.0, 0.9]
[[sweep.optim]]
name = "normalized-gd"
momentum = [0.0, 0.9]
[[sweep.optim]]
name = "sign"
momentum = [0.0, 0.9]
[[sweep.optim]]
name = "adam"
beta1 = [0.0, 0.9]
"""

# Loss [T + 1, G] of every group at every step, or None for a run that diverged.
Losses = Callable[[str, str, str, float, int], "np.ndarray[Any, Any] | None"]


def write_presets(
    folder: Path,
    sweeps: Iterable[tuple[str, str]],
    *,
    steps: int = 20,
    seeds: int = 2,
    rates: Sequence[float] = (0.1, 1.0, 10.0),
    batch_size: int | None = None,
    test_every: int = 1,
    first_seed: int = 0,
) -> None:
    """Write a preset file for each preset, with its variants, every one a different trajectory."""
    variants: dict[str, list[str]] = {}
    for preset, variant in sweeps:
        variants.setdefault(preset, []).append(variant)
    for place, (preset, names) in enumerate(sorted(variants.items())):
        text = f'name = "{preset}"\ntitle = "{preset}, made up"\n[run]\nmodel = "linear"\nsteps = {steps}\n'
        text += f'data = {{ name = "random-heavy-tail", groups = 3 }}\ntest_every = {test_every}\n'
        text += f"data_seed = {first_seed + 1000 * place}\n"
        text += f"batch_size = {batch_size}\n" if batch_size else ""
        text += f"[sweep]\nlr = {list(rates)}\nseeds = {list(range(seeds))}\n" + OPTIMIZERS
        for number, name in enumerate(sorted(filter(None, set(names))), 1):
            text += f"[variant.{name}]\nrun = {{ data_seed = {first_seed + 1000 * place + number} }}\n"
        (folder / f"{preset}.toml").write_text(text)


def history_of(
    spec: Any, losses: np.ndarray[Any, Any] | None, counts: np.ndarray[Any, Any], test_offset: float | None = 0.0
) -> History:
    """Return a history whose classes [C] are one per group, with these losses [T + 1, G].

    Losses on the test split are higher by `test_offset`; None records none. A diverged run has its initial losses
    alone, 5 nats in every group.
    """
    shown = np.full((1, len(counts)), 5.0) if losses is None else losses
    arrays: dict[str, Any] = {"group": np.arange(len(counts))}
    for split, offset in (("train", 0.0), ("test", test_offset)):
        if offset is None:
            continue
        arrays |= {
            f"{split}/step": np.arange(len(shown)),
            f"{split}/loss": ((shown + offset) * counts).sum(axis=1) / counts.sum(),
            f"{split}/class_loss": (shown + offset).astype(np.float32),
            f"{split}/count": counts,
        }
    status = "diverged" if losses is None else "done"
    return History(spec, status, arrays, {"device": "made up", "threads": 1})


def fill(
    store: RunStore,
    presets: Path,
    sweeps: Iterable[tuple[str, str]],
    losses: Losses,
    *,
    labels: Iterable[str] = EIGHT,
    counts: Mapping[str, Any] | None = None,
    seeds: Iterable[int] | None = None,
    test_offset: float | None = 0.0,
    scale: str = "quick",
) -> None:
    """Commit every run of the sweeps; `losses` is called with preset, variant, label, step size and seed."""
    for preset, variant in sweeps:
        sweep = Sweep.load(presets / f"{preset}.toml", scale=scale, variant=variant)
        for label in labels:
            arm = sweep.arm(label)
            for exponent in arm.grid.exponents:
                for seed in sweep.seeds if seeds is None else seeds:
                    spec = sweep.spec(arm, exponent, seed)
                    made = losses(preset, variant, label, 10.0**exponent, seed)
                    groups = 4 if made is None else made.shape[1]
                    count = np.full(groups, 100) if counts is None else np.asarray(counts[preset])
                    record = history_of(spec, made, count, test_offset)
                    store.save(record, step=int(record.step[-1]))


def decay(start: float, ends: Iterable[float], steps: int) -> np.ndarray[Any, Any]:
    """Return losses [T + 1, G] that go from `start` to `ends` [G] exponentially."""
    t = np.linspace(0.0, 1.0, steps + 1)[:, None]
    fall = (1 - np.exp(-4 * t)) / (1 - np.exp(-4.0))
    return start + (np.asarray(list(ends), dtype=float)[None, :] - start) * fall
