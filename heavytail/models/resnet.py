"""ResNet18, with batch or layer normalisation (table 1, figures 3, 11, 22, 25; K. He et al. 2016).

Four stages of two residual blocks, then the mean over positions. Each stage after the first halves the image size and
doubles the channels. Paper: ImageNet at 224 pixels; figure 11 has layer instead of batch normalisation.

B batch, C classes, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from heavytail.errors import SpecError
from heavytail.models import REGISTRY, convolution_layout

if TYPE_CHECKING:
    from heavytail.data import Data

BLOCKS = (2, 2, 2, 2)

Norm = Callable[[int], nn.Module]


class Block(nn.Module):
    """relu(x + norm(conv(relu(norm(conv(x)))))), x projected by a 1x1 convolution where the shape changes."""

    def __init__(self, before: int, after: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.norm1 = norm(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = norm(after)
        self.shortcut = nn.Sequential()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), norm(after))

    def forward(self, hidden: Tensor) -> Tensor:
        """Return [B, after, H / stride, W / stride] for [B, before, H, W]."""
        inner = F.relu(self.norm1(self.conv1(hidden)))
        return F.relu(self.norm2(self.conv2(inner)) + self.shortcut(hidden))


class ResNet18(nn.Module):
    """Stem, stages and the head on the mean over positions.

    Initialisation: convolutions N(0, 2 / fan_out), normalisations the identity, the head PyTorch's default.

    Args:
        channels: channels of the image.
        width: channels of the first stage; D = 8 * width.
        num_classes: C.
        norm: builds the normalisation for a number of channels.
        small_stem: use a 3x3 convolution instead of a 7x7 one with stride 2 and max-pooling with stride 2.
    """

    def __init__(self, channels: int, width: int, num_classes: int, *, norm: Norm, small_stem: bool = False) -> None:
        super().__init__()
        if small_stem:
            conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            pool: list[nn.Module] = []
        else:
            conv = nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False)
            pool = [nn.MaxPool2d(3, stride=2, padding=1)]
        self.stem = nn.Sequential(conv, norm(width), nn.ReLU(), *pool)
        blocks: list[nn.Module] = []
        before = width
        for stage, count in enumerate(BLOCKS):
            for place in range(count):
                after = width * 2**stage
                blocks.append(Block(before, after, 2 if stage > 0 and place == 0 else 1, norm))
                before = after
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(before, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.layout = convolution_layout([width])
        self.to(memory_format=self.layout)  # type: ignore[call-overload]

    def features(self, inputs: Tensor) -> Tensor:
        """Return the mean over positions of the last stage, [B, D], for images [B, channels, H, W]."""
        hidden: Tensor = self.blocks(self.stem(inputs.contiguous(memory_format=self.layout)))
        return hidden.mean((2, 3))


@REGISTRY.register("resnet18")
@dataclass(frozen=True)
class ResNet18Recipe:
    """ResNet18: 11 689 512 parameters with 1 000 classes, for either normalisation.

    Attributes:
        width: channels of the first stage.
        norm: "batch", or "layer": over channels and positions of each image, scale and shift per channel.
        small_stem: keep the resolution in the stem, for images of 64 pixels and below.
    """

    width: int = 64
    norm: Literal["batch", "layer"] = "batch"
    small_stem: bool = False

    inputs: ClassVar[Literal["images"]] = "images"
    small: ClassVar[dict[str, Any]] = {"width": 8, "small_stem": True}

    def __post_init__(self) -> None:
        if self.width < 1:
            raise SpecError(f"model.width: expected at least 1, got {self.width}")

    def build(self, data: Data) -> ResNet18:
        """Return the model for images [N, channels, height, width]; raise SpecError for anything else."""
        shape = tuple(data.train.inputs.shape)
        if len(shape) != 4:
            raise SpecError(f"model 'resnet18' needs images [N, channels, height, width], got inputs {shape}")
        norm: Norm = nn.BatchNorm2d if self.norm == "batch" else partial(nn.GroupNorm, 1)
        return ResNet18(shape[1], self.width, data.num_classes, norm=norm, small_stem=self.small_stem)
