"""The fused softmax head: loss, gradients, per-row results and curvature in one pass over the rows.

Every model of the paper ends in a linear classifier, and all of the paper's measurements are functions of its
features h, weight W, bias b and targets y (sections 3 and 4): with p_i = softmax(W h_i + b) and
l_i = -log p_i[y_i],

    loss = sum_i w[y_i] l_i / normalizer,    grad W_k = sum_i w[y_i] (p_ik - 1[y_i = k]) h_i / normalizer,
    n Tr H_kk = sum_i p_ik (1 - p_ik) ||h_i||^2, the Hessian trace of row k of the plain loss.

The forward pass processes some hundred rows at a time and computes their part of the gradients while their
logits are in cache: the full logits never exist, and the backward pass has nothing left to compute. Speed and
accuracy also depend on three details:

* Exponentials are not normalised; a row's factor w / (normalizer Z) multiplies the smaller factor of each
  product.
* The target's exponential is left out of its row's sum. With `rest` the sum of the others, 1 - p[y] =
  rest / Z, and l = log1p(rest) for a target with the largest logit: both are accurate on samples that are
  almost fitted, where 1 - softmax and log_softmax round to 0.
* Shifted logits are clamped from below, at -60 in float32. exp(-95) is a denormal number, a hundred times
  slower to compute than exp(-60), as is every product with it. A probability below exp(-60) = 1e-26 changes
  no sum of order one, and the loss uses the logits before clamping.

Shapes: M rows (samples or predicted tokens), C classes, D features, R rows of one chunk.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from heavytail.errors import SpecError

__all__ = ["Curvature", "HeadOutput", "linear_cross_entropy"]

_EXPONENT_FLOOR = {torch.float32: -60.0, torch.float64: -500.0}


class Curvature(NamedTuple):
    """Sums over rows, n times the Hessian trace of each class; unweighted, without ignored rows.

    Attributes:
        weight: sum_i p_ik (1 - p_ik) ||h_i||^2, for the block of W_k [C].
        bias: sum_i p_ik (1 - p_ik), for the entry of b_k [C]; None for a head without bias.
    """

    weight: Tensor
    bias: Tensor | None


class HeadOutput(NamedTuple):
    """Results of one pass over the head. Only `loss` is differentiable; ignored rows hold 0, False and 0.

    Attributes:
        loss: weighted sum of the losses over the normalizer [] (nats).
        losses: loss of each row, without its weight [M] (nats).
        correct: whether no logit exceeds the target's, so that ties count as correct [M] bool.
        p_correct: probability of the target [M].
        curvature: sums for the Hessian traces; None unless requested.
    """

    loss: Tensor
    losses: Tensor
    correct: Tensor
    p_correct: Tensor
    curvature: Curvature | None


def linear_cross_entropy(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    class_weights: Tensor | None = None,
    row_weights: Tensor | None = None,
    normalizer: float | Tensor | None = None,
    ignore_index: int | None = None,
    curvature: bool = False,
    chunk_rows: int | None = None,
) -> HeadOutput:
    """Compute the cross-entropy of a linear softmax head with its gradients and, on request, its curvature.

    The gradients of those of features, weight and bias that require one are computed here and returned by
    `backward`. They are first derivatives only, and requesting the curvature does not change a bit of them.
    Under autocast, or with half-precision inputs, products are in that dtype and everything else in float32.

    Args:
        features: inputs of the head [M, D].
        weight: W [C, D].
        bias: b [C], or None.
        targets: class of each row [M] int64. Classes out of range raise SpecError on the CPU; on a GPU, where
            the check would synchronize the device at every call, they cause a device-side assertion.
        class_weights: weight of each class in `loss` [C], constants; by default all 1.
        row_weights: weight of each row in `loss` [M], constants of any sign, such as masks and advantages, times that
            of its class; by default all 1. A row of weight 0 has no gradient, whatever its features are.
        normalizer: divisor of the weighted sum; by default the summed weights of these rows, so that `loss`
            is a mean (NaN over no rows). When accumulating over micro-batches, pass that of the whole batch.
        ignore_index: value in `targets` of rows that are ignored, whatever their features are. If all rows are
            ignored, all gradients are 0 and the mean over no rows is NaN.
        curvature: whether to return `Curvature`.
        chunk_rows: rows per chunk; by default chosen for shape and device.

    Returns:
        Loss, per-row results and curvature.

    Raises:
        SpecError: a shape, dtype or class is invalid; on a backward pass with `create_graph=True`.

    >>> out = linear_cross_entropy(torch.ones(2, 3), torch.zeros(4, 3), None, torch.tensor([0, 3]))
    >>> round(out.loss.item(), 4)  # log 4
    1.3863
    """
    _check(features, weight, bias, targets, class_weights, row_weights, normalizer, ignore_index, chunk_rows)
    inputs = (features, weight, bias)
    needs = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in inputs]
    dtype = _product_dtype(features)
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        rows = _prepare_rows(targets, class_weights, row_weights, normalizer, ignore_index, dtype)
        chunk = chunk_rows or _default_chunk(features, weight)
        gradients = _GradientSums(features, weight.to(dtype), needs, chunk)
        out = _one_pass(features, weight.to(dtype), bias, rows, gradients, curvature, chunk)
    if any(needs):
        loss = _KnownGradients.apply(out.loss, rows.unit, gradients, *inputs)  # type: ignore[no-untyped-call]
        out = out._replace(loss=loss)
    return out


class _Rows(NamedTuple):
    """Targets, weights and factors of the rows."""

    targets: Tensor  # [M, 1], a class even where ignored
    weight: Tensor  # [M, 1], w[y], 0 where ignored
    normalizer: float | Tensor
    factor: Tensor  # [M, 1], of the row's gradient: w[y] / normalizer, or in half precision w[y] / max w
    unit: Tensor | None  # [], half precision: max w / normalizer
    valid: Tensor | None  # [M, 1] bool, None if no row can be ignored


def _prepare_rows(
    targets: Tensor,
    class_weights: Tensor | None,
    row_weights: Tensor | None,
    normalizer: float | Tensor | None,
    ignore_index: int | None,
    dtype: torch.dtype,
) -> _Rows:
    y, valid = targets[:, None], None
    if ignore_index is not None:
        valid = y != ignore_index
        y = torch.where(valid, y, 0)
    if class_weights is None:
        class_weights = torch.ones((), device=y.device)
        weight = torch.ones(y.shape, dtype=_working(dtype), device=y.device)
    else:
        weight = class_weights.to(_working(dtype))[y]
    if row_weights is not None:
        weight = weight * row_weights.to(weight.dtype)[:, None]
    if valid is not None:
        weight = torch.where(valid, weight, 0.0)
    if normalizer is None:
        normalizer = weight.sum()
    counts = weight != 0  # without a counted row the normalizer is 0, and 0 / 0 must not reach a gradient
    if dtype == _working(dtype):
        return _Rows(y, weight, normalizer, torch.where(counts, weight / normalizer, 0.0), None, valid)
    # Float16 cannot hold 1/M: the rows' factors stay near 1, and backward applies the rest with the loss scale.
    largest = class_weights.amax().float()
    if row_weights is not None:
        largest = weight.abs().amax().clamp(min=torch.finfo(weight.dtype).tiny) if len(weight) else largest
    factor = torch.where(counts, weight / largest, 0.0)
    return _Rows(y, weight, normalizer, factor, torch.where(counts.any(), largest / normalizer, 0.0), valid)


def _one_pass(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: _Rows,
    gradients: _GradientSums,
    curvature: bool,
    chunk: int,
) -> HeadOutput:
    """Process all chunks; fill `gradients`, return the other results. Products are in the weight's dtype."""
    M, C = len(features), len(weight)
    working = _working(weight.dtype)
    buffer = weight.new_empty(min(chunk, M), C, dtype=working)
    losses = weight.new_empty(M, 1, dtype=working)
    correct = weight.new_empty(M, 1, dtype=torch.bool)
    sums = _CurvatureSums(weight, bias is not None) if curvature else None
    for start in range(0, M, chunk):
        part = slice(start, start + chunk)
        h, y = features[part].to(weight.dtype), rows.targets[part]
        valid = None if rows.valid is None else rows.valid[part]
        if valid is not None:
            h = torch.where(valid, h, 0.0)  # padding may hold any value, NaN included
        logits = buffer[: len(h)]
        if weight.dtype == working:
            torch.mm(h, weight.t(), out=logits)
        else:
            logits.copy_(torch.mm(h, weight.t()))
        if bias is not None:
            logits += bias  # twice as fast as addmm with out=
        top, own = logits.amax(1, keepdim=True), logits.gather(1, y)
        exps = logits.sub_(top).clamp_(min=_EXPONENT_FLOOR[working]).exp_()
        own_exp = exps.gather(1, y)
        others = exps.scatter_(1, y, 0.0)
        rest = others.sum(1, keepdim=True)
        total = rest + own_exp
        leads = own >= top
        correct[part] = leads
        losses[part] = (top - own) + torch.log1p(torch.where(leads, rest, total - 1.0))
        if gradients.needed:
            residual = others.scatter_(1, y, -rest)  # (p_ik - 1[y_i = k]) total_i
            gradients.add(residual, rows.factor[part] / total, h, start)
        if sums is not None:
            others = logits.scatter_(1, y, 0.0)
            sums.add(others, own_exp, rest, leads, h, y, valid)
    loss = torch.where(rows.weight != 0, rows.weight * losses, 0.0).sum() / rows.normalizer
    p_correct = torch.exp(-losses)
    if rows.valid is not None:
        losses, p_correct = (torch.where(rows.valid, x, 0.0) for x in (losses, p_correct))
        correct = correct & rows.valid
    found = None if sums is None else sums.result()
    return HeadOutput(loss, losses[:, 0], correct[:, 0], p_correct[:, 0], found)


