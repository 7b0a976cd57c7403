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

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch.distributed as dist

from heavytail.errors import SpecError
from heavytail.train.group import Group, exchange
from heavytail.train.options import Options

if TYPE_CHECKING:
    from heavytail.train.options import Options


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
    exchange(lambda: dist.init_process_group(backend))
    yield replace(options, device=device, workers=1, group=Group(dist.get_rank(), size))
    dist.destroy_process_group()  # not after an error: the others may be gone
