"""How to run: data folder, device, workers, torch.compile."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from heavytail.train.group import Group


@dataclass(frozen=True)
class Options:
    """How to run.

    Attributes:
        data_dir: where public data sets are.
        device: torch device.
        workers: training processes; None is one per core on a CPU (small problems gain more from processes than from
            threads), and one on a GPU.
        compiled: whether to use torch.compile for models.
        group: the processes that train every run together, if torchrun started several.
    """

    data_dir: Path
    device: str = "cpu"
    workers: int | None = None
    compiled: bool = False
    group: Group | None = None

    @property
    def first(self) -> bool:
        """Whether this process has rank 0, which writes and prints."""
        return self.group is None or self.group.rank == 0

    def num_workers(self) -> int:
        """Return the number of processes to use."""
        if self.workers is not None:
            return self.workers
        return num_cores() if self.device == "cpu" else 1


def num_cores() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0))
