"""What a training step minimises: softmax cross-entropy, each class weighted by how rare it is.

The loss over M predictions with classes y_i is sum_i w_{y_i} l_i / sum_i w_{y_i} (fig. 22), so that the
step size keeps its meaning whatever the weights' scale. What is recorded and plotted is always the unweighted loss.
Shapes: C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from heavytail.errors import DataError
from heavytail.experiment.registry import Registry


class LossRecipe(Protocol):
    """What every recipe of this kind has."""

    def class_weights(self, counts: Tensor) -> Tensor | None:
        """Return the weight of each class, [C] float64, or None if all weigh the same."""


REGISTRY: Registry[LossRecipe] = Registry("loss", __name__)


@REGISTRY.register("cross-entropy")
@dataclass(frozen=True)
class CrossEntropy:
    """Softmax cross-entropy in nats.

    Attributes:
        weights: "none" for the plain mean, "inverse" for w_k = 1/pi_k (every class counts the same) and
            "inverse-sqrt" for w_k = 1/sqrt(pi_k) (half-way), with pi_k the share of class k in the training targets.
    """

    weights: Literal["none", "inverse", "inverse-sqrt"] = "none"

    def class_weights(self, counts: Tensor) -> Tensor | None:
        """Return w [C] float64 from the training counts [C] int64, or None without weighting.

        A class that never occurs has no frequency to invert: its weight is 0 (the paper's release gets infinity).

        Raises:
            DataError: the counts are not one non-negative number a class, or all are 0.

        >>> CrossEntropy("inverse").class_weights(torch.tensor([6, 2, 0])).tolist()
        [1.3333333333333333, 4.0, 0.0]
        """
        if counts.ndim != 1 or bool((counts < 0).any()) or not bool((counts > 0).any()):
            raise DataError(f"counts: expected one number >= 0 a class, not all 0, got {counts.tolist()}")
        if self.weights == "none":
            return None
        inverse = torch.where(counts > 0, counts.sum() / counts.clamp(min=1).double(), 0.0)
        return inverse if self.weights == "inverse" else inverse.sqrt()
