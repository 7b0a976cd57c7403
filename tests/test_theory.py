"""Theorem 3, Proposition 2 and fig 6 against an ODE solver, loops, autograd and 60-digit arithmetic."""

from __future__ import annotations

import doctest
import math
from collections.abc import Callable

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from heavytail.analysis import theory
from heavytail.errors import SpecError
from tests.reference import theory as reference

CLASSES = [2, 3, 10, 10_250, 10**6]
FREQUENCIES = [1e-9, 1e-6, 1e-3, 0.3, 1.0]
TIMES = [0.0, 1e-12, 1e-3, 1.0, 1e3, 1e6, 1e9, 1e12]


def relative_error(value: float, exact: mpmath.mpf) -> float:
    """|value - exact| / |exact|, formed with 60 digits; the absolute error where exact is 0."""
    with mpmath.workdps(60):
        error = abs(mpmath.mpf(float(value)) - exact)
        return float(error / abs(exact) if abs(exact) > 1e-50 else error)


def test_docstring_examples() -> None:
    """The examples in the docstrings give what they print."""
    result = doctest.testmod(theory)
    assert result.attempted >= 10
    assert result.failed == 0


# --- Gradient flow ---


@pytest.mark.parametrize("c", CLASSES)
def test_gradient_flow_to_twelve_digits(c: int) -> None:
    """The loss is the paper's Lambert form in 60 digits, to 1e-12, over the extremes of pi and t."""
    t, pi = np.array(TIMES)[:, None], np.array(FREQUENCIES)
    loss = theory.gradient_flow_loss(t, pi, c)
    for i, j in np.ndindex(loss.shape):
        exact = reference.precise_flow(TIMES[i], FREQUENCIES[j], c)
        assert relative_error(loss[i, j], exact) < 1e-12, (TIMES[i], FREQUENCIES[j])


@settings(deadline=None)
@given(c=st.integers(2, 10**6), log_pi=st.floats(-9, 0), log_t=st.floats(-15, 12))
def test_gradient_flow_anywhere(c: int, log_pi: float, log_t: float) -> None:
    """The same at random points; and the time to that loss, put into the 60-digit form, gives it back."""
    t, pi = 10.0**log_t, 10.0**log_pi
    loss = reference.precise_flow(t, pi, c)
    assert relative_error(theory.gradient_flow_loss(t, pi, c), loss) < 1e-12
    target = min(float(loss), math.log(c))
    reached = reference.precise_flow(theory.gradient_flow_time(target, pi, c), pi, c)
    assert relative_error(target, reached) < 1e-12


def test_gradient_flow_solves_the_full_equation() -> None:
    """The loss agrees to 1e-8 with a solver on all C x C logits, which assumes no symmetry."""
    pi, times = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.0, 0.5, 3.0, 20.0, 100.0])
    W = reference.gradient_flow(pi, times)
    loss = theory.gradient_flow_loss(times[:, None], pi, 4)
    for i in range(len(times)):
        np.testing.assert_allclose(reference.class_losses(W[i]), loss[i], rtol=1e-8)


def test_gradient_descent_follows_gradient_flow() -> None:
    """Small-step gradient descent has the flow's losses at t = steps x step size to 1 %, all along."""
    pi, lr = theory.zipf(6), 0.02
    descent = reference.descend(pi, lr, steps=1_000)
    flow = theory.gradient_flow_loss(lr * np.arange(1_001)[:, None], pi, len(pi))
    assert descent[-1].min() < 0.2 < descent[-1].max()  # far enough along to be a test
    np.testing.assert_allclose(descent, flow, rtol=0.01)


def test_gradient_descent_time_scales_as_inverse_frequency() -> None:
    """Steps of gradient descent to loss 0.1 scale as 1/pi_k over classes: slope -1 +- 0.05 in logs."""
    pi, lr, target = theory.zipf(5), 0.5, 0.1
    losses = reference.descend(pi, lr, steps=600)
    assert (losses[-1] < target).all()
    steps = (losses >= target).sum(axis=0)
    assert np.polyfit(np.log(pi), np.log(steps), 1)[0] == pytest.approx(-1.0, abs=0.05)
    np.testing.assert_allclose(steps * lr, theory.gradient_flow_time(target, pi, len(pi)), rtol=0.05)


