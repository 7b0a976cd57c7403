"""What it takes to continue a run bit for bit: parameters, optimizer state, generators, sums since the last record.

Arrays only, named by path, so that a checkpoint is a safetensors file and never a pickle.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from heavytail.experiment.store import Array
from heavytail.metrics import ClassStats

RUNNING = ("count", "loss_sum", "correct", "p_correct_sum")


def pack(model: nn.Module, optimizer: torch.optim.Optimizer, running: ClassStats | None) -> dict[str, Array]:
    """Return all state as host arrays."""
    arrays = {f"model/{name}": _host(value) for name, value in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            arrays[f"optim/{index}/{name}"] = _host(torch.as_tensor(value))
    arrays["rng/cpu"] = torch.get_rng_state().numpy()
    if torch.cuda.is_available():
        arrays["rng/cuda"] = torch.cuda.get_rng_state().numpy()
    if running is not None:
        arrays |= {f"running/{name}": _host(getattr(running, name)) for name in RUNNING}
    return arrays


def unpack(
    arrays: dict[str, Array], model: nn.Module, optimizer: torch.optim.Optimizer, running: ClassStats | None
) -> None:
    """Put the state of `pack` back."""
    model.load_state_dict({k.removeprefix("model/"): _tensor(v) for k, v in arrays.items() if k.startswith("model/")})
    state: dict[int, dict[str, Any]] = {}
    for path, value in arrays.items():
        if path.startswith("optim/"):
            _, index, name = path.split("/")
            state.setdefault(int(index), {})[name] = _tensor(value)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(_tensor(arrays["rng/cpu"]))
    if "rng/cuda" in arrays and torch.cuda.is_available():
        torch.cuda.set_rng_state(_tensor(arrays["rng/cuda"]))
    if running is not None and "running/count" in arrays:
        for name in RUNNING:
            getattr(running, name).copy_(_tensor(arrays[f"running/{name}"]))


def _host(value: torch.Tensor) -> Array:
    array: Array = value.detach().cpu().numpy()
    return array


def _tensor(value: Array) -> torch.Tensor:
    return torch.from_numpy(np.array(value))  # a copy: arrays read from a file cannot be written to
