"""Adam, PyTorch's own, with the paper's settings as defaults: no weight decay, no schedule.

m_t = beta1 m_{t-1} + (1 - beta1) g,   v_t = beta2 v_{t-1} + (1 - beta2) g^2,
x_{t+1} = x_t - lr (m_t / (1 - beta1^t)) / (sqrt(v_t / (1 - beta2^t)) + eps)      with t counted from 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn import Parameter

from heavytail.optim import REGISTRY
from heavytail.optim.directions import check_decay, check_groups, check_size, check_step_size


@REGISTRY.register("adam")
@dataclass(frozen=True)
class Adam:
    """Adam: the paper's "+m" is beta1 = 0.9, its "-m" is beta1 = 0."""

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    small: ClassVar[dict[str, Any]] = {}

    def __post_init__(self) -> None:
        check_decay("optim.beta1", self.beta1)
        check_decay("optim.beta2", self.beta2)
        check_size("optim.eps", self.eps)

    def build(self, params: Iterable[Parameter], lr: float) -> torch.optim.Adam:
        """Return the optimizer of these parameters with step size `lr`."""
        # The fused kernel reads and writes every tensor once: 2.5 to 3 times as fast as foreach on a CPU. After 8
        # steps the two differ in the last bit of one weight in 6 000, in float32 and in float64.
        check_step_size(lr)
        optimizer = torch.optim.Adam(params, lr=lr, betas=(self.beta1, self.beta2), eps=self.eps, fused=True)
        check_groups(optimizer)
        return optimizer
