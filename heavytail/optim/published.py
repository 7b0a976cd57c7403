"""Optimizers of other papers from PyTorch and pytorch-optimizer: Muon, Lion, Signum, SOAP, schedule-free.

Each recipe has the settings of the optimizer's paper, without weight decay; tests compare updates with the papers'.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from importlib import import_module, metadata
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from heavytail.errors import SpecError, install
from heavytail.optim import REGISTRY
from heavytail.optim.by_role import beside_adam, on_matrices
from heavytail.optim.directions import check_decay, check_groups, check_size, check_step_size

PACKAGE = "pytorch_optimizer"


@REGISTRY.register("muon")
@dataclass(frozen=True)
class Muon:
    """Muon: steps along the orthogonalised momentum of hidden matrices (Jordan et al. 2024); Adam for the rest.

    A model without hidden matrices has its head's trained by Muon. Embeddings, vectors and convolutions are Adam's.

    Attributes:
        momentum: of the average, with Nesterov's correction.
        adjust: "match_rms_adamw" scales a step of a matrix [A, B] by 0.2 sqrt(max(A, B)), so that its entries are as
            large as Adam's and both share a step size (arXiv 2502.16982); "original" by sqrt(max(1, A / B)).
        weight_decay: decoupled, of the matrices.
    """

    momentum: float = 0.95
    adjust: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_decay("optim.momentum", self.momentum)
        check_size("optim.weight_decay", self.weight_decay)

    def build(self, params: Iterable[Parameter], lr: float) -> Optimizer:
        """Return the optimizer of parameters without a model: Muon for matrices, Adam for the rest."""
        check_step_size(lr)
        return beside_adam(params, self.accepts, lambda matrices: self._muon(matrices, lr), lr)

    def build_for(self, model: nn.Module, lr: float) -> Optimizer:
        """Return the optimizer of a model."""
        return on_matrices(model, self, lr)

    @staticmethod
    def accepts(parameter: Parameter) -> bool:
        """Whether Muon trains this parameter."""
        return parameter.ndim == 2

    def _muon(self, params: Any, lr: float) -> Optimizer:
        return check_groups(
            torch.optim.Muon(
                params, lr=lr, momentum=self.momentum, weight_decay=self.weight_decay, adjust_lr_fn=self.adjust
            )
        )


@dataclass(frozen=True)
class _Packaged:
    """An optimizer of pytorch-optimizer.

    Attributes:
        optimizer: its class, to which the settings are passed, beta1 and beta2 as `betas`.
        renamed: the class's names of settings, where they differ.
        fixed: arguments that are no settings.
    """

    optimizer: ClassVar[str]
    renamed: ClassVar[dict[str, str]] = {}
    fixed: ClassVar[dict[str, Any]] = {}

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name.startswith("beta") or field.name == "momentum":
                check_decay(f"optim.{field.name}", getattr(self, field.name))
            elif field.name == "eps":
                check_size("optim.eps", getattr(self, field.name))

    def build(self, params: Iterable[Parameter], lr: float) -> Optimizer:
        """Return the optimizer of these parameters with step size `lr`."""
        check_step_size(lr)
        try:
            module = import_module(PACKAGE)
        except ModuleNotFoundError as error:
            raise SpecError(f"this optimizer needs pytorch-optimizer; {install('optimizers')}") from error
        settings = {self.renamed.get(name, name): value for name, value in vars(self).items()}
        if "beta1" in settings:
            settings["betas"] = (settings.pop("beta1"), settings.pop("beta2"))
        return check_groups(getattr(module, self.optimizer)(params, lr=lr, **settings, **self.fixed))

    @property
    def versions(self) -> dict[str, str]:
        """Version of the package, for the record of a run."""
        return {PACKAGE: metadata.version(PACKAGE)}


@REGISTRY.register("lion")
@dataclass(frozen=True)
class Lion(_Packaged):
    """Lion: the sign of one average of gradients, before they enter a slower one (arXiv 2302.06675).

    x = x - lr sign(beta1 m + (1 - beta1) g), then m = beta2 m + (1 - beta2) g.
    """

    beta1: float = 0.9
    beta2: float = 0.99

    optimizer = "Lion"


@REGISTRY.register("signum")
@dataclass(frozen=True)
class Signum(_Packaged):
    """Signum: the sign of an average of gradients (arXiv 1802.04434); `sign` is the average of signs.

    m = momentum m + (1 - momentum) g,   x = x - lr sign(m).
    """

    momentum: float = 0.9

    optimizer = "SignSGD"


@REGISTRY.register("soap")
@dataclass(frozen=True)
class Soap(_Packaged):
    """SOAP: Adam in the eigenbasis of Shampoo's preconditioner (arXiv 2409.11321). Its first step only collects.

    Attributes:
        beta1, beta2: of Adam; beta2 also of the preconditioner.
        eps: of Adam.
        every: steps between updates of the eigenbasis.
    """

    beta1: float = 0.95
    beta2: float = 0.95
    eps: float = 1e-8
    every: int = 10

    optimizer, renamed, fixed = "SOAP", {"every": "precondition_frequency"}, {"weight_decay": 0.0}
    small: ClassVar[dict[str, Any]] = {"every": 2}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every < 1:
            raise SpecError(f"optim.every: expected an integer >= 1, got {self.every}")


@REGISTRY.register("schedule-free")
@dataclass(frozen=True)
class ScheduleFree(_Packaged):
    """Schedule-free AdamW without warm-up: gradients between the iterates and their average (arXiv 2405.15682).

    Losses are those of the average.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    optimizer = "ScheduleFreeAdamW"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta1 == 0:
            raise SpecError("optim.beta1: expected a number in (0, 1), got 0")

    def build(self, params: Iterable[Parameter], lr: float) -> Optimizer:
        """Return the optimizer of these parameters with step size `lr`."""
        return _keep_gradients(super().build(params, lr))


def _keep_gradients(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer, whose steps overwrite gradients, with steps that are given copies."""
    kept: list[tuple[Parameter, Tensor]] = []

    def before(*_: Any) -> None:
        for group in optimizer.param_groups:
            kept.extend((p, p.grad) for p in group["params"] if p.grad is not None)
        for p, grad in kept:
            p.grad = grad.clone()

    def after(*_: Any) -> None:
        for p, grad in kept:
            p.grad = grad
        kept.clear()

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
    return optimizer
