"""The linear bigram model: steps of gradient descent and of sign descent to a relative loss (arXiv 2505.19227).

One weight w_ij for each pair of tokens predicts the frequency of token j after token i under the squared loss

    f(W) = 1/2 sum_i pi_i sum_j (w_ij - q_ij)^2,        q_ij = pi_{j|i},        W_0 = 0.

The Hessian is diagonal, so every weight moves independently and all iterates have a closed form. With the relative loss
r(t) = f(W_t) / f(W_0) and m_i = pi_i sum_j q_ij^2:

    gradient descent, step size 1/pi_1   q - w(t) = q (1 - pi_i/pi_1)^t,
                                         r(t) = sum_i m_i (1 - pi_i/pi_1)^{2t} / sum_i m_i;
    sign descent, step size s            w(t) = s t until it passes q at step n = ceil(q/s), then it alternates between
                                         n s and (n-1) s.

Sign descent is therefore judged on the mean loss of two successive steps, at the best step size for that number of
steps. A weight that has arrived contributes (e^2 + (s-e)^2)/2 with e = n s - q. Targets of zero never move.

On d tokens with pi_i ~ i^-a, and every row of q a reordering of j^-a, the sums over j cancel. At a = 1 every decade of
i has the same share of the loss, and gradient descent has removed the rows below 2t, so that r is about 1 -
log(2t)/log(d), and the steps to r = eps grow as d^(1-eps). For a > 1 a finite number of rows has most of the loss, and
the steps do not grow. Sign descent must bring d weights of each row within s of their targets, at a cost of about d
s^2/2, and walk to the largest target in T = max(q)/s steps: T grows as sqrt(d) for every a >= 1.

Shapes: d tokens, K pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heavytail.analysis import theory
from heavytail.errors import DataError, SpecError

FloatArray = NDArray[np.float64]

MOST_STEPS = 2**40
# Step sizes tried, in units of max(q)/T: below 1, the largest target is not reached in T steps.
TRIED = np.geomspace(0.02, 1.5, 56)


@dataclass(frozen=True)
class Bigrams:
    """A bigram model, reduced to the quantities on which both losses depend.

    Attributes:
        frequency: pi_i [d].
        square: sum_j q_ij^2 of each row [d].
        target: the values of q that are not zero, descending [K].
        weight: sum of pi_i over the pairs that have this value [K].
    """

    frequency: FloatArray
    square: FloatArray
    target: FloatArray
    weight: FloatArray

    @classmethod
    def zipf(cls, size: int, exponent: float = 1.0) -> Bigrams:
        """Return the model of d = `size` tokens with pi_i ~ i^-a, and in every row the values j^-a in some order."""
        pi = theory.zipf(size, exponent)
        return cls(pi, np.full(size, float(pi @ pi)), pi, np.ones(size))

    @classmethod
    def count(cls, first: ArrayLike, second: ArrayLike, size: int) -> Bigrams:
        """Return the bigrams of the `size` most frequent tokens of a text.

        Args:
            first, second: a token and the next one, for each position of the text [N].
            size: d; pairs with any other token are left out. Ties in frequency are broken by the smaller token number.

        Raises:
            DataError: no pair is left.

        >>> Bigrams.count([0, 0, 0, 1], [1, 1, 0, 0], 2).target.round(4).tolist()
        [1.0, 0.6667, 0.3333]
        """
        pairs = np.stack([np.asarray(first).ravel(), np.asarray(second).ravel()])
        tokens, pairs = np.unique(pairs, return_inverse=True)  # without gaps
        pairs = pairs.reshape(2, -1)
        rank = np.empty(len(tokens), np.int64)
        rank[np.argsort(-np.bincount(pairs[0], minlength=len(tokens)), kind="stable")] = np.arange(len(tokens))
        x, y = rank[pairs]
        kept = (x < size) & (y < size)
        if not kept.any():
            raise DataError(f"size: expected pairs of the {size} most frequent tokens, got none")
        pair, times = np.unique(x[kept] * size + y[kept], return_counts=True)
        row = pair // size
        total: FloatArray = np.bincount(row, weights=times).astype(np.float64)
        seen, share = total > 0, total / times.sum()
        q = times / total[row]
        square: FloatArray = np.bincount(row, weights=q**2).astype(np.float64)
        target, which = np.unique(-q, return_inverse=True)
        weight: FloatArray = np.bincount(which, weights=share[row]).astype(np.float64)
        return cls(share[seen], square[seen], -target, weight)

    def gd_loss(self, t: int) -> float:
        """Return the relative loss of gradient descent with step size 1/pi_1 after t steps.

        >>> round(Bigrams.zipf(2).gd_loss(1), 6)  # (2/3) 0^2 + (1/3) (1/2)^2
        0.083333
        """
        mass = self.frequency * self.square
        return float(mass @ (1.0 - self.frequency / self.frequency.max()) ** (2 * t) / mass.sum())

    def sign_loss(self, lr: float, t: int) -> float:
        """Return the relative loss of sign descent with step size `lr`, the mean of steps t and t + 1.

        >>> one = Bigrams(np.ones(1), np.ones(1), np.ones(1), np.ones(1))
        >>> one.sign_loss(0.75, 2)  # w = 1.5 and 0.75: errors 0.5 and 0.25
        0.15625
        """
        near = int(np.searchsorted(-self.target, -lr, side="right"))  # from here on q < lr: arrived at step 1
        q, weight = self.target[:near], self.weight[:near]
        arrived = np.ceil(q / lr)
        ahead, beyond = q - lr * t, arrived * lr - q
        error = np.where(arrived > t + 1, ahead**2 + (ahead - lr) ** 2, beyond**2 + (lr - beyond) ** 2) / 2
        mass, first, second = (sums[near] for sums in self._tails)
        # sum of (q^2 + (lr - q)^2)/2 over the targets below lr
        rest = second - lr * first + lr**2 / 2 * mass
        return float((weight @ error + rest) / self._tails[2][0])

    def best_sign_loss(self, t: int) -> float:
        """Return the smallest `sign_loss` after t >= 1 steps over the step sizes TRIED."""
        return min(self.sign_loss(float(x * self.target[0] / t), t) for x in TRIED)

    def gd_steps(self, eps: float) -> int:
        """Return the first step at which gradient descent's relative loss is at most eps.

        >>> Bigrams.zipf(2).gd_steps(0.01)
        3
        """
        return _fewest_steps(self.gd_loss, eps)

    def sign_steps(self, eps: float) -> int:
        """Return a T such that sign descent reaches a relative loss of eps in T steps, but not in T - 1.

        The loss is `best_sign_loss`. It decreases with T, except at losses of a few percent on small models, where a
        step size that happens to hit many targets lowers it slightly.
        """
        return _fewest_steps(self.best_sign_loss, eps)

    @cached_property
    def _tails(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Sums of weight, weight q and weight q^2 over the targets from each index on, [K + 1] each."""
        powers = (self.weight * self.target**k for k in range(3))
        zero, one, two = (np.append(np.cumsum(values[::-1])[::-1], 0.0) for values in powers)
        return zero, one, two


def scaling(sizes: ArrayLike, steps: ArrayLike) -> float:
    """Return the slope of log(steps) on log(size) by least squares.

    >>> round(scaling([10, 100, 1000], [3, 30, 300]), 9)
    1.0
    """
    return float(np.polyfit(np.log(np.asarray(sizes, np.float64)), np.log(np.asarray(steps, np.float64)), 1)[0])


def _fewest_steps(loss: Callable[[int], float], eps: float) -> int:
    """Smallest t >= 1 with loss(t) <= eps, for a decreasing loss."""
    if not 0 < eps < 1:
        raise SpecError(f"eps: expected a relative loss in (0, 1), got {eps!r}")
    high = 1
    while loss(high) > eps:
        high *= 2
        if high > MOST_STEPS:
            raise SpecError(f"eps: a relative loss of {eps!r} is not reached in {MOST_STEPS} steps")
    low = high // 2  # loss(low) > eps, or low is 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if loss(middle) <= eps else (middle, high)
    return high
