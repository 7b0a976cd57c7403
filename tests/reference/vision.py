"""Convolutions, normalisation, attention and crops as loops and sums in float64, and the two networks made of them.

The networks take the parameters of the module under test by name, and nothing else from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Params = Mapping[str, Array]


def conv(x: Array, weight: Array, stride: int, pad: int, bias: Array | None = None) -> Array:
    """Return the cross-correlation of [B, I, H, W] with [O, I, K, K]."""
    kernel = weight.shape[2]
    padded = np.zeros((*x.shape[:2], x.shape[2] + 2 * pad, x.shape[3] + 2 * pad))
    padded[:, :, pad : pad + x.shape[2], pad : pad + x.shape[3]] = x
    rows = (padded.shape[2] - kernel) // stride + 1
    columns = (padded.shape[3] - kernel) // stride + 1
    out = np.zeros((len(x), len(weight), rows, columns))
    for i in range(rows):
        for j in range(columns):
            window = padded[:, :, i * stride : i * stride + kernel, j * stride : j * stride + kernel]
            out[:, :, i, j] = np.einsum("bikl,oikl->bo", window, weight)
    return out if bias is None else out + bias[:, None, None]


def max_pool(x: Array) -> Array:
    """Return the largest of every 3x3 window, stride 2, one pixel of padding."""
    rows, columns = (x.shape[2] - 1) // 2 + 1, (x.shape[3] - 1) // 2 + 1
    out = np.zeros((*x.shape[:2], rows, columns))
    for i in range(rows):
        for j in range(columns):
            window = x[:, :, max(0, 2 * i - 1) : 2 * i + 2, max(0, 2 * j - 1) : 2 * j + 2]
            out[:, :, i, j] = window.max((2, 3))
    return out


def normalise(x: Array, axes: tuple[int, ...], weight: Array, bias: Array, eps: float = 1e-5) -> Array:
    """Return x less its mean over the axes, by the root of its variance there, scaled and shifted."""
    mean = x.mean(axes, keepdims=True)
    variance = ((x - mean) ** 2).mean(axes, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * weight + bias


def resnet18_features(images: Array, params: Params, norm: str, small_stem: bool) -> Array:
    """Return the features of ResNet18 in training mode."""
    axes = (0, 2, 3) if norm == "batch" else (1, 2, 3)

    def layer(x: Array, name: str) -> Array:
        return normalise(x, axes, params[f"{name}.weight"][:, None, None], params[f"{name}.bias"][:, None, None])

    def relu(x: Array) -> Array:
        return np.maximum(x, 0)

    if small_stem:
        x = relu(layer(conv(images, params["stem.0.weight"], 1, 1), "stem.1"))
    else:
        x = max_pool(relu(layer(conv(images, params["stem.0.weight"], 2, 3), "stem.1")))
    for number in range(8):
        stride = 2 if number in (2, 4, 6) else 1
        at = f"blocks.{number}"
        inner = relu(layer(conv(x, params[f"{at}.conv1.weight"], stride, 1), f"{at}.norm1"))
        inner = layer(conv(inner, params[f"{at}.conv2.weight"], 1, 1), f"{at}.norm2")
        if stride == 2:
            x = layer(conv(x, params[f"{at}.shortcut.0.weight"], 2, 0), f"{at}.shortcut.1")
        x = relu(inner + x)
    return x.mean((2, 3))


def vit_features(images: Array, params: Params, patch: int, depth: int, heads: int) -> Array:
    """Return the features of SimpleViT, one image, patch and head at a time."""
    out = []
    for image in images:
        tokens = []
        rows, columns = image.shape[1] // patch, image.shape[2] // patch
        for i in range(rows):
            for j in range(columns):
                pixels = image[:, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]
                token = np.einsum("ikl,oikl->o", pixels, params["embed.weight"]) + params["embed.bias"]
                tokens.append(token + position(i, j, len(token)))
        x = np.stack(tokens)
        for number in range(depth):
            block = {k.removeprefix(f"blocks.{number}."): v for k, v in params.items() if f"blocks.{number}." in k}
            x = x + attention(_layer_norm(x, block, "norm1"), block, heads)
            hidden = _affine(_layer_norm(x, block, "norm2"), block, "mlp.0")
            gelu = np.vectorize(lambda v: v * 0.5 * (1 + math.erf(v / math.sqrt(2))))
            x = x + _affine(gelu(hidden), block, "mlp.2")
        out.append(_layer_norm(x, params, "norm").mean(0))
    return np.stack(out)


def position(row: int, column: int, width: int) -> Array:
    """Return the code of one patch's place."""
    quarter = width // 4
    frequencies = [10_000 ** (-k / (quarter - 1)) for k in range(quarter)]
    parts = [math.sin(column * f) for f in frequencies], [math.cos(column * f) for f in frequencies]
    parts += [math.sin(row * f) for f in frequencies], [math.cos(row * f) for f in frequencies]
    return np.concatenate(parts)


def attention(x: Array, block: Params, heads: int) -> Array:
    """Return softmax(q k' / sqrt(d)) v of every head, side by side, through the output layer; x is [L, D]."""
    query, key, value = np.split(_affine(x, block, "qkv"), 3, axis=1)
    size = x.shape[1] // heads
    mixed = []
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        scores = query[:, own] @ key[:, own].T / math.sqrt(size)
        weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        mixed.append(weights @ value[:, own])
    return _affine(np.concatenate(mixed, 1), block, "out")


def crop(image: Array, box: Sequence[float], flip: bool) -> Array:
    """Return a crop of [channels, H, W] scaled bilinearly to H x W, pixel by pixel; outside, the edge is repeated."""
    left, top, width, height = box
    out = np.zeros_like(image)
    _, rows, columns = image.shape
    for i in range(rows):
        for j in range(columns):
            across = columns - 1 - j if flip else j
            y = min(max(top + (i + 0.5) * height / rows - 0.5, 0), rows - 1)
            x = min(max(left + (across + 0.5) * width / columns - 0.5, 0), columns - 1)
            up, start = int(y), int(x)
            down, end = min(up + 1, rows - 1), min(start + 1, columns - 1)
            a, b = y - up, x - start
            above = (1 - b) * image[:, up, start] + b * image[:, up, end]
            below = (1 - b) * image[:, down, start] + b * image[:, down, end]
            out[:, i, j] = (1 - a) * above + a * below
    return out


def random_crop(draws: Sequence[float], width: int, height: int) -> tuple[tuple[int, int, int, int], bool] | None:
    """Return the box and the flip decided by 10 areas, 10 ratios, x, y and a coin; None if no attempt fits."""
    x, y, coin = draws[20:]
    for first, second in zip(draws[:10], draws[10:20], strict=True):
        area = width * height * (0.08 + 0.92 * first)
        ratio = (3 / 4) ** (1 - second) * (4 / 3) ** second
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return (math.floor(x * (width - w + 1)), math.floor(y * (height - h + 1)), w, h), coin < 0.5
    return None


def _affine(x: Array, params: Params, name: str) -> Array:
    return np.einsum("li,oi->lo", x, params[f"{name}.weight"]) + params[f"{name}.bias"]


def _layer_norm(x: Array, params: Params, name: str) -> Array:
    return normalise(x, (1,), params[f"{name}.weight"], params[f"{name}.bias"])
