"""The chunked softmax head against loops, against PyTorch, and at the edges of float32."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from heavytail.errors import SpecError
from heavytail.head import HeadOutput, _largest, linear_cross_entropy, weight_gradient
from tests.reference.head import softmax_head


def _problem(
    M: int, C: int, D: int, *, dtype: torch.dtype = torch.float64, seed: int = 0, scale: float = 1.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features, weight, bias, each requiring a gradient, and targets."""
    g = torch.Generator().manual_seed(seed)
    h, W, b = (torch.randn(shape, generator=g, dtype=torch.float64) for shape in ((M, D), (C, D), (C,)))
    inputs = [(x * scale).to(dtype).requires_grad_() for x in (h, W, b)]
    return inputs[0], inputs[1], inputs[2], torch.randint(C, (M,), generator=g)


def _gradients(loss: Tensor, *inputs: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, inputs))


def _assert_reference(h: Tensor, W: Tensor, b: Tensor, y: Tensor, tol: float, **options: Any) -> HeadOutput:
    """Compare everything the head yields with loops in float64."""
    out = linear_cross_entropy(h, W, b, y, curvature=True, **options)
    arrays = [x.detach().double().numpy() for x in (h, W, b)]
    weights = options.get("class_weights")
    expected = softmax_head(
        *arrays,
        y.tolist(),
        None if weights is None else weights.double().numpy(),
        options.get("normalizer"),
        options.get("ignore_index"),
    )
    assert out.correct.tolist() == expected.correct
    assert out.curvature is not None
    got = [out.loss, out.losses, out.p_correct, *_gradients(out.loss, h, W, b), *out.curvature]
    wanted = [expected.loss, expected.losses, expected.p_correct, *expected[4:]]
    for value, truth in zip(got, wanted, strict=True):
        # Relative to at least 1: log(sum) - logit cancels in the reference where the loss is small.
        size = max(1.0, float(np.abs(truth).max(initial=0.0)))
        np.testing.assert_allclose(value.detach().double().numpy(), truth, rtol=0.0, atol=tol * size)
    return out


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(2, 7),
    st.integers(1, 9),
    st.integers(1, 10),
    st.booleans(),
    st.booleans(),
    st.none() | st.floats(0.1, 100.0),
    st.integers(0, 2**20),
)
def test_everything_is_the_reference(
    M: int, C: int, D: int, chunk: int, weighted: bool, ignoring: bool, normalizer: float | None, seed: int
) -> None:
    """For any shape, chunk and option: results, gradients and curvature agree with float64 loops to 1e-12."""
    h, W, b, y = _problem(M, C, D, seed=seed)
    options: dict[str, Any] = {"normalizer": normalizer, "chunk_rows": chunk}
    if weighted:
        options["class_weights"] = torch.linspace(0.5, 3.0, C, dtype=torch.float64)
    if ignoring:
        options["ignore_index"] = -100
        y[1::2] = -100  # the first row stays
    _assert_reference(h, W, b, y, 1e-12, **options)


@pytest.mark.parametrize(("C", "D"), [(40, 5), (5, 40)])
def test_float32_is_right_to_its_precision(C: int, D: int) -> None:
    """float32 agrees with loops in float64 on either side of the choice of what to scale."""
    _assert_reference(*_problem(50, C, D, dtype=torch.float32), 2e-6, chunk_rows=16, normalizer=1.0)


def test_it_is_cross_entropy() -> None:
    """Loss and gradients are those of F.cross_entropy(F.linear(...)) to 1e-10 in float64, weighted too."""
    h, W, b, y = _problem(300, 60, 20)
    weights = torch.rand(60, dtype=torch.float64)
    y[::7] = 59
    plain = F.cross_entropy(F.linear(h, W, b), y, weight=weights, ignore_index=59)
    out = linear_cross_entropy(h, W, b, y, class_weights=weights, ignore_index=59)
    for got, expected in zip(
        [out.loss, *_gradients(out.loss, h, W, b)], [plain, *_gradients(plain, h, W, b)], strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-14)


