"""What the user sees while runs are trained: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from heavytail.experiment.spec import RunSpec

LINE_SECONDS = 20.0


class Bars:
    """A bar for every run in progress, with its loss and steps per second, and a count of the finished ones."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", table_column=None),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._all = self._progress.add_task("runs", total=None, note="")
        self._tasks: dict[str, tuple[TaskID, float]] = {}
        self._known = 0

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def started(self, spec: RunSpec) -> None:
        """Add a bar."""
        self._known += 1
        self._progress.update(self._all, total=self._known)
        task = self._progress.add_task(spec.describe(), total=spec.steps, note="")
        self._tasks[spec.key] = (task, time.monotonic())

    def progressed(self, spec: RunSpec, step: int, loss: float) -> None:
        """Move a bar."""
        task, since = self._tasks[spec.key]
        rate = step / max(time.monotonic() - since, 1e-9)
        self._progress.update(task, completed=step, note=f"loss {loss:.3f}  {rate:.1f} steps/s")

    def finished(self, spec: RunSpec, status: str) -> None:
        """Remove a bar."""
        self._progress.remove_task(self._tasks.pop(spec.key)[0])
        self._progress.update(self._all, advance=1)


class Lines:
    """For logs: one line every few seconds, on how many runs have ended and where a present one is."""

    def __init__(self) -> None:
        self._finished, self._last = 0, time.monotonic()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        if self._finished > 1:
            print(f"{self._finished} runs trained", file=sys.stderr, flush=True)

    def started(self, spec: RunSpec) -> None:
        """Say nothing."""

    def progressed(self, spec: RunSpec, step: int, loss: float) -> None:
        """Print where a long run is."""
        before = f"{self._finished} runs trained; " if self._finished else ""
        self._say(f"{before}{spec.describe()}: step {step} of {spec.steps}, loss {loss:.4g}")

    def finished(self, spec: RunSpec, status: str) -> None:
        """Print what ended."""
        self._finished += status != "failed"
        self._say(f"{self._finished} runs trained; {spec.describe()}: {status}")

    def _say(self, text: str) -> None:
        now = time.monotonic()
        if now - self._last > LINE_SECONDS:
            print(text, file=sys.stderr, flush=True)
            self._last = now


class Silence(Lines):
    """For all but the first of several processes that train together."""

    def __exit__(self, *_: object) -> None:
        """Say nothing."""

    def _say(self, text: str) -> None:
        """Say nothing."""


def display(*, quiet: bool = False) -> Bars | Lines:
    """Return bars on a terminal, lines elsewhere, and nothing at all if `quiet`."""
    return Silence() if quiet else Bars() if sys.stderr.isatty() else Lines()
