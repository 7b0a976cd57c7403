"""Steps of the quick reproduction's problems: what limits them, and two ways to make them faster, on one thread.

`step` and `bare` are those of the group `step`, at the sizes of the presets. `compiled` is the step with its body
through torch.compile, whose own time is given, too. `batched` is one gradient of RUNS models by torch.func.vmap over
their parameters; `in turn` takes the same RUNS gradients one after another. Both are plain PyTorch, without statistics.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from benchmarks.step import bare, one_step
from benchmarks.timing import Options, Row, interleave
from heavytail.experiment.store import RunStore
from heavytail.experiment.sweep import Sweep
from heavytail.train.engine import _Run

PRESETS = (
    "linear",
    "last-layer",
    "one-layer-transformer",
    "two-layer-transformer",
    "gpt2",
    "cnn",
    "resnet18",
    "simple-vit",
)
RUNS = 4  # step sizes of a sparse wave that are stable at a time


def rows(options: Options) -> Iterator[Row]:
    """Return the ratios for the first optimizer of every preset."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as quick trains on every core
    try:
        wanted = [*filter(options.wants, PRESETS)]
        for preset in wanted[:1] if options.tiny else wanted:
            yield from _problem(preset, options)
    finally:
        torch.set_num_threads(threads)


def _problem(preset: str, options: Options) -> Iterator[Row]:
    run, rounds = _run(preset, options), options.rounds or 7
    step = one_step(run)
    yield interleave({"step": step, "bare": bare(step)}, rounds=rounds).row(preset, "step", "bare")
    compiled = one_step(_run(preset, options, compiled=True))
    begun = time.perf_counter()
    compiled()
    spent = time.perf_counter() - begun
    timing = interleave({"step": step, "compiled": compiled}, rounds=rounds)
    yield timing.row(preset, "compiled", "step")
    yield Row(preset, "first compiled step", "", spent, spent, spent, "s")
    yield interleave(_several(run), rounds=rounds, warmup=1).row(preset, "batched", "in turn")


def _run(preset: str, options: Options, *, compiled: bool = False) -> _Run:
    torch.set_flush_denormal(True)  # as the engine does
    sweep = Sweep.load(preset, scale="quick")
    spec = sweep.spec(sweep.arms[0], -3.0, 0)
    with tempfile.TemporaryDirectory() as folder:
        return _Run(spec, RunStore(Path(folder)), options.data_dir, torch.device(options.device), compiled=compiled)


class _Whole(nn.Module):
    """A model as a function of its inputs alone: torch.func calls `forward`."""

    def __init__(self, run: _Run) -> None:
        super().__init__()
        self.model = run.model
        self.frozen = run.body != run.model.features  # the inputs are the features of a frozen body

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits [M, C]."""
        features = inputs if self.frozen else self.model.features(inputs)  # type: ignore[operator]
        logits: Tensor = self.model.head(features)  # type: ignore[operator]
        return logits


def _several(run: _Run) -> dict[str, Callable[[], object]]:
    """Gradients of RUNS models on the first micro-batch of a step: at once, and one after another."""
    (batch,) = run.train_split.batches(run._chunks(0)[:1], seeds=[0])
    targets, model = batch.targets.flatten(), _Whole(run).train()
    parameters, buffers = stack_module_state([model] * RUNS)

    def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(functional_call(model, (parameters, buffers), (batch.inputs,)), targets)

    def in_turn() -> None:
        for number in range(RUNS):
            grad(loss)(*({name: t[number] for name, t in table.items()} for table in (parameters, buffers)))

    # Dropout differs from run to run in a search over seeds, and not over step sizes; its cost is the same.
    at_once = vmap(grad(loss), randomness="different")
    return {"batched": lambda: at_once(parameters, buffers), "in turn": in_turn}