def test_default_chunks_cover_all_rows() -> None:
    """The chunk size chosen for a shape, here with a shorter last chunk, changes nothing but rounding."""
    h, W, b, y = _problem(1001, 5000, 3, dtype=torch.float32)
    whole = linear_cross_entropy(h, W, b, y, chunk_rows=1001)
    parts = linear_cross_entropy(h, W, b, y)
    torch.testing.assert_close(parts.losses, whole.losses)
    for got, expected in zip(_gradients(parts.loss, h, W, b), _gradients(whole.loss, h, W, b), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-8)


def test_gradients_flow_through_a_body() -> None:
    """Numerical differentiation agrees through a body, with a factor behind the loss."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(6, 4, generator=g, dtype=torch.float64)
    A, W = (torch.randn(n, 4, generator=g, dtype=torch.float64).requires_grad_() for n in (4, 5))
    b = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    y = torch.randint(5, (6,), generator=g)

    def loss(A: Tensor, W: Tensor, b: Tensor) -> Tensor:
        return 3.0 * linear_cross_entropy(torch.tanh(x @ A.t()), W, b, y, chunk_rows=4).loss.square()

    assert torch.autograd.gradcheck(loss, (A, W, b))


@pytest.mark.parametrize("bits", range(8))
def test_only_needed_gradients_are_given(bits: int) -> None:
    """Any of features, weight and bias may be frozen, without a change to the others."""
    inputs = _problem(20, 6, 4)
    y = inputs[3]
    full = _gradients(linear_cross_entropy(*inputs).loss, *inputs[:3])
    h, W, b = (x.detach().requires_grad_(bool(bits >> i & 1)) for i, x in enumerate(inputs[:3]))
    loss = linear_cross_entropy(h, W, b, y).loss
    assert loss.requires_grad == (bits > 0)
    if bits:
        loss.backward()
    for x, expected in zip((h, W, b), full, strict=True):
        assert x.grad is None if not x.requires_grad else torch.equal(x.grad, expected)


def test_no_grad_gives_the_same_numbers() -> None:
    """Evaluation under no_grad yields the numbers of training, and no graph."""
    h, W, b, y = _problem(30, 8, 4)
    training = linear_cross_entropy(h, W, b, y, curvature=True)
    with torch.no_grad():
        evaluation = linear_cross_entropy(h, W, b, y, curvature=True)
    assert not evaluation.loss.requires_grad
    assert torch.equal(evaluation.loss, training.loss)
    assert torch.equal(evaluation.losses, training.losses)
    assert evaluation.curvature is not None
    assert training.curvature is not None
    assert torch.equal(evaluation.curvature.weight, training.curvature.weight)


@pytest.mark.parametrize(("C", "D"), [(40, 5), (5, 40)])
def test_curvature_does_not_change_the_trajectory(C: int, D: int) -> None:
    """Asking for the curvature leaves loss and gradients the same bit for bit."""
    h, W, b, y = _problem(70, C, D, dtype=torch.float32)
    off, on = (linear_cross_entropy(h, W, b, y, curvature=c, chunk_rows=32) for c in (False, True))
    assert off.curvature is None
    assert torch.equal(off.loss, on.loss)
    for a, c in zip(_gradients(off.loss, h, W, b), _gradients(on.loss, h, W, b), strict=True):
        assert torch.equal(a, c)


def test_without_bias() -> None:
    """A head without bias is one with a bias of zero, and has no bias curvature."""
    h, W, b, y = _problem(20, 6, 4)
    with_zero = linear_cross_entropy(h, W, torch.zeros_like(b), y, curvature=True)
    without = linear_cross_entropy(h, W, None, y, curvature=True)
    assert torch.equal(without.loss, with_zero.loss)
    assert without.curvature is not None
    assert with_zero.curvature is not None
    assert without.curvature.bias is None
    torch.testing.assert_close(without.curvature.weight, with_zero.curvature.weight)


def test_at_zero_weight_everything_is_known() -> None:
    """At W = 0: loss log C, grad_k = xbar / C - pi_k xbar^k, trace (1/C)(1 - 1/C) mean ||h||^2."""
    M, C, D = 512, 256, 3
    g = torch.Generator().manual_seed(0)
    h = torch.randn(M, D, generator=g)
    y = (torch.rand(M, generator=g) ** 4 * C).long()  # heavy-tailed
    W = torch.zeros(C, D, requires_grad=True)
    out = linear_cross_entropy(h, W, None, y, curvature=True)
    assert out.loss.item() == pytest.approx(math.log(C), rel=1e-6)
    own = torch.zeros(C, D, dtype=torch.float64).index_add_(0, y, h.double())
    expected = (h.double().sum(0) / C - own) / M
    torch.testing.assert_close(_gradients(out.loss, W)[0].double(), expected, rtol=1e-5, atol=1e-8)
    trace = (1 / C) * (1 - 1 / C) * h.double().square().sum()
    assert out.curvature is not None
    torch.testing.assert_close(out.curvature.weight.double(), trace.expand(C), rtol=2e-6, atol=0.0)


def test_micro_batches_add_up() -> None:
    """Losses and gradients of micro-batches with the batch's normalizer sum to those of the batch."""
    h, W, b, y = _problem(50, 9, 4)
    weights = torch.rand(9, dtype=torch.float64) + 0.1
    whole = linear_cross_entropy(h, W, b, y, class_weights=weights)
    expected = _gradients(whole.loss, h, W, b)
    normalizer = weights[y].sum()
    total = 0.0
    for rows in torch.arange(50).split(16):
        part = linear_cross_entropy(h[rows], W, b, y[rows], class_weights=weights, normalizer=normalizer)
        part.loss.backward()
        total += part.loss.item()
    assert total == pytest.approx(whole.loss.item(), rel=1e-13)
    for x, gradient in zip((h, W, b), expected, strict=True):
        torch.testing.assert_close(x.grad, gradient, rtol=1e-12, atol=1e-15)


