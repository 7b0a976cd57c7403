"""Any torch Optimizer by its import path, without a recipe: `torch.optim.Muon`, `package.module:Class`.

The settings are the parameters of its constructor, by name, except the parameters to train and `lr`. A run's key covers
the path and every setting, defaults included, but not the code behind the path; a run's record has the version of its
distribution.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import os
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import Parameter
from torch.optim import Optimizer

from heavytail.errors import SpecError, unknown
from heavytail.optim.by_role import on_matrices
from heavytail.optim.directions import check_groups, check_step_size

_Scalar = bool | int | float | str | None
_Plain = bool | int | float | str | tuple[_Scalar, ...] | None


@dataclass(frozen=True)
class Imported:
    """Base of the recipes that `recipe` returns; their fields are the settings of `optimizer_class`.

    Attributes:
        optimizer_class: the optimizer.
        path: its import path, the same however it was spelled.
    """

    optimizer_class: ClassVar[type[Optimizer]]
    path: ClassVar[str]

    def __post_init__(self) -> None:
        _try(self, (2, 2))

    def build(self, params: Iterable[Parameter], lr: float) -> Optimizer:
        """Return the optimizer of these parameters, or parameter groups, with step size `lr`."""
        check_step_size(lr)
        # Only what differs from the defaults: a subclass may pass some of them on itself.
        values = {f.name: (getattr(self, f.name), f.default) for f in dataclasses.fields(self)}
        optimizer = self.optimizer_class(
            params,
            lr=lr,  # type: ignore[call-arg]
            **{name: value for name, (value, default) in values.items() if value != default},
        )
        return check_groups(optimizer)

    def build_for(self, model: nn.Module, lr: float) -> Optimizer:
        """Return the optimizer of a model.

        One for matrices only (Muon) trains the hidden matrices, or that of the head where there are none, and Adam the
        other parameters, with the same step size.
        """
        if not self.matrices_only:
            return self.build([p for p in model.parameters() if p.requires_grad], lr)
        return on_matrices(model, self, lr)

    def accepts(self, parameter: Parameter) -> bool:
        """Whether the optimizer trains this parameter."""
        return parameter.ndim == 2 or not self.matrices_only

    @property
    def matrices_only(self) -> bool:
        """Whether the optimizer trains matrices but refuses vectors."""
        try:
            _try(self, (2,))
        except SpecError:
            return True
        return False

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the distributions that the optimizer comes from, for the record of a run."""
        package = self.optimizer_class.__module__.partition(".")[0]
        return {name: metadata.version(name) for name in sorted(set(_distributions().get(package, ())))}


@functools.cache
def _distributions() -> Any:
    return metadata.packages_distributions()


_RECIPES: dict[type[Optimizer], type[Imported]] = {}


def recipe(path: str) -> type[Imported]:
    """Return the recipe of the optimizer at an import path, `package.module.Class` or `package.module:Class`.

    Modules in the working directory are found, after installed ones.

    Raises:
        SpecError: there is no such module or class, it is not an Optimizer, or it has no `lr`.
    """
    cls = _class(path)
    if cls not in _RECIPES:
        _RECIPES[cls] = _recipe(cls)
    return _RECIPES[cls]


def _recipe(cls: type[Optimizer]) -> type[Imported]:
    path = f"{cls.__module__}:{cls.__qualname__}"
    for short in ("torch.optim", cls.__module__.partition(".")[0]):  # the public place, if it is re-exported there
        if getattr(sys.modules.get(short), cls.__name__, None) is cls:
            path = f"{short}:{cls.__name__}"
            break
    settings = _settings(cls)
    if "lr" not in settings:
        others = ", ".join(settings) or "none"
        raise SpecError(f"optim: expected an optimizer with the setting lr, got {path} with the settings: {others}")
    fields = [_field(name, default) for name, default in settings.items() if name != "lr"]
    made: Any = dataclasses.make_dataclass(cls.__name__, fields, bases=(Imported,), frozen=True, kw_only=True)
    made.__doc__ = ((cls.__doc__ or "").strip() or path).splitlines()[0]
    made.optimizer_class, made.path = cls, path
    imported: type[Imported] = made
    return imported


