"""The presets: every one loads at every scale, and the paper's scale is the paper's settings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from heavytail.experiment.preset import SCALES, overlay, preset_names, read_preset
from heavytail.experiment.spec import RunSpec
from heavytail.experiment.store import RunStore
from heavytail.experiment.sweep import Sweep
from heavytail.results.figure import all_figures
from heavytail.train.engine import train

GRID = (-6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0)
EIGHT = {f"{name}{m}" for name in ("gd", "normalized-gd", "sign", "adam") for m in ("-m", "+m")}

# The paper's settings (sections 3 and 4, appendices A and C; where it is silent the release's), defaults filled in.
LINEAR = {
    "steps": 1000,
    "batch_size": None,
    "data": {"name": "random-heavy-tail", "groups": 11, "inputs": "uniform", "balanced": False},
    "model": {"name": "linear", "init": "default", "bias": True},
}
SMALL_LINEAR = {**LINEAR, "data": {**LINEAR["data"], "groups": 7}}
TINY_PTB = {"name": "tiny-ptb", "length": 35, "max_tokens": None, "vocabulary": "full", "max_vocab": None}
ONE_LAYER = {
    "steps": 500,
    "batch_size": None,
    "data": TINY_PTB,
    "model": {"name": "transformer", "width": 1200, "depth": 1, "heads": 1, "mlp": 1200, "norm": "post"}
    | {"activation": "relu", "dropout": 0.0, "attention_dropout": 0.0, "init": "paper", "train": "all"},
}
TWO_LAYER = {
    "steps": 100 * (26_411 // 512),  # 100 epochs
    "batch_size": 512,
    "data": {**TINY_PTB, "name": "ptb"},
    "model": {**ONE_LAYER["model"], "width": 1000, "depth": 2, "heads": 4, "mlp": 1000}
    | {"dropout": 0.2, "attention_dropout": 0.2},
}
CNN = {
    "steps": 300,
    "batch_size": None,
    "data": {"name": "barcoded-mnist", "bits": 10, "per_class": 5, "only": False, "samples": None},
    "model": {"name": "cnn", "channels": (32, 100)},
}
IMAGENET = {"name": "image-folder", "subset": "heavy-tailed", "largest": None, "size": 224, "augment": True}
RESNET = {
    "batch_size": 1024,
    "data": IMAGENET,
    "model": {"name": "resnet18", "width": 64, "norm": "batch", "small_stem": False},
}
VIT = {**RESNET, "model": {"name": "simple-vit", "patch": 16, "width": 384, "depth": 12, "heads": 6, "mlp": 1536}}
SQRT, INVERSE = ({"loss": {"name": "cross-entropy", "weights": w}} for w in ("inverse-sqrt", "inverse"))


def image_models(name: str, settings: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """The settings of a model on each subset of ImageNet, and with each weighting."""
    uniform = {**settings, "data": {**IMAGENET, "subset": "balanced", "per_class": 10}}
    return {
        (name, ""): settings,
        (name, "uniform"): uniform,
        (name, "heavy-tailed"): settings,
        (name, "weighted-sqrt"): settings | SQRT,
        (name, "weighted-inverse"): settings | INVERSE,
    }


PAPER: dict[tuple[str, str], dict[str, Any]] = {
    ("linear", ""): LINEAR,
    ("linear-path", ""): {**LINEAR, "steps": 100},
    ("linear", "weighted-sqrt"): LINEAR | SQRT | {"steps": 500},
    ("linear", "weighted-inverse"): LINEAR | INVERSE | {"steps": 500},
    ("linear-inputs", ""): {**SMALL_LINEAR, "steps": 25, "data": {**SMALL_LINEAR["data"], "inputs": "aligned"}},
    ("linear-inputs", "aligned"): {**SMALL_LINEAR, "steps": 25, "data": {**SMALL_LINEAR["data"], "inputs": "aligned"}},
    ("linear-inputs", "orthogonal"): {
        **SMALL_LINEAR,
        "steps": 25,
        "data": {**SMALL_LINEAR["data"], "inputs": "orthogonal"},
    },
    ("linear-long", ""): {**SMALL_LINEAR, "steps": 10000},
    ("simple-imbalanced", ""): {
        "data": {"name": "simple-imbalanced", "exponent": 1.0},
        "model": {"name": "linear", "init": "zero", "bias": False},
        "precision": "float64",
    },
    ("last-layer", ""): {
        "steps": 1000,
        "batch_size": None,
        "data": TINY_PTB,
        "model": {"name": "simplified-transformer", "width": 1200, "depth": 1, "heads": 1, "mlp": 0, "norm": "none"}
        | {"dropout": 0.0, "train": "head"},
    },
    ("one-layer-transformer", ""): ONE_LAYER,
    ("one-layer-transformer", "dropout"): {
        **ONE_LAYER,
        "model": {**ONE_LAYER["model"], "dropout": 0.2, "attention_dropout": 0.2},
    },
    ("two-layer-transformer", ""): TWO_LAYER,
    ("two-layer-transformer", "weighted-sqrt"): TWO_LAYER | SQRT,
    ("two-layer-transformer", "weighted-inverse"): TWO_LAYER | INVERSE,
    ("gpt2", ""): {
        "steps": 15000,
        "batch_size": 512,
        "data": {"name": "wikitext-103", "tokenizer": "bpe", "max_vocab": 50608, "length": 1024, "max_tokens": None},
        "model": {"name": "gpt2", "width": 768, "depth": 12, "heads": 12, "mlp": 3072, "norm": "pre", "init": "gpt2"}
        | {"activation": "gelu", "train": "all"},
        "precision": "bf16",
    },
    ("cnn", ""): CNN,
    ("cnn", "long"): {**CNN, "steps": 600},
    ("cnn", "mnist"): {**CNN, "data": {"name": "mnist", "samples": None}},
    ("cnn", "barcoded"): {**CNN, "data": {**CNN["data"], "only": True}},
    ("cnn", "weighted-sqrt"): CNN | SQRT | {"steps": 500},
    ("cnn", "weighted-inverse"): CNN | INVERSE | {"steps": 500},
    **image_models("resnet18", RESNET),
    **image_models("resnet18-layernorm", {**RESNET, "model": {**RESNET["model"], "norm": "layer"}}),
    **image_models("simple-vit", VIT),
    ("simple-vit", "full"): {**VIT, "data": {**IMAGENET, "subset": "all"}},
}
GD_AND_ADAM = {"gd+m", "adam+m"}
OPTIMIZERS = {  # the others have GD_AND_ADAM
    **dict.fromkeys(("linear", "cnn", "last-layer", "one-layer-transformer"), EIGHT),
    "two-layer-transformer": {"gd-m", "gd+m", "adam-m", "adam+m"},
    "linear-inputs": {"gd-m", "adam-m"},
    "linear-long": {"gd-m"},
    "linear-path": {"gd-m", "adam+m"},
    "simple-imbalanced": {"gd", "sign"},
}
# Step sizes that a figure is defined by, as powers of ten: the authors' own, without a search (one seed of a path).
FIXED = {"linear-path": ({"gd-m": -2.5, "adam+m": -3.5}, (0,)), "linear-long": ({"gd-m": -2.0}, (0, 1, 2))}


def variants(preset: str) -> list[str]:
    return ["", *read_preset(preset).get("variant", {})]


def scales(preset: str) -> list[str]:
    """The scales of a preset; one that names none is the same at each."""
    return list(read_preset(preset).get("scale", SCALES))


@pytest.mark.parametrize(("preset", "scale"), [(name, scale) for name in preset_names() for scale in scales(name)])
def test_every_preset_resolves(preset: str, scale: str) -> None:
    """Every preset, variant and scale gives runs whose components and settings exist."""
    for variant in variants(preset):
        sweep = Sweep.load(preset, scale=scale, variant=variant)
        for arm in sweep.arms:
            spec = sweep.spec(arm, arm.grid.exponents[0], sweep.seeds[0])
            if spec.data.name != "arrays":
                assert len(spec.key) == 20


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    ("preset", "many"), [("cnn", ("mnist", "barcoded", "")), ("resnet18", ("uniform", "heavy-tailed"))]
)
def test_variants_train_on_different_data(preset: str, many: tuple[str, ...], scale: str) -> None:
    """The data sets that a figure compares are different ones at every scale."""
    sweeps = [Sweep.load(preset, scale=scale, variant=variant) for variant in many]
    data = [sweep.spec(sweep.arms[0], 0.0, 0).resolved.data.to_dict() for sweep in sweeps]
    assert all(a != b for i, a in enumerate(data) for b in data[:i])
    if preset == "cnn":
        assert data[0].get("bits", 0) == 0
        assert data[1]["only"]
        assert not data[2]["only"]


def test_every_preset_of_the_paper_is_compared_with_it() -> None:
    """Every variant of a preset that claims to be the paper's (by the key `paper`) has a row in the table above."""
    claimed = [preset for preset in preset_names() if read_preset(preset).get("paper")]
    assert {(preset, variant) for preset in claimed for variant in variants(preset)} == set(PAPER)


