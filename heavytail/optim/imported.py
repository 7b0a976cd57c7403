"""Any torch Optimizer by its import path, without a recipe: `torch.optim.Muon`, `package.module:Class`.

The settings are the parameters of its constructor, by name, except the parameters to train and `lr`. A run's key covers
the path, every setting, defaults included, and the source of a class that is not installed; for one that is, a run's
record has the version of its distribution.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import math
import os
import sys
import sysconfig
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
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
        revision: a number of the source files of the class and its base classes, part of a run's key; 0 if all of them
            belong to installed packages.
    """

    optimizer_class: ClassVar[type[Optimizer]]
    path: ClassVar[str]
    revision: ClassVar[int]

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
        modes: Any = optimizer
        if callable(getattr(modes, "train", None)) and callable(getattr(modes, "eval", None)):
            modes.train()  # some schedule-free optimizers start in the mode of evaluation, and cannot step in it
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

    def refuses(self, lr: float) -> bool:
        """Whether the optimizer raises an error at this step size, though not at others."""
        return not self._steps((2, 2), lr)

    @property
    def matrices_only(self) -> bool:
        """Whether the optimizer trains matrices but refuses vectors."""
        return not self._steps((2,))

    def _steps(self, shape: tuple[int, ...], lr: float = 1e-3) -> bool:
        try:
            _try(self, shape, lr)
        except SpecError:
            return False
        return True

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the distributions that the optimizer comes from, for the record of a run."""
        package = self.optimizer_class.__module__.partition(".")[0]
        return {name: metadata.version(name) for name in sorted(set(_distributions().get(package, ())))}


def _revision(cls: type[Optimizer]) -> int:
    content = hashlib.sha256()
    own = False
    for owner in cls.__mro__:
        file = getattr(sys.modules.get(owner.__module__), "__file__", None)
        if file is not None and not _installed(Path(file)):
            content.update(Path(file).read_bytes())
            own = True
    return int(content.hexdigest()[:12], 16) if own else 0


def _installed(file: Path) -> bool:
    """Whether a file belongs to Python or to an installed package; one installed in place (editable) does not."""
    if {"site-packages", "dist-packages"} & set(file.parts):
        return True
    return any(file.is_relative_to(sysconfig.get_path(kind)) for kind in ("stdlib", "platstdlib"))


@functools.cache
def _distributions() -> Any:
    return metadata.packages_distributions()


_RECIPES: dict[tuple[type[Optimizer], str], type[Imported]] = {}
# Settings by these names would hide what a recipe has, or be taken for another part of a component's table.
_TAKEN = {"name", "version", "lr_scale", *Imported.__annotations__, *(n for n in dir(Imported) if n[0] != "_")}


def recipe(path: str) -> type[Imported]:
    """Return the recipe of the optimizer at an import path, `package.module.Class` or `package.module:Class`.

    Modules in the working directory are found, after installed ones.

    Raises:
        SpecError: there is no such module or class, it is not an Optimizer, or it has no `lr`.
    """
    cls = _class(path)
    path = _canonical(cls, path)
    if (cls, path) not in _RECIPES:
        _RECIPES[cls, path] = _recipe(cls, path)
    return _RECIPES[cls, path]


def _canonical(cls: type[Optimizer], path: str) -> str:
    """The same path for every spelling: the public place of a class, or where it is defined, if it is found there."""
    for short in ("torch.optim", cls.__module__.partition(".")[0]):
        if getattr(sys.modules.get(short), cls.__name__, None) is cls:
            return f"{short}:{cls.__name__}"
    defined: Any = sys.modules.get(cls.__module__)
    for part in cls.__qualname__.split("."):
        defined = getattr(defined, part, None)
    # Neither a class made by a function nor one whose name was given to another class since is found by its name.
    return f"{cls.__module__}:{cls.__qualname__}" if defined is cls else ":".join(_split(path))


def _split(path: str) -> tuple[str, str]:
    """The module and the name of an import path."""
    module, _, name = path.partition(":") if ":" in path else path.rpartition(".")
    return module, name


def _recipe(cls: type[Optimizer], path: str) -> type[Imported]:
    settings = _settings(cls)
    if taken := _TAKEN & {name for name, default in settings.items() if default is inspect.Parameter.empty}:
        raise SpecError(
            f"optim: {path} needs the setting {min(taken)}, a name that heavytail uses; rename it or give it a default"
        )
    settings = {name: default for name, default in settings.items() if name not in _TAKEN}
    if "lr" not in settings:
        others = ", ".join(settings) or "none"
        raise SpecError(f"optim: expected an optimizer with the setting lr, got {path} with the settings: {others}")
    fields = [_field(name, default) for name, default in settings.items() if name != "lr"]
    made: Any = dataclasses.make_dataclass(cls.__name__, fields, bases=(Imported,), frozen=True, kw_only=True)
    made.__doc__ = ((cls.__doc__ or "").strip() or path).splitlines()[0]
    made.optimizer_class, made.path, made.revision = cls, path, _revision(cls)
    imported: type[Imported] = made
    return imported


def _class(path: str) -> type[Optimizer]:
    """The class at an import path."""
    module_name, name = _split(path)
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
    except (Exception, SystemExit) as error:  # a training script may parse the command line when it is imported
        raise SpecError(f"optim: cannot import '{path}': {_line(error)}") from error
    known = [n for n, v in vars(value).items() if _is_optimizer(v) and v is not Optimizer]
    for part in name.split("."):
        try:
            value = getattr(value, part)
        except AttributeError as error:
            raise unknown(f"optimizer of module {module_name}", name, known) from error
        except Exception as error:  # a module may import its parts when they are asked for
            raise SpecError(f"optim: cannot import '{path}': {_line(error)}") from error
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
def _try(recipe: Imported, shape: tuple[int, ...], lr: float = 1e-3) -> None:
    """Take one step on a small parameter; SpecError with the optimizer's reason if it cannot."""
    gradient = torch.tensor([1.0, -0.5, 0.25, 2.0])[: math.prod(shape)].reshape(shape)
    parameter = Parameter(torch.zeros(shape))
    parameter.grad = gradient
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            recipe.build([parameter], lr).step()
    except Exception as error:
        raise SpecError(f"optim: {recipe.path} cannot train a {list(shape)} parameter: {_line(error)}") from error


def _line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
