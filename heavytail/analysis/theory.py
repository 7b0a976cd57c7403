"""Closed forms of the paper's theory: Theorem 3 (flows), Proposition 2 (eq. 1 and eq. 2), the quadratic of fig 6.

All functions work in float64 numpy, broadcast, and return a scalar for scalars. C (`c` in formulas) classes, D
features, T steps; pi [C] class frequencies; losses in nats; the time t of a flow is steps times step size of
its discretisation.

In the simple imbalanced setting of Theorem 3 every sample of class k is the basis vector e_k, so column k of
W [C, C] trains independently: from W = 0 its diagonal entry is a(t), its c - 1 others are all b(t), and its loss
log(1 + (c-1) e^-u) depends on the gap u = a - b only. The two flows differ in how the gap grows:

    gradient flow   u + expm1(u)/(c-1) = c pi t/(c-1)        a = -(c-1) b
    sign flow       u = 2t                                   a = -b = t

The paper writes the first with Lambert's W of exp(f/z)/z, where z = c - 1 and f = 1 + c pi t; it overflows
once f/z passes 709. With omega = e^u/z it reads omega + log omega = f/z - log z: omega is Wright's omega
function, and the loss is log(1 + 1/omega).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import wrightomega

from heavytail.errors import SpecError, unknown

FloatArray = NDArray[np.float64]

_OPTIMIZERS = ("adam", "gd", "sign")


def zipf(c: int, exponent: float = 1.0) -> FloatArray:
    """Return class frequencies pi_k proportional to k^-exponent, most frequent first [C].

    Raises:
        SpecError: c is not an integer >= 2, or the exponent is negative (0 is balanced).

    >>> zipf(3).round(4).tolist()
    [0.5455, 0.2727, 0.1818]
    """
    rank = np.arange(1, _whole("c", c, 2) + 1, dtype=np.float64)
    weight = rank ** -_checked("exponent", exponent, "finite and >= 0", lambda x: (x >= 0.0) & (x < np.inf))
    frequencies: FloatArray = weight / weight.sum()
    return frequencies


# --- Theorem 3: gradient flow and sign flow on the simple imbalanced setting ---


def gradient_flow_loss(t: ArrayLike, pi: ArrayLike, c: ArrayLike) -> FloatArray:
    """Return a class's loss after gradient flow from zero for time t: (c-1)/c / (pi t) once that is small.

    Args:
        t: time, at least 0.
        pi: frequency of the class, in (0, 1].
        c: number of classes, at least 2.

    Returns:
        loss in nats, broadcast shape of the arguments; log c at t = 0, to within rounding.

    Raises:
        SpecError: an argument is outside its range, or NaN.

    >>> gradient_flow_loss([0.0, 1e3, 1e6], pi=0.01, c=10).round(6).tolist()
    [2.302585, 0.132306, 9e-05]
    """
    return np.log1p(1.0 / _omega(_time(t), _frequency(pi), _classes(c)))


def gradient_flow_time(loss: ArrayLike, pi: ArrayLike, c: ArrayLike) -> FloatArray:
    """Return the time gradient flow from zero takes to a given loss: proportional to 1/pi.

    Args:
        loss: loss of the class in nats, in (0, log c].
        pi: frequency of the class, in (0, 1].
        c: number of classes, at least 2.

    Raises:
        SpecError: an argument is outside its range, or NaN.

    >>> gradient_flow_time(0.1, pi=[0.1, 0.01, 0.001], c=10).round(2).tolist()
    [124.62, 1246.2, 12461.95]
    """
    pi, c = _frequency(pi), _classes(c)
    growth = _gap_growth(loss, c)
    return ((c - 1.0) * np.log1p(growth) + growth) / c / pi


def sign_flow_loss(t: ArrayLike, c: ArrayLike) -> FloatArray:
    """Return the loss after sign flow from zero for time t: log(1 + (c-1) e^{-2t}) for every class.

    This corrects Lemma 7 (docs/errata.md, 4). Arguments and errors as in `gradient_flow_loss`.

    >>> sign_flow_loss([0.0, 1.0, 10.0], c=10).round(6).tolist()
    [2.302585, 0.796614, 0.0]
    """
    return np.log1p((_classes(c) - 1.0) * np.exp(-2.0 * _time(t)))


def sign_flow_loss_printed(t: ArrayLike, c: ArrayLike) -> FloatArray:
    """Return Lemma 7 as printed, log(1 + (c-1) e^{-ct}): right for two classes only; for comparison.

    >>> sign_flow_loss_printed([0.0, 1.0, 10.0], c=10).round(6).tolist()
    [2.302585, 0.000409, 0.0]
    """
    c = _classes(c)
    return np.log1p((c - 1.0) * np.exp(-c * _time(t)))


def sign_flow_time(loss: ArrayLike, c: ArrayLike) -> FloatArray:
    """Return the time sign flow from zero takes to a given loss, in (0, log c]: the same for every class.

    >>> float(sign_flow_time(0.1, c=10).round(4))
    2.2247
    """
    return 0.5 * np.log1p(_gap_growth(loss, _classes(c)))


# --- Fig 6: the weighted quadratic f(w) = sum_k pi_k w_k^2 / 2 from w = 1 ---


def quadratic_gd(pi: ArrayLike, lr: float, steps: int) -> FloatArray:
    """Return gradient descent on the weighted quadratic in closed form, (1 - lr pi_k)^t [T+1, C].

    >>> quadratic_gd([0.5, 0.25], lr=1.0, steps=2).tolist()
    [[1.0, 1.0], [0.5, 0.75], [0.25, 0.5625]]
    """
    decay = 1.0 - _step_size(lr) * np.atleast_1d(_frequency(pi))
    with np.errstate(over="ignore"):  # a step size above 2/pi diverges: inf is the answer
        return np.power(decay, np.arange(_whole("steps", steps, 0) + 1)[:, None])


def quadratic_trajectory(
    pi: ArrayLike,
    optimizer: str,
    lr: float,
    steps: int,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
) -> FloatArray:
    """Run an optimizer on the weighted quadratic from w = 1 and return every iterate [T+1, C].

    Args:
        pi: curvatures [C], in (0, 1].
        optimizer: "gd", "sign" (sign descent) or "adam" (PyTorch's: bias corrected, eps outside the root).
        lr: step size, constant.
        steps: number of steps T.
        beta1: Adam's momentum, in [0, 1).
        beta2: Adam's decay of the squared gradient, in [0, 1).
        eps: Adam's eps; at 0 its path does not depend on pi at all.

    Raises:
        SpecError: an argument is outside its range, or the optimizer is not one of these.

    >>> quadratic_trajectory([0.5, 0.25], "sign", lr=0.25, steps=2).tolist()
    [[1.0, 1.0], [0.75, 0.75], [0.5, 0.5]]
    """
    if optimizer not in _OPTIMIZERS:
        raise unknown("optimizer", optimizer, _OPTIMIZERS)
    _decay("beta1", beta1)
    _decay("beta2", beta2)
    _share("eps", eps)
    pi, rate = np.atleast_1d(_frequency(pi)), _step_size(lr)
    w = np.ones((_whole("steps", steps, 0) + 1, pi.size))
    mean, square = np.zeros_like(pi), np.zeros_like(pi)
    # Without eps the scale of a gradient cancels, and its square must not underflow.
    scale = np.ones_like(pi) if optimizer == "adam" and eps == 0.0 else pi
    for step in range(1, len(w)):
        grad = scale * w[step - 1]
        if optimizer == "gd":
            move = grad
        elif optimizer == "sign":
            move = np.sign(grad)
        else:
            mean = beta1 * mean + (1.0 - beta1) * grad
            square = beta2 * square + (1.0 - beta2) * grad**2
            root = np.sqrt(square / (1.0 - beta2**step)) + eps
            corrected = mean / (1.0 - beta1**step)
            move = np.divide(corrected, root, out=np.zeros_like(root), where=root > 0)  # 0/0 is no move
        w[step] = w[step - 1] - rate * move
    return w


# --- Proposition 2: gradient and Hessian of the rows w_k of a softmax head ---


class RowPrediction(NamedTuple):
    """Gradient norm [C] and trace of the Hessian block [C] of each row w_k."""

    grad_norm: FloatArray
    trace: FloatArray

    @property
    def ratio(self) -> FloatArray:
        """Gradient norm over trace [C], NaN or inf where the trace is 0; under eq. 2 pi_k cancels from it."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.grad_norm / self.trace


def init_gradient(class_means: ArrayLike, pi: ArrayLike) -> FloatArray:
    """Return eq. 1 with its sign corrected: the gradient at W = 0 [C, D], whose row k is xbar/c - pi_k xbar^k.

    Exact for any inputs. The printed sign is that of the negative gradient (docs/errata.md, 3).

    Args:
        class_means: mean input xbar^k of each class [C, D]; may be NaN for classes without samples.
        pi: class frequencies [C], 0 for classes without samples, summing to 1.

    Raises:
        SpecError: pi does not match class_means, is outside [0, 1], or does not sum to 1.

    >>> init_gradient([[1.0, 0.0], [0.0, 1.0]], [0.75, 0.25]).tolist()
    [[-0.375, 0.125], [0.375, -0.125]]
    """
    pi = _share("pi", pi)
    class_means = np.asarray(class_means, dtype=np.float64)
    if class_means.ndim != 2 or pi.shape != class_means.shape[:1]:
        raise SpecError(f"pi: expected [C] for class_means [C, D], got {pi.shape} for {class_means.shape}")
    if abs(pi.sum() - 1.0) > 1e-9:
        raise SpecError(f"pi: expected a sum of 1, got {pi.sum()}")
    shares = np.where(pi[:, None] > 0.0, pi[:, None] * class_means, 0.0)  # pi_k xbar^k, summing to xbar
    gradient: FloatArray = shares.sum(axis=0) / len(pi) - shares
    return gradient


def init_hessian(second_moment: ArrayLike, c: ArrayLike) -> FloatArray:
    """Return eq. 1's Hessian block H_kk at W = 0, (1/c)(1 - 1/c) Hbar: the same for every class. Exact.

    Args:
        second_moment: Hbar = mean of x x^T [D, D] for the block, or its trace, mean ||x||^2, for the trace.
        c: number of classes.

    >>> float(init_hessian(3.0, c=2))
    0.75
    """
    c = _classes(c)
    return np.asarray(second_moment, dtype=np.float64) * ((1.0 - 1.0 / c) / c)


def init_prediction(class_means: ArrayLike, pi: ArrayLike, mean_sq_norm: float) -> RowPrediction:
    """Return eq. 1 as gradient norms and Hessian traces at W = 0; `mean_sq_norm` is the mean of ||x||^2.

    >>> init_prediction([[1.0, 0.0], [0.0, 1.0]], [0.75, 0.25], mean_sq_norm=1.0).trace.tolist()
    [0.25, 0.25]
    """
    norms = np.linalg.norm(init_gradient(class_means, pi), axis=1)
    return RowPrediction(norms, np.full_like(norms, init_hessian(mean_sq_norm, len(norms))))


def assignment_prediction(
    pi: ArrayLike, p_correct: ArrayLike, class_mean_norm: ArrayLike, class_sq_norm: ArrayLike
) -> RowPrediction:
    """Return eq. 2: gradient norm and Hessian trace of each row once samples are assigned to their class.

    Assumes, for row k: every sample of class k gives it the same probability p_k, and every other sample
    none. Then exactly grad_k = -pi_k (1 - p_k) xbar^k and Tr H_kk = pi_k p_k (1 - p_k) mean_k ||x||^2: both
    are proportional to pi_k, which cancels from their ratio ||xbar^k|| / (p_k mean_k ||x||^2). In practice other
    samples give row k up to O(1/c) each, which is not negligible in general (docs/errata.md, 14).

    Args:
        pi: class frequencies [C], in (0, 1].
        p_correct: mean probability of class k over the samples of class k [C], in [0, 1].
        class_mean_norm: ||xbar^k|| [C].
        class_sq_norm: mean over class k of ||x||^2 [C].

    Raises:
        SpecError: pi or p_correct is outside its range, or NaN.

    >>> assignment_prediction([0.8, 0.2], [0.5, 0.5], 1.0, 2.0).ratio.tolist()
    [1.0, 1.0]
    """
    pi, p = _frequency(pi), _share("p_correct", p_correct)
    return RowPrediction(
        pi * (1.0 - p) * np.asarray(class_mean_norm, dtype=np.float64),
        pi * p * (1.0 - p) * np.asarray(class_sq_norm, dtype=np.float64),
    )


# --- Shared pieces ---


def _omega(t: FloatArray, pi: FloatArray, c: FloatArray) -> FloatArray:
    """Odds e^{a-b}/(c-1) of the right class under gradient flow."""
    z = c - 1.0
    omega: FloatArray = wrightomega(1.0 / z + (c / z) * (pi * t) - np.log(z))
    return omega


def _gap_growth(loss: ArrayLike, c: FloatArray) -> FloatArray:
    """expm1 of the gap a - b that gives the loss: (c-1)/expm1(loss) - 1, accurate near log c too."""
    entropy = np.log(c)
    # `gradient_flow_loss` itself may exceed log c by a few ulp at t = 0.
    loss = _checked("loss", loss, "in (0, log c]", lambda loss: (loss > 0.0) & (loss <= entropy * (1.0 + 1e-15)))
    growth: FloatArray = np.maximum(np.expm1(entropy - loss), 0.0) / -np.expm1(-loss)
    return growth


def _time(t: ArrayLike) -> FloatArray:
    return _checked("t", t, "finite and >= 0", lambda t: (t >= 0.0) & (t < np.inf))


def _frequency(pi: ArrayLike) -> FloatArray:
    return _checked("pi", pi, "in (0, 1]", lambda pi: (pi > 0.0) & (pi <= 1.0))


def _share(name: str, value: ArrayLike) -> FloatArray:
    return _checked(name, value, "in [0, 1]", lambda x: (x >= 0.0) & (x <= 1.0))


def _decay(name: str, value: ArrayLike) -> FloatArray:
    return _checked(name, value, "in [0, 1)", lambda x: (x >= 0.0) & (x < 1.0))


def _classes(c: ArrayLike) -> FloatArray:
    return _checked("c", c, "finite and >= 2", lambda c: (c >= 2.0) & (c < np.inf))


def _step_size(lr: ArrayLike) -> FloatArray:
    return _checked("lr", lr, "finite and >= 0", lambda lr: (lr >= 0.0) & (lr < np.inf))


def _whole(name: str, value: int, low: int) -> int:
    """The value if it is an integer of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < low:
        raise SpecError(f"{name}: expected an integer >= {low}, got {value!r}")
    return int(value)


def _checked(name: str, value: ArrayLike, allowed: str, valid: Callable[[FloatArray], NDArray[np.bool_]]) -> FloatArray:
    """The value as float64, every entry of which is valid (NaN never is)."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise SpecError(f"{name}: expected numbers {allowed}, got {value!r}") from None
    bad = ~valid(array)
    if np.any(bad):
        raise SpecError(f"{name}: expected numbers {allowed}, got {np.broadcast_to(array, bad.shape)[bad].flat[0]}")
    return array
