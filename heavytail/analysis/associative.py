"""Linear associative memory: recall after one step of an optimizer, and after many (arXiv 2509.26030).

K items with orthonormal input embeddings e_k and output embeddings u_k, the columns of E and U [K, K], are stored in
one matrix W: item k is recalled with probability p_k = softmax(U^T W e_k)_k. Item k occurs with frequency f_k, and the
loss is sum_k f_k (-log p_k). In the coordinates of the items, Z = U^T W E [K, K] holds the logits of item k in its
column k, and the descent direction is

    G = U^T (-grad_W) E = (I - P) diag(f),        P = softmax of each column of Z; at W = 0, P = 1/K.

An update of W becomes one of Z: gradient descent adds lr G, and Muon lr polar(G), with polar(A B C^T) = A C^T over the
singular values that are not zero, as U and E are orthogonal. Sign descent takes signs of the entries of W, not of Z,
and adds lr U^T sign(U G E^T) E: only sign descent depends on the embeddings. In the class basis, U = E = I, sign(G) is
the same for every column and all items are learned at one rate; in a rotated one the signs are almost random.

Muon uses the exact polar factor, not the Newton-Schulz iteration, which leaves singular values within about 0.3 of 1.

Shapes: K items, G frequency groups, T steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heavytail.errors import SpecError, unknown

FloatArray = NDArray[np.float64]

OPTIMIZERS = ("gd", "sign", "muon")
NULL = 1e-9  # singular values below this share of the largest are zero: the columns of G sum to zero


@dataclass(frozen=True)
class Embeddings:
    """Orthogonal input embeddings E [K, K] and output embeddings U [K, K]."""

    inputs: FloatArray
    outputs: FloatArray

    @classmethod
    def random(cls, num_items: int, seed: int) -> Embeddings:
        """Return uniformly distributed random rotations."""
        rng = np.random.default_rng(seed)
        return cls(_rotation(num_items, rng), _rotation(num_items, rng))


def two_levels(num_items: int, head: float = 0.2, mass: float = 0.8) -> FloatArray:
    """Return the frequencies of the paper's analysis [K]: a fraction `head` of items has a fraction `mass` of data.

    >>> two_levels(5).round(2).tolist()
    [0.8, 0.05, 0.05, 0.05, 0.05]
    """
    if not (0 < head < 1 and 0 < mass < 1):
        raise SpecError(f"head, mass: expected shares in (0, 1), got {head!r} and {mass!r}")
    frequent = round(head * num_items)
    if not 1 <= frequent < num_items:
        raise SpecError(f"num_items: expected items in and outside a head of {head:g}, got {num_items}")
    return np.repeat([mass / frequent, (1 - mass) / (num_items - frequent)], [frequent, num_items - frequent])


def by_groups(num_groups: int) -> tuple[FloatArray, NDArray[np.int64]]:
    """Return frequencies [K] and groups [K] as in the synthetic data: group g has 2^g items of frequency ~ 2^-g.

    >>> by_groups(2)[0].tolist(), by_groups(2)[1].tolist()
    ([0.5, 0.25, 0.25], [0, 1, 1])
    """
    group = np.repeat(np.arange(num_groups), 2 ** np.arange(num_groups))
    return 2.0**-group / num_groups, group


def recall(logits: FloatArray) -> FloatArray:
    """Return the probability of the correct answer for each item [K], from logits Z [K, K] whose columns are items."""
    return np.diagonal(_softmax(logits)).copy()


def direction(
    optimizer: str, logits: FloatArray, frequency: FloatArray, embeddings: Embeddings | None = None
) -> FloatArray:
    """Return the change of the logits Z [K, K] for a step of size 1.

    Args:
        optimizer: "gd", "sign" or "muon".
        logits: Z, in the coordinates of the items.
        frequency: f [K].
        embeddings: embeddings of the items; the class basis by default. Only sign descent depends on them.

    Raises:
        SpecError: the optimizer is unknown.
    """
    descent: FloatArray = (np.eye(len(frequency)) - _softmax(logits)) * frequency
    match optimizer:
        case "gd":
            return descent
        case "sign":
            if embeddings is None:
                return np.sign(descent)
            entries = np.sign(embeddings.outputs @ descent @ embeddings.inputs.T)
            rotated: FloatArray = embeddings.outputs.T @ entries @ embeddings.inputs
            return rotated
        case "muon":
            return polar(descent)
        case _:
            raise unknown("optimizer", optimizer, OPTIMIZERS)


def polar(matrix: FloatArray) -> FloatArray:
    """Return A C^T of the singular value decomposition A diag(s) C^T, without the directions where s is zero."""
    left, size, right = np.linalg.svd(matrix)
    kept = size > NULL * size[0]
    product: FloatArray = left[:, kept] @ right[kept]
    return product


def first_step_size(
    optimizer: str, frequency: ArrayLike, best: float = 0.9, embeddings: Embeddings | None = None
) -> float:
    """Return the smallest step size at which one step from W = 0 recalls some item with probability `best`.

    Raises:
        SpecError: `best` is not between 1/K and 1.

    >>> round(first_step_size("sign", [0.6, 0.3, 0.1]), 6)  # logits lr and -lr: 2 lr = log(0.9 / 0.05)
    1.445186
    """
    from scipy.optimize import brentq

    f = np.asarray(frequency, np.float64)
    if not 1 / len(f) < best < 1:
        raise SpecError(f"best: expected a probability in (1/K, 1), got {best!r}")
    change = direction(optimizer, np.zeros((len(f), len(f))), f, embeddings)

    def missing(log_lr: float) -> float:
        return float(recall(np.exp(log_lr) * change).max()) - best

    low = -np.log(np.abs(change).max())  # no logit is above 1 there
    while missing(low) > 0:
        low -= 1.0
    high = low + 0.25
    while missing(high) < 0:
        high += 0.25
    return float(np.exp(brentq(missing, max(low, high - 0.25), high, xtol=1e-13)))


def one_step(
    optimizer: str, frequency: ArrayLike, best: float = 0.9, embeddings: Embeddings | None = None
) -> FloatArray:
    """Return the recall of every item [K] after one step from W = 0 of size `first_step_size`.

    >>> one_step("sign", [0.6, 0.3, 0.1]).round(6).tolist()
    [0.9, 0.9, 0.9]
    """
    f = np.asarray(frequency, np.float64)
    lr = first_step_size(optimizer, f, best, embeddings)
    return recall(lr * direction(optimizer, np.zeros((len(f), len(f))), f, embeddings))


def train(
    optimizer: str, frequency: ArrayLike, lr: float, steps: int, embeddings: Embeddings | None = None
) -> FloatArray:
    """Return the loss of each item in nats after every step from W = 0, [T+1, K], without momentum."""
    f = np.asarray(frequency, np.float64)
    logits = np.zeros((len(f), len(f)))
    losses = [_losses(logits)]
    for _ in range(steps):
        logits = logits + lr * direction(optimizer, logits, f, embeddings)
        losses.append(_losses(logits))
    return np.stack(losses)


def _losses(logits: FloatArray) -> FloatArray:
    top = logits.max(axis=0)
    losses: FloatArray = np.log(np.exp(logits - top).sum(axis=0)) + top - np.diagonal(logits)
    return losses


def _softmax(logits: FloatArray) -> FloatArray:
    weight = np.exp(logits - logits.max(axis=0))
    probabilities: FloatArray = weight / weight.sum(axis=0)
    return probabilities


def _rotation(n: int, rng: np.random.Generator) -> FloatArray:
    """Orthogonal matrix of the Haar distribution: Q of a QR decomposition with R's diagonal positive."""
    q, r = np.linalg.qr(rng.standard_normal((n, n)))
    rotation: FloatArray = q * np.sign(np.diagonal(r))
    return rotation
