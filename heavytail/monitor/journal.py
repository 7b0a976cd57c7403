"""Journal: the readings of a training, kept in a folder for `heavytail monitor FOLDER`.

    journal = heavytail.Journal("runs/gpt2")
    journal.write(step, monitor.compute())
    journal.write(step, validation.compute(), split="eval")

    FOLDER/monitor.jsonl    a line per reading, appended: overall and by group
    FOLDER/classes.npz      targets seen of each class and its group, as of the last training reading

Needs numpy only. Shapes: C classes, E readings, G groups.
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from heavytail.errors import DataError, HeavyTailError, SpecError, StoreError
from heavytail.files import check_shape, expanded, write_atomic

if TYPE_CHECKING:
    from heavytail.monitor.monitor import Reading

__all__ = ["Journal", "Track", "read_journal"]

_log = logging.getLogger("heavytail")

Array = NDArray[Any]
_OVERALL = ("loss", "accuracy", "p_correct")
# What numpy raises of a damaged .npz, which is a zip archive.
_UNREADABLE = (
    *(OSError, ValueError, KeyError, EOFError, RuntimeError, MemoryError, SyntaxError),
    *(zipfile.BadZipFile, zlib.error, tokenize.TokenError, struct.error),
)


class Journal:
    """Readings appended to a folder; a crash loses at most the one being written.

    A training that resumes from a checkpoint continues in the same folder: its readings replace those at the same and
    later steps, in every split from its first training reading on. Another run belongs in another folder: one that
    reads at other intervals is refused.

    Args:
        folder: created if missing.

    Raises:
        StoreError: it cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = expanded(folder)
        self._file = self.folder / "monitor.jsonl"
        self._before = _written_steps(self._file)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._file.open("ab"):
                pass
        except OSError as error:
            raise StoreError(f"cannot write {self._file}: {error.strerror or error}") from error

    def write(self, step: int, reading: Reading, split: str = "train") -> None:
        """Append a reading.

        Args:
            step: updates made so far.
            reading: of a monitor.
            split: "train", or any name of an evaluation.

        Raises:
            SpecError: the split has no name, the step is not a whole number of at least 0, or the folder holds the
                readings of another run.
            StoreError: the folder cannot be written.
        """
        if not isinstance(split, str) or not split:
            raise SpecError(f"split: expected a name, got {split!r}")
        if isinstance(step, bool) or not isinstance(step, int | np.integer) or step < 0:
            raise SpecError(f"step: expected a whole number of at least 0, got {step}")
        if split == "train":
            self._check_grid(int(step))
        by_group = {name: getattr(reading, name) for name in (*_OVERALL, "share", "count", "nonfinite")}
        line = {
            "step": int(step),
            "split": split,
            "overall": {name: _plain(value) for name, value in reading.overall.items()},
            "groups": {name: _plain(values) for name, values in {**by_group, **reading.extra, **reading.head}.items()},
            "names": list(reading.names),
            "cut": reading.cut,
        }
        try:
            with self._file.open("ab") as file:
                # A writer that was killed, or a full disk, leaves a part of a line: it is lost, this one is not.
                torn = file.tell() > 0 and not _ends_in_newline(self._file)
                file.write((torn * "\n" + json.dumps(line, allow_nan=False) + "\n").encode())
            if split == "train":
                content = io.BytesIO()
                np.savez(content, count=reading.class_count, group=reading.groups.index)
                write_atomic(self.folder / "classes.npz", content.getvalue())
        except OSError as error:
            raise StoreError(f"cannot write {self.folder}: {error.strerror or error}") from error

    def _check_grid(self, step: int) -> None:
        """Compare the first step of this writer with the steps that the folder has."""
        before, self._before = self._before, []
        if len(before) < 2 or step <= before[0]:
            return
        usual = int(np.median(np.diff(before)))
        if step not in before and all((step - known) % usual for known in before):
            raise SpecError(
                f"{self.folder}: holds readings of another run, every {usual} steps, got step {step}; "
                "give each run a folder of its own, or remove this one"
            )


def written(journal: Journal | None, step: int, reading: Reading, split: str) -> Journal | None:
    """Write a reading inside a training, which goes on if that fails; return the journal, None once it has failed."""
    if journal is not None:
        try:
            journal.write(step, reading, split)
        except HeavyTailError as error:
            _log.warning("the journal stops, training goes on: %s", error)
            return None
    return journal


@dataclass(frozen=True)
class Track:
    """The readings of one split.

    Attributes:
        step: of each reading [E].
        overall: "loss", "accuracy", "p_correct" [E]; NaN where there is nothing to tell.
        groups: the same and "share", "count", "nonfinite", "grad_norm", "trace", "update_norm" [E, G].
        cut: origin of the groups of the last reading.
        recut: whether groups were cut anew between readings, as they are without counts.
        names: name of each group of the last reading [G]; empty if they are only numbered.
    """

    step: Array
    overall: dict[str, Array]
    groups: dict[str, Array]
    cut: str
    recut: bool
    names: tuple[str, ...] = ()


