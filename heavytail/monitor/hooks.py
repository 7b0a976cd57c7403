"""A forward hook that leaves no trace: it is inert in copies and pickles of the module that has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Hook", "first_input", "recomputing"]


class Hook:
    """Calls a function after each forward pass of a module, with its positional arguments and its output.

    A copy of the module (an average of weights, a reference model), and one that is loaded from a pickle, have a hook
    that does nothing, rather than one that reports to the monitor of the original.

    Args:
        module: the module.
        call: the function, given the arguments and the output.
    """

    def __init__(self, module: nn.Module | None = None, call: Callable[[Any, Any], None] | None = None) -> None:
        self._call = call
        self._handle = None if module is None else module.register_forward_hook(self)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._call is not None:
            self._call(args, output)

    def __reduce__(self) -> tuple[type[Hook], tuple[()]]:
        return Hook, ()

    def remove(self) -> None:
        """Remove it from the module."""
        if self._handle is not None:
            self._handle.remove()


def first_input(args: tuple[Any, ...]) -> Tensor | None:
    """Return the input of a layer; None if it is no tensor, or given by keyword."""
    return args[0].detach() if args and isinstance(args[0], Tensor) else None


def recomputing() -> bool:
    """Whether this is a backward pass, in which activation checkpointing repeats forward passes.

    Never while a graph is traced, which the question would break in two.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
