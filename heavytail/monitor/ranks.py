"""Sums over the ranks of torch.distributed, with an error instead of a hang if a rank does not take part."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from heavytail.errors import SpecError

__all__ = ["Stoppable", "add_over_ranks", "on_one_rank", "sum_over_ranks"]

_log = logging.getLogger("heavytail")

_calls: dict[tuple[int, ...], int] = {}


def add_over_ranks(value: Tensor, sync: bool = True, group: Any = None, timeout: float = 600.0) -> Tensor:
    """Sum a tensor over the ranks of a group, in place, where torch.distributed runs; else return it as it is.

    Args:
        value: of the same shape on every rank.
        sync: whether to sum at all.
        group: ranks to sum over; by default all.
        timeout: seconds to wait for the others.

    Raises:
        SpecError: a rank did not call this in time.
    """
    if not sync or not dist.is_available() or not dist.is_initialized() or dist.get_world_size(group) <= 1:
        return value
    _meet(group, timeout)
    if dist.get_backend(group) == "nccl" and value.device.type == "cpu":  # a rank without rows so far
        value = value.cuda()
    dist.all_reduce(value, group=group)
    return value


def sum_over_ranks(sums: Mapping[str, Tensor], group: Any = None) -> dict[str, Tensor]:
    """Sum the tensors of `Monitor.state_dict` over the ranks of a group; every rank must call this.

    Args:
        sums: of the same names and shapes on every rank, whole numbers or float64.
        group: ranks to sum over; by default all.

    Raises:
        SpecError: a rank did not call this in time.
    """
    total = add_over_ranks(torch.cat([value.double().reshape(-1) for value in sums.values()]), group=group).cpu()
    parts = torch.split(total, [value.numel() for value in sums.values()])  # float64 holds whole numbers to 2^53
    return {name: part.reshape(sums[name].shape).to(sums[name].dtype) for name, part in zip(sums, parts, strict=True)}


def on_one_rank(sums: Mapping[str, Tensor], group: Any = None) -> dict[str, Tensor]:
    """Return what `sum_over_ranks` returned on the first rank of the group, and zeros on all others."""
    alone = not dist.is_available() or not dist.is_initialized() or dist.get_rank(group) == 0
    return {name: value if alone else torch.zeros_like(value) for name, value in sums.items()}


class Stoppable:
    """A callback that may stop measuring while training goes on; those of other ranks then stop at their next reading.

    Attributes:
        stopped: why it does not measure, or None.
    """

    stopped: str | None = None
    _told = False  # the other ranks, that it has stopped

    def _stop(self, reason: str) -> None:
        self.stopped = reason
        _log.warning("the monitor stops, training goes on: %s", reason)

    @contextmanager
    def _guarded(self, what: str = "") -> Iterator[None]:
        """Stop, rather than end the training, if what runs inside raises.

        Args:
            what: what it is about, where the error does not say.
        """
        try:
            yield
        except Exception as error:
            reason = str(error) if isinstance(error, SpecError) else f"{type(error).__name__}: {error}"
            if self.stopped is None:
                self._stop(f"{what}: {reason}" if what else reason)
            _log.debug("the monitor was stopped by", exc_info=error)

    def _together(self, settings: Mapping[str, Any]) -> bool:
        """Whether the monitors of all ranks measure; every rank must ask before each of its readings.

        Args:
            settings: of the monitors, among them their `process_group`.
        """
        if self._told:
            return False
        with self._guarded():
            mine = torch.tensor([int(self.stopped is not None)])
            stopped = int(add_over_ranks(mine, group=settings.get("process_group")))
            if not stopped:
                return True
            if self.stopped is None:
                self._stop("that of another rank has stopped")
        self._told = True
        return False


def _meet(group: Any, timeout: float) -> None:
    """Wait for the other ranks at the store: a collective that not all call would hang, or pair with another one."""
    ranks = tuple(dist.get_process_group_ranks(group if group is not None else dist.group.WORLD))
    call = _calls.get(ranks, 0) + 1
    store, me = dist.distributed_c10d._get_default_store(), dist.get_rank()

    def key(rank: int, number: int) -> str:
        return f"heavytail/{ranks[0]}-{ranks[-1]}-{len(ranks)}/{number}/{rank}"

    store.set(key(me, call), "1")
    try:
        store.wait([key(rank, call) for rank in ranks], timedelta(seconds=timeout))
    except RuntimeError as error:
        missing = [rank for rank in ranks if not store.check([key(rank, call)])]
        store.delete_key(key(me, call))
        absent = ", ".join(map(str, missing))
        raise SpecError(
            f"compute: rank {absent} did not call it within {timeout:g} s of rank {me}; every rank must: move it out "
            "of `if rank == 0` (log what it returns inside), or pass sync=False for the rows of this rank"
        ) from error
    _calls[ranks] = call
    if call > 1:
        store.delete_key(key(me, call - 1))  # all ranks are past it
