"""The state to continue a run bit for bit: step, parameters, optimizer state, generators, running sums.

It consists of arrays named by path, so a checkpoint is a safetensors file and never a pickle. State other than tensors
(step counts, lists of preconditioners, attributes of the optimizer) is described in JSON, itself an array of bytes.
Arrays do not hold the memory layout of their tensors, on which kernels may rely: PyTorch's fused Adam walks the memory
of weights and moments side by side. State of the shape of its parameter is therefore copied into a tensor with that
parameter's layout, and the order of the axes of state with another layout (eigenvectors) is described, too.
"""

from __future__ import annotations

import enum
import json
import logging
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from heavytail.errors import RefusedError, StoreError
from heavytail.experiment.store import Array
from heavytail.metrics import ClassStats

RUNNING = ("count", "loss_sum", "correct", "p_correct_sum")
_COMMON = set(vars(torch.optim.Optimizer([nn.Parameter(torch.zeros(1))], {})))  # attributes of every optimizer
_OTHER = "optim-other"  # JSON of state that is no tensor
_CONSTANT = (types.ModuleType, torch.dtype, torch.device, torch.layout, enum.Enum, logging.Logger)
# Getter and setter of the generator of a device, from which dropout draws there.
_GENERATORS: dict[str, tuple[Callable[[torch.device], torch.Tensor], Callable[[torch.Tensor, torch.device], None]]] = {
    "cuda": (torch.cuda.get_rng_state, torch.cuda.set_rng_state),
    "mps": (lambda _: torch.mps.get_rng_state(), lambda state, _: torch.mps.set_rng_state(state)),
}


