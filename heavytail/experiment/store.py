"""RunStore and History: one folder per trajectory, written so that a crash at any moment loses nothing committed.

    runs/<key>/history-<sum>.safetensors    the measurements
    runs/<key>/checkpoint-<sum>.safetensors the state to resume from
    runs/<key>/status.json                  the record: status, spec, environment, the two files with their checksums,
                                            and its own checksum; replacing it is the one commit point
    runs/<key>/spec.json, env.json          human-readable copies of the record's spec and environment

A commit writes the array files under names made of their own checksums, renames a new status.json over the old one,
and then deletes the files that no record names. Every file read is checked: its checksum, then its shape. A
damaged run is reported and counts as not trained; training it again replaces it. This module does not import torch.

Shapes: E recorded steps, C classes, G groups, T steps.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from heavytail.errors import DamagedError, StoreError, TakenOverError, UnreadableError
from heavytail.experiment.attempt import FINISHED, Commit, merged, per_run
from heavytail.experiment.spec import RunSpec
from heavytail.files import checksum, expanded, read_json, strict_json, sweep_temporaries, write_atomic
from heavytail.locks import Held, is_locked, locked

UNSTABLE = 1.05  # a step size is unstable if a recorded loss exceeds the initial one by this factor (the paper's rule)
LEASES = ".leases"  # file in the root of a store whose file system has no locks (see `locks`)
ATTEMPT = "attempt"  # subfolder of a finished run for the commits of a new attempt, until that is finished too

Array = NDArray[Any]
Status = Literal["done", "diverged", "interrupted", "failed", "running", "missing", "damaged"]

_ARRAY_FILE = {"file": str, "sha256": str}
_RECORD = {
    "status": str,
    "step": int,
    "error": (str, None),
    "observed": {"train_steps": [int], "test_steps": [int], "probes": [{"name": str}], "probe_next?": {}},
    "history": (_ARRAY_FILE, None),
    "checkpoint": (_ARRAY_FILE, None),
    "spec?": {},
    "environment?": {},
    "resumed?": [{"step": int, "at": str}],
    "timing?": {"seconds": float, "steps_per_second": float},
    "host?": str,
    "ended?": str,
    "sha256?": str,
}
_HOLDER = {"host": str, "pid": int, "run": str, "steps": int}
_LOG = logging.getLogger("heavytail")


@dataclass
class History:
    """The measurements of one run.

    `arrays` holds, for each split ("train", "test"):
        <split>/step [E]            recorded steps
        <split>/loss [E]            mean loss (nats), not weighted
        <split>/class_loss [E, C]   mean loss per class, NaN where the class has no sample
        <split>/correct [E, C]      correctly classified samples
        <split>/p_correct [E, C]    mean probability of the correct class
        <split>/count [C] or [E, C] samples; per row where the row sums mini-batches
    and `group` [C] (frequency group of each class), `objective` [T] (the value minimised at each step), and the
    arrays of probes under probe/<name>/, with a leading axis of probe/<name>/step. `resumed` lists the step and
    the time (UTC) of every resumption. `ended` is why an interrupted run was ended early (see `RunSpec.may_end`).
    `timing` holds the wall `seconds` of the training, resumed parts added up, and
    its `steps_per_second` since it was last resumed; empty for runs stored before November 2026.
    """

    spec: RunSpec
    status: Status
    arrays: dict[str, Array]
    environment: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    resumed: list[dict[str, Any]] = field(default_factory=list)
    timing: dict[str, float] = field(default_factory=dict)
    ended: str | None = None

    @property
    def step(self) -> Array:
        """Recorded steps, [E]."""
        return self.arrays["train/step"]

    @property
    def loss(self) -> Array:
        """Mean training loss at the recorded steps, [E]."""
        return self.arrays["train/loss"]

    @property
    def final_loss(self) -> float:
        """Training loss at the last step; infinite if the run diverged."""
        return float(self.loss[-1]) if self.status == "done" else float("inf")

    @property
    def peak_ratio(self) -> float:
        """Largest recorded training loss relative to the initial one; infinite if the run diverged."""
        return float(self.loss.max() / self.loss[0]) if self.status == "done" else float("inf")

    def group_loss(self, split: str = "train", groups: Array | None = None) -> Array:
        """Return the sample-weighted mean loss of each frequency group, [E, G].

        NaN where a group has no samples, and where a loss of one of its samples is NaN.

        Args:
            split: "train" or "test".
            groups: [C] group of each class; by default the groups of the run's training targets.
        """
        total, count = self.sums(split, "class_loss", self.arrays["group"] if groups is None else groups)
        mean: Array = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
        return mean

    def sums(self, split: str, name: str, index: Array, *, weighted: bool = True) -> tuple[Array, Array]:
        """Return sums over the classes of each group, and the sample counts, both [E, G].

        A class without samples adds 0 to its group, even if its value is NaN; NaN with samples makes the sum NaN.

        Args:
            split: "train" or "test".
            name: "class_loss", "p_correct" (means, to be weighted by the counts) or "correct" (counts themselves).
            index: [C] group of each class.
            weighted: whether to multiply by the counts.
        """
        from heavytail.metrics import sum_by_group

        value = self.arrays[f"{split}/{name}"].astype(np.float64)
        count = np.broadcast_to(self.arrays[f"{split}/count"], value.shape).astype(np.float64)
        value = np.where(count > 0, value, 0.0) * (count if weighted else 1.0)
        num_groups = int(index.max()) + 1
        return sum_by_group(value, index, num_groups), sum_by_group(count, index, num_groups)


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run, as the step-size search uses it.

    Attributes:
        status: of the run; "interrupted" for one that was ended early.
        final_loss: infinite if it diverged, NaN if it was ended early.
        peak_ratio: largest recorded loss relative to the initial one; infinite if it diverged.
        last_step: last recorded step; the step of divergence.
        unstable: step and ratio of the first recorded loss that makes the step size unstable; None without one.
    """

    status: Status
    final_loss: float
    peak_ratio: float
    last_step: int
    unstable: tuple[int, float] | None = None

    @property
    def ended(self) -> bool:
        """Whether the run was ended early, so that its final loss is not known."""
        return self.status == "interrupted"

    @property
    def early(self) -> Outcome:
        """What is known of the run at the step at which it may end."""
        if self.unstable is None:
            return self
        return Outcome.ended_at(self.unstable)

    @classmethod
    def ended_at(cls, unstable: tuple[int, float]) -> Outcome:
        """Return the outcome of a run that was ended at the step and ratio of its first unstable loss."""
        step, ratio = unstable
        return cls("interrupted", float("nan"), ratio, step, unstable)


