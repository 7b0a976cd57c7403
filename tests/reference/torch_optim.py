"""Naive updates of the optimizers that PyTorch has, from their papers, on lists of parameters in float64.

Each is a generator-like class: `step(t, x, g)` returns the new parameter, for one array and t = 1, 2, ...
"""

from __future__ import annotations

import math

import numpy as np


class Moments:
    """Adam's averages m and v."""

    def __init__(self, lr, beta1=0.9, beta2=0.999, eps=1e-8):
        self.lr, self.beta1, self.beta2, self.eps = lr, beta1, beta2, eps
        self.m = self.v = 0.0

    def average(self, g):
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        self.v = self.beta2 * self.v + (1 - self.beta2) * g**2


class AdamW(Moments):
    """Loshchilov and Hutter (2019), algorithm 2, without a schedule."""

    weight_decay = 0.01

    def step(self, t, x, g):
        self.average(g)
        x = x - self.lr * self.weight_decay * x
        scale = np.sqrt(self.v / (1 - self.beta2**t)) + self.eps
        return x - self.lr * self.m / (1 - self.beta1**t) / scale


class NAdam(Moments):
    """Dozat (2016), with its warm-up of the momentum; PyTorch keeps the product of the momenta in float32."""

    product = np.float32(1.0)

    def step(self, t, x, g):
        self.average(g)
        now, after = (self.beta1 * (1 - 0.5 * 0.96 ** (s * 0.004)) for s in (t, t + 1))
        self.product = np.float32(self.product * np.float32(now))
        product = float(self.product)
        m = after * self.m / (1 - product * after) + (1 - now) * g / (1 - product)
        return x - self.lr * m / (np.sqrt(self.v / (1 - self.beta2**t)) + self.eps)


class RAdam(Moments):
    """Liu et al. (2020), algorithm 2, with the threshold 5."""

    def step(self, t, x, g):
        self.average(g)
        m = self.m / (1 - self.beta1**t)
        longest = 2 / (1 - self.beta2) - 1
        length = longest - 2 * t * self.beta2**t / (1 - self.beta2**t)
        if length <= 5:
            return x - self.lr * m
        r = math.sqrt((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length))
        return x - self.lr * r * m * math.sqrt(1 - self.beta2**t) / (np.sqrt(self.v) + self.eps)


class Adagrad:
    """Duchi et al. (2011), diagonal."""

    def __init__(self, lr, eps=1e-10):
        self.lr, self.eps, self.total = lr, eps, 0.0

    def step(self, t, x, g):
        self.total = self.total + g**2
        return x - self.lr * g / (np.sqrt(self.total) + self.eps)


class RMSprop:
    """Tieleman and Hinton (2012), with heavy-ball momentum."""

    def __init__(self, lr, alpha=0.99, momentum=0.0, eps=1e-8):
        self.lr, self.alpha, self.momentum, self.eps = lr, alpha, momentum, eps
        self.v = self.buffer = 0.0

    def step(self, t, x, g):
        self.v = self.alpha * self.v + (1 - self.alpha) * g**2
        self.buffer = self.momentum * self.buffer + g / (np.sqrt(self.v) + self.eps)
        return x - self.lr * self.buffer


class Adafactor:
    """Shazeer and Stern (2018), algorithms 4 (matrices) and 5 (vectors), without momentum."""

    def __init__(self, lr, eps=1e-3, clip=1.0):
        self.lr, self.eps, self.clip = lr, eps, clip
        self.rows = self.columns = self.v = 0.0

    def step(self, t, x, g):
        decay = 1 - t**-0.8
        if g.ndim == 2:
            self.rows = decay * self.rows + (1 - decay) * (g**2).mean(axis=1)
            self.columns = decay * self.columns + (1 - decay) * (g**2).mean(axis=0)
            v = np.outer(self.rows, self.columns) / self.rows.mean()
        else:
            self.v = decay * self.v + (1 - decay) * g**2
            v = self.v
        update = g / np.sqrt(v)
        update = update / max(1.0, math.sqrt((update**2).mean()) / self.clip)
        relative = min(self.lr, 1 / math.sqrt(t)) * max(self.eps, math.sqrt((x**2).mean()))
        return x - relative * update
