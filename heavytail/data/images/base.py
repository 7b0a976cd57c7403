"""Base classes of colour image data sets: images are stored as bytes and converted to floating point batch by batch.

B batch, N samples, S pixels a side. Inputs are [B, 3, S, S]; the whole set in floating point might not fit in
memory, so a split's `inputs` is a tensor on the device "meta", which has a shape and no storage.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import starmap
from typing import Self

import numpy as np
import torch
from torch import Tensor

from heavytail.data import Batch, Data, Nominal, Split
from heavytail.data.images.subset import Subset, subset_sizes
from heavytail.data.images.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    crop_pixels,
    image_uniforms,
    normalise,
    random_crops,
)
from heavytail.errors import SpecError

Seeded = tuple[slice | Tensor, int | None]  # the indices of a chunk, and the seed of its random transforms


@dataclass(frozen=True, kw_only=True)
class ImageRecipe:
    """The settings that image data sets have in common.

    Attributes:
        subset: which training images: all, `per_class` of each class, or heavy-tailed (see
            heavytail.data.images.subset).
        per_class: images of each class in the balanced subset.
        largest: images of the most frequent class in the heavy-tailed subset; all of its images if None.
        size: pixels a side, S.
        augment: train on random resized crops and mirror images; validation never does.
        mean, std: of the three colours, in 0..1, subtracted from and divided into the pixels.
    """

    subset: Subset = "all"
    per_class: int = 10
    largest: int | None = None
    size: int = 224
    augment: bool = True
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        for name in ("per_class", "largest", "size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SpecError(f"data.{name}: expected at least 1, got {value}")
        for name in ("mean", "std"):
            if len(getattr(self, name)) != 3:
                raise SpecError(f"data.{name}: expected three numbers (red, green, blue), got {getattr(self, name)}")
        if min(self.std) <= 0:
            raise SpecError(f"data.std: expected positive numbers, got {self.std}")

    @property
    def revision(self) -> int:
        """Version of augmented data; in version 0 the training split was evaluated on random crops."""
        return int(self.augment)

    def _nominal(self, counts: Sequence[int], test: int) -> Nominal:
        """Return the sizes of the subset, without loading it, from the images of each class [C] and of validation."""
        sizes = subset_sizes(counts, self.subset, per_class=self.per_class, largest=self.largest)
        inputs = torch.empty(1, 3, self.size, self.size, device="meta")  # as in ImageSplit
        stand_in = Split(inputs, torch.zeros(1, dtype=torch.int64))
        return Nominal(Data(stand_in, None, len(counts)), int(sizes.sum()), test)


@dataclass(kw_only=True)
class ImageSplit(Split, ABC):
    """Images that are decoded or converted batch by batch.

    Attributes:
        settings: size, normalisation, and whether to augment.
        seed: of the random transforms, together with the seeds given to `batches`.
        device, dtype: of the batches' inputs.
    """

    inputs: Tensor = field(init=False)
    settings: ImageRecipe
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        size = self.settings.size
        self.inputs = torch.empty(len(self), 3, size, size, dtype=self.dtype, device="meta")

    @abstractmethod
    def pixels(self, chunks: Iterable[Seeded]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the indices [B] of each chunk and its images [B, 3, S, S] in 0..255, uint8 or float32.

        Crops and mirroring are random, by the chunk's seed, or those of evaluation if it is None.
        """

    @property
    def augmented(self) -> bool:
        """Whether a training pass crops and mirrors at random."""
        return self.settings.augment

    def batches(self, chunks: Iterable[slice | Tensor], *, seeds: Iterable[int] | None = None) -> Iterator[Batch]:
        """Yield the samples of each chunk of indices, in order.

        Args:
            chunks: slices, or index tensors [B].
            seeds: of each chunk's random crops and flips; None for evaluation's transform.
        """
        seeded: Iterable[Seeded] = ((chunk, None) for chunk in chunks)
        if seeds is not None and self.augmented:
            seeded = zip(chunks, seeds, strict=True)
        return starmap(self._batch, self.pixels(seeded))  # which keeps no batch while it waits

    def _batch(self, index: Tensor, images: Tensor) -> Batch:
        inputs = normalise(images.to(self.device), self.settings.mean, self.settings.std)
        return Batch(inputs.to(self.dtype), self.targets[index.to(self.targets.device)])

    def to(self, device: torch.device, dtype: torch.dtype) -> Self:
        """Return the split with its batches on a device, their inputs in `dtype`."""
        return replace(self, targets=self.targets.to(device), device=device, dtype=dtype)


@dataclass(kw_only=True)
class MemorySplit(ImageSplit):
    """Images of the right size in memory: `images` [N, 3, S, S] uint8, cropped on the batches' device."""

    images: Tensor

    def pixels(self, chunks: Iterable[Seeded]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the indices [B] of each chunk and its images [B, 3, S, S] float32; whole ones if the seed is None."""
        size = self.settings.size
        everything = torch.arange(len(self))
        for chunk, seed in chunks:
            index = everything[chunk if isinstance(chunk, slice) else chunk.cpu()]
            if seed is None or not len(index):
                yield index, self.images[chunk].float()
                continue
            uniforms = np.stack([image_uniforms(self.seed, seed, i) for i in index.tolist()])
            boxes, flips = (torch.from_numpy(table).to(self.device) for table in random_crops(uniforms, size, size))
            yield index, crop_pixels(self.images[chunk].float(), boxes, flips)

    def to(self, device: torch.device, dtype: torch.dtype) -> Self:
        """Return the split with its images on a device and its batches' inputs in `dtype`."""
        return replace(super().to(device, dtype), images=self.images.to(device))