class _GradientSums:
    """sum_i factor_i grad l_i with respect to features, weight and bias, for those that require a gradient."""

    def __init__(self, features: Tensor, weight: Tensor, needs: list[bool], chunk: int) -> None:
        (M, D), C = features.shape, len(weight)
        self.weight = weight
        self.needed = any(needs)
        self.half = weight.dtype != _working(weight.dtype)
        empty = partial(weight.new_empty, dtype=_working(weight.dtype))
        zeros = partial(weight.new_zeros, dtype=_working(weight.dtype))
        self.features = weight.new_empty(M, D) if needs[0] else None
        self.matrix = (zeros if self.half or M == 0 else empty)(C, D) if needs[1] else None
        self.bias = zeros(C) if needs[2] else None
        # Scale the smaller side, R x C or R x D; half precision cannot hold unscaled exponentials.
        rows = min(chunk, M)
        on_residual = self.half or D > C
        self.scaled_residual = weight.new_empty(rows, C) if self.needed and on_residual else None
        self.scaled_features = empty(rows, D) if needs[1] and not on_residual else None

    def add(self, residual: Tensor, scale: Tensor, h: Tensor, start: int) -> None:
        """Add the rows from `start` on, whose gradients in the logits are residual [R, C] times scale [R, 1]."""
        R = len(h)
        if self.bias is not None:
            self.bias.addmv_(residual.t(), scale[:, 0])
        left, right = residual, h
        if self.scaled_residual is not None:
            left = torch.mul(residual, scale, out=self.scaled_residual[:R])
        if self.matrix is not None:
            if self.scaled_features is not None:
                right = torch.mul(h, scale, out=self.scaled_features[:R])
            if self.half:
                self.matrix += _wide_product(left.t(), right)
            else:
                self.matrix.addmm_(left.t(), right, beta=float(start > 0))
        if self.features is not None:
            target = torch.mm(left, self.weight, out=self.features[start : start + R])
            if self.scaled_residual is None:
                target *= scale


