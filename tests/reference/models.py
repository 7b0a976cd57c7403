"""Naive forward passes in NumPy float64, from a model's weights by name: loops over positions, heads and pixels.

Shapes: B batch, L sequence, D features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = Mapping[str, Array]


def layer_norm(x: Array, scale: Array, shift: Array) -> Array:
    """LayerNorm of one vector [D], with PyTorch's 1e-5 under the root."""
    centred = x - sum(x) / len(x)
    return centred / math.sqrt(sum(centred**2) / len(x) + 1e-5) * scale + shift


def position(t: int, width: int) -> Array:
    """Sinusoidal position t, [D]."""
    out = np.empty(width)
    for i in range(width // 2):
        angle = t / 10_000 ** (2 * i / width)
        out[2 * i], out[2 * i + 1] = math.sin(angle), math.cos(angle)
    return out


def activate(name: str, u: float) -> float:
    """ReLU, or GPT-2's tanh form of GELU."""
    if name == "relu":
        return max(u, 0.0)
    return 0.5 * u * (1 + math.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))


def attention(w: Weights, prefix: str, x: Array, heads: int) -> Array:
    """Causal attention over one sequence [L, D], head by head and position by position."""
    length, width = x.shape
    size = width // heads
    projected = x @ w[prefix + "inner.weight"].T + w[prefix + "inner.bias"]
    q, k, v = projected[:, :width], projected[:, width : 2 * width], projected[:, 2 * width :]
    mixed = np.zeros((length, width))
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        for i in range(length):
            scores = [float(q[i, part] @ k[j, part]) / math.sqrt(size) for j in range(i + 1)]
            weights = [math.exp(s - max(scores)) for s in scores]
            for j in range(i + 1):
                mixed[i, part] += weights[j] / sum(weights) * v[j, part]
    return mixed @ w[prefix + "outer.weight"].T + w[prefix + "outer.bias"]


def mlp(w: Weights, prefix: str, x: Array, activation: str) -> Array:
    """Two-layer MLP at every position of one sequence [L, D]."""
    hidden = x @ w[prefix + "inner.weight"].T + w[prefix + "inner.bias"]
    hidden = np.array([[activate(activation, float(u)) for u in row] for row in hidden])
    return hidden @ w[prefix + "outer.weight"].T + w[prefix + "outer.bias"]


def transformer(
    w: Weights,
    tokens: NDArray[np.int64],
    *,
    depth: int,
    heads: int,
    has_mlp: bool,
    norm: str,
    activation: str,
) -> Array:
    """Features [B*L, D] of tokens [B, L]."""
    width = w["embedding.weight"].shape[1]

    def normed(name: str, x: Array) -> Array:
        return np.array([layer_norm(row, w[name + "weight"], w[name + "bias"]) for row in x])

    features = []
    for sequence in tokens:
        x = np.array([math.sqrt(width) * w["embedding.weight"][c] + position(t, width) for t, c in enumerate(sequence)])
        index = 0
        for _ in range(depth):
            for kind in ("attention", "mlp") if has_mlp else ("attention",):
                prefix = f"body.{index}."
                seen = normed(prefix + "norm.", x) if norm == "pre" else x
                if kind == "attention":
                    x = x + attention(w, prefix + "branch.", seen, heads)
                else:
                    x = x + mlp(w, prefix + "branch.", seen, activation)
                if norm == "post":
                    x = normed(prefix + "norm.", x)
                index += 1
        features.append(normed(f"body.{index}.", x) if norm == "pre" else x)
    return np.concatenate(features)


def cnn(w: Weights, image: Array, num_stages: int) -> Array:
    """Features [D] of one image [channels, height, width]: 5x5 convolution, ReLU, 2x2 maximum, pixel by pixel."""
    x = image
    for s in range(num_stages):
        weight, bias = w[f"stages.{s}.0.weight"], w[f"stages.{s}.0.bias"]
        _, height, width = x.shape
        padded = np.pad(x, ((0, 0), (2, 2), (2, 2)))
        y = np.empty((len(weight), height, width))
        for o in range(len(weight)):
            for i in range(height):
                for j in range(width):
                    y[o, i, j] = max(0.0, (padded[:, i : i + 5, j : j + 5] * weight[o]).sum() + bias[o])
        x = np.empty((len(weight), height // 2, width // 2))
        for i in range(height // 2):
            for j in range(width // 2):
                x[:, i, j] = y[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max(axis=(1, 2))
    return x.reshape(-1)
