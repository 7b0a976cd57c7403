"""A full-batch training step, losses per class included, against its bare products and convolutions.

`step` is the engine's: forward, backward, sums per class, update. `no stats` omits the sums per class. `bare` makes
the step's own matrix products, convolutions and calls of PyTorch's attention again, on tensors of the same shapes: no
activation, pooling, softmax, normalisation or update. `release` follows the loop of the authors' release. `diverged` is
the step of a run whose weights have diverged under a far too large step size. Memory is the growth of the peak resident
size of a fresh process over building the run, its data included, and two steps.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

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
        rounds: how many are enough; a long step needs fewer.
        release: of the time of the release's loop; None for a step that is not on the whole batch.
        memory: MB; None for no target.
    """

    name: str
    run: dict[str, Any]
    data: tuple[dict[str, Any], ...]
    target: float
    rounds: int
    release: float | None = None
    memory: float | None = None


_TINY_IMAGENET = {"name": "tiny-imagenet", "size": 32, "subset": "heavy-tailed", "validation": 0, "augment": False}
_VIT = {"name": "simple-vit", "width": 64, "depth": 4, "heads": 4, "mlp": 256}
CASES = (
    Case(
        "linear m=8, gd+m",
        {"model": "linear", "optim": {"name": "gd", "momentum": 0.9}},
        ({"name": "random-heavy-tail", "groups": 8},),
        target=1.08,
        rounds=31,
        release=1 / 2.5,
        memory=117,
    ),
    Case(
        "linear m=9, adam",
        {"model": "linear", "optim": "adam"},
        ({"name": "random-heavy-tail", "groups": 9},),
        target=1.05,
        rounds=15,
        release=1 / 2.5,
        memory=262,
    ),
    Case(
        "CNN, adam",
        {"model": "cnn", "optim": "adam"},
        ({"name": "barcoded-mnist", "bits": 6, "samples": 3200}, {"name": "digits", "bits": 5}),
        target=1.15,
        rounds=5,
        release=1 / 4,
        memory=330,
    ),
    Case(
        "one-layer transformer, D=128, adam",
        {"model": {"name": "transformer", "width": 128, "mlp": 128}, "optim": "adam"},
        ({"name": "tiny-ptb"}, {"name": "stdlib-text", "max_tokens": 20_000}),
        target=1.25,
        rounds=5,
        release=1 / 8,
        memory=1009,
    ),
    Case(
        "GPT2, 2 blocks, D=768, 2048 tokens, adam",
        {"model": {"name": "gpt2", "depth": 2}, "optim": "adam", "batch_size": 16},
        ({"name": "tiny-ptb", "length": 128}, {"name": "stdlib-text", "max_tokens": 20_000}),
        target=1.2,
        rounds=5,
    ),
    Case(
        "ResNet18, width 16, 256 images, adam",
        {"model": {"name": "resnet18", "width": 16}, "optim": "adam", "batch_size": 256},
        (_TINY_IMAGENET, {"name": "digits", "bits": 5}),
        target=1.2,
        rounds=9,
    ),
    Case(
        "ViT, width 64, 256 images, adam",
        {"model": {**_VIT, "patch": 8}, "optim": "adam", "batch_size": 256},
        (_TINY_IMAGENET, {"name": "digits", "bits": 5}),
        target=1.2,
        rounds=15,
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
        if not options.wants(case.name):
            continue
        run, name = start(case, options)
        rounds = options.rounds or case.rounds
        step = one_step(run)
        contenders = {"bare": bare(step), "step": step, "no stats": one_step(run, stats=False)}
        timing = interleave(contenders, rounds=rounds)
        ours = name == case.name  # targets do not apply to a stand-in, which is another problem
        yield timing.row(name, "step", "bare", case.target if ours else None)
        yield timing.row(name, "step", "no stats", STATS)
        if case.release is not None:
            loops = {"step": step, "release": release(run)}
            timing = interleave(loops, rounds=min(rounds, 9) if rounds > 5 else 2, warmup=1)
            yield timing.row(name, "step", "release", case.release if ours else None)
        if run.spec.model.name == "linear":
            blown, _ = start(case, options, lr=1e4)
            steps = {"normal": one_step(run), "diverged": one_step(blown)}
            for _ in range(20):
                steps["diverged"]()
            yield interleave(steps, rounds=rounds).row(name, "diverged", "normal", DIVERGED)
        if options.device == "cpu" and (case is CASES[0] or not options.tiny):
            del contenders, run, step, timing
            size = peak_growth(_two_steps, case, options)
            yield Row(name, "memory", "", size, size, size, "MB", case.memory if ours else None)


def start(case: Case, options: Options, lr: float = 1e-3) -> tuple[_Run, str]:
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


def one_step(run: _Run, *, stats: bool = True) -> Callable[[], None]:
    """Return a training step of a run."""

    def step() -> None:
        sums = ClassStats.zeros(run.data.num_classes, run.device) if stats else None
        run._gradient(0, sums)
        if sums is not None:
            run._record("train", 0, sums)
        run.optimizer.step()

    return step


def _two_steps(case: Case, options: Options) -> Callable[[], None]:
    one_step(start(case, Options(data_dir=options.data_dir, tiny=True))[0])()  # loads every library

    def measured() -> None:
        step = one_step(start(case, options)[0])
        step()
        step()

    return measured


def bare(step: Callable[[], object]) -> Callable[[], None]:
    """The products and convolutions of a step, alone: its calls, on random tensors of the same shapes and strides."""
    with _Products() as recorded:
        step()

    def run() -> None:
        for call, args, kwargs in recorded.calls:
            call(*args, **kwargs)

    return torch.no_grad()(run)


class _Products(TorchDispatchMode):
    """Keeps the calls of matrix products, convolutions and PyTorch's fused attention, forward and backward."""

    names = ("mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_", "convolution", "convolution_backward")

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Any], Any, Any]] = []
        self.tensors: dict[tuple[object, ...], Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        result = func(*args, **(kwargs or {}))
        if name in self.names or "scaled_dot_product" in name:
            number = itertools.count()
            copied = tree_map_only(Tensor, lambda t: self._like(t, next(number)), (args, kwargs or {}))
            self.calls.append((func, *copied))
        return result

    def _like(self, tensor: Tensor, position: int) -> Tensor:
        """A random tensor of the same shape, strides and type, one for each position of an argument."""
        shape, stride = tensor.shape, tensor.stride()
        key = (position, tensor.dtype, shape, stride)
        if key not in self.tensors:
            size = 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) if tensor.numel() else 0
            flat = (
                torch.rand(size).to(tensor.dtype)
                if tensor.is_floating_point()
                else torch.zeros(size, dtype=tensor.dtype)
            )
            self.tensors[key] = flat.as_strided(shape, stride)
        return self.tensors[key]


def release(run: _Run) -> Callable[[], None]:
    """A step as in the authors' release: whole-batch logits, then the losses of all training data again, twice.

    The second evaluation is that of its validation data, which are the training data here. Each takes the loss and the
    accuracy, overall and per class, in two calls of either.
    """
    inputs, targets = run.train_split.inputs, run.train_split.targets.flatten()
    C = run.data.num_classes

    def evaluate() -> None:
        logits = run.head(run.body(inputs))
        for by_class in (False, True):
            losses = F.cross_entropy(logits, targets, reduction="none")
            correct = (logits.argmax(dim=1) == targets).float()
            for values in (losses, correct):
                torch.zeros(C).index_add_(0, targets, values) if by_class else values.mean()

    def step() -> None:
        run.optimizer.zero_grad()
        F.cross_entropy(run.head(run.body(inputs)), targets).backward()
        run.optimizer.step()
        with torch.no_grad():
            evaluate()
            evaluate()

    return step
