"""Components and registries: build an object from a name and settings in a preset.

A *recipe* is a frozen dataclass whose fields are the settings of one component (a data set, a model, an optimizer, ...)
and whose method builds it. To add one, write a file in the component's folder that registers a recipe: the registry
imports every module of its package when a name is first looked up.
"""

from __future__ import annotations

import dataclasses
import math
import pkgutil
import types
import typing
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, Union

from heavytail.errors import SpecError, unknown

R = TypeVar("R")
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Component:
    """A component by name, with the settings that differ from its defaults."""

    name: str
    params: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def parse(cls, value: object, kind: str, default: str | None = None) -> Component:
        """Read `"adam"`, `{"name": "adam", "beta2": 0.99}` or a Component; a table without a name gets `default`."""
        if isinstance(value, Component):
            return value
        if isinstance(value, str):
            return cls(value)
        if isinstance(value, Mapping):
            params = dict(value)
            name = params.pop("name", default)
            if isinstance(name, str):
                return cls(name, params)
        raise SpecError(f"{kind}: expected a name or a table with a name, got {value!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return the plain table `{"name": ..., **params}`."""
        return {"name": self.name, **self.params}


_NOUNS = {"data": "data set", "optim": "optimizer"}  # in messages; the other kinds are nouns already


class Registry(Generic[R]):
    """The recipes of one kind of component.

    Args:
        kind: the field of a RunSpec ("data", "model", ...); also used in messages.
        module: the package (or single module) whose files register the recipes.
        imported: returns the recipe of an import path, a name with a dot or colon; None if there are none.
    """

    def __init__(self, kind: str, module: str, imported: Callable[[str], type[R]] | None = None) -> None:
        self.kind = kind
        self._module = module
        self._imported = imported
        self._recipes: dict[str, type[R]] = {}
        self._versions: dict[str, int] = {}
        self._complete = False

    def register(self, name: str, *, version: int = 1) -> Callable[[type[T]], type[T]]:
        """Class decorator: register a frozen dataclass under `name`.

        Increment `version` when a change alters the results of the component: it is part of a run's key.
        """

        def add(recipe: type[T]) -> type[T]:
            assert dataclasses.is_dataclass(recipe), f"{recipe} is not a dataclass"
            assert name not in self._recipes, f"{self.kind} {name} is registered twice"
            self._recipes[name] = typing.cast("type[R]", recipe)
            self._versions[name] = version
            return recipe

        return add

    def names(self) -> list[str]:
        """Return the names of all recipes, sorted."""
        self._discover()
        return sorted(self._recipes)

    def recipe(self, name: str) -> type[R]:
        """Return the recipe class called `name`; raise SpecError with the nearest name if there is none."""
        self._discover()
        if name not in self._recipes:
            if self._imported is not None and is_path(name):
                return self._imported(name)
            raise unknown(_NOUNS.get(self.kind, self.kind), name, self._recipes, see=f"heavytail list {self.kind}")
        return self._recipes[name]

    def make(self, component: Component) -> R:
        """Return the recipe with the component's settings, each checked against its field's type."""
        recipe = self.recipe(component.name)
        fields = {f.name: f for f in dataclasses.fields(recipe) if f.init}  # type: ignore[arg-type]
        hints = type_hints(recipe)
        checked = {}
        for key, value in component.params.items():
            if key not in fields:
                raise unknown(f"setting of {_NOUNS.get(self.kind, self.kind)} {component.name}:", key, fields)
            checked[key] = check_type(value, hints[key], f"{self.kind}.{key}")
        for key, field in fields.items():
            if key not in checked and _required(field):
                raise SpecError(f"{self.kind} '{component.name}' needs {self.kind}.{key} ({_spell(hints[key])})")
        return recipe(**checked)

    def resolve(self, component: Component) -> Component:
        """Return the component with every default filled in.

        A recipe whose data depend on more than its settings (a file, the Python version) has a method `pinned()` that
        returns a recipe with a digest of that content, so that a run's key changes with the content.
        """
        recipe: Any = self.make(component)
        if hasattr(recipe, "pinned"):
            recipe = recipe.pinned()
        settings = {f.name: getattr(recipe, f.name) for f in dataclasses.fields(recipe) if f.init}
        for name, value in settings.items():
            if isinstance(value, float) and not math.isfinite(value):  # which has no place in a run's record
                raise SpecError(f"{self.kind}.{name}: expected a finite number, got {value}")
        return Component(
            getattr(recipe, "path", component.name) if is_path(component.name) else component.name, settings
        )

    def pin(self, component: Component, data_dir: Path) -> Component:
        """Return the component with the content of what it reads in the data folder named, too.

        A recipe of which a path is relative to the data folder has a method `pinned_in(data_dir)`, as `pinned` for the
        others; without one, the component is returned as it is.
        """
        recipe: Any = self.make(component)
        if not hasattr(recipe, "pinned_in"):
            return component
        pinned = recipe.pinned_in(data_dir)
        names = [f.name for f in dataclasses.fields(recipe) if f.init]
        changed = {n: getattr(pinned, n) for n in names if getattr(pinned, n) != getattr(recipe, n)}
        return Component(component.name, {**component.params, **changed})

    def version(self, component: Component) -> int:
        """Return the version of a component, part of a run's key.

        It is the version under which the recipe was registered, plus the recipe's `revision` if it has one: a number
        that is 0 except for the settings whose results a later change altered.
        """
        recipe: Any = self.make(component)
        return self._versions.get(component.name, 1) + int(getattr(recipe, "revision", 0))

    def _discover(self) -> None:
        if self._complete:
            return
        module = import_module(self._module)
        for info in pkgutil.walk_packages(getattr(module, "__path__", []), f"{self._module}."):
            import_module(info.name)
        self._complete = True


def is_path(name: str) -> bool:
    """Whether the name of a component is an import path, such as `package.module:Class`."""
    return "." in name or ":" in name


_WHERE = {
    "data": "heavytail.data",
    "model": "heavytail.models",
    "loss": "heavytail.losses",
    "optim": "heavytail.optim",
    "probe": "heavytail.probes",
}


def registry(kind: str) -> Registry[Any]:
    """Return the registry of a kind of component, imported on first use (with torch)."""
    recipes: Registry[Any] = import_module(_WHERE[kind]).REGISTRY
    return recipes


_HINTS: dict[type, dict[str, Any]] = {}


def type_hints(cls: type) -> dict[str, Any]:
    """Return the types of the fields of a dataclass, cached: evaluating annotations is slow."""
    if cls not in _HINTS:
        _HINTS[cls] = typing.get_type_hints(cls)
    return _HINTS[cls]


def check_type(value: object, hint: Any, field: str) -> Any:
    """Return `value` converted to the type `hint`; raise SpecError with the field if the types do not match.

    Supports bool, int, float, str, Literal, Optional and tuples; an int is a valid float, a list a valid tuple.
    """
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        for option in options:
            if option is not type(None):
                try:
                    return check_type(value, option, field)
                except SpecError:
                    continue
    elif origin is Literal:
        allowed = typing.get_args(hint)
        if isinstance(value, str) and value not in allowed:
            raise unknown(field, value, [str(a) for a in allowed])
        if value in allowed:
            return value
    elif origin is tuple:
        if isinstance(value, list | tuple):
            item = typing.get_args(hint)[0]
            return tuple(check_type(v, item, field) for v in value)
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif isinstance(hint, type) and isinstance(value, hint):
        return value
    raise SpecError(f"{field}: expected {_spell(hint)}, got {value!r}")


def _spell(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
