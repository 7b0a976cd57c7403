"""Recipes of published and bounded optimizers against the updates of their papers."""

from __future__ import annotations

import copy
import functools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn import Parameter

from heavytail.errors import SpecError
from heavytail.experiment.registry import Component
from heavytail.experiment.store import RunStore
from heavytail.models import REGISTRY as MODELS
from heavytail.optim import REGISTRY
from heavytail.optim.bounded import clipped
from heavytail.optim.rotated import rotation
from heavytail.optim.shampoo import Shampoo
from heavytail.train.engine import build_optimizer, train
from tests.problems import tiny
from tests.reference import torch_optim as naive
from tests.test_imported import parts
from tests.test_model_contract import loss_of, small_model
from tests.test_optim import beside_reference, problem

CASES: list[tuple[str, dict[str, Any], Any, float, float]] = [
    ("lion", {}, naive.Lion, 0.01, 1e-11),
    ("signum", {"momentum": 0.8}, functools.partial(naive.Signum, momentum=0.8), 0.01, 1e-11),
    ("shampoo", {}, naive.Shampoo, 0.1, 1e-9),
    ("shampoo", {"largest": 4}, functools.partial(naive.Shampoo, largest=4), 0.1, 1e-9),
    ("shampoo", {"largest": 0, "eps": 1e-3}, functools.partial(naive.Shampoo, largest=0, eps=1e-3), 0.1, 1e-12),
    # The gradient of W is 0 along the vector of ones, where a small eps would magnify rounding errors.
    ("soap", {"every": 100, "eps": 1e-3}, functools.partial(naive.Soap, every=100, eps=1e-3), 0.02, 1e-9),
    ("soap", {"every": 3, "eps": 1e-3}, functools.partial(naive.Soap, every=3, eps=1e-3), 0.02, 1e-4),  # QR in float32
    ("schedule-free", {}, naive.ScheduleFree, 0.05, 1e-11),
    ("row-clipped-gd", {"bound": 0.02}, functools.partial(naive.RowClipped, bound=0.02), 0.5, 1e-12),
    ("scale", {}, naive.Scale, 0.02, 1e-12),
    ("muon", {}, naive.Muon, 0.02, 5e-3),  # its iterations are in bfloat16
]
NAMES = sorted({case[0] for case in CASES} | {"clipped-gd", "rotated-adam"})


@pytest.mark.parametrize(("name", "settings", "reference", "lr", "tolerance"), CASES)
def test_updates_are_those_of_the_paper(
    name: str, settings: dict[str, Any], reference: Any, lr: float, tolerance: float
) -> None:
    """Over 12 steps on softmax regression in float64, W and b follow the paper's update."""
    optimizer, params, rules, expected = beside_reference(Component(name, settings), reference, lr, 12)
    for param, value in zip(params, expected, strict=True):
        np.testing.assert_allclose(param.detach().numpy(), value, rtol=0, atol=tolerance)
    if name == "schedule-free":  # its result is the average
        optimizer.eval()  # type: ignore[attr-defined]
        for param, rule in zip(params, rules, strict=True):
            np.testing.assert_allclose(param.detach().numpy(), rule.average, rtol=0, atol=tolerance)


@pytest.mark.parametrize("bound", [0.1, 1e3])
def test_global_clipping_is_pytorchs(bound: float) -> None:
    """The direction is what torch.nn.utils.clip_grad_norm_ leaves, up to the 1e-6 that it adds to the norm."""
    params = [Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in ((3, 4), (5,))]
    for p in params:
        p.grad = torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(p.ndim))
    made = clipped([p.grad.clone() for p in params if p.grad is not None], bound=bound)
    torch.nn.utils.clip_grad_norm_(params, bound)
    for p, direction in zip(params, made, strict=True):
        torch.testing.assert_close(direction, p.grad, rtol=1e-5, atol=0)


@pytest.mark.parametrize("direction", ["clipped-gd", "row-clipped-gd"])
def test_clipping_keeps_zero_and_nan(direction: str) -> None:
    """A zero gradient stays 0 and a NaN stays NaN: divergence is not standstill."""
    param = Parameter(torch.ones(2, 2))
    optimizer = REGISTRY.make(Component(direction)).build([param], 0.1)
    param.grad = torch.tensor([[0.0, 0.0], [float("nan"), 1.0]])
    optimizer.step()
    assert param[1].isnan().any()
    param = Parameter(torch.ones(2, 2))
    optimizer = REGISTRY.make(Component(direction)).build([param], 0.1)
    param.grad = torch.zeros(2, 2)
    optimizer.step()
    assert param.tolist() == [[1, 1], [1, 1]]


