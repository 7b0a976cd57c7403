"""RunStore and History: one folder per trajectory, written so that a crash at any moment loses nothing committed.

    runs/<key>/spec.json                    the run, readable
    runs/<key>/env.json                     versions, device, threads
    runs/<key>/history-<sum>.safetensors    what was measured
    runs/<key>/checkpoint-<sum>.safetensors where to resume
    runs/<key>/status.json                  names the two files and their checksums: the one commit point

A commit writes the array files under names made of their own checksums, then renames a new status.json over the old
one, then deletes what it no longer names. This module does not import torch.

Shapes: E recorded steps, C classes, T steps.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from heavytail.errors import StoreError
from heavytail.experiment.spec import RunSpec
from heavytail.files import write_atomic

ATTEMPT = "attempt"  # subfolder of a finished run in which a fresh attempt at it commits until it is finished too

Array = NDArray[Any]
Status = Literal["done", "diverged", "interrupted", "failed", "running", "missing"]


@dataclass
class History:
    """What one run measured.

    `arrays` holds, for each split ("train", "test"):
        <split>/step [E]            recorded steps
        <split>/loss [E]            mean loss (nats), not weighted
        <split>/class_loss [E, C]   mean loss per class, NaN where the class has no sample
        <split>/correct [E, C]      correctly classified samples
        <split>/p_correct [E, C]    mean probability of the correct class
        <split>/count [C] or [E, C] samples; per row where the row sums mini-batches
    and `group` [C] (frequency group of each class), `objective` [T] (what each step minimised), and whatever probes
    add under probe/<name>/, with a leading axis of probe/<name>/step.
    """

    spec: RunSpec
    status: Status
    arrays: dict[str, Array]
    environment: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

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

        Args:
            split: "train" or "test".
            groups: [C] group of each class; by default the groups of the run's training targets.
        """
        total, count = self.sums(split, "class_loss", self.arrays["group"] if groups is None else groups)
        with np.errstate(invalid="ignore"):
            return np.where(count > 0, total / count, np.nan)

    def sums(self, split: str, name: str, index: Array, *, weighted: bool = True) -> tuple[Array, Array]:
        """Return sums over the classes of each group, and the sample counts, both [E, G].

        Args:
            split: "train" or "test".
            name: "class_loss", "p_correct" (means, to be weighted by the counts) or "correct" (counts themselves).
            index: [C] group of each class.
            weighted: whether to multiply by the counts.
        """
        value = self.arrays[f"{split}/{name}"].astype(np.float64)
        count = np.broadcast_to(self.arrays[f"{split}/count"], value.shape).astype(np.float64)
        value = np.where(count > 0, np.nan_to_num(value, posinf=np.inf) * (count if weighted else 1.0), 0.0)
        order = np.argsort(index, kind="stable")
        starts = np.searchsorted(index[order], np.arange(int(index.max()) + 1))
        return np.add.reduceat(value[:, order], starts, axis=1), np.add.reduceat(count[:, order], starts, axis=1)


@dataclass(frozen=True)
class Outcome:
    """What the grid search needs to know of a run."""

    status: Status
    final_loss: float
    peak_ratio: float
    last_step: int


