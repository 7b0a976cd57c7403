"""SimpleViT: a vision transformer without class token, dropout or learnt positions (figures 12, 13; Beyer et al. 2022).

The image is cut into patches of P x P pixels, each a token, with fixed two-dimensional sinusoidal positions.
Pre-norm encoder blocks, a final LayerNorm, the mean over tokens, and the head follow.

B batch, C classes, D features (the width), L patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heavytail.errors import SpecError
from heavytail.models import REGISTRY

if TYPE_CHECKING:
    from heavytail.data import Data


def sinusoidal_positions(rows: int, columns: int, width: int) -> Tensor:
    """Return the position code [rows * columns, width] of a grid of patches, row by row.

    A quarter of the width each for sin and cos of the column, sin and cos of the row, times frequencies that fall
    geometrically from 1 to 1/10 000. Computed in float64, returned in the default type.
    """
    quarter = width // 4
    frequency = 10_000 ** -torch.linspace(0, 1, quarter, dtype=torch.float64)
    down, across = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    x, y = across.reshape(-1, 1) * frequency, down.reshape(-1, 1) * frequency
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1).to(torch.get_default_dtype())


class EncoderBlock(nn.Module):
    """Self-attention and a two-layer GELU network, each on a LayerNorm of its input and added to it."""

    def __init__(self, width: int, num_heads: int, mlp: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, mlp), nn.GELU(), nn.Linear(mlp, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return [B, L, D] for [B, L, D]."""
        tokens = tokens + self.out(self._attend(self.norm1(tokens)))
        return tokens + self.mlp(self.norm2(tokens))  # type: ignore[no-any-return]

    def _attend(self, tokens: Tensor) -> Tensor:
        query, key, value = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)  # [B, heads, L, D / heads]
        return mixed.transpose(1, 2).flatten(2)


class SimpleViT(nn.Module):
    """Patches, positions, encoder blocks, and the head on the mean token; PyTorch's default initialisation.

    Args:
        channels: channels of the image.
        size: (height, width) of the image in pixels.
        patch: side of a patch in pixels, P.
        width: width of a token, D.
        depth: number of encoder blocks.
        heads: attention heads of each block.
        mlp: width of each block's hidden layer.
        num_classes: C.
    """

    positions: Tensor

    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        num_classes: int,
        *,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        mlp: int,
    ) -> None:
        super().__init__()
        self.embed = nn.Conv2d(channels, width, patch, stride=patch)
        positions = sinusoidal_positions(size[0] // patch, size[1] // patch, width)
        self.register_buffer("positions", positions, persistent=False)
        self.blocks = nn.Sequential(*(EncoderBlock(width, heads, mlp) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def features(self, inputs: Tensor) -> Tensor:
        """Return the mean token [B, D] for images [B, channels, H, W]."""
        tokens = self.embed(inputs).flatten(2).transpose(1, 2) + self.positions
        normed: Tensor = self.norm(self.blocks(tokens))
        return normed.mean(1)


@REGISTRY.register("simple-vit")
@dataclass(frozen=True)
class SimpleViTRecipe:
    """SimpleViT; the defaults are ViT-S/16, with 21 974 632 parameters on 224 pixels and 1 000 classes.

    Attributes:
        patch: side of a patch in pixels; must divide the image size.
        width: width of a token; a multiple of 4 (for the positions) and of `heads`.
        depth: number of encoder blocks.
        heads: attention heads of each block.
        mlp: width of each block's hidden layer.
    """

    patch: int = 16
    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp: int = 1536

    inputs: ClassVar[Literal["images"]] = "images"
    small: ClassVar[dict[str, Any]] = {"patch": 4, "width": 8, "depth": 1, "heads": 2, "mlp": 6}

    def __post_init__(self) -> None:
        for name in ("patch", "width", "depth", "heads", "mlp"):
            if getattr(self, name) < 1:
                raise SpecError(f"model.{name}: expected at least 1, got {getattr(self, name)}")
        if self.width % 4 or self.width % self.heads:
            raise SpecError(f"model.width: expected a multiple of 4 and of {self.heads} heads, got {self.width}")

    def build(self, data: Data) -> SimpleViT:
        """Return the model for images [N, channels, height, width]; raise SpecError for anything else."""
        shape = tuple(data.train.inputs.shape)
        if len(shape) != 4:
            raise SpecError(f"model 'simple-vit' needs images [N, channels, height, width], got inputs {shape}")
        if shape[2] % self.patch or shape[3] % self.patch:
            raise SpecError(f"model.patch: expected a divisor of {shape[2]} x {shape[3]} pixels, got {self.patch}")
        return SimpleViT(
            shape[1],
            (shape[2], shape[3]),
            data.num_classes,
            patch=self.patch,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            mlp=self.mlp,
        )
