"""Gradient descent with bounded steps: global clipping, clipping by row of the head, and SCALE's normalised rows.

Row k of a weight [A, B] has the entries that lead to output k; of the head it belongs to class k. SCALE's paper writes
weights transposed and calls them columns.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from heavytail.errors import SpecError
from heavytail.experiment.registry import Component
from heavytail.optim import REGISTRY
from heavytail.optim.by_role import Part, adam, assign, beside_adam
from heavytail.optim.directions import Gradients, HeavyBall, check_decay, check_groups, check_step_size, evaluated
from heavytail.optim.roles import Role, roles

_SMALLEST_RMS = 1e-8  # of a row, as in the code of SCALE's authors


def clipped(grads: Gradients, *, bound: float) -> Gradients:
    """Return d = g min(1, bound / ||g||_2) with the norm over all tensors together."""
    norm = get_total_norm(grads)
    return torch._foreach_mul(grads, torch.where(norm > bound, bound / norm, 1.0))


def rows_clipped(grads: Gradients, *, bound: float) -> Gradients:
    """Return every row r of every tensor as r min(1, bound / ||r||_2); of a vector, every entry is a row."""
    return [_rows_clipped(g, bound) for g in grads]


def _rows_clipped(gradient: Tensor, bound: float) -> Tensor:
    rows = gradient.reshape(len(gradient), -1)
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return (rows * torch.where(norm > bound, bound / norm, 1.0)).reshape(gradient.shape)


@dataclass(frozen=True)
class _Clipped:
    """Settings of clipped gradient descent.

    Attributes:
        bound: largest norm before momentum.
        momentum: heavy-ball momentum.
    """

    bound: float = 1.0
    momentum: float = 0.9

    small: ClassVar[dict[str, Any]] = {"bound": 0.01}

    def __post_init__(self) -> None:
        check_decay("optim.momentum", self.momentum)
        if not (math.isfinite(self.bound) and self.bound > 0):
            raise SpecError(f"optim.bound: expected a positive finite number, got {self.bound!r}")


@REGISTRY.register("clipped-gd")
@dataclass(frozen=True)
class ClippedGradientDescent(_Clipped):
    """Gradient descent with the gradient's joint norm clipped at `bound`, as for language models."""

    def build(self, params: Iterable[Parameter], lr: float) -> HeavyBall:
        """Return the optimizer of these parameters with step size `lr`."""
        return HeavyBall(params, lr, self.momentum, functools.partial(clipped, bound=self.bound))


@REGISTRY.register("row-clipped-gd")
@dataclass(frozen=True)
class RowClippedGradientDescent(_Clipped):
    """Gradient descent with the norm of every row of the head's gradient clipped at `bound` (arXiv 2605.17787)."""

    def build(self, params: Iterable[Parameter], lr: float) -> HeavyBall:
        """Return the optimizer of parameters without a model, all of them the head's."""
        return HeavyBall(params, lr, self.momentum, functools.partial(rows_clipped, bound=self.bound))

    def build_for(self, model: nn.Module, lr: float) -> Optimizer:
        """Return the optimizer of a model; the parameters before the head are not clipped."""
        rest = REGISTRY.make(Component("gd", {"momentum": self.momentum}))
        return assign(model, {"head": Part(self)}, Part(rest), lr)


class RowNormalized(Optimizer):
    """Every row of a gradient, or of its average m = momentum m + (1 - momentum) g, divided by its RMS: x = x - lr d.

    Args:
        params: parameters of two or more axes, or groups of them.
        lr: step size.
        momentum: 0 for the gradients themselves, without state.
        axis: 0 normalises columns instead: those of an embedding [C, D] lead to one output each.
    """

    def __init__(self, params: Any, lr: float, momentum: float = 0.0, axis: int = 1) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "axis": axis})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step; parameters without a gradient are not changed."""
        loss = evaluated(closure)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                update = p.grad
                if group["momentum"]:
                    state = self.state[p]
                    if not state:
                        state["momentum"] = torch.zeros_like(p)
                    update = state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                rows = update.reshape(len(update), -1)
                rms = rows.square().mean(dim=group["axis"], keepdim=True).sqrt_().clamp_min_(_SMALLEST_RMS)
                p.add_((rows / rms).reshape(p.shape), alpha=-group["lr"])
        return loss


@REGISTRY.register("scale")
@dataclass(frozen=True)
class Scale:
    """SCALE: gradients with every row normalised, momentum for the head only, Adam for vectors (arXiv 2506.16659).

    Embeddings are normalised along the other axis, as in the authors' code.

    Attributes:
        momentum: of the head's average.
    """

    momentum: float = 0.9

    def __post_init__(self) -> None:
        check_decay("optim.momentum", self.momentum)

    def build(self, params: Iterable[Parameter], lr: float) -> Optimizer:
        """Return the optimizer of parameters without a model, whose matrices are all the head's."""
        check_step_size(lr)
        return beside_adam(params, _Rows.accepts, lambda matrices: _Rows(self.momentum).build(matrices, lr), lr)

    def build_for(self, model: nn.Module, lr: float) -> Optimizer:
        """Return the optimizer of a model."""
        parts: dict[Role, _Rows] = {"head": _Rows(self.momentum), "embedding": _Rows(axis=0), "hidden": _Rows()}
        having = {
            role: Part(parts[role])
            for role, own in roles(model).items()
            if role in parts and any(map(_Rows.accepts, own))
        }
        return assign(model, having, adam(), lr)


@dataclass(frozen=True)
class _Rows:
    """A part of SCALE; settings as of RowNormalized."""

    momentum: float = 0.0
    axis: int = 1

    def build(self, params: Iterable[Parameter], lr: float) -> Optimizer:
        return check_groups(RowNormalized(params, lr, self.momentum, self.axis))

    @staticmethod
    def accepts(parameter: Parameter) -> bool:
        return parameter.ndim >= 2
