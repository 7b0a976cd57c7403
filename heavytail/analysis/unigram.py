"""The softmax unigram model: normalised gradient descent against sign descent (arXiv 2512.00763).

One logit for each of c tokens, without inputs:

    f(w) = -sum_k pi_k log p_k,   p = softmax(w),   f(w) - min f = KL(pi || p),   grad f = p - pi,   w_0 = 0.

Both methods are steepest descent with steps of a fixed length lr, in the norms l2 and l_infinity:

    normalised GD   w - lr g / ||g||_2        sign descent   w - lr sign(g).

With smoothness L and the distance D from w_0 to the minimisers in the method's own norm, steepest descent needs of
order L D^2 / eps steps. The loss is invariant to adding a constant to w, so that for pi_k ~ 1/k the nearest minimiser
is at distance

    D_2^2 = sum_k (log pi_k - mean)^2, about c,        D_inf = (max log pi_k - min log pi_k)/2 = log(c)/2.

The Hessian is diag(p) - p p^T: L_2 <= 1/2, and L_inf <= 1 (the variance of a number in [-1, 1]). The ratio of the
bounds grows as c / (log c)^2: the advantage of sign descent grows with the vocabulary, as one step moves all c
coordinates by its full length.

Shapes: c tokens.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heavytail.errors import unknown

FloatArray = NDArray[np.float64]

OPTIMIZERS = ("normalized-gd", "sign")


def steps_to(pi: ArrayLike, optimizer: str, lr: float, eps: float, most: int) -> int | None:
    """Return the first step at which the mean excess loss of it and the next is at most eps; None after `most` steps.

    Steps of fixed length end in an oscillation between two points; the mean does not depend on which is reached.

    Args:
        pi: frequency of each token [c], positive, summing to 1.
        optimizer: "normalized-gd" or "sign".
        lr: length of a step.
        eps: target excess loss in nats.
        most: maximum number of steps.

    Raises:
        SpecError: the optimizer is unknown.
    """
    if optimizer not in OPTIMIZERS:
        raise unknown("optimizer", optimizer, OPTIMIZERS)
    pi = np.asarray(pi, np.float64)
    floor = float(pi @ np.log(pi))
    w = np.zeros_like(pi)
    last = np.inf
    for step in range(most + 2):
        top = w.max()
        p = np.exp(w - top)
        total = p.sum()
        excess = floor + float(np.log(total) + top - pi @ w)
        if (last + excess) / 2 <= eps:
            return step - 1
        last = excess
        g = p / total - pi
        if optimizer == "sign":
            w -= lr * np.sign(g)
        else:
            norm = float(np.sqrt(g @ g))
            if norm > 0:
                w -= (lr / norm) * g
    return None


def fewest_steps(pi: ArrayLike, optimizer: str, eps: float, rates: ArrayLike, most: int = 10**6) -> tuple[int, float]:
    """Return the fewest steps to an excess loss of eps over step sizes, and the step size that needs them.

    Raises:
        ValueError: no step size reaches it within `most` steps.
    """
    budget = 16
    while budget < most * 4:  # so that a step size that never arrives costs only a few times the best one
        best: tuple[int, float] | None = None
        for lr in np.asarray(rates, np.float64):
            limit = min(budget, most) if best is None else best[0] - 1
            steps = steps_to(pi, optimizer, float(lr), eps, limit)
            if steps is not None:
                best = (steps, float(lr))
        if best is not None:
            return best
        budget *= 4
    raise ValueError(f"{optimizer}: no step size reaches an excess loss of {eps} in {most} steps")


def bound(pi: ArrayLike, optimizer: str) -> float:
    """Return L D^2 in the optimizer's norm; the bound on its steps is this divided by eps, up to a constant.

    >>> [round(bound([0.8, 0.2], name), 6) for name in OPTIMIZERS]  # (log 4)^2 / 4 for both
    [0.480453, 0.480453]
    """
    log = np.log(np.asarray(pi, np.float64))
    if optimizer == "sign":
        return float((np.ptp(log) / 2) ** 2)
    if optimizer == "normalized-gd":
        return float(((log - log.mean()) ** 2).sum() / 2)
    raise unknown("optimizer", optimizer, OPTIMIZERS)