def test_no_rows() -> None:
    """No rows contribute nothing under a fixed normalizer; their own mean is NaN."""
    h, W, b, y = _problem(0, 4, 3)
    out = linear_cross_entropy(h, W, b, y, normalizer=5.0, curvature=True)
    assert out.loss.item() == 0.0
    assert [list(x.shape) for x in out[1:4]] == [[0], [0], [0]]
    for x, gradient in zip((h, W, b), _gradients(out.loss, h, W, b), strict=True):
        assert torch.equal(gradient, torch.zeros_like(x))
    assert out.curvature is not None
    assert not out.curvature.weight.any()
    assert math.isnan(linear_cross_entropy(h, W, b, y).loss.item())


def test_retained_graph_gives_the_same_gradient_again() -> None:
    """Accumulating into a parameter does not reach the gradients a retained graph still holds."""
    h, W, b, y = _problem(20, 6, 4)
    out = linear_cross_entropy(h, W, b, y)
    for _ in range(3):
        out.loss.backward(retain_graph=True)
    once = _gradients(linear_cross_entropy(h, W, b, y).loss, h, W, b)
    for x, gradient in zip((h, W, b), once, strict=True):
        torch.testing.assert_close(x.grad, 3 * gradient)


def test_second_derivatives_are_refused() -> None:
    """create_graph, which would silently lose the second derivative, is an error."""
    h, W, b, y = _problem(5, 3, 2)
    with pytest.raises(SpecError, match="create_graph"):
        torch.autograd.grad(linear_cross_entropy(h, W, b, y).loss, W, create_graph=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e2, 1e4, 1e8])
def test_extreme_logits(scale: float, dtype: torch.dtype) -> None:
    """Logits in the thousands and beyond give the exact losses and finite, exact gradients."""
    W = torch.tensor([[scale], [0.0], [-scale]], dtype=dtype, requires_grad=True)
    h = torch.tensor([[1.0], [1.0], [-1.0], [0.0]], dtype=dtype, requires_grad=True)
    out = linear_cross_entropy(h, W, None, torch.tensor([0, 2, 0, 1]), normalizer=1.0, curvature=True)
    expected = torch.tensor([0.0, 2 * scale, 2 * scale, math.log(3.0)], dtype=dtype)
    torch.testing.assert_close(out.losses, expected, rtol=2e-7, atol=1e-25)
    assert out.correct.tolist() == [True, False, False, False]  # the last row is tied: class 0 comes first
    grad_h, grad_W = _gradients(out.loss, h, W)
    torch.testing.assert_close(grad_W[:, 0], torch.tensor([2.0, 0.0, -2.0], dtype=dtype), rtol=1e-6, atol=1e-20)
    torch.testing.assert_close(grad_h[1:3, 0] / scale, torch.tensor([2.0, -2.0], dtype=dtype), rtol=1e-6, atol=0)
    assert out.curvature is not None
    assert all(torch.isfinite(x).all() for x in (grad_h, *(c for c in out.curvature if c is not None)))


