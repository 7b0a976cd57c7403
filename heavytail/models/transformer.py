"""Every transformer of the paper, from one attention block to GPT2-Small, as one causal decoder.

    x_0 = sqrt(D) E[tokens] + positions,   x_{i+1} = x_i + f_i(x_i),   features = x_last,

where the branches f_i alternate between causal attention and a two-layer MLP. Layer normalisation comes after the sum
("post"), or at the start of each branch and once at the end ("pre"), or nowhere ("none"). The registered
names differ only in their defaults.

Shapes: B batch, L sequence, D features (the width), C classes (the vocabulary), M = B*L predictions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heavytail.errors import SpecError
from heavytail.models import REGISTRY

if TYPE_CHECKING:
    from heavytail.data import Data

Norm: TypeAlias = Literal["post", "pre", "none"]
Activation: TypeAlias = Literal["relu", "gelu"]
Init: TypeAlias = Literal["paper", "gpt2"]
Train: TypeAlias = Literal["all", "head"]


@REGISTRY.register("transformer")
@dataclass(frozen=True)
class TransformerRecipe:
    """The general model; its defaults are the one-layer transformer of figs. 18 and 20.

    The body has depth (4 D^2 + 4 D + 2 D mlp + mlp + D) parameters, with norms 4 D more for each layer and, if "pre",
    2 D at the end; embedding and head have (2 D + 1) C. The default's body has 8 652 000, as many as PyTorch's encoder
    layer; the two-layer transformer's (width 1 000, mlp 1 000, 4 heads) has 12 020 000.

    Attributes:
        width: D, even, a multiple of `heads`.
        depth: number of layers.
        heads: attention heads of a layer.
        mlp: hidden units of a layer's MLP; 0 for no MLP.
        norm: where LayerNorm is: "post" after the sum, "pre" at the start of the branch, or "none".
        activation: activation of the MLP; "gelu" is the tanh form of GPT-2.
        dropout: rate on the embedding, on the MLP's hidden units and on the output of every branch.
        attention_dropout: rate on the attention probabilities.
        init: "paper": N(0, 0.02) for embedding, head and MLP, N(1, 0.02) for the scales of norms, attention as PyTorch
            does (Glorot for queries, keys, values). "gpt2": N(0, 0.02 sqrt(2)) for all matrices, divided by
            sqrt(2 depth) where a branch ends, scales 1. Biases start at 0 in both. The second number is a deviation.
        train: "all", or "head" to freeze everything before the head at initialisation (fig. 5).
    """

    width: int = 1200
    depth: int = 1
    heads: int = 1
    mlp: int = 1200
    norm: Norm = "post"
    activation: Activation = "relu"
    dropout: float = 0.0
    attention_dropout: float = 0.0
    init: Init = "paper"
    train: Train = "all"

    inputs: ClassVar[Literal["tokens"]] = "tokens"
    small: ClassVar[dict[str, Any]] = {"width": 8, "mlp": 6, "heads": 2}

    def __post_init__(self) -> None:
        for field in ("width", "depth", "heads"):
            if getattr(self, field) < 1:
                raise SpecError(f"model.{field}: expected a positive number, got {getattr(self, field)}")
        if self.mlp < 0:
            raise SpecError(f"model.mlp: expected a number of units, 0 for no MLP, got {self.mlp}")
        if self.width % 2:
            raise SpecError(f"model.width: expected an even number (sines and cosines), got {self.width}")
        if self.width % self.heads:
            raise SpecError(f"model.heads: expected a divisor of the width {self.width}, got {self.heads}")
        for field in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, field) < 1:
                raise SpecError(f"model.{field}: expected a rate in [0, 1), got {getattr(self, field)}")

    def build(self, data: Data) -> Transformer:
        """Return the model for token sequences [N, L] int64; raise SpecError for other inputs."""
        inputs = data.train.inputs
        if inputs.ndim != 2 or inputs.dtype != torch.int64:
            raise SpecError(f"a transformer needs tokens [N, L] int64, got {inputs.dtype} {tuple(inputs.shape)}")
        return Transformer(self, data.num_classes)


@REGISTRY.register("simplified-transformer")
@dataclass(frozen=True)
class SimplifiedTransformerRecipe(TransformerRecipe):
    """One attention block with a residual connection and nothing else (fig. 5): 5 764 800 parameters in the body."""

    mlp: int = 0
    norm: Norm = "none"

    small: ClassVar[dict[str, Any]] = {"width": 8}


@REGISTRY.register("gpt2")
@dataclass(frozen=True)
class GPT2Recipe(TransformerRecipe):
    """GPT2-Small with fixed positions and an untied head (fig. 1): 85 056 000 parameters in the body."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp: int = 3072
    norm: Norm = "pre"
    activation: Activation = "gelu"
    dropout: float = 0.1
    init: Init = "gpt2"

    small: ClassVar[dict[str, Any]] = {"width": 8, "mlp": 16, "heads": 2, "depth": 2}


