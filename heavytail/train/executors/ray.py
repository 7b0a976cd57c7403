"""Runs as tasks of a Ray cluster: the one at RAY_ADDRESS, or one that is started on this machine.

Each run is one task that reserves cores and, on CUDA, a GPU. All nodes need heavytail and the folders of the store and
the data sets under the same paths. If a worker dies, the runner tries its run once more; if its node dies, the run
starts again on another one. Either way it resumes from its last commit.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heavytail.errors import HeavyTailError, install, reason
from heavytail.system import num_cores
from heavytail.train.executors import CPUS, Event, Executor, Handle, attempt

if TYPE_CHECKING:
    from heavytail.experiment.spec import RunSpec
    from heavytail.experiment.store import RunStore
    from heavytail.train.engine import Progress
    from heavytail.train.options import Options

SETTINGS = (CPUS,)
NODE_LOSSES = 3  # a run whose node dies more often than this may be the cause
VISIBLE_SECONDS = 90.0  # until a commit on another node must be visible here: NFS caches folders for up to a minute
REPORT_SECONDS = 0.5
ROOM_SECONDS = 300.0  # without a node, until the command gives up
_LOG = logging.getLogger("heavytail")


def connect(store: RunStore, options: Options, should_stop: Callable[[], bool]) -> Executor:
    """Connect to the cluster.

    Raises:
        HeavyTailError: Ray is not installed, the cluster cannot be reached, or no node has room for a run.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise HeavyTailError(f"--executor ray needs Ray; {install('ray')}") from error
    ours = not ray.is_initialized()
    address = os.environ.get("RAY_ADDRESS") or "local"
    if ours:
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address == "local":
            quiet |= {"include_dashboard": False, "num_cpus": max(num_cores(), options.settings.get("cpus", 1))}
        try:
            _check(address)
            with _own_sigterm():
                ray.init(address, **quiet)
        except Exception as error:
            raise HeavyTailError(f"RAY_ADDRESS: cannot connect to {address}: {reason(error)}") from error
    cluster = Cluster(store, options, ours)
    if cluster.room() == 0:
        cluster.close()
        raise HeavyTailError(f"--executor ray: no node has {cluster.needs}, which each run needs")
    return cluster


