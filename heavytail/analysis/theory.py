"""What the paper proves: Theorem 3 (flows), Proposition 2 (eq. 1 and eq. 2) and the quadratic of fig 6.

Everything is float64 numpy, broadcasts, and returns a scalar for scalars. C (`c` in formulas) classes, D
features, T steps; pi [C] class frequencies; losses in nats; the time t of a flow is steps times step size of
its discretisation.

In the simple imbalanced setting of Theorem 3 every sample of class k is the basis vector e_k, so column k of
W [C, C] trains alone: from W = 0 its diagonal entry is a(t), its c - 1 others are all b(t), and its loss
log(1 + (c-1) e^-u) depends on the gap u = a - b only. The two flows differ in how the gap grows:

    gradient flow   u + expm1(u)/(c-1) = c pi t/(c-1)        a = -(c-1) b
    sign flow       u = 2t                                   a = -b = t

The paper writes the first with Lambert's W of exp(f/z)/z, where z = c - 1 and f = 1 + c pi t; it overflows
once f/z passes 709. With omega = e^u/z it reads omega + log omega = f/z - log z: omega is Wright's omega
function, and the loss is log(1 + 1/omega).
"""

from __future__ import annotations

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
        SpecError: c is below 2 or not whole, or the exponent is not in [0, 1000] (0 is balanced).

    >>> zipf(3).round(4).tolist()
    [0.5455, 0.2727, 0.1818]
    """
    rank = np.arange(1, _whole("c", c, 2) + 1, dtype=np.float64)
    weight = rank ** -_within("exponent", exponent, 0.0, 1e3, "in [0, 1000]")
    frequencies: FloatArray = weight / weight.sum()
    return frequencies


# --- Theorem 3: gradient flow and sign flow on the simple imbalanced setting ---


def gradient_flow_loss(t: ArrayLike, pi: ArrayLike, c: ArrayLike) -> FloatArray:
    """Return a class's loss after gradient flow from zero for time t: (c-1)/c / (pi t) once that is small.

    Args:
        t: time, 0 to 1e290.
        pi: frequency of the class, in (0, 1].
        c: number of classes, 2 to 1e15.

    Returns:
        loss in nats, broadcast shape of the arguments; log c at t = 0, to within rounding.

    Raises:
        SpecError: an argument is outside its range, or NaN.

    >>> gradient_flow_loss([0.0, 1e3, 1e6], pi=0.01, c=10).round(6).tolist()
    [2.302585, 0.132306, 9e-05]
    """
    return np.log1p(1.0 / _omega(_time(t), _frequency(pi), _classes(c)))


def gradient_flow_weights(t: ArrayLike, pi: ArrayLike, c: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Return the logits a(t) of the right class and b(t) = -a/(c-1) of each wrong one. Arguments as above.

    >>> a, b = gradient_flow_weights(1e12, pi=0.3, c=10)
    >>> round(float(a), 6), round(float(a + 9 * b), 12)
    (25.85667, 0.0)
    """
    t, pi, c = _time(t), _frequency(pi), _classes(c)
    z = c - 1.0
    # log(z omega) is good to 1e-15 absolutely, which is nothing while the gap itself is below that. As the
    # gap is at most pi t, clip it there and let one Newton step on its own equation restore the digits.
    gap = np.clip(np.log(z * _omega(t, pi, c)), 0.0, pi * t)
    gap = gap - (gap + np.expm1(gap) / z - (c / z) * (pi * t)) / (1.0 + np.exp(gap) / z)
    return gap * (z / c), -gap / c


def gradient_flow_time(loss: ArrayLike, pi: ArrayLike, c: ArrayLike) -> FloatArray:
    """Return the time gradient flow from zero takes to a given loss: proportional to 1/pi.

    Args:
        loss: loss of the class in nats, in (0, log c].
        pi: frequency of the class, in (0, 1].
        c: number of classes, 2 to 1e15.

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
    below_one = float(np.nextafter(1.0, 0.0))
    _within("beta1", beta1, 0.0, below_one, "in [0, 1)")
    _within("beta2", beta2, 0.0, below_one, "in [0, 1)")
    _within("eps", eps, 0.0, 1.0, "in [0, 1]")
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
            move = np.divide(corrected, root, out=np.zeros_like(root), where=root > 0)  # no gradient, no move
        w[step] = w[step - 1] - rate * move
    return w


# --- Proposition 2: gradient and Hessian of the rows w_k of a softmax head ---


class RowPrediction(NamedTuple):
    """What is predicted of each row w_k: norm of its gradient [C] and trace of its Hessian block [C]."""

    grad_norm: FloatArray
    trace: FloatArray

    @property
    def ratio(self) -> FloatArray:
        """Gradient norm over trace [C], NaN or inf where the trace is 0; under eq. 2 pi_k cancels from it."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.grad_norm / self.trace


def init_gradient(class_means: ArrayLike, pi: ArrayLike) -> FloatArray:
    """Return eq. 1 with its sign put right: the gradient at W = 0 [C, D], row k being xbar/c - pi_k xbar^k.

    Exact, for any inputs. On the sign see docs/errata.md, 3.

    Args:
        class_means: mean input xbar^k of each class [C, D]; may be NaN for classes without samples.
        pi: class frequencies [C], 0 for classes without samples, summing to 1.

    Raises:
        SpecError: pi does not match class_means, is outside [0, 1], or does not sum to 1.

    >>> init_gradient([[1.0, 0.0], [0.0, 1.0]], [0.75, 0.25]).tolist()
    [[-0.375, 0.125], [0.375, -0.125]]
    """
    pi = _within("pi", pi, 0.0, 1.0, "in [0, 1]")
    class_means = np.asarray(class_means, dtype=np.float64)
    if class_means.ndim != 2 or pi.shape != class_means.shape[:1]:
        raise SpecError(f"pi must be [C] for class_means [C, D], got {pi.shape} for {class_means.shape}")
    if abs(pi.sum() - 1.0) > 1e-9:
        raise SpecError(f"pi must sum to 1, got {pi.sum()}")
    shares = np.where(pi[:, None] > 0.0, pi[:, None] * class_means, 0.0)  # pi_k xbar^k, summing to xbar
    gradient: FloatArray = shares.sum(axis=0) / len(pi) - shares
    return gradient