def test_roles_of_the_optimizers_that_have_them() -> None:
    """Muon trains hidden matrices, SCALE all matrices, row clipping the head; Adam or GD trains the rest."""
    for model_name in MODELS.names():
        model, _ = small_model(model_name)
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        scale, clipped_rows = parts("scale", model), parts("row-clipped-gd", model)
        assert scale.keys() == clipped_rows.keys() == parts("muon", model).keys() == trained.keys()
        for name, p in trained.items():
            assert scale[name][0] == ("RowNormalized" if p.ndim >= 2 else "Adam")
            assert clipped_rows[name][0] == "HeavyBall"
    model, _ = small_model("transformer")
    muon = parts("muon", model)
    assert {n for n, (kind, _) in muon.items() if kind == "Muon"} == {
        n for n, (kind, _) in parts({"name": "by-role", "hidden": "torch.optim.Muon"}, model).items() if kind == "Muon"
    }
    built = build_optimizer(tiny(optim="scale"), model)
    momenta = [group["momentum"] for group in built.param_groups if "momentum" in group]
    assert sorted(momenta) == [0.0, 0.0, 0.9]


@pytest.mark.parametrize("shape", [(), (5,), (3, 7), (4, 3, 2), (4, 2, 3, 3)])
def test_shampoo_of_any_number_of_axes(shape: tuple[int, ...]) -> None:
    """Tensors of up to four axes, among them those longer than `largest`, follow the paper's algorithm 2."""
    generator = torch.Generator().manual_seed(len(shape))
    param = Parameter(torch.zeros(shape, dtype=torch.float64))
    optimizer = Shampoo([param], 0.1, eps=1e-3, largest=3)
    rule, expected = naive.Shampoo(0.1, eps=1e-3, largest=3), np.zeros(shape or 1)
    for t in range(5):
        param.grad = torch.randn(shape, dtype=torch.float64, generator=generator)
        expected = rule.step(t, expected, param.grad.numpy().reshape(expected.shape))
        optimizer.step()
    np.testing.assert_allclose(param.detach().numpy().reshape(expected.shape), expected, rtol=0, atol=1e-12)


def test_shampoo_of_a_gradient_of_low_rank() -> None:
    """Where rounding makes eigenvalues of 0 negative, steps are finite; a gradient of 0 is no step."""
    left, right = (torch.randn(n, 2, generator=torch.Generator().manual_seed(n)) for n in (60, 40))
    param = Parameter(torch.zeros(60, 40))
    optimizer = Shampoo([param], 0.1)
    param.grad = torch.zeros(60, 40)
    optimizer.step()
    assert not param.any()
    for scale in (1e3, 1.0, 1e-3):
        param.grad = scale * left @ right.T
        optimizer.step()
        assert param.isfinite().all()
    # After one more step along the same direction each singular value moves by at most lr.
    assert torch.linalg.matrix_norm(param, 2) <= 0.1 * 3 + 1e-3


@pytest.mark.parametrize("sizes", [(1e3, 1.0), (100.0, 0.1), (10.0, 0.1)])
def test_shampoo_of_gradients_of_very_different_sizes(sizes: tuple[float, float]) -> None:
    """In float32 a small gradient after a large one of rank one moves as in float64, up to the sums' rounding."""
    generator = torch.Generator().manual_seed(0)
    large = (
        torch.randn(60, 1, generator=generator, dtype=torch.float64) @ torch.randn(1, 40, generator=generator).double()
    )
    small = torch.randn(60, 40, generator=generator, dtype=torch.float64)
    moves = []
    for dtype in (torch.float32, torch.float64):
        param = Parameter(torch.zeros(60, 40, dtype=dtype))
        optimizer = Shampoo([param], 1.0)
        for gradient, size in zip((large, small), sizes, strict=True):
            before = param.detach().clone()
            param.grad = (size * gradient / gradient.norm()).to(dtype)
            optimizer.step()
        moves.append((param.detach() - before).norm().item())
    assert moves[0] == pytest.approx(moves[1], rel=0.2)


@pytest.mark.parametrize("largest", [0, 768])
@pytest.mark.parametrize("entry", [float("nan"), float("inf"), 1e30])
def test_shampoo_diverges_visibly(largest: int, entry: float) -> None:
    """A gradient that is not finite, or whose squares are not, makes parameters NaN, not stand still."""
    param = Parameter(torch.zeros(4, 3))
    optimizer = Shampoo([param], 0.1, largest=largest)
    param.grad = torch.ones(4, 3)
    param.grad[1, 2] = entry
    optimizer.step()
    assert param.isnan().all()