def _class(path: str) -> type[Optimizer]:
    """The class at an import path."""
    module_name, _, name = path.partition(":") if ":" in path else path.rpartition(".")
    if not (module_name and name) or not all(
        part.isidentifier() for part in [*module_name.split("."), *name.split(".")]
    ):
        raise SpecError(f"optim: expected package.module:Class, got '{path}'")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        value: Any = import_module(module_name)
    except ModuleNotFoundError as error:
        missing = f"no module named '{error.name}'"
        raise SpecError(f"optim: cannot import '{path}': {missing}; install it, or start in its folder") from error
    except Exception as error:
        raise SpecError(f"optim: cannot import '{path}': {_line(error)}") from error
    known = [n for n, v in vars(value).items() if _is_optimizer(v) and v is not Optimizer]
    for part in name.split("."):
        if not hasattr(value, part):
            raise unknown(f"optimizer of module {module_name}", name, known)
        value = getattr(value, part)
    if not _is_optimizer(value):
        raise SpecError(f"optim: expected a subclass of torch.optim.Optimizer, got '{path}', {_described(value)}")
    cls: type[Optimizer] = value
    return cls


def _is_optimizer(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Optimizer)


def _described(value: object) -> str:
    return (
        f"a subclass of {value.__base__.__name__}"
        if isinstance(value, type) and value.__base__
        else f"a {type(value).__name__}"
    )


def _settings(cls: type[Optimizer]) -> dict[str, Any]:
    """Names and defaults of the constructor's parameters; `**kwargs` has those of the classes that it is passed to."""
    settings: dict[str, Any] = {}
    for owner in cls.__mro__:
        if owner is Optimizer:
            break
        if "__init__" not in vars(owner):
            continue
        parameters = list(inspect.signature(owner.__init__).parameters.values())[2:]  # type: ignore[misc]
        for p in parameters:
            # A class that another one passes settings on to may need some that are not the user's.
            if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and (
                owner is cls or p.default is not p.empty or p.name == "lr"
            ):
                settings.setdefault(p.name, p.default)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return {name: default for name, default in settings.items() if name == "lr" or _is_plain(default)}


def _is_plain(value: object) -> bool:
    """Whether a default can be part of a run's key; a setting with another one (a function) stays at its default."""
    if isinstance(value, tuple | list):
        return all(_is_plain(v) and not isinstance(v, tuple | list) for v in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return value is inspect.Parameter.empty or value is None or type(value) in (bool, int, str)


def _field(name: str, default: Any) -> tuple[str, Any] | tuple[str, Any, Any]:
    """A dataclass field whose type follows from the default."""
    if default is inspect.Parameter.empty:
        return (name, _Plain)
    if isinstance(default, tuple | list):
        return (name, tuple[_Scalar, ...], dataclasses.field(default=tuple(default)))
    hint: Any = {bool: bool, int: int | float, float: float, str: str}.get(type(default), _Plain)
    return (name, hint, dataclasses.field(default=default))


@functools.lru_cache(maxsize=1024)
def _try(recipe: Imported, shape: tuple[int, ...]) -> None:
    """Take one step on a small parameter; SpecError with the optimizer's reason if it cannot."""
    gradient = torch.tensor([1.0, -0.5, 0.25, 2.0])[: math.prod(shape)].reshape(shape)
    parameter = Parameter(torch.zeros(shape))
    parameter.grad = gradient
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            recipe.build([parameter], 1e-3).step()
    except Exception as error:
        raise SpecError(f"optim: {recipe.path} cannot train a {list(shape)} parameter: {_line(error)}") from error


def _line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