def init_gradient_printed(class_means: ArrayLike, pi: ArrayLike) -> FloatArray:
    """Return eq. 1 as printed, pi_k xbar^k - xbar/c [C, D]: the negative gradient. Its norms are right."""
    return -init_gradient(class_means, pi)


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
    are proportional to pi_k, which cancels from their ratio ||xbar^k|| / (p_k mean_k ||x||^2). In fact other
    samples may give row k up to O(1/c), negligible where c pi_k >> 1: `assignment_error` bounds what both
    assumptions leave out.

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
    pi, p = _frequency(pi), _within("p_correct", p_correct, 0.0, 1.0, "in [0, 1]")
    return RowPrediction(
        pi * (1.0 - p) * np.asarray(class_mean_norm, dtype=np.float64),
        pi * p * (1.0 - p) * np.asarray(class_sq_norm, dtype=np.float64),
    )


def assignment_error(pi: ArrayLike, off_mass: ArrayLike, spread: ArrayLike, radius: ArrayLike) -> RowPrediction:
    """Return the most by which eq. 2 can miss the gradient norm and the trace of each row, for any inputs.

    With off_k the probability that other classes' samples give to row k, spread_k the scatter of p_ik within
    class k, and e_k = off_k + pi_k spread_k (p(1-p) has slope at most 1), the errors are at most

        R e_k for ||grad_k||        and        R^2 e_k for Tr H_kk.

    Eq. 2 says something about class k where these are small beside its own two numbers.

    Args:
        pi: class frequencies [C], in (0, 1].
        off_mass: off_k = (1/n) sum of p_ik over samples of other classes [C]: mean_i p_ik - pi_k p_k.
        spread: mean over the samples of class k of |p_ik - p_k| [C].
        radius: R, the largest ||x||.

    Raises:
        SpecError: an argument is outside its range, or NaN.

    >>> assignment_error([0.8, 0.2], off_mass=0.01, spread=0.05, radius=2.0).trace.round(3).tolist()
    [0.2, 0.08]
    """
    pi = _frequency(pi)
    off_mass = _within("off_mass", off_mass, 0.0, 1.0, "in [0, 1]")
    spread = _within("spread", spread, 0.0, 1.0, "in [0, 1]")
    radius = _within("radius", radius, 0.0, 1e150, "in [0, 1e150]")
    slack = off_mass + pi * spread
    return RowPrediction(radius * slack, radius**2 * slack)


# --- Shared pieces ---


def _omega(t: FloatArray, pi: FloatArray, c: FloatArray) -> FloatArray:
    """Odds e^{a-b}/(c-1) of the right class under gradient flow."""
    z = c - 1.0
    omega: FloatArray = wrightomega(1.0 / z + (c / z) * (pi * t) - np.log(z))
    return omega


def _gap_growth(loss: ArrayLike, c: FloatArray) -> FloatArray:
    """expm1 of the gap a - b that gives the loss: (c-1)/expm1(loss) - 1, accurate near log c too."""
    entropy = np.log(c)
    loss = np.asarray(loss, dtype=np.float64)
    # 1e-290 keeps the result finite; `gradient_flow_loss` itself may exceed log c by a few ulp at t = 0.
    bad = ~((loss >= 1e-290) & (loss <= entropy * (1.0 + 1e-15)))
    if np.any(bad):
        raise SpecError(f"loss must be in (0, log c] and at least 1e-290, got {_first(loss, bad)}")
    growth: FloatArray = np.maximum(np.expm1(entropy - loss), 0.0) / -np.expm1(-loss)
    return growth


def _time(t: ArrayLike) -> FloatArray:
    return _within("t", t, 0.0, 1e290, "in [0, 1e290]")


def _frequency(pi: ArrayLike) -> FloatArray:
    return _within("pi", pi, float(np.finfo(np.float64).smallest_subnormal), 1.0, "in (0, 1]")


def _classes(c: ArrayLike) -> FloatArray:
    return _within("c", c, 2.0, 1e15, "in [2, 1e15]")


def _step_size(lr: ArrayLike) -> FloatArray:
    return _within("lr", lr, 0.0, 1e100, "in [0, 1e100]")


def _whole(name: str, value: int, low: int) -> int:
    """The value if it is a whole number of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < low:
        raise SpecError(f"{name} must be a whole number >= {low}, got {value!r}")
    return int(value)


def _within(name: str, value: ArrayLike, low: float, high: float, allowed: str) -> FloatArray:
    """The value as float64, all of it in [low, high] (NaN is not)."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise SpecError(f"{name} must be numbers {allowed}, got {value!r}") from None
    bad = ~((array >= low) & (array <= high))
    if np.any(bad):
        raise SpecError(f"{name} must be {allowed}, got {_first(array, bad)}")
    return array


def _first(array: FloatArray, bad: NDArray[np.bool_]) -> float:
    """The first entry that is marked bad."""
    return float(np.broadcast_to(array, bad.shape)[bad].flat[0])
