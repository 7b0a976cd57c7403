"""PyTorch's optimizers other than Adam: AdamW, NAdam, RAdam, Adagrad, RMSprop and Adafactor.

Each recipe has the settings of the optimizer's paper, with PyTorch's defaults; tests compare updates with the papers'.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from heavytail.errors import SpecError
from heavytail.optim import REGISTRY
from heavytail.optim.directions import check_decay, check_groups, check_size, check_step_size


@dataclass(frozen=True)
class _Moments:
    """Settings of Adam and its relatives."""

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        check_decay("optim.beta1", self.beta1)
        check_decay("optim.beta2", self.beta2)
        check_size("optim.eps", self.eps)


@REGISTRY.register("adamw")
@dataclass(frozen=True)
class AdamW(_Moments):
    """Adam with decoupled weight decay: x = (1 - lr weight_decay) x before each of Adam's steps (arXiv 1711.05101)."""

    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size("optim.weight_decay", self.weight_decay)

    def build(self, params: Iterable[Parameter], lr: float) -> Optimizer:
        """Return the optimizer of these parameters with step size `lr`."""
        check_step_size(lr)
        betas, decay = (self.beta1, self.beta2), self.weight_decay
        # The fused kernel is the fastest on a CPU, as for Adam.
        return check_groups(torch.optim.AdamW(params, lr=lr, betas=betas, eps=self.eps, weight_decay=decay, fused=True))


@REGISTRY.register("nadam")
@dataclass(frozen=True)
class NAdam(_Moments):
    """Adam with Nesterov's momentum (Dozat 2016); the momentum warms up as beta1 (1 - 0.96^(t momentum_decay) / 2)."""

    momentum_decay: float = 0.004

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size("optim.momentum_decay", self.momentum_decay)

    def build(self, params: Iterable[Parameter], lr: float) -> Optimizer:
        """Return the optimizer of these parameters with step size `lr`."""
        check_step_size(lr)
        betas, decay = (self.beta1, self.beta2), self.momentum_decay
        return check_groups(torch.optim.NAdam(params, lr=lr, betas=betas, eps=self.eps, momentum_decay=decay))


@REGISTRY.register("radam")
@dataclass(frozen=True)
class RAdam(_Moments):
    """Adam that steps along the plain momentum until the variance of its scale is small (arXiv 1908.03265).

    PyTorch starts to scale at rho_t > 5 (the length of the average), the paper's algorithm at rho_t > 4: one step
    earlier at beta2 = 0.999.
    """

    def build(self, params: Iterable[Parameter], lr: float) -> Optimizer:
        """Return the optimizer of these parameters with step size `lr`."""
        check_step_size(lr)
        return check_groups(torch.optim.RAdam(params, lr=lr, betas=(self.beta1, self.beta2), eps=self.eps))


@REGISTRY.register("adagrad")
@dataclass(frozen=True)
class Adagrad:
    """Each entry's step divided by the root of the sum of its squared gradients so far (Duchi et al. 2011)."""

    eps: float = 1e-10

    def __post_init__(self) -> None:
        check_size("optim.eps", self.eps)

    def build(self, params: Iterable[Parameter], lr: float) -> Optimizer:
        """Return the optimizer of these parameters with step size `lr`."""
        check_step_size(lr)
        return check_groups(torch.optim.Adagrad(params, lr=lr, eps=self.eps))


@REGISTRY.register("rmsprop")
@dataclass(frozen=True)
class RMSprop:
    """Each entry's step divided by the root of a running average of its squared gradients (Tieleman and Hinton 2012).

    Attributes:
        alpha: decay of the average, which starts at zero without bias correction.
        momentum: heavy-ball momentum of the divided gradients.
        eps: added to the root.
    """

    alpha: float = 0.99
    momentum: float = 0.0
    eps: float = 1e-8

    def __post_init__(self) -> None:
        check_decay("optim.alpha", self.alpha)
        check_decay("optim.momentum", self.momentum)
        check_size("optim.eps", self.eps)

    def build(self, params: Iterable[Parameter], lr: float) -> Optimizer:
        """Return the optimizer of these parameters with step size `lr`."""
        check_step_size(lr)
        alpha, momentum, eps = self.alpha, self.momentum, self.eps
        return check_groups(torch.optim.RMSprop(params, lr=lr, alpha=alpha, momentum=momentum, eps=eps))


@REGISTRY.register("adafactor")
@dataclass(frozen=True)
class Adafactor:
    """Adam with the squared gradients of a matrix factored into sums of rows and columns (arXiv 1804.04235).

    The step is relative: min(lr, 1/sqrt(t)) max(eps, RMS(x)), with the update's RMS clipped at `clip`.

    Attributes:
        beta2_decay: the average of step t decays by 1 - t^beta2_decay; in [-1, 0].
        eps: smallest scale of a parameter.
        clip: largest RMS of an update before scaling.
    """

    beta2_decay: float = -0.8
    eps: float = 1e-3
    clip: float = 1.0

    def __post_init__(self) -> None:
        if not -1 <= self.beta2_decay <= 0:
            raise SpecError(f"optim.beta2_decay: expected a number in [-1, 0], got {self.beta2_decay!r}")
        check_size("optim.eps", self.eps)
        if not (math.isfinite(self.clip) and self.clip >= 1):
            raise SpecError(f"optim.clip: expected a finite number >= 1, got {self.clip!r}")

    def build(self, params: Iterable[Parameter], lr: float) -> Optimizer:
        """Return the optimizer of these parameters with step size `lr`."""
        check_step_size(lr)
        decay, eps = self.beta2_decay, (None, self.eps)
        return check_groups(torch.optim.Adafactor(params, lr=lr, beta2_decay=decay, eps=eps, d=self.clip))
