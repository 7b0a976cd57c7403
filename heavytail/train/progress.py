"""Progress display of training: bars on a terminal, an occasional line elsewhere."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from heavytail.experiment.spec import RunSpec

LINE_SECONDS = 20.0


class Bars:
    """A bar per run in progress, with its loss and steps per second, and a count of finished runs."""

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
        self._tasks: dict[str, tuple[TaskID, float, int]] = {}  # with the time and the step of the first report
        self._started = self._expected = 0

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def expect(self, runs: int) -> None:
        """Set the total number of runs."""
        self._expected = runs
        self._progress.update(self._all, total=runs)

    def note(self, text: str) -> None:
        """Show a text next to the number of finished runs."""
        self._progress.update(self._all, note=text)

    def announce(self, text: str) -> None:
        """Print a line that stays."""
        self._progress.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def started(self, spec: RunSpec) -> None:
        """Count the run; its bar is added by its first report, as hundreds may wait in the queue of a cluster."""
        self._started += 1
        self._progress.update(self._all, total=max(self._started, self._expected))

    def progressed(self, spec: RunSpec, step: int, loss: float) -> None:
        """Add a bar, or move it."""
        if spec.key not in self._tasks:
            task = self._progress.add_task(spec.describe(), total=spec.steps, note="")
            self._tasks[spec.key] = (task, time.monotonic(), step)
        task, since, first = self._tasks[spec.key]
        note = f"loss {loss:.3f}"
        if step > first:
            note += f"  {(step - first) / max(time.monotonic() - since, 1e-9):.1f} steps/s"
        self._progress.update(task, completed=step, note=note)

    def finished(self, spec: RunSpec, status: str) -> None:
        """Remove a bar."""
        if spec.key in self._tasks:
            self._progress.remove_task(self._tasks.pop(spec.key)[0])
        self._progress.update(self._all, advance=1)


class Lines:
    """For logs: a line every 20 seconds with the number of finished runs and the step of a current one."""

    def __init__(self) -> None:
        self._finished, self._expected, self._note, self._last = 0, 0, "", time.monotonic()
        self._started = 0

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        if self._finished > 1:
            print(f"{self._finished} runs trained", file=sys.stderr, flush=True)

    def expect(self, runs: int) -> None:
        """Set the total number of runs."""
        self._expected = runs

    def note(self, text: str) -> None:
        """Add a text to each line."""
        self._note = text

    def announce(self, text: str) -> None:
        """Print a line now."""
        print(text, file=sys.stderr, flush=True)

    def started(self, spec: RunSpec) -> None:
        """Count; `progressed` prints the first line."""
        self._started += 1

    def progressed(self, spec: RunSpec, step: int, loss: float) -> None:
        """Print the step of a long run."""
        self._print(f"{spec.describe()}: step {step} of {spec.steps}, loss {loss:.4g}")

    def finished(self, spec: RunSpec, status: str) -> None:
        """Print the status of a finished run."""
        self._finished += status != "failed"
        self._print(f"{spec.describe()}: {status}")

    def _print(self, text: str) -> None:
        now = time.monotonic()
        if now - self._last > LINE_SECONDS:
            total = f" of {max(self._expected, self._started)}" if self._expected else ""
            done = f"{self._finished}{total} runs trained; " if self._finished else ""
            note = f"{self._note}; " if self._note else ""
            self.announce(f"{done}{note}{text}")
            self._last = now


class Silence(Lines):
    """Prints nothing: the display of every rank but 0."""

    def __exit__(self, *_: object) -> None:
        """Print nothing."""

    def announce(self, text: str) -> None:
        """Print nothing."""


def display(*, quiet: bool = False) -> Bars | Lines:
    """Return bars on a terminal, lines elsewhere, and nothing at all if `quiet`."""
    return Silence() if quiet else Bars() if sys.stderr.isatty() else Lines()