def read_journal(folder: str | os.PathLike[str]) -> tuple[dict[str, Track], Array, Array]:
    """Return the tracks by split, and targets seen and group of each class [C] (empty without training readings).

    Raises:
        DataError: there is no journal in the folder, or it is damaged.
    """
    folder = expanded(folder)
    file = folder / "monitor.jsonl"
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"no monitor.jsonl in {folder}; heavytail.Journal({str(folder)!r}) writes one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from error
    lines: dict[str, list[dict[str, Any]]] = {}
    before: dict[str, int] = {}  # readings of each split that are older than the last training reading
    torn = 0
    for line in text.splitlines():
        try:
            entry = _checked(json.loads(line))
            split, step = entry["split"], entry["step"]
            track = lines.setdefault(split, [])
            if split == "train":
                _drop_abandoned(lines, step, before)
                before = {name: len(others) for name, others in lines.items()}
            while track and track[-1]["step"] >= step:  # the training went back to a checkpoint
                track.pop()
            before[split] = min(before.get(split, 0), len(track))
            track.append(entry)
        except (ValueError, RecursionError):
            torn += 1  # one for each time the writer was killed
    lines = {split: track for split, track in lines.items() if track}
    if not lines:
        raise DataError(f"{file}: no readings" + (f", {torn} broken lines" if torn else ""))
    count, group = np.empty(0, np.int64), np.empty(0, np.int64)
    if (folder / "classes.npz").exists():
        try:
            # Opened here: numpy leaves a file that is no archive open.
            with open(folder / "classes.npz", "rb") as handle, np.load(handle, allow_pickle=False) as arrays:
                count, group = (np.asarray(arrays[name]) for name in ("count", "group"))
            if not (count.ndim == 1 and count.shape == group.shape and count.dtype.kind == group.dtype.kind == "i"):
                raise ValueError(f"expected two rows of integers, got {count.dtype} and {group.dtype}")
            if count.min(initial=0) < 0 or not 0 <= group.min(initial=0) <= group.max(initial=0) < 1 + len(group):
                raise ValueError("a count or a group is out of range")
        except _UNREADABLE as error:
            raise DataError(f"{folder / 'classes.npz'} is damaged: {error or type(error).__name__}") from error
    order = sorted(lines, key=lambda split: (split != "train", split))
    return {split: _track(lines[split]) for split in order}, count, group


def _drop_abandoned(lines: Mapping[str, list[dict[str, Any]]], step: int, before: Mapping[str, int]) -> None:
    """Drop what other splits hold of a training that was abandoned, if one that went back reads `step` now.

    A training that went back may have evaluated this step already, after the last training reading of the other one.
    """
    if not lines["train"] or (last := lines["train"][-1]["step"]) < step:
        return
    for split, track in lines.items():
        if split != "train":
            while track and track[-1]["step"] > step:
                track.pop()
            if track and track[-1]["step"] == step < last and len(track) <= before.get(split, 0):
                track.pop()


def _checked(line: Any) -> dict[str, Any]:
    """The reading in a line; ValueError if it has another shape than those that a journal writes."""
    check_shape(line, {"split": str, "step": int, "cut": str, "overall": {}, "groups": {"loss": [(float, None)]}})
    check_shape(line["overall"], dict.fromkeys(_OVERALL, (float, None)))
    for values in line["groups"].values():
        check_shape(values, [(float, None)])
        if len(values) != len(line["groups"]["loss"]):
            raise ValueError("its groups have different lengths")
    check_shape(line.get("names", []), [str])
    if not 0 <= line["step"] < 2**63:
        raise ValueError("its step is out of range")
    reading: dict[str, Any] = line
    return reading


def _track(lines: list[dict[str, Any]]) -> Track:
    widest = max(len(line["groups"]["loss"]) for line in lines)
    columns = dict.fromkeys(name for line in lines for name in line["groups"])
    groups = {name: np.full((len(lines), widest), np.nan) for name in columns}
    for row, line in enumerate(lines):
        for name, values in line["groups"].items():
            groups[name][row, : len(values)] = [math.nan if v is None else v for v in values]
    overall = {
        name: np.array([math.nan if line["overall"][name] is None else line["overall"][name] for line in lines])
        for name in _OVERALL
    }
    cuts = {line["cut"] for line in lines}
    names = tuple(lines[-1].get("names", ()))  # journals of version 0.1.0 have none
    names = () if all(name.startswith("group_") for name in names) else names
    steps = np.array([line["step"] for line in lines])
    return Track(steps, overall, groups, lines[-1]["cut"], len(cuts) > 1, names)


def _written_steps(file: Path) -> list[int]:
    """The steps of training in a journal, in order; none if it cannot be read."""
    try:
        tracks, _, _ = read_journal(file.parent)
    except DataError:
        return []
    return tracks["train"].step.tolist() if "train" in tracks else []


def _plain(value: Any) -> Any:
    """What JSON can hold: null for what is not finite."""
    if isinstance(value, np.ndarray):
        return [_plain(v) for v in value.tolist()]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _ends_in_newline(file: Path) -> bool:
    with file.open("rb") as handle:
        handle.seek(-1, os.SEEK_END)
        return handle.read(1) == b"\n"
