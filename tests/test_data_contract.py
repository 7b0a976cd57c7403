"""What every registered data set must do, whoever writes it.

Each recipe carries the small configuration that it is tested with, where its defaults are not small enough. Files of a
user's own that it reads lie in tests/fixtures/data.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from heavytail.data import REGISTRY, Data, Split
from heavytail.errors import DataError
from heavytail.experiment.registry import Component

EXAMPLES = Path(__file__).parent / "fixtures" / "data"
NAMES = [name for name in REGISTRY.names() if not name.startswith("test-")]  # those are of other tests


def small(name: str) -> Component:
    """A data set in its small settings, with the defaults filled in; a path is that of an example file."""
    settings = dict(getattr(REGISTRY.recipe(name), "small", {}))
    if "path" in settings:
        settings["path"] = str(EXAMPLES / settings["path"])
    return REGISTRY.resolve(Component(name, settings))


Load = Callable[[int], Data]


@pytest.fixture(params=NAMES, scope="module")
def load(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Load:
    """A function of the seed that loads one of the data sets."""
    recipe = REGISTRY.make(small(request.param))
    public = os.environ.get("HEAVYTAIL_DATA")
    data_dir = Path(public) if public else tmp_path_factory.mktemp("data")
    return lambda seed: recipe.load(seed=seed, data_dir=data_dir)


@pytest.fixture(scope="module")
def data(load: Load) -> Data:
    """One of the data sets; skipped where it needs public files that are not here."""
    try:
        return load(0)
    except DataError as error:
        if not re.search("not found in .*; run: heavytail data fetch", str(error)):
            raise
        pytest.skip(str(error))


def splits(data: Data) -> list[Split]:
    return [split for split in (data.train, data.test) if split is not None]


def whole(split: Split) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs and targets as `batches` yields them, in chunks of unequal size."""
    cut = len(split) // 3
    batches = list(split.batches([slice(0, cut), torch.arange(cut, len(split))]))
    return torch.cat([b.inputs for b in batches]), torch.cat([b.targets for b in batches])


@pytest.mark.parametrize("name", NAMES)
def test_a_data_set_has_a_title(name: str) -> None:
    """Figures name a data set by the recipe's title, which is not a setting and so not part of a run's key."""
    component = small(name)
    title = REGISTRY.make(component).title
    assert title
    assert "/" not in title
    assert "title" not in component.params


# Recipes whose sizes are known without their files, with settings that change the sizes.
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


@pytest.mark.usefixtures("data")
def test_loading_leaves_the_global_generators_alone(load: Load) -> None:
    """Random data come from their own generators: loading does not change the state of the global ones."""
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
