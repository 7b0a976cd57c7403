"""Naive optimizers: one number at a time, in Python's float64, straight from the update equations.

A problem is softmax regression with inputs X [N, D] and classes y [N]; its parameters W [C, D] and b [C] are one flat
list of numbers, so that a norm over "all parameters" needs no thought.
"""

from __future__ import annotations

import math
from collections.abc import Callable


def softmax_gradient(x: list[float], X: list[list[float]], y: list[int], num_classes: int) -> list[float]:
    """Gradient of the mean cross-entropy at x = [W row by row, b]: (p - 1[y = k]) times the input, averaged."""
    d = len(X[0])
    grad = [0.0] * len(x)
    for row, target in zip(X, y, strict=True):
        logits = [sum(x[k * d + j] * row[j] for j in range(d)) + x[num_classes * d + k] for k in range(num_classes)]
        top = max(logits)
        weights = [math.exp(z - top) for z in logits]
        for k in range(num_classes):
            error = (weights[k] / sum(weights) - (k == target)) / len(X)
            for j in range(d):
                grad[k * d + j] += error * row[j]
            grad[num_classes * d + k] += error
    return grad


def direction(name: str, g: list[float]) -> list[float]:
    """d_t of gd, normalized-gd or sign."""
    if name == "gd":
        return g
    if name == "normalized-gd":
        norm = math.sqrt(sum(v * v for v in g))
        return [v / norm if norm > 0 else 0.0 for v in g]
    assert name == "sign"
    return [float((v > 0) - (v < 0)) for v in g]


def heavy_ball(
    name: str,
    beta: float,
    lr: float,
    x: list[float],
    gradient: Callable[[list[float]], list[float]],
    steps: int,
) -> list[list[float]]:
    """x_1, ..., x_T of m_t = beta m_{t-1} + d_t, x_{t+1} = x_t - lr m_t."""
    x, m, path = list(x), [0.0] * len(x), []
    for _ in range(steps):
        d = direction(name, gradient(x))
        for i in range(len(x)):
            m[i] = beta * m[i] + d[i]
            x[i] = x[i] - lr * m[i]
        path.append(list(x))
    return path


def adam(
    beta1: float,
    beta2: float,
    eps: float,
    lr: float,
    x: list[float],
    gradient: Callable[[list[float]], list[float]],
    steps: int,
) -> list[list[float]]:
    """x_1, ..., x_T of Adam as Kingma and Ba (2015) print it, algorithm 1."""
    x, m, v, path = list(x), [0.0] * len(x), [0.0] * len(x), []
    for t in range(1, steps + 1):
        g = gradient(x)
        for i in range(len(x)):
            m[i] = beta1 * m[i] + (1 - beta1) * g[i]
            v[i] = beta2 * v[i] + (1 - beta2) * g[i] ** 2
            first, second = m[i] / (1 - beta1**t), v[i] / (1 - beta2**t)
            x[i] -= lr * first / (math.sqrt(second) + eps)
        path.append(list(x))
    return path
