"""Models: a recipe per name. Each model is a body followed by a linear head.

A model is a plain nn.Module with a method `features(inputs) -> [M, D]` and an attribute `head: nn.Linear` (D -> C), so
that measurements of the head work for every model. M = B for one label per sample, B*L for sequences.
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
        """Return the inputs of the head, [M, D]."""


class ModelRecipe(Protocol):
    """Interface of model recipes.

    Attributes:
        inputs: kind of inputs: vectors [N, D], images [N, channels, height, width] or tokens [N, L].
        small: settings for training in milliseconds, used by the contract tests on images of 8 x 8 pixels.
    """

    inputs: ClassVar[Literal["vectors", "images", "tokens"]]
    small: ClassVar[dict[str, Any]]

    def build(self, data: Data) -> nn.Module:
        """Return the model for these data, its parameters drawn from torch's global generator."""


REGISTRY: Registry[ModelRecipe] = Registry("model", __name__)


def convolution_layout(channels: Iterable[int]) -> torch.memory_format:
    """Return the memory format of a convolutional body whose layers have these numbers of output channels.

    Channels last is the native layout of convolution kernels: 10 % faster on one CPU core, and recommended on GPUs.
    Below 8 channels the AVX2 kernels of oneDNN 3.12 (PyTorch 2.13) write past the end of a buffer in it: see
    docs/log.md, 2026-11-25.
    """
    return torch.channels_last if min(channels) >= 8 else torch.contiguous_format