class RunStore:
    """All runs under one root folder.

    Args:
        root: the folder; it is created by the first write.
    """

    def __init__(self, root: Path) -> None:
        self.root = expanded(root)
        self._reported: set[str] = set()
        self._held: dict[str, Held] = {}  # the locks that this object holds, by key

    def folder(self, spec: RunSpec) -> Path:
        """Return the folder of a run, whether or not it exists."""
        return self.root / "runs" / spec.key

    # -- reading -------------------------------------------------------------------------------------------------

    def status(self, spec: RunSpec) -> Status:
        """Return the status of a run: done or diverged only if every step that `spec` records is stored."""
        folder = self.folder(spec)
        try:
            record = _record(folder)
            if record is not None and not missing_steps(record, spec):
                return "diverged" if _diverged(record, spec) else "done"
            record = _record(folder / ATTEMPT) or record
        except DamagedError:
            return "damaged"
        if record is None or record["status"] in FINISHED:
            return "missing"
        return self.current(spec.key, record)

    def current(self, key: str, record: Mapping[str, Any]) -> Status:
        """Return the status in a record, but "interrupted" for a running one whose process has died."""
        status: Status = record["status"]
        return "interrupted" if status == "running" and not self.locked(key) else status

    def outcome(self, spec: RunSpec) -> Outcome | None:
        """Return the final loss and stability of a finished run; None if it is unfinished or damaged.

        An unfinished run that `spec` allows to end early has an outcome, too, if it has reached the step for that.
        """
        history = self.finished(spec)
        if history is None:
            return self._ended(spec) if spec.may_end else None
        unstable = _first_unstable(history)
        if history.status == "diverged":
            record = self._intact(self.folder(spec))
            last = record["step"] if record else spec.steps
            return Outcome("diverged", float("inf"), float("inf"), last, unstable)
        return Outcome(history.status, history.final_loss, history.peak_ratio, int(history.step[-1]), unstable)

    def _ended(self, spec: RunSpec) -> Outcome | None:
        """The outcome of a run that was ended early; None if none of the steps that `spec` records allows it."""
        folder = self.folder(spec)
        record = self._intact(folder)
        if record is None or record["history"] is None:
            return None
        try:
            history = History(spec, "interrupted", _cut(_read_history(folder, record), spec))
        except UnreadableError:  # replaced meanwhile, or damaged, which training it reports
            return None
        unstable = _first_unstable(history)
        return None if unstable is None else Outcome.ended_at(unstable)

    def finished(self, spec: RunSpec) -> History | None:
        """Return the history of a finished run; None if it is unfinished, or damaged (which is reported).

        Raises:
            UnreadableError: a file cannot be read now, but may be intact.
        """
        try:
            return self.load(spec)
        except DamagedError as error:
            self._report(error)
            return None

    def load(self, spec: RunSpec) -> History | None:
        """Return the history of a finished run, cut to the steps that `spec` records; None if any is missing.

        Raises:
            DamagedError: a file has another checksum or shape than was written.
            UnreadableError: a file cannot be read now.
        """
        folder = self.folder(spec)
        record = _record(folder)
        if record is None or missing_steps(record, spec):
            return None
        try:
            arrays = _read_history(folder, record)
        except UnreadableError:
            if _record(folder) == record:
                raise
            return self.load(spec)  # another process replaced the run while it was read
        status: Status = "diverged" if _diverged(record, spec) else "done"
        resumed, timing = list(record.get("resumed", ())), dict(record.get("timing", {}))
        environment = _environment(folder, record)
        return History(spec, status, _cut(arrays, spec), environment, resumed=resumed, timing=timing)

    def load_partial(self, spec: RunSpec) -> tuple[History, int, dict[str, Array]] | None:
        """Return a history, its number of updates and the checkpoint to continue from; None if there is none.

        A run can be continued if every missing step lies at or after its checkpoint. Damaged commits are reported and
        skipped.
        """
        for folder in (self.folder(spec) / ATTEMPT, self.folder(spec)):
            try:
                record = _record(folder)
                if record is None or record["history"] is None or record["checkpoint"] is None:
                    continue
                if all(step >= record["step"] for step in missing_steps(record, spec)):
                    history = History(spec, record["status"], _read_history(folder, record))
                    history.resumed = list(record.get("resumed", ()))
                    history.timing = dict(record.get("timing", {}))
                    return history, record["step"], _read_arrays(folder, record["checkpoint"])
            except DamagedError as error:
                self._report(error)
        return None

    def keys(self) -> list[str]:
        """Return the keys of all stored runs, oldest commit first.

        Raises:
            UnreadableError: the folder of runs cannot be read.
        """
        found = []
        try:
            for entry in os.scandir(self.root / "runs"):
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    found.append((_modified(Path(entry.path) / "status.json"), entry.name))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UnreadableError(f"cannot read {self.root / 'runs'}: {error.strerror or error}") from error
        return [key for _, key in sorted(found)]

    def read(self, key: str, *, attempt: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the spec table and the status record of a stored run, or of the new attempt at it.

        Raises:
            DamagedError: a file has another checksum or shape than was written.
            UnreadableError: a file cannot be read now.
        """
        folder = self._place(key, attempt)
        record = _record(folder)
        if record is None:
            raise UnreadableError(f"cannot read {folder / 'status.json'}: no such file")
        return _spec_table(folder, record), record

    def records(self, keys: Iterable[str] | None = None) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
        """Yield (key, spec table, status record) of the runs that can be read, by default all, oldest commit first.

        Others are reported.
        """
        for key in self.keys() if keys is None else keys:
            try:
                yield key, *self.read(key)
            except UnreadableError as error:
                self._report(error)

    def committed(self, key: str, *, attempt: bool = False) -> Commit | None:
        """Return the commit of a run, or of the new attempt at it, with all its arrays checked; None without one.

        Raises:
            DamagedError: a file has another checksum or shape than was written.
            UnreadableError: a file cannot be read now.
        """
        folder = self._place(key, attempt)
        record = _record(folder)
        if record is None:
            return None
        try:
            whole = {**record, "spec": _spec_table(folder, record), "environment": _environment(folder, record)}
            arrays = {} if record["history"] is None else _read_history(folder, record)
            state = None if record["checkpoint"] is None else _read_arrays(folder, record["checkpoint"])
        except UnreadableError:
            if _record(folder) == record:
                raise
            return self.committed(key, attempt=attempt)  # another process replaced the run while it was read
        return Commit(whole, arrays, state)

    def _place(self, key: str, attempt: bool) -> Path:
        """The folder of a run, or of the new attempt at it."""
        return self.root / "runs" / key / (ATTEMPT if attempt else "")

    def signature(self, key: str) -> str:
        """Return a checksum of a run's record, which changes with every commit; "" if the record cannot be read."""
        return checksum(self.root / "runs" / key / "status.json")

    def _intact(self, folder: Path) -> dict[str, Any] | None:
        """The record of a folder, None if there is none or it is damaged."""
        try:
            return _record(folder)
        except DamagedError as error:
            self._report(error)
            return None

    def _report(self, error: StoreError) -> None:
        """Warn about a damaged file, once."""
        if str(error) not in self._reported:
            self._reported.add(str(error))
            _LOG.warning("%s; the run counts as not trained", error)

    # -- writing -------------------------------------------------------------------------------------------------

    def save(
        self,
        history: History,
        *,
        step: int,
        checkpoint: Mapping[str, Array] | None = None,
    ) -> None:
        """Commit a history, and the checkpoint to resume from after `step` updates, atomically.

        A finished run stays unchanged during a new attempt at it (for a new probe, say). The finished attempt is then
        merged into it: the longer of the two is kept, with the rows and probes that only the other one has.

        Raises:
            StoreError: the folder cannot be written; the previous commit stays.
            TakenOverError: another process holds the run now; its commit stays.
        """
        spec, folder = history.spec, self.folder(history.spec)
        stored = self._intact(folder)
        new = Commit(
            {
                "status": history.status,
                "step": step,
                "error": history.error,
                "spec": spec.resolved.to_dict(),
                "environment": history.environment,
                "host": socket.gethostname(),
                **({"resumed": history.resumed} if history.resumed else {}),
                **({"timing": history.timing} if history.timing else {}),
                **({"ended": history.ended} if history.ended else {}),
                "observed": {
                    "probes": spec.measured,
                    "probe_next": {probe.name: _next_step(history.status, step) for probe in spec.probes},
                },
                "checkpoint": None,
            },
            history.arrays,
            checkpoint,
        )
        if stored is not None and stored["status"] in FINISHED:
            if history.status not in FINISHED:
                folder = folder / ATTEMPT
            else:
                with contextlib.suppress(UnreadableError):  # a damaged one is replaced
                    new = merged(Commit(stored, _read_history(folder, stored)), new)
        self._commit(folder, new)
        if history.status in FINISHED:
            self.drop_attempt(history.spec.key)

    def adopt(self, key: str, commit: Commit, *, attempt: bool = False) -> None:
        """Write the commit of another store, atomically, in place of the one stored here; the caller holds the lock.

        Raises:
            StoreError: the folder cannot be written; the previous commit stays.
        """
        self._commit(self._place(key, attempt), commit)

    def drop_attempt(self, key: str) -> None:
        """Delete the new attempt at a finished run, if there is one; the caller holds the lock."""
        shutil.rmtree(self._place(key, attempt=True), ignore_errors=True)

    def mark_failed(self, spec: RunSpec, error: str) -> None:
        """Record why a run failed, and keep its last commit; do nothing if the store cannot be written."""
        folder = self.folder(spec)
        stored = self._intact(folder)
        if stored is not None and stored["status"] in FINISHED:
            folder = folder / ATTEMPT
            stored = self._intact(folder)
        if stored is None:
            observed: dict[str, Any] = {"train_steps": [], "test_steps": [], "probes": []}
            stored = {"step": 0, "spec": spec.resolved.to_dict(), "environment": {}, "observed": observed}
            stored |= {"history": None, "checkpoint": None}
        # A full disk, say, which also made the run fail: the first error matters.
        with contextlib.suppress(OSError, TakenOverError):
            self._check(folder)
            folder.mkdir(parents=True, exist_ok=True)
            stored = {name: value for name, value in stored.items() if name != "ended"}
            _write_record(folder, {**stored, "status": "failed", "error": error, "host": socket.gethostname()})

    def _commit(self, folder: Path, commit: Commit) -> None:
        record, arrays = commit.record, commit.arrays
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write_json(folder / "spec.json", record["spec"])
            _write_json(folder / "env.json", record["environment"])
            steps = {f"{split}_steps": arrays.get(f"{split}/step", _NONE).tolist() for split in ("train", "test")}
            record = {
                **record,
                "observed": {**record["observed"], **steps},
                "history": _write_arrays(folder, "history", arrays) if arrays else None,
            }
            if commit.checkpoint is not None:
                record["checkpoint"] = _write_arrays(folder, "checkpoint", commit.checkpoint)
            self._check(folder)
            _write_record(folder, record)
        except OSError as error:
            raise StoreError(f"cannot write {folder}: {error.strerror or error}") from error
        named = {entry["file"] for entry in (record["history"], record["checkpoint"]) if entry is not None}
        with contextlib.suppress(OSError):  # already committed; the next commit deletes leftovers
            for old in folder.iterdir():
                if _ARRAYS_NAME.fullmatch(old.name) and old.name not in named:
                    old.unlink()
                elif match := _TEMPORARY.fullmatch(old.name):
                    sweep_temporaries(folder, match[1])

    # -- locks ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def lock(self, spec: RunSpec) -> Iterator[None]:
        """Hold the lock of a run's folder; wait while another process holds it.

        Raises:
            StoreError: the folder cannot be written, or its file system has no locks.
        """
        with self._hold(spec.key, spec.describe(), spec.steps, wait=True):
            yield

    @contextlib.contextmanager
    def try_lock(self, key: str, label: str, steps: int) -> Iterator[bool]:
        """Hold the lock of a run's folder if no other process does; yield whether it is held here.

        Raises:
            StoreError: the folder cannot be written, or its file system has no locks.
        """
        with self._hold(key, label, steps, wait=False) as held:
            yield held

    @contextlib.contextmanager
    def _hold(self, key: str, label: str, steps: int, *, wait: bool) -> Iterator[bool]:
        note = strict_json({"host": socket.gethostname(), "pid": os.getpid(), "run": label, "steps": steps})
        with locked(self.root / "runs" / key / "lock", note, wait=wait, marker=self.root / LEASES) as held:
            if held is None:
                yield False
                return
            self._held[key] = held
            try:
                yield True
            finally:
                del self._held[key]

    def _check(self, folder: Path) -> None:
        """Raise TakenOverError if the lock on a run's folder was lost to another process."""
        key = folder.parent.name if folder.name == ATTEMPT else folder.name
        if key in self._held:
            self._held[key].check()

    def holder(self, key: str) -> dict[str, Any]:
        """Return `host`, `pid`, `run` and `steps` of the process that locked a run last; empty if it is not known."""
        try:
            holder: dict[str, Any] = read_json(self.root / "runs" / key / "lock", {}, _HOLDER)
        except UnreadableError:  # empty, or being written, or locked against readers (Windows)
            return {}
        return holder

    def locked(self, key: str) -> bool:
        """Return whether a process holds the lock of the run with this key."""
        return is_locked(self.root / "runs" / key / "lock")


# -- records -----------------------------------------------------------------------------------------------------------


def _record(folder: Path) -> dict[str, Any] | None:
    """The record of a folder, None if there is none."""
    file = folder / "status.json"
    record: dict[str, Any] | None = read_json(file, None, _RECORD)
    if record is None:
        return None
    # Records written before they had a checksum hold no spec either.
    if ("sha256" in record or "spec" in record) and record.get("sha256") != _digest(record):
        raise DamagedError(f"{file} is damaged: its checksum differs")
    if record["status"] not in (*FINISHED, "interrupted", "failed", "running"):
        raise DamagedError(f"{file} is damaged: unknown status {record['status']!r}")
    for entry in (record["history"], record["checkpoint"]):
        if entry is not None and not _ARRAYS_NAME.fullmatch(entry["file"]):
            raise DamagedError(f"{file} is damaged: {entry['file']!r} is not the name of an array file")
    if record["status"] in FINISHED and record["history"] is None:
        raise DamagedError(f"{file} is damaged: a finished run without a history")
    return record


def _write_record(folder: Path, record: Mapping[str, Any]) -> None:
    plain = json.loads(json.dumps(record))  # tuples become lists, as when read back
    _write_json(folder / "status.json", {**plain, "sha256": _digest(plain)})


def _digest(record: Mapping[str, Any]) -> str:
    content = {key: value for key, value in record.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _spec_table(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """The spec of a record; of an old one, from its own file."""
    table: dict[str, Any] = record.get("spec") or read_json(folder / "spec.json", {}, {})
    return table


def _environment(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    environment: dict[str, Any] = record["environment"] if "spec" in record else read_json(folder / "env.json", {}, {})
    return environment


def missing_steps(record: Mapping[str, Any] | None, spec: RunSpec) -> list[int]:
    """Return the steps that `spec` records and a run's status record does not have; all of them for a new probe."""
    wanted = spec.recorded_steps()
    if record is None or record["history"] is None:
        return wanted
    have = record["observed"]
    if any(probe not in have["probes"] for probe in spec.measured):
        return wanted
    end = record["step"] if record["status"] == "diverged" else spec.steps + 1
    missing = {s for s in wanted if s < end} - set(have["train_steps"])
    missing |= {s for s in spec.recorded_steps(spec.test_every) if s < end} - set(have["test_steps"])
    for probe in spec.probes:
        first = have.get("probe_next", {}).get(probe.name)
        if first is not None and first <= spec.steps:
            missing.add(first)
    return sorted(missing)


def _first_unstable(history: History) -> tuple[int, float] | None:
    """Step and ratio of the first recorded loss above UNSTABLE times the initial one."""
    if "train/loss" not in history.arrays or not history.loss.size:
        return None
    ratios = history.loss / history.loss[0]
    rows = np.flatnonzero(ratios > UNSTABLE)
    return (int(history.step[rows[0]]), float(ratios[rows[0]])) if len(rows) else None


def _next_step(status: str, step: int) -> int | None:
    """The first step without probe measurements; None after divergence, which has no later step."""
    return None if status == "diverged" else step + 1 if status == "done" else step


def _diverged(record: Mapping[str, Any], spec: RunSpec) -> bool:
    return bool(record["status"] == "diverged" and record["step"] <= spec.steps)


def _modified(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError:
        return 0.0  # reading the file will raise the error


# -- steps -------------------------------------------------------------------------------------------------------------


def _cut(arrays: dict[str, Array], spec: RunSpec) -> dict[str, Array]:
    """Keep the rows of the steps that `spec` records."""
    wanted = {"train": spec.recorded_steps(), "test": spec.recorded_steps(spec.test_every)}
    cut = {}
    for name, value in arrays.items():
        split = name.partition("/")[0]
        if split in wanted and not per_run(name, value):
            value = value[np.isin(arrays[f"{split}/step"], wanted[split])]
        elif name == "objective":
            value = value[: spec.steps]
        elif split == "probe":
            steps = arrays["/".join(name.split("/")[:2]) + "/step"]
            value = value[steps <= spec.steps]
        cut[name] = value
    return cut


# -- array files -------------------------------------------------------------------------------------------------------

_ARRAYS_NAME = re.compile(r"(history|checkpoint)-[0-9a-f]{16}\.safetensors")
_TEMPORARY = re.compile(rf"\.({_ARRAYS_NAME.pattern})\.[a-z0-9_]{{8}}")
_NONE = np.empty(0, np.int64)


def _read_history(folder: Path, record: Mapping[str, Any]) -> dict[str, Array]:
    """The history arrays of a record; DamagedError unless each has as many rows as steps."""
    arrays = _read_arrays(folder, record["history"])
    for name, value in arrays.items():
        path = name.split("/")
        step = "/".join([*path[:-1], "step"])
        if len(path) > 1 and not per_run(name, value):
            rows = arrays[step].shape if step in arrays else None
            if rows is None or len(rows) != 1 or value.shape[:1] != rows:
                file = folder / record["history"]["file"]
                raise DamagedError(f"{file} is damaged: {name} has shape {value.shape}, {step} {rows}")
    return arrays


def _read_arrays(folder: Path, entry: Mapping[str, str]) -> dict[str, Array]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    file = folder / entry["file"]
    try:
        content = file.read_bytes()
    except FileNotFoundError as error:
        raise DamagedError(f"{file} is missing") from error
    except OSError as error:
        raise UnreadableError(f"cannot read {file}: {error.strerror or error}") from error
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise DamagedError(f"{file} is damaged: its checksum differs")
    try:
        arrays: dict[str, Array] = load(content)
    except SafetensorError as error:
        raise DamagedError(f"{file} is damaged: {error}") from error
    return arrays


def _write_arrays(folder: Path, stem: str, arrays: Mapping[str, Array]) -> dict[str, str]:
    from safetensors.numpy import save

    content = save({name: np.asarray(value, order="C") for name, value in arrays.items()})
    digest = hashlib.sha256(content).hexdigest()
    name = f"{stem}-{digest[:16]}.safetensors"
    write_atomic(folder / name, content)
    return {"file": name, "sha256": digest}


def _write_json(file: Path, table: object) -> None:
    write_atomic(file, (json.dumps(table, indent=1) + "\n").encode())
