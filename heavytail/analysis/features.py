"""The inputs of the head, class by class: what proposition 2 predicts gradient and Hessian blocks from.

Shapes: C classes, D features, M rows of one pair.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from heavytail.analysis.blocks import Pairs
from heavytail.errors import DataError


@dataclass(frozen=True)
class ClassFeatures:
    """Moments of the head's inputs, in float64.

    Attributes:
        count: samples of each class [C].
        mean: mean input xbar^k of each class [C, D], NaN for classes without samples.
        sq_norm: mean of ||x||^2 over each class [C], NaN for classes without samples.
        radius: largest ||x||.
    """

    count: Tensor
    mean: Tensor
    sq_norm: Tensor
    radius: float

    @property
    def mean_sq_norm(self) -> float:
        """Mean of ||x||^2 over all samples: the trace of their second moment Hbar."""
        seen = self.count > 0
        return float((self.count * self.sq_norm)[seen].sum() / self.count.sum())


def class_features(pairs: Pairs, num_classes: int) -> ClassFeatures:
    """Measure the moments of (features [M, D], targets [M]) in one pass; DataError if there are no pairs.

    >>> moments = class_features([(torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0, 1]))], 2)
    >>> moments.mean.tolist(), moments.sq_norm.tolist(), moments.radius
    ([[2.0, 0.0], [0.0, 2.0]], [5.0, 4.0], 3.0)
    """
    total: Tensor | None = None
    radius = 0.0
    for features, targets in pairs:
        x = features.detach().double()
        if total is None:
            total = x.new_zeros(num_classes, x.shape[1])
            count, square = x.new_zeros(num_classes), x.new_zeros(num_classes)
        norms = x.square().sum(1)
        total.index_add_(0, targets, x)
        square.index_add_(0, targets, norms)
        count.index_add_(0, targets, torch.ones_like(norms))
        radius = max(radius, float(norms.max().sqrt()))
    if total is None:
        raise DataError("pairs: expected features and targets, got none")
    return ClassFeatures(count, total / count[:, None], square / count, radius)
