"""Alarms: what in the readings of a training should be looked at now."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from heavytail.errors import SpecError
from heavytail.monitor.monitor import Reading

__all__ = ["Alarm", "Alarms"]

_log = logging.getLogger("heavytail")


class Alarm(NamedTuple):
    """One condition of one group, at the step at which it began.

    Attributes:
        kind: "uniform" (loss above log C, that of guessing), "stalled" (no fall while the total fell) or "rising".
        group: its name.
        split: of the reading.
        step: of the reading.
        message: one line for people.
    """

    kind: str
    group: str
    split: str
    step: int
    message: str


class Alarms:
    """Compares readings with those before; each condition is reported when it begins.

    Args:
        on_alarm: called with each alarm. They are logged as warnings of the logger "heavytail" in any case.
        patience: readings over which a group must fall.
        rise: relative rise over a group's lowest loss that counts as rising.
    """

    def __init__(
        self, on_alarm: Callable[[Alarm], object] | None = None, *, patience: int = 5, rise: float = 0.1
    ) -> None:
        if patience < 1:
            raise SpecError(f"patience: expected at least 1, got {patience}")
        self.on_alarm, self.patience, self.rise = on_alarm, patience, rise
        self._overall: dict[str, deque[float]] = {}  # the last readings of each split
        self._recent: dict[tuple[str, str], deque[float]] = {}  # and of each of its groups, where it had rows
        self._lowest: dict[tuple[str, str], float] = {}
        self._active: set[tuple[str, str, str]] = set()

    def check(self, step: int, reading: Reading, split: str = "train") -> list[Alarm]:
        """Add a reading; return the alarms that begin with it, after reporting them."""
        overall = self._overall.setdefault(split, deque(maxlen=self.patience))
        total = reading.overall["loss"]
        begun = []
        uniform = math.log(len(reading.class_count))
        for name, loss in zip(reading.names, map(float, reading.loss), strict=True):
            if not math.isfinite(loss):
                continue
            recent = self._recent.setdefault((split, name), deque(maxlen=self.patience))
            lowest = self._lowest.get((split, name), math.inf)
            waited = len(recent) == self.patience
            conditions = {
                "uniform": bool(recent) and loss > uniform + 0.05,
                "stalled": waited and loss > 0.999 * recent[0] and total < 0.99 * overall[0],
                "rising": waited and loss > (1 + self.rise) * lowest and loss > recent[-1],
            }
            texts = {
                "uniform": f"loss {loss:.3g} is above log C = {uniform:.3g}: worse than guessing",
                "stalled": f"loss {loss:.3g} has not fallen for {self.patience} readings, while the total has",
                "rising": f"loss {loss:.3g} has risen from {lowest:.3g}",
            }
            for kind, holds in conditions.items():
                key = (split, name, kind)
                if holds and key not in self._active:
                    begun.append(Alarm(kind, name, split, step, f"{split}, step {step}, {name}: {texts[kind]}"))
                (self._active.add if holds else self._active.discard)(key)
            recent.append(loss)
            self._lowest[split, name] = min(lowest, loss)
        overall.append(total)
        for alarm in begun:
            _log.warning("%s", alarm.message)
            if self.on_alarm is not None:
                self.on_alarm(alarm)
        return begun
