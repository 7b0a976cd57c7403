"""The head under PyTorch's call, and its differentiable losses, against PyTorch on whole logits in float64."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from heavytail.errors import SpecError
from heavytail.functional import linear_cross_entropy
from heavytail.head import linear_cross_entropy as head

needs_torchs_op = pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="needs PyTorch 2.13")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 6e-2, torch.float16: 2e-2}


def problem(M: int = 13, C: int = 7, D: int = 5, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Features, weight and bias, which require gradients, and targets, of which every fourth is ignored."""
    g = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(shape, generator=g, dtype=torch.float64).to(dtype) for shape in ((M, D), (C, D), (C,))]
    y = torch.randint(C, (M,), generator=g)
    y[1::4] = -100
    return [*(x.requires_grad_() for x in inputs), y]


def plain(h: Tensor, W: Tensor, b: Tensor | None, y: Tensor, *, softcap: float | None = None, **options: Any) -> Tensor:
    """The loss by its formula, on whole logits."""
    z = F.linear(h, W, b)
    return F.cross_entropy(z if softcap is None else softcap * torch.tanh(z / softcap), y, **options)


def assert_same(got: Tensor, expected: Tensor, inputs: list[Tensor], exact: list[Tensor], tolerance: float) -> None:
    """Compare two scalars and their gradients."""
    pairs = zip(
        [got, *torch.autograd.grad(got, inputs)], [expected, *torch.autograd.grad(expected, exact)], strict=True
    )
    for value, truth in pairs:
        torch.testing.assert_close(value.double(), truth.double(), rtol=tolerance, atol=tolerance)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    bias=st.booleans(),
    weighted=st.booleans(),
    smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    softcap=st.sampled_from([None, 1.5, 30.0]),
)
def test_every_option_is_pytorchs(
    seed: int, reduction: Any, bias: bool, weighted: bool, smoothing: float, softcap: float | None
) -> None:
    """Values and gradients are those of F.cross_entropy on whole logits, also of a function of the rows' losses."""
    h, W, b, y = problem(seed=seed)
    w = torch.rand(7, dtype=torch.float64) if weighted else None
    smoothing = 0.0 if softcap else smoothing
    options: dict[str, Any] = {"weight": w, "reduction": reduction, "label_smoothing": smoothing, "softcap": softcap}
    got = linear_cross_entropy(h, W, y, linear_bias=b if bias else None, **options)
    expected = plain(h, W, b if bias else None, y, **options)
    inputs = [h, W, b] if bias else [h, W]
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    function: Callable[[Tensor], Tensor] = (
        (lambda x: (x.square() * torch.linspace(-1, 1, len(y))).sum()) if (reduction == "none") else (lambda x: 3.0 * x)
    )
    assert_same(function(got), function(expected), inputs, inputs, 1e-11)


@needs_torchs_op
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_it_is_torchs_own_op(reduction: Any, weighted: bool) -> None:
    """Values and gradients are those of torch's chunked linear_cross_entropy, with labels ignored and weighted."""
    h, W, b, y = problem(40, 9, 4)
    options: dict[str, Any] = {"reduction": reduction, "linear_bias": b, "ignore_index": -100}
    options["weight"] = torch.rand(9, dtype=torch.float64) if weighted else None
    ours = linear_cross_entropy(h, W, y, **options)
    theirs = F.linear_cross_entropy(h, W, y, options=torch.nn.LinearCrossEntropyOptions(), **options)  # type: ignore[attr-defined]
    mask = torch.linspace(0.5, 1.0, 40).double() if reduction == "none" else torch.ones(())
    assert_same((ours * mask).sum(), (theirs * mask).sum(), [h, W, b], [h, W, b], 1e-12)


