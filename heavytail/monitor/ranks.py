"""Sums over the ranks of torch.distributed, with an error instead of a hang if a rank does not take part."""

from __future__ import annotations

import contextlib
import time
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor

from heavytail.errors import SpecError

__all__ = ["add_over_ranks", "leave"]

_calls: dict[tuple[int, ...], int] = {}


def add_over_ranks(value: Tensor, sync: bool = True, group: Any = None, timeout: float = 600.0) -> Tensor:
    """Sum a tensor over the ranks of a group, in place, where torch.distributed runs; else return it as it is.

    Args:
        value: of the same shape on every rank.
        sync: whether to sum at all.
        group: ranks to sum over; by default all.
        timeout: seconds to wait for the others.

    Raises:
        SpecError: a rank did not call this in time, or has left.
    """
    if not sync or _alone(group):
        return value
    _meet(group, timeout)
    if dist.get_backend(group) == "nccl" and value.device.type == "cpu":  # a rank without rows so far
        value = value.cuda()
    dist.all_reduce(value, group=group)
    return value


def leave(group: Any = None) -> None:
    """Tell the other ranks of a group that this one will not sum again, so that none waits for it."""
    if not _alone(group):
        dist.distributed_c10d._get_default_store().set(_key(_ranks(group), dist.get_rank(), "left"), "1")


def _alone(group: Any) -> bool:
    return not dist.is_available() or not dist.is_initialized() or dist.get_world_size(group) <= 1


def _ranks(group: Any) -> tuple[int, ...]:
    return tuple(dist.get_process_group_ranks(group if group is not None else dist.group.WORLD))


def _key(ranks: tuple[int, ...], rank: int, what: int | str) -> str:
    """The key of the store under which a rank says that it has come to a sum, by its number, or that it has left."""
    return f"heavytail/{ranks[0]}-{ranks[-1]}-{len(ranks)}/{what}/{rank}"


def _meet(group: Any, timeout: float) -> None:
    """Wait for the other ranks at the store: a collective that not all call would hang, or pair with another one."""
    ranks = _ranks(group)
    call = _calls.get(ranks, 0) + 1
    store, me = dist.distributed_c10d._get_default_store(), dist.get_rank()
    store.set(_key(ranks, me, call), "1")
    end = time.monotonic() + timeout
    missing = list(ranks)
    while missing:
        wait = timedelta(seconds=max(0.01, min(1.0, end - time.monotonic())))
        with contextlib.suppress(RuntimeError):  # not within this time
            store.wait([_key(ranks, rank, call) for rank in missing], wait)
        missing = [rank for rank in missing if not store.check([_key(ranks, rank, call)])]
        left = [rank for rank in missing if store.check([_key(ranks, rank, "left")])]
        if left or (missing and time.monotonic() >= end):
            store.delete_key(_key(ranks, me, call))
            absent = ", ".join(map(str, left or missing))
            if left:
                raise SpecError(f"compute: the monitor of rank {absent} has stopped; its own message says why")
            raise SpecError(
                f"compute: rank {absent} did not call it within {timeout:g} s of rank {me}; every rank must: move it "
                "out of `if rank == 0` (log what it returns inside), or pass sync=False for the rows of this rank"
            )
    _calls[ranks] = call
    if call > 1:
        store.delete_key(_key(ranks, me, call - 1))  # all ranks are past it