def test_gradient_flow_ends_as_inverse_time() -> None:
    """The loss tends to (c-1)/(c pi t): the Theta(1/(pi t)) of Theorem 3 with its constant."""
    t, pi = 1e12, np.array([1e-4, 1e-2, 1.0])
    np.testing.assert_allclose(theory.gradient_flow_loss(t, pi, 10) * pi * t, 0.9, rtol=1e-5)


@pytest.mark.parametrize("c", [*CLASSES, 5, 13, 25, 50_608])
def test_flow_times_start_at_zero(c: int) -> None:
    """Both inverses take the loss of t = 0 for 0, though rounding may put it above log c."""
    start = theory.gradient_flow_loss(0.0, 0.1, c)
    # A loss known to a few ulp fixes the gap to that, and the time to gap / pi.
    assert 0.0 <= theory.gradient_flow_time(start, 0.1, c) < 1e-12
    assert 0.0 <= theory.sign_flow_time(start, c) < 1e-12


# --- Sign flow, and erratum 4 ---


def test_sign_descent_follows_sign_flow() -> None:
    """Sign descent on all C x C logits has the corrected loss at t = steps x step size, in every class."""
    descent = reference.descend(theory.zipf(6), 0.05, steps=200, sign=True)
    flow = theory.sign_flow_loss(0.05 * np.arange(201), 6)
    np.testing.assert_allclose(descent, np.broadcast_to(flow[:, None], descent.shape), rtol=1e-10)


def test_printed_sign_flow_is_not_what_sign_descent_does() -> None:
    """Lemma 7 as printed is right for c = 2, and 1 000 times too small at t = 1 for c = 10 (erratum 4)."""
    t = np.linspace(0.0, 5.0, 11)
    np.testing.assert_array_equal(theory.sign_flow_loss_printed(t, 2), theory.sign_flow_loss(t, 2))
    measured = reference.descend(theory.zipf(10), lr=0.1, steps=10, sign=True)[-1]
    assert (measured > 1_000 * theory.sign_flow_loss_printed(1.0, 10)).all()


def test_sign_flow_breaks_the_identity_of_gradient_flow() -> None:
    """a = -(c-1) b holds along gradient flow; along sign flow a = -b: the slip behind erratum 4."""
    pi = theory.zipf(6)
    flow = reference.gradient_flow(pi, np.array([5.0]))[0]
    sign = -np.sign(reference.softmax_gradient(flow, pi))
    for k in range(6):
        wrong = (k + 1) % 6
        assert flow[k, k] == pytest.approx(-5.0 * flow[wrong, k], rel=1e-9)
        assert sign[k, k] == -sign[wrong, k] == 1.0


def test_sign_descent_time_does_not_depend_on_frequency() -> None:
    """Steps of sign descent to loss 0.1 have slope 0 on frequency, and are those of `sign_flow_time`."""
    pi, lr = theory.zipf(6), 0.01
    steps = (reference.descend(pi, lr, steps=300, sign=True) >= 0.1).sum(axis=0)
    assert np.polyfit(np.log(pi), np.log(steps), 1)[0] == pytest.approx(0.0, abs=1e-12)
    np.testing.assert_allclose(steps * lr, theory.sign_flow_time(0.1, len(pi)), rtol=0, atol=lr)


@settings(deadline=None)
@given(c=st.integers(2, 10**6), share=st.floats(1e-12, 1.0))
def test_sign_flow_time_inverts_the_loss(c: int, share: float) -> None:
    """The time to a loss, put into log(1 + (c-1) e^-2t) with 60 digits, gives the loss back to 1e-12."""
    loss = share * math.log(c)
    with mpmath.workdps(60):
        t = mpmath.mpf(float(theory.sign_flow_time(loss, c)))
        reached = mpmath.log1p((c - 1) * mpmath.exp(-2 * t))
    assert relative_error(loss, reached) < 1e-12


