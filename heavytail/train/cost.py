"""What runs cost before they are trained: parameters, operations, memory, and time by a short calibration.

A model is built on torch's "meta" device, which has shapes and no numbers; the operations of one sample are counted
as it goes forward and back, and everything else is multiplication. Only matrix products and convolutions are counted.

Shapes: N samples, C classes, D features.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from heavytail.data import Data
from heavytail.errors import DataError
from heavytail.experiment.registry import registry
from heavytail.experiment.spec import RunSpec
from heavytail.experiment.sweep import Arm, Sweep
from heavytail.train.engine import gradient_pass_evaluates, load_data

# Share of its time that a run spends in matrix products at full speed: about 0.3 for the smallest models on a CPU,
# 0.9 for a linear one.
UTILISATION = 0.4
# Of a CPU core, for `Row.seconds`: operations a second, overhead of a run and of a step.
CORE_SPEED, RUN_SECONDS, STEP_SECONDS = 3e10, 0.5, 1e-3
# Dense peak in operations a second, from the makers' data sheets: float32, TF32, bfloat16.
GPUS = {
    "a100": (19.5e12, 156e12, 312e12),
    "h100": (67e12, 494e12, 989e12),
    "h200": (67e12, 494e12, 989e12),
    "rtx4090": (82.6e12, 82.6e12, 165e12),
}


@dataclass(frozen=True)
class Cost:
    """Of one run.

    Attributes:
        parameters: numbers in the model, frozen ones included.
        trained: those of them that are not frozen.
        operations: floating-point operations of all its matrix products and convolutions.
        working: bytes held at once by parameters, gradients, activations and data.
        state: bytes that the optimizer keeps.
        nominal: whether the data are not here, and their size is what their recipe knows of it.
    """

    parameters: int
    trained: int
    operations: float
    working: float
    state: float
    nominal: bool

    @property
    def memory(self) -> float:
        """Bytes held at once."""
        return self.working + self.state


@dataclass(frozen=True)
class Row:
    """The search of one optimizer: how many runs at most, and what one of them costs."""

    sweep: Sweep
    arm: Arm
    runs: int
    spec: RunSpec
    cost: Cost

    @property
    def operations(self) -> float:
        """Of all runs together."""
        return self.runs * self.cost.operations

    @property
    def seconds(self) -> float:
        """A rough time of all runs on one CPU core, overheads included, to compare searches with each other."""
        steps = RUN_SECONDS + self.spec.steps * STEP_SECONDS
        return self.runs * steps + self.operations / CORE_SPEED

    def gpu_hours(self, gpu: str) -> float:
        """Return the hours that all runs take on one GPU of GPUS."""
        peak = GPUS[gpu][{"tf32": 1, "bf16": 2}.get(self.spec.precision, 0)]
        return _hours(self.operations, peak)

    def hours(self, speed: float) -> float:
        """Return the hours that all runs take on a machine whose products do `speed` operations a second."""
        return _hours(self.operations, speed)


def rows(sweep: Sweep, data_dir: Path) -> Iterator[Row]:
    """Yield what the search of each optimizer of a sweep costs.

    Raises:
        DataError: data are not here, and their recipe does not know their size without them.
    """
    shared: Cost | None = None  # only what the optimizer keeps differs
    for arm in sweep.arms:
        spec = sweep.spec(arm, arm.grid.exponents[0], sweep.seeds[0])
        shared = shared or cost(spec, data_dir)
        mine = replace(shared, state=_state(spec.resolved, shared.trained))
        yield Row(sweep, arm, num_runs(sweep, arm), spec, mine)


def num_runs(sweep: Sweep, arm: Arm) -> int:
    """Return how many runs the search of an optimizer takes if none diverges and its dense grid is stable.

    The sparse grid has one seed; the dense one has all, and on the first its powers of ten have been run by then. With
    probes the selected run is trained once more, to be measured.
    """
    grid, seeds = arm.grid, len(sweep.seeds)
    if grid.refine is None:
        return len(grid.exponents) * seeds + bool(sweep.probes)
    shared = 1 + 2 * (grid.refine // 2)
    return len(grid.exponents) + (2 * grid.refine + 1) * seeds - shared + bool(sweep.probes)


def cost(spec: RunSpec, data_dir: Path) -> Cost:
    """Return what one run costs."""
    spec = spec.resolved
    data, N, N_test, nominal = _data(spec, data_dir)
    with torch.device("meta"):
        model = registry("model").make(spec.model).build(data).eval()
    batch = next(iter(data.train.batches([slice(0, 1)])))
    parameters = list(model.parameters())
    trained = [p for p in parameters if p.requires_grad]
    frozen = all(name.startswith("head.") for name, p in model.named_parameters() if p.requires_grad)

    saved = _Saved(parameters)
    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        features = model.features(batch.inputs.to("meta"))
        forward = counter.get_total_flops()
        if features.requires_grad:
            features.sum().backward()
        both = counter.get_total_flops()
    head = 2 * len(features) * model.head.weight.numel()
    evaluates = gradient_pass_evaluates(spec, model, data.train)
    step = both + (2 if frozen else 3) * head  # a sample, forward and back
    look = forward + head  # a sample, evaluated

    kept = frozen and evaluates  # features are computed once
    operations = spec.steps * (spec.batch_size or N) * float(step - forward if kept else step)
    if spec.train_stats == "exact":
        looks = 1 if evaluates else len(spec.recorded_steps())
        operations += looks * N * float(look)
    operations += len(spec.recorded_steps(spec.test_every)) * N_test * float(look)

    together = spec.microbatch or spec.batch_size or N
    sample = sum(t.numel() * t.element_size() for t in (batch.inputs, batch.targets))
    working = _bytes(parameters) + 2 * _bytes(trained)  # the new gradients, and their sum
    kept_bytes = saved.bytes + _bytes([features]) * int(features.requires_grad)  # and the gradient of the features
    held = together if data.train.inputs.is_meta else N + N_test  # images are decoded batch by batch
    working += together * kept_bytes + held * sample
    size, trained_size = (sum(p.numel() for p in group) for group in (parameters, trained))
    return Cost(size, trained_size, operations, working, _state(spec, trained_size), nominal)


def speed(seconds: float = 0.3, size: int = 1024) -> float:
    """Return the operations a second of this machine's matrix products in float32, all cores together."""
    a, b = torch.ones(size, size), torch.ones(size, size)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


