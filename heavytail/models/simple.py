"""The two models without attention: softmax regression and the paper's convolutional network.

Shapes: B batch, C classes, D features; images are [B, channels, height, width].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor, nn

from heavytail.errors import SpecError
from heavytail.models import REGISTRY, convolution_layout

if TYPE_CHECKING:
    from heavytail.data import Data


class Linear(nn.Module):
    """Softmax regression: the features are the inputs, flattened."""

    def __init__(self, num_features: int, num_classes: int, *, bias: bool = True, zero: bool = False) -> None:
        super().__init__()
        self.head = nn.Linear(num_features, num_classes, bias=bias)
        if zero:
            for parameter in self.head.parameters():
                nn.init.zeros_(parameter)

    def features(self, inputs: Tensor) -> Tensor:
        """Return the inputs [B, ...] as [B, D]."""
        return inputs.flatten(1)


@REGISTRY.register("linear")
@dataclass(frozen=True)
class LinearRecipe:
    """Softmax regression with D C + C parameters.

    Attributes:
        init: "default" draws weights and bias as PyTorch does, U(-1/sqrt(D), 1/sqrt(D)); "zero" is the initial
            point of the theory (proposition 2, theorem 3).
        bias: whether each class has a bias.
    """

    init: Literal["default", "zero"] = "default"
    bias: bool = True

    inputs: ClassVar[Literal["vectors"]] = "vectors"
    small: ClassVar[dict[str, Any]] = {}

    def build(self, data: Data) -> Linear:
        """Return the model for inputs of any shape."""
        num_features = math.prod(data.train.inputs.shape[1:])
        return Linear(num_features, data.num_classes, bias=self.bias, zero=self.init == "zero")


class CNN(nn.Module):
    """Stages of [5x5 convolution, ReLU, 2x2 max-pooling], then the head on the flattened result.

    Args:
        channels: channels of the image, then of each stage.
        size: height and width of the image in pixels; every stage halves both, rounding down.
        num_classes: C.
    """

    def __init__(self, channels: Sequence[int], size: tuple[int, int], num_classes: int) -> None:
        super().__init__()
        # ReLU and pooling commute bit for bit, gradients included; after pooling, ReLU has a quarter of the values.
        stages = [
            nn.Sequential(nn.Conv2d(before, after, kernel_size=5, padding=2), nn.MaxPool2d(2), nn.ReLU(inplace=True))
            for before, after in pairwise(channels)
        ]
        self.layout = convolution_layout(channels[1:])
        self.stages = nn.Sequential(*stages).to(memory_format=self.layout)  # type: ignore[call-overload]
        height, width = (n >> len(stages) for n in size)
        self.head = nn.Linear(channels[-1] * height * width, num_classes)

    def features(self, inputs: Tensor) -> Tensor:
        """Return the last stage's output for images [B, channels, height, width] as [B, D]."""
        hidden: Tensor = self.stages(inputs.contiguous(memory_format=self.layout))
        return hidden.flatten(1)


@REGISTRY.register("cnn")
@dataclass(frozen=True)
class CNNRecipe:
    """The paper's convolutional network; PyTorch's default initialisation.

    On 28x28 grey images the default has D = 4 900 features, 80 932 parameters in the body and 4 901 C in the head.

    Attributes:
        channels: output channels of each stage.
    """

    channels: tuple[int, ...] = (32, 100)

    # Default micro-batch: its activations fit in cache. A pass over 6 400 images at once takes 2.7 times as long, and
    # 2.5 GB.
    microbatch: ClassVar[int] = 256
    inputs: ClassVar[Literal["images"]] = "images"
    small: ClassVar[dict[str, Any]] = {"channels": [8, 9]}

    def __post_init__(self) -> None:
        if not self.channels or min(self.channels) < 1:
            raise SpecError(f"model.channels: expected one or more positive numbers, got {self.channels}")

    def build(self, data: Data) -> CNN:
        """Return the model for images [N, channels, height, width]; raise SpecError for anything else."""
        shape = tuple(data.train.inputs.shape)
        if len(shape) != 4:
            raise SpecError(f"model 'cnn' needs images [N, channels, height, width], got inputs {shape}")
        size = (shape[2], shape[3])
        if min(size) >> len(self.channels) == 0:
            smallest = 1 << len(self.channels)
            raise SpecError(f"model.channels: {len(self.channels)} stages need {smallest} pixels, got {size}")
        return CNN((shape[1], *self.channels), size, data.num_classes)
