"""Probes of the head along a run: gradient and Hessian blocks, entries of the Hessian, terms of proposition 2.

All are measured over the whole training split, at steps `at` and at every multiple of `every`.

Shapes: C classes, D features, K chosen classes, J chosen inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heavytail.analysis.curvature import (
    block_trace_matrix,
    class_features,
    dominance,
    head_blocks,
    hessian_entries,
    sample_classes,
)
from heavytail.analysis.theory import init_prediction
from heavytail.errors import SpecError
from heavytail.probes import REGISTRY, StepView

Arrays = dict[str, NDArray]  # type: ignore[type-arg]

FIGURE_STEPS = (0, 1, 5, 10, 50, 100)  # the steps of figure 7


@dataclass(frozen=True)
class _AtSteps:
    """The steps to measure at.

    Attributes:
        at: single steps; those after the end of the run are not measured.
        every: also measure at every multiple of this number of steps; 0 adds none.
    """

    at: tuple[int, ...] = FIGURE_STEPS
    every: int = 0

    small: ClassVar[dict[str, Any]] = {"at": [0, 1], "every": 4}

    def __post_init__(self) -> None:
        if self.every < 0 or min(self.at, default=0) < 0 or not (self.at or self.every):
            raise SpecError(f"probe.at, probe.every: expected steps from 0 on, got {self.at} and {self.every}")

    def steps(self, total: int) -> list[int]:
        """Return the steps to measure at, ascending."""
        multiples = range(0, total + 1, self.every) if self.every else ()
        return sorted({step for step in (*self.at, *multiples) if step <= total})


@REGISTRY.register("head-blocks", version=2)
@dataclass(frozen=True)
class HeadBlocksProbe(_AtSteps):
    """`HeadBlocks` at weights `scale` W_t, [C] each (figs 7, 23-26).

    Attributes:
        scale: factor of the head's weights and biases: 1 for the run's own, -1 for their mirror image (fig 27).
        include_bias: whether a class's block includes its bias.
    """

    scale: float = 1.0
    include_bias: bool = False

    def measure(self, view: StepView) -> Arrays:
        """Return grad_norm, trace, p_correct, p_spread, p_mean [C]."""
        weight, bias = _scaled(view, self.scale)
        blocks = head_blocks(view.pairs(), weight, bias, include_bias=self.include_bias)
        names = ("grad_norm", "trace", "p_correct", "p_spread", "p_mean")
        return {name: getattr(blocks, name).cpu().numpy() for name in names}


@REGISTRY.register("mirrored-head-blocks", version=2)
@dataclass(frozen=True)
class MirroredHeadBlocksProbe(HeadBlocksProbe):
    """Head blocks along -W_t, at which nothing is learned (fig 27)."""

    scale: float = -1.0


@REGISTRY.register("hessian-entries")
@dataclass(frozen=True)
class HessianEntriesProbe(_AtSteps):
    """Entries of the head's Hessian for some classes and inputs, and the dominance of its diagonal blocks (figs 8, 28).

    Attributes:
        classes: K, the number of classes of two samples: evenly spaced in the logarithm of the rank, and in the rank.
        inputs: J, the number of evenly spaced features.
    """

    classes: int = 40
    inputs: int = 4

    small: ClassVar[dict[str, Any]] = {**_AtSteps.small, "classes": 3, "inputs": 2}

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("classes", "inputs"):
            if getattr(self, field) < 1:
                raise SpecError(f"probe.{field}: expected at least 1, got {getattr(self, field)}")

    def measure(self, view: StepView) -> Arrays:
        """Return `log_uniform` and `uniform` [K J, K J] float32, `diagonal_share` and `largest_other` [C].

        The last two are `dominance` of the matrix of block traces.
        """
        weight, bias = view.head.weight, view.head.bias
        D = view.head.in_features
        inputs = np.unique(np.linspace(0, D - 1, min(self.inputs, D)).astype(np.int64))
        counts = view.data.counts.numpy()
        arrays = {}
        for name, sampling in (("log_uniform", "log-uniform"), ("uniform", "uniform")):
            classes = sample_classes(counts, self.classes, sampling)  # type: ignore[arg-type]
            entries = hessian_entries(view.pairs(), weight, bias, classes, inputs)
            arrays[name] = entries.cpu().numpy().astype(np.float32)
        share, largest = dominance(block_trace_matrix(view.pairs(), weight, bias))
        return {**arrays, "diagonal_share": share.cpu().numpy(), "largest_other": largest.cpu().numpy()}


@REGISTRY.register("proposition-2")
@dataclass(frozen=True)
class PropositionTwoProbe(_AtSteps):
    """The terms of eq. 1 and eq. 2, and the blocks at W = 0 in float64 to compare with eq. 1."""

    def measure(self, view: StepView) -> Arrays:
        """Return moments of the classes' features, and eq. 1 with the measurements that it predicts.

        mean_norm [C] is ||xbar^k||, sq_norm [C] the class's mean of ||x||^2, radius [] the largest ||x||; predicted_
        and zero_ grad_norm and trace [C] are those of W = 0, without bias.
        """
        C = view.head.out_features
        moments = class_features(view.pairs(), C)
        pi = (moments.count / moments.count.sum()).cpu().numpy()
        predicted = init_prediction(moments.mean.cpu().numpy(), pi, moments.mean_sq_norm)
        zero = torch.zeros_like(view.head.weight, dtype=torch.float64)
        blocks = head_blocks(_doubled(view), zero)
        return {
            "mean_norm": torch.linalg.vector_norm(moments.mean, dim=1).cpu().numpy(),
            "sq_norm": moments.sq_norm.cpu().numpy(),
            "radius": np.float64(moments.radius),
            "predicted_grad_norm": predicted.grad_norm,
            "predicted_trace": predicted.trace,
            "zero_grad_norm": blocks.grad_norm.cpu().numpy(),
            "zero_trace": blocks.trace.cpu().numpy(),
        }


def _scaled(view: StepView, scale: float) -> tuple[Tensor, Tensor | None]:
    """The head's weights and biases, times `scale`."""
    weight, bias = view.head.weight, view.head.bias
    if scale == 1.0:
        return weight, bias
    return weight * scale, None if bias is None else bias * scale


def _doubled(view: StepView) -> Iterator[tuple[Tensor, Tensor]]:
    for features, targets in view.pairs():
        yield features.double(), targets
