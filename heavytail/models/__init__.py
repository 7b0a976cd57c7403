"""Models: a recipe per name. Each model is a body followed by a linear head.

A model is a plain nn.Module with a method `features(inputs) -> [M, D]` and an attribute `head: nn.Linear` (D -> C), so
that everything measured about the head works for every model. M = B for one label a sample, B*L for sequences.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from heavytail.experiment.registry import Registry

if TYPE_CHECKING:
    from heavytail.data import Data


class HeadedModel(Protocol):
    """A body and a linear head."""

    head: nn.Linear

    def features(self, inputs: Tensor) -> Tensor:
        """Return what the head sees, [M, D]."""


class ModelRecipe(Protocol):
    """What every recipe in this folder has.

    Attributes:
        inputs: what the model reads: vectors [N, D], images [N, channels, height, width] or tokens [N, L].
        small: settings with which it trains in milliseconds; the contract tests use them, on images of 8 x 8 pixels.
    """

    inputs: ClassVar[Literal["vectors", "images", "tokens"]]
    small: ClassVar[dict[str, Any]]

    def build(self, data: Data) -> nn.Module:
        """Return the model for these data, its parameters drawn from torch's global generator."""


REGISTRY: Registry[ModelRecipe] = Registry("model", __name__)


def convolution_layout(channels: Iterable[int]) -> torch.memory_format:
    """Return the memory format of a convolutional body whose layers have so many output channels.

    Channels last is the layout that convolution kernels work in: a tenth faster on one CPU core, and the one that GPUs
    want. Below 8 channels the AVX2 kernels of oneDNN 3.12 (PyTorch 2.13) write past the end of a buffer in it: see
    docs/log.md, 2026-11-25.
    """
    return torch.channels_last if min(channels) >= 8 else torch.contiguous_format
