"""What heavytail.analysis.theory has in closed form, the long way: ODE solver, loops, autograd, 60 digits."""

from __future__ import annotations

import mpmath
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from torch.nn import functional

Array = NDArray[np.float64]


def precise_flow(t: float, pi: float, c: float) -> mpmath.mpf:
    """Loss of gradient flow as the paper writes it, with Lambert's W, in 60-digit arithmetic."""
    with mpmath.workdps(60):
        t, pi, c = mpmath.mpf(float(t)), mpmath.mpf(float(pi)), mpmath.mpf(float(c))
        f, z = 1 + c * pi * t, c - 1
        a = (f - z * mpmath.lambertw(mpmath.exp(f / z) / z).real) / c
        b = -a / z
        return mpmath.log1p(z * mpmath.exp(c * b))


def softmax_gradient(W: Array, pi: Array) -> Array:
    """Gradient in W [C, C] of the loss over samples x = e_k of class k, frequency pi_k, by loops."""
    grad = np.zeros_like(W)
    for k in range(len(pi)):
        logits = W[:, k]
        p = np.exp(logits - logits.max())
        p /= p.sum()
        for j in range(len(pi)):
            grad[j, k] = pi[k] * (p[j] - (1.0 if j == k else 0.0))
    return grad


def class_losses(W: Array) -> Array:
    """Loss of each class in the same setting [C]."""
    losses = np.empty(len(W))
    for k in range(len(W)):
        # The right class's own 1 is kept apart, so that small losses keep their digits.
        losses[k] = np.log1p(sum(np.exp(W[j, k] - W[k, k]) for j in range(len(W)) if j != k))
    return losses


def gradient_flow(pi: Array, times: Array) -> Array:
    """W(t) at the given times [T, C, C] by integrating all C x C entries of dW/dt = -grad from zero."""
    c = len(pi)

    def velocity(_: float, flat: Array) -> Array:
        return -softmax_gradient(flat.reshape(c, c), pi).ravel()

    solution = solve_ivp(
        velocity, (0.0, times[-1]), np.zeros(c * c), method="DOP853", t_eval=times, rtol=1e-12, atol=1e-13
    )
    assert solution.success
    return solution.y.T.reshape(-1, c, c)


def descend(pi: Array, lr: float, steps: int, sign: bool = False) -> Array:
    """Losses of every class [T+1, C] along gradient descent, or sign descent, from W = 0."""
    W = np.zeros((len(pi), len(pi)))
    losses = [class_losses(W)]
    for _ in range(steps):
        grad = softmax_gradient(W, pi)
        W = W - lr * (np.sign(grad) if sign else grad)
        losses.append(class_losses(W))
    return np.array(losses)


def torch_adam_quadratic(pi: Array, lr: float, steps: int, beta1: float, beta2: float, eps: float) -> Array:
    """Iterates [T+1, C] of torch.optim.Adam on sum_k pi_k w_k^2 / 2 from w = 1, in float64."""
    w = torch.ones(len(pi), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([w], lr=lr, betas=(beta1, beta2), eps=eps)
    path = [w.detach().numpy().copy()]
    for _ in range(steps):
        optimizer.zero_grad()
        (torch.from_numpy(pi) * w**2 / 2).sum().backward()
        optimizer.step()
        path.append(w.detach().numpy().copy())
    return np.array(path)


def head_loss(W: Array, x: Array, y: NDArray[np.int64]) -> float:
    """Mean cross-entropy of softmax regression with weights W [C, D] on x [N, D], y [N]."""
    return float(functional.cross_entropy(torch.from_numpy(x @ W.T), torch.from_numpy(y)))


def head_derivatives(W: Array, x: Array, y: NDArray[np.int64]) -> tuple[Array, Array]:
    """Gradient [C, D] and Hessian [C, D, C, D] of that loss by automatic differentiation."""
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y)

    def loss(weights: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(inputs @ weights.T, targets)

    weights = torch.from_numpy(W).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(weights), weights)
    # Reverse mode twice: torch's forward mode warns of a deprecation of its own.
    hessian = torch.autograd.functional.hessian(loss, weights)
    return gradient.numpy(), hessian.numpy()


def heavy_tail_labels(m: int) -> list[int]:
    """Labels of the random heavy-tailed data: group g = 0..m-1 has 2^g classes of 2^(m-g) samples."""
    labels, label = [], 0
    for group in range(m):
        for _ in range(2**group):
            labels += [label] * 2 ** (m - group)
            label += 1
    return labels