class Transformer(nn.Module):
    """Embedding, body and linear head.

    Args:
        config: the recipe.
        num_classes: C, the size of the vocabulary.
    """

    def __init__(self, config: TransformerRecipe, num_classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_classes, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.body = nn.Sequential()
        for _ in range(config.depth):
            self.body.append(Residual(Attention(config), config))
            if config.mlp:
                self.body.append(Residual(MLP(config), config))
        if config.norm == "pre":
            self.body.append(nn.LayerNorm(config.width))
        self.head = nn.Linear(config.width, num_classes)
        _initialize(self, config)
        if config.train == "head":
            self.requires_grad_(False)
            self.head.requires_grad_(True)

    def features(self, inputs: Tensor) -> Tensor:
        """Return the inputs of the head [B*L, D] for tokens [B, L] int64, sequence by sequence."""
        width = self.embedding.embedding_dim
        tokens = self.embedding(inputs) * math.sqrt(width)  # [B, L, D]
        arguments = (inputs.shape[1], width, tokens.dtype, tokens.device)
        if torch.compiler.is_compiling():  # it would see through the cache, and warn of it
            positions = sinusoidal_positions.__wrapped__(*arguments)
        else:
            positions = sinusoidal_positions(*arguments)
        hidden: Tensor = self.body(self.dropout(tokens + positions))
        return hidden.flatten(0, 1)


class Residual(nn.Module):
    """A residual branch, x + f(x), with a norm before f, after the sum, or none."""

    def __init__(self, branch: nn.Module, config: TransformerRecipe) -> None:
        super().__init__()
        self.branch = branch
        self.norm = nn.Identity() if config.norm == "none" else nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.pre = config.norm == "pre"

    def forward(self, hidden: Tensor) -> Tensor:
        """Return [B, L, D] for [B, L, D]."""
        if self.pre:
            result: Tensor = hidden + self.dropout(self.branch(self.norm(hidden)))
        else:
            result = self.norm(hidden + self.dropout(self.branch(hidden)))
        return result


class Attention(nn.Module):
    """Causal self-attention: position i sees positions 0..i; softmax(q k^T / sqrt(D/heads)) v in every head."""

    def __init__(self, config: TransformerRecipe) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = nn.Dropout(config.attention_dropout)
        self.inner = nn.Linear(config.width, 3 * config.width)  # queries, keys, values in this order
        self.outer = nn.Linear(config.width, config.width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return [B, L, D] for [B, L, D]."""
        batch, length, width = hidden.shape
        split = self.inner(hidden).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)  # [B, heads, L, D/heads] each
        dropout = self.dropout.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        result: Tensor = self.outer(mixed.transpose(1, 2).reshape(batch, length, width))
        return result


class MLP(nn.Module):
    """Linear, activation, linear, at each position separately."""

    def __init__(self, config: TransformerRecipe) -> None:
        super().__init__()
        self.inner = nn.Linear(config.width, config.mlp)
        self.activation = nn.GELU(approximate="tanh") if config.activation == "gelu" else nn.ReLU()
        self.dropout = nn.Dropout(config.dropout)
        self.outer = nn.Linear(config.mlp, config.width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return [B, L, D] for [B, L, D]."""
        result: Tensor = self.outer(self.dropout(self.activation(self.inner(hidden))))
        return result


@lru_cache(maxsize=4)
def sinusoidal_positions(length: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the fixed positions [L, D] of Vaswani et al. (2017), computed in float64.

    Column 2i holds sin(t / 10000^(2i/D)) of position t, column 2i + 1 the cosine.
    """
    with torch.inference_mode(False):  # the table is cached, so it must not be an inference tensor
        time = torch.arange(length, dtype=torch.float64)[:, None]
        rate = 10_000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        table = torch.stack([(time * rate).sin(), (time * rate).cos()], dim=-1).flatten(1)
        table = table.to(device, dtype)
    return table


@torch.no_grad()
def _initialize(model: Transformer, config: TransformerRecipe) -> None:
    """Draw all parameters, once, from torch's global generator."""
    gpt2 = config.init == "gpt2"
    std = 0.02 * math.sqrt(2) if gpt2 else 0.02
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm) and not gpt2:
            nn.init.normal_(module.weight, 1.0, std)
        if isinstance(module, Attention) and not gpt2:
            nn.init.xavier_uniform_(module.inner.weight)
        elif isinstance(module, Attention | MLP):
            nn.init.normal_(module.inner.weight, 0.0, std)
            nn.init.normal_(module.outer.weight, 0.0, std / math.sqrt(2 * config.depth) if gpt2 else std)
    nn.init.normal_(model.embedding.weight, 0.0, std)
    nn.init.normal_(model.head.weight, 0.0, std)
