"""Optimizers against one-number-at-a-time loops, and the properties that the paper's comparison rests on."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from heavytail.errors import SpecError
from heavytail.experiment.registry import Component
from heavytail.optim import REGISTRY
from heavytail.optim.directions import HeavyBall, normalized
from tests.reference import optim as reference

NUM_CLASSES, NUM_FEATURES, NUM_SAMPLES, STEPS = 6, 5, 24, 50
DIRECTIONS = ["gd", "normalized-gd", "sign"]


def problem() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs [24, 5], classes [24] of very different frequencies, W [6, 5] and b [6], float64."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(NUM_SAMPLES, NUM_FEATURES, dtype=torch.float64, generator=generator)
    targets = torch.tensor([0] * 12 + [1] * 6 + [2] * 3 + [3, 4, 5])
    weight = 0.3 * torch.randn(NUM_CLASSES, NUM_FEATURES, dtype=torch.float64, generator=generator)
    bias = 0.3 * torch.randn(NUM_CLASSES, dtype=torch.float64, generator=generator)
    return inputs, targets, weight, bias


def beside_reference(
    component: Component, reference: Callable[[float], Any], lr: float, steps: int
) -> tuple[Optimizer, list[Parameter], list[Any], list[Any]]:
    """Train W and b, and both again by a reference from its own points, whose gradients are in closed form.

    Returns:
        The optimizer, its parameters, the rules of the reference, and the reference's parameters.
    """
    inputs, targets, weight, bias = problem()
    params = [Parameter(weight.clone()), Parameter(bias.clone())]
    optimizer = REGISTRY.make(component).build(params, lr)
    expected, rules = [weight.numpy(), bias.numpy()], [reference(lr) for _ in params]
    for t in range(1, steps + 1):
        optimizer.zero_grad()
        F.cross_entropy(F.linear(inputs, *params), targets).backward()
        optimizer.step()
        W, b = expected
        p = torch.from_numpy(inputs.numpy() @ W.T + b).softmax(1).numpy() - np.eye(len(b))[targets.numpy()]
        gradients = [p.T @ inputs.numpy() / len(p), p.mean(axis=0)]
        expected = [rule.step(t, x, g) for rule, x, g in zip(rules, expected, gradients, strict=True)]
    return optimizer, params, rules, expected


def run(component: Component, lr: float) -> Tensor:
    """Return the path [T, 36] of W and b under autograd's gradients."""
    inputs, targets, weight, bias = problem()
    params = [Parameter(weight), Parameter(bias)]
    optimizer = REGISTRY.make(component).build(params, lr)
    path = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(F.linear(inputs, *params), targets).backward()
        optimizer.step()
        path.append(torch.cat([p.detach().flatten() for p in params]))
    return torch.stack(path)


def start_and_gradient() -> tuple[list[float], object]:
    """Return x_0 and the gradient function of the same problem for the loops."""
    inputs, targets, weight, bias = problem()
    X, y = inputs.tolist(), targets.tolist()
    start = torch.cat([weight.flatten(), bias]).tolist()
    return start, lambda x: reference.softmax_gradient(x, X, y, NUM_CLASSES)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("name", DIRECTIONS)
def test_direction_with_momentum_follows_the_equations(name: str, momentum: float) -> None:
    """m = beta m + d, x = x - lr m, with d = g, g/||g|| and sign(g): 50 steps agree with loops to 1e-12."""
    lr = {"gd": 0.5, "normalized-gd": 0.05, "sign": 0.01}[name]
    start, gradient = start_and_gradient()
    expected = torch.tensor(reference.heavy_ball(name, momentum, lr, start, gradient, STEPS), dtype=torch.float64)
    path = run(Component(name, {"momentum": momentum}), lr)
    assert (path - expected).abs().max() < 1e-12


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_adam_follows_the_equations(beta1: float) -> None:
    """Adam with and without momentum agrees with loops over 50 steps to 1e-12."""
    start, gradient = start_and_gradient()
    expected = torch.tensor(reference.adam(beta1, 0.999, 1e-8, 0.01, start, gradient, STEPS), dtype=torch.float64)
    path = run(Component("adam", {"beta1": beta1}), 0.01)
    assert (path - expected).abs().max() < 1e-12


