"""A different optimizer for each role of a model's parameters: `hidden = "muon"`, `rest = "adam"`.

Every part is an optimizer of its own, with its own state. All have the step size of the run, each times the `lr_scale`
of its part.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, overload

from torch import nn
from torch.nn import Parameter
from torch.optim import Optimizer

from heavytail.errors import RefusedError, SpecError
from heavytail.experiment.registry import Component
from heavytail.optim import REGISTRY
from heavytail.optim.directions import evaluated
from heavytail.optim.roles import ROLES, Role, roles

_Table = dict | str | None  # type: ignore[type-arg] # a field's type must be a class to be checked


class Joined(Optimizer):
    """Several optimizers of different parameters as one, with their parameter groups and state.

    Args:
        optimizers: the parts, in the order of the parameter groups.
    """

    def __init__(self, optimizers: Iterable[Optimizer]) -> None:
        self.optimizers = list(optimizers)
        super().__init__([group for part in self.optimizers for group in part.param_groups], {})
        for part in self.optimizers:
            self.state.update(part.state)
        self._share()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse a new group: no part would train it. The groups of the parts are added when it is made."""
        if len(self.param_groups) >= sum(len(part.param_groups) for part in self.optimizers):
            raise SpecError("optim: a joined optimizer takes no new parameter group; add it to one of the parts first")
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a copy; the base class would leave out the parts."""
        return {**super().__getstate__(), "optimizers": self.optimizers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def _share(self) -> None:
        """Give every part its parameter groups and the common state; load_state_dict replaces both."""
        start = 0
        for part in self.optimizers:
            end = start + len(part.param_groups)
            part.__setstate__({"state": self.state, "param_groups": self.param_groups[start:end]})
            start = end

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step of every part."""
        loss = evaluated(closure)
        for part in self.optimizers:
            part.step()
        return loss


@dataclass(frozen=True)
class Part:
    """The optimizer of some parameters.

    Attributes:
        recipe: builds it.
        lr_scale: its step size divided by the run's.
    """

    recipe: Any
    lr_scale: float = 1.0

    @classmethod
    def parse(cls, value: object, role: str) -> Part:
        """Read `"adam"` or `{"name": "adam", "beta1": 0.5, "lr_scale": 0.1}`."""
        component, scale = _split(value, role)
        return cls(REGISTRY.make(component), scale)

    def accepts(self, parameter: Parameter) -> bool:
        """Whether it trains this parameter; a recipe without such a method trains all."""
        return not hasattr(self.recipe, "accepts") or bool(self.recipe.accepts(parameter))

    def refuses(self, lr: float) -> bool:
        """Whether it raises an error in a run of step size `lr`, though not at others."""
        return hasattr(self.recipe, "refuses") and bool(self.recipe.refuses(lr * self.lr_scale))

    def build(self, params: Iterable[Parameter], lr: float) -> Optimizer:
        """Return the optimizer of these parameters in a run of step size `lr`."""
        optimizer: Optimizer = self.recipe.build(params, lr * self.lr_scale)
        return optimizer


def adam() -> Part:
    """Return the optimizer of what others leave."""
    return Part(REGISTRY.make(Component("adam")))


def join(parts: Sequence[Optimizer]) -> Optimizer:
    """Return several optimizers as one; one stays as it is."""
    return parts[0] if len(parts) == 1 else Joined(parts)


def beside_adam(
    params: Iterable[Any], accepts: Callable[[Parameter], bool], build: Callable[[Any], Optimizer], lr: float
) -> Optimizer:
    """Return the optimizer that `build` makes of the parameters it accepts, and Adam for the others, as one."""
    accepted, others = divide(params, accepts)
    return join([*([build(accepted)] if accepted else []), *([adam().build(others, lr)] if others else [])])


def divide(params: Iterable[Any], accepts: Callable[[Parameter], bool]) -> tuple[list[Any], list[Any]]:
    """Return the parameters, or parameter groups, that an optimizer accepts, and the others."""
    accepted: list[Any] = []
    others: list[Any] = []
    for entry in params:
        if isinstance(entry, dict):
            for part, of in zip((accepted, others), divide(entry["params"], accepts), strict=True):
                part += [{**entry, "params": of}] if of else []
        else:
            (accepted if accepts(entry) else others).append(entry)
    return accepted, others


