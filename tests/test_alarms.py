"""Alarms: each of them when it begins, in a memory that does not grow with the training."""

from __future__ import annotations

import math
import pickle
import random
from dataclasses import replace

import numpy as np
import pytest

from heavytail.monitor.alarms import Alarms
from heavytail.monitor.monitor import Monitor, Reading

EMPTY = Monitor(counts=[40, 20, 10, 8, 4, 2, 1, 1], num_groups=3).compute()


def reading(losses: list[float], total: float) -> Reading:
    return replace(EMPTY, loss=np.array(losses), overall={**EMPTY.overall, "loss": total})


class Plain:
    """The conditions over the whole history, as they are defined."""

    def __init__(self, patience: int, rise: float) -> None:
        self.patience, self.rise = patience, rise
        self.history: dict[str, list[Reading]] = {}
        self.active: set[tuple[str, int, str]] = set()

    def check(self, now: Reading, split: str) -> list[tuple[str, str]]:
        history = self.history.setdefault(split, [])
        last, begun = history[-self.patience :], []
        for group, loss in enumerate(now.loss):
            past = [entry.loss[group] for entry in history if math.isfinite(entry.loss[group])]
            recent = past[-self.patience :]
            if not math.isfinite(loss):
                continue
            waited = len(recent) == self.patience
            falls = waited and now.overall["loss"] < 0.99 * last[0].overall["loss"]
            for kind, holds in {
                "uniform": len(past) > 0 and loss > math.log(len(now.class_count)) + 0.05,
                "stalled": falls and loss > 0.999 * recent[0],
                "rising": waited and loss > (1 + self.rise) * min(past) and loss > recent[-1],
            }.items():
                key = split, group, kind
                if holds and key not in self.active:
                    begun.append((kind, now.names[group]))
                (self.active.add if holds else self.active.discard)(key)
        history.append(now)
        return begun


@pytest.mark.parametrize("seed", range(20))
def test_the_alarms_are_those_of_the_whole_history(seed: int) -> None:
    """Random histories of two splits, groups without rows among them: the same alarms at the same readings."""
    rng = random.Random(seed)
    patience, rise = rng.choice([1, 2, 5]), rng.choice([0.0, 0.1, 0.5])
    alarms, plain, level = Alarms(patience=patience, rise=rise), Plain(patience, rise), [2.0, 2.0, 2.0]
    found = 0
    for step in range(200):
        level = [max(0.1, loss + rng.gauss(-0.01, 0.2)) for loss in level]
        losses = [rng.choice([loss, loss, loss, round(loss), math.nan, math.inf]) for loss in level]
        now = reading(losses, rng.choice([*losses, sum(level) / 3]))
        split = rng.choice(["train", "eval"])
        begun = [(alarm.kind, alarm.group) for alarm in alarms.check(step, now, split)]
        assert begun == plain.check(now, split)
        found += len(begun)
    assert found > 5


def test_memory_does_not_grow() -> None:
    """After 10 000 readings the alarms hold as much as after 100."""
    alarms, size = Alarms(), 0
    for step in range(10_000):
        alarms.check(step, reading([1.0 + step % 2 / 100, 2.0, math.nan], 1.5))
        if step == 100:
            size = len(pickle.dumps(alarms))
    assert len(pickle.dumps(alarms)) <= size + 100
