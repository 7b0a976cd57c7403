"""How fast and how small the head is, against plain PyTorch and against the bare matrix products.

    python benchmarks/bench_head.py [--threads N] [--rounds N] [--device cpu] [--json FILE]

Every contender makes one forward and backward pass over M rows, C classes and D features. `plain` is
F.cross_entropy(F.linear(h, W, b), y); `bare` is the two or three matrix products that any method needs, on
whole logits; `head` is linear_cross_entropy, `curvature` and `stats` the same with curvature and with class
statistics, and `diverged` the same at weights a hundred times larger, whose exponentials underflow. Memory is
the growth of the peak resident size over one pass, each in a process of its own, at M rows and at 4 M.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timing import interleave, save

from heavytail.head import linear_cross_entropy
from heavytail.metrics import ClassStats


class Shape(NamedTuple):
    """A problem; the features of a linear model are its data and need no gradient."""

    name: str
    M: int
    C: int
    D: int
    features_need_gradient: bool = True


SHAPES = (
    Shape("wide labels", 12_000, 2_455, 64),
    Shape("small transformer", 8_192, 10_000, 128),
    Shape("transformer", 4_096, 10_000, 512),
    Shape("linear, m = 8", 2_048, 255, 2_304, False),
    Shape("linear, m = 9", 4_608, 511, 5_120, False),
)
MEMORY_SHAPES = (SHAPES[0], SHAPES[2])
MEMORY_CONTENDERS = ("plain", "head", "curvature")


def contenders(shape: Shape, device: str) -> dict[str, Callable[[], object]]:
    """Return the passes to compare, on one set of inputs."""
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(shape.M, shape.D, generator=generator).to(device)
    W = (torch.randn(shape.C, shape.D, generator=generator) / shape.D**0.5).to(device)
    b = torch.zeros(shape.C, device=device)
    y = torch.randint(shape.C, (shape.M,), generator=generator).to(device)
    large = (100.0 * W).requires_grad_()
    leaves = [W.requires_grad_(), b.requires_grad_(), large]
    if shape.features_need_gradient:
        leaves.append(h.requires_grad_())
    stats = ClassStats.zeros(shape.C, device)

    def clear() -> None:
        for leaf in leaves:
            leaf.grad = None

    def plain() -> None:
        clear()
        F.cross_entropy(F.linear(h, W, b), y).backward()

    def head(W: torch.Tensor = W, curvature: bool = False, statistics: bool = False) -> None:
        clear()
        out = linear_cross_entropy(h, W, b, y, curvature=curvature)
        if statistics:
            stats.update(y, out.losses, out.correct, out.p_correct)
        out.loss.backward()

    @torch.no_grad()
    def bare() -> None:
        logits = h @ W.t()
        logits.t() @ h
        if shape.features_need_gradient:
            logits @ W

    return {
        "bare": bare,
        "plain": plain,
        "head": head,
        "curvature": lambda: head(curvature=True),
        "stats": lambda: head(statistics=True),
        "diverged": lambda: head(large),
    }


def peak_growth(shape: Shape, name: str, threads: int) -> float:
    """Return how far one pass raises the peak resident size of a fresh process (MB)."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_growth, (shape, name, threads))


def _peak_growth(shape: Shape, name: str, threads: int) -> float:
    torch.set_num_threads(threads)
    contenders(shape._replace(M=64), "cpu")[name]()  # libraries and thread pools are not what is measured
    call = contenders(shape, "cpu")[name]
    before = _peak()
    call()
    return (_peak() - before) / 1e6


def _peak() -> float:
    # Not getrusage: its maximum is inherited from the parent, which is larger than anything measured here.
    with open("/proc/self/status") as status:
        return next(float(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024


def main() -> None:
    """Measure every shape and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    times, memory = {}, {}
    print("milliseconds for one forward and backward pass, and ratios within rounds")
    print(f"{'':>18} {'M':>6} {'C':>6} {'D':>5} {'bare':>7} {'plain':>7} {'head':>7}", end=" ")
    print("plain/head head/bare curvature stats diverged")
    for shape in SHAPES:
        timing = interleave(contenders(shape, args.device), rounds=args.rounds)
        ratios = {
            "plain/head": timing.ratio("plain", "head"),
            "head/bare": timing.ratio("head", "bare"),
            "curvature/head": timing.ratio("curvature", "head"),
            "stats/head": timing.ratio("stats", "head"),
            "diverged/head": timing.ratio("diverged", "head"),
        }
        medians = {name: timing.median(name) for name in timing.seconds}
        times[shape.name] = {"shape": shape._asdict(), "seconds": medians, "ratios": ratios}
        print(f"{shape.name:>18} {shape.M:6} {shape.C:6} {shape.D:5}", end=" ")
        print(*(f"{1e3 * medians[name]:7.1f}" for name in ("bare", "plain", "head")), end=" ")
        print("{:10.2f} {:9.2f} {:9.2f} {:5.2f} {:8.2f}".format(*ratios.values()), flush=True)

    if args.device == "cpu":
        print("\ngrowth of the peak resident size over one pass, MB, at M and 4 M rows; last: dloss/dh alone")
        print(f"{'':>18}", *(f"{name:>16}" for name in MEMORY_CONTENDERS))
        for shape in MEMORY_SHAPES:
            sizes = (shape, shape._replace(M=4 * shape.M))
            growth = {n: [peak_growth(s, n, args.threads) for s in sizes] for n in MEMORY_CONTENDERS}
            memory[shape.name] = growth
            own = [4e-6 * s.M * s.D * s.features_need_gradient for s in sizes]
            print(f"{shape.name:>18}", *(f"{a:7.0f} {b:8.0f}" for a, b in (*growth.values(), own)), flush=True)
    if args.json:
        save(args.json, {"times": times, "memory_mb": memory})


if __name__ == "__main__":
    main()