@needs_torchs_op
def test_the_call_is_torchs() -> None:
    """Every argument of torch's op is accepted under its name, in its order and with its default, but `options`."""
    theirs = dict(inspect.signature(F.linear_cross_entropy).parameters)  # type: ignore[attr-defined]
    ours = dict(inspect.signature(linear_cross_entropy).parameters)
    del theirs["options"], ours["softcap"]
    described = [[(p.name, p.kind, p.default) for p in call.values()] for call in (theirs, ours)]
    assert described[0] == described[1]


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_one_row_may_come_alone(reduction: Any) -> None:
    """Features [D] with a target [] are one row, as in PyTorch."""
    h, W, b, y = problem()
    got = linear_cross_entropy(h[0], W, y[0], linear_bias=b, reduction=reduction)
    torch.testing.assert_close(got, F.cross_entropy(F.linear(h[0], W, b), y[0], reduction=reduction))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    dtype=st.sampled_from(sorted(TOLERANCE, key=str)),
    chunk=st.sampled_from([None, 1, 4]),
    softcap=st.sampled_from([None, 2.0]),
    scale=st.sampled_from([1.0, 1e3]),
    wide=st.booleans(),
)
def test_losses_can_be_differentiated(
    seed: int, dtype: torch.dtype, chunk: int | None, softcap: float | None, scale: float, wide: bool
) -> None:
    """Any function of `losses` has autograd's gradient in every type and chunk; the other results do not change.

    The factor stands for a loss scale: float16 has neither 1 / M nor 1e3 times a gradient.
    """
    C, D = (9, 4) if wide else (4, 9)
    h, W, b, y = problem(11, C, D, seed=seed, dtype=dtype)
    advantages = torch.linspace(-1.0, 2.0, 11).double() * scale
    options: dict[str, Any] = {"ignore_index": -100, "chunk_rows": chunk, "softcap": softcap}
    out = head(h, W, b, y, differentiable_losses=True, **options)
    before = head(h, W, b, y, **options)
    for name in ("loss", "losses", "correct", "p_correct"):
        assert torch.equal(getattr(out, name), getattr(before, name))
    exact = [x.detach().double().requires_grad_() for x in (h, W, b)]
    expected = plain(*exact, y, softcap=softcap, reduction="none")
    function = (out.losses.double() * advantages + out.losses.double().square()).sum() / 11
    truth = (expected * advantages + expected.square()).sum() / 11
    pairs = zip(torch.autograd.grad(function, [h, W, b]), torch.autograd.grad(truth, exact), strict=True)
    for value, gradient in pairs:
        size = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(value.double() / size, gradient / size, rtol=0.0, atol=TOLERANCE[dtype])


def test_the_weighted_loss_of_differentiable_losses_has_its_gradient() -> None:
    """`loss` beside differentiable losses has the gradient that it has alone, weighted and normalised."""
    h, W, b, y = problem()
    options: dict[str, Any] = {"class_weights": torch.rand(7).double(), "normalizer": 3.0, "ignore_index": -100}
    alone, beside = head(h, W, b, y, **options).loss, head(h, W, b, y, differentiable_losses=True, **options).loss
    assert_same(beside, alone, [h, W, b], [h, W, b], 1e-12)