def _check(address: str) -> None:
    """Raise OSError if nothing listens at host:port, which Ray takes minutes to notice."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10.0).close()


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Restore the handler of SIGTERM, which Ray replaces by an immediate exit: ours stops the runs first."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    with suppress(ValueError):  # not the main thread, where neither can set it
        signal.signal(signal.SIGTERM, before)


class Cluster:
    """A connection to a Ray cluster, and the tasks in progress."""

    def __init__(self, store: RunStore, options: Options, ours: bool) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._ray, self._store, self._ours = ray, store, ours
        self._jobs = options.workers
        self._cpus = options.settings.get("cpus", 1)
        self._gpus = int(options.device.startswith("cuda"))
        self._root = Path(os.path.abspath(store.root))
        self._options = replace(options, data_dir=Path(os.path.abspath(options.data_dir)))
        self._tasks: dict[Any, RunSpec] = {}
        self._hidden: dict[str, tuple[Event, str, float]] = {}
        self._node_losses: Counter[str] = Counter()
        self._asked = False
        self._room_at = time.monotonic()
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        self._desk = ray.remote(Desk).options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote()
        # A task is not retried by Ray itself, which would hide what happened.
        self._reserved = {"num_cpus": self._cpus, "num_gpus": self._gpus, "max_retries": 0}
        self._train = ray.remote(_train)

    @property
    def needs(self) -> str:
        """The resources of one run, in words."""
        return f"{self._cpus} {'CPU' if self._cpus == 1 else 'CPUs'}" + " and a GPU" * self._gpus

    def room(self) -> int:
        """Return the number of runs that fit on the nodes at a time; --jobs, if given, for clusters that grow."""
        if self._jobs is not None:
            return self._jobs
        fit = 0
        for node in self._ray.nodes():
            has = node["Resources"] if node["Alive"] else {}
            fit += int(min(has.get("CPU", 0) // self._cpus, has.get("GPU", 0) if self._gpus else float("inf")))
        return fit

    def start(self, specs: Sequence[RunSpec]) -> Sequence[RunSpec]:
        """Submit as many runs as there is room for; one if all nodes have died, which waits for a new one."""
        active = len(self._tasks) + len(self._hidden)
        if not active:
            self._room_at = time.monotonic()
        started = specs[: max(0 if active else 1, self.room() - active)]
        for spec in started:
            train = self._train.options(name=spec.describe(), **self._reserved)
            self._tasks[train.remote(self._desk, spec, self._root, self._options, self._cpus)] = spec
        return started

    def poll(self, handle: Handle, timeout: float) -> None:
        """Collect the tasks that have ended, and the latest step of the others.

        Raises:
            HeavyTailError: no node has had room for a run for ROOM_SECONDS.
        """
        now = time.monotonic()
        self._room_at = now if self.room() else self._room_at
        if self._tasks and now - self._room_at > ROOM_SECONDS:
            minutes = f"{ROOM_SECONDS / 60:.0f} minutes"
            raise HeavyTailError(f"no node has had {self.needs} for {minutes}; the same command continues")
        if self._tasks:
            ended, _ = self._ray.wait([*self._tasks], num_returns=len(self._tasks), timeout=timeout)
        else:
            time.sleep(timeout)  # for the commits of other nodes to become visible
            ended = []
        for task in ended:
            event, host = self._result(task, self._tasks.pop(task))
            self._hidden[event.spec.key] = event, host, time.monotonic() + VISIBLE_SECONDS
        for key, (event, host, deadline) in list(self._hidden.items()):
            if not event.visible(self._store):
                if time.monotonic() < deadline:
                    continue
                missing = f"{host} has stored a run under {self._root}, but it is not in that folder here"
                event = Event(event.spec, "fatal", f"{missing}; give a --root that all nodes share")
            del self._hidden[key]
            handle(event)
        running = {spec.key: spec for spec in self._tasks.values()}
        for key, (step, loss) in self._ask("latest", {}).items():
            if key in running:
                handle(Event(running[key], "progress", step=step, loss=loss))

    def stop(self) -> None:
        """Ask the running tasks to commit and end, and cancel those that no node has begun."""
        if self._asked:
            return
        self._asked = True
        begun = self._ask("stop", {spec.key for spec in self._tasks.values()})
        for task, spec in self._tasks.items():
            if spec.key not in begun:
                self._ray.cancel(task)

    def close(self) -> None:
        """End the tasks in progress and disconnect; a cluster that was started here ends, too."""
        if self._tasks:
            self.stop()
            self._ray.wait([*self._tasks], num_returns=len(self._tasks), timeout=10.0)
        for task in self._tasks:
            with suppress(Exception):
                self._ray.cancel(task, force=True)
        with suppress(Exception):
            self._ray.kill(self._desk)
        if self._ours:
            self._ray.shutdown()

    def _result(self, task: Any, spec: RunSpec) -> tuple[Event, str]:
        """How a task ended, and on which host."""
        errors = self._ray.exceptions
        try:
            event, host = self._ray.get(task)
            return event, host
        except errors.TaskCancelledError:
            return Event(spec, "returned"), ""
        except (errors.NodeDiedError, errors.ObjectLostError):
            self._node_losses[spec.key] += 1
            if self._node_losses[spec.key] > NODE_LOSSES:
                return Event(spec, "lost", f"{NODE_LOSSES + 1} nodes died while they trained it"), ""
            _LOG.warning("%s: its node died; starting it again on another one", spec.describe())
            return Event(spec, "returned"), ""
        except errors.RayTaskError as error:  # `_train` itself raises nothing: the task could not be unpacked there
            why = reason(error.cause or error, -1)
            return Event(spec, "fatal", f"a Ray worker cannot start the run: {why}; install heavytail there"), ""
        except errors.RayError as error:  # a dead worker process, one killed for its memory
            return Event(spec, "lost", reason(error)), ""

    def _ask(self, method: str, default: Any) -> Any:
        """Call a method of the desk; the default if it does not answer in time."""
        try:
            return self._ray.get(getattr(self._desk, method).remote(), timeout=5.0)
        except self._ray.exceptions.RayError:
            return default


class Desk:
    """An actor beside the driver: collects the steps of the running tasks, and passes on the request to stop."""

    def __init__(self) -> None:
        self._latest: dict[str, tuple[int, float]] = {}
        self._begun: set[str] = set()
        self._stopped = False

    def report(self, key: str, step: int, loss: float) -> bool:
        """Record the step and loss of a run; return whether it shall stop."""
        self._begun.add(key)
        if step > 0:
            self._latest[key] = step, loss
        return self._stopped

    def latest(self) -> dict[str, tuple[int, float]]:
        """Return the steps and losses reported since the last call."""
        latest, self._latest = self._latest, {}
        return latest

    def stop(self) -> set[str]:
        """Request all tasks to stop; return the keys of the runs that have begun."""
        self._stopped = True
        return self._begun


def _train(desk: Any, spec: RunSpec, root: Path, options: Options, cpus: int) -> tuple[Event, str]:
    """Train a run in a worker of the cluster; return how it ended, and the host."""
    import torch

    from heavytail.experiment.store import RunStore

    _LOG.setLevel(logging.ERROR)  # the driver reports damaged runs
    torch.set_num_threads(cpus)
    host = socket.gethostname()
    step, loss, stopped = 0, 0.0, False

    def report() -> Future[bool]:
        answer: Future[bool] = desk.report.remote(spec.key, step, loss).future()
        return answer

    # As futures: a task that waits in ray.get or ray.wait lends its core to another task meanwhile.
    asked = report()
    reported = time.monotonic()

    def on_progress(progress: Progress) -> None:
        nonlocal step, loss
        step, loss = progress.step, progress.loss

    def should_stop() -> bool:
        nonlocal asked, reported, stopped
        now = time.monotonic()
        if now - reported > REPORT_SECONDS and asked.done():
            stopped = stopped or _answer(asked)
            asked, reported = report(), now
        return stopped

    if _answer(asked):
        return Event(spec, "returned"), host
    asked = report()
    try:
        event = attempt(spec, RunStore(root), options, on_progress, should_stop)
        return replace(event, error=None), host  # exceptions need not be picklable
    except HeavyTailError as error:
        return Event(spec, "fatal", f"{host}: {error}"), host


def _answer(asked: Future[bool]) -> bool:
    """The answer of the desk; False if it has died, in which case Ray starts it again."""
    return asked.exception() is None and asked.result()
