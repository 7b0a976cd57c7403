"""The presets: every one loads at every scale, and the paper's scale is the paper's settings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from heavytail.figures import all_figures
from heavytail.spec import RunSpec
from heavytail.store import RunStore
from heavytail.sweep import SCALES, Sweep, preset_names, read_preset
from heavytail.train.engine import train

GRID = (-6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0)
EIGHT = {f"{name}{m}" for name in ("gd", "normalized-gd", "sign", "adam") for m in ("-m", "+m")}

# Paper, appendix A and its tables: what a run of each preset is, with every default filled in.
PAPER: dict[tuple[str, str], dict[str, Any]] = {
    ("linear", ""): {
        "steps": 1000,
        "batch_size": None,
        "data": {"name": "random-heavy-tail", "groups": 11, "inputs": "uniform", "balanced": False},
        "model": {"name": "linear", "init": "default", "bias": True},
    },
    ("linear-inputs", "aligned"): {
        "steps": 25,
        "batch_size": None,
        "data": {"name": "random-heavy-tail", "groups": 7, "inputs": "aligned", "balanced": False},
    },
    ("linear-inputs", "orthogonal"): {
        "steps": 25,
        "data": {"name": "random-heavy-tail", "groups": 7, "inputs": "orthogonal", "balanced": False},
    },
    ("linear-long", ""): {
        "steps": 10000,
        "data": {"name": "random-heavy-tail", "groups": 7, "inputs": "uniform", "balanced": False},
    },
    ("last-layer", ""): {
        "steps": 1000,
        "batch_size": None,
        "data": {"name": "tiny-ptb", "length": 35, "max_tokens": None, "vocabulary": "full", "max_vocab": None},
        "model": {"name": "simplified-transformer", "width": 1200, "depth": 1, "heads": 1, "mlp": 0, "norm": "none"}
        | {"dropout": 0.0, "train": "head"},
    },
    ("one-layer-transformer", ""): {
        "steps": 500,
        "batch_size": None,
        "data": {"name": "tiny-ptb", "length": 35, "max_tokens": None, "vocabulary": "full", "max_vocab": None},
        "model": {"name": "transformer", "width": 1200, "depth": 1, "heads": 1, "mlp": 1200, "norm": "post"}
        | {"activation": "relu", "dropout": 0.0, "train": "all"},
    },
}


def variants(preset: str) -> list[str]:
    return ["", *read_preset(preset).get("variant", {})]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_resolves(preset: str, scale: str) -> None:
    """Every preset, variant and scale gives runs whose components and settings exist."""
    for variant in variants(preset):
        sweep = Sweep.load(preset, scale=scale, variant=variant)
        for entry in sweep.entries:
            spec = sweep.spec(entry, entry.grid.exponents[0], sweep.seeds[0])
            if spec.data.name != "arrays":
                assert len(spec.key) == 20


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    ("preset", "many"), [("cnn", ("mnist", "barcoded", "")), ("resnet18", ("uniform", "heavy-tailed"))]
)
def test_variants_train_on_different_data(preset: str, many: tuple[str, ...], scale: str) -> None:
    """The data sets that a figure compares are different ones at every scale."""
    sweeps = [Sweep.load(preset, scale=scale, variant=variant) for variant in many]
    data = [sweep.spec(sweep.entries[0], 0.0, 0).resolved.data.to_dict() for sweep in sweeps]
    assert all(a != b for i, a in enumerate(data) for b in data[:i])
    if preset == "cnn":
        assert data[0].get("bits", 0) == 0
        assert data[1]["only"]
        assert not data[2]["only"]


@pytest.mark.parametrize(("preset", "variant"), PAPER)
def test_paper_scale_is_the_papers(preset: str, variant: str) -> None:
    """The paper preset is the paper's setting exactly: data, model, steps, three seeds, the grid, no weighting."""
    sweep = Sweep.load(preset, scale="paper", variant=variant)
    entry = sweep.entries[0]
    table = sweep.spec(entry, -1.0, 0).resolved.to_dict()
    for name, wanted in PAPER[preset, variant].items():
        got = table[name]
        assert ({k: got[k] for k in wanted} if isinstance(wanted, dict) else got) == wanted
    assert sweep.seeds == (0, 1, 2)
    assert table["loss"] == {"name": "cross-entropy", "weights": "none"}
    assert table["precision"] == "float32"
    for entry in sweep.entries:
        assert set(GRID) <= set(entry.grid.exponents)
        assert entry.grid.refine == 2
    if preset in ("linear", "last-layer", "one-layer-transformer"):
        assert {entry.label for entry in sweep.entries} == EIGHT


@pytest.mark.parametrize("scale", SCALES)
def test_every_figure_finds_what_it_needs(scale: str) -> None:
    """Whatever a figure needs of a preset that exists is there at every scale."""
    names = preset_names()
    for figure in all_figures():
        for need in figure.needs:
            if need.preset in names:
                sweep = Sweep.load(need.preset, scale=scale, variant=need.variant)
                for label in need.optim:
                    sweep.entry(label)


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "label"), [("linear", "gd+m"), ("one-layer-transformer", "adam+m")])
def test_two_steps_at_the_papers_shape(preset: str, label: str, tmp_path: Path, data_dir: Path) -> None:
    """Two steps at the paper's full shape run in the memory of a laptop and lower the loss from about log C."""
    sweep = Sweep.load(preset, scale="paper")
    table = {**sweep.spec(sweep.entry(label), -3.5, 0).to_dict(), "steps": 2}
    history = train(RunSpec.from_dict(table), RunStore(tmp_path), data_dir=data_dir)
    assert history.status == "done"
    assert history.loss[0] == pytest.approx(math.log(len(history.arrays["group"])), rel=0.15)
    assert history.loss[2] < history.loss[0]