def test_shampoo_of_unusual_parameters() -> None:
    """Empty parameters are left alone, half precision is summed in float32, and a sparse gradient is one clear line."""
    empty, half = Parameter(torch.zeros(0, 3)), Parameter(torch.zeros(4, 3, dtype=torch.bfloat16))
    empty.grad, half.grad = torch.zeros(0, 3), torch.ones(4, 3, dtype=torch.bfloat16)
    optimizer = Shampoo([empty, half], 0.1, largest=3)
    for _ in range(3):
        optimizer.step()
    whole = Parameter(torch.zeros(4, 3))
    whole.grad = torch.ones(4, 3)
    reference = Shampoo([whole], 0.1, largest=3)
    for _ in range(3):
        reference.step()
    torch.testing.assert_close(half.float(), whole, rtol=0.02, atol=0)
    whole.grad = torch.ones(4, 3).to_sparse()
    with pytest.raises(SpecError, match="got sparse ones"):
        reference.step()


@pytest.mark.parametrize("axis", ["class", "feature"])
def test_rotated_adam_is_adam_on_rotated_parameters(axis: str) -> None:
    """Twelve steps are those of Adam on V with W = Q'V (classes) or V Q (features), under autograd's gradients."""
    inputs, targets, weight, bias = problem()
    q = rotation(weight.shape[0 if axis == "class" else 1], 3)
    torch.testing.assert_close(q @ q.T, torch.eye(len(q), dtype=q.dtype), rtol=0, atol=1e-13)
    params = [Parameter(weight.clone()), Parameter(bias.clone())]
    optimizer = REGISTRY.make(Component("rotated-adam", {"axis": axis, "seed": 3})).build(params, 0.05)
    classes = axis == "class"
    turned = [Parameter(q @ weight if classes else weight @ q.T), Parameter(q @ bias if classes else bias.clone())]
    adam = torch.optim.Adam(turned, lr=0.05)
    for _ in range(12):
        optimizer.zero_grad()
        F.cross_entropy(F.linear(inputs, *params), targets).backward()
        optimizer.step()
        adam.zero_grad()
        back = (q.T @ turned[0], q.T @ turned[1]) if classes else (turned[0] @ q, turned[1])
        F.cross_entropy(F.linear(inputs, *back), targets).backward()
        adam.step()
    for param, value in zip(
        params, (q.T @ turned[0], q.T @ turned[1]) if classes else (turned[0] @ q, turned[1]), strict=True
    ):
        torch.testing.assert_close(param, value, rtol=0, atol=1e-11)


def test_rotated_adam_rotates_the_head_alone() -> None:
    """Other parameters than the head's are trained by Adam."""
    model, _ = small_model("transformer")
    kinds = {n: kind for n, (kind, _) in parts("rotated-adam", model).items()}
    assert {n for n, kind in kinds.items() if kind == "RotatedAdam"} == {"head.weight", "head.bias"}
    assert set(kinds.values()) == {"RotatedAdam", "Adam"}


@pytest.mark.parametrize("name", REGISTRY.names())
def test_a_loaded_state_steps_as_the_original(name: str) -> None:
    """The state of one optimizer, loaded into a new one on equal parameters, gives the same next steps bit for bit."""
    recipe = REGISTRY.make(Component(name, getattr(REGISTRY.recipe(name), "small", {})))
    first = [Parameter(torch.linspace(-1, 1, 12).reshape(4, 3)), Parameter(torch.ones(4))]
    optimizer = recipe.build(first, 0.01)
    steps = [torch.sin(torch.arange(16.0) * (k + 1)) for k in range(6)]

    def step(params: list[Parameter], optimizer: Any, gradient: torch.Tensor) -> None:
        params[0].grad, params[1].grad = gradient[:12].reshape(4, 3).clone(), gradient[12:].clone()
        optimizer.step()

    for gradient in steps[:3]:
        step(first, optimizer, gradient)
    second = [Parameter(p.detach().clone()) for p in first]
    loaded = recipe.build(second, 0.01)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for gradient in steps[3:]:
        step(first, optimizer, gradient)
        step(second, loaded, gradient)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", REGISTRY.names())
