"""The runner: train all runs of a search on an executor; an interrupted search can be continued.

`propose` is called again after every finished run, so that the dense grid of one optimizer starts while the sparse grid
of another is still running. A run whose process died is started once more.
"""

from __future__ import annotations

import json
import logging
import signal
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from types import FrameType
from typing import Protocol

from heavytail.errors import HeavyTailError, UnreadableError
from heavytail.experiment.search import Lookup
from heavytail.experiment.spec import OBSERVATION, RunSpec
from heavytail.experiment.store import Outcome, RunStore
from heavytail.experiment.sweep import Sweep
from heavytail.train.executors import Event, Executor, executor
from heavytail.train.options import Options

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
        options: data folder, device, executor, shard.
        display: receives progress events.

    Raises:
        Interrupted: after Ctrl-C or SIGTERM, with everything committed.
        HeavyTailError: a setting is wrong, or the store cannot be written.
    """

    def mine() -> list[RunSpec]:
        return options.shard.of(propose())

    if not mine():
        return []
    ledger = _Ledger()
    with _Stop() as stop:
        with closing(executor(options.executor).connect(store, options, lambda: stop.requested)) as chosen:
            _Driver(mine, store, chosen, display, ledger).drive(stop)
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
    known: dict[tuple[object, ...], Outcome] = {}

    def lookup(spec: RunSpec) -> Outcome | None:
        name = (spec.key, spec.may_end, *(repr(getattr(spec, field)) for field in OBSERVATION))  # not in the key
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


class _Driver:
    """Starts the proposed runs and handles their events, until none is proposed and none is in progress."""

    def __init__(
        self, propose: Propose, store: RunStore, executor: Executor, display: Display, ledger: _Ledger
    ) -> None:
        self._propose, self._store, self._executor = propose, store, executor
        self._display, self._ledger = display, ledger
        self._active: dict[str, RunSpec] = {}
        self._ended = True  # whether a run has ended since the last proposal
        self._fatal: str | None = None

    def drive(self, stop: _Stop) -> None:
        """Train; after a request to stop or a fatal error, wait until the runs in progress have ended."""
        while True:
            if stop.requested or self._fatal is not None:
                self._executor.stop()
            elif self._ended:
                self._start()
            self._ended = False
            if not self._active:
                break
            self._executor.poll(self._handle, timeout=0.5)
        if self._fatal is not None:
            raise HeavyTailError(self._fatal)

    def _start(self) -> None:
        for spec in self._executor.start(self._ledger.open(self._propose(), set(self._active))):
            self._active[spec.key] = spec
            self._display.started(spec)

    def _handle(self, event: Event) -> None:
        spec = event.spec
        if event.kind == "progress":
            self._display.progressed(spec, event.step, event.loss)
            return
        del self._active[spec.key]
        self._ended = True
        status = "failed"
        if event.kind == "finished":
            status = event.text
        elif event.kind == "fatal":
            self._fatal = self._fatal or event.text
        elif event.kind == "returned":
            status = "interrupted"
        elif event.kind == "lost" and self._ledger.may_retry(spec):
            _LOG.warning("%s: %s; trying once more", spec.describe(), event.text)
            status = "interrupted"
        else:
            # A dead process cannot write the reason itself. If another command has taken the run over, it has none.
            if event.kind == "lost" and not self._store.locked(spec.key):
                with self._store.lock(spec):
                    self._store.mark_failed(spec, event.text)
            self._ledger.note(spec, event.text, data=event.kind == "no data", error=event.error)
        self._display.finished(spec, status)
