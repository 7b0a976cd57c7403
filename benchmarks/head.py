"""The head against plain PyTorch and against the bare matrix products.

Every contender makes one forward and backward pass over M rows, C classes and D features. `plain` is
F.cross_entropy(F.linear(h, W, b), y); `bare` is the two or three matrix products that any method needs, on
whole logits; `head` is linear_cross_entropy, `curvature` and `stats` the same with curvature and with class
statistics, and `diverged` the same at weights a hundred times larger, whose exponentials underflow. `torch mean` and
`torch rows` are PyTorch's own chunked function, for the mean and for the losses of the rows, from which statistics can
be formed; PyTorch before 2.13 has none. `liger` and `cce` are the fused losses of Liger-Kernel and of
cut-cross-entropy, on a GPU where they are installed; the latter takes half precision, and `head bf16` is ours with the
same. Memory is the growth of the peak resident size over one pass, each in a separate process, at M rows and at 4 M.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.memory import peak_growth
from benchmarks.timing import Options, Row, interleave
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
    Shape("GPT2-Small", 2_048, 50_304, 768),
    Shape("large vocabulary", 512, 151_936, 1_024),
    Shape("linear, m = 8", 2_048, 255, 2_304, False),
    Shape("linear, m = 9", 4_608, 511, 5_120, False),
)
MEMORY_SHAPES = ("wide labels", "transformer")
MEMORY_CONTENDERS = ("plain", "head", "curvature")
STATS, CURVATURE, DIVERGED = 1.03, 1.25, 1.1  # of the time of `head`
BARE = 1.08  # from 128 features on: below, the softmax takes a part that no product hides
MEAN, PER_ROW = 1.0, 1 / 1.3  # of the time of PyTorch's chunked function


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

    def chunked(reduction: str) -> None:
        clear()
        options = torch.nn.LinearCrossEntropyOptions()
        F.linear_cross_entropy(h, W, y, linear_bias=b, reduction=reduction, options=options).mean().backward()

    torch_s = {"torch mean": lambda: chunked("mean"), "torch rows": lambda: chunked("none")}
    return {
        **_others(h, W, b, y, clear),
        **(torch_s if hasattr(F, "linear_cross_entropy") else {}),
        "bare": bare,
        "plain": plain,
        "head": head,
        "curvature": lambda: head(curvature=True),
        "stats": lambda: head(statistics=True),
        "diverged": lambda: head(large),
    }


def _others(h: Tensor, W: Tensor, b: Tensor, y: Tensor, clear: Callable[[], None]) -> dict[str, Callable[[], object]]:
    """The passes of other libraries that run on this device."""
    found: dict[str, Callable[[], object]] = {}
    if h.device.type != "cuda":
        return found

    def add(name: str, loss: Callable[[], Tensor]) -> None:
        def run() -> None:
            clear()
            loss().backward()

        found[name] = run

    with contextlib.suppress(ImportError):
        liger = importlib.import_module("liger_kernel.transformers").LigerFusedLinearCrossEntropyLoss()
        add("liger", lambda: liger(W, h, y, b))
    with contextlib.suppress(ImportError):
        cce = importlib.import_module("cut_cross_entropy").linear_cross_entropy
        add("cce", lambda: cce(h.bfloat16(), W.bfloat16(), y, bias=b.bfloat16()))
        add("head bf16", lambda: linear_cross_entropy(h.bfloat16(), W.bfloat16(), b.bfloat16(), y).loss)
    return found


def passed(shape: Shape, name: str) -> Callable[[], object]:
    """Return one pass of a contender, after a small one that loads all libraries."""
    contenders(shape._replace(M=64), "cpu")[name]()
    return contenders(shape, "cpu")[name]


def rows(options: Options) -> Iterator[Row]:
    """Return the ratios of every shape, and the memory of some."""
    scale = 64 if options.tiny else 1
    shapes = {s.name: s._replace(M=s.M // scale, C=s.C // min(scale, 8)) for s in SHAPES}
    for name, shape in shapes.items():
        if not options.wants(name):
            continue
        timing = interleave(contenders(shape, options.device), rounds=options.rounds or (15 if shape.C < 50_000 else 3))
        case = f"{name} ({shape.M}, {shape.C}, {shape.D})"
        yield timing.row(case, "plain", "head")
        if "torch mean" in timing.seconds:
            yield timing.row(case, "head", "torch mean", MEAN)
            yield timing.row(case, "stats", "torch rows", PER_ROW)
        for ours, theirs in (("head", "liger"), ("head bf16", "cce")):
            if theirs in timing.seconds:
                yield timing.row(case, ours, theirs, 1.0)
        yield timing.row(case, "head", "bare", BARE if shape.D >= 128 else None)
        yield timing.row(case, "stats", "head", STATS)
        yield timing.row(case, "curvature", "head", CURVATURE)
        yield timing.row(case, "diverged", "head", DIVERGED)
    if options.device != "cpu":
        return
    for name in [*filter(options.wants, MEMORY_SHAPES)][: 1 if options.tiny else None]:
        for times in (1,) if options.tiny else (1, 4):
            shape = shapes[name]._replace(M=times * shapes[name].M)
            for contender in MEMORY_CONTENDERS:
                size = peak_growth(passed, shape, contender)
                yield Row(
                    f"{name} ({shape.M}, {shape.C}, {shape.D})", f"memory of {contender}", "", size, size, size, "MB"
                )