def size(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of parameters and optimizer state."""
    weights: dict[str, torch.Tensor] = model.state_dict()
    return sum(t.numel() * t.element_size() for t in weights.values()) + state_bytes(optimizer)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of the tensors in an optimizer's state, in its attributes and its parameter groups too."""
    settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    inner = [v for part in parts(optimizer) for v in vars(part).values() if isinstance(v, torch.optim.Optimizer)]
    states = [state for one in (optimizer, *inner) for state in one.state.values()]
    held = {
        id(t): t for state in (*states, *map(_own, (*parts(optimizer), *inner)), *settings) for t in _tensors(state)
    }
    return sum(t.numel() * t.element_size() for t in held.values())


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested tables and lists."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from (t for v in value.values() for t in _tensors(v))
    elif isinstance(value, list | tuple):
        yield from (t for v in value for t in _tensors(v))


def pack(step: int, model: nn.Module, optimizer: torch.optim.Optimizer, running: ClassStats | None) -> dict[str, Array]:
    """Return all state before the gradient of `step`, as copies.

    Raises:
        RefusedError: the optimizer has state from which it could not be continued.
    """
    if (unsaved := _unsaved(optimizer)) is not None:
        raise RefusedError(unsaved)
    arrays: dict[str, Array] = {"step": np.array(step)}
    arrays |= {f"model/{name}": _host(value) for name, value in model.state_dict().items()}
    table = optimizer.state_dict()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    other: dict[str, Any] = {}
    for index, state in table["state"].items():
        if not (isinstance(index, int) and index < len(parameters) and isinstance(state, dict)):
            raise RefusedError(f"{type(optimizer).__name__}: expected state of parameters only, got state of '{index}'")
        for name, value in state.items():
            path = f"optim/{index}/{name}"
            if isinstance(value, torch.Tensor) and _is_usual(value, parameters[index]):
                arrays[path] = _host(value)
            else:
                other[path] = _describe(value, path, arrays, type(optimizer).__name__)
    for index, part in enumerate(parts(optimizer)):
        for name, value in _own(part).items():
            path = f"attribute/{index}/{name}"
            other[path] = _describe(value, path, arrays, type(part).__name__)
    for index, group in enumerate(table["param_groups"]):
        for name, value in group.items():  # some optimizers keep step counts and running sums in their groups
            path = f"group/{index}/{name}"
            if isinstance(value, bool | int | float):
                arrays[path] = np.array(value)
            elif name != "params" and _is_state(value):
                other[path] = _describe(value, path, arrays, type(optimizer).__name__)
    if other:
        arrays[_OTHER] = np.frombuffer(json.dumps(other).encode(), np.uint8)
    arrays["rng/cpu"] = torch.get_rng_state().numpy()
    device = parameters[0].device
    if device.type in _GENERATORS:
        arrays[f"rng/{device.type}"] = _GENERATORS[device.type][0](device).numpy()
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
    attributes: list[tuple[torch.optim.Optimizer, str, Any]] = []
    described = json.loads(bytes(arrays[_OTHER])) if _OTHER in arrays else {}
    for path, description in described.items():
        kind, index, name = path.split("/", 2)
        restored = _rebuild(description, arrays)
        if kind == "attribute":
            attributes.append((parts(optimizer)[int(index)], name, restored))
        elif kind == "group":
            groups[int(index)][name] = _placed(restored, groups[int(index)].get(name), parameters[0].device)
        else:
            state.setdefault(int(index), {})[name] = restored
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for number, saved in state.items():  # load_state_dict casts them to the parameter's precision
        parameter = parameters[number]
        loaded = optimizer.state[parameter]
        for name, entry in saved.items():
            loaded[name] = _placed(entry, loaded.get(name), parameter.device)
    for part, name, entry in attributes:
        setattr(part, name, _placed(entry, getattr(part, name, None), parameters[0].device))
    torch.set_rng_state(_tensor(arrays["rng/cpu"]))
    device = parameters[0].device
    if f"rng/{device.type}" in arrays and device.type in _GENERATORS:
        _GENERATORS[device.type][1](_tensor(arrays[f"rng/{device.type}"]), device)
    if running is not None and "running/count" in arrays:
        for name in RUNNING:
            getattr(running, name).copy_(_tensor(arrays[f"running/{name}"]))


def parts(optimizer: torch.optim.Optimizer) -> list[torch.optim.Optimizer]:
    """Return the optimizer, and those that it consists of."""
    return [optimizer, *getattr(optimizer, "optimizers", [])]


def _own(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Attributes of an optimizer that its class adds and that may be state: numbers, texts, tensors, lists of them."""
    return {k: v for k, v in vars(optimizer).items() if k not in _COMMON and _is_state(v)}


def _is_state(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return type(value) in (list, tuple) and all(map(_is_state, value))
    if type(value) is dict:
        return all(_is_state(v) for pair in value.items() for v in pair)
    return value is None or type(value) in (bool, int, float, str, torch.Tensor)


def _unsaved(optimizer: torch.optim.Optimizer) -> str | None:
    """Say which attribute of an optimizer may be state that `pack` leaves out; None if there is none.

    A number or a tensor is packed; a function or a setting does not change. Others (a deque, a generator, an inner
    optimizer, a table by parameter, a view of a parameter) would be as at the start, or point at the wrong memory.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    ids = {id(p) for p in parameters}
    memory = {p.untyped_storage().data_ptr() for p in parameters}

    def restored(value: Any) -> bool:
        if isinstance(value, torch.Tensor):
            return value.untyped_storage().data_ptr() not in memory or value.numel() == 0
        if isinstance(value, list | tuple):
            return all(map(restored, value))
        if isinstance(value, dict):
            return not any(type(k) is int and k in ids for k in value) and all(map(restored, value.values()))
        return True

    def constant(value: Any) -> bool:
        if isinstance(value, tuple) or (isinstance(value, list) and value):
            plain = isinstance(value, tuple)
            return all(constant(v) or (plain and _is_state(v) and not isinstance(v, torch.Tensor)) for v in value)
        return value is optimizer.param_groups or id(value) in ids or isinstance(value, _CONSTANT) or callable(value)

    for part in parts(optimizer):
        for name, value in vars(part).items():
            if name in _COMMON or (name == "optimizers" and len(parts(part)) > 1):
                continue
            if not (restored(value) if _is_state(value) else constant(value)):
                kind = type(value).__name__
                return f"{type(part).__name__}: expected state of tensors, numbers and lists, got {name} of type {kind}"
    return None


def _is_usual(value: torch.Tensor, parameter: torch.Tensor) -> bool:
    """Whether an array and the parameter suffice to restore a tensor: `unpack` gives it a NumPy type and a layout."""
    alike = torch.empty_like(parameter, device="meta")
    layout = alike if value.shape == parameter.shape else torch.empty(value.shape, device="meta")
    return value.dtype != torch.bfloat16 and value.stride() == layout.stride()


def _describe(value: Any, path: str, arrays: dict[str, Array], optimizer: str) -> Any:
    """Return JSON from which `_rebuild` makes the value; its tensors go to `arrays`, below `state/`."""
    if isinstance(value, torch.Tensor):
        name = f"state/{path}"
        half = value.dtype == torch.bfloat16
        order = sorted(range(value.ndim), key=value.stride, reverse=True)  # axes in memory: kernels may depend on it
        plain = value.permute(order).contiguous()
        arrays[name] = _host(plain.view(torch.int16) if half else plain)
        return {"tensor": name, "half": half, "order": order}
    if type(value) in (list, tuple):
        items = [_describe(v, f"{path}/{i}", arrays, optimizer) for i, v in enumerate(value)]
        return {type(value).__name__: items}
    if type(value) is dict:
        pairs = [(k, _describe(v, f"{path}/{i}", arrays, optimizer)) for i, (k, v) in enumerate(value.items())]
        if all(k is None or type(k) in (bool, int, float, str) for k, _ in pairs):
            return {"dict": pairs}
    if value is None or type(value) in (bool, int, float, str):
        return {"value": value}
    kind = type(value).__name__
    raise RefusedError(f"{optimizer}: expected state of tensors, numbers and lists, got {path} of type {kind}")


def _rebuild(described: Any, arrays: dict[str, Array]) -> Any:
    """Return the value that `_describe` described."""
    match described:
        case {"tensor": name, "half": half, "order": order}:
            tensor = _tensor(arrays[name])
            tensor = tensor.view(torch.bfloat16) if half else tensor
            return tensor.permute([order.index(axis) for axis in range(len(order))])
        case {"list": items}:
            return [_rebuild(item, arrays) for item in items]
        case {"tuple": items}:
            return tuple(_rebuild(item, arrays) for item in items)
        case {"dict": pairs}:
            return {key: _rebuild(item, arrays) for key, item in pairs}
    return described["value"]


def _placed(saved: Any, now: Any, device: torch.device) -> Any:
    """The saved value, its tensors on the devices of those in the optimizer's present value, by default `device`."""
    if isinstance(saved, torch.Tensor):
        return saved.to(now.device if isinstance(now, torch.Tensor) else device)
    if isinstance(saved, list | tuple):
        alike = isinstance(now, list | tuple) and len(now) == len(saved)
        pairs = zip(saved, now, strict=True) if alike else ((value, None) for value in saved)
        return type(saved)(_placed(value, other, device) for value, other in pairs)
    if isinstance(saved, dict):
        return {k: _placed(v, now.get(k) if isinstance(now, dict) else None, device) for k, v in saved.items()}
    return saved


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