@pytest.mark.parametrize("margin", [10.0, 30.0, 50.0])
def test_fitted_samples_keep_their_digits(margin: float) -> None:
    """Where PyTorch's float32 rounds to 0, loss and gradient keep their relative precision."""
    W = torch.tensor([[margin], [0.0], [0.0]], requires_grad=True)
    out = linear_cross_entropy(torch.ones(1, 1), W, None, torch.tensor([0]))
    rest = 2 * math.exp(-margin)
    assert out.loss.item() == pytest.approx(math.log1p(rest), rel=1e-6)
    assert _gradients(out.loss, W)[0][0].item() == pytest.approx(-rest / (1 + rest), rel=1e-6)


@pytest.mark.parametrize("distance", [65.0, 95.0, 200.0])
def test_clamping_moves_gradients_below_rounding_only(distance: float) -> None:
    """Probabilities under the clamp are off by 1e-26 at most, 19 digits below a row's sum of 1."""
    g = torch.Generator().manual_seed(0)
    h = torch.ones(40, 1)
    W = torch.randn(30, 1, generator=g)
    W[10:] -= distance
    y = torch.randint(30, (40,), generator=g)
    W.requires_grad_()
    exact = W.detach().double().requires_grad_()
    F.cross_entropy(F.linear(h.double(), exact), y).backward()
    linear_cross_entropy(h, W, None, y).loss.backward()
    assert exact.grad is not None
    assert W.grad is not None
    torch.testing.assert_close(W.grad.double(), exact.grad, rtol=1e-5, atol=1e-25)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("chunk", [None, 3])
