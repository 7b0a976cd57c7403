"""HeadWatch: gradient norm, Hessian trace and update norm of each row of a classifier, in any training.

A hook keeps the inputs of the head. With the targets, one fused pass (`heavytail.head`) gives the gradient of the mean
cross-entropy and the Hessian trace of every row w_k, independent of loss scaling and weight tying:

    grad_k = (1/n) sum_i (p_ik - 1[y_i = k]) h_i,    Tr H_kk = (1/n) sum_i p_ik (1 - p_ik) ||h_i||^2

(section 3.1 of the paper, figure 7). They are those of the logits W h + b: not of logits that the model scales or caps
afterwards. Update norms are those of the weight's rows over the optimizer's
steps; that of a tied head includes the embedding's share.

Shapes: M rows, C classes, D features, G groups.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from heavytail.errors import SpecError
from heavytail.head import weight_gradient
from heavytail.metrics import FrequencyGroups
from heavytail.monitor.hooks import Hook, first_input, recomputing
from heavytail.monitor.ranks import add_over_ranks

Array = NDArray[np.float64]


class HeadWatch:
    """Sums over the rows seen while attached; leaving `with` detaches it, and the sums stay readable.

    Args:
        head: the classifier, D -> C.
        optimizer: also measure the norm of its updates.

    Raises:
        SpecError: the optimizer's steps have no hooks.
    """

    def __init__(self, head: nn.Linear, optimizer: torch.optim.Optimizer | None = None) -> None:
        self.head = head
        self._inputs: Tensor | None = None
        self._before: Tensor | None = None
        self._handles: list[Any] = []
        self.reset()
        self.attach(optimizer)

    @property
    def attached(self) -> bool:
        """Whether it measures."""
        return bool(self._handles)

    def detach(self) -> None:
        """Remove all hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._inputs, self._before = [], None, None

    def __enter__(self) -> HeadWatch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.detach()

    def reset(self) -> None:
        """Clear the sums."""
        (C, D), device = self.head.weight.shape, self.head.weight.device
        with torch.inference_mode(False):  # reset in an evaluation, they must still be added to in training
            self._gradient = torch.zeros(C, D, device=device)  # n times the mean loss's; float64 for float64 inputs
            self._trace = torch.zeros(C, dtype=torch.float64, device=device)  # n times
            self._rows = torch.zeros((), dtype=torch.int64, device=device)
        self._moved: Tensor | None = None
        self._steps = 0

    def attach(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Measure, adding to the sums; once detached, it may be attached again.

        Args:
            optimizer: also measure the norm of its updates.

        Raises:
            SpecError: the optimizer's steps have no hooks; nothing is attached.
        """
        self.detach()
        device = self.head.weight.device  # the model may have been moved
        self._gradient, self._trace, self._rows = (x.to(device) for x in (self._gradient, self._trace, self._rows))
        self._moved = None if self._moved is None else self._moved.to(device)
        self._handles = [Hook(self.head, self._keep)]
        if optimizer is None:
            return
        # Accelerate's wrapper inherits the methods of an optimizer, and has none of its state.
        wrapper = isinstance(optimizer, torch.optim.Optimizer) and not hasattr(optimizer, "_optimizer_step_pre_hooks")
        steps = getattr(optimizer, "optimizer", optimizer) if wrapper else optimizer
        try:
            self._handles.append(steps.register_step_pre_hook(self._before_step))
            self._handles.append(steps.register_step_post_hook(self._after_step))
        except AttributeError as error:
            self.detach()
            got = type(optimizer).__name__
            raise SpecError(f"optimizer: expected one of torch.optim, or a wrapper of one, got {got}") from error

    @torch.no_grad()
    def add(self, targets: Tensor) -> None:
        """Measure the head at the inputs of its last forward pass.

        Args:
            targets: class of each of them [M] int64, -1 where it counts nowhere.

        Raises:
            SpecError: there was no forward pass, or of another number of rows.
        """
        if not self.attached:
            return
        inputs, self._inputs = self._inputs, None
        if inputs is None or inputs.shape[:-1].numel() != len(targets):
            got = "no forward pass" if inputs is None else f"{inputs.shape[:-1].numel()} inputs of the head"
            hint = "; pad targets that are shifted with the ignored class, rather than cutting the logits"
            if inputs is None:
                hint = "; call it as head(x), not by keyword, and update after each forward pass; under torch.compile, "
                hint += "watch before the first compiled call"
            raise SpecError(
                f"targets: expected one for each input of the watched head, got {len(targets)} for {got}{hint}"
            )
        features, b = inputs.reshape(-1, inputs.shape[-1]), self.head.bias
        # Sums over all rows leave the range of float16, and the precision of bfloat16.
        features = features.float() if features.itemsize < 4 else features
        weight = whole(self.head.weight).to(features.dtype)
        bias = None if b is None else whole(b).to(features.dtype)
        with torch.inference_mode(False):
            gradient, curvature = weight_gradient(features, weight, bias, targets.to(features.device), ignore_index=-1)
            self._gradient = self._gradient + gradient
        self._trace += curvature.weight
        self._rows += (targets >= 0).sum()

    def per_class(self, *, sync: bool = True, group: Any = None) -> dict[str, Array]:
        """Return the gradient norm, Hessian trace and, with an optimizer, root mean square update norm of each row [C].

        Args:
            sync: sum over all ranks where torch.distributed runs; every rank must then call this.
            group: ranks to sum over; by default all.
        """
        parts = (self._rows, self._gradient, self._trace)
        rows, gradient, trace = (add_over_ranks(part.clone(), sync, group) for part in parts)
        means = {}
        if rows:
            means["grad_norm"] = (torch.linalg.vector_norm(gradient, dim=1, dtype=torch.float64) / rows).cpu().numpy()
            means["trace"] = (trace / rows).cpu().numpy()
        if self._moved is not None:
            means["update_norm"] = (self._moved / self._steps).sqrt().cpu().numpy()
        return means

    def read(self, groups: FrequencyGroups, *, sync: bool = True, group: Any = None) -> dict[str, Array]:
        """Return the same of each group's block of rows [G]: norms over all its rows, traces summed."""
        rows = self.per_class(sync=sync, group=group)
        return {k: groups.sum(v) if k == "trace" else np.sqrt(groups.sum(v**2)) for k, v in rows.items()}

    # -- hooks ---------------------------------------------------------------------------------------------------

    def _keep(self, args: tuple[Any, ...], output: Any) -> None:
        if not recomputing():
            self._inputs = first_input(args)

    @torch.no_grad()
    def _before_step(self, *_: object) -> None:
        self._before = self.head.weight.detach().clone()

    @torch.no_grad()
    def _after_step(self, *_: object) -> None:
        assert self._before is not None
        moved = (self.head.weight.detach() - self._before).double().square().sum(1)
        self._moved = whole(moved) + (0 if self._moved is None else self._moved)
        self._steps += 1
        self._before = None


def whole(parameter: Tensor) -> Tensor:
    """Return all of a parameter that FSDP2 may have sharded over ranks, detached."""
    full: Callable[[], Tensor] | None = getattr(parameter.detach(), "full_tensor", None)
    return parameter.detach() if full is None else full()
