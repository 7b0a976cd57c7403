"""Several processes train one run: data parallel over torch.distributed, one GPU or CPU process each.

    torchrun --nproc-per-node N -m heavytail run ...

Each process takes its share of the micro-batches of a step, and their sums - gradients, losses, statistics per class -
are added up before anything is done with them. That is not DistributedDataParallel: the engine's gradients are
already divided by the whole batch's weight, so that they add and need no averaging, whatever the loss weights and
however unequal the shares; one exchange a step follows all of its accumulation, not each backward pass; nothing wraps
the model and hides its `features` and `head`. DDP would overlap the exchange with the last backward pass; with
accumulation over many micro-batches there is little to win.

After every exchange all processes hold the same numbers. Hence the first one can write for all of them, and if another
is killed, what it writes is the state before the broken step.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from heavytail.errors import HeavyTailError, SpecError

if TYPE_CHECKING:
    from heavytail.train.runner import Options

T = TypeVar("T")


class LostProcess(HeavyTailError):
    """Another process of the run has ended; the message says how to go on."""


@dataclass(frozen=True)
class Group:
    """The processes that train one run together; alone, everything here is free.

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
        """Return the micro-batch size, at most `most`, at which every process has a part of `total` samples."""
        if self.size == 1:
            return most
        portion = math.ceil(total / self.size)
        return portion if most is None else min(portion, most)

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by their sums over all processes, with one exchange for each type of number.

        Raises:
            LostProcess: a process is gone.
        """
        if self.size == 1:
            return
        kinds: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            kinds.setdefault(tensor.dtype, []).append(tensor)
        for mine in kinds.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in mine])
            _exchange(lambda flat=flat: dist.all_reduce(flat))  # type: ignore[misc]
            for tensor, summed in zip(mine, torch.split(flat, [t.numel() for t in mine]), strict=True):
                tensor.copy_(summed.view_as(tensor))

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        if self.size == 1:
            return flag
        count = torch.tensor(int(flag))  # on the CPU: asking must not wait for a GPU
        _exchange(lambda: dist.all_reduce(count))
        return bool(count.item())

    def wait(self) -> None:
        """Return once every process has come here."""
        self.any(False)


ALONE = Group()


@contextmanager
def joined(options: Options) -> Iterator[Options]:
    """Join the processes that torchrun started, if it did; yield the options as they are then.

    Args:
        options: how to run. On GPUs each process takes the one of its local rank.

    Raises:
        SpecError: more than one worker was asked for, too.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield options
        return
    if options.workers not in (None, 1):
        raise SpecError(f"--workers: expected 1 under torchrun, got {options.workers}")
    # Its functions have the default group of the moment of import as a default value. The first optimizer imports it:
    # if there is a group by then, they keep it, and its threads abort the process when the interpreter ends.
    import torch.distributed.nn.functional

    device, backend = options.device, "gloo"
    if device.startswith("cuda"):
        device, backend = f"cuda:{os.environ['LOCAL_RANK']}", "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(device)
    _exchange(lambda: dist.init_process_group(backend))
    yield replace(options, device=device, workers=1, group=Group(dist.get_rank(), size))
    dist.destroy_process_group()  # not after an error: the others may be gone


def _exchange(operation: Callable[[], object]) -> None:
    try:
        operation()
    except RuntimeError as error:
        raise LostProcess(
            f"another process of this run has ended; the same command continues it ({str(error).splitlines()[0]})"
        ) from error
