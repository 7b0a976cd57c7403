"""Gradient descent, normalised gradient descent and sign descent, as direction x momentum (figs. 5, 19-21).

One update rule, heavy ball, and three directions d_t make the paper's six non-adaptive optimizers:

    m_t = beta m_{t-1} + d_t,   x_{t+1} = x_t - lr m_t,   d_t = g  |  g / ||g||_2  |  sign(g),

where ||g||_2 is over all parameters together, so that normalising changes the length of a step but not its direction.
With this momentum (PyTorch's, no 1 - beta) a constant direction moves lr/(1 - beta) per step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias, overload

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from heavytail.errors import SpecError
from heavytail.optim import REGISTRY

Gradients: TypeAlias = "list[Tensor] | tuple[Tensor, ...]"
Direction: TypeAlias = Callable[[Gradients], Gradients]


def gradient(grads: Gradients) -> Gradients:
    """Return the gradients themselves: d = g."""
    return grads


def normalized(grads: Gradients) -> Gradients:
    """Return d = g / ||g||_2 with the norm over all tensors together; a zero gradient gives a zero direction."""
    scaled = list(torch._foreach_mul(grads, _power_of_two(grads)))
    norm = get_total_norm(scaled)
    # Only an exact 0 is replaced: a NaN must stay a NaN, or a diverged run would look stationary.
    torch._foreach_div_(scaled, torch.where(norm == 0, 1.0, norm))
    return scaled


def _power_of_two(grads: Gradients) -> Tensor:
    """Return the power of two [] that brings the largest entry near 1, so that no square overflows or underflows.

    Multiplying by it does not round, and changes no bit of a direction whose squares are in range.
    """
    largest = get_total_norm(grads, math.inf)
    largest = largest.float() if largest.dtype.itemsize < 4 else largest
    mantissa, _ = torch.frexp(largest)
    tiny = max(torch.finfo(g.dtype).tiny for g in grads)
    return torch.where(largest == 0, 1.0, (mantissa / largest).clamp(tiny, 1 / tiny))


def sign(grads: Gradients) -> Gradients:
    """Return d = sign(g) entry by entry; 0 and NaN have sign 0, as in torch.sign."""
    return torch._foreach_sign(grads)


class HeavyBall(Optimizer):
    """Momentum along any direction: m = beta m + d(g), x = x - lr m.

    The norm of a gradient stays on its device, gradients are not changed, and without momentum no state is stored.

    Args:
        params: parameters, or parameter groups; each may set its own `lr` and `momentum`.
        lr: step size, positive.
        momentum: beta in [0, 1).
        direction: maps the gradients of all groups together to as many tensors of the same shapes.

    Raises:
        SpecError: `lr` or `momentum`, also of a group, is out of range; in `step`, gradients are sparse.
    """

    def __init__(
        self,
        params: Iterable[Parameter] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.0,
        direction: Direction = gradient,
    ) -> None:
        self.direction = direction
        super().__init__(params, {"lr": lr, "momentum": momentum})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; its settings are checked like the defaults."""
        settings = self.defaults | param_group
        check_step_size(settings["lr"])
        check_decay("optim.momentum", settings["momentum"])
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a copy; the base class would leave out the direction."""
        return {**super().__getstate__(), "direction": self.direction}

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step; parameters without a gradient are not changed."""
        loss = evaluated(closure)
        groups = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        grads = [p.grad for params in groups for p in params if p.grad is not None]
        if not grads:
            return loss
        check_dense(*grads)
        rest = list(self.direction(grads))
        for group, params in zip(self.param_groups, groups, strict=True):
            update, rest = rest[: len(params)], rest[len(params) :]
            if not params:
                continue
            if group["momentum"]:
                buffers = [self._buffer(p) for p in params]
                torch._foreach_mul_(buffers, group["momentum"])
                torch._foreach_add_(buffers, update)
                update = buffers
            torch._foreach_add_(params, update, alpha=-group["lr"])
        return loss

    def _buffer(self, param: Parameter) -> Tensor:
        state = self.state[param]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(param)
        buffer: Tensor = state["momentum"]
        return buffer


@dataclass(frozen=True)
class _DirectionRecipe:
    """A direction with momentum beta = `momentum`: the paper's "-m" is 0, its "+m" is 0.9."""

    momentum: float = 0.0

    small: ClassVar[dict[str, Any]] = {"momentum": 0.5}

    def __post_init__(self) -> None:
        check_decay("optim.momentum", self.momentum)

    def build(self, params: Iterable[Parameter], lr: float) -> HeavyBall:
        """Return the optimizer of these parameters with step size `lr`."""
        return HeavyBall(params, lr, self.momentum, self.direction)

    @staticmethod
    def direction(grads: Gradients) -> Gradients:
        """Return d, one tensor for each gradient."""
        raise NotImplementedError


@REGISTRY.register("gd")
@dataclass(frozen=True)
class GradientDescent(_DirectionRecipe):
    """Gradient descent; on minibatches, SGD."""

    direction = staticmethod(gradient)


@REGISTRY.register("normalized-gd")
@dataclass(frozen=True)
class NormalizedGradientDescent(_DirectionRecipe):
    """Gradient descent with steps of length `lr` (before momentum)."""

    direction = staticmethod(normalized)


@REGISTRY.register("sign")
@dataclass(frozen=True)
class SignDescent(_DirectionRecipe):
    """Sign descent: every entry moves by `lr` (before momentum)."""

    direction = staticmethod(sign)


def along(axis: int, factor: Tensor, value: Tensor) -> Tensor:
    """Return `value` multiplied along one axis, of length n, by a matrix [m, n] or by the entries of a vector [n]."""
    if factor.ndim == 1:
        return value * factor.reshape(-1, *[1] * (value.ndim - axis - 1))
    multiplied: Tensor = torch.tensordot(factor, value, dims=([1], [axis])).movedim(0, axis)
    return multiplied


def check_step_size(lr: float | Tensor) -> None:
    """Raise SpecError unless the step size is positive and finite."""
    if not (math.isfinite(lr) and lr > 0):
        raise SpecError(f"lr: expected a positive finite number, got {lr!r}")


def check_dense(*grads: Tensor) -> None:
    """Raise SpecError if a gradient is sparse."""
    if any(g.layout != torch.strided for g in grads):
        raise SpecError("optim: expected dense gradients, got sparse ones; use an embedding with sparse=False")


def check_decay(field: str, beta: float) -> None:
    """Raise SpecError unless the decay rate of an exponential average is in [0, 1)."""
    if not 0 <= beta < 1:
        raise SpecError(f"{field}: expected a number in [0, 1), got {beta!r}")


def evaluated(closure: Callable[[], float] | None) -> float | None:
    """Return the loss that the closure of a step computes together with the gradients; None without a closure."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def check_size(field: str, value: float) -> None:
    """Raise SpecError unless the setting is finite and not negative."""
    if not (math.isfinite(value) and value >= 0):
        raise SpecError(f"{field}: expected a finite number >= 0, got {value!r}")


def check_groups(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer; raise SpecError unless the step size of every parameter group is positive and finite."""
    for group in optimizer.param_groups:
        check_step_size(group["lr"])
    return optimizer
