"""A full-batch training step, losses per class included, against its bare products and convolutions.

`step` is the engine's: forward, backward, sums per class, update. `no stats` omits the sums per class. `bare` does
only the matrix products and convolutions of the same pass, on tensors of the same shapes and in the same micro-batches:
no activation, pooling, softmax, normalisation or update. `diverged` is the step of a run whose weights have diverged
under a far too large step size. Memory is the growth of the peak resident size of a fresh process over building
the run, its data included, and two steps.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.memory import peak_growth
from benchmarks.timing import Options, Row, interleave
from heavytail.errors import DataError
from heavytail.experiment.spec import RunSpec
from heavytail.experiment.store import RunStore
from heavytail.metrics import ClassStats
from heavytail.train.engine import _Run

STATS, DIVERGED = 1.03, 1.1  # relative to a step without statistics; to one that has not diverged


@dataclass(frozen=True)
class Case:
    """A training problem: its data (with an embedded stand-in), and its targets.

    Attributes:
        target: of the time of the bare products.
        memory: MB.
        rounds: how many are enough; a long step needs fewer.
    """

    name: str
    run: dict[str, Any]
    data: tuple[dict[str, Any], ...]
    target: float
    memory: float
    rounds: int


CASES = (
    Case(
        "linear m=8, gd+m",
        {"model": "linear", "optim": {"name": "gd", "momentum": 0.9}},
        ({"name": "random-heavy-tail", "groups": 8},),
        1.08,
        117,
        31,
    ),
    Case(
        "linear m=9, adam",
        {"model": "linear", "optim": "adam"},
        ({"name": "random-heavy-tail", "groups": 9},),
        1.08,
        262,
        15,
    ),
    Case(
        "CNN, adam",
        {"model": "cnn", "optim": "adam"},
        ({"name": "barcoded-mnist", "bits": 6, "samples": 3200}, {"name": "digits", "bits": 5}),
        1.3,
        330,
        5,
    ),
    Case(
        "one-layer transformer, D=128, adam",
        {"model": {"name": "transformer", "width": 128, "mlp": 128}, "optim": "adam"},
        ({"name": "tiny-ptb"}, {"name": "stdlib-text", "max_tokens": 20_000}),
        1.6,
        1009,
        5,
    ),
)
TINY: dict[str, dict[str, Any]] = {
    "random-heavy-tail": {"name": "random-heavy-tail", "groups": 3},
    "digits": {"name": "digits"},
    "stdlib-text": {"name": "stdlib-text", "max_tokens": 2_000},
}


def rows(options: Options) -> Iterator[Row]:
    """Return time and memory of every case, or of its embedded stand-in if public data are not available."""
    for case in CASES:
        run, name = _start(case, options)
        rounds = options.rounds or case.rounds
        contenders = {"bare": bare(run), "step": _step(run), "no stats": _step(run, stats=False)}
        timing = interleave(contenders, rounds=rounds)
        ours = name == case.name  # targets do not apply to a stand-in, which is another problem
        yield timing.row(name, "step", "bare", case.target if ours else None)
        yield timing.row(name, "step", "no stats", STATS)
        if run.spec.model.name == "linear":
            blown, _ = _start(case, options, lr=1e4)
            steps = {"normal": _step(run), "diverged": _step(blown)}
            for _ in range(20):
                steps["diverged"]()
            yield interleave(steps, rounds=rounds).row(name, "diverged", "normal", DIVERGED)
        if options.device == "cpu":
            del contenders, run
            size = peak_growth(_two_steps, case, options)
            yield Row(name, "memory", "", size, size, size, "MB", case.memory if ours else None)


def _start(case: Case, options: Options, lr: float = 1e-3) -> tuple[_Run, str]:
    """Return a run of the case, and the case's name, with the stand-in for its data if there is one."""
    torch.set_flush_denormal(True)  # as the engine does
    for data in (TINY[case.data[-1]["name"]],) if options.tiny else case.data:
        spec = RunSpec.from_dict({**case.run, "data": data, "lr": lr, "steps": 1})
        with tempfile.TemporaryDirectory() as folder:
            try:
                run = _Run(spec, RunStore(Path(folder)), options.data_dir, torch.device(options.device))
            except DataError:
                continue
            return run, case.name if data is case.data[0] else f"{case.name}, on {data['name']}"
    raise AssertionError("the last data set of every case is embedded")


def _step(run: _Run, *, stats: bool = True) -> Callable[[], None]:
    def step() -> None:
        sums = ClassStats.zeros(run.data.num_classes, run.device) if stats else None
        run._gradient(0, sums)
        if sums is not None:
            run._record("train", 0, sums)
        run.optimizer.step()

    return step


def _two_steps(case: Case, options: Options) -> Callable[[], None]:
    _step(_start(case, Options(data_dir=options.data_dir, tiny=True))[0])()  # loads every library

    def measured() -> None:
        step = _step(_start(case, options)[0])
        step()
        step()

    return measured


def products(M: int, C: int, D: int, *, inputs: bool = True) -> Callable[[], None]:
    """The products of a linear layer: forward, the weight's gradient, and optionally that of the inputs."""
    h, w, g = torch.rand(M, D), torch.rand(C, D), torch.rand(M, C)
    out, of_weight, of_inputs = torch.empty(M, C), torch.empty(C, D), torch.empty(M, D)

    def run() -> None:
        torch.mm(h, w.t(), out=out)
        torch.mm(g.t(), h, out=of_weight)
        if inputs:
            torch.mm(g, w, out=of_inputs)

    return run


def convolution(x: Tensor, w: Tensor, *, inputs: bool) -> Callable[[], None]:
    """A padded 5 x 5 convolution: forward, the weight's gradient, and optionally that of the inputs."""
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
