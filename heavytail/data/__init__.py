"""Data sets: a recipe per name, and the type that all of them return.

N samples, C classes, L sequence. A data set whose inputs fit in memory is two tensors; one that must be decoded or
streamed (images, token files) subclasses Split and overrides `batches`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from heavytail.errors import DataError
from heavytail.experiment.registry import Registry
from heavytail.metrics import FrequencyGroups

if TYPE_CHECKING:  # torch takes over a second to import, and the audit reads files alone
    import torch
    from torch import Tensor


class Batch(NamedTuple):
    """Inputs [B, ...] and targets [B] or [B, L] int64."""

    inputs: Tensor
    targets: Tensor


@dataclass
class Split:
    """One part of a data set, held in memory: inputs [N, ...] and targets [N] or [N, L] int64."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def augmented(self) -> bool:
        """Whether a training pass transforms samples at random; evaluation never does."""
        return False

    def batches(self, chunks: Iterable[slice | Tensor], *, seeds: Iterable[int] | None = None) -> Iterator[Batch]:
        """Yield the samples of each chunk of indices, in order.

        A split that decodes its samples takes chunks before they are due. Only one pass may be open at a time: end or
        drop it before beginning another.

        Args:
            chunks: slices, or index tensors [B].
            seeds: of the random transforms in training, one per chunk, if the split has any; None for the deterministic
                transform of evaluation.
        """
        for chunk in chunks:
            yield Batch(self.inputs[chunk], self.targets[chunk])

    def to(self, device: torch.device, dtype: torch.dtype) -> Split:
        """Return the split on a device; floating-point inputs take `dtype`, token indices stay integers."""
        inputs = self.inputs.to(device, dtype if self.inputs.is_floating_point() else None)
        return Split(inputs, self.targets.to(device))


@dataclass
class Data:
    """A data set ready to train on.

    Attributes:
        train, test: the splits; test is None where the paper has none.
        num_classes: C, whether or not every class occurs.
        natural_groups: [C] group of each class where the data define groups themselves, else None.
        info: facts that `str` prints: the source, the number of types, of unreadable files, ...
    """

    train: Split
    test: Split | None
    num_classes: int
    natural_groups: Tensor | None = None
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        import torch

        for name, split in (("train", self.train), ("test", self.test)):
            if split is None:
                continue
            targets = split.targets
            if len(split) == 0:
                raise DataError(f"{name} split: expected at least one sample, got none")
            if targets.dtype != torch.int64:
                raise DataError(f"{name} targets: expected int64 class numbers, got {targets.dtype}")
            low, high = int(targets.min()), int(targets.max())
            if low < 0 or high >= self.num_classes:
                raise DataError(f"{name} targets: expected 0..{self.num_classes - 1}, got {low}..{high}")

    def __str__(self) -> str:
        """Return one line: the number of training samples, of classes, and `info`."""
        facts = [
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self.info.items()
        ]
        return ", ".join([f"{len(self.train)} training samples", f"{self.num_classes} classes", *facts])

    @cached_property
    def counts(self) -> Tensor:
        """Number of training targets of each class, [C] int64."""
        import torch

        return torch.bincount(self.train.targets.flatten(), minlength=self.num_classes)

    def groups(self, num_groups: int = 10) -> FrequencyGroups:
        """Return the frequency groups of the training targets: the natural ones, or about 1/num_groups each."""
        counts = self.counts.numpy()
        if self.natural_groups is not None:
            return FrequencyGroups.from_index(self.natural_groups.numpy(), counts)
        return FrequencyGroups.from_counts(counts, num_groups)


class Nominal(NamedTuple):
    """The sizes of a data set, without loading it: data of one sample, and the numbers of train and test samples."""

    data: Data
    train: int
    test: int


class DataRecipe(Protocol):
    """What every recipe in this folder has; a recipe that reads files may also have `nominal() -> Nominal`.

    Attributes:
        small: settings for the contract tests, with which the data load in milliseconds; a `path` is relative to
            tests/fixtures/data.
    """

    small: ClassVar[dict[str, Any]]

    @property
    def title(self) -> str:
        """Name of the data set in figures; a class variable where it does not depend on the settings."""

    def load(self, *, seed: int, data_dir: Path) -> Data:
        """Return the data; the same seed always gives the same data."""


REGISTRY: Registry[DataRecipe] = Registry("data", __name__)