class _CurvatureSums:
    """sum_i p_ik (1 - p_ik) s_i, with s_i = ||h_i||^2 for the weight and 1 for the bias."""

    def __init__(self, weight: Tensor, has_bias: bool) -> None:
        self.sums = weight.new_zeros(1 + has_bias, len(weight), dtype=_working(weight.dtype))

    def add(
        self, others: Tensor, own: Tensor, rest: Tensor, leads: Tensor, h: Tensor, y: Tensor, valid: Tensor | None
    ) -> None:
        """Add a chunk; `others` [R, C], the exponentials with the target's at 0, is overwritten.

        p - p^2 cancels where p is near 1, as it can be for the target and the class with the largest logit. Their terms
        are products p (1 - p) with 1 - p summed over the other classes.
        """
        s = torch.linalg.vector_norm(h, dim=1, keepdim=True, dtype=rest.dtype).square_()
        if len(self.sums) == 2:
            s = torch.cat([s, torch.ones_like(s)], dim=1)
        if valid is not None:
            s = torch.where(valid, s, 0.0)
        total = rest + own
        self.sums.index_add_(1, y[:, 0], (s * (own / total) * (rest / total)).t())
        top, leader = others.max(1, keepdim=True)
        top = torch.where(leads, 0.0, top)  # a target with the largest logit is already added
        others.scatter_(1, leader, torch.where(leads, others.gather(1, leader), 0.0))
        below = others.sum(1, keepdim=True) + own
        self.sums.index_add_(1, leader[:, 0], (s * (top / total) * (below / total)).t())
        self.sums.addmm_((s / total).t(), others)
        self.sums.addmm_((s / total.square()).t(), others.square_(), alpha=-1.0)

    def result(self) -> Curvature:
        return Curvature(self.sums[0], self.sums[1] if len(self.sums) == 2 else None)


