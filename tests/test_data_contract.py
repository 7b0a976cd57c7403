"""What every data set must do, over the whole registry: a new recipe is tested as soon as it has its line here."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from heavytail.data import REGISTRY, Data, Split, fetch
from heavytail.errors import DataError
from heavytail.experiment.registry import Component


def _user_arrays(folder: Path) -> dict[str, Any]:
    path = folder / "mine.npz"
    if not path.exists():
        np.savez(path, X=np.eye(6), y=np.array([0, 0, 0, 1, 1, 3]))
    return {"path": str(path)}


def _user_text(folder: Path) -> dict[str, Any]:
    path = folder / "mine.txt"
    if not path.exists():
        path.write_text("".join(f"the {i % 7} of {i % 3}, or not.\n" for i in range(200)))
    return {"path": str(path), "length": 10}


def _image_files(folder: Path) -> dict[str, Any]:
    for name, count in (("train/a", 4), ("train/b", 2), ("val/a", 1)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("RGB", (12, 10), (50 * i, 0, count)).save(folder / name / f"{i}.png")
    return {"path": str(folder), "size": 8}


# Small settings of each data set: a table, or a function of a temporary folder that returns one.
SMALL: dict[str, dict[str, Any] | Callable[[Path], dict[str, Any]]] = {
    "arrays": _user_arrays,
    "barcoded-mnist": {"bits": 2, "samples": 200},
    "digits": {"bits": 2},
    "image-folder": _image_files,
    "mnist": {"samples": 200},
    "ptb": {"max_tokens": 2_000},
    "random-heavy-tail": {"groups": 4},
    "simple-imbalanced": {"num_classes": 20, "samples": 100},
    "stdlib-text": {"max_tokens": 2_000},
    "text": _user_text,
    "tiny-imagenet": {"per_class": 1, "pool": 100, "size": 8, "validation": 1},
    "tiny-ptb": {"max_tokens": 2_000, "vocabulary": "seen"},
    "wikitext-103": {"max_tokens": 2_000, "max_vocab": 300, "length": 32},
    "wikitext-103-prefix": {"max_tokens": 2_000, "tokenizer": "word", "max_vocab": 300, "length": 32},
    "wikitext-2": {"max_tokens": 2_000},
}

# Those that read public files: skipped where HEAVYTAIL_DATA names no folder of them.
PUBLIC = {
    "barcoded-mnist",
    "mnist",
    "ptb",
    "tiny-imagenet",
    "tiny-ptb",
    "wikitext-103",
    "wikitext-103-prefix",
    "wikitext-2",
}


Load = Callable[[int], Data]


@pytest.fixture(params=REGISTRY.names(), scope="module")
def load(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Load one of the data sets, in its small settings and pinned as a run has it, from a seed."""
    name = request.param
    folder = tmp_path_factory.mktemp("empty")
    data_dir = request.getfixturevalue("data_dir") if name in PUBLIC else folder / "nothing"
    if name == "wikitext-103" and any(f.state != "present" for f in fetch.status(name, data_dir)):
        pytest.skip("WikiText-103 is 190 MB, and often left out")
    settings = SMALL.get(name, {})
    recipe = REGISTRY.make(REGISTRY.resolve(Component(name, settings(folder) if callable(settings) else settings)))
    return lambda seed: recipe.load(seed=seed, data_dir=data_dir)


@pytest.fixture(scope="module")
def data(load: Load) -> Data:
    return load(0)


def splits(data: Data) -> list[Split]:
    return [split for split in (data.train, data.test) if split is not None]


