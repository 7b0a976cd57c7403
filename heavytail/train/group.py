"""The processes that train one run together, and the sums they exchange.

After every exchange all processes hold the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from heavytail.errors import HeavyTailError, reason

T = TypeVar("T")


class LostProcess(HeavyTailError):
    """Another process of the run has died; the message names the command that continues the run."""


@dataclass(frozen=True)
class Group:
    """The processes that train one run together; with one process, every method is a no-op.

    Attributes:
        rank: number of this process; 0 writes.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    def share(self, chunks: list[T]) -> list[T]:
        """Return this process's part of the chunks of a batch."""
        return chunks[self.rank :: self.size]

    def portion(self, total: int, most: int | None) -> int | None:
        """Return the largest micro-batch size, at most `most`, with which every process has some of `total` samples."""
        if self.size == 1:
            return most
        portion = math.ceil(total / self.size)
        return portion if most is None else min(portion, most)

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by their sums over all processes, with one all-reduce per dtype.

        Raises:
            LostProcess: a process has died.
        """
        if self.size == 1:
            return
        kinds: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            kinds.setdefault(tensor.dtype, []).append(tensor)
        for mine in kinds.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in mine])
            exchange(lambda flat=flat: dist.all_reduce(flat))  # type: ignore[misc]
            for tensor, summed in zip(mine, torch.split(flat, [t.numel() for t in mine]), strict=True):
                tensor.copy_(summed.view_as(tensor))

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        if self.size == 1:
            return flag
        count = torch.tensor(int(flag))  # on the CPU, so that the GPU is not synchronized
        exchange(lambda: dist.all_reduce(count))
        return bool(count.item())

    def same(self, number: int) -> bool:
        """Return whether a number is the same in all processes."""
        if self.size == 1:
            return True
        ends = torch.tensor([number, -number])
        exchange(lambda: dist.all_reduce(ends, op=dist.ReduceOp.MAX))
        return bool(ends[0] == -ends[1])

    def wait(self) -> None:
        """Return once every process has called this (a barrier)."""
        self.any(False)


ALONE = Group()


def exchange(operation: Callable[[], object]) -> None:
    try:
        operation()
    except RuntimeError as error:
        raise LostProcess(
            f"another process of this run has ended; the same command continues it ({reason(error)})"
        ) from error
