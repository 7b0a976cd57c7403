"""Training losses: softmax cross-entropy with class weights that depend on the class frequencies.

The loss over M predictions with classes y_i is sum_i w_{y_i} l_i / sum_i w_{y_i} (fig. 22): it does not depend on the
scale of the weights, so step sizes are comparable. Histories and figures always have the unweighted loss.
Shapes: C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from heavytail.errors import DataError
from heavytail.experiment.registry import Registry


class LossRecipe(Protocol):
    """Interface of loss recipes.

    Attributes:
        small: settings for the contract tests; those that give the classes different weights.
    """

    small: ClassVar[dict[str, Any]]

    def class_weights(self, counts: Tensor) -> Tensor | None:
        """Return the weight of each class, [C] float64, or None for equal weights."""


REGISTRY: Registry[LossRecipe] = Registry("loss", __name__)


@REGISTRY.register("cross-entropy")
@dataclass(frozen=True)
class CrossEntropy:
    """Softmax cross-entropy in nats.

    Attributes:
        weights: "none" for the plain mean, "inverse" for w_k = 1/pi_k (every class has the same total weight) and
            "inverse-sqrt" for w_k = 1/sqrt(pi_k) (half-way), with pi_k the share of class k in the training targets.
    """

    weights: Literal["none", "inverse", "inverse-sqrt"] = "none"

    small: ClassVar[dict[str, Any]] = {"weights": "inverse-sqrt"}

    def class_weights(self, counts: Tensor) -> Tensor | None:
        """Return w [C] float64 from the training counts [C] int64, or None without weighting.

        The weight of a class that never occurs is 0 (in the paper's release it is infinite).

        Raises:
            DataError: the counts are not one non-negative number per class, or all are 0.

        >>> CrossEntropy("inverse").class_weights(torch.tensor([6, 2, 0])).tolist()
        [1.3333333333333333, 4.0, 0.0]
        """
        if counts.ndim != 1 or bool((counts < 0).any()) or not bool((counts > 0).any()):
            raise DataError(f"counts: expected one number >= 0 per class, not all 0, got {counts.tolist()}")
        if self.weights == "none":
            return None
        inverse = torch.where(counts > 0, counts.sum() / counts.clamp(min=1).double(), 0.0)
        return inverse if self.weights == "inverse" else inverse.sqrt()