def whole(split: Split) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs and targets as `batches` yields them, in chunks of unequal size."""
    cut = len(split) // 3
    batches = list(split.batches([slice(0, cut), torch.arange(cut, len(split))]))
    return torch.cat([b.inputs for b in batches]), torch.cat([b.targets for b in batches])


def test_every_entry_is_a_data_set() -> None:
    """The tables above name no data set that does not exist."""
    assert set(SMALL) <= set(REGISTRY.names())
    assert set(SMALL) >= PUBLIC


@pytest.mark.parametrize("name", REGISTRY.names())
def test_a_data_set_has_a_title(name: str, tmp_path: Path) -> None:
    """Figures call a data set by the recipe's title, which is no setting and so no part of a run's key."""
    settings = SMALL.get(name, {})
    recipe = REGISTRY.make(Component(name, settings(tmp_path) if callable(settings) else settings))
    assert recipe.title
    assert "/" not in recipe.title
    resolved = REGISTRY.resolve(Component(name, settings(tmp_path) if callable(settings) else settings))
    assert "title" not in resolved.params


# What a recipe says of files that are not here is true when they are: settings, by name.
NOMINAL: list[tuple[str, dict[str, Any]]] = [
    ("barcoded-mnist", {"bits": 5, "per_class": 6, "samples": 301}),
    ("barcoded-mnist", {"bits": 5, "only": True}),
    ("mnist", {}),
    ("ptb", {"length": 20, "max_vocab": 500}),
    ("tiny-imagenet", {"subset": "heavy-tailed", "pool": 100, "size": 8, "validation": 3}),
    ("tiny-imagenet", {"pool": 100, "size": 8, "validation": 0}),
    ("tiny-ptb", {}),
    ("tiny-ptb", {"max_tokens": 1_000}),
    ("wikitext-2", {}),
]


@pytest.mark.parametrize(("name", "settings"), NOMINAL)
def test_what_is_known_without_the_files_is_true(name: str, settings: dict[str, Any], data_dir: Path) -> None:
    """Without its files a recipe knows the classes, the shape of a sample, and how many samples the splits have."""
    recipe: Any = REGISTRY.make(Component(name, settings))
    nominal, data = recipe.nominal(), recipe.load(seed=0, data_dir=data_dir)
    assert nominal.data.num_classes == data.num_classes
    assert nominal.train == len(data.train)
    assert nominal.test == (0 if data.test is None else len(data.test))
    assert nominal.data.train.inputs.shape[1:] == data.train.inputs.shape[1:]
    assert nominal.data.train.inputs.dtype == data.train.inputs.dtype
    assert nominal.data.train.inputs.is_meta == data.train.inputs.is_meta
    assert nominal.data.train.targets.shape[1:] == data.train.targets.shape[1:]


@pytest.mark.parametrize(("subset", "size"), [("all", 1_281_167), ("heavy-tailed", 10_217), ("balanced", 10_000)])
def test_imagenet_is_known_without_its_files(subset: str, size: int) -> None:
    """ILSVRC-2012 has 1 281 167 images, the paper's heavy-tailed subset 10 217; of other folders nothing is known."""
    recipe: Any = REGISTRY.make(Component("image-folder", {"path": "some/ImageNet", "subset": subset}))
    assert (recipe.nominal().train, recipe.nominal().test) == (size, 50_000)
    with pytest.raises(DataError, match="mine: no such folder"):
        REGISTRY.make(Component("image-folder", {"path": "mine"})).nominal()  # type: ignore[attr-defined]


def test_the_same_seed_gives_the_same_data(load: Load, data: Data) -> None:
    """Loaded twice from one seed, inputs, targets, classes and description are identical."""
    again = load(0)
    assert data.num_classes == again.num_classes
    assert data.info == again.info
    assert len(splits(data)) == len(splits(again))
    for a, b in zip(splits(data), splits(again), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(whole(a), whole(b), strict=True))


def test_loading_leaves_the_global_generators_alone(load: Load) -> None:
    """Random data come from their own generators: loading changes no later random number of anybody else."""
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - the global generator is what is watched
    random.seed(1)
    expected = torch.rand(()).item(), np.random.random(), random.random()  # noqa: NPY002
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    load(0)
    assert (torch.rand(()).item(), np.random.random(), random.random()) == expected  # noqa: NPY002


def test_batches_have_inputs_and_targets_that_fit(data: Data) -> None:
    """Batches hold every sample: int64 classes below C, [N] or [N, L]; inputs are finite numbers, or words."""
    for split in splits(data):
        inputs, targets = whole(split)
        assert len(inputs) == len(targets) == len(split)
        assert targets.dtype == torch.int64
        assert targets.min() >= 0
        assert targets.max() < data.num_classes
        if inputs.is_floating_point():
            assert inputs.isfinite().all()
            assert targets.ndim == 1
        else:
            assert inputs.dtype == torch.int64
            assert inputs.shape == targets.shape
            assert inputs.min() >= 0
            assert inputs.max() < data.num_classes


def test_to_keeps_labels_and_casts_inputs(data: Data) -> None:
    """`to` gives floating-point inputs the dtype asked for and leaves class numbers alone."""
    before, labels = whole(data.train)
    inputs, targets = whole(data.train.to(torch.device("cpu"), torch.float64))
    assert inputs.dtype == (torch.float64 if before.is_floating_point() else torch.int64)
    assert torch.equal(inputs, before.to(inputs.dtype))
    assert torch.equal(targets, labels)


def test_counts_and_groups_are_those_of_the_training_targets(data: Data) -> None:
    """Counts are the number of training targets of each class; groups cover all classes, and no group is empty."""
    labels = whole(data.train)[1].flatten().tolist()
    counts = [0] * data.num_classes
    for label in labels:
        counts[label] += 1
    assert data.counts.tolist() == counts
    groups = data.groups(5)
    assert len(groups.index) == data.num_classes
    shares = [0.0] * groups.num_groups
    for k, group in enumerate(groups.index):
        shares[group] += counts[k] / len(labels)
    assert min(shares) > 0
    assert np.allclose(groups.share, shares, rtol=1e-12)
    if data.natural_groups is not None:
        assert groups.index.tolist() == data.natural_groups.tolist()


def test_info_can_be_written_down(data: Data) -> None:
    """`info` holds plain values, among them the source."""
    assert isinstance(data.info["source"], str)
    assert all(isinstance(value, str | int | float | bool) for value in data.info.values())
