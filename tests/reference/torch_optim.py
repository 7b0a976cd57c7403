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


class Lion:
    """Chen et al. (2023), program 1."""

    def __init__(self, lr, beta1=0.9, beta2=0.99):
        self.lr, self.beta1, self.beta2, self.m = lr, beta1, beta2, 0.0

    def step(self, t, x, g):
        update = np.sign(self.beta1 * self.m + (1 - self.beta1) * g)
        self.m = self.beta2 * self.m + (1 - self.beta2) * g
        return x - self.lr * update


class Signum:
    """Bernstein et al. (2018), algorithm 1."""

    def __init__(self, lr, momentum=0.9):
        self.lr, self.momentum, self.m = lr, momentum, 0.0

    def step(self, t, x, g):
        self.m = self.momentum * self.m + (1 - self.momentum) * g
        return x - self.lr * np.sign(self.m)


class Shampoo:
    """Gupta et al. (2018), algorithm 2 (1 for a matrix), with the diagonal of a long axis's sums."""

    def __init__(self, lr, eps=1e-6, largest=768):
        self.lr, self.eps, self.largest, self.sums = lr, eps, largest, None

    def step(self, t, x, g):
        letters = "abcd"[: g.ndim]
        if self.sums is None:
            self.sums = [self.eps * np.eye(n) for n in g.shape]
        update = g
        for i, letter in enumerate(letters):
            other = letters.replace(letter, "z")
            self.sums[i] = self.sums[i] + np.einsum(f"{letters},{other}->{letter}z", g, g)
            total = self.sums[i] if g.shape[i] <= self.largest else np.diag(np.diag(self.sums[i]))
            values, vectors = np.linalg.eigh(total)
            root = vectors @ np.diag(values ** (-1 / (2 * g.ndim))) @ vectors.T
            update = np.einsum(f"z{letter},{letters}->{other}", root, update)
        return x - self.lr * update


class Soap:
    """Vyas et al. (2024), algorithm 3, with bias correction; the first gradient only starts the preconditioner.

    With `every`, the basis is updated by one step of orthogonal iteration, sorted by estimated eigenvalues.
    """

    def __init__(self, lr, beta1=0.95, beta2=0.95, eps=1e-8, every=10):
        self.lr, self.beta1, self.beta2, self.eps, self.every = lr, beta1, beta2, eps, every
        self.m = self.v = None

    def sides(self, g):
        return [g @ g.T, g.T @ g] if g.ndim == 2 else []

    def project(self, g, back=False):
        if g.ndim < 2:
            return g
        left, right = self.basis
        return left @ g @ right.T if back else left.T @ g @ right

    def step(self, t, x, g):
        if t == 1:
            self.sums = [(1 - self.beta2) * side for side in self.sides(g)]
            self.basis = [np.linalg.eigh(total)[1][:, ::-1] for total in self.sums]
            self.m, self.v = np.zeros_like(g), np.zeros_like(g)
            return x
        s = t - 1
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        self.v = self.beta2 * self.v + (1 - self.beta2) * self.project(g) ** 2
        scale = self.lr * math.sqrt(1 - self.beta2**s) / (1 - self.beta1**s)
        x = x - scale * self.project(self.project(self.m) / (np.sqrt(self.v) + self.eps), back=True)
        self.sums = [self.beta2 * a + (1 - self.beta2) * b for a, b in zip(self.sums, self.sides(g), strict=True)]
        if s % self.every == 0:
            for axis, (total, basis) in enumerate(zip(self.sums, self.basis, strict=True)):
                order = np.argsort(-np.diag(basis.T @ total @ basis), kind="stable")
                self.v = np.take(self.v, order, axis)
                self.basis[axis] = np.linalg.qr(total @ basis[:, order])[0]
        return x


class ScheduleFree:
    """Defazio et al. (2024), algorithm 1, without warm-up; returns y, where gradients are; `average` is x."""

    def __init__(self, lr, beta1=0.9, beta2=0.999, eps=1e-8):
        self.lr, self.beta1, self.beta2, self.eps = lr, beta1, beta2, eps
        self.z, self.v = None, 0.0

    def step(self, t, y, g):
        if self.z is None:
            self.z = self.average = y
        self.v = self.beta2 * self.v + (1 - self.beta2) * g**2
        self.z = self.z - self.lr * g / (np.sqrt(self.v / (1 - self.beta2**t)) + self.eps)
        self.average = (1 - 1 / t) * self.average + self.z / t
        return (1 - self.beta1) * self.z + self.beta1 * self.average


class RowClipped:
    """Heavy ball whose gradient rows have at most norm `bound`."""

    def __init__(self, lr, bound=1.0, momentum=0.9):
        self.lr, self.bound, self.momentum, self.m = lr, bound, momentum, 0.0

    def step(self, t, x, g):
        rows = [row * min(1.0, self.bound / np.sqrt(np.sum(row**2))) for row in g]
        self.m = self.momentum * self.m + np.array(rows)
        return x - self.lr * self.m


class Scale:
    """Glentis et al. (2025), algorithm 1, for the last layer: rows of the average over their RMS; Adam for vectors."""

    def __init__(self, lr, momentum=0.9):
        self.lr, self.momentum, self.m, self.adam = lr, momentum, 0.0, AdamW(lr)
        self.adam.weight_decay = 0.0

    def step(self, t, x, g):
        if g.ndim == 1:
            return self.adam.step(t, x, g)
        self.m = self.momentum * self.m + (1 - self.momentum) * g
        return x - self.lr * np.array([row / np.sqrt(np.mean(row**2)) for row in self.m])


class Muon:
    """Jordan et al. (2024): one orthogonalised step by 5 Newton-Schulz iterations, in float64; Adam for vectors."""

    def __init__(self, lr, momentum=0.95):
        self.lr, self.momentum, self.m, self.adam = lr, momentum, 0.0, AdamW(lr)
        self.adam.weight_decay = 0.0

    def step(self, t, x, g):
        if g.ndim == 1:
            return self.adam.step(t, x, g)
        self.m = self.momentum * self.m + (1 - self.momentum) * g
        update = self.momentum * self.m + (1 - self.momentum) * g
        wide = update.T if len(g) > len(g[0]) else update
        wide = wide / np.linalg.norm(wide)
        for _ in range(5):
            gram = wide @ wide.T
            wide = 3.4445 * wide + (-4.775 * gram + 2.0315 * gram @ gram) @ wide
        update = wide.T if len(g) > len(g[0]) else wide
        return x - self.lr * 0.2 * math.sqrt(max(g.shape)) * update
