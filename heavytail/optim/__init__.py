"""Optimizers: a recipe per name, each building a plain torch.optim.Optimizer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Protocol

from torch.nn import Parameter
from torch.optim import Optimizer

from heavytail.experiment.registry import Registry


class OptimRecipe(Protocol):
    """Interface of optimizer recipes.

    Attributes:
        small: settings for the contract tests, with which the optimizer keeps state between steps.
    """

    small: ClassVar[dict[str, Any]]

    def build(self, params: Iterable[Parameter], lr: float) -> Optimizer:
        """Return the optimizer of these parameters, or parameter groups, with step size `lr`."""


REGISTRY: Registry[OptimRecipe] = Registry("optim", __name__)