def assign(
    model: nn.Module, parts: Mapping[Role, Part], rest: Part, lr: float, *, rest_trains: bool = False
) -> Optimizer:
    """Return the optimizer of a model whose roles are trained by different parts.

    A part leaves the parameters of its roles that it does not accept (vectors, for Muon) to `rest`, and that to Adam.
    Equal parts are one optimizer.

    Args:
        model: has a head (see `roles`).
        parts: the optimizers by role.
        rest: the optimizer of all other parameters.
        lr: the run's step size.
        rest_trains: whether `rest`, too, must have parameters to train.

    Raises:
        RefusedError: a part has no parameters to train.
    """
    shares: dict[Part, list[Parameter]] = {}
    for role, parameters in roles(model).items():
        part = parts.get(role, rest)
        accepted = [part.accepts(p) for p in parameters]
        if role in parts and not any(accepted):
            raise RefusedError(f"optim.{role}: the model has no parameters with this role that the optimizer trains")
        for p, own in zip(parameters, accepted, strict=True):
            shares.setdefault(part if own else rest if rest.accepts(p) else adam(), []).append(p)
    if rest_trains and rest not in shares:
        raise RefusedError("optim.rest: the other roles leave no parameters of the model that the optimizer trains")
    return join([part.build(parameters, lr) for part, parameters in shares.items()])


def on_matrices(model: nn.Module, recipe: Any, lr: float) -> Optimizer:
    """Return the optimizer of a model's hidden matrices, or of its head's where there are none; Adam has the rest."""
    part = Part(recipe)
    hidden = any(map(part.accepts, roles(model)["hidden"]))
    return assign(model, {"hidden" if hidden else "head": part}, adam(), lr)


@REGISTRY.register("by-role")
@dataclass(frozen=True)
class ByRole:
    """An optimizer for each role of the parameters; `rest` trains those of the roles that are not given.

    Each is a name, or a table of a name, its settings and `lr_scale`, its step size divided by the run's.

    Attributes:
        head, embedding, norm, hidden: the optimizer of the role; None leaves it to `rest`.
        rest: the optimizer of the other parameters.
    """

    head: _Table = None
    embedding: _Table = None
    norm: _Table = None
    hidden: _Table = None
    rest: dict | str = "adam"  # type: ignore[type-arg]

    small: ClassVar[dict[str, Any]] = {
        "head": {"name": "gd", "momentum": 0.5, "lr_scale": 0.5},
        "rest": "adam",
    }

    def __post_init__(self) -> None:
        self._parts()  # raise on an unknown name or setting

    def _parts(self) -> dict[str, Part]:
        given = {role: getattr(self, role) for role in (*ROLES, "rest")}
        return {role: Part.parse(value, role) for role, value in given.items() if value is not None}

    def pinned(self) -> ByRole:
        """Return the recipe with the settings of every part filled in, for the run's key."""
        changes: Any = {f.name: _resolved(getattr(self, f.name), f.name) for f in dataclasses.fields(self)}
        return dataclasses.replace(self, **changes)

    def build(self, params: Iterable[Parameter], lr: float) -> Optimizer:
        """Return the optimizer of parameters without a model, all of them hidden."""
        parts = self._parts()
        return parts.get("hidden", parts["rest"]).build(params, lr)

    def build_for(self, model: nn.Module, lr: float) -> Optimizer:
        """Return the optimizer of a model.

        Raises:
            RefusedError: a part has no parameters to train; Adam as `rest`, which is the default, needs none.
        """
        parts = self._parts()
        rest = parts.pop("rest")
        return assign(model, parts, rest, lr, rest_trains=rest != adam())  # type: ignore[arg-type]

    def refuses(self, lr: float) -> bool:
        """Whether a part raises an error at this step size, though not at others."""
        return any(part.refuses(lr) for part in self._parts().values())

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the distributions that the parts come from."""
        return {k: v for part in self._parts().values() for k, v in getattr(part.recipe, "versions", {}).items()}


def _split(value: object, role: str) -> tuple[Component, float]:
    """The component of a part, and its lr_scale."""
    component = Component.parse(value, f"optim.{role}")
    if component.name == "by-role":
        raise SpecError(f"optim.{role}: expected one optimizer, got by-role")
    settings = dict(component.params)
    scale = settings.pop("lr_scale", 1.0)
    settings.pop("version", None)
    if not (type(scale) in (int, float) and math.isfinite(scale) and scale > 0):
        raise SpecError(f"optim.{role}.lr_scale: expected a positive finite number, got {scale!r}")
    return Component(component.name, settings), float(scale)


def _resolved(value: object, role: str) -> dict[str, Any] | None:
    if value is None:
        return None
    component, scale = _split(value, role)
    version = REGISTRY.version(component)
    return {
        **REGISTRY.resolve(component).to_dict(),
        "lr_scale": scale,
        **({"version": version} if version > 1 else {}),
    }
