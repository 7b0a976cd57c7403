"""Executors: where the runs of a search are trained - in processes of this machine, on Ray, by Slurm.

A file in this folder without a leading underscore is an executor of the same name (`--executor NAME`). Its function
`connect` returns an `Executor`; a `HeavyTailError` there is the user's: a package that is not installed, no cluster.
`SETTINGS` lists the executor's own options of the command line. If its runs outlive the command that started them, it
also has `cancel(root, keys)`, which ends those of a store and returns their number (see `slurm`).
Results travel through the run store alone. An executor starts runs and reports how each of them ended.
"""

from __future__ import annotations

import pkgutil
import traceback
from argparse import ArgumentTypeError
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from heavytail.errors import DataError, HeavyTailError, RefusedError, TakenOverError, UnreadableError, unknown

if TYPE_CHECKING:  # `--help` names the executors, and numpy takes longer to import than it may take
    from pathlib import Path

    from heavytail.experiment.spec import RunSpec
    from heavytail.experiment.store import RunStore
    from heavytail.train.engine import Progress
    from heavytail.train.options import Options


@dataclass(frozen=True)
class Event:
    """An event of a run that was started.

    Attributes:
        spec: the run.
        kind: "progress"; or how the run ended: "finished" (its status is `text`), "no data" (its data cannot be
            loaded), "failed", "lost" (its process died), "returned" (not begun, or on a machine that failed; it may be
            started again), "fatal" (a setting is wrong: no run can be trained).
        text: the status of a finished run, "ended" if it was ended early; or the reason.
        step, loss: of a run in progress.
        error: the exception, if it is no HeavyTailError and was raised in this process.
    """

    spec: RunSpec
    kind: Literal["progress", "finished", "no data", "failed", "lost", "returned", "fatal"]
    text: str = ""
    step: int = 0
    loss: float = 0.0
    error: Exception | None = None

    def visible(self, store: RunStore) -> bool:
        """Whether the commit of a finished run can be read here, for which a network file system may take a while."""
        from heavytail.experiment.attempt import FINISHED

        if self.kind != "finished" or self.text not in (*FINISHED, "ended"):
            return True
        return store.status(self.spec) in (FINISHED if self.text in FINISHED else (*FINISHED, "interrupted"))


Handle = Callable[[Event], None]


@dataclass(frozen=True)
class Setting:
    """An option of an executor on the command line: `--name METAVAR`, read by `parse`; without `parse`, a switch."""

    name: str
    parse: Callable[[str], Any] | None
    metavar: str
    help: str


class Executor(Protocol):
    """Trains runs. The caller starts runs, polls for events, and closes the executor at the end, also after errors."""

    def start(self, specs: Sequence[RunSpec]) -> Sequence[RunSpec]:
        """Start the first of these runs, as many as there is room for; return those that were started."""

    def poll(self, handle: Handle, timeout: float) -> None:
        """Pass events to `handle`; wait up to `timeout` seconds for the first one."""

    def stop(self) -> None:
        """Ask all runs to commit their current step and end, or leave them if they outlive this process."""

    def close(self) -> None:
        """Release processes and connections. No run that was started here goes on unless it outlives this process."""


class Module(Protocol):
    """Interface of an executor's module.

    One whose runs wait in a queue that outlives the command has `queued` and `cancel`, too, as below.
    """

    SETTINGS: Sequence[Setting]
    """The executor's own options; their values, if given, are in `Options.settings`."""

    def connect(self, store: RunStore, options: Options, should_stop: Callable[[], bool]) -> Executor:
        """Return the executor.

        Args:
            store: where runs are committed.
            options: how to train.
            should_stop: whether the user has asked to stop.
        """


def names() -> list[str]:
    """Return the names of all executors: the modules of this folder without a leading underscore."""
    return sorted(info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_"))


def executor(name: str) -> Module:
    """Return the module of an executor.

    Raises:
        SpecError: there is no executor of this name.
    """
    if name not in names():
        raise unknown("--executor", name, names())
    return cast("Module", import_module(f"{__name__}.{name}"))


def queued(root: Path) -> set[str]:
    """Return the keys of the runs of the store under `root` that are in a queue, or are taken from it just now."""
    return {key for module in _queues() for key in module.queued(root)}


def cancel(root: Path, keys: Collection[str] | None = None) -> int:
    """Cancel the jobs of the store under `root`, or those of the runs with these keys; return their number.

    Raises:
        HeavyTailError: the queue does not answer.
    """
    return sum(module.cancel(root, keys) for module in _queues())


def _queues() -> Iterator[Any]:
    for module in map(executor, names()):
        if hasattr(module, "queued"):
            yield module


def count(text: str) -> int:
    """Read an option that is a number of things."""
    if not (text.isdecimal() and text.isascii() and 1 <= int(text) < 10**6):
        raise ArgumentTypeError(f"expected an integer >= 1, got '{text}'")
    return int(text)


CPUS = Setting("cpus", count, "N", "cores of each run (default: 1)")


def settings() -> dict[str, tuple[Setting, list[str]]]:
    """Return the options of all executors by name, each with the executors that have it."""
    found: dict[str, tuple[Setting, list[str]]] = {}
    for name in names():
        for setting in executor(name).SETTINGS:
            found.setdefault(setting.name, (setting, []))[1].append(name)
    return found


def attempt(
    spec: RunSpec,
    store: RunStore,
    options: Options,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Event:
    """Train a run, and return how it ended; a wrong setting or a store that cannot be written is raised.

    Raises:
        HeavyTailError: no run can be trained.
        Exception: a run failed in one of several processes that train it together, once they had begun it.
    """
    from heavytail.train.engine import train

    alone = options.group is None or options.group.size == 1

    try:
        history = train(
            spec,
            store,
            data_dir=options.data_dir,
            device=options.device,
            on_progress=on_progress,
            should_stop=should_stop,
            compiled=options.compiled,
            **({} if options.group is None else {"group": options.group}),
        )
    except DataError as error:
        return Event(spec, "no data", str(error))
    except RefusedError as error:
        return Event(spec, "failed", str(error))
    except HeavyTailError as error:
        if alone and isinstance(error, TakenOverError | UnreadableError):  # of this run only
            return Event(spec, "failed", str(error))
        raise
    except Exception as error:  # a run out of memory must not stop the others
        if not alone:
            raise
        traceback.clear_frames(error.__traceback__)  # which hold the model and its data
        return Event(spec, "failed", f"{type(error).__name__}: {error}", error=error)
    return Event(spec, "finished", "ended" if history.ended else history.status)
