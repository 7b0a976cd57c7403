"""Traces of Hessian blocks of a whole network, estimated by Hutchinson's method: a check of the closed forms, and more.

With v uniform on {-1, 1} over *all* parameters, E[v_B . (H v)_B] = Tr H_BB for every block B: one Hessian-vector
product per v estimates all blocks at once. Products are reverse mode twice (torch.func) through PyTorch's own
cross-entropy, and share nothing with the kernel of `heavytail.head` but the model.

Shapes: V vectors, R rows of a parameter (its first dimension).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vjp
from torch.nn.attention import SDPBackend, sdpa_kernel

from heavytail.errors import DataError, SpecError

Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Calls yield (inputs, targets), the same ones every time."""


class Estimate(NamedTuple):
    """An estimate and its standard error."""

    value: Tensor
    error: Tensor


@dataclass(frozen=True)
class TraceSamples:
    """v_B . (H v)_B of every random vector, for every row of every parameter.

    Attributes:
        rows: by name of the parameter, [V, R] float64.
    """

    rows: Mapping[str, Tensor]

    def trace(self, *names: str) -> Estimate:
        """Return the trace of the block of whole parameters, of all of them if none is named."""
        return _estimate(sum((self.rows[n].sum(1) for n in names or self.rows), torch.zeros((), dtype=torch.float64)))

    def row_traces(self, name: str) -> Estimate:
        """Return the trace of the block of each row of a parameter, [R]; rows of `head.weight` are classes."""
        return _estimate(self.rows[name])


def sample_traces(model: nn.Module, batches: Batches, *, num_vectors: int = 32, seed: int = 0) -> TraceSamples:
    """Draw Hutchinson's estimates of the traces of a model's Hessian blocks, for the mean cross-entropy.

    Args:
        model: with `features(inputs) -> [M, D]` and a linear `head`; parameters that require a gradient count. It is
            left in eval mode while this runs, and unchanged.
        batches: the data, in as many pieces as memory needs.
        num_vectors: V; errors fall with its square root.
        seed: of the random vectors.

    Raises:
        SpecError: fewer than 2 vectors, which leave no error to estimate.
        DataError: no data.
    """
    if num_vectors < 2:
        raise SpecError(f"num_vectors: expected at least 2, got {num_vectors}")
    loss = _SummedLoss(model)
    params = {n: p.detach() for n, p in loss.named_parameters() if p.requires_grad}
    generator = torch.Generator().manual_seed(seed)
    was_training = model.training
    model.eval()
    try:
        drawn = [_draw(loss, params, batches, generator) for _ in range(num_vectors)]
    finally:
        model.train(was_training)
    return TraceSamples({n.removeprefix("model."): torch.stack([rows[n] for rows in drawn]) for n in params})


class _SummedLoss(nn.Module):
    """The summed loss of a batch as the forward pass of a module, which is what functional_call can call."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        logits = self.model.head(self.model.features(inputs))  # type: ignore[operator]
        return F.cross_entropy(logits, targets.flatten(), reduction="sum")


def _draw(
    loss: nn.Module, params: dict[str, Tensor], batches: Batches, generator: torch.Generator
) -> dict[str, Tensor]:
    """v * (H v) of one random vector, summed over each row [R]."""
    v = {n: _signs(p, generator) for n, p in params.items()}
    product = {n: torch.zeros_like(p) for n, p in params.items()}
    total = 0
    for inputs, targets in batches():

        def value(at: dict[str, Tensor], x: Tensor = inputs, y: Tensor = targets) -> Tensor:
            result: Tensor = functional_call(loss, at, (x, y))
            return result

        with sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels have no second derivatives
            (Hv,) = vjp(grad(value), params)[1](v)  # v^T H, and H is symmetric
        for name, part in Hv.items():
            product[name] += part
        total += targets.numel()
    if total == 0:
        raise DataError("batches: expected inputs and targets, got none")
    return {n: (v[n] * product[n]).double().reshape(len(v[n]), -1).sum(1) / total for n in params}


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    bits = torch.randint(0, 2, like.shape, generator=generator)
    return (2 * bits - 1).to(like)


def _estimate(samples: Tensor) -> Estimate:
    """Mean over the vectors and its standard error."""
    return Estimate(samples.mean(0), samples.std(0) / math.sqrt(len(samples)))