def test_several_groups_step_with_their_own_sizes(name: str) -> None:
    """Each parameter group steps with its own step size."""
    moved = []
    for groups in ([0.01, 0.02], [0.02, 0.01]):
        params = [Parameter(torch.ones(3, 2)) for _ in groups]
        optimizer = REGISTRY.make(Component(name)).build(
            [{"params": [p], "lr": lr} for p, lr in zip(params, groups, strict=True)],  # type: ignore[misc]
            0.5,
        )
        for _ in range(2):
            for p in params:
                p.grad = torch.tensor([[0.3, 0.1], [0.2, 0.5], [0.1, 0.1]])
            optimizer.step()
        moved.append([p[0, 0].item() for p in params])
    assert moved[0] == pytest.approx(moved[1][::-1], abs=1e-6)
    assert moved[0][0] > moved[0][1]


@pytest.mark.parametrize("name", NAMES)
def test_interrupted_and_resumed_is_uninterrupted(name: str, tmp_path: Path) -> None:
    """A run continued from its checkpoint ends at the same losses, bit for bit, as one that was never stopped."""
    optim = {"name": name, **getattr(REGISTRY.recipe(name), "small", {})}
    whole = train(tiny(optim=optim, steps=8, lr=0.01), RunStore(tmp_path / "whole"), data_dir=tmp_path)
    store = RunStore(tmp_path / "parts")
    train(tiny(optim=optim, steps=3, lr=0.01), store, data_dir=tmp_path)
    resumed = train(tiny(optim=optim, steps=8, lr=0.01), store, data_dir=tmp_path)
    assert np.array_equal(whole.loss, resumed.loss)


def test_probes_measure_the_parameters_of_the_losses(tmp_path: Path) -> None:
    """A probe sees the parameters of the recorded row: those of the average, where the optimizer has one."""
    for name in ("adam", "schedule-free"):
        run = tiny(optim=name, steps=8, eval_every=4, probes=[{"name": "head-blocks", "at": [0, 4, 8]}])
        arrays = train(run, RunStore(tmp_path / name), data_dir=tmp_path).arrays
        measured, recorded = arrays["probe/head-blocks/p_correct"], arrays["train/p_correct"]
        np.testing.assert_allclose(measured, recorded, rtol=1e-5)


def test_schedule_free_losses_are_those_of_the_average(tmp_path: Path) -> None:
    """The recorded loss is that at the average, and recording it rarely or often changes no bit of the trajectory."""
    rare = train(tiny(optim="schedule-free", steps=10, eval_every=10), RunStore(tmp_path / "a"), data_dir=tmp_path)
    often = train(tiny(optim="schedule-free", steps=10, eval_every=1), RunStore(tmp_path / "b"), data_dir=tmp_path)
    assert rare.loss[-1] == often.loss[-1]
    assert np.array_equal(rare.arrays["objective"], often.arrays["objective"])
    assert often.loss[5] != often.arrays["objective"][5]  # the gradients are at another point


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("muon", {"momentum": 1.0}),
        ("lion", {"beta2": -0.1}),
        ("signum", {"momentum": 1.5}),
        ("soap", {"every": 0}),
        ("shampoo", {"eps": -1.0}),
        ("shampoo", {"eps": 0.0}),
        ("shampoo", {"largest": -1}),
        ("schedule-free", {"beta1": 0.0}),
        ("clipped-gd", {"bound": 0.0}),
        ("row-clipped-gd", {"bound": float("nan")}),
        ("scale", {"momentum": 1.0}),
    ],
)
def test_settings_out_of_range_are_refused(name: str, settings: dict[str, float]) -> None:
    """An impossible setting is one line that names it and what is allowed."""
    with pytest.raises(SpecError, match=rf"optim\.{next(iter(settings))}: expected"):
        REGISTRY.make(Component(name, settings))


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pytorch-optimizer the message says how to install it, and the other optimizers work."""
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(SpecError, match=r"needs pytorch-optimizer; .*\[optimizers\]"):
        REGISTRY.make(Component("soap")).build([Parameter(torch.ones(2, 2))], 0.1)
    REGISTRY.make(Component("muon")).build([Parameter(torch.ones(2, 2))], 0.1)


@pytest.mark.parametrize("name", NAMES)
def test_it_trains(name: str) -> None:
    """Twenty steps lower the loss of a small transformer."""
    model, data = small_model("transformer")
    small = getattr(REGISTRY.recipe(name), "small", {})
    run = tiny(optim={"name": name, **small}, lr=0.5 if "gd" in name else 0.005)
    optimizer = build_optimizer(run, model)
    before = loss_of(model, data).item()
    for _ in range(20):
        optimizer.zero_grad()
        loss_of(model, data).backward()
        optimizer.step()
    assert loss_of(model, data).item() < 0.99 * before
