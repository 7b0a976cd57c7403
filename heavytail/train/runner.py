"""The runner: train all runs of a search, several at a time; an interrupted search can be continued.

`propose` is called again after every finished run, so that the dense grid of one optimizer starts while the sparse grid
of another is still running. With one worker, runs are trained in this process; with more, each worker is a spawned
process (which shares no torch state) with its share of the cores. On Ctrl-C every run commits its current step. If a
worker dies, only its current run is lost; another worker continues it, once.
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType
from typing import Literal, Protocol

from heavytail.errors import DataError, HeavyTailError, RefusedError, UnreadableError
from heavytail.experiment.search import Lookup
from heavytail.experiment.spec import RunSpec
from heavytail.experiment.store import Outcome, RunStore
from heavytail.experiment.sweep import Sweep
from heavytail.train.options import Options, num_cores

_LOG = logging.getLogger("heavytail")
Propose = Callable[[], list[RunSpec]]


class Interrupted(HeavyTailError):
    """The user stopped the work; everything trained so far is stored."""

    exit_code = 130


class Display(Protocol):
    """Receives progress events."""

    def started(self, spec: RunSpec) -> None: ...

    def progressed(self, spec: RunSpec, step: int, loss: float) -> None: ...

    def finished(self, spec: RunSpec, status: str) -> None: ...


@dataclass(frozen=True)
class Failure:
    """A run that could not be trained, and the reason: missing data, out of memory, a dead worker process.

    Attributes:
        spec: the run.
        reason: one line.
        no_data: whether its data could not be loaded.
        error: the exception, if it is no HeavyTailError and was raised in this process.
    """

    spec: RunSpec
    reason: str
    no_data: bool = False
    error: Exception | None = None


class _Ledger:
    """The failures so far. Data that could not be loaded fail all runs on them, which are not tried one by one."""

    def __init__(self) -> None:
        self._failed: dict[str, Failure] = {}
        self._no_data: dict[str, Failure] = {}
        self._retried: set[str] = set()

    def may_retry(self, spec: RunSpec) -> bool:
        """Whether to retry a run whose worker died: once, as the cause may be a temporary lack of memory."""
        first = spec.key not in self._retried
        self._retried.add(spec.key)
        return first

    def note(self, spec: RunSpec, reason: str, *, data: bool = False, error: Exception | None = None) -> None:
        if data:
            self._no_data[_data_of(spec)] = Failure(spec, reason, no_data=True)
        else:
            self._failed[spec.key] = Failure(spec, f"{spec.describe()}: {reason}", error=error)

    def open(self, specs: list[RunSpec], active: set[str] | None = None) -> list[RunSpec]:
        """The runs that have not failed and are not active, without duplicates."""
        skip = {*self._failed, *(active or ())}
        return list({s.key: s for s in specs if _data_of(s) not in self._no_data and s.key not in skip}.values())

    def failures(self) -> list[Failure]:
        return [*self._no_data.values(), *self._failed.values()]


def _data_of(spec: RunSpec) -> str:
    return json.dumps(spec.data.to_dict(), sort_keys=True)


def run_all(propose: Propose, store: RunStore, options: Options, display: Display) -> list[Failure]:
    """Train until `propose` returns no more runs; return the runs that could not be trained.

    Args:
        propose: returns the unfinished runs that are needed next, including those in progress.
        store: where runs are committed.
        options: device, data folder, number of workers.
        display: receives progress events.

    Raises:
        Interrupted: after Ctrl-C or SIGTERM, with everything committed.
        HeavyTailError: a setting is wrong, or the store cannot be written.
    """
    if not propose():
        return []
    ledger = _Ledger()
    with _Stop() as stop:
        work = _run_here if options.num_workers() == 1 else _run_in_workers
        work(propose, store, options, display, stop, ledger)
        if stop.requested:
            raise Interrupted("stopped; everything trained so far is stored, the same command continues")
    return ledger.failures()


def search(sweeps: Sequence[Sweep], store: RunStore, options: Options, display: Display) -> list[Failure]:
    """Train all runs of the step-size searches of these sweeps; return the runs that could not be trained."""
    lookup = remember(store)
    return run_all(lambda: [s for sweep in sweeps for s in sweep.propose(lookup)], store, options, display)


def remember(store: RunStore) -> Lookup:
    """Return a lookup of outcomes that reads and checks each finished run once.

    A run that cannot be read counts as not finished, so that the search proposes it and training reports the error.
    """
    known: dict[tuple[str, int, str], Outcome] = {}

    def lookup(spec: RunSpec) -> Outcome | None:
        name = (spec.key, spec.steps, repr(spec.probes))
        if name not in known:
            try:
                outcome = store.outcome(spec)
            except UnreadableError:
                return None
            if outcome is None:
                return None
            known[name] = outcome
        return known[name]

    return lookup


class _Stop:
    """Turns the first Ctrl-C or SIGTERM into a request to stop; a second one raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> _Stop:
        try:
            self._before = {s: signal.signal(s, self._request) for s in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread, where signal handlers cannot be set
            self._before = {}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _request(self, signum: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


def _run_here(
    propose: Propose, store: RunStore, options: Options, display: Display, stop: _Stop, ledger: _Ledger
) -> None:
    from heavytail.train.engine import train

    while todo := ledger.open(propose()):
        spec = todo[0]
        display.started(spec)
        try:
            history = train(
                spec,
                store,
                data_dir=options.data_dir,
                device=options.device,
                on_progress=lambda p: display.progressed(p.spec, p.step, p.loss),
                should_stop=lambda: stop.requested,
                compiled=options.compiled,
                **({} if options.group is None else {"group": options.group}),
            )
        except DataError as error:
            ledger.note(spec, str(error), data=True)
            display.finished(spec, "failed")
        except (RefusedError, UnreadableError) as error:  # errors of this run only
            ledger.note(spec, str(error))
            display.finished(spec, "failed")
        except HeavyTailError:
            raise
        except Exception as error:  # a run out of memory must not stop the others
            traceback.clear_frames(error.__traceback__)  # which hold the model and its data
            ledger.note(spec, f"{type(error).__name__}: {error}", error=error)
            display.finished(spec, "failed")
        else:
            display.finished(spec, history.status)
        if stop.requested:
            break


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

    def receive(self) -> _Message:
        try:
            message: _Message = self.pipe.recv()
            return message
        except (EOFError, OSError):
            self.process.join()  # for its exit code
            return _Message("died", f"its worker process died (exit code {self.process.exitcode})")

    def stop(self, *, patience: float = 0.0) -> None:
        """Wait up to `patience` seconds for the process to exit, then kill it."""
        self.pipe.close()
        self.process.join(patience)
        self.process.kill()
        self.process.join()


@dataclass(frozen=True)
class _Message:
    """A worker's message about its current run."""

    kind: Literal["progress", "finished", "no data", "failed", "fatal", "died"]
    text: str = ""
    step: int = 0
    loss: float = 0.0


def _run_in_workers(
    propose: Propose, store: RunStore, options: Options, display: Display, stop: _Stop, ledger: _Ledger
) -> None:
    pool = _Pool(propose, store, options, display, ledger)
    try:
        pool.hand_out()
        while pool.active():
            if stop.requested or pool.fatal is not None:
                pool.ask_to_stop()
            ended = pool.listen(timeout=0.5)
            if ended and not stop.requested and pool.fatal is None:
                pool.hand_out()
    finally:
        pool.stop()
    if pool.fatal is not None:
        raise HeavyTailError(pool.fatal)


class _Pool:
    """The worker processes: sends runs to idle ones, receives messages from busy ones.

    Attributes:
        fatal: the error that stops all work, such as an invalid setting; None if there was none.
    """

    def __init__(self, propose: Propose, store: RunStore, options: Options, display: Display, ledger: _Ledger) -> None:
        self.fatal: str | None = None
        self._propose, self._store, self._options = propose, store, options
        self._display, self._ledger = display, ledger
        self._workers: list[_Worker] = []
        self._asked = False
        self._context = multiprocessing.get_context("spawn")

    def active(self) -> set[str]:
        """Return the keys of the runs in progress."""
        return {worker.spec.key for worker in self._workers if worker.spec is not None}

    def hand_out(self) -> None:
        """Send a run to every idle worker, starting workers as needed."""
        active = self.active()
        todo = self._ledger.open(self._propose(), active)
        while len(self._workers) < min(self._options.num_workers(), len(active) + len(todo)):
            self._start()
        for worker in self._workers:
            if worker.spec is None and todo:
                self._display.started(todo[0])
                worker.send(todo.pop(0))

    def listen(self, *, timeout: float) -> bool:
        """Receive one message from every worker that has sent one; return whether a run has ended."""
        ready = wait([worker.pipe for worker in self._workers], timeout)
        ended = [self._receive(worker) for worker in list(self._workers) if worker.pipe in ready]
        return any(ended)

    def ask_to_stop(self) -> None:
        """Send SIGTERM to every worker, once: it commits its run and exits."""
        if not self._asked:
            self._asked = True
            for worker in self._workers:
                worker.process.terminate()

    def stop(self) -> None:
        """Stop every worker; a busy one has ten seconds to commit its run, an idle one has nothing to lose."""
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.stop(patience=10.0 if worker.spec else 0.0)

    def _start(self) -> None:
        ours, theirs = self._context.Pipe()
        threads = max(1, num_cores() // self._options.num_workers())
        arguments = (theirs, threads, self._store.root, self._options)
        process = self._context.Process(target=_work, args=arguments, daemon=True)
        process.start()
        theirs.close()  # then only the worker holds this end, and it closes when the worker dies
        self._workers.append(_Worker(process, ours))

    def _receive(self, worker: _Worker) -> bool:
        """Receive one message; return whether its run has ended."""
        message, spec = worker.receive(), worker.spec
        if message.kind == "progress":
            assert spec is not None
            self._display.progressed(spec, message.step, message.loss)
            return False
        worker.spec = None
        if message.kind == "died" or message.text == "interrupted":  # after SIGTERM it has committed and exits
            self._workers.remove(worker)
            worker.stop()
        if spec is None:
            return False
        status = "failed"
        if message.kind == "finished":
            status = message.text
        elif message.kind == "fatal":
            self.fatal = self.fatal or message.text
        elif message.kind == "died" and self._ledger.may_retry(spec):
            _LOG.warning("%s: %s; trying once more", spec.describe(), message.text)
            status = "interrupted"
        else:
            # A dead worker cannot write the reason itself. If another command has taken the run over, it has none.
            if message.kind == "died" and not self._store.locked(spec.key):
                with self._store.lock(spec):
                    self._store.mark_failed(spec, message.text)
            self._ledger.note(spec, message.text, data=message.kind == "no data")
        self._display.finished(spec, status)
        return True


def _work(pipe: Connection, threads: int, root: Path, options: Options) -> None:
    """Worker process: train the runs received over the pipe, and send the outcome of each."""
    stopped = []
    _LOG.setLevel(logging.ERROR)  # the parent reports damaged runs
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent handles it
    signal.signal(signal.SIGTERM, lambda signum, frame: stopped.append(signum))
    parent = os.getppid()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)
    from heavytail.train.engine import Progress, train

    def send(message: _Message) -> None:
        with contextlib.suppress(OSError):  # the parent died
            pipe.send(message)

    def on_progress(progress: Progress) -> None:
        send(_Message("progress", step=progress.step, loss=progress.loss))

    def should_stop() -> bool:
        return bool(stopped) or os.getppid() != parent  # stop if the parent died

    store = RunStore(root)
    while not stopped:
        try:
            spec: RunSpec = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            history = train(
                spec,
                store,
                data_dir=options.data_dir,
                device=options.device,
                on_progress=on_progress,
                should_stop=should_stop,
                compiled=options.compiled,
            )
            send(_Message("finished", history.status))
        except DataError as error:
            send(_Message("no data", str(error)))
        except (RefusedError, UnreadableError) as error:
            send(_Message("failed", str(error)))
        except HeavyTailError as error:
            send(_Message("fatal", str(error)))
        except Exception as error:
            send(_Message("failed", f"{type(error).__name__}: {error}"))
