"""Draw figures, several at a time in processes of their own."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from heavytail.experiment.store import RunStore
from heavytail.report import drawn
from heavytail.report.files import write_figure
from heavytail.results.claims import Claim
from heavytail.results.figure import Figure, all_figures, figure
from heavytail.results.results import Results

ENOUGH = 4  # figures; fewer are drawn here before the processes have started


@dataclass(frozen=True)
class Task:
    """A figure to draw, the reason for its missing runs, and its key (see `drawn`)."""

    figure: Figure
    missing: str | None
    key: str


class Made(NamedTuple):
    """The claims of a figure whose files are written, and the seconds that it took."""

    claims: list[Claim]
    seconds: float


def draw(tasks: Sequence[Task], results: Results, out: Path, workers: int) -> Iterator[tuple[Task, Made | Exception]]:
    """Write the files of figures under `out`, and yield each with what was made or the error that it raised, in order.

    Args:
        tasks: the figures.
        results: finished runs.
        out: folder of the reproduction.
        workers: number of processes; only the figures of this package can be drawn in others than this one.
    """
    ours = all_figures()
    if workers > 1 and len(tasks) >= ENOUGH and all(task.figure in ours for task in tasks):
        source = (results.store.root, results.scale, results.presets, results.data_dir)
        pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start, initargs=source)
        try:
            futures = [pool.submit(_work, task.figure.id, task.missing, task.key, out) for task in tasks]
            for task, future in zip(tasks, futures, strict=True):
                try:
                    yield task, future.result()
                except BrokenProcessPool:  # one was killed, for lack of memory say
                    yield task, _make(task, results, out)
        finally:
            pool.shutdown(cancel_futures=True)
        return
    for task in tasks:
        yield task, _make(task, results, out)


def _make(task: Task, results: Results, out: Path) -> Made | Exception:
    clock = time.perf_counter()
    try:
        claims = write_figure(task.figure, results, out, missing=task.missing)
    except Exception as error:
        return error
    if task.key:
        drawn.record(out, task.figure, task.key, claims)
    return Made(claims, time.perf_counter() - clock)


_results: Results


def _start(root: Path, scale: str, presets: Path | None, data_dir: Path | None) -> None:
    """Start a process: its figures share the runs that they read."""
    global _results
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent handles it
    _results = Results(RunStore(root), scale, presets, data_dir=data_dir)


def _work(name: str, missing: str | None, key: str, out: Path) -> Made | Exception:
    return _make(Task(figure(name), missing, key), _results, out)
