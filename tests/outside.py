"""Optimizers as users write them, outside the package: tests name them by their import path."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class TenLines(torch.optim.Optimizer):
    """Sign descent whose step size decays, with its step count where most people put it."""

    def __init__(self, params: Iterable[Tensor], lr: float = 0.1, beta: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "beta": beta})
        self.t = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.t += 1
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                m.mul_(group["beta"]).add_(p.grad)
                p -= group["lr"] / self.t**0.5 * m.sign()


class Nested(torch.optim.Optimizer):
    """State of every kind: Python numbers, texts, lists, other precisions, and what its `**kwargs` pass on."""

    def __init__(self, params: Iterable[Tensor], lr: float, *, mode: str = "a", scale: tuple[float, ...] = (1, 0.5)):
        super().__init__(params, {"lr": lr, "mode": mode, "scale": scale, "k": 0})
        self.history: list[Tensor] = []

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["k"] += 1
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state |= {"step": 0, "word": "abc", "none": None}
                    state["parts"] = [(torch.zeros_like(p, dtype=torch.float64), 3)]
                    state["half"] = torch.zeros_like(p, dtype=torch.bfloat16)
                    state["count"] = torch.zeros(2, dtype=torch.int64)
                    state["by axis"] = {0: torch.zeros(p.shape[0]), "sum": 0.1}
                assert state["word"] == "abc"
                assert state["none"] is None
                state["step"] += 1
                state["count"] += 2**40 + 1
                state["half"] += p.grad / 3
                state["by axis"][0] += p.grad.reshape(len(p), -1).sum(1)
                state["by axis"]["sum"] += 1 / 3
                mean, three = state["parts"][0]
                mean += p.grad.double() / three
                assert int(state["count"][0]) == state["step"] * (2**40 + 1)
                update = mean * 0.9 ** state["step"] + state["half"] + state["by axis"]["sum"] * p.grad
                update += state["by axis"][0].reshape(-1, *[1] * (p.ndim - 1)) * 1e-3
                p -= group["lr"] * group["scale"][0] * update.to(p.dtype)
            self.history = [*self.history, torch.tensor(float(group["k"]), dtype=torch.float64)][-2:]
            p -= 1e-3 * torch.stack(self.history).sum().to(p.dtype)


class Kwargs(torch.optim.Adam):
    """Passes settings on to Adam."""

    def __init__(self, params: Iterable[Tensor], lr: float = 0.1, **kwargs: Any) -> None:
        super().__init__(params, lr=lr, betas=(0.5, 0.9), **kwargs)


class NoStepSize(torch.optim.Optimizer):
    """Has no `lr`."""

    def __init__(self, params: Iterable[Tensor], eta: float = 0.1) -> None:
        super().__init__(params, {"eta": eta})


class Needs(torch.optim.SGD):
    """Has a setting without a default."""

    def __init__(self, params: Iterable[Tensor], horizon: int, lr: float = 0.1) -> None:
        super().__init__(params, lr=lr / horizon)


class Breaks(torch.optim.SGD):
    """Refuses any parameter larger than those that it is tried on."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if any(p.numel() > 9 for group in self.param_groups for p in group["params"]):
            raise ValueError("too large for me")


class Ascends(torch.optim.Optimizer):
    """Goes uphill in steps of fixed length, however small the step size."""

    def __init__(self, params: Iterable[Tensor], lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p += p.grad.sign()


class Interrupts(torch.optim.SGD):
    """Presses Ctrl-C at its first step on real parameters, once it is armed."""

    armed = False

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if Interrupts.armed and sum(p.numel() for group in self.param_groups for p in group["params"]) > 4:
            Interrupts.armed = False
            os.kill(os.getpid(), signal.SIGINT)
        super().step()


class Hoards(torch.optim.Optimizer):
    """Computes for 50 ms at every tenth step, and keeps its state in an attribute."""

    BURNT = 0.05

    def __init__(self, params: Iterable[Tensor], lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})
        self.t, self.kept = 0, [torch.zeros(1000)]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.t += 1
        end = time.process_time() + (self.BURNT if self.t % 10 == 0 else 0)
        while time.process_time() < end:
            pass


class Sums(torch.optim.Optimizer):
    """A step size that grows with what it has seen: kept in the parameter group, as Prodigy does, and in a tensor."""

    def __init__(
        self, params: Iterable[torch.Tensor], lr: float = 0.1, betas: tuple[float, float] = (0.9, 0.99)
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "seen": torch.zeros(1), "last": [0.0, None]})
        self.steps = torch.zeros(1)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    group["seen"] += p.grad.norm().cpu()
                    p -= group["lr"] * (1 + group["seen"].item() + group["last"][0] + self.steps.item()) * p.grad
            group["last"] = [float(group["seen"]), "seen"]
        self.steps += 1
