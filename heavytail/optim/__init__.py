"""Optimizers: a recipe per name, each building a plain torch.optim.Optimizer; any other one by its import path."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Protocol

from torch.nn import Parameter
from torch.optim import Optimizer

from heavytail.experiment.registry import Registry


class OptimRecipe(Protocol):
    """Interface of optimizer recipes.

    A recipe that treats parameters differently by their role has a method `build_for(model, lr)`, too; one that trains
    only some parameters (matrices) a method `accepts(parameter)`; one that raises an error at some step sizes a method
    `refuses(lr)`. One whose optimizer comes from another distribution may have `versions`, a table of names and
    versions for a run's record.

    Attributes:
        small: settings for the contract tests, with which the optimizer keeps state between steps.
    """

    small: ClassVar[dict[str, Any]]

    def build(self, params: Iterable[Parameter], lr: float) -> Optimizer:
        """Return the optimizer of these parameters, or parameter groups, with step size `lr`."""


def _imported(path: str) -> type[Any]:
    from heavytail.optim.imported import recipe

    return recipe(path)


REGISTRY: Registry[OptimRecipe] = Registry("optim", __name__, imported=_imported)
