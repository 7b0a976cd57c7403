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

With `differentiable_losses` the factors of the rows are unknown in the forward pass. It keeps three numbers of each
row, its largest logit and the two sums, and the backward pass forms the logits again.

Shapes: M rows (samples or predicted tokens), C classes, D features, R rows of one chunk.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from heavytail.errors import SpecError

__all__ = ["Curvature", "HeadOutput", "linear_cross_entropy", "weight_gradient"]

_ONCE = "create_graph: expected False, linear_cross_entropy is differentiable once, got True"
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
    """Results of one pass over the head; ignored rows hold 0, False and 0.

    Attributes:
        loss: weighted sum of the losses over the normalizer [] (nats); differentiable.
        losses: loss of each row, without its weight [M] (nats); differentiable only if requested.
        correct: whether the target is the argmax of the logits; of equal logits the lowest class wins [M] bool.
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
    softcap: float | None = None,
    differentiable_losses: bool = False,
    curvature: bool = False,
    chunk_rows: int | None = None,
) -> HeadOutput:
    """Compute the cross-entropy of a linear softmax head with its gradients and, on request, its curvature.

    The gradients of those of features, weight and bias that require one are computed here and returned by
    `backward`. They are first derivatives only, and requesting the curvature does not change a bit of them.
    Under autocast, or with half-precision inputs, products are in that dtype and everything else in float32.
    `heavytail.functional.linear_cross_entropy` is the same head with the arguments of PyTorch's function.

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
        softcap: s, for logits s tanh((W h + b) / s), as in Gemma 2; None for W h + b.
        differentiable_losses: whether gradients of any function of `losses` can be computed, as with PyTorch's
            reduction="none". Their factors are unknown until the backward pass, which then forms the logits again, a
            chunk at a time: one matrix product more.
        curvature: whether to return `Curvature`; not with a softcap.
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
    if softcap is not None and (curvature or not 0.0 < softcap < math.inf):
        raise SpecError(f"softcap: expected a positive number, and none with curvature, got {softcap}")
    inputs = (features, weight, bias)
    needs = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in inputs]
    dtype = _product_dtype(features)
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        rows = _prepare_rows(targets, class_weights, row_weights, normalizer, ignore_index, dtype)
        chunk = chunk_rows or _default_chunk(features, weight)
        head = _Head(weight.to(dtype), bias, softcap)
        now = [need and not differentiable_losses for need in needs]
        gradients = _GradientSums(
            features, head.weight, now, chunk, class_weights is not None or row_weights is not None
        )
        later = any(needs) and differentiable_losses
        softmax = head.weight.new_empty(3, len(features), 1, dtype=_working(dtype)) if later else None
        out = _one_pass(features, head, rows, gradients, curvature, chunk, softmax)
    if softmax is not None:
        losses = _LossesOfRows.apply(out.losses, softmax, rows, softcap, dtype, chunk, *inputs)  # type: ignore[no-untyped-call]
        return out._replace(loss=_weighted_mean(rows, losses[:, None]), losses=losses)
    if any(needs):
        loss = _KnownGradients.apply(out.loss, rows.unit, gradients, *inputs)  # type: ignore[no-untyped-call]
        return out._replace(loss=loss)
    return out


@torch.no_grad()
def weight_gradient(
    features: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *, ignore_index: int | None = None
) -> tuple[Tensor, Curvature]:
    """Return the gradient of the summed loss with respect to the weight [C, D], and the curvature, without autograd.

    Products are in the features' dtype, also under autocast. No tensor is saved for a backward pass: hooks on saved
    tensors, those of activation checkpointing among them, see nothing.

    Args:
        features: inputs of the head [M, D], float32 or float64.
        weight: W [C, D].
        bias: b [C], or None.
        targets: class of each row [M] int64.
        ignore_index: value in `targets` of rows that are ignored, whatever their features are.

    Raises:
        SpecError: a shape, dtype or class is invalid.

    >>> gradient, _ = weight_gradient(torch.ones(2, 3), torch.zeros(4, 3), None, torch.tensor([0, 3]))
    >>> gradient[:, 0].tolist()  # two rows of probabilities 1/4, less one where the target is
    [-0.5, 0.5, 0.5, -0.5]
    """
    with torch.autocast(features.device.type, enabled=False):
        _check(features, weight, bias, targets, None, None, 1.0, ignore_index, None)
        if features.dtype != _working(features.dtype):
            raise SpecError(f"features: expected float32 or float64, got {_describe(features)}")
        rows = _prepare_rows(targets, None, None, 1.0, ignore_index, features.dtype)
        chunk = _default_chunk(features, weight)
        gradients = _GradientSums(features, weight, [False, True, False], chunk, weighted=False)
        out = _one_pass(features, _Head(weight, bias, None), rows, gradients, True, chunk, None)
    assert gradients.matrix is not None
    assert out.curvature is not None
    return gradients.matrix, out.curvature


