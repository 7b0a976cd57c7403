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
    Sampling,
    block_trace_matrix,
    class_features,
    dominance,
    head_blocks,
    hessian_entries,
    median_other,
    sample_classes,
)
from heavytail.analysis.theory import init_prediction
from heavytail.errors import SpecError
from heavytail.probes import REGISTRY, StepView

Arrays = dict[str, NDArray]  # type: ignore[type-arg]

FIGURE_STEPS = (0, 1, 5, 10, 50, 100)  # the steps of figure 7
SAMPLINGS: dict[str, Sampling] = {"log_uniform": "log-uniform", "uniform": "uniform"}


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


@REGISTRY.register("hessian-entries", version=2)
@dataclass(frozen=True)
class HessianEntriesProbe(_AtSteps):
    """Entries of the head's Hessian for some classes and inputs, and the traces of its blocks (figs 8, 28).

    Attributes:
        classes: K, the number of classes of two samples: evenly spaced in the logarithm of the rank, and in the rank.
        inputs: J, the number of evenly spaced features.
        traced: B, the number of classes, sampled in the same two ways, whose block traces are returned.
    """

    classes: int = 40
    inputs: int = 4
    traced: int = 160

    small: ClassVar[dict[str, Any]] = {**_AtSteps.small, "classes": 3, "inputs": 2, "traced": 3}

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("classes", "inputs", "traced"):
            if getattr(self, field) < 1:
                raise SpecError(f"probe.{field}: expected at least 1, got {getattr(self, field)}")

    def measure(self, view: StepView) -> Arrays:
        """Return entries, block traces, and the dominance of the diagonal blocks.

        `log_uniform` and `uniform` [K J, K J] are entries, `log_uniform_traces` and `uniform_traces` [B, B] block
        traces Tr H_kj, all float32. `diagonal_share` and `largest_other` [C] are `dominance` of all block traces,
        `median_other` [C] is the median over j != k of |Tr H_kj| / Tr H_kk.
        """
        weight, bias = view.head.weight, view.head.bias
        D = view.head.in_features
        inputs = np.unique(np.linspace(0, D - 1, min(self.inputs, D)).astype(np.int64))
        counts = view.data.counts.numpy()
        traces = block_trace_matrix(view.pairs(), weight, bias)
        share, largest = dominance(traces)
        traces_np = traces.cpu().numpy()
        arrays = {"diagonal_share": share.cpu().numpy(), "largest_other": largest.cpu().numpy()}
        arrays["median_other"] = median_other(traces_np)
        for name, sampling in SAMPLINGS.items():
            classes = sample_classes(counts, self.classes, sampling)
            entries = hessian_entries(view.pairs(), weight, bias, classes, inputs)
            arrays[name] = entries.cpu().numpy().astype(np.float32)
            traced = sample_classes(counts, self.traced, sampling)
            arrays[f"{name}_traces"] = traces_np[np.ix_(traced, traced)].astype(np.float32)
        return arrays


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
