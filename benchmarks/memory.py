"""The peak memory of a computation, in a separate process (Linux)."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch


def peak_growth(work: Callable[..., Callable[[], object]], *arguments: Any) -> float:
    """Return how far a call raises the peak resident size of a fresh process (MB).

    Args:
        work: a function of a module, called with `arguments` in the new process. It prepares (libraries, thread pools,
            whatever is not to count) and returns the call to be measured.
        arguments: must be picklable.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_grow, (work, arguments, torch.get_num_threads()))


def _grow(work: Callable[..., Callable[[], object]], arguments: tuple[Any, ...], threads: int) -> float:
    torch.set_num_threads(threads)
    call = work(*arguments)
    before = peak()
    call()
    return (peak() - before) / 1e6


def peak() -> float:
    """Return the peak resident size of this process in bytes."""
    # Not getrusage: its maximum is inherited from the parent, which is larger than anything measured here.
    with open("/proc/self/status") as status:
        return next(float(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
