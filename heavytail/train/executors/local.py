"""Runs in this process, or in worker processes of this machine, each with its share of the cores.

With one worker, runs are trained in this process; with more, each worker is a spawned process (which shares no torch
state). On several GPUs, worker i uses GPU i modulo their number. On Ctrl-C every run commits its current step. If a
worker dies, only its current run is lost.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING

from heavytail.errors import HeavyTailError
from heavytail.system import num_cores
from heavytail.train.executors import Event, Executor, Handle, Setting, attempt

if TYPE_CHECKING:  # `--help` imports every executor for its settings
    from heavytail.experiment.spec import RunSpec
    from heavytail.experiment.store import RunStore
    from heavytail.train.engine import Progress
    from heavytail.train.options import Options

SETTINGS: tuple[Setting, ...] = ()
_LOG = logging.getLogger("heavytail")
PATIENCE = 10.0  # seconds for a worker to commit its run


def connect(store: RunStore, options: Options, should_stop: Callable[[], bool]) -> Executor:
    """Return this process, or a pool of worker processes."""
    return InProcess(store, options, should_stop) if options.num_workers() == 1 else Pool(store, options)


class InProcess:
    """Trains one run after another in this process, inside `poll`."""

    def __init__(self, store: RunStore, options: Options, should_stop: Callable[[], bool]) -> None:
        import torch

        torch.set_num_threads(min(torch.get_num_threads(), num_cores()))  # OpenMP does not know a container's quota
        self._store, self._options, self._should_stop = store, options, should_stop
        self._spec: RunSpec | None = None

    def start(self, specs: Sequence[RunSpec]) -> Sequence[RunSpec]:
        """Take the first run, unless there is one."""
        if self._spec is not None or not specs:
            return []
        self._spec = specs[0]
        return specs[:1]

    def poll(self, handle: Handle, timeout: float) -> None:
        """Train the run to its end, or until the user asks to stop."""
        spec, self._spec = self._spec, None
        if spec is None:
            return

        def on_progress(progress: Progress) -> None:
            handle(Event(spec, "progress", step=progress.step, loss=progress.loss))

        handle(attempt(spec, self._store, self._options, on_progress, self._should_stop))

    def stop(self) -> None:
        """Do nothing: training checks `should_stop` before every step."""

    def close(self) -> None:
        """Do nothing."""


@dataclass
class _Worker:
    """A process, the parent's end of its pipe, and its current run.

    Processes share only pipes: a worker killed while it holds a lock or a queue would block all others.
    """

    process: SpawnProcess
    pipe: Connection
    spec: RunSpec | None = None

    def send(self, spec: RunSpec) -> None:
        self.spec = spec
        with contextlib.suppress(OSError):  # it died while idle; `receive` reports that
            self.pipe.send(spec)

    def receive(self) -> Event | None:
        """Return the next event; None if the process died while idle."""
        try:
            event: Event = self.pipe.recv()
            return event
        except (EOFError, OSError):
            self.process.join()  # for its exit code
            died = f"its worker process died (exit code {self.process.exitcode})"
            return None if self.spec is None else Event(self.spec, "lost", died)

    def end(self, *, patience: float = 0.0) -> None:
        """Wait up to `patience` seconds for the process to exit, then kill it."""
        self.pipe.close()
        self.process.join(patience)
        self.process.kill()
        self.process.join()


class Pool:
    """The worker processes: sends runs to idle ones, receives events from busy ones."""

    def __init__(self, store: RunStore, options: Options) -> None:
        self._store, self._options = store, options
        self._workers: list[_Worker] = []
        self._asked = False
        self._context = multiprocessing.get_context("spawn")

    def start(self, specs: Sequence[RunSpec]) -> Sequence[RunSpec]:
        """Send a run to every idle worker, starting workers as needed."""
        busy = sum(worker.spec is not None for worker in self._workers)
        while len(self._workers) < min(self._options.num_workers(), busy + len(specs)):
            self._spawn()
        idle = [worker for worker in self._workers if worker.spec is None]
        for worker, spec in zip(idle, specs, strict=False):
            worker.send(spec)
        return specs[: len(idle)]

    def poll(self, handle: Handle, timeout: float) -> None:
        """Receive one event from every worker that has sent one."""
        ready = wait([worker.pipe for worker in self._workers], timeout)
        for worker in [worker for worker in self._workers if worker.pipe in ready]:
            event = worker.receive()
            if event is None or event.kind == "lost" or event.text == "interrupted":  # it has committed and exits
                self._workers.remove(worker)
                worker.end()
            if event is not None:
                if event.kind != "progress":
                    worker.spec = None
                handle(event)

    def stop(self) -> None:
        """Send SIGTERM to every worker, once: it commits its run and exits."""
        if not self._asked:
            self._asked = True
            for worker in self._workers:
                worker.process.terminate()

    def close(self) -> None:
        """Stop every worker; a busy one has ten seconds to commit its run, an idle one has nothing to lose."""
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.end(patience=PATIENCE if worker.spec else 0.0)

    def _spawn(self) -> None:
        ours, theirs = self._context.Pipe()
        taken = {worker.process.name for worker in self._workers}
        index = next(i for i in range(len(taken) + 1) if f"heavytail-{i}" not in taken)
        threads = max(1, num_cores() // self._options.num_workers())
        options = replace(self._options, device=self._options.device_of(index))
        process = self._context.Process(
            name=f"heavytail-{index}", target=_work, args=(theirs, threads, self._store.root, options), daemon=True
        )
        process.start()
        theirs.close()  # then only the worker holds this end, and it closes when the worker dies
        self._workers.append(_Worker(process, ours))


def _work(pipe: Connection, threads: int, root: Path, options: Options) -> None:
    """Worker process: train the runs received over the pipe, and send the events of each."""
    stopped = []
    _LOG.setLevel(logging.ERROR)  # the parent reports damaged runs
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent handles it
    signal.signal(signal.SIGTERM, lambda signum, frame: stopped.append(signum))
    parent = os.getppid()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    from heavytail.experiment.store import RunStore

    torch.set_num_threads(threads)

    def send(event: Event) -> None:
        with contextlib.suppress(OSError):  # the parent died
            pipe.send(replace(event, error=None))  # exceptions need not be picklable

    def should_stop() -> bool:
        return bool(stopped) or os.getppid() != parent  # stop if the parent died

    store = RunStore(root)
    while not stopped:
        try:
            spec: RunSpec = pipe.recv()
        except (EOFError, OSError):
            return

        def on_progress(progress: Progress, spec: RunSpec = spec) -> None:
            send(Event(spec, "progress", step=progress.step, loss=progress.loss))

        try:
            send(attempt(spec, store, options, on_progress, should_stop))
        except HeavyTailError as error:
            send(Event(spec, "fatal", str(error)))