class _KnownGradients(torch.autograd.Function):
    """A scalar whose gradients are already computed: backward only scales them."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, unit: Tensor | None, sums: _GradientSums, *inputs: Tensor | None) -> Tensor:
        # Saved for backward, not attributes: autograd releases them before it returns them, so that a parameter
        # takes its gradient without a copy; with a retained graph, which still needs them, it copies.
        ctx.save_for_backward(unit, sums.features, sums.matrix, sums.bias)
        ctx.dtypes = [None if x is None else x.dtype for x in inputs]
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise SpecError("create_graph: expected False, linear_cross_entropy is differentiable once, got True")
        unit, *gradients = ctx.saved_tensors
        scale = grad_outputs[0] if unit is None else grad_outputs[0] * unit
        # The scale is nearly always 1, and skipping it saves a pass; on a GPU the check would synchronize.
        if scale.device.type != "cpu" or scale.item() != 1.0:
            gradients = [None if g is None else g * scale for g in gradients]
        cast = [None if g is None else g.to(dtype) for g, dtype in zip(gradients, ctx.dtypes, strict=True)]
        return None, None, None, *cast


def _wide_product(left: Tensor, right: Tensor) -> Tensor:
    """The product of two matrices; in float32 for float16, where a sum over the rows of a chunk may exceed 65 504."""
    if left.dtype != torch.float16:
        return torch.mm(left, right)
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return torch.mm(left.float(), right.float())


def _product_dtype(features: Tensor) -> torch.dtype:
    """Type of the matrix products: autocast's where it is on, except for float64, or that of the features."""
    device = features.device.type
    if features.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return features.dtype


def _working(dtype: torch.dtype) -> torch.dtype:
    """Type of everything between the matrix products."""
    return torch.float32 if dtype.itemsize < 4 else dtype


def _default_chunk(features: Tensor, weight: Tensor) -> int:
    """Rows whose logits fit a cache or take no more memory than the weight does, in chunks of equal size."""
    (M, D), C = features.shape, len(weight)
    if features.device.type == "cpu":
        most = min(max(256, 2**20 // C, D), 4096)
    else:
        most = max(1024, 2**26 // C)
    return math.ceil(M / max(1, math.ceil(M / most))) or 1


def _check(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    class_weights: Tensor | None,
    row_weights: Tensor | None,
    normalizer: float | Tensor | None,
    ignore_index: int | None,
    chunk_rows: int | None,
) -> None:
    if features.ndim != 2 or not features.is_floating_point():
        raise SpecError(f"features: expected floating point [M, D], got {_describe(features)}")
    (M, D), C = features.shape, len(weight)
    _expect("weight", weight, (max(C, 1), D))
    if weight.dtype != features.dtype and not torch.is_autocast_enabled(features.device.type):
        raise SpecError(f"weight: expected the features' {features.dtype}, got {weight.dtype}")
    _expect("bias", bias, (C,))
    _expect("class_weights", class_weights, (C,))
    _expect("row_weights", row_weights, (M,))
    for name, weights in (("class_weights", class_weights), ("row_weights", row_weights)):
        if weights is not None and weights.requires_grad and torch.is_grad_enabled():
            raise SpecError(f"{name}: expected constants, got a tensor that requires a gradient; pass .detach()")
    if targets.shape != (M,) or targets.dtype != torch.int64:
        raise SpecError(f"targets: expected int64 [{M}], got {_describe(targets)}")
    if isinstance(normalizer, Tensor):
        _expect("normalizer", normalizer, ())
    elif normalizer is not None and not 0.0 < normalizer < math.inf:
        raise SpecError(f"normalizer: expected a positive number, got {normalizer}")
    if chunk_rows is not None and chunk_rows < 1:
        raise SpecError(f"chunk_rows: expected at least 1, got {chunk_rows}")
    if targets.device.type == "cpu":
        wrong = (targets < 0) | (targets >= C)
        if ignore_index is not None:
            wrong &= targets != ignore_index
        if wrong.any():
            raise SpecError(f"targets: expected classes 0 to {C - 1}, got {targets[wrong][0].item()}")


def _expect(name: str, value: Tensor | None, shape: tuple[int, ...]) -> None:
    if value is not None and (tuple(value.shape) != shape or not value.is_floating_point()):
        raise SpecError(f"{name}: expected floating point {list(shape)}, got {_describe(value)}")


def _describe(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
