"""Interleaved timing: contenders run in turns, so that changes of load or clock speed affect all of them.

Times of one contender spread by tens of percent on a shared machine. The ratio of two within one round
spreads far less, and its median over the rounds is reported (docs/decisions/0007).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Options:
    """How to measure.

    Attributes:
        rounds: measured calls of each contender; None takes what suits the case.
        device: of torch.
        data_dir: where public data sets are.
        tiny: shapes so small that the numbers mean nothing: does everything run?
        only: words of which one must be in the name of a case of head, step, pool and quick; none for all cases.
    """

    rounds: int | None = None
    device: str = "cpu"
    data_dir: Path = Path("data")
    tiny: bool = False
    only: tuple[str, ...] = ()

    def wants(self, case: str) -> bool:
        """Whether to measure a case."""
        return not self.only or any(word.lower() in case.lower() for word in self.only)


@dataclass(frozen=True)
class Row:
    """One measured ratio, or one amount.

    Attributes:
        case: the measured problem.
        name, base: the two contenders; `base` is "" for an amount.
        value: their ratio, median over the rounds; or the amount.
        low, high: quartiles over the rounds.
        unit: "x" for ratios.
        target: upper limit of `value`; None for no target.
        detail: further numbers for the file, such as median times.
    """

    case: str
    name: str
    base: str
    value: float
    low: float
    high: float
    unit: str = "x"
    target: float | None = None
    detail: Mapping[str, Any] | None = None

    @property
    def verdict(self) -> str:
        """Whether the target is met."""
        return "" if self.target is None else "met" if self.value <= self.target else "missed"


@dataclass(frozen=True)
class Timing:
    """Seconds of every contender in every round; contenders in order, rounds in order."""

    seconds: dict[str, list[float]]

    def median(self, name: str) -> float:
        """Return the median time of a contender (seconds)."""
        return statistics.median(self.seconds[name])

    def row(self, case: str, name: str, base: str, target: float | None = None) -> Row:
        """Return the ratio of the times of `name` and `base` within rounds."""
        ratios = [a / b for a, b in zip(self.seconds[name], self.seconds[base], strict=True)]
        low, value, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        medians = {f"{contender} seconds": self.median(contender) for contender in (name, base)}
        return Row(case, name, base, value, low, high, target=target, detail={**medians, "rounds": len(ratios)})


def interleave(contenders: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 2) -> Timing:
    """Time the contenders round-robin, every second round in reverse order.

    Args:
        contenders: functions to time, by name.
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


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