class _Head(NamedTuple):
    """A head, its weight in the dtype of its products."""

    weight: Tensor  # [C, D]
    bias: Tensor | None  # [C]
    softcap: float | None

    def buffers(self, rows: int) -> Tensor:
        """Space for the logits of a chunk and, with a softcap, for their derivatives [1 or 2, R, C]."""
        shape = (1 if self.softcap is None else 2, rows, len(self.weight))
        return self.weight.new_empty(shape, dtype=_working(self.weight.dtype))

    def logits(self, h: Tensor, buffers: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the logits of h [R, D] and, with a softcap s, their derivatives 1 - (z / s)^2, both [R, C]."""
        logits = buffers[0, : len(h)]
        if self.weight.dtype == logits.dtype:
            torch.mm(h, self.weight.t(), out=logits)
        else:
            logits.copy_(torch.mm(h, self.weight.t()))
        if self.bias is not None:
            logits += self.bias  # twice as fast as addmm with out=
        if self.softcap is None:
            return logits, None
        logits.div_(self.softcap).tanh_()
        slope = torch.mul(logits, logits, out=buffers[1, : len(h)]).neg_().add_(1.0)
        return logits.mul_(self.softcap), slope


class _Rows(NamedTuple):
    """Targets, weights and factors of the rows."""

    targets: Tensor  # [M, 1], a class even where ignored
    weight: Tensor  # [M, 1], w[y], 0 where ignored
    normalizer: float | Tensor
    factor: Tensor  # [M, 1], of the row's gradient: w[y] / normalizer, or in half precision w[y] / max w
    unit: Tensor | None  # [], half precision: max w / normalizer
    valid: Tensor | None  # [M, 1] bool, None if no row can be ignored

    def features(self, features: Tensor, part: slice, dtype: torch.dtype) -> Tensor:
        """The features of a chunk [R, D]; 0 in ignored rows, as padding may hold any value, NaN included."""
        h = features[part].to(dtype)
        return h if self.valid is None else torch.where(self.valid[part], h, 0.0)


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
    head: _Head,
    rows: _Rows,
    gradients: _GradientSums,
    curvature: bool,
    chunk: int,
    softmax: Tensor | None,
) -> HeadOutput:
    """Process all chunks; fill `gradients` and `softmax` [3, M, 1], return the other results."""
    M = len(features)
    buffers = head.buffers(min(chunk, M))
    losses = buffers.new_empty(M, 1)
    correct = buffers.new_empty(M, 1, dtype=torch.bool)
    sums = _CurvatureSums(head.weight, head.bias is not None) if curvature else None
    for start in range(0, M, chunk):
        part = slice(start, start + chunk)
        h, y = rows.features(features, part, head.weight.dtype), rows.targets[part]
        logits, slope = head.logits(h, buffers)
        top, first = _largest(logits)
        own = logits.gather(1, y)
        exps = _exponentials(logits, top)
        own_exp = exps.gather(1, y)
        others = exps.scatter_(1, y, 0.0)
        rest = others.sum(1, keepdim=True)
        total = rest + own_exp
        leads = own >= top
        correct[part] = _break_ties(leads, others, rest, y, h, head) if first is None else leads & (first == y)
        losses[part] = (top - own) + torch.log1p(torch.where(leads, rest, total - 1.0))
        if softmax is not None:
            torch.stack((top, rest, total), out=softmax[:, part])
        if gradients.needed:
            gradients.add(others, rest, total, slope, rows.factor[part], y, h, start)
        if sums is not None:
            others = logits.scatter_(1, y, 0.0)
            sums.add(others, own_exp, rest, leads, h, y, None if rows.valid is None else rows.valid[part])
    loss = _weighted_mean(rows, losses)
    p_correct = torch.exp(-losses)
    if rows.valid is not None:
        losses, p_correct = (torch.where(rows.valid, x, 0.0) for x in (losses, p_correct))
        correct = correct & rows.valid
    found = None if sums is None else sums.result()
    return HeadOutput(loss, losses[:, 0], correct[:, 0], p_correct[:, 0], found)


def _largest(logits: Tensor) -> tuple[Tensor, Tensor | None]:
    """The largest logit of each row and, where it is cheap, its first class, both [R, 1]."""
    if logits.numel() >= 2**14 and logits.device.type == "cpu" and not torch.compiler.is_compiling():
        return logits.amax(1, keepdim=True), None
    return logits.max(1, keepdim=True)


def _break_ties(leads: Tensor, others: Tensor, rest: Tensor, y: Tensor, h: Tensor, head: _Head) -> Tensor:
    """Whether the target is the first class with the largest logit, given whether its logit is the largest [R, 1] bool.

    On a CPU argmax takes ten times as long as amax; only tied rows form their logits again and take it. A row is tied
    only if another exponential is 1, as the target's is; then their sum `rest` is at least 1.
    """
    doubtful = leads & (rest >= 1.0)
    if not doubtful.any():
        return leads
    tied = (doubtful & (others.amax(1, keepdim=True) >= 1.0)).nonzero()[:, 0]
    if not len(tied):
        return leads
    logits, _ = head.logits(h[tied], head.buffers(len(tied)))
    return leads.index_copy(0, tied, logits.argmax(1, keepdim=True) == y[tied])


def _exponentials(logits: Tensor, top: Tensor) -> Tensor:
    """exp(logits - top), in place and without denormals."""
    return logits.sub_(top).clamp_(min=_EXPONENT_FLOOR[logits.dtype]).exp_()


def _weighted_mean(rows: _Rows, losses: Tensor) -> Tensor:
    """The weighted sum of losses [M, 1] over the normalizer []; a row of weight 0 may have any loss."""
    return torch.where(rows.weight != 0, rows.weight * losses, 0.0).sum() / rows.normalizer


class _GradientSums:
    """sum_i factor_i grad l_i with respect to features, weight and bias, for those that require a gradient."""

    def __init__(self, features: Tensor, weight: Tensor, needs: list[bool], chunk: int, weighted: bool) -> None:
        (M, D), C = features.shape, len(weight)
        self.weight = weight
        self.weighted = weighted
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

    def add(
        self,
        others: Tensor,
        rest: Tensor,
        total: Tensor,
        slope: Tensor | None,
        factor: Tensor,
        y: Tensor,
        h: Tensor,
        start: int,
    ) -> None:
        """Add the rows from `start` on.

        `others` [R, C] are the exponentials but the target's, `rest` their sums and `total` those with it [R, 1];
        `others` is overwritten.
        """
        R, scale = len(h), factor / total
        residual = others.scatter_(1, y, -rest)  # (p_ik - 1[y_i = k]) total_i
        if slope is not None:
            residual *= slope
        if self.weighted:
            blank = (factor == 0) & ~total.isfinite()  # features that are not finite in a row of weight 0
            if blank.device.type != "cpu" or blank.any():
                residual.masked_fill_(blank, 0.0)
                h, scale = h.masked_fill(blank, 0.0), scale.masked_fill(blank, 0.0)
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

        p - p^2 cancels where p is near 1, as it can be for the target, or for another class with the largest logit.
        Their terms are products p (1 - p) with 1 - p summed over the other classes.
        """
        s = torch.linalg.vector_norm(h, dim=1, keepdim=True, dtype=rest.dtype).square_()
        if len(self.sums) == 2:
            s = torch.cat([s, torch.ones_like(s)], dim=1)
        if valid is not None:
            s = torch.where(valid, s, 0.0)
        total = rest + own
        self.sums.index_add_(1, y[:, 0], (s * (own / total) * (rest / total)).t())
        # The largest exponential is 1, so a class other than the target has more than half of a row's probability if
        # and only if the target's is not the largest and all of them add up to less than 2.
        alone = ~leads & (total < 2.0)
        if others.device.type != "cpu" or torch.compiler.is_compiling():  # counting such rows would synchronize
            self._add_leaders(others, alone, own, total, s)
        elif len(rows := alone[:, 0].nonzero()[:, 0]):
            part = others[rows]
            self._add_leaders(part, alone[rows], own[rows], total[rows], s[rows])
            others.index_copy_(0, rows, part)
        self.sums.addmm_((s / total).t(), others)
        self.sums.addmm_((s / total.square()).t(), others.square_(), alpha=-1.0)

    def _add_leaders(self, others: Tensor, alone: Tensor, own: Tensor, total: Tensor, s: Tensor) -> None:
        """Add the class with the largest logit in the rows where `alone` [R, 1], and set its exponential to 0."""
        leader = others.argmax(1, keepdim=True)
        others.scatter_(1, leader, torch.where(alone, 0.0, others.gather(1, leader)))
        below = others.sum(1, keepdim=True) + own
        self.sums.index_add_(1, leader[:, 0], (s * torch.where(alone, below / total.square(), 0.0)).t())

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
            raise SpecError(_ONCE)
        unit, *gradients = ctx.saved_tensors
        scale = grad_outputs[0] if unit is None else grad_outputs[0] * unit
        # The scale is nearly always 1, and skipping it saves a pass; on a GPU the check would synchronize.
        if scale.device.type != "cpu" or scale.item() != 1.0:
            gradients = [None if g is None else g * scale for g in gradients]
        cast = [None if g is None else g.to(dtype) for g, dtype in zip(gradients, ctx.dtypes, strict=True)]
        return None, None, None, *cast


class _LossesOfRows(torch.autograd.Function):
    """The losses of the rows; backward forms their logits again, as their factors are known only there."""

    @staticmethod
    def forward(
        ctx: Any,
        losses: Tensor,
        softmax: Tensor,
        rows: _Rows,
        softcap: float | None,
        dtype: torch.dtype,
        chunk: int,
        *inputs: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(softmax, *inputs)
        ctx.rows, ctx.softcap, ctx.dtype, ctx.chunk = rows, softcap, dtype, chunk
        return losses.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise SpecError(_ONCE)
        softmax, *inputs = ctx.saved_tensors
        features, weight, bias = inputs
        with torch.autocast(features.device.type, enabled=False):
            factor = grad_outputs[0][:, None].to(softmax.dtype)
            if ctx.rows.valid is not None:
                factor = torch.where(ctx.rows.valid, factor, 0.0)
            unit = None
            if ctx.dtype != softmax.dtype and len(factor):  # as in _prepare_rows
                unit = factor.abs().amax().clamp(min=torch.finfo(softmax.dtype).tiny)
                factor = factor / unit
            head = _Head(weight.to(ctx.dtype), bias, ctx.softcap)
            sums = _GradientSums(features, head.weight, list(ctx.needs_input_grad[6:]), ctx.chunk, weighted=True)
            buffers = head.buffers(min(ctx.chunk, len(features)))
            for start in range(0, len(features), ctx.chunk):
                part = slice(start, start + ctx.chunk)
                h = ctx.rows.features(features, part, ctx.dtype)
                logits, slope = head.logits(h, buffers)
                top, rest, total = softmax[:, part]
                sums.add(_exponentials(logits, top), rest, total, slope, factor[part], ctx.rows.targets[part], h, start)
        known = (sums.features, sums.matrix, sums.bias)
        gradients = [g if g is None or unit is None else g * unit for g in known]
        cast = [None if g is None else g.to(x.dtype) for g, x in zip(gradients, inputs, strict=True)]
        return None, None, None, None, None, None, *cast


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
    """Rows of a chunk; chunks are of equal size. The numbers are measured: docs/log.md, 2026-11-29, rows of a chunk.

    On a CPU the products need 512 rows for full speed, and the logits of few classes stay in cache with more. Those of
    more than 16 384 classes fit no cache, and take as much memory as the weight.
    """
    (M, D), C = features.shape, len(weight)
    if features.device.type == "cpu":
        good = max(256, D) if C > 2**14 else max(512, 2**18 // C)
        good = min(good, 4096)
    else:
        good = max(1024, 2**26 // C)
    return math.ceil(M / max(1, round(M / good))) or 1


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
