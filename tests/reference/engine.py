"""Softmax regression trained by loops over samples and classes in float64: what the engine must reproduce.

N samples, C classes, D inputs, T steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass
class Trajectory:
    """Losses at W_0 .. W_T and the parameters W_T: loss [T+1], class_loss [T+1, C], W [C, D], b [C]."""

    loss: list[float]
    class_loss: list[list[float]]
    W: Array
    b: Array


def train(
    X: Array,
    y: Sequence[int],
    W: Array,
    b: Array,
    *,
    optimizer: str,
    lr: float,
    steps: int,
    weights: Sequence[float] | None = None,
    batches: Sequence[Sequence[int]] | None = None,
    momentum: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> Trajectory:
    """Train W [C, D], b [C] by "gd" (heavy ball) or "adam" on the loss sum_i w_{y_i} l_i / sum_i w_{y_i}.

    Args:
        X: inputs [N, D].
        y: classes [N].
        W, b: the initial point.
        optimizer: "gd" or "adam".
        lr: step size.
        steps: T.
        weights: of the classes [C]; None for 1.
        batches: the samples of each step; None for all in every step.
        momentum: of gd.
        betas, eps: of adam.
    """
    N, C = len(y), len(b)
    theta = np.concatenate([W.astype(np.float64), b.astype(np.float64)[:, None]], axis=1)  # [C, D+1]
    H = np.concatenate([X.astype(np.float64), np.ones((N, 1))], axis=1)
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    result = Trajectory([], [], W, b)
    for t in range(steps + 1):
        total, sums, counts = 0.0, [0.0] * C, [0] * C
        for i in range(N):
            loss = -math.log(_softmax(theta @ H[i])[y[i]])
            total += loss
            sums[y[i]] += loss
            counts[y[i]] += 1
        result.loss.append(total / N)
        result.class_loss.append([s / n if n else math.nan for s, n in zip(sums, counts, strict=True)])
        if t == steps:
            break
        gradient, norm = np.zeros_like(theta), 0.0
        for i in range(N) if batches is None else batches[t]:
            w = 1.0 if weights is None else weights[y[i]]
            p = _softmax(theta @ H[i])
            for k in range(C):
                gradient[k] += w * (p[k] - (1.0 if k == y[i] else 0.0)) * H[i]
            norm += w
        gradient /= norm
        if optimizer == "gd":
            m = momentum * m + gradient
            theta = theta - lr * m
        else:
            m = betas[0] * m + (1 - betas[0]) * gradient
            v = betas[1] * v + (1 - betas[1]) * gradient**2
            m_hat, v_hat = m / (1 - betas[0] ** (t + 1)), v / (1 - betas[1] ** (t + 1))
            theta = theta - lr * m_hat / (np.sqrt(v_hat) + eps)
    result.W, result.b = theta[:, :-1], theta[:, -1]
    return result


def _softmax(logits: Array) -> Array:
    shifted = np.exp(logits - logits.max())
    result: Array = shifted / shifted.sum()
    return result