class _Saved:
    """Counts the bytes that a forward pass keeps for the backward pass, parameters aside."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.bytes = 0
        self._seen = {p.untyped_storage()._cdata for p in parameters}
        self._kept: list[Any] = []  # so that no storage's address is used twice

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self._kept.append(storage)
            self.bytes += storage.nbytes()
        return tensor


def _data(spec: RunSpec, data_dir: Path) -> tuple[Data, int, int, bool]:
    """Data, N of both splits; a stand-in of one sample and nominal N where the data are not here."""
    try:
        data = load_data(spec, data_dir)
    except DataError:
        recipe = registry("data").make(spec.data)
        if not hasattr(recipe, "nominal"):
            raise
        return (*recipe.nominal(), True)
    return data, len(data.train), 0 if data.test is None else len(data.test), False


def _state(spec: RunSpec, trained: int) -> float:
    """Bytes that the optimizer of a resolved run keeps of so many trained numbers.

    Measured by one step on a matrix, as a share of its bytes; what is kept of a whole tensor, such as a step count, is
    left out.
    """
    matrix = nn.Parameter(torch.ones(8, 8))
    optimizer = registry("optim").make(spec.optim).build([matrix], spec.lr)
    matrix.grad = torch.ones_like(matrix)
    optimizer.step()
    kept = [v for v in optimizer.state[matrix].values() if isinstance(v, torch.Tensor) and v.numel() > 1]
    return trained * _bytes(kept) / matrix.numel()


def _hours(operations: float, peak: float) -> float:
    return operations / (peak * UTILISATION) / 3600


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
