"""Two training runs as two processes of one thread, against one after the other in a process of two threads.

What a step-size search does on two cores (docs/decisions/0004). The processes are started and warmed up before; a round
is as many steps of each run as take about a second.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

from benchmarks.step import CASES, one_step, start
from benchmarks.timing import Options, Row, interleave

PROCESSES, THREADS = "2 processes x 1 thread", "1 process x 2 threads"
TARGET = 1.0


def rows(options: Options) -> Iterator[Row]:
    """Return the time of two one-thread processes relative to that of one with two threads."""
    if options.device != "cpu" or (os.cpu_count() or 1) < 2:
        return
    pool = [ProcessPoolExecutor(1, get_context("spawn")) for _ in range(3)]
    one, other, both = pool
    try:
        wanted = [number for number, case in enumerate(CASES) if options.wants(case.name)]
        for number in wanted[:1] if options.tiny else wanted:
            for started in [
                worker.submit(_start, number, options, k) for worker, k in zip(pool, (1, 1, 2), strict=True)
            ]:
                started.result()
            name, seconds = both.submit(_steps, 1).result()
            steps = 1 if options.tiny else max(1, round(1 / seconds))

            def apart(steps: int = steps) -> None:
                for done in [worker.submit(_steps, steps) for worker in (one, other)]:
                    done.result()

            contenders = {PROCESSES: apart, THREADS: lambda steps=steps: both.submit(_steps, 2 * steps).result()}
            timing = interleave(contenders, rounds=options.rounds or 5, warmup=1)
            yield timing.row(f"{name}, {steps} steps each", PROCESSES, THREADS, TARGET)
    finally:
        for worker in pool:
            worker.shutdown()


_step: tuple[str, Callable[[], None]] | None = None  # of the process: a worker has one run at a time


def _start(number: int, options: Options, threads: int) -> None:
    global _step
    torch.set_num_threads(threads)
    run, name = start(CASES[number], options)
    _step = (name, one_step(run))
    _steps(1)


def _steps(number: int) -> tuple[str, float]:
    """Take steps; return the name of the run and the seconds of a step."""
    assert _step is not None
    name, step = _step
    begun = time.perf_counter()
    for _ in range(number):
        step()
    return name, (time.perf_counter() - begun) / number
