"""PyTorch's call of the fused head: `torch.nn.functional.linear_cross_entropy` with the same arguments, chunk by chunk.

Shapes: M rows, C classes, D features.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from heavytail import head
from heavytail.errors import SpecError

__all__ = ["linear_cross_entropy"]


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: Literal["mean", "sum", "none"] = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    softcap: float | None = None,
) -> Tensor:
    """Return F.cross_entropy(F.linear(input, linear_weight, linear_bias), target, ...) without the logits in memory.

    Arguments, defaults and values are those of `torch.nn.functional.linear_cross_entropy` (PyTorch 2.13), without its
    `options`, which choose the chunks, and with `softcap`. The result is float32 for half-precision inputs.
    `heavytail.linear_cross_entropy` also returns accuracy, probabilities and curvature.

    Args:
        input: features [M, D], or [D] for one row.
        linear_weight: W [C, D].
        target: class of each row [M] int64, or [] for one row.
        linear_bias: b [C].
        weight: weight of each class [C].
        reduction: "mean" (over the summed class weights), "sum", or "none" for the losses of the rows, of which any
            function can be differentiated; that takes one matrix product more.
        ignore_index: value in `target` of rows to leave out; None stands for -100, as in PyTorch.
        label_smoothing: share of each target that is spread evenly over all classes.
        softcap: s, for logits s tanh((W h + b) / s), as in Gemma 2; not with label smoothing.

    Raises:
        SpecError: as `heavytail.linear_cross_entropy`, or for an unknown reduction or a share outside of 0 to 1.

    >>> linear_cross_entropy(torch.ones(2, 3), torch.zeros(4, 3), torch.tensor([0, 3]), reduction="none")
    tensor([1.3863, 1.3863])
    """
    if reduction not in ("mean", "sum", "none"):
        raise SpecError(f"reduction: expected 'mean', 'sum' or 'none', got {reduction!r}")
    if not 0.0 <= label_smoothing <= 1.0 or (label_smoothing and softcap is not None):
        raise SpecError(f"label_smoothing: expected 0 to 1, and 0 with a softcap, got {label_smoothing}")
    single = input.ndim == 1 and target.ndim == 0
    if single:
        input, target = input[None], target[None]
    ignored = -100 if ignore_index is None else ignore_index
    by_row = reduction == "none" or label_smoothing > 0.0
    out = head.linear_cross_entropy(
        input,
        linear_weight,
        linear_bias,
        target,
        class_weights=weight,
        normalizer=1.0 if reduction == "sum" else None,
        ignore_index=ignored,
        softcap=softcap,
        differentiable_losses=by_row,
    )
    if not by_row:
        return out.loss
    valid = target != ignored
    y = torch.where(valid, target, 0)
    # Half precision holds neither the sum of many rows' weights nor the sum of many classes' logits.
    dtype = out.losses.dtype
    weight = None if weight is None else weight.to(dtype)
    counts = valid.to(dtype) if weight is None else torch.where(valid, weight[y], 0.0)
    losses = counts * out.losses
    if label_smoothing:
        bias = None if linear_bias is None else linear_bias.to(dtype)
        with torch.autocast(input.device.type, enabled=False):
            spread = _spread(input.to(dtype), linear_weight.to(dtype), bias, y, valid, out.losses, weight)
        spread = torch.where(valid, spread, 0.0)
        losses = (1.0 - label_smoothing) * losses + label_smoothing * spread
    if reduction == "none":
        return losses[0] if single else losses
    return losses.sum() / (1.0 if reduction == "sum" else counts.sum())


def _spread(
    h: Tensor, W: Tensor, b: Tensor | None, y: Tensor, valid: Tensor, losses: Tensor, weight: Tensor | None
) -> Tensor:
    """The loss of each row against all classes evenly, sum_k w_k (log Z - z_k) / C [M]; log Z is losses + z[y].

    All are of the type of the losses, float32 or float64.
    """
    h = torch.where(valid[:, None], h, 0.0)  # padding may hold any value
    w = W.new_ones(len(W)) if weight is None else weight
    own, mean = (h * W[y]).sum(1), h @ (w @ W / len(W))
    if b is not None:
        own, mean = own + b[y], mean + w @ b / len(W)
    return w.mean() * (losses + own) - mean
