"""Interleaved timing: contenders take turns, so that a change of load or clock speed meets all of them.

Times of one contender spread by tens of percent on a shared machine. The ratio of two within one round
spreads far less, and its median over the rounds is what is reported.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of every contender in every round; contenders in order, rounds in order."""

    seconds: dict[str, list[float]]

    def median(self, name: str) -> float:
        """Return the median time of a contender (seconds)."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, base: str) -> float:
        """Return the median over rounds of the time of `name` divided by that of `base` in the same round."""
        return statistics.median(a / b for a, b in zip(self.seconds[name], self.seconds[base], strict=True))


def interleave(contenders: Mapping[str, Callable[[], object]], *, rounds: int = 15, warmup: int = 2) -> Timing:
    """Time the contenders round-robin, every second round in reverse order.

    Args:
        contenders: what to call, by name.
        rounds: measured calls of each.
        warmup: calls of each that are not measured.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders.items())
    for number in range(warmup + rounds):
        for name, call in order:
            _synchronize()
            start = time.perf_counter()
            call()
            _synchronize()
            if number >= warmup:
                seconds[name].append(time.perf_counter() - start)
        order.reverse()
    return Timing(seconds)


def environment() -> dict[str, Any]:
    """Return what a measured time depends on and a reader cannot see."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def save(path: Path, results: dict[str, Any]) -> None:
    """Write results with their environment as JSON."""
    path.write_text(json.dumps({"environment": environment(), **results}, indent=2) + "\n")


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
