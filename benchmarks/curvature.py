"""All class gradients and Hessian traces of a linear model, against the products that every gradient needs.

`bare` is the two matrix products of a forward and backward pass, X W^T and R^T X, on whole logits; `blocks` is
head_blocks: gradient norm, Hessian trace and probabilities of every class. `by class` is the naive loop over
classes. Shapes are those of the random heavy-tailed data with m = 8 and m = 9.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from benchmarks.timing import Options, Row, interleave
from heavytail.analysis.curvature import head_blocks

TARGET = 1.15  # of the time of `bare`
SIZES = (8, 9)


def contenders(m: int, device: str) -> dict[str, Callable[[], object]]:
    """Return the passes to compare at one size."""
    N, C, D = m * 2**m, 2**m - 1, (m + 1) * 2**m
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(N, D, generator=generator).to(device)
    W = (torch.randn(C, D, generator=generator) / D**0.5).to(device)
    b = torch.zeros(C, device=device)
    y = torch.randint(C, (N,), generator=generator).to(device)
    square = X.square().sum(1)
    logits = torch.empty(N, C, device=device)
    gradient = torch.empty(C, D, device=device)

    def bare() -> None:
        torch.mm(X, W.t(), out=logits)
        torch.mm(logits.t(), X, out=gradient)

    def by_class() -> torch.Tensor:
        p = F.linear(X, W, b).softmax(1)
        norms = torch.stack([((p[:, k] - (y == k).float()) @ X).norm() for k in range(C)])
        return torch.stack([norms, torch.stack([(p[:, k] * (1 - p[:, k])) @ square for k in range(C)])]) / N

    return {"bare": bare, "blocks": lambda: head_blocks([(X, y)], W, b), "by class": by_class}


def rows(options: Options) -> Iterator[Row]:
    """Return the ratios at every size."""
    for m in (3,) if options.tiny else SIZES:
        timing = interleave(contenders(m, options.device), rounds=options.rounds or 15)
        yield timing.row(f"linear, m = {m}", "blocks", "bare", TARGET)
        yield timing.row(f"linear, m = {m}", "by class", "blocks")