# --- Fig 6 ---


def test_quadratic_gd_is_its_closed_form() -> None:
    """Gradient descent on the weighted quadratic is (1 - lr pi_k)^t to 1e-12, also where it overshoots."""
    pi = theory.zipf(100)
    for lr in (0.5, 1.0 / pi[0], 1.9 / pi[0]):
        path = theory.quadratic_trajectory(pi, "gd", lr, 300)
        np.testing.assert_allclose(path, theory.quadratic_gd(pi, lr, 300), rtol=0, atol=1e-12)


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_quadratic_adam_is_torch_adam(beta1: float) -> None:
    """Adam's path is that of torch.optim.Adam, with an eps large enough to matter."""
    pi = theory.zipf(50)
    path = theory.quadratic_trajectory(pi, "adam", 0.03, 200, beta1=beta1, beta2=0.99, eps=1e-3)
    torch_path = reference.torch_adam_quadratic(pi, 0.03, 200, beta1, 0.99, 1e-3)
    np.testing.assert_allclose(path, torch_path, rtol=0, atol=1e-12)


def test_quadratic_spread() -> None:
    """Sign descent, and Adam without eps, move all coordinates alike (to 1e-6); gradient descent does not."""
    pi = theory.zipf(100)
    paths = {name: theory.quadratic_trajectory(pi, name, 0.01, 50, eps=0.0) for name in ("gd", "sign", "adam")}
    spread = {name: float(np.ptp(path, axis=1).max()) for name, path in paths.items()}
    assert spread["sign"] == 0.0
    assert spread["adam"] < 1e-6
    assert spread["gd"] > 0.05
    assert paths["adam"][-1, -1] < 0.6  # it did move


# --- Proposition 2, and erratum 3 ---


def problem(seed: int, num_classes: int = 5) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Inputs [40, 4] of non-zero mean and Zipf labels [40] with every class present."""
    rng = np.random.default_rng(seed)
    rest = rng.choice(num_classes, 40 - num_classes, p=theory.zipf(num_classes))
    return rng.normal(1.0, 1.0, (40, 4)), np.concatenate([np.arange(num_classes), rest])


def class_average(values: NDArray[np.float64], y: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean of the values [N, ...] over the samples of each class [C, ...]."""
    return np.array([values[y == k].mean(axis=0) for k in range(y.max() + 1)])


def test_eq1_is_exact() -> None:
    """At W = 0 autograd's gradient rows, Hessian blocks, norms and traces are eq. 1's to 1e-12."""
    x, y = problem(0)
    pi, means, second_moment = np.bincount(y) / len(y), class_average(x, y), x.T @ x / len(x)
    grad, hessian = reference.head_derivatives(np.zeros((5, 4)), x, y)
    np.testing.assert_allclose(theory.init_gradient(means, pi), grad, rtol=0, atol=1e-12)
    for k in range(5):
        block = theory.init_hessian(second_moment, 5)
        np.testing.assert_allclose(block, hessian[k, :, k, :], rtol=0, atol=1e-12)
    rows = theory.init_prediction(means, pi, float(np.trace(second_moment)))
    np.testing.assert_allclose(rows.grad_norm, np.linalg.norm(grad, axis=1), rtol=0, atol=1e-12)
    np.testing.assert_allclose(rows.trace, np.einsum("kdkd->k", hessian), rtol=0, atol=1e-12)


def test_eq1_with_an_absent_class() -> None:
    """A class without samples has gradient xbar/c: its undefined mean is not read."""
    x, y = problem(1)
    pi, means = np.bincount(y, minlength=6) / len(y), np.vstack([class_average(x, y), np.full(4, np.nan)])
    grad, _ = reference.head_derivatives(np.zeros((6, 4)), x, y)
    np.testing.assert_allclose(theory.init_gradient(means, pi), grad, rtol=0, atol=1e-12)


