"""Naive versions of what the figures beyond the paper compute: whole matrices, step by step, in float64."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np


def bigram_losses(pi, q, optimizer, lr, steps):
    """Losses f(W_0), ..., f(W_T) of the linear bigram model with frequencies pi [d] and conditionals q [d, d]."""
    W = np.zeros_like(q)
    losses = []
    for _ in range(steps + 1):
        losses.append(0.5 * sum(pi[i] * (W[i, j] - q[i, j]) ** 2 for i in range(len(q)) for j in range(q.shape[1])))
        gradient = pi[:, None] * (W - q)
        W = W - lr * (np.sign(gradient) if optimizer == "sign" else gradient)
    return np.array(losses)


def conditionals(first: Sequence[int], second: Sequence[int], size: int):
    """Frequencies and conditional frequencies of a text, of its `size` most frequent tokens (ties: smaller number)."""
    often = Counter(first)
    kept = sorted({*first, *second}, key=lambda token: (-often[token], token))[:size]
    pairs = Counter((x, y) for x, y in zip(first, second, strict=True) if x in kept and y in kept)
    rows = [x for x in kept if any((x, y) in pairs for y in kept)]
    totals = [sum(pairs[x, y] for y in kept) for x in rows]
    q = [[pairs[x, y] / total for y in kept] for x, total in zip(rows, totals, strict=True)]
    return np.array(totals) / sum(totals), np.array(q)


def memory_recall(frequency, optimizer, lr, steps, inputs, outputs):
    """Recall of each item [T+1, K] for W [K, K] trained on every item's cross-entropy, embeddings as columns."""
    K = len(frequency)
    W = np.zeros((K, K))
    recalls = []
    for _ in range(steps + 1):
        recall = []
        gradient = np.zeros((K, K))
        for k in range(K):
            logits = [outputs[:, j] @ W @ inputs[:, k] for j in range(K)]
            weight = [math.exp(z - max(logits)) for z in logits]
            p = [w / sum(weight) for w in weight]
            recall.append(p[k])
            for j in range(K):
                gradient += frequency[k] * (p[j] - (j == k)) * np.outer(outputs[:, j], inputs[:, k])
        recalls.append(recall)
        if optimizer == "sign":
            gradient = np.sign(gradient)
        elif optimizer == "muon":  # G (G^T G)^(-1/2) where G^T G is not singular
            value, vector = np.linalg.eigh(gradient.T @ gradient)
            kept = value > 1e-12 * value.max()
            gradient = gradient @ (vector[:, kept] / np.sqrt(value[kept])) @ vector[:, kept].T
        W = W - lr * gradient
    return np.array(recalls)


def unigram_excess(pi, optimizer, lr, steps):
    """KL(pi || softmax(w_t)) for t = 0, ..., T, one number at a time."""
    w = [0.0] * len(pi)
    excess = []
    for _ in range(steps + 1):
        total = sum(math.exp(z) for z in w)
        p = [math.exp(z) / total for z in w]
        excess.append(sum(a * math.log(a / b) for a, b in zip(pi, p, strict=True)))
        gradient = [b - a for a, b in zip(pi, p, strict=True)]
        length = math.sqrt(sum(g * g for g in gradient))
        for k, g in enumerate(gradient):
            w[k] -= lr * ((g > 0) - (g < 0) if optimizer == "sign" else g / length)
    return excess


def head_hessian(h, weight, bias):
    """Hessian of the mean cross-entropy in the rows of W, [C, D, C, D], sample by sample."""
    C, D = weight.shape
    H = np.zeros((C, D, C, D))
    for x in h:
        z = weight @ x + bias
        p = np.exp(z - z.max())
        p /= p.sum()
        H += np.einsum("kj,a,b->kajb", np.diag(p) - np.outer(p, p), x, x)
    return H / len(h)
