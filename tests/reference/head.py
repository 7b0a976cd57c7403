"""The softmax head by its formulas, one row and one class at a time, in float64.

M rows, C classes, D features.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Head(NamedTuple):
    loss: float
    losses: Array  # [M]
    correct: list[bool]
    p_correct: Array  # [M]
    grad_features: Array  # [M, D]
    grad_weight: Array  # [C, D]
    grad_bias: Array  # [C]
    trace_weight: Array  # [C]
    trace_bias: Array  # [C]


def softmax_head(
    features: Array,
    weight: Array,
    bias: Array,
    targets: list[int],
    class_weights: Array | None = None,
    normalizer: float | None = None,
    ignore_index: int | None = None,
) -> Head:
    """Everything the head yields, by loops over rows and classes."""
    (M, D), C = features.shape, len(weight)
    w = np.ones(C) if class_weights is None else class_weights
    if normalizer is None:
        normalizer = math.fsum(w[y] for y in targets if y != ignore_index)
    losses, p_correct, correct = np.zeros(M), np.zeros(M), [False] * M
    grad_features, grad_weight, grad_bias = np.zeros((M, D)), np.zeros((C, D)), np.zeros(C)
    trace_weight, trace_bias = np.zeros(C), np.zeros(C)
    loss = 0.0
    for i, y in enumerate(targets):
        if y == ignore_index:
            continue
        h = features[i]
        logits = [math.fsum(weight[k] * h) + bias[k] for k in range(C)]
        top = max(logits)
        log_sum = top + math.log(math.fsum(math.exp(z - top) for z in logits))
        p = [math.exp(z - log_sum) for z in logits]
        losses[i], p_correct[i], correct[i] = log_sum - logits[y], p[y], logits.index(top) == y
        factor = w[y] / normalizer
        loss += factor * losses[i]
        for k in range(C):
            residual = p[k] - (k == y)
            grad_features[i] += factor * residual * weight[k]
            grad_weight[k] += factor * residual * h
            grad_bias[k] += factor * residual
            trace_weight[k] += p[k] * (1 - p[k]) * math.fsum(h * h)
            trace_bias[k] += p[k] * (1 - p[k])
    return Head(loss, losses, correct, p_correct, grad_features, grad_weight, grad_bias, trace_weight, trace_bias)