def test_printed_gradient_climbs() -> None:
    """A step against eq. 1's gradient as printed raises the loss; against the corrected one lowers it."""
    x, y = problem(2)
    pi, means = np.bincount(y) / len(y), class_average(x, y)
    right = theory.init_gradient(means, pi)
    printed = pi[:, None] * means - x.mean(axis=0) / len(pi)
    start = reference.head_loss(np.zeros((5, 4)), x, y)
    assert reference.head_loss(-0.01 * right, x, y) < start < reference.head_loss(-0.01 * printed, x, y)


def test_eq2_is_exact_under_its_assumption() -> None:
    """If samples of class k give k the same probability, and others none, eq. 2 is autograd's answer."""
    # Each sample shows its class, e_k; the rest of its probability goes to class k + 4, which has no samples.
    x, y = problem(3, num_classes=4)
    x = np.hstack([np.eye(4)[y], x])
    logit = np.array([-1.0, 0.0, 0.5, 2.0])
    W = np.zeros((8, x.shape[1]))
    W[:, :4] = -1_000.0  # so far down that its exponential is exactly zero
    W[np.arange(4), np.arange(4)], W[np.arange(4) + 4, np.arange(4)] = logit, 0.0
    grad, hessian = reference.head_derivatives(W, x, y)
    pi, p = np.bincount(y) / len(y), 1.0 / (1.0 + np.exp(-logit))
    mean_norm, sq_norm = np.linalg.norm(class_average(x, y), axis=1), class_average((x**2).sum(axis=1), y)
    rows = theory.assignment_prediction(pi, p, mean_norm, sq_norm)
    np.testing.assert_allclose(rows.grad_norm, np.linalg.norm(grad[:4], axis=1), rtol=1e-12)
    np.testing.assert_allclose(rows.trace, np.einsum("kdkd->k", hessian)[:4], rtol=1e-12)
    np.testing.assert_allclose(rows.ratio, mean_norm / (p * sq_norm), rtol=1e-12)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.0, 3.0))
