"""What every registered loss must do, whoever writes it, with its defaults and in its small configuration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from heavytail.errors import DataError
from heavytail.experiment.registry import Component
from heavytail.experiment.store import RunStore
from heavytail.losses import REGISTRY
from heavytail.train.engine import build_model, load_data, train
from tests.problems import tiny
from tests.reference import engine as reference

COUNTS = torch.tensor([3, 0, 900, 1, 80, 1, 0, 19])
SMALL = [Component(name, getattr(REGISTRY.recipe(name), "small", {})) for name in REGISTRY.names()]
CASES = [Component(c.name) for c in SMALL if c.params] + SMALL


@pytest.fixture(params=CASES, ids=str)
def loss(request: pytest.FixtureRequest) -> Component:
    """Every registered loss."""
    component: Component = request.param
    return component


def weights_of(loss: Component, counts: Tensor) -> Tensor:
    """Class weights [C]; ones where the loss has none."""
    weights = REGISTRY.make(loss).class_weights(counts)
    return torch.ones(len(counts), dtype=torch.float64) if weights is None else weights


@pytest.mark.parametrize("component", SMALL, ids=str)
def test_small_configuration_has_class_weights(component: Component) -> None:
    """The small configuration has class weights, so that the tests below test weights."""
    assert REGISTRY.make(component).class_weights(COUNTS) is not None


def test_weights_are_finite_numbers_one_per_class(loss: Component) -> None:
    """Weights are float64 [C], finite and not negative, positive for each class that occurs."""
    weights = weights_of(loss, COUNTS)
    assert weights.shape == COUNTS.shape
    assert weights.dtype == torch.float64
    assert bool(weights.isfinite().all())
    assert bool((weights >= 0).all())
    assert bool((weights[COUNTS > 0] > 0).all())


def test_absent_classes_have_weight_zero(loss: Component) -> None:
    """A class without training samples has weight 0, unless the loss has no weights, and changes no other weight."""
    if REGISTRY.make(loss).class_weights(COUNTS) is None:
        return
    present = COUNTS > 0
    assert weights_of(loss, COUNTS)[~present].tolist() == [0.0, 0.0]
    assert torch.equal(weights_of(loss, COUNTS)[present], weights_of(loss, COUNTS[present]))


def test_rarer_classes_weigh_no_less(loss: Component) -> None:
    """Among the classes that occur, weights do not increase with the count, and equal counts have equal weights."""
    present = COUNTS > 0
    counts, weights = COUNTS[present], weights_of(loss, COUNTS)[present]
    for i in range(len(counts)):
        assert bool((weights[i] >= weights[counts >= counts[i]]).all())


def test_weights_follow_the_classes(loss: Component) -> None:
    """Renumbering the classes renumbers the weights, and nothing else."""
    order = torch.randperm(len(COUNTS), generator=torch.Generator().manual_seed(0))
    assert torch.equal(weights_of(loss, COUNTS[order]), weights_of(loss, COUNTS)[order])


@pytest.mark.parametrize("counts", [[0, 0], [1, -1], [[1, 2]]])
def test_impossible_counts_are_refused(loss: Component, counts: list[int]) -> None:
    """Counts that are negative, all 0 or not one per class raise DataError."""
    with pytest.raises(DataError, match="counts"):
        REGISTRY.make(loss).class_weights(torch.tensor(counts))


def test_a_training_step_minimises_the_weighted_mean(loss: Component, tmp_path: Path) -> None:
    """The objective is sum_i w_{y_i} l_i / sum_i w_{y_i}, and one step follows its gradient: loops in float64."""
    spec = tiny(loss=loss.to_dict(), steps=1, lr=0.5, precision="float64")
    history = train(spec, RunStore(tmp_path), data_dir=tmp_path)
    data = load_data(spec, tmp_path)
    head = build_model(spec, data).head
    W, b = (p.detach().double().numpy() for p in (head.weight, head.bias))  # type: ignore[union-attr, operator]
    w = weights_of(loss, data.counts)
    inputs, targets = data.train.inputs.double().numpy(), data.train.targets.tolist()
    expected = reference.train(inputs, targets, W, b, optimizer="gd", lr=0.5, steps=1, weights=w.tolist())
    np.testing.assert_allclose(history.loss, expected.loss, rtol=1e-12)
    share = (w * data.counts / (w * data.counts).sum()).numpy()
    np.testing.assert_allclose(history.arrays["objective"], [share @ expected.class_loss[0]], rtol=1e-12)