def test_differentiable_losses_form_no_logits_as_a_whole() -> None:
    """Neither pass allocates anything larger than chunk x C, C x D or M x D."""
    M, C, D, chunk = 640, 90, 3, 32
    g = torch.Generator().manual_seed(0)
    h, W = (torch.randn(n, D, generator=g).requires_grad_() for n in (M, C))
    largest = 0

    class Allocations(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for x in result if isinstance(result, list | tuple) else [result]:
                if isinstance(x, Tensor):
                    largest = max(largest, x.untyped_storage().nbytes() // x.element_size())
            return result

    with Allocations():
        y = torch.arange(M) % C
        head(h, W, None, y, chunk_rows=chunk, differentiable_losses=True, softcap=5.0).losses.square().sum().backward()
    assert largest <= max(2 * chunk * C, C * D, M * D)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("garbage", [math.nan, math.inf])
@pytest.mark.parametrize("by_row", [False, True])
def test_a_masked_row_may_hold_anything(dtype: torch.dtype, garbage: float, by_row: bool) -> None:
    """A row of weight 0, or one that a mask leaves out, gives no gradient whatever its features are."""
    h, W, b, y = problem(dtype=dtype)
    y.clamp_(min=0)
    mask = torch.arange(13) % 3 != 1
    with torch.no_grad():
        h[~mask] = garbage
    if by_row:
        losses = head(h, W, b, y, differentiable_losses=True, chunk_rows=4).losses
        loss = torch.where(mask, losses, 0.0).sum() / mask.sum()
    else:
        loss = head(h, W, b, y, row_weights=mask.to(dtype), chunk_rows=4).loss
    loss.backward()  # type: ignore[no-untyped-call]
    alone = head(h.detach()[mask], W, b, y[mask]).loss
    torch.testing.assert_close(loss, alone, rtol=1e-6, atol=1e-6)
    for x, gradient in zip((W, b), torch.autograd.grad(alone, (W, b)), strict=True):
        assert x.grad is not None
        torch.testing.assert_close(x.grad, gradient, rtol=2e-2, atol=TOLERANCE[dtype])
    assert h.grad is not None
    assert not h.grad[~mask].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_differentiable_under_autocast(dtype: torch.dtype) -> None:
    """Products of both passes are in autocast's type, and gradients in that of the parameters."""
    h, W, b, y = problem(dtype=torch.float32)
    with torch.autocast("cpu", dtype):
        losses = head(h, W, b, y, ignore_index=-100, differentiable_losses=True).losses
    assert losses.dtype == torch.float32
    exact = [x.detach().double().requires_grad_() for x in (h, W, b)]
    assert_same(losses.square().mean(), plain(*exact, y, reduction="none").square().mean(), [h, W, b], exact, 0.05)


def test_what_cannot_be_had_is_refused() -> None:
    """Second derivatives, curvature through a softcap and unknown settings are errors that name the field."""
    h, W, b, y = problem()
    losses = head(h, W, b, y, ignore_index=-100, differentiable_losses=True).losses
    with pytest.raises(SpecError, match="create_graph"):
        torch.autograd.grad(losses.sum(), W, create_graph=True)
    with pytest.raises(SpecError, match="softcap: expected a positive number, and none with curvature, got 5"):
        head(h, W, b, y, ignore_index=-100, softcap=5.0, curvature=True)
    for softcap in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(SpecError, match="softcap: expected a positive number"):
            head(h, W, b, y, ignore_index=-100, softcap=softcap)
    with pytest.raises(SpecError, match="reduction: expected 'mean', 'sum' or 'none', got 'max'"):
        linear_cross_entropy(h, W, y, reduction="max")  # type: ignore[arg-type]
    for smoothing, softcap in ((1.5, None), (-0.1, None), (0.1, 5.0)):
        with pytest.raises(SpecError, match="label_smoothing: expected 0 to 1, and 0 with a softcap"):
            linear_cross_entropy(h, W, y, label_smoothing=smoothing, softcap=softcap)


def test_padding_of_nan_is_ignored_under_label_smoothing() -> None:
    """Ignored rows of NaN change neither the smoothed loss nor a gradient."""
    h, W, b, y = problem()
    padded = h.detach().clone()
    padded[y == -100] = math.nan
    padded.requires_grad_()
    got = linear_cross_entropy(padded, W, y, linear_bias=b, label_smoothing=0.1)
    expected = plain(h, W, b, y, label_smoothing=0.1)
    assert_same(got, expected, [padded, W, b], [h, W, b], 1e-12)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mean", [0.0, -2.0, -50.0])
@pytest.mark.parametrize("C", [10, 50_257])
@pytest.mark.parametrize("weighted", [None, "own", "float32"])
def test_smoothing_in_half_precision(
    C: int, mean: float, dtype: torch.dtype, autocast: bool, weighted: str | None
) -> None:
    """However many classes there are and wherever their logits lie, the smoothed loss and its gradients are as near to
    those in float64 as PyTorch's on whole logits, up to a factor; weights and bias may be of either precision."""
    M, D = 8, 4
    g = torch.Generator().manual_seed(0)
    h, W = torch.randn(M, D, generator=g), 0.5 * torch.randn(C, D, generator=g)
    h[:, 0], W[:, 0] = 1.0, W[:, 0] + mean
    b, w, y = 0.1 * torch.randn(C, generator=g), torch.rand(C, generator=g) + 0.5, torch.randint(C, (M,), generator=g)
    y[::5] = -100
    own = torch.float32 if autocast else dtype
    inputs = [x.to(own).requires_grad_() for x in (h, W, b if weighted == "own" else b.to(own))]
    if weighted == "float32":
        inputs[2] = b.clone().requires_grad_()
    w = w.to(dtype) if weighted == "own" else w
    options: dict[str, Any] = {"label_smoothing": 0.1}

    def error(loss: Tensor, leaves: list[Tensor]) -> list[float]:
        values = [loss.detach(), *torch.autograd.grad(loss, leaves)]
        return [float((v.double() - t).norm() / t.norm()) for v, t in zip(values, truth, strict=True)]

    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected = plain(*exact, y, weight=None if weighted is None else w.double(), **options)
    truth = [expected.detach(), *torch.autograd.grad(expected, exact)]
    with torch.autocast("cpu", dtype, enabled=autocast):
        weight = None if weighted is None else w
        loss = linear_cross_entropy(inputs[0], inputs[1], y, linear_bias=inputs[2], weight=weight, **options)
        logits = F.linear(inputs[0], inputs[1], inputs[2].to(own)).float()
        theirs = F.cross_entropy(logits, y, weight=None if weighted is None else w.float(), **options)
    assert loss.dtype == torch.float32
    for found, others in zip(error(loss, inputs), error(theirs, inputs), strict=True):
        assert found <= 3.0 * others + 4.0 * torch.finfo(dtype).eps


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [torch.float16, torch.float32, torch.float64])
def test_class_weights_of_another_type_sum_to_any_size(weights: torch.dtype, smoothing: float, reduction: Any) -> None:
    """The summed weights of many rows leave float16, which their type does not matter for, and the loss does not."""
    h, W, b, y = problem(30_000, 7, 3, dtype=torch.float16)
    w = torch.linspace(3.0, 9.0, 7).to(weights)
    options: dict[str, Any] = {"reduction": reduction, "label_smoothing": smoothing}
    got = linear_cross_entropy(h, W, y, linear_bias=b, weight=w, **options)
    expected = plain(h.double(), W.double(), b.double(), y, weight=w.double(), **options)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, rtol=1e-2, atol=5e-2)
