"""Gradient norm and Hessian trace of every row of a softmax head, in one pass (section 3, figures 7 and 23 to 27).

With features h_i, probabilities p_i and targets y_i of n samples, row k of the head has

    grad_k = (1/n) sum_i (p_ik - 1[y_i = k]) h_i,        Tr H_kk = (1/n) sum_i p_ik (1 - p_ik) ||h_i||^2,

and with its bias, whose input is 1, one more entry of the gradient and ||h_i||^2 + 1 for ||h_i||^2. Both come out of
the kernel that trains the head, chunk by chunk: what is kept is one gradient [C, D] and sums over classes, whatever n.

Shapes: C classes, D features, M rows of one pair.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from heavytail.errors import DataError
from heavytail.head import linear_cross_entropy

Pairs = Iterable[tuple[Tensor, Tensor]]
"""Head inputs [M, D] and targets [M], piece by piece."""


@dataclass(frozen=True)
class HeadBlocks:
    """What one pass says about each class; all [C], float64, on the device of the head.

    Attributes:
        count: samples of the class.
        grad_norm: norm of the gradient of the mean loss in the class's row.
        trace: trace of the Hessian of the mean loss in that row.
        p_correct: mean probability of the class over its own samples, NaN without any.
        p_spread: standard deviation of the same.
        p_mean: mean probability of the class over all samples.
    """

    count: Tensor
    grad_norm: Tensor
    trace: Tensor
    p_correct: Tensor
    p_spread: Tensor
    p_mean: Tensor

    @property
    def p_stray(self) -> Tensor:
        """Probability that the samples of other classes give the class, over all samples; eq. 2 assumes 0."""
        own = torch.where(self.count > 0, self.count * self.p_correct, 0.0) / self.count.sum()
        return (self.p_mean - own).clamp(min=0.0)


def head_blocks(pairs: Pairs, weight: Tensor, bias: Tensor | None = None, *, include_bias: bool = False) -> HeadBlocks:
    """Measure gradient norm, Hessian trace and probabilities of every class.

    Args:
        pairs: (features [M, D], targets [M] int64), once each. Give a type and the pass runs in it.
        weight: W [C, D], not changed.
        bias: b [C], or None.
        include_bias: whether a class's block is (W_k, b_k) rather than W_k.

    Raises:
        DataError: there are no pairs.

    >>> inputs, targets = torch.eye(2), torch.tensor([0, 1])
    >>> blocks = head_blocks([(inputs, targets)], torch.zeros(2, 2))
    >>> blocks.trace.tolist()  # eq. 1: (1/c) (1 - 1/c) times the mean of ||x||^2
    [0.25, 0.25]
    """
    num_classes = len(weight)
    # b gets a gradient even where the head has none: plus pi_k it is the mean probability of class k.
    shift = weight.new_zeros(num_classes) if bias is None else bias.detach().clone()
    W, b = weight.detach().requires_grad_(), shift.requires_grad_()
    sums = torch.zeros(4, num_classes, dtype=torch.float64, device=weight.device)
    count, p_sum, p_square, trace = sums
    for features, targets in pairs:
        with torch.enable_grad():
            out = linear_cross_entropy(features.detach(), W, b, targets, normalizer=1.0, curvature=True)
            out.loss.backward()  # type: ignore[no-untyped-call]
        p = out.p_correct.double()
        count.index_add_(0, targets, torch.ones_like(p))
        p_sum.index_add_(0, targets, p)
        p_square.index_add_(0, targets, p.square())
        assert out.curvature is not None
        assert out.curvature.bias is not None
        trace += out.curvature.weight
        if include_bias:
            trace += out.curvature.bias
    if W.grad is None or b.grad is None:
        raise DataError("pairs: expected features and targets, got none")
    n = count.sum()
    shift_grad = b.grad.double()
    grad_norm = torch.linalg.vector_norm(W.grad, dim=1).double()
    if include_bias:
        grad_norm = torch.hypot(grad_norm, shift_grad)
    p_correct = p_sum / count
    variance = (p_square / count - p_correct.square()).clamp(min=0.0)
    return HeadBlocks(
        count=count,
        grad_norm=grad_norm / n,
        trace=trace.clamp(min=0.0) / n,
        p_correct=p_correct,
        p_spread=variance.sqrt(),
        p_mean=((shift_grad + count) / n).clamp(min=0.0),
    )
