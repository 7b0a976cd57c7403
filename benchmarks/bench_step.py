"""What a full-batch training step costs, losses per class included, against its bare products and convolutions.

    python benchmarks/bench_step.py [--threads N] [--rounds N] [--device cpu] [--json FILE]

`step` is the engine's: forward, backward, sums per class, update. `no stats` leaves the sums per class out. `bare` does
the matrix products and convolutions of the same pass on tensors of the same shapes, in the same micro-batches, and
nothing else: no activation, pooling, softmax, normalisation or update.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from timing import interleave, save
from torch import Tensor

from heavytail.metrics import ClassStats
from heavytail.spec import RunSpec
from heavytail.store import RunStore
from heavytail.train.engine import _Run

CASES = {
    "linear m=8, gd+m": (
        {
            "data": {"name": "random-heavy-tail", "groups": 8},
            "model": "linear",
            "optim": {"name": "gd", "momentum": 0.9},
        },
        1.08,
    ),
    "linear m=9, adam": (
        {"data": {"name": "random-heavy-tail", "groups": 9}, "model": "linear", "optim": "adam"},
        1.08,
    ),
    "CNN, digits, 330 classes": ({"data": {"name": "digits", "bits": 5}, "model": "cnn", "optim": "adam"}, 1.3),
    "one-layer transformer, D = 128": (
        {
            "data": {"name": "stdlib-text", "max_tokens": 20_000},
            "model": {"name": "transformer", "width": 128, "mlp": 128},
            "optim": "adam",
        },
        1.6,
    ),
}


def products(M: int, C: int, D: int, *, inputs: bool = True) -> Callable[[], None]:
    """The products of a linear layer: forward, the weight's gradient, and the inputs' if asked."""
    h, w, g = torch.rand(M, D), torch.rand(C, D), torch.rand(M, C)
    out, of_weight, of_inputs = torch.empty(M, C), torch.empty(C, D), torch.empty(M, D)

    def run() -> None:
        torch.mm(h, w.t(), out=out)
        torch.mm(g.t(), h, out=of_weight)
        if inputs:
            torch.mm(g, w, out=of_inputs)

    return run


def convolution(x: Tensor, w: Tensor, *, inputs: bool) -> Callable[[], None]:
    """A padded 5 x 5 convolution: forward, the weight's gradient, and the inputs' if asked."""
    x, w = x.contiguous(memory_format=torch.channels_last), w.contiguous(memory_format=torch.channels_last)
    g = torch.rand(len(x), len(w), *x.shape[2:]).contiguous(memory_format=torch.channels_last)
    shape: tuple[list[int], ...] = ([1, 1], [2, 2], [1, 1])
    mask = [inputs, True, False]

    def run() -> None:
        torch.convolution(x, w, None, *shape, False, [0, 0], 1)
        torch.ops.aten.convolution_backward(g, x, w, None, *shape, False, [0, 0], 1, mask)

    return run


def bare(run: _Run) -> Callable[[], None]:
    """The products and convolutions of one step of a run."""
    N, C, D = len(run.train_split), run.data.num_classes, run.head.in_features
    micro = run.microbatch or N
    sizes = [min(micro, N - start) for start in range(0, N, micro)]
    parts: dict[int, list[Callable[[], None]]] = {}
    for size in set(sizes):
        if run.spec.model.name == "linear":
            parts[size] = [products(size, C, D, inputs=False)]
        elif run.spec.model.name == "cnn":
            side = run.train_split.inputs.shape[-1]
            parts[size] = [
                convolution(torch.rand(size, 1, side, side), torch.rand(32, 1, 5, 5), inputs=False),
                convolution(torch.rand(size, 32, side // 2, side // 2), torch.rand(100, 32, 5, 5), inputs=True),
                products(size, C, D),
            ]
        else:
            M, L = size * run.train_split.targets.shape[1], run.train_split.targets.shape[1]
            q, g = torch.rand(size, L, D), torch.rand(size, L, L)

            def attention(q: Tensor = q, g: Tensor = g) -> None:
                for _ in range(3):  # forward and the gradients of both factors, for scores and for values
                    torch.bmm(q, q.transpose(1, 2))
                    torch.bmm(g, q)

            layers = [(3 * D, D), (D, D), (D, D), (D, D)]
            parts[size] = [attention, *(products(M, c, d) for c, d in layers), products(M, C, D)]
    return lambda: [part() for size in sizes for part in parts[size]] and None


def main() -> int:
    """Print a line for each case; exit with 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    torch.set_default_device(args.device)
    results, missed = {}, False
    print(f"{'':32} {'bare ms':>9} {'step ms':>9} {'step/bare':>10} {'stats on/off':>13} {'target':>7}")
    for name, (table, target) in CASES.items():
        spec = RunSpec.from_dict({**table, "lr": 1e-3, "steps": 1})
        with tempfile.TemporaryDirectory() as folder:
            run = _Run(spec, RunStore(Path(folder)), Path(folder), torch.device(args.device))

            def step(run: _Run = run, *, stats: bool = True) -> None:
                sums = ClassStats.zeros(run.data.num_classes, run.device) if stats else None
                run._gradient(0, sums)
                if sums is not None:
                    run._record("train", 0, sums)
                run.optimizer.step()

            timing = interleave(
                {"bare": bare(run), "step": step, "no stats": lambda step=step: step(stats=False)}, rounds=args.rounds
            )
        ratio, stats = timing.ratio("step", "bare"), timing.ratio("step", "no stats")
        missed |= ratio > target
        print(
            f"{name:32} {timing.median('bare') * 1e3:9.1f} {timing.median('step') * 1e3:9.1f} "
            f"{ratio:10.2f} {stats:13.3f} {target:7.2f}"
        )
        results[name] = {"seconds": timing.seconds, "ratio": ratio, "stats": stats, "target": target}
    if args.json:
        save(args.json, results)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
