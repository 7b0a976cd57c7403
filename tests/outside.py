"""Optimizers as users write them, outside the package: tests name them by their import path."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter, deque
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


class Bounded(torch.optim.Adam):
    """Adam that refuses large step sizes, as some do; with `still` it needs a closure."""

    def __init__(self, params: Iterable[Tensor], lr: float = 0.1, largest: float = 1.0, still: bool = False) -> None:
        if not 0 < lr <= largest:
            raise ValueError(f"lr must be in (0, {largest}]")
        super().__init__(params, lr=lr)
        self.still = still

    def step(self, closure: Any = None) -> Any:
        """Step unless it is still."""
        return None if self.still else super().step(closure)


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


class Unkept(torch.optim.Optimizer):
    """Steps with a momentum kept where a checkpoint cannot hold it: `kind` says where."""

    def __init__(self, params: Iterable[Tensor], lr: float = 0.1, kind: str = "parameter") -> None:
        super().__init__(params, {"lr": lr})
        self.kind = kind
        self.parameters = [p for group in self.param_groups for p in group["params"]]
        self.by_parameter: dict[Tensor, Tensor] = {}
        self.by_id: dict[int, Tensor] = {}
        self.recent: Any = deque([0.0], maxlen=3) if kind == "deque" else None
        self.counts: Any = Counter() if kind == "counter" else None
        self.generator = torch.Generator().manual_seed(3) if kind == "generator" else None
        self.inner = torch.optim.Adam(self.parameters, lr=lr) if kind == "inner" else None
        self.views = [p.detach() for p in self.parameters] if kind == "views" else None
        self.word = {"scale": 1.0}  # is kept

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        lr = self.param_groups[0]["lr"]
        if self.inner is not None:
            self.inner.step()
            return
        for k, p in enumerate(self.parameters):
            table: Any = {"parameter": self.by_parameter, "id": self.by_id}.get(self.kind, self.state)
            name: Any = {"parameter": p, "id": id(p), "named": f"m{k}", "id of state": id(p)}.get(self.kind)
            m = table.setdefault(name, torch.zeros_like(p)) if name is not None else torch.zeros_like(p)
            m.mul_(0.9).add_(p.grad)
            if self.recent is not None:
                self.recent.append(sum(self.recent) * 0.5 + 1)
                m *= sum(self.recent)
            if self.counts is not None:
                self.counts[k] += 1
                m *= self.counts[k]
            if self.generator is not None:
                m += torch.rand(p.shape, generator=self.generator)
            (p if self.views is None else self.views[k]).sub_(lr * m)


class NeedsClosure(torch.optim.Optimizer):
    """Does nothing without a closure."""

    def __init__(self, params: Iterable[Tensor], lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if closure is not None:
            raise NotImplementedError


class Averages(torch.optim.SGD):
    """Schedule-free as others write it: it starts in the mode of evaluation, and its average needs state."""

    def __init__(self, params: Iterable[Tensor], lr: float = 0.1, overflow: bool = False) -> None:
        super().__init__(params, lr=lr)
        self.train_mode, self.overflow = False, overflow

    def train(self) -> None:
        self.train_mode = True

    @torch.no_grad()
    def eval(self) -> None:
        self.train_mode = False
        for group in self.param_groups:
            for p in group["params"]:
                p.copy_(self.state[p]["mean"])

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert self.train_mode, "not in train mode"
        super().step()
        for group in self.param_groups:
            for p in group["params"]:
                mean = self.state[p].setdefault("mean", p.clone())
                mean.lerp_(p, 0.5)
                if self.overflow and p.numel() > 4:
                    mean.fill_(torch.inf)


def _made(momentum: float) -> type[torch.optim.Optimizer]:
    class Made(torch.optim.SGD):
        """Has no import path of its own."""

        def __init__(self, params: Iterable[Tensor], lr: float = 0.1) -> None:
            super().__init__(params, lr=lr, momentum=momentum)

    return Made


Heavy, Light = _made(0.9), _made(0.0)


class Names(torch.optim.SGD):
    """Has settings by the names of what heavytail stores."""

    def __init__(
        self, params: Iterable[Tensor], lr: float = 0.1, name: str = "n", version: int = 3, build: Any = None,
        revision: str = "main", versions: int = 1, path: str = "p",
    ) -> None:  # fmt: skip
        assert (name, version, build, revision, versions, path) == ("n", 3, None, "main", 1, "p")
        super().__init__(params, lr=lr)


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
