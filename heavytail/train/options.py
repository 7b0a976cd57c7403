"""How to run: data folder, device, executor, workers, shard, torch.compile."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heavytail.errors import SpecError
from heavytail.system import num_cores

if TYPE_CHECKING:
    from heavytail.experiment.spec import RunSpec
    from heavytail.train.group import Group


@dataclass(frozen=True)
class Shard:
    """One of n parts of all runs, in which a run is by its key alone: the parts of a search never overlap.

    Attributes:
        index: number of the part, from 1 to `count`.
        count: number of parts.
    """

    index: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read "2/3"; raise SpecError for anything else than a part from 1/n to n/n."""
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, re.ASCII)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise SpecError(f"--shard: expected i/n with 1 <= i <= n, such as 1/3, got '{text}'")
        return cls(int(match[1]), int(match[2]))

    def of(self, specs: Sequence[RunSpec]) -> list[RunSpec]:
        """Return the runs in this part."""
        return [spec for spec in specs if int(spec.key, 16) % self.count == self.index - 1]


ALL = Shard()


@dataclass(frozen=True)
class Options:
    """How to run.

    Attributes:
        data_dir: where public data sets are.
        device: torch device; "cuda" is every GPU, "cuda:1" that one.
        workers: runs trained at a time; None is one per core on a CPU (small problems gain more from processes than
            from threads), and one per GPU.
        compiled: whether to use torch.compile for models.
        group: the processes that train every run together, if torchrun started several.
        executor: where runs are trained: the name of a module in `executors`.
        settings: of the executor, by name.
        shard: the part of the runs to train.
    """

    data_dir: Path
    device: str = "cpu"
    workers: int | None = None
    compiled: bool = False
    group: Group | None = None
    executor: str = "local"
    settings: dict[str, Any] = field(default_factory=dict)
    shard: Shard = ALL

    @property
    def elsewhere(self) -> str | None:
        """Why runs may be missing after a command that has ended well; None if it waits for all."""
        if self.shard != ALL:
            return "runs of other shards are missing"
        return "runs that were left to the cluster are missing" if self.settings.get("leave") else None

    @property
    def first(self) -> bool:
        """Whether this process has rank 0, which writes and prints."""
        return self.group is None or self.group.rank == 0

    def num_workers(self) -> int:
        """Return the number of runs to train at a time."""
        if self.workers is not None:
            return self.workers
        return num_cores() if self.device == "cpu" else max(1, self._num_gpus())

    def num_local(self) -> int:
        """Return the number of processes for other work here: a cluster trains more runs than this machine."""
        return min(self.num_workers(), num_cores())

    def device_of(self, worker: int) -> str:
        """Return the device of one of several workers: the GPUs in turn."""
        gpus = self._num_gpus()
        return f"cuda:{worker % gpus}" if gpus > 1 else self.device

    def _num_gpus(self) -> int:
        """The number of GPUs to choose from; 0 if the device is named."""
        if self.device != "cuda":
            return 0
        import torch

        return torch.cuda.device_count()
