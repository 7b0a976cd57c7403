"""A forward hook that leaves no trace: copies and pickles of the module that has it know nothing of this package."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Hook", "first_input", "recomputing"]


class Hook:
    """Calls a function after each forward pass of a module, with its positional arguments and its output.

    A copy of the module (an average of weights, a reference model), and one that is loaded from a pickle, have a hook
    that does nothing, rather than one that reports to the monitor of the original. Loading needs no heavytail.

    Args:
        module: the module; None for a hook that is added later.
        call: the function, given the arguments and the output.
    """

    def __init__(self, module: nn.Module | None = None, call: Callable[[Any, Any], None] | None = None) -> None:
        self._call = call
        self._handle: Any = None
        if module is not None:
            self.add(module)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._call is not None:
            self._call(args, output)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")  # takes three arguments, returns None, is in every Python

    def add(self, module: nn.Module) -> None:
        """Move it to a module. Compiled code knows it again, where a new hook would be compiled anew."""
        self.remove()
        self._handle = module.register_forward_hook(self)

    def remove(self) -> None:
        """Remove it from the module."""
        if self._handle is not None:
            self._handle.remove()
        self._handle = None


def first_input(args: tuple[Any, ...]) -> Tensor | None:
    """Return the input of a layer; None if it is no tensor, or given by keyword."""
    return args[0].detach() if args and isinstance(args[0], Tensor) else None


def recomputing() -> bool:
    """Whether this is a backward pass, in which activation checkpointing repeats forward passes.

    Never while a graph is traced, which the question would break in two.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
