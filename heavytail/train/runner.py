"""The runner: work through as many runs as a search asks for, several at a time, and survive being stopped.

`propose` is asked again after every finished run, so that the dense grid of one optimizer starts while the sparse grid
of another is still running. With one worker everything happens in this process; with more, each worker is a process of
its own (spawned, so that it shares no torch state) with its share of the cores. Ctrl-C lets every run commit where it
is; a worker that dies takes only its current run with it, which resumes from its last commit the next time.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol

from heavytail.errors import HeavyTailError
from heavytail.spec import RunSpec
from heavytail.store import RunStore

Propose = Callable[[], list[RunSpec]]


class RunFailed(HeavyTailError):
    """Some runs ended in an error that is not the user's to fix, or their worker died."""


class Interrupted(HeavyTailError):
    """The user stopped the work; everything trained so far is stored."""


class Display(Protocol):
    """What the runner tells the user while it works."""

    def started(self, spec: RunSpec) -> None: ...

    def progressed(self, spec: RunSpec, step: int, loss: float) -> None: ...

    def finished(self, spec: RunSpec, status: str) -> None: ...


@dataclass(frozen=True)
class Options:
    """How to run.

    Attributes:
        data_dir: where public data sets are.
        device: of torch.
        workers: processes; None takes one per core on a CPU (small problems gain more from it than from threads), and
            one on a GPU.
    """

    data_dir: Path
    device: str = "cpu"
    workers: int | None = None

    def num_workers(self) -> int:
        """Return the number of processes to use."""
        if self.workers is not None:
            return self.workers
        return num_cores() if self.device == "cpu" else 1


def num_cores() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0))


def run_all(propose: Propose, store: RunStore, options: Options, display: Display) -> None:
    """Train until `propose` asks for nothing more.

    Args:
        propose: the runs that are needed next and not finished, whether or not they are being trained already.
        store: where runs are committed.
        options: device, data folder, number of workers.
        display: is told what happens.

    Raises:
        Interrupted: after Ctrl-C or SIGTERM, with everything committed.
        RunFailed: some runs failed; the others are finished.
    """
    if not propose():
        return
    with _Stop() as stop:
        work = _run_here if options.num_workers() == 1 else _run_in_workers
        failures = work(propose, store, options, display, stop)
        if stop.requested:
            raise Interrupted("stopped; everything trained so far is stored, the same command continues")
    if failures:
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        raise RunFailed(f"{failures[0]}{more}; the same command continues")