def test_normalizing_uses_one_norm_for_all_groups() -> None:
    """Over parameter groups, the step without momentum has joint length lr and the direction of -g."""
    params = [
        Parameter(torch.zeros(2, dtype=torch.float64)),
        Parameter(torch.zeros((1, 1), dtype=torch.float64)),
    ]
    params[0].grad = torch.tensor([3.0, 0.0], dtype=torch.float64)
    params[1].grad = torch.tensor([[4.0]], dtype=torch.float64)
    optimizer = HeavyBall([{"params": [p]} for p in params], 0.5, direction=normalized)
    optimizer.step()
    assert params[0].tolist() == pytest.approx([-0.3, 0.0], abs=1e-16)
    assert params[1].tolist() == [pytest.approx([-0.4], abs=1e-16)]


@pytest.fixture(params=[False, True], ids=["denormals", "flush"])
def _flush_denormal(request: pytest.FixtureRequest) -> Iterator[None]:
    """With and without flushing denormals to zero, as the engine does."""
    torch.set_flush_denormal(request.param)
    yield
    torch.set_flush_denormal(False)


@pytest.mark.usefixtures("_flush_denormal")
@pytest.mark.parametrize(
    ("dtype", "size"),
    [(torch.float32, 10.0**e) for e in (-37, -30, -25, -23, -20, -10, 0, 18, 19, 25, 37)]
    + [(torch.float64, 10.0**e) for e in (-300, -160, 0, 160, 300)]
    + [(torch.float16, size) for size in (1e-4, 1.0, 1.5e4)]
    + [(torch.bfloat16, size) for size in (1e-37, 1e-20, 1.0, 1e25, 5e37)],
    ids=str,
)
def test_normalized_steps_have_length_lr_at_any_scale(dtype: torch.dtype, size: float) -> None:
    """A step in the direction of (3, 4) has entries 0.6 lr and 0.8 lr, whatever the size of the gradient."""
    params = [Parameter(torch.zeros(1, dtype=dtype)) for _ in range(2)]
    for p, entry in zip(params, (3.0, 4.0), strict=True):
        p.grad = torch.tensor([entry * size], dtype=dtype)
    REGISTRY.make(Component("normalized-gd")).build(params, 1.0).step()
    assert [p.item() for p in params] == pytest.approx([-0.6, -0.8], rel=4 * torch.finfo(dtype).eps)


def test_normalizing_by_a_power_of_two_first_changes_no_bit() -> None:
    """Where no square leaves the range, the direction is g / ||g|| to the last bit."""
    generator = torch.Generator().manual_seed(0)
    for size in (1e-12, 1e-3, 1.0, 1e9):
        grads = [size * torch.randn(shape, generator=generator) for shape in ((7, 5), (11,))]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in grads]))
        for direction, g in zip(normalized(grads), grads, strict=True):
            assert torch.equal(direction, g / norm)


@pytest.mark.parametrize("name", DIRECTIONS)
def test_zero_gradient_stays(name: str) -> None:
    """At a zero gradient nothing moves, and nothing becomes NaN."""
    param = Parameter(torch.ones(3))
    optimizer = REGISTRY.make(Component(name)).build([param], 0.1)
    param.grad = torch.zeros(3)
    optimizer.step()
    assert param.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(("name", "reached"), [("gd", [False, True, False]), ("normalized-gd", [True, True, True])])
def test_nan_gradient_shows(name: str, reached: list[bool]) -> None:
    """A NaN gradient reaches its parameter, and under a joint norm all of them: divergence is not standstill."""
    param = Parameter(torch.ones(3))
    optimizer = REGISTRY.make(Component(name)).build([param], 0.1)
    param.grad = torch.tensor([1.0, math.nan, 1.0])
    optimizer.step()
    assert param.isnan().tolist() == reached


