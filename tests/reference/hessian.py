"""Blocks, entries and traces by definition: dense Hessians of the mean loss by automatic differentiation, float64.

Shapes: C classes, D features, N samples.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def head_derivatives(
    features: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradient [C, D] and Hessian [C, D, C, D] in the weight, gradient [C] and Hessian [C, C] in the bias."""
    h = features.double()
    W = weight.detach().double()
    b = None if bias is None else bias.detach().double()

    def in_weight(W: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(h, W, b), targets)

    def in_bias(b: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(h, W, b), targets)

    of_bias = (None, None) if b is None else (torch.func.grad(in_bias)(b), _hessian(in_bias)(b))
    return torch.func.grad(in_weight)(W), _hessian(in_weight)(W), *of_bias


def _hessian(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """torch.func.hessian, with reverse mode twice: forward mode warns of something deprecated within PyTorch."""
    return torch.func.jacrev(torch.func.jacrev(function))


def block_trace_matrix(features: Tensor, weight: Tensor, bias: Tensor | None) -> np.ndarray:
    """Tr H_kj by loops over samples and pairs of classes."""
    h, W = features.double().numpy(), weight.detach().double().numpy()
    b = np.zeros(len(W)) if bias is None else bias.detach().double().numpy()
    result = np.zeros((len(W), len(W)))
    for x in h:
        z = np.exp(W @ x + b)
        p = z / z.sum()
        for k in range(len(W)):
            for j in range(len(W)):
                result[k, j] += p[k] * ((k == j) - p[j]) * (x @ x) / len(h)
    return result


def network_traces(model: torch.nn.Module, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Diagonal of the Hessian of the mean loss in every parameter, an entry at a time, by double backward."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    model.eval()
    with sdpa_kernel(SDPBackend.MATH):
        loss = F.cross_entropy(model.head(model.features(inputs)), targets.flatten())
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss, [p for _, p in named], create_graph=True)
        diagonals = {}
        for (name, parameter), gradient in zip(named, gradients, strict=True):
            flat = gradient.flatten()
            entries = [
                torch.autograd.grad(flat[i], parameter, retain_graph=True)[0].flatten()[i] for i in range(len(flat))
            ]
            diagonals[name] = torch.stack(entries).view_as(parameter).detach()
    return diagonals


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's r by its definition, a term at a time."""
    mx, my = sum(x) / len(x), sum(y) / len(y)
    xy = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return float(xy / (sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y)) ** 0.5)
