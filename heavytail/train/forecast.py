"""How long the runs that searches lack will take, and how much of that is left while they are trained."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Protocol

from heavytail.errors import DataError
from heavytail.experiment.spec import RunSpec
from heavytail.experiment.store import RunStore
from heavytail.experiment.waves import Waves, keys
from heavytail.train.runner import Display


class Progress(Display, Protocol):
    """Receives progress events of runs, their number, and remarks."""

    def expect(self, runs: int) -> None: ...

    def note(self, text: str) -> None: ...

    def announce(self, text: str) -> None: ...


class Estimates:
    """The estimated seconds of runs.

    Those of a run are the median of stored runs of its problem; without any, what the caller knows about its search;
    without that, the time of an earlier search of the problem, or a rough one from its operations (`train.cost`).

    Args:
        store: of the runs; all its records are read once a search lacks runs.
        data_dir: where public data sets are.

    Attributes:
        by_problem: seconds of one run of each problem so far (see `cost.problem`).
    """

    def __init__(self, store: RunStore, data_dir: Path) -> None:
        self._store, self._data_dir = store, data_dir
        self.by_problem: dict[str, float] = {}

    def runs(self, waves: Waves, known: float | None = None) -> dict[str, float]:
        """Return the seconds of the runs that a search lacks, by key.

        Args:
            waves: the runs.
            known: seconds of one of them, where no run of the problem is stored.
        """
        first = next((spec for wave in waves for spec in wave), None)
        if first is None:
            return {}
        from heavytail.train import cost

        problem = cost.problem(first.resolved)
        each = self._recorded.get(problem) or known or self.by_problem.get(problem)
        if each is None:
            each = self._from_operations(waves)
        self.by_problem[problem] = each
        return dict.fromkeys(keys(waves), each)

    @cached_property
    def _recorded(self) -> Mapping[str, float]:
        from heavytail.train import cost

        return cost.recorded_seconds(self._store)

    def _from_operations(self, waves: Waves) -> float:
        from heavytail.train.cost import Costs

        with suppress(DataError):  # missing data are reported by the first run
            if row := Costs(self._data_dir).row(waves):
                return row.seconds / row.runs
        return 0.0


class Forecast:
    """A display that also shows how much of the planned time is left; it forwards all events to another one."""

    def __init__(self, display: Progress) -> None:
        self._display = display
        self.announce = display.announce
        self._remark = ""
        self._seconds: Mapping[str, float] = {}  # estimated, of each planned run
        self._problems: Mapping[str, float] = {}  # of one run of each problem
        self._total = self._done = 0.0
        self._workers = 1
        self._clock = time.perf_counter()

    def plan(
        self, runs: Mapping[str, float], problems: Mapping[str, float], workers: int, *, besides: float = 0.0
    ) -> None:
        """Announce the number of runs, and the estimated time.

        Args:
            runs: seconds of each run by key.
            problems: the same by problem, for runs that were not expected.
            workers: number of runs trained at a time.
            besides: seconds of other work, shared by the workers, too.
        """
        self._seconds, self._problems, self._workers = runs, problems, workers
        self._total, self._clock = sum(runs.values()) + besides, time.perf_counter()
        self._display.expect(len(runs))
        minutes = _minutes(self._total / workers)
        self.announce(f"about {len(runs)} runs to train, roughly {minutes} with {workers} worker{'s' * (workers > 1)}")

    def seconds(self, spec: RunSpec) -> float:
        """Return the estimated seconds of a run; 0 if its problem is not planned."""
        if spec.key in self._seconds or not self._problems:
            return self._seconds.get(spec.key, 0.0)
        from heavytail.train.cost import problem

        return self._problems.get(problem(spec.resolved), 0.0)

    def started(self, spec: RunSpec) -> None:
        """Show that a run is trained."""
        self._display.started(spec)

    def progressed(self, spec: RunSpec, step: int, loss: float) -> None:
        """Show the step of a run."""
        self._display.progressed(spec, step, loss)

    def finished(self, spec: RunSpec, status: str) -> None:
        """Count the run as done."""
        self.add(self.seconds(spec))
        self._display.finished(spec, status)

    def add(self, seconds: float, remark: str | None = None) -> None:
        """Count work as done, given its estimated seconds, and show a remark, or the last one, and the time left."""
        self._done += seconds
        self._remark = note = self._remark if remark is None else remark
        if 0 < self._done < self._total:
            elapsed = time.perf_counter() - self._clock
            left = remaining(self._total / self._workers, self._done / self._workers, elapsed)
            note = f"{note}, about {_minutes(left)} left".lstrip(", ")
        self._display.note(note)


def remaining(planned: float, done: float, elapsed: float) -> float:
    """Forecast the seconds that are left of work planned to take `planned`, of which `done` took `elapsed`.

    The cheapest runs come first, and starting the workers and importing weigh most on them. So the plan counts as a
    measurement, too: as if a tenth of the work had been done before, and had taken as long as planned.
    """
    trust = planned / 10
    return (planned - done) * (trust + elapsed) / (trust + done)


def _minutes(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    return f"{minutes} minute{'s' * (minutes > 1)}" if minutes < 120 else f"{minutes / 60:.0f} hours"
