"""Data-parallel training of one run over torch.distributed, one process per GPU or CPU.

    torchrun --nproc-per-node N -m heavytail run ...

Each process takes its share of the micro-batches of a step; one all-reduce then sums gradients, losses and statistics
per class. This differs from DistributedDataParallel in three ways. The engine's gradients are already divided by the
weight of the whole batch, so they are summed, not averaged, for any loss weights and unequal shares. There is one
exchange per step, after all accumulation, not one per backward pass. The model is not wrapped, so `features` and `head`
stay accessible. DDP would overlap the exchange with the last backward pass, which gains little when many micro-batches
are accumulated.

After every exchange all processes hold the same numbers. Rank 0 therefore writes for all, and if another process is
killed, rank 0 commits the state before the broken step.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import torch.distributed as dist

from heavytail.errors import SpecError
from heavytail.train.group import Group, exchange
from heavytail.train.options import Options

_LEAVE_SECONDS = 5.0


@contextmanager
def joined(options: Options) -> Iterator[Options]:
    """Join the process group that torchrun started, if any; yield the options of this process.

    Args:
        options: how to run. Each process uses the GPU of its local rank.

    Raises:
        SpecError: under torchrun, `workers` is above 1, or the executor is not "local"; or the environment is not
            torchrun's.
    """
    size = _number("WORLD_SIZE", "1")
    if size <= 1:
        yield options
        return
    if options.workers not in (None, 1):
        raise SpecError(f"--jobs: expected 1 under torchrun, got {options.workers}")
    if options.executor != "local":
        raise SpecError(f"--executor: expected local under torchrun, got {options.executor}")
    # The functions of this module bind the default group at import as a default value. The first optimizer imports the
    # module; a group that exists by then stays referenced, and its threads abort the process at interpreter exit.
    import torch.distributed.nn.functional

    device, backend = options.device, "gloo"
    if device.startswith("cuda"):
        device, backend = f"cuda:{_number('LOCAL_RANK')}", "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(device)
    for name in ("RANK", "MASTER_PORT"):
        _number(name)
    if not os.environ.get("MASTER_ADDR"):
        raise SpecError("MASTER_ADDR: expected a host, as torchrun sets it, got none; unset WORLD_SIZE without it")
    exchange(lambda: dist.init_process_group(backend))
    try:
        yield replace(options, device=device, workers=1, group=Group(dist.get_rank(), size))
    except BaseException:
        # In a thread: the other processes may have died, and the group wait for them.
        leaving = threading.Thread(target=_leave, daemon=True)
        leaving.start()
        leaving.join(_LEAVE_SECONDS)
        raise
    dist.destroy_process_group()


def _leave() -> None:
    """End the group after an error; its threads would abort the process at interpreter exit, now and then."""
    with suppress(Exception):  # the other error is the one to report
        dist.destroy_process_group()


def _number(name: str, default: str = "") -> int:
    """Return a number that torchrun has put into the environment."""
    text = os.environ.get(name) or default
    if not text.isdecimal():
        raise SpecError(f"{name}: expected a number, as torchrun sets it, got '{text}'; unset WORLD_SIZE without it")
    return int(text)