class RunStore:
    """All runs under one root folder.

    Args:
        root: the folder; made when something is first written.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root).expanduser()

    def folder(self, spec: RunSpec) -> Path:
        """Return the folder of a run, whether or not it exists."""
        return self.root / "runs" / spec.key

    def status(self, spec: RunSpec) -> Status:
        """Return where a run stands: done or diverged only if every step that `spec` asks for is there."""
        folder = self.folder(spec)
        record = _record(folder)
        if record is not None and not _missing(record, spec):
            return "diverged" if _diverged(record, spec) else "done"
        record = _record(folder / ATTEMPT) or record
        if record is None or record["status"] in ("done", "diverged"):
            return "missing"
        status: Status = record["status"]
        if status == "running" and not self.locked(spec.key):
            return "interrupted"  # the process that ran it is gone
        return status

    def missing_steps(self, spec: RunSpec) -> list[int]:
        """Return the recorded steps that `spec` asks for and the store does not have; all of them for a new probe."""
        return _missing(_record(self.folder(spec)), spec)

    def outcome(self, spec: RunSpec) -> Outcome | None:
        """Return the final loss and stability of a finished run, None if it is not finished."""
        record = _record(self.folder(spec))
        if record is None or _missing(record, spec):
            return None
        if _diverged(record, spec):
            return Outcome("diverged", float("inf"), float("inf"), record["step"])
        history = self.load(spec, only=("train/step", "train/loss"))
        if history is None:
            return None
        return Outcome(history.status, history.final_loss, history.peak_ratio, int(history.step[-1]))

    def load(self, spec: RunSpec, *, only: tuple[str, ...] | None = None) -> History | None:
        """Return the history of a finished run, cut to the steps that `spec` asks for; None if any is missing.

        Args:
            spec: the run.
            only: names of arrays to read; the checksum of the file is then not verified.

        Raises:
            StoreError: a file is damaged.
        """
        folder = self.folder(spec)
        record = _record(folder)
        if record is None or _missing(record, spec):
            return None
        try:
            arrays = _read_arrays(folder, record["history"], only)
        except StoreError:
            if _record(folder) == record:
                raise
            return self.load(spec, only=only)  # another process replaced the run while it was read
        status: Status = "diverged" if _diverged(record, spec) else "done"
        environment = _read_json(folder / "env.json") if only is None else {}
        return History(spec, status, _cut(arrays, spec), environment or {})

    def load_partial(self, spec: RunSpec) -> tuple[History, int, dict[str, Array]] | None:
        """Return a history, the number of updates behind it and the checkpoint to continue from, if there is one.

        One can be continued where every missing step lies at or after the checkpoint.
        """
        for folder in (self.folder(spec) / ATTEMPT, self.folder(spec)):
            record = _record(folder)
            if record is None or record["history"] is None or record["checkpoint"] is None:
                continue
            if all(step >= record["step"] for step in _missing(record, spec)):
                history = History(spec, record["status"], _read_arrays(folder, record["history"]))
                return history, record["step"], _read_arrays(folder, record["checkpoint"])
        return None

    def save(
        self,
        history: History,
        *,
        step: int,
        checkpoint: Mapping[str, Array] | None = None,
    ) -> None:
        """Commit a history, and the checkpoint to resume from after `step` updates, atomically.

        A finished run stays what it is while a fresh attempt at it (for a new probe, say) is under way.

        Raises:
            StoreError: the folder cannot be written; what was committed before stays.
        """
        spec, folder = history.spec, self.folder(history.spec)
        finished = history.status in ("done", "diverged")
        stored = _record(folder)
        if not finished and stored is not None and stored["status"] in ("done", "diverged"):
            folder = folder / ATTEMPT
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "spec.json", spec.resolved.to_dict())
            write_json(folder / "env.json", history.environment)
            record = {
                "status": history.status,
                "step": step,
                "error": history.error,
                "observed": {
                    "train_steps": history.arrays.get("train/step", np.empty(0, np.int64)).tolist(),
                    "test_steps": history.arrays.get("test/step", np.empty(0, np.int64)).tolist(),
                    "probes": spec.measured,
                },
                "history": _write_arrays(folder, "history", history.arrays) if history.arrays else None,
                "checkpoint": _write_arrays(folder, "checkpoint", checkpoint) if checkpoint is not None else None,
            }
            write_json(folder / "status.json", record)
        except OSError as error:
            raise StoreError(f"cannot write {folder}: {error.strerror or error}") from error
        kept = {entry["file"] for entry in (record["history"], record["checkpoint"]) if isinstance(entry, dict)}
        for old in (*folder.glob("*.safetensors"), *folder.glob(".*")):  # the latter: of writers killed on the way
            if old.name not in kept:
                old.unlink(missing_ok=True)
        if finished:
            shutil.rmtree(folder / ATTEMPT, ignore_errors=True)

    def mark_failed(self, spec: RunSpec, error: str) -> None:
        """Note why a run failed, beside whatever it had committed."""
        for folder in (self.folder(spec) / ATTEMPT, self.folder(spec)):
            record = _record(folder)
            if record is not None and record["status"] not in ("done", "diverged"):
                write_json(folder / "status.json", {**record, "status": "failed", "error": error})
                return

    @contextlib.contextmanager
    def lock(self, spec: RunSpec) -> Iterator[None]:
        """Hold the run's folder for this process; waits while another has it. A killed process lets go by itself."""
        folder = self.folder(spec)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = open(folder / "lock", "w")  # noqa: SIM115 - closed below, the lock with it
        except OSError as error:
            raise StoreError(f"cannot write {folder}: {error.strerror or error}") from error
        with handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def locked(self, key: str) -> bool:
        """Return whether some process holds the run of this key now."""
        try:
            with open(self.root / "runs" / key / "lock") as handle:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return False

    def records(self) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
        """Yield (key, spec table, status record) of every stored run, oldest commit first."""
        files = sorted((self.root / "runs").glob("*/status.json"), key=lambda f: f.stat().st_mtime)
        for file in files:
            record, spec = _record(file.parent), _read_json(file.parent / "spec.json")
            if record is not None and spec is not None:
                yield file.parent.name, spec, record