@pytest.mark.parametrize(("preset", "variant"), PAPER)
def test_paper_scale_is_the_papers(preset: str, variant: str) -> None:
    """The paper preset is the paper's setting exactly: data, model, loss, steps, optimizers, seeds and grid."""
    sweep = Sweep.load(preset, scale="paper", variant=variant)
    assert {arm.label for arm in sweep.arms} == OPTIMIZERS.get(preset, GD_AND_ADAM)
    wanted = {"loss": {"name": "cross-entropy", "weights": "none"}, "precision": "float32", **PAPER[preset, variant]}
    for arm in sweep.arms:
        table = sweep.spec(arm, -1.0, 0).resolved.to_dict()
        for name, value in wanted.items():
            got = table[name]
            assert ({k: got[k] for k in value} if isinstance(value, dict) else got) == value
        if preset in FIXED:
            rates, seeds = FIXED[preset]
            assert arm.grid.fixed
            assert arm.grid.exponents == (rates[arm.label],)
            assert sweep.seeds == seeds
        elif preset != "simple-imbalanced":  # whose step sizes are time steps of a flow, and nothing is random
            assert set(GRID) <= set(arm.grid.exponents)
            assert arm.grid.refine == 2
            assert sweep.seeds == (0, 1, 2)


@pytest.mark.parametrize("scale", SCALES)
def test_every_figure_finds_what_it_needs(scale: str) -> None:
    """Whatever a figure needs of a preset that exists is there at every scale."""
    names = preset_names()
    for figure in all_figures():
        for ref in figure.sweeps:
            if ref.preset in names and scale in scales(ref.preset):
                sweep = Sweep.load(ref.preset, scale=scale, variant=ref.variant)
                for label in ref.optim:
                    sweep.arm(label)


