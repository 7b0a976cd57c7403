"""What every registered model and optimizer must do, whoever writes it.

Each recipe brings the small configuration that it is tested with, where its defaults are not small enough.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heavytail.data import Data, Split
from heavytail.errors import SpecError
from heavytail.experiment.registry import Component
from heavytail.models import REGISTRY as MODELS
from heavytail.optim import REGISTRY as OPTIMIZERS

NUM_CLASSES = 7
SHAPES = {"vectors": (6, 12), "images": (6, 1, 8, 8), "tokens": (6, 5)}


def small_data(kind: str) -> Data:
    """Six samples of a kind, with their targets."""
    generator = torch.Generator().manual_seed(0)
    shape = SHAPES[kind]
    if kind == "tokens":
        inputs = torch.randint(NUM_CLASSES, shape, generator=generator)
        targets = torch.randint(NUM_CLASSES, shape, generator=generator)
    else:
        inputs = torch.rand(shape, generator=generator)
        targets = torch.randint(NUM_CLASSES, shape[:1], generator=generator)
    return Data(Split(inputs, targets), None, NUM_CLASSES)


def small_model(name: str, seed: int = 0) -> tuple[Any, Data]:
    """Build a model's small configuration and the data it is for."""
    recipe: Any = MODELS.recipe(name)
    data = small_data(recipe.inputs)
    torch.manual_seed(seed)
    return MODELS.make(Component(name, getattr(recipe, "small", {}))).build(data), data


def small_optimizer(name: str, params: list[nn.Parameter], lr: float = 0.01) -> torch.optim.Optimizer:
    """Build an optimizer's small configuration."""
    return OPTIMIZERS.make(Component(name, getattr(OPTIMIZERS.recipe(name), "small", {}))).build(params, lr)


def loss_of(model: Any, data: Data) -> Tensor:
    """Mean cross-entropy of a model on all its data."""
    split = data.train.to(torch.device("cpu"), model.head.weight.dtype)
    return F.cross_entropy(model.head(model.features(split.inputs)), split.targets.flatten())


@pytest.fixture(params=MODELS.names())
def model_name(request: pytest.FixtureRequest) -> str:
    """Every registered model."""
    name: str = request.param
    return name


@pytest.fixture(params=OPTIMIZERS.names())
def optimizer_name(request: pytest.FixtureRequest) -> str:
    """Every registered optimizer."""
    name: str = request.param
    return name


def test_model_is_a_body_and_a_linear_head(model_name: str) -> None:
    """Features are [M, D], one row a prediction, and the head is nn.Linear from D to C."""
    model, data = small_model(model_name)
    features = model.features(data.train.inputs)
    assert isinstance(model, nn.Module)
    assert isinstance(model.head, nn.Linear)
    assert features.shape == (data.train.targets.numel(), model.head.in_features)
    assert model.head.out_features == NUM_CLASSES


def test_model_compiles_without_a_graph_break_or_a_warning(model_name: str) -> None:
    """Under torch.compile (`--compile`) features and gradients are those of the plain model."""
    model, data = small_model(model_name)
    inputs = data.train.to(torch.device("cpu"), torch.float32).inputs
    results = []
    for features in (model.features, torch.compile(model.features, backend="eager", fullgraph=True)):
        torch.manual_seed(0)
        model.zero_grad()
        out = features(inputs)
        model.head(out).square().sum().backward()
        results.append([out.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_model_trains_in_single_and_double_precision(model_name: str, dtype: torch.dtype) -> None:
    """The features keep the parameters' precision and every trainable parameter gets a finite gradient."""
    model, data = small_model(model_name)
    model.to(dtype)
    loss = loss_of(model, data)
    loss.backward()
    assert loss.dtype == dtype
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    for name, p in trained.items():
        assert p.grad is not None, name
        assert p.grad.dtype == dtype
        assert bool(p.grad.isfinite().all()), name


def test_model_is_drawn_from_the_global_generator(model_name: str) -> None:
    """The same seed gives the same parameters bit for bit; another seed gives others."""
    first, second, third = (small_model(model_name, seed)[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], third[key]) for key in first)


def test_model_in_evaluation_mode_treats_samples_alone(model_name: str) -> None:
    """In evaluation mode a sample's features do not depend on its batch, so data may be walked in chunks."""
    model, data = small_model(model_name)
    model.double().eval()
    inputs = data.train.to(torch.device("cpu"), torch.float64).inputs
    whole = model.features(inputs)
    parts = torch.cat([model.features(inputs[:2]), model.features(inputs[2:])])
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)


def test_optimizer_lowers_a_convex_loss(optimizer_name: str) -> None:
    """Twenty small steps on softmax regression lower the loss, and leave gradients as they found them."""
    model, data = small_model("linear")
    optimizer = small_optimizer(optimizer_name, list(model.parameters()))
    start = loss_of(model, data).item()
    for _ in range(20):
        optimizer.zero_grad()
        loss_of(model, data).backward()
        found = [p.grad.clone() for p in model.parameters()]
        optimizer.step()
        assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), found, strict=True))
    assert loss_of(model, data).item() < start


def test_optimizer_resumes_from_its_state(optimizer_name: str) -> None:
    """Parameters and state_dict saved half-way continue to the same parameters, bit for bit."""

    def advance(model: Any, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(3):
            optimizer.zero_grad()
            loss_of(model, data).backward()
            optimizer.step()

    model, data = small_model("linear")
    optimizer = small_optimizer(optimizer_name, list(model.parameters()))
    advance(model, optimizer)
    resumed, _ = small_model("linear", seed=1)
    resumed.load_state_dict(model.state_dict())
    later = small_optimizer(optimizer_name, list(resumed.parameters()))
    later.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    advance(model, optimizer)
    advance(resumed, later)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), resumed.parameters(), strict=True))


def test_optimizer_leaves_parameters_without_gradient(optimizer_name: str) -> None:
    """A frozen parameter does not move and does not matter to the others."""
    frozen, free = nn.Parameter(torch.ones(2), requires_grad=False), nn.Parameter(torch.ones(2))
    optimizer = small_optimizer(optimizer_name, [frozen, free])
    optimizer.step()  # no gradient anywhere yet
    free.grad = torch.tensor([1.0, -1.0])
    optimizer.step()
    assert frozen.tolist() == [1.0, 1.0]
    assert free[0] < 1.0 < free[1]


@pytest.mark.parametrize("lr", [0.0, -1.0, float("nan"), float("inf")])
def test_optimizer_refuses_an_impossible_step_size(optimizer_name: str, lr: float) -> None:
    """A step size must be positive and finite."""
    with pytest.raises(SpecError, match="lr"):
        small_optimizer(optimizer_name, [nn.Parameter(torch.ones(1))], lr)
