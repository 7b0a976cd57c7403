"""Probes: additional measurements at chosen steps of a run, which never change its trajectory.

A probe is a recipe with `steps(total)` and `measure(view)`. The engine calls `measure` at W_t in eval mode, without
gradients, and restores torch's generators afterwards, so that a run with a probe equals the run without it, bit for
bit. `total` may only cut off the steps, not change them: a run may be read at fewer steps than it has.

Shapes: C classes, D features, M predictions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from numpy.typing import NDArray
from torch import Tensor, nn

from heavytail.data import Data
from heavytail.experiment.registry import Registry


@dataclass(frozen=True)
class StepView:
    """The state of a run at one step, as probes read it.

    Attributes:
        step: t; the model holds W_t.
        model: the model, in eval mode.
        data: the data set, with its training counts and groups.
        pairs: iterates over (features [m, D], targets [m]) of the whole training split, once per call.
    """

    step: int
    model: nn.Module
    data: Data
    pairs: ViewPairs

    @property
    def head(self) -> nn.Linear:
        """The classifier, D -> C."""
        head = self.model.head
        assert isinstance(head, nn.Linear)
        return head


class ViewPairs(Protocol):
    """A call yields the head's inputs and targets on the training split, chunk by chunk."""

    def __call__(self) -> Iterator[tuple[Tensor, Tensor]]: ...


class Probe(Protocol):
    """Interface of probes.

    Attributes:
        small: settings for the contract tests, which have a run of 10 steps, 7 classes and 32 features.
    """

    small: ClassVar[dict[str, Any]]

    def steps(self, total: int) -> Iterable[int]:
        """Return the steps to measure at, for a run of `total` steps."""

    def measure(self, view: StepView) -> dict[str, NDArray]:  # type: ignore[type-arg]
        """Return named arrays; the same names and shapes at every step."""


REGISTRY: Registry[Probe] = Registry("probe", __name__)