@pytest.mark.parametrize("C", [1, 2, 9, 300])
def test_of_tied_logits_the_lowest_class_wins(C: int, chunk: int | None, grad: bool) -> None:
    """`correct` is whether argmax of the logits is the target, with ties everywhere (W = 0), anywhere, or nearly."""
    zero = torch.zeros(C, 2, requires_grad=grad)
    out = linear_cross_entropy(torch.ones(C, 2), zero, None, torch.arange(C), chunk_rows=chunk)
    assert out.correct.tolist() == [True] + [False] * (C - 1)
    g = torch.Generator().manual_seed(C)
    y = torch.randint(C, (200,), generator=g)
    near = torch.randint(-2, 3, (200, C), generator=g) * 1e-9  # their exponentials are equal in float32
    for logits in (torch.randint(-2, 3, (200, C), generator=g).float(), near, torch.full((200, C), math.nan)):
        logits = logits.requires_grad_(grad)
        for options in ({}, {"softcap": 30.0}, {"ignore_index": 0}, {"differentiable_losses": True}):
            out = linear_cross_entropy(logits, torch.eye(C), None, y, chunk_rows=chunk, **options)
            expected = (logits.argmax(1) == y) & ~logits[:, 0].isnan() & ((y != 0) | ("ignore_index" not in options))
            assert torch.equal(out.correct, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_breaks_ties_as_argmax(dtype: torch.dtype) -> None:
    """Logits rounded to half precision are often tied; `correct` is argmax of the rounded ones, autocast or not."""
    g = torch.Generator().manual_seed(0)
    h, W = torch.randn(3000, 8, generator=g).to(dtype), (torch.randn(500, 8, generator=g) / 8).to(dtype)
    y = (h @ W.t()).topk(3).indices[:, 1]  # the second class: right only if the first one is tied and comes later
    expected = (h @ W.t()).argmax(1) == y
    assert torch.equal(linear_cross_entropy(h, W, None, y).correct, expected)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(linear_cross_entropy(h.float(), W.float(), None, y).correct, expected)
    assert 0 < expected.float().mean() < 0.5


def test_compiled_head_breaks_ties_as_argmax() -> None:
    """The path of GPUs and of torch.compile, which takes the maximum with its index, gives the same answer."""
    logits = torch.randint(-2, 3, (50, 7), generator=torch.Generator().manual_seed(0)).float()
    y = torch.arange(50) % 7
    top, first = _largest(logits.to("meta"))
    assert first is not None
    assert top.shape == first.shape == (50, 1)
    compiled = torch.compile(lambda x: linear_cross_entropy(x, torch.eye(7), None, y).correct, backend="eager")
    assert torch.equal(compiled(logits), logits.argmax(1) == y)


def test_divergence_is_visible() -> None:
    """Overflow and NaN in the inputs end up in the loss, as they do in PyTorch: nothing is clipped away."""
    for bad in (math.nan, math.inf):
        h, W, b, y = _problem(4, 3, 2, dtype=torch.float32)
        with torch.no_grad():
            W[1, 0] = bad
        out = linear_cross_entropy(h, W, b, y)
        assert math.isnan(out.loss.item())
        assert torch.isnan(_gradients(out.loss, W)[0]).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_float32_gradients(dtype: torch.dtype) -> None:
    """Under autocast, results are float32 and as exact as the type, even for factors out of its range."""
    head = nn.Linear(16, 30)
    h = torch.randn(500, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = torch.arange(500) % 30
    weights = torch.logspace(0, 6, 30)  # 1 / pi of a heavy tail: more than float16 can hold
    options: dict[str, Any] = {"class_weights": weights, "normalizer": 1e9, "chunk_rows": 128}
    with torch.autocast("cpu", dtype=dtype):
        out = linear_cross_entropy(h, head.weight, head.bias, y, curvature=True, **options)
    exact = linear_cross_entropy(h.double(), head.weight.double(), head.bias.double(), y, **options)
    assert {out.loss.dtype, out.losses.dtype} == {torch.float32}
    inputs = (h, head.weight, head.bias)
    eps = torch.finfo(dtype).eps
    assert out.loss.item() == pytest.approx(exact.loss.item(), rel=eps)
    for got, expected in zip(_gradients(out.loss, *inputs), _gradients(exact.loss, *inputs), strict=True):
        assert got.dtype == torch.float32
        assert (got - expected).abs().max() <= 4 * eps * expected.abs().max()


@pytest.mark.parametrize(("M", "size", "chunk"), [(4096, 40.0, None), (200_000, 1.0, 200_000), (70_000, 6e4, None)])
def test_float16_sums_over_many_rows_stay_finite(M: int, size: float, chunk: int | None) -> None:
    """Gradients of a mean under float16 autocast are right, although their sums exceed 65 504."""
    h, y = torch.full((M, 4), size), torch.zeros(M, dtype=torch.int64)
    head = nn.Linear(4, 10)
    for p in head.parameters():
        nn.init.zeros_(p)
    with torch.autocast("cpu", dtype=torch.float16):
        linear_cross_entropy(h, head.weight, head.bias, y, chunk_rows=chunk).loss.backward()  # type: ignore[no-untyped-call]
    residual = torch.full((10,), 0.1)
    residual[0] = -0.9
    assert head.weight.grad is not None
    assert head.bias.grad is not None
    torch.testing.assert_close(head.weight.grad, (size * residual)[:, None].expand(10, 4), rtol=5e-3, atol=0.0)
    torch.testing.assert_close(head.bias.grad, residual, rtol=5e-3, atol=0.0)


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e4])
def test_ignored_rows_may_hold_anything(dtype: torch.dtype, garbage: float) -> None:
    """Every result and gradient with ignored rows of NaN or inf is that of the other rows alone, bit for bit."""
    h, W, b, y = _problem(6, 3, 4, dtype=dtype)
    padded, targets = h.detach().clone(), y.clone()
    padded[1::2], targets[1::2] = garbage, -100
    padded.requires_grad_()
    out = linear_cross_entropy(padded, W, b, targets, ignore_index=-100, curvature=True, chunk_rows=2)
    kept = h.detach()[::2].clone().requires_grad_()
    alone = linear_cross_entropy(kept, W, b, y[::2], ignore_index=-100, curvature=True, chunk_rows=1)
    assert out.curvature is not None
    assert alone.curvature is not None
    got, expected = _gradients(out.loss, padded, W, b), _gradients(alone.loss, kept, W, b)
    assert torch.equal(got[0][1::2], torch.zeros(3, 4, dtype=dtype))
    tol = 2 * torch.finfo(dtype).eps
    for a, e in [(out.loss, alone.loss), (got[0][::2], expected[0]), *zip(got[1:], expected[1:], strict=True)]:
        torch.testing.assert_close(a, e, rtol=tol, atol=tol)
    for rows, some in ((out.losses, alone.losses), (out.p_correct, alone.p_correct)):
        torch.testing.assert_close(rows[::2], some, rtol=tol, atol=tol)
        assert not rows[1::2].any()
    torch.testing.assert_close(out.curvature.weight, alone.curvature.weight, rtol=1e-5, atol=tol)


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.0]])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_batch_without_targets_has_zero_gradients(dtype: torch.dtype, weights: list[float] | None) -> None:
    """With every target ignored the mean is NaN, as PyTorch's is, and all gradients are 0."""
    h, W, b, y = _problem(4, 3, 2, dtype=dtype)
    class_weights = None if weights is None else torch.tensor(weights)
    out = linear_cross_entropy(h, W, b, torch.full_like(y, -100), class_weights=class_weights, ignore_index=-100)
    assert math.isnan(out.loss.item())
    for gradient in _gradients(out.loss, h, W, b):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_a_class_of_weight_zero_contributes_nothing() -> None:
    """An infinite loss in a class of weight 0 changes neither the loss nor a gradient."""
    h, W, b, y = _problem(5, 3, 2, dtype=torch.float32)
    y[:] = torch.tensor([0, 1, 2, 0, 1])
    options = {"class_weights": torch.tensor([1.0, 2.0, 0.0])}
    with torch.no_grad():
        b[2] = -math.inf
    out = linear_cross_entropy(h, W, b, y, **options)
    rest = linear_cross_entropy(h[y != 2], W, b, y[y != 2], **options)
    assert math.isinf(out.losses[2].item())
    torch.testing.assert_close(out.loss, rest.loss)
    for got, expected in zip(_gradients(out.loss, W, b), _gradients(rest.loss, W, b), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("gap", [0.0, 1.0, 15.0, 20.0, 40.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_curvature_of_confident_rows(dtype: torch.dtype, gap: float) -> None:
    """p (1 - p) keeps its digits for a confidently wrong class as for a confidently right one."""
    W = torch.tensor([[0.0], [gap], [-1.0]], dtype=dtype)
    for y in range(3):
        out = linear_cross_entropy(torch.ones(1, 1, dtype=dtype), W, None, torch.tensor([y]), curvature=True)
        assert out.curvature is not None
        z = [0.0, gap, -1.0]
        for k in range(3):
            odds = math.fsum(math.exp(z[j] - z[k]) for j in range(3) if j != k)  # (1 - p) / p
            expected = odds / (1 + odds) ** 2
            tol = 20 * torch.finfo(dtype).eps
            assert out.curvature.weight[k].item() == pytest.approx(expected, rel=tol, abs=1e-30)


def test_memory_does_not_grow_with_rows() -> None:
    """The head allocates nothing larger than chunk x C, C x D or M x D: logits never exist whole."""
    M, C, D, chunk = 640, 90, 3, 32
    h, W, b, y = _problem(M, C, D, dtype=torch.float32)
    with _Allocations() as seen:
        linear_cross_entropy(h, W, b, y, chunk_rows=chunk, curvature=True).loss.backward()
    assert seen.largest <= max(chunk * C, C * D, M * D)


def test_diverging_weights_make_no_denormals() -> None:
    """No matrix on the way to the gradients holds a denormal, which would slow products a hundredfold."""
    h = torch.full((64, 2), 0.5)
    # shifted logits from 0 to -200, through the range where the exponential leaves float32
    W = -torch.linspace(0.0, 200.0, 400)[:, None].repeat(1, 2)
    W.requires_grad_()
    with _Denormals() as seen:
        linear_cross_entropy(h, W, None, torch.arange(64) % 5).loss.backward()
    assert seen.matrices > 0
    assert not seen.any


class _Denormals(torch.utils._python_dispatch.TorchDispatchMode):
    """Remembers whether any operation returned a matrix with denormal numbers."""

    matrices = 0
    any = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = isinstance(result, Tensor) and not any(x in str(func) for x in ("empty", "slice", "select"))
        if made and result.is_floating_point() and min(result.shape, default=0) > 1:
            self.matrices += 1
            size = result.abs()
            self.any |= bool(((size > 0) & (size < torch.finfo(result.dtype).tiny)).any())
        return result


class _Allocations(torch.utils._python_dispatch.TorchDispatchMode):
    """Remembers the largest storage that any operation returned."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, list | tuple) else [result]:
            if isinstance(x, Tensor):
                self.largest = max(self.largest, x.untyped_storage().nbytes() // x.element_size())
        return result


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"features": torch.zeros(4, 3, 2)},
            "features: expected floating point [M, D], got float32 [4, 3, 2]",
        ),
        (
            {"features": torch.zeros(4, 2, dtype=torch.int64)},
            "features: expected floating point [M, D], got int64",
        ),
        ({"weight": torch.zeros(3, 5)}, "weight: expected floating point [3, 2], got float32 [3, 5]"),
        (
            {"weight": torch.zeros(3, 2).double()},
            "weight: expected the features' torch.float32, got torch.float64",
        ),
        ({"bias": torch.zeros(4)}, "bias: expected floating point [3], got float32 [4]"),
        ({"class_weights": torch.zeros(2)}, "class_weights: expected floating point [3], got float32 [2]"),
        ({"targets": torch.zeros(4)}, "targets: expected int64 [4], got float32 [4]"),
        ({"targets": torch.zeros(5, dtype=torch.int64)}, "targets: expected int64 [4], got int64 [5]"),
        ({"targets": torch.tensor([0, 1, 3, 2])}, "targets: expected classes 0 to 2, got 3"),
        ({"targets": torch.tensor([0, -1, 2, 2])}, "targets: expected classes 0 to 2, got -1"),
        (
            {"targets": torch.tensor([0, -1, -7, 2]), "ignore_index": -1},
            "targets: expected classes 0 to 2, got -7",
        ),
        ({"normalizer": 0.0}, "normalizer: expected a positive number, got 0.0"),
        ({"normalizer": math.nan}, "normalizer: expected a positive number, got nan"),
        ({"normalizer": torch.ones(2)}, "normalizer: expected floating point [], got float32 [2]"),
        ({"chunk_rows": 0}, "chunk_rows: expected at least 1, got 0"),
        ({"class_weights": torch.ones(3).requires_grad_()}, "class_weights: expected constants, got a tensor that"),
    ],
)
def test_errors_name_the_field(change: dict[str, Any], message: str) -> None:
    """What does not fit is named, with what was expected and what was given."""
    good: dict[str, Any] = {
        "features": torch.zeros(4, 2),
        "weight": torch.zeros(3, 2),
        "bias": torch.zeros(3),
        "targets": torch.zeros(4, dtype=torch.int64),
    }
    linear_cross_entropy(**good)
    with pytest.raises(SpecError, match=re.escape(message)):
        linear_cross_entropy(**(good | change))


# -- weights of rows, and PyTorch's own op ---------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    ignored=st.booleans(),
    normalizer=st.sampled_from([None, 3.0]),
    chunk=st.sampled_from([None, 2]),
)
def test_row_weights(seed: int, dtype: torch.dtype, ignored: bool, normalizer: float | None, chunk: int | None) -> None:
    """Rows weighted by masks and advantages of any sign have autograd's loss and gradients, in every type."""
    h, W, b, y = _problem(7, 5, 4, dtype=dtype, seed=seed)
    weights = torch.tensor([0.0, 1.0, 2.5, -0.5, 1.0, 0.25, 0.0], dtype=torch.float64)
    if ignored:
        y[1] = -100
    out = linear_cross_entropy(
        h, W, b, y, row_weights=weights.to(dtype), normalizer=normalizer, ignore_index=-100, chunk_rows=chunk
    )
    inputs = [x.detach().double().requires_grad_() for x in (h, W, b)]
    losses = F.cross_entropy(F.linear(*inputs), y, reduction="none")
    counted = weights * (y != -100)
    expected = (counted * losses).sum() / (counted.sum() if normalizer is None else normalizer)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 6e-2}[dtype]
    pairs = zip([out.loss, *_gradients(out.loss, h, W, b)], [expected, *_gradients(expected, *inputs)], strict=True)
    for value, truth in pairs:
        torch.testing.assert_close(value.double(), truth, rtol=tolerance, atol=tolerance)


def test_a_row_of_weight_zero_counts_nowhere() -> None:
    """With all weights 0 every gradient is 0, in half precision too; weights must be constants, one for each row."""
    for dtype in (torch.float32, torch.float16):
        h, W, b, y = _problem(4, 5, 3, dtype=dtype)
        out = linear_cross_entropy(h, W, b, y, row_weights=torch.zeros(4, dtype=dtype), normalizer=1.0)
        assert out.loss == 0
        assert all((gradient == 0).all() for gradient in _gradients(out.loss, h, W, b))
    with pytest.raises(SpecError, match=r"row_weights: expected floating point \[4\]"):
        linear_cross_entropy(h, W, b, y, row_weights=torch.ones(3))
    with pytest.raises(SpecError, match="row_weights: expected constants"):
        linear_cross_entropy(h, W, b, y, row_weights=torch.ones(4, requires_grad=True))


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="needs PyTorch 2.13")
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_equals_torchs_own_op(reduction: str) -> None:
    """Loss and gradients are those of torch.nn.functional.linear_cross_entropy, in float64."""
    h, W, b, y = _problem(13, 7, 5)
    y[::4] = -100
    ours = linear_cross_entropy(h, W, b, y, ignore_index=-100, normalizer=1.0 if reduction == "sum" else None).loss
    theirs = F.linear_cross_entropy(h, W, y, linear_bias=b, reduction=reduction, ignore_index=-100)  # type: ignore[attr-defined]
    pairs = zip([ours, *_gradients(ours, h, W, b)], [theirs, *_gradients(theirs, h, W, b)], strict=True)
    for value, truth in pairs:
        torch.testing.assert_close(value, truth, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("M", [0, 7, 600])
def test_the_gradient_of_the_weight_needs_no_autograd(M: int, bias: bool, dtype: torch.dtype) -> None:
    """Gradient and curvature are those of the summed loss bit for bit, under autocast too, and no tensor is saved."""
    h, W, b, y = _problem(M, 5, 3, dtype=dtype)
    y[::3] = -1
    out = linear_cross_entropy(h, W, b if bias else None, y, normalizer=1.0, ignore_index=-1, curvature=True)
    (expected,) = _gradients(out.loss, W)

    def refuse(tensor: Tensor) -> Tensor:
        raise AssertionError(f"saved {tuple(tensor.shape)}")

    with torch.autograd.graph.saved_tensors_hooks(refuse, lambda x: x), torch.autocast("cpu", torch.bfloat16):
        gradient, curvature = weight_gradient(h, W, b if bias else None, y, ignore_index=-1)
    assert not gradient.requires_grad
    assert torch.equal(gradient, expected)
    assert out.curvature is not None
    assert torch.equal(curvature.weight, out.curvature.weight)
    with pytest.raises(SpecError, match="features: expected float32 or float64, got bfloat16"):
        weight_gradient(h.bfloat16(), W.bfloat16(), None, y, ignore_index=-1)
    with pytest.raises(SpecError, match="weight: expected the features'"):
        weight_gradient(h, W.bfloat16(), None, y, ignore_index=-1)
