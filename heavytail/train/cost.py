"""Estimate the cost of runs before training them: parameters, operations, memory, and time.

Times are those of stored runs of the same problem, where there are any; otherwise operations divided by the speed of
the machine, which a short calibration measures.

A model is built on torch's "meta" device, which has shapes but no numbers. The operations of one sample's forward and
backward passes are counted and multiplied by samples and steps; only matrix products and convolutions count.

Shapes: N samples, C classes, D features.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from heavytail.data import Data
from heavytail.errors import DataError, SpecError
from heavytail.experiment.registry import registry
from heavytail.experiment.spec import RunSpec
from heavytail.experiment.store import RunStore
from heavytail.experiment.waves import Waves
from heavytail.train.engine import gradient_pass_evaluates, load_data

# Fraction of its time that a run spends in matrix products at full speed: about 0.3 for the smallest models on a CPU,
# 0.9 for a linear one.
UTILISATION = 0.4
# One CPU core, for `Row.seconds`: operations per second, and the overhead of a run and of a step.
CORE_SPEED, RUN_SECONDS, STEP_SECONDS = 3e10, 0.5, 1e-3
# Dense peak in operations per second, from the vendors' data sheets: float32, TF32, bfloat16.
GPUS = {
    "a100": (19.5e12, 156e12, 312e12),
    "h100": (67e12, 494e12, 989e12),
    "h200": (67e12, 494e12, 989e12),
    "rtx4090": (82.6e12, 82.6e12, 165e12),
}


@dataclass(frozen=True)
class Cost:
    """Cost of one run.

    Attributes:
        parameters: number of parameters, frozen ones included.
        trained: number of parameters that are not frozen.
        operations: floating-point operations of all matrix products and convolutions.
        working: bytes held at once by parameters, gradients, activations and data.
        state: bytes of optimizer state.
        nominal: whether the data are not available, so that their size is the one in their recipe.
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
    """Cost of the runs that the search of one optimizer still needs.

    Attributes:
        waves: their number: sparse grid, dense grid, verdict seeds.
        spec: one of them.
        cost: of `spec`.
        recorded: median seconds of stored runs of this problem; None if there are none.
    """

    waves: tuple[int, ...]
    spec: RunSpec
    cost: Cost
    recorded: float | None = None

    @property
    def runs(self) -> int:
        """The number of all of them."""
        return sum(self.waves)

    @property
    def operations(self) -> float:
        """FLOPs of all runs."""
        return self.runs * self.cost.operations

    @property
    def seconds(self) -> float:
        """Time of all runs as recorded; otherwise a rough one on one CPU core, for comparing searches."""
        if self.recorded is not None:
            return self.runs * self.recorded
        steps = RUN_SECONDS + self.spec.steps * STEP_SECONDS
        return self.runs * steps + self.operations / CORE_SPEED

    def gpu_hours(self, gpu: str) -> float:
        """Return the hours that all runs take on one GPU of GPUS."""
        peak = GPUS[gpu][{"tf32": 1, "bf16": 2}.get(self.spec.precision, 0)]
        return _hours(self.operations, peak)

    def hours(self, speed: float, workers: int = 1) -> float:
        """Return the hours of all runs: on a machine of `speed` operations per second, or as recorded by `workers`."""
        if self.recorded is None:
            return _hours(self.operations, speed)
        return self.recorded * sum(number / min(workers, number) for number in self.waves) / 3600


def problem(spec: RunSpec) -> str:
    """Return what runs of about equal cost have in common: all but optimizer, step size and seeds."""
    return repr((spec.data, spec.model, spec.loss, spec.batch_size, spec.steps, spec.precision))


def recorded_seconds(store: RunStore) -> dict[str, float]:
    """Return the median wall seconds of the runs of every problem of a store that records times.

    Runs that were ended early count, as the next search will end such runs, too; diverged and interrupted ones do not.
    """
    seconds: dict[str, list[float]] = {}
    for _, table, record in store.records():
        timing = record.get("timing")
        if timing and (record["status"] == "done" or "ended" in record):
            with suppress(SpecError):  # of a component that is not installed
                seconds.setdefault(problem(RunSpec.from_dict(table).resolved), []).append(timing["seconds"])
    return {name: median(values) for name, values in seconds.items()}


