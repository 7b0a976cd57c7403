"""Adam in rotated coordinates: which axes of the head its balance between classes depends on (arXiv 2410.08198)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from heavytail.experiment.registry import Component
from heavytail.optim import REGISTRY
from heavytail.optim.by_role import Part, assign
from heavytail.optim.directions import along, check_groups, check_step_size, evaluated

_AXES = {"class": 0, "feature": 1}


@lru_cache(maxsize=8)
def rotation(size: int, seed: int) -> Tensor:
    """Return a random orthogonal matrix [size, size], float64, uniformly distributed."""
    normal = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    q, r = torch.linalg.qr(normal)
    orthogonal: Tensor = q * r.diagonal().sign()
    return orthogonal


class RotatedAdam(torch.optim.Adam):
    """Adam on the coordinates Q x, where Q mixes the entries of x along one axis: x = x - lr Q' adam(Q g).

    Args:
        params: parameters, or groups of them; those without the axis are trained by plain Adam.
        lr: step size.
        axis: 0 mixes rows (classes), 1 columns (features).
        seed: of Q.
        settings: of Adam.
    """

    def __init__(self, params: Any, lr: float, *, axis: int = 0, seed: int = 0, **settings: Any) -> None:
        super().__init__(params, lr=lr, fused=True, **settings)
        self.axis, self.seed = axis, seed

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step; gradients are as before afterwards."""
        loss = evaluated(closure)
        turned: list[tuple[Parameter, Tensor, Tensor, Tensor]] = []
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.ndim > self.axis:
                    q = rotation(p.shape[self.axis], self.seed).to(p)
                    turned.append((p, p.clone(), p.grad, q))
                    p.grad = along(self.axis, q, p.grad).contiguous()
                    p.zero_()  # the step depends on gradients only, so that it can be turned back alone
        super().step()
        for p, before, grad, q in turned:
            p.copy_(before + along(self.axis, q.T, p))
            p.grad = grad
        return loss


@REGISTRY.register("rotated-adam")
@dataclass(frozen=True)
class RotatedAdamRecipe:
    """Adam with one axis of the head rotated at random; the other parameters are trained by Adam.

    Attributes:
        axis: "class" mixes the rows of the head, biases included; "feature" its columns.
        beta1, beta2, eps: of Adam.
        seed: of the rotation.
    """

    axis: Literal["class", "feature"] = "class"
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    seed: int = 0

    small: ClassVar[dict[str, Any]] = {"seed": 1}

    def __post_init__(self) -> None:
        self._adam()  # checks its settings

    def build(self, params: Iterable[Parameter], lr: float) -> Optimizer:
        """Return the optimizer of parameters without a model, all of them the head's."""
        check_step_size(lr)
        settings: Any = {"axis": _AXES[self.axis], "seed": self.seed, "betas": (self.beta1, self.beta2)}
        return check_groups(RotatedAdam(params, lr, eps=self.eps, **settings))

    def build_for(self, model: nn.Module, lr: float) -> Optimizer:
        """Return the optimizer of a model."""
        return assign(model, {"head": Part(self)}, Part(self._adam()), lr)

    def _adam(self) -> Any:
        """The recipe of Adam with these settings."""
        return REGISTRY.make(Component("adam", {"beta1": self.beta1, "beta2": self.beta2, "eps": self.eps}))