def _record(folder: Path) -> dict[str, Any] | None:
    return _read_json(folder / "status.json")


def _missing(record: Mapping[str, Any] | None, spec: RunSpec) -> list[int]:
    """Recorded steps that `spec` asks for and a status record does not list."""
    wanted = spec.recorded_steps()
    if record is None or record["history"] is None:
        return wanted
    have = record["observed"]
    if any(p not in have["probes"] for p in spec.measured):
        return wanted
    end = record["step"] if record["status"] == "diverged" else spec.steps + 1
    missing = {s for s in wanted if s < end} - set(have["train_steps"])
    missing |= {s for s in spec.recorded_steps(spec.test_every) if s < end} - set(have["test_steps"])
    return sorted(missing)


def _diverged(record: Mapping[str, Any], spec: RunSpec) -> bool:
    return bool(record["status"] == "diverged" and record["step"] <= spec.steps)


def _cut(arrays: dict[str, Array], spec: RunSpec) -> dict[str, Array]:
    """Keep the rows of the steps that `spec` asks for."""
    wanted = {"train": spec.recorded_steps(), "test": spec.recorded_steps(spec.test_every)}
    cut = {}
    for name, value in arrays.items():
        split, _, what = name.partition("/")
        if split in wanted:
            steps = arrays[f"{split}/step"]
            if value.ndim >= 1 and (what != "count" or value.ndim == 2):
                value = value[np.isin(steps, wanted[split])]
        elif name == "objective":
            value = value[: spec.steps]
        elif split == "probe":
            steps = arrays["/".join(name.split("/")[:2]) + "/step"]
            value = value[steps <= spec.steps]
        cut[name] = value
    return cut


def _read_arrays(folder: Path, entry: Mapping[str, str], only: tuple[str, ...] | None = None) -> dict[str, Array]:
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import load

    file = folder / entry["file"]
    remedy = f"delete {folder} and run again"
    try:
        if only is not None:
            with safe_open(file, framework="numpy") as handle:
                return {name: handle.get_tensor(name) for name in only}
        content = file.read_bytes()
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise StoreError(f"{file} is damaged (its checksum differs); {remedy}")
        arrays: dict[str, Array] = load(content)
        return arrays
    except (OSError, SafetensorError) as error:
        raise StoreError(f"cannot read {file}: {error}; {remedy}") from error


def _write_arrays(folder: Path, stem: str, arrays: Mapping[str, Array]) -> dict[str, str]:
    from safetensors.numpy import save

    content = save({name: np.asarray(value, order="C") for name, value in arrays.items()})
    digest = hashlib.sha256(content).hexdigest()
    name = f"{stem}-{digest[:16]}.safetensors"
    write_atomic(folder / name, content)
    return {"file": name, "sha256": digest}


def _read_json(file: Path) -> dict[str, Any] | None:
    try:
        table: dict[str, Any] = json.loads(file.read_text())
        return table
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read {file}: {error}; delete {file.parent} and run again") from error


def write_json(file: Path, table: object) -> None:
    """Write a JSON file atomically."""
    write_atomic(file, (json.dumps(table, indent=1) + "\n").encode())