# Where memory or time forbids all samples: fewer of them, never another shape. PTB: one mini-batch of text; the CNN:
# one image of each of its 10 250 classes and 2 000 digits.
FULL_SHAPES = [
    ("linear", "gd+m", {}),
    ("one-layer-transformer", "adam+m", {}),
    ("two-layer-transformer", "adam+m", {"data": {"max_tokens": 512 * 35 + 1}}),
    ("cnn", "adam+m", {"data": {"per_class": 1, "samples": 2000}}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "label", "fewer"), FULL_SHAPES)
def test_two_steps_at_the_papers_shape(
    preset: str, label: str, fewer: dict[str, Any], tmp_path: Path, data_dir: Path
) -> None:
    """Two steps at the paper's full shape run in the memory of a laptop and lower the loss from about log C."""
    sweep = Sweep.load(preset, scale="paper")
    table = overlay(sweep.spec(sweep.arm(label), -3.5, 0).to_dict(), {"steps": 2, **fewer})
    history = train(RunSpec.from_dict(table), RunStore(tmp_path), data_dir=data_dir)
    assert history.status == "done"
    assert history.loss[0] == pytest.approx(math.log(len(history.arrays["group"])), rel=0.15)
    assert history.loss[-1] < history.loss[0]


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["resnet18", "resnet18-layernorm", "simple-vit"])
def test_two_steps_on_a_folder_of_a_thousand_classes(preset: str, tmp_path: Path) -> None:
    """ImageNet's layout, classes and image size through the paper's own settings, eight images at a time."""
    generator = np.random.default_rng(0)
    for k in range(1000):
        folder = tmp_path / "imagenet" / "train" / f"n{k:08}"
        folder.mkdir(parents=True)
        pixels = generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "0.JPEG")
    sweep = Sweep.load(preset, scale="paper")
    table = sweep.spec(sweep.arm("adam+m"), -3.5, 0).to_dict()
    table |= {"steps": 2, "batch_size": 8, "train_stats": "running"}  # no pass over all images
    history = train(RunSpec.from_dict(table), RunStore(tmp_path / "runs"), data_dir=tmp_path)
    assert history.status == "done"
    assert len(history.arrays["group"]) == 1000
    assert history.loss[0] == pytest.approx(math.log(1000), rel=0.15)
    assert np.isfinite(history.loss).all()


def test_figures_show_the_releases_horizons() -> None:
    """At the paper's scale figures show and judge their runs up to the end of the paper's plots (erratum 20)."""
    shown = {}
    for figure in all_figures():
        for ref in figure.sweeps:
            share = ref.shown.get("paper", 1.0)
            shown[figure.id, ref.preset, ref.variant] = share * ref.load("paper").run["steps"]
    fig22 = {key[1:]: steps for key, steps in shown.items() if key[0] == "fig22" and key[1] in ("linear", "cnn")}
    kinds = ("weighted-sqrt", "weighted-inverse")
    assert fig22 == {("linear", ""): 500, ("cnn", "long"): 500} | {
        (p, k): 500 for p in ("linear", "cnn") for k in kinds
    }
    assert shown["fig14", "cnn", "long"] == shown["fig21", "cnn", "long"] == 400
    assert shown["fig02", "cnn", ""] == shown["fig14", "cnn", "barcoded"] == 300
    assert shown["fig19", "linear", ""] == 500
    assert shown["fig04", "linear", ""] == 1000


@pytest.mark.parametrize("scale", SCALES)
def test_full_batch_runs_record_every_step(scale: str) -> None:
    """The stability rule must see each peak: where a step size is searched in full batch, every step is recorded."""
    for preset in preset_names():
        for variant in ("", *variants(preset)):
            sweep = Sweep.load(preset, scale=scale, variant=variant)
            if "batch_size" not in sweep.run and not all(arm.grid.fixed for arm in sweep.arms):
                assert sweep.run.get("eval_every", 1) == 1, (preset, variant)
