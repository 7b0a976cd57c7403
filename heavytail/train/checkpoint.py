"""The state to continue a run bit for bit: step, parameters, optimizer state, generators, running sums.

It consists of arrays named by path, so a checkpoint is a safetensors file and never a pickle. Arrays do not hold the
memory layout of their tensors, on which kernels may rely: PyTorch's fused Adam walks the memory of weights and moments
side by side. State of the shape of its parameter is therefore copied into a tensor with that parameter's layout.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from heavytail.errors import StoreError
from heavytail.experiment.store import Array
from heavytail.metrics import ClassStats

RUNNING = ("count", "loss_sum", "correct", "p_correct_sum")


def size(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of parameters and optimizer state."""
    tensors = [*model.state_dict().values()]
    tensors += [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    return sum(t.numel() * t.element_size() for t in tensors)


def pack(step: int, model: nn.Module, optimizer: torch.optim.Optimizer, running: ClassStats | None) -> dict[str, Array]:
    """Return all state before the gradient of `step`, as copies."""
    arrays: dict[str, Array] = {"step": np.array(step)}
    arrays |= {f"model/{name}": _host(value) for name, value in model.state_dict().items()}
    table = optimizer.state_dict()
    for index, state in table["state"].items():
        for name, value in state.items():
            arrays[f"optim/{index}/{name}"] = _host(torch.as_tensor(value))
    for index, group in enumerate(table["param_groups"]):
        for name, value in group.items():
            if isinstance(value, bool | int | float):  # some optimizers keep step counts in their groups
                arrays[f"group/{index}/{name}"] = np.array(value)
    arrays["rng/cpu"] = torch.get_rng_state().numpy()
    if torch.cuda.is_available():
        arrays["rng/cuda"] = torch.cuda.get_rng_state().numpy()
    if running is not None:
        arrays |= {f"running/{name}": _host(getattr(running, name)) for name in RUNNING}
    return arrays


def unpack(
    step: int,
    arrays: dict[str, Array],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    running: ClassStats | None,
) -> None:
    """Restore the state that `pack` returned.

    Raises:
        StoreError: the state is of another step than the one in the run's record.
    """
    if "step" in arrays and int(arrays["step"]) != step:  # older checkpoints do not have it
        raise StoreError(f"status.json names step {step}, but its checkpoint is of step {int(arrays['step'])}")
    model.load_state_dict({k.removeprefix("model/"): _tensor(v) for k, v in arrays.items() if k.startswith("model/")})
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    groups = optimizer.state_dict()["param_groups"]
    state: dict[int, dict[str, Any]] = {}
    for path, value in arrays.items():
        kind, _, rest = path.partition("/")
        if kind == "optim":
            index, name = rest.split("/", 1)
            state.setdefault(int(index), {})[name] = _like(parameters[int(index)], _tensor(value))
        elif kind == "group":
            index, name = rest.split("/", 1)
            groups[int(index)][name] = value.item()
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    torch.set_rng_state(_tensor(arrays["rng/cpu"]))
    if "rng/cuda" in arrays and torch.cuda.is_available():
        torch.cuda.set_rng_state(_tensor(arrays["rng/cuda"]))
    if running is not None and "running/count" in arrays:
        for name in RUNNING:
            getattr(running, name).copy_(_tensor(arrays[f"running/{name}"]))


def _like(parameter: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The value, in the memory layout of the parameter if the shapes agree."""
    if value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _host(value: torch.Tensor) -> Array:
    array: Array = value.detach().cpu().numpy().copy()  # not a view: training changes the tensor
    return array


def _tensor(value: Array) -> torch.Tensor:
    return torch.from_numpy(np.array(value))  # a copy: arrays read from a file are read-only