def test_sign_descent_moves_every_entry_by_lr() -> None:
    """Without momentum, sign descent moves by exactly lr whatever the gradient's size, and not at all at 0."""
    param = Parameter(torch.zeros(4, dtype=torch.float64))
    param.grad = torch.tensor([1e-30, -1e30, 2.0, 0.0], dtype=torch.float64)
    REGISTRY.make(Component("sign")).build([param], 0.25).step()
    assert param.tolist() == [-0.25, 0.25, -0.25, 0.0]


@pytest.mark.parametrize("name", DIRECTIONS)
def test_momentum_costs_nothing_when_off(name: str) -> None:
    """A momentum buffer exists exactly when momentum is on."""
    for momentum in (0.0, 0.9):
        param = Parameter(torch.zeros(3))
        optimizer = REGISTRY.make(Component(name, {"momentum": momentum})).build([param], 0.1)
        param.grad = torch.ones(3)
        optimizer.step()
        assert len(optimizer.state) == (momentum > 0)


def test_groups_keep_their_own_settings() -> None:
    """Each parameter group steps with its own step size and momentum."""
    params = [Parameter(torch.zeros(1)), Parameter(torch.zeros(1))]
    optimizer = HeavyBall([{"params": params[:1]}, {"params": params[1:], "lr": 0.5, "momentum": 0.5}], 0.25)
    for _ in range(2):
        for p in params:
            p.grad = torch.ones(1)
        optimizer.step()
    assert [p.item() for p in params] == [-0.5, -1.25]


@pytest.mark.parametrize("name", REGISTRY.names())
@pytest.mark.parametrize("lr", [-1.0, 0.0, math.nan, math.inf])
def test_a_group_with_an_impossible_step_size_is_refused(name: str, lr: float) -> None:
    """The step size of a parameter group is checked as the common one is."""
    groups = [{"params": [Parameter(torch.ones(2, 2))]}, {"params": [Parameter(torch.ones(2, 2))], "lr": lr}]
    with pytest.raises(SpecError, match="lr: expected a positive finite number"):
        REGISTRY.make(Component(name)).build(groups, 0.1)  # type: ignore[arg-type]


def test_sparse_gradients_are_refused() -> None:
    """The message names what is expected."""
    embedding = torch.nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(SpecError, match="expected dense gradients"):
        HeavyBall(embedding.parameters(), 0.1).step()


def test_a_copy_keeps_its_direction() -> None:
    """A deep copy of the optimizer steps as the original does."""
    param = Parameter(torch.zeros(2))
    optimizer = HeavyBall([param], 0.1, direction=normalized)
    twin = copy.deepcopy(optimizer)
    other = twin.param_groups[0]["params"][0]
    for p, o in ((param, optimizer), (other, twin)):
        p.grad = torch.tensor([3.0, 4.0])
        o.step()
    assert other is not param
    assert torch.equal(other, param)


def test_closure_is_evaluated_with_gradients_and_returned() -> None:
    """step(closure) computes gradients inside and returns the loss."""
    param = Parameter(torch.tensor([2.0]))
    optimizer = HeavyBall([param], 0.5)

    def closure() -> float:
        loss = param.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 4.0
    assert param.item() == 0.0


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("gd", {"momentum": 1.0}),
        ("sign", {"momentum": -0.1}),
        ("adam", {"beta1": 1.0}),
        ("adam", {"beta2": -1.0}),
    ],
)
def test_decay_rates_out_of_range_are_refused(name: str, params: dict[str, float]) -> None:
    """Momentum and Adam's decay rates must be in [0, 1); the message names the field."""
    with pytest.raises(SpecError, match=r"optim\.\w+: expected a number in \[0, 1\)"):
        REGISTRY.make(Component(name, params))


@pytest.mark.parametrize("eps", [-1e-8, math.nan, math.inf])
def test_adam_refuses_an_impossible_eps(eps: float) -> None:
    """Adam's eps is finite and not negative."""
    with pytest.raises(SpecError, match=r"optim\.eps"):
        REGISTRY.make(Component("adam", {"eps": eps}))