class _Stop:
    """Turns the first Ctrl-C or SIGTERM into a request to stop; the second one is as rude as ever."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> _Stop:
        try:
            self._before = {s: signal.signal(s, self._request) for s in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: signals are somebody else's
            self._before = {}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _request(self, signum: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


def _run_here(propose: Propose, store: RunStore, options: Options, display: Display, stop: _Stop) -> list[str]:
    from heavytail.train.engine import train

    failed: dict[str, str] = {}
    while todo := [s for s in propose() if s.key not in failed]:
        spec = todo[0]
        display.started(spec)
        try:
            history = train(
                spec,
                store,
                data_dir=options.data_dir,
                device=options.device,
                report=lambda p: display.progressed(p.spec, p.step, p.loss),
                should_stop=lambda: stop.requested,
            )
        except HeavyTailError:
            raise
        except Exception as error:  # one run out of memory must not end a night of others
            failed[spec.key] = f"{spec.describe()}: {type(error).__name__}: {error}"
            display.finished(spec, "failed")
            continue
        display.finished(spec, history.status)
        if stop.requested:
            break
    return list(failed.values())


@dataclass
class _Worker:
    """A process, the queue it takes runs from, and the run it has."""

    process: SpawnProcess
    tasks: Any
    spec: RunSpec | None = None


@dataclass(frozen=True)
class _Message:
    """What a worker says of its current run."""

    worker: int
    kind: Literal["progress", "finished", "failed", "fatal"]
    text: str = ""
    step: int = 0
    loss: float = 0.0


def _run_in_workers(propose: Propose, store: RunStore, options: Options, display: Display, stop: _Stop) -> list[str]:
    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    stopping = context.Event()
    threads = max(1, num_cores() // options.num_workers())
    workers: dict[int, _Worker] = {}
    failed: dict[str, str] = {}
    fatal: str | None = None
    numbers = iter(range(10**9))

    def start() -> None:
        number, tasks = next(numbers), context.Queue()
        args = (number, threads, store.root, options, tasks, messages, stopping)
        process = context.Process(target=_work, args=args, daemon=True)
        process.start()
        workers[number] = _Worker(process, tasks)

    def hand_out() -> bool:
        """Give every idle worker a run, starting workers as needed; return whether anything is under way."""
        active = {w.spec.key for w in workers.values() if w.spec is not None}
        if not stop.requested and fatal is None:
            todo = [s for s in propose() if s.key not in failed and s.key not in active]
            todo = list({s.key: s for s in todo}.values())
            while len(workers) < min(options.num_workers(), len(active) + len(todo)):
                start()
            for worker in workers.values():
                if worker.spec is None and todo:
                    worker.spec = todo.pop(0)
                    worker.tasks.put(worker.spec)
                    display.started(worker.spec)
        return any(w.spec is not None for w in workers.values())

    try:
        while hand_out():
            if stop.requested or fatal is not None:
                stopping.set()
            message = _receive(messages)
            if message is None:
                for number, worker in list(workers.items()):
                    if not worker.process.is_alive() and messages.empty():
                        del workers[number]
                        if worker.spec is not None:
                            reason = f"its worker process died (exit code {worker.process.exitcode})"
                            failed[worker.spec.key] = f"{worker.spec.describe()}: {reason}"
                            display.finished(worker.spec, "failed")
                continue
            worker = workers[message.worker]
            spec = worker.spec
            assert spec is not None
            if message.kind == "progress":
                display.progressed(spec, message.step, message.loss)
                continue
            worker.spec = None
            if message.kind == "failed":
                failed[spec.key] = f"{spec.describe()}: {message.text}"
            elif message.kind == "fatal":
                fatal = fatal or message.text
            display.finished(spec, message.text if message.kind == "finished" else "failed")
    finally:
        stopping.set()
        for worker in workers.values():
            worker.tasks.put(None)
        for worker in workers.values():
            worker.process.join(timeout=10)
            worker.process.kill()
    if fatal is not None:
        raise HeavyTailError(fatal)
    return list(failed.values())


def _receive(messages: Any) -> _Message | None:
    """The next message; None after a while without one, to look after dead workers and Ctrl-C."""
    try:
        message: _Message = messages.get(timeout=0.5)
        return message
    except queue.Empty:
        return None


def _work(number: int, threads: int, root: Path, options: Options, tasks: Any, messages: Any, stopping: Any) -> None:
    """A worker's life: take a run, train it, say how it ended."""
    for signum in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C reaches the whole group: the parent decides
        signal.signal(signum, signal.SIG_IGN)
    parent = os.getppid()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)
    from heavytail.train.engine import Progress, train

    def report(progress: Progress) -> None:
        messages.put(_Message(number, "progress", step=progress.step, loss=progress.loss))

    def should_stop() -> bool:
        return stopping.is_set() or os.getppid() != parent  # the parent was killed: do not train for nobody

    store = RunStore(root)
    while (spec := _take(tasks, parent)) is not None:
        try:
            history = train(
                spec,
                store,
                data_dir=options.data_dir,
                device=options.device,
                report=report,
                should_stop=should_stop,
            )
            messages.put(_Message(number, "finished", history.status))
        except HeavyTailError as error:
            messages.put(_Message(number, "fatal", str(error)))
        except Exception as error:
            messages.put(_Message(number, "failed", f"{type(error).__name__}: {error}"))


def _take(tasks: Any, parent: int) -> RunSpec | None:
    """The next run; None when the parent says so or is gone."""
    while os.getppid() == parent:
        try:
            spec: RunSpec | None = tasks.get(timeout=1.0)
            return spec
        except queue.Empty:
            continue
    return None