def test_eq2_error_bound(seed: int, scale: float) -> None:
    """For any weights, gradient norm and trace differ from eq. 2 by at most R e_k and R^2 e_k.

    R is the largest ||x||, and e_k = off_k + pi_k spread_k: the mean probability that samples of other classes give
    class k, and the mean deviation of p_ik within class k (p(1-p) has slope at most 1).
    """
    x, y = problem(seed)
    W = np.random.default_rng(seed).normal(0.0, scale, (5, 4))
    grad, hessian = reference.head_derivatives(W, x, y)
    p = np.exp(x @ W.T - (x @ W.T).max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    pi, sq_norm = np.bincount(y) / len(y), (x**2).sum(axis=1)
    p_correct = np.diag(class_average(p, y))
    predicted = theory.assignment_prediction(
        pi, p_correct, np.linalg.norm(class_average(x, y), axis=1), class_average(sq_norm, y)
    )
    off_mass = np.where(y[:, None] == np.arange(5), 0.0, p).mean(axis=0)
    spread = np.diag(class_average(np.abs(p - p_correct), y))
    slack, radius = off_mass + pi * spread, np.sqrt(sq_norm.max())
    grad_error = np.abs(np.linalg.norm(grad, axis=1) - predicted.grad_norm)
    trace_error = np.abs(np.einsum("kdkd->k", hessian) - predicted.trace)
    assert (grad_error <= radius * slack + 1e-12).all()
    assert (trace_error <= radius**2 * slack + 1e-12).all()


def test_ratio_without_curvature_is_not_a_number() -> None:
    """A class that is certain has neither gradient nor curvature; its ratio is NaN, without a warning."""
    assert np.isnan(theory.assignment_prediction([0.5], [1.0], 1.0, 1.0).ratio).all()


# --- Erratum 1, frequencies, errors ---


def test_class_count_of_the_synthetic_data() -> None:
    """Groups as defined give 2^m - 1 classes; the printed 2^(m+1) - 1 does not fit n = m 2^m (erratum 1)."""
    defined, printed = reference.heavy_tail_labels(11), reference.heavy_tail_labels(12)
    assert (len(defined), len(set(defined))) == (22_528, 2_047)
    assert (len(printed), len(set(printed))) == (49_152, 4_095)


def test_zipf() -> None:
    """Frequencies sum to one and fall as rank^-exponent."""
    pi = theory.zipf(1000, 1.5)
    assert pi.sum() == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(pi[0] / pi, np.arange(1.0, 1001.0) ** 1.5, rtol=1e-12)
    np.testing.assert_allclose(theory.zipf(4, 0.0), 0.25)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.gradient_flow_loss(1.0, 0.1, 1), "c: expected numbers finite and >= 2, got 1.0"),
        (lambda: theory.gradient_flow_loss(1.0, 0.0, 10), "pi: expected numbers in (0, 1], got 0.0"),
        (lambda: theory.gradient_flow_loss(1.0, [0.1, 1.5], 10), "pi: expected numbers in (0, 1], got 1.5"),
        (lambda: theory.gradient_flow_loss([0.0, -1.0], 0.1, 10), "t: expected numbers finite and >= 0, got -1.0"),
        (lambda: theory.gradient_flow_loss(np.nan, 0.1, 10), "t: expected numbers finite and >= 0, got nan"),
        (lambda: theory.sign_flow_loss(np.inf, 10), "t: expected numbers finite and >= 0, got inf"),
        (lambda: theory.sign_flow_loss_printed(1.0, np.nan), "c: expected numbers finite and >= 2, got nan"),
        (lambda: theory.sign_flow_loss("soon", 10), "t: expected numbers finite and >= 0, got 'soon'"),
        (lambda: theory.gradient_flow_time(2.4, 0.1, [10, 12]), "loss: expected numbers in (0, log c], got 2.4"),
        (lambda: theory.sign_flow_time(0.0, 10), "loss: expected numbers in (0, log c], got 0.0"),
        (lambda: theory.zipf(1), "c: expected an integer >= 2, got 1"),
        (lambda: theory.zipf(2.5), "c: expected an integer >= 2, got 2.5"),
        (lambda: theory.quadratic_gd([0.5], -1.0, 3), "lr: expected numbers finite and >= 0, got -1.0"),
        (lambda: theory.quadratic_trajectory([0.5], "adm", 0.1, 3), "did you mean 'adam'"),
        (lambda: theory.quadratic_trajectory([0.5], "adam", 0.1, 3, beta2=1.0), "beta2: expected numbers in [0, 1)"),
        (lambda: theory.quadratic_trajectory([0.5], "gd", 0.1, -1), "steps: expected an integer >= 0"),
        (lambda: theory.init_gradient(np.ones((2, 3)), [0.5, 0.4]), "pi: expected a sum of 1, got 0.9"),
        (lambda: theory.init_gradient(np.ones((2, 3)), [1.0]), "pi: expected [C] for class_means [C, D]"),
        (lambda: theory.assignment_prediction([0.5], [np.nan], 1.0, 1.0), "p_correct: expected numbers in [0, 1]"),
    ],
)
def test_errors_name_the_argument(call: Callable[[], object], message: str) -> None:
    """A value out of range is a SpecError of one line: the argument, the range, the value."""
    with pytest.raises(SpecError) as error:
        call()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("pi", [0.5, 1e-200, 1e-300])
@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_adam_without_eps_is_finite(pi: float, beta1: float) -> None:
    """Without eps the path is that of any other frequency, at w = 0 and where a squared gradient underflows, too."""
    path = theory.quadratic_trajectory([pi], "adam", lr=0.25, steps=12, eps=0.0, beta1=beta1)
    assert np.isfinite(path).all()
    np.testing.assert_allclose(
        path, theory.quadratic_trajectory([1.0], "adam", lr=0.25, steps=12, eps=0.0, beta1=beta1)
    )