class Costs:
    """The cost of searches, one after another; runs that several of them share are counted with the first.

    Args:
        data_dir: where public data sets are.
        recorded: seconds of a run of each problem (see `recorded_seconds`).
    """

    def __init__(self, data_dir: Path, recorded: Mapping[str, float] | None = None) -> None:
        self._data_dir, self._recorded = data_dir, recorded or {}
        self._counted: set[str] = set()
        self._of: dict[str, Cost] = {}

    def row(self, waves: Waves) -> Row | None:
        """Return the cost of a search from its waves; None if no run is left to count.

        Raises:
            DataError: the data are not available, and their recipe does not give their size.
        """
        new = [[spec for spec in wave if spec.key not in self._counted] for wave in waves]
        first = next((spec.resolved for wave in new for spec in wave), None)
        if first is None:
            return None
        name = problem(first)
        if name not in self._of:
            self._of[name] = cost(first, self._data_dir)
        self._counted |= {spec.key for wave in new for spec in wave}
        shared = self._of[name]  # only the optimizer state differs
        mine = replace(shared, state=_state(first, shared.trained))
        return Row(tuple(len(wave) for wave in new if wave), first, mine, self._recorded.get(name))


def cost(spec: RunSpec, data_dir: Path) -> Cost:
    """Return the cost of one run."""
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
    step = both + (2 if frozen else 3) * head  # per sample, forward and backward
    look = forward + head  # per sample, evaluation

    kept = frozen and evaluates  # features are computed once
    operations = spec.steps * (spec.batch_size or N) * float(step - forward if kept else step)
    if spec.train_stats == "exact":
        looks = 1 if evaluates else len(spec.recorded_steps())
        operations += looks * N * float(look)
    operations += len(spec.recorded_steps(spec.test_every)) * N_test * float(look)

    together = spec.microbatch or spec.batch_size or N
    sample = sum(t.numel() * t.element_size() for t in (batch.inputs, batch.targets))
    working = _bytes(parameters) + 2 * _bytes(trained)  # new gradients, and their sum
    kept_bytes = saved.bytes + _bytes([features]) * int(features.requires_grad)  # and the gradient of the features
    held = together if data.train.inputs.is_meta else N + N_test  # images are decoded batch by batch
    working += together * kept_bytes + held * sample
    size, trained_size = (sum(p.numel() for p in group) for group in (parameters, trained))
    return Cost(size, trained_size, operations, working, _state(spec, trained_size), nominal)


class Speed(NamedTuple):
    """Operations per second of float32 matrix products on all of torch's threads.

    Attributes:
        idle: on an otherwise idle machine: the speed of one thread in its own processor time, times the threads.
        now: in wall time, beside whatever else runs at present.
    """

    idle: float
    now: float


def speed(seconds: float = 0.3, size: int = 768) -> Speed:
    """Measure the speed of this machine.

    Processor time does not pass while another process has the core, so that a busy machine does not look slow.
    """
    a, b = torch.ones(size, size), torch.ones(size, size)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = _fastest(lambda: a @ b, seconds, time.thread_time)
    finally:
        torch.set_num_threads(threads)
    start, products = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        a @ b
        products += 1
    now = (time.perf_counter() - start) / products
    idle = threads * 2 * size**3 / one
    return Speed(idle, min(idle, 2 * size**3 / now))


def _fastest(work: Callable[[], object], seconds: float, clock: Callable[[], float]) -> float:
    """Return the shortest time of several calls by a clock, of those within `seconds` of wall time, at least three."""
    work()  # the first one starts threads
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = clock()
        work()
        times.append(clock() - start)
    return min(times)


class _Saved:
    """Counts the bytes that a forward pass saves for the backward pass, without parameters."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.bytes = 0
        self._seen = {p.untyped_storage()._cdata for p in parameters}
        self._kept: list[Any] = []  # keeps storages alive, so that no address is reused

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self._kept.append(storage)
            self.bytes += storage.nbytes()
        return tensor


def _data(spec: RunSpec, data_dir: Path) -> tuple[Data, int, int, bool]:
    """Data and N of both splits; a stand-in of one sample and the nominal N if the data are not available."""
    try:
        data = load_data(spec, data_dir)
    except DataError:
        recipe = registry("data").make(spec.data)
        if not hasattr(recipe, "nominal"):
            raise
        return (*recipe.nominal(), True)
    return data, len(data.train), 0 if data.test is None else len(data.test), False


def _state(spec: RunSpec, trained: int) -> float:
    """Bytes of optimizer state for `trained` parameters of a resolved run.

    Measured per entry, by one step on a small matrix; state per tensor, such as a step count, is left out.
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
