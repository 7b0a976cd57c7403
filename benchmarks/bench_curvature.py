"""What all class gradients and Hessian traces of a linear model cost, against the products that any gradient needs.

    python benchmarks/bench_curvature.py [--threads N] [--rounds N] [--device cpu] [--json FILE]

`bare` is the two matrix products of a forward and backward pass, X W^T and R^T X, on whole logits; `blocks` is
head_blocks: gradient norm, Hessian trace and probabilities of every class. `by class` goes through the classes one at a
time, the obvious way. Shapes are those of the random heavy-tailed data with m = 8 and m = 9.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from timing import interleave, save

from heavytail.analysis.blocks import head_blocks

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


def main() -> int:
    """Print a line for each size; exit with 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results, missed = {}, False
    for m in SIZES:
        timing = interleave(contenders(m, args.device), rounds=args.rounds)
        ratio = timing.ratio("blocks", "bare")
        missed |= ratio > TARGET
        results[f"m = {m}"] = {"ms": {n: 1e3 * timing.median(n) for n in timing.seconds}, "blocks / bare": ratio}
        times = ", ".join(f"{name} {1e3 * timing.median(name):.1f} ms" for name in timing.seconds)
        print(f"m = {m}: {times}; blocks / bare {ratio:.3f} (target {TARGET})")
    if args.json:
        save(args.json, results)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
