"""Shampoo, with diagonal preconditioners for long axes as in its authors' code (arXiv 1802.09568; decision 0012)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from heavytail.errors import SpecError
from heavytail.optim import REGISTRY
from heavytail.optim.directions import along, check_dense, check_groups, check_step_size, evaluated


class Shampoo(Optimizer):
    """Gradients of k axes, multiplied along each axis i by S_i^(-1/(2k)), where S_i = eps I + the sum of G_i G_i'.

    G_i is the gradient with axis i first and the others flattened. Of an axis longer than `largest` only the diagonal
    of S_i is kept: sums of squares. Sums of parameters in half precision are in float32.

    Args:
        params: parameters, or groups of them.
        lr: step size.
        eps: positive.
        largest: length of the longest axis with a full matrix.

    Raises:
        SpecError: in `step`, gradients are sparse.
    """

    def __init__(self, params: Any, lr: float, eps: float = 1e-6, largest: int = 768) -> None:
        super().__init__(params, {"lr": lr, "eps": eps, "largest": largest})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step; parameters without a gradient are not changed."""
        loss = evaluated(closure)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.numel():
                    check_dense(p.grad)
                    grad = p.grad.reshape(p.shape or (1,)).to(torch.promote_types(p.dtype, torch.float32))
                    update = self._preconditioned(self.state[p], grad, group)
                    p.add_(update.reshape(p.shape), alpha=-group["lr"])
        return loss

    @staticmethod
    def _preconditioned(state: dict[str, Tensor], grad: Tensor, group: dict[str, Any]) -> Tensor:
        update = grad
        for axis, size in enumerate(grad.shape):
            rows = grad.movedim(axis, 0).reshape(size, -1)
            gram = rows @ rows.T if size <= group["largest"] else rows.square().sum(dim=1)
            name = f"sum_{axis}"
            state[name] = state[name] + gram if name in state else gram
            update = along(axis, inverse_root(state[name], 2 * grad.ndim, group["eps"]), update)
        return update


def inverse_root(total: Tensor, order: int, eps: float) -> Tensor:
    """Return (eps I + S)^(-1/order) of a symmetric S [n, n] without negative eigenvalues, or of its diagonal [n]."""
    if not total.isfinite().all():  # not an error of the decomposition, nor 0 for an infinite sum: the run diverged
        return torch.full_like(total, math.nan)
    if total.ndim == 1:
        return (total + eps).pow(-1 / order)
    values, vectors = torch.linalg.eigh(total)
    # Rounding leaves eigenvalues of either sign where S has none. Their size is what is known of such directions: as 0
    # their roots would be those of eps, which magnify the rounding errors of a gradient. Singular values are alike.
    roots: Tensor = (vectors * (values.abs() + eps).pow(-1 / order)) @ vectors.mT
    return roots


@REGISTRY.register("shampoo")
@dataclass(frozen=True)
class ShampooRecipe:
    """Shampoo: gradients between inverse fourth roots of sums of G G' and G' G (arXiv 1802.09568).

    Attributes:
        eps: times the identity, the initial sums.
        largest: longest axis whose sums are a full matrix, which is decomposed at every step. Of longer ones, as those
            of a vocabulary, the diagonal is kept, as in the authors' code.
    """

    eps: float = 1e-6
    largest: int = 768

    small: ClassVar[dict[str, Any]] = {"largest": 8}

    def __post_init__(self) -> None:
        if not (math.isfinite(self.eps) and self.eps > 0):
            raise SpecError(f"optim.eps: expected a positive finite number, got {self.eps!r}")
        if self.largest < 0:
            raise SpecError(f"optim.largest: expected an integer >= 0, got {self.largest}")

    def build(self, params: Iterable[Parameter], lr: float) -> Optimizer:
        """Return the optimizer of these parameters with step size `lr`."""
        check_step_size(lr)
        return check_groups(Shampoo(params, lr, self.eps, self.largest))
