"""Audit: how heavy the tail of a corpus is, and what that will do to gradient descent, before anything is trained.

Classes (tokens, or labels) are counted in one pass over text, JSON lines, CSV or parquet columns, or label arrays, in
memory bounded by the number of classes. What follows from the counts: Zipf's exponent, entropy, how much of the data is
in rare classes, the frequency groups of every loss plot of the paper, and what Theorem 3 says of each: in the simple
imbalanced setting the loss of class k after time t of gradient flow is Theta(1/(pi_k t)), so a group takes longer the
rarer its classes are. Sign descent would take every class the same time.

Shapes: C classes that occur, G groups.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heavytail.analysis.zipf import HIGH, LOW, Zipf, fit
from heavytail.errors import DataError, SpecError
from heavytail.metrics import FrequencyGroups

__all__ = ["Audit", "audit", "audit_counts", "group_times"]

Array = NDArray[np.float64]
TOKENIZERS = ("words", "bpe", "unigram")
MOST_CLASSES = 10_000_000  # about 1 GB of words
TARGET_LOSS = 0.1  # nats, at which Theorem 3 is read
_LINES = 10_000  # tokenised at a time
_LABELS = 2**22  # of an array, counted at a time
_LONGEST = 2**20  # bytes of a line of text; longer ones are read in parts


@dataclass(frozen=True, eq=False)
class Audit:
    """What the counts say.

    Attributes:
        source: what was counted, in words.
        names: the classes that occur, most frequent first [C]; ties by name.
        counts: how often [C].
        zipf: fit over all ranks; NaN for a single class. Its interval takes samples as independent.
        slope: of log frequency on log rank over ranks 10 to 1 000, as in figure 9; NaN for fewer than 12 classes.
        entropy: of the class frequencies (bits).
        rare_share: share of the data in classes rarer than 1/C.
        groups: frequency groups of the classes.
        slowdown: how many times longer gradient descent takes on each group than on the first [G], by Theorem 3.
        left_out: labels below 0, which are counted nowhere.
    """

    source: str
    names: tuple[str, ...]
    counts: NDArray[np.int64]
    zipf: Zipf
    slope: float
    entropy: float
    rare_share: float
    groups: FrequencyGroups
    slowdown: Array
    left_out: int = 0

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.counts)

    def rows(self) -> list[dict[str, Any]]:
        """Return a table of the groups, most frequent first."""
        members = [self.counts[self.groups.index == g] for g in range(self.groups.num_groups)]
        return [
            {
                "group": g + 1,
                "classes": len(counts),
                "share": float(share),
                "most": int(counts.max()),
                "least": int(counts.min()),
                "slowdown": float(slowdown),
            }
            for g, (counts, share, slowdown) in enumerate(zip(members, self.groups.share, self.slowdown, strict=True))
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the counts of each class, as JSON can hold it; null for what cannot be told."""

        def plain(value: float) -> float | None:
            return value if math.isfinite(value) else None

        return {
            "source": self.source,
            "samples": int(self.counts.sum()),
            "classes": self.num_classes,
            "left_out": self.left_out,
            "zipf_exponent": plain(self.zipf.exponent),
            "zipf_interval": [plain(self.zipf.low), plain(self.zipf.high)],
            "least_squares_slope": plain(self.slope),
            "entropy_bits": self.entropy,
            "rare_share": self.rare_share,
            "target_loss": TARGET_LOSS,
            "most_frequent": [[name, int(n)] for name, n in zip(self.names[:10], self.counts, strict=False)],
            "groups": self.rows(),
        }

    def __str__(self) -> str:
        """Return a text of some twenty lines."""
        n, C = int(self.counts.sum()), self.num_classes
        lines = [
            self.source,
            f"  {n} samples of {C} classes" + (f"; {self.left_out} labels below 0 left out" if self.left_out else ""),
            f"  Zipf exponent  {self.zipf.exponent:.3f} "
            f"(95 % interval {self.zipf.low:.3f} to {self.zipf.high:.3f}; "
            f"log-log slope over ranks 10 to 1000: {self.slope:.3f})",
            f"  entropy        {self.entropy:.2f} bits; balanced classes would have {math.log2(C):.2f}",
            f"  rare classes   hold {self.rare_share:.1%} of the samples (classes rarer than 1/C)",
            f"  most frequent  {' '.join(f'{name!r}' for name in self.names[:8])}",
            "",
            "group   classes   share  samples of a class  gradient descent takes (Theorem 3)",
        ]
        for row in self.rows():
            span = f"{row['most']} to {row['least']}" if row["most"] > row["least"] else f"{row['most']}"
            lines.append(
                f"{row['group']:>5} {row['classes']:>9} {row['share']:>7.1%}  {span:>18}  {row['slowdown']:>9.1f} x"
            )
        return "\n".join(lines)


def audit(
    path: str | Path,
    *,
    tokenizer: str = "words",
    vocab: int | None = None,
    column: str | None = None,
    num_groups: int = 10,
) -> Audit:
    """Count a file, or all files of a folder, and say what the counts mean.

    Args:
        path: text (any suffix), .jsonl, .csv, .parquet, each also as .gz except parquet, or a .npy array of integers.
        tokenizer: "words" (`basic_english`), "bpe" or "unigram" (learned from the text itself), or a tokenizer's JSON
            file. A column of integers, and an array, are labels already.
        vocab: keep this many types, "<unk>" included; 4 000 for what is learned.
        column: of the table, or field of each JSON line; by default "text".
        num_groups: groups to cut.

    Raises:
        DataError: a file cannot be read as what its name says, or has nothing in it.
        SpecError: a setting is unknown or out of range.
    """
    if vocab is not None and vocab < 2:
        raise SpecError(f"--vocab: expected at least 2, got {vocab}")
    files, left_out = _files(Path(path).expanduser()), 0
    kind = _kind(files[0])
    if any(_kind(file) != kind for file in files):
        raise DataError(f"{path}: expected files of one kind, got {', '.join(sorted({_kind(f) for f in files}))}")
    if column is not None and kind in ("text", "npy"):
        raise SpecError(f"--column: expected none for {kind}, which has no columns, got '{column}'")
    column = column or "text"

    def values() -> Iterator[Any]:
        return chain.from_iterable(_READERS[kind](file, column) for file in files)

    counts: Counter[str]
    if kind == "npy":
        counts, left_out = _count_arrays(files)
        what = "labels"
    elif kind != "text" and isinstance(next(values(), ""), int):
        numbers = _bounded(_batched(values(), _LINES))
        if any(isinstance(label, str) for label in numbers):
            raise DataError(f"{path}: column '{column}' holds both whole numbers and text")
        left_out = sum(n for label, n in numbers.items() if label < 0)
        counts = Counter({str(label): n for label, n in numbers.items() if label >= 0})
        what = f"labels in {column}"
    else:
        counts, what = _count_text(lambda: map(str, values()), tokenizer, vocab)
    if not counts:
        raise DataError(f"{path}: expected at least one class, got none")
    return audit_counts(counts, source=f"{path}: {what}", num_groups=num_groups, left_out=left_out)


def audit_counts(counts: Mapping[str, int], *, source: str = "", num_groups: int = 10, left_out: int = 0) -> Audit:
    """Return what counts by class name mean; SpecError if there are none.

    >>> found = audit_counts({str(k): 5040 // k for k in range(1, 11)}, num_groups=2)
    >>> round(found.zipf.exponent, 3), found.slowdown.round(1).tolist()
    (1.0, [1.0, 4.2])
    """
    ranked = sorted(((name, n) for name, n in counts.items() if n), key=lambda item: (-item[1], item[0]))
    n_k = np.array([n for _, n in ranked], np.int64)
    groups = FrequencyGroups.from_counts(n_k, num_groups)
    pi = n_k / n_k.sum()
    nothing, C = Zipf(math.nan, math.nan, math.nan, math.nan), len(n_k)
    times = group_times(pi, groups.index)
    return Audit(
        source=source,
        names=tuple(name for name, _ in ranked),
        counts=n_k,
        zipf=fit(n_k, 1, C) if C > 1 else nothing,
        slope=fit(n_k, LOW, min(HIGH, C)).slope if C > LOW + 1 else math.nan,
        entropy=float(-(pi * np.log2(pi)).sum()),
        rare_share=float(pi[n_k * len(n_k) < n_k.sum()].sum()),
        groups=groups,
        slowdown=times / times[0],
        left_out=left_out,
    )


# -- what counts mean ------------------------------------------------------------------------------------------------


def group_times(pi: ArrayLike, index: ArrayLike, loss: float = TARGET_LOSS) -> Array:
    """Return the time that gradient flow from zero takes to a mean loss of each group [G] (Theorem 3).

    Args:
        pi: frequencies of the classes [C], summing to 1.
        index: group of each class [C].
        loss: to be reached (nats), below log C.
    """
    from heavytail.analysis.theory import gradient_flow_loss, gradient_flow_time

    pi, index = np.asarray(pi, np.float64), np.asarray(index)
    C = len(pi)
    if C < 2 or loss >= math.log(C):
        return np.full(index.max() + 1, np.nan)
    times = []
    for g in range(index.max() + 1):
        values, number = np.unique(pi[index == g], return_counts=True)
        weight = values * number / (values @ number)
        ends = gradient_flow_time(loss, values[[-1, 0]], C)  # the group's mean crosses between its extreme classes
        low, high = np.log(ends[0]), np.log(ends[1])
        for _ in range(60):
            middle = (low + high) / 2
            above = weight @ gradient_flow_loss(np.exp(middle), values, C) > loss
            low, high = (middle, high) if above else (low, middle)
        times.append(math.exp(high))
    return np.array(times)


# -- counting --------------------------------------------------------------------------------------------------------


def _count_text(texts: Callable[[], Iterator[str]], tokenizer: str, vocab: int | None) -> tuple[Counter[str], str]:
    """Counts by token, and what was counted."""
    from heavytail.data.text.vocabulary import UNKNOWN, basic_english

    if tokenizer == "words":
        counts: Counter[str] = _bounded(basic_english(text) for text in texts())
        if vocab is None:
            return counts, "words"
        kept = sorted((w for w in counts if w != UNKNOWN), key=lambda w: (-counts[w], w))[: vocab - 1]
        known = Counter({word: counts[word] for word in kept})
        known[UNKNOWN] = counts.total() - known.total()
        return known, f"words, {vocab} types"

    from heavytail.data.text import tokenizer as tokenizers

    if tokenizer in TOKENIZERS:
        found = tokenizers.learn(tokenizer, texts(), vocab)  # type: ignore[arg-type]
        what = f"{tokenizer} pieces, {found.size} learned"
    else:
        file = Path(tokenizer).expanduser()
        if not file.is_file():
            raise SpecError(f"--tokenizer: expected {', '.join(TOKENIZERS)} or a file, got '{tokenizer}'")
        if vocab is not None:
            raise SpecError(f"--vocab: expected none beside a finished tokenizer, got {vocab}")
        found = tokenizers.load(file)
        what = f"tokens of {file.name}"
    total = np.zeros(found.size, np.int64)
    for lines in _batched(texts(), _LINES):
        total += np.bincount(found.encode(lines), minlength=found.size)
    return Counter({found.decode([k]) or f"#{k}": int(n) for k, n in enumerate(total) if n}), what


def _count_arrays(files: Iterable[Path]) -> tuple[Counter[str], int]:
    """Counts of the labels in .npy files, and how many were below 0."""
    counts: Counter[int] = Counter()
    for file in files:
        try:
            labels = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{file}: not a readable .npy array: {error}") from error
        if not np.issubdtype(labels.dtype, np.integer):
            raise DataError(f"{file}: expected integer labels, got {labels.dtype}")
        flat = labels.reshape(-1)
        for start in range(0, len(flat), _LABELS):
            values, number = np.unique(flat[start : start + _LABELS], return_counts=True)
            counts.update(dict(zip(values.tolist(), number.tolist(), strict=True)))
            _check_size(counts)
    below = sum(n for label, n in counts.items() if label < 0)
    return Counter({str(label): n for label, n in counts.items() if label >= 0}), below


def _batched(values: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(values)
    while batch := list(islice(iterator, size)):
        yield batch


def _bounded(parts: Iterable[Iterable[Any]]) -> Counter[Any]:
    counts: Counter[Any] = Counter()
    for part in parts:
        counts.update(part)
        _check_size(counts)
    return counts


def _check_size(counts: Counter[Any]) -> None:
    if len(counts) > MOST_CLASSES:
        raise DataError(f"more than {MOST_CLASSES} classes, too many to count; for text, take --tokenizer bpe")


# -- reading ---------------------------------------------------------------------------------------------------------


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        if not path.is_file():
            raise DataError(f"{path}: no such file or folder")
        return [path]
    found = sorted(file for file in path.rglob("*") if file.is_file())
    files = [
        file
        for file in found
        if not any(part.startswith((".", "__pycache__")) for part in file.relative_to(path).parts)
    ]
    if not files:
        raise DataError(f"{path}: expected files in the folder, got none")
    return files


def _kind(file: Path) -> str:
    suffix = (file.with_suffix("") if file.suffix == ".gz" else file).suffix.lower().removeprefix(".")
    return {"ndjson": "jsonl", "pq": "parquet"}.get(suffix, suffix if suffix in _READERS else "text")


def _lines(file: Path, longest: int = -1) -> Iterator[str]:
    """The lines of a file with their ends; those of more than `longest` bytes in parts that end before a space."""
    offset, rest = 0, b""
    try:
        with cast("BinaryIO", gzip.open(file)) if file.suffix == ".gz" else file.open("rb") as stream:
            while line := rest + stream.readline(longest - len(rest) if longest > 0 else -1):
                rest = b""
                if len(line) == longest and not line.endswith(b"\n"):
                    cut = line.rfind(b" ")
                    if cut <= 0:  # or else before a character
                        cut = next(end for end in range(len(line) - 1, 0, -1) if line[end] & 0xC0 != 0x80)
                    line, rest = line[:cut], line[cut:]
                yield line.decode("utf-8")
                offset += len(line)
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 at byte {offset + error.start}") from error
    except (OSError, EOFError) as error:
        raise DataError(f"{file}: cannot be read: {error}") from error


def _read_text(file: Path, column: str) -> Iterator[str]:
    return _lines(file, _LONGEST)


def _read_jsonl(file: Path, column: str) -> Iterator[Any]:
    for number, line in enumerate(_lines(file), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise DataError(f"{file}: line {number} is not JSON: {error}") from error
        if not isinstance(entry, dict) or column not in entry:
            known = ", ".join(entry) if isinstance(entry, dict) else type(entry).__name__
            raise DataError(f"{file}: line {number} has no field '{column}' (it has: {known}); name one by --column")
        yield from _value(entry[column], file, number)


def _read_csv(file: Path, column: str) -> Iterator[Any]:
    rows = csv.DictReader(_lines(file))
    if column not in (rows.fieldnames or ()):
        raise DataError(f"{file}: no column '{column}' (it has: {', '.join(rows.fieldnames or ())}); use --column")
    for row in rows:
        text = row[column]
        if text is not None:
            yield int(text) if re.fullmatch(r"-?[0-9]+", text) else text


def _read_parquet(file: Path, column: str) -> Iterator[Any]:
    import polars as pl

    try:
        frame = pl.scan_parquet(file)
        names = frame.collect_schema().names()
        if column not in names:
            raise DataError(f"{file}: no column '{column}' (it has: {', '.join(names)}); name one by --column")
        start = 0
        while len(part := frame.select(column).slice(start, _LINES * 10).collect()):
            for value in part[column]:
                yield from _value(value, file, start)
            start += len(part)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{file}: not readable parquet: {error}") from error


def _value(value: Any, file: Path, row: int) -> Iterator[Any]:
    """The texts or labels of one cell: a list has several, an empty cell none."""
    if isinstance(value, str | int) and not isinstance(value, bool):
        yield value
    elif isinstance(value, Iterable):
        for part in value:
            yield from _value(part, file, row)
    elif value is not None:
        raise DataError(f"{file}: row {row}: expected text or whole numbers, got {type(value).__name__}")


_READERS: dict[str, Callable[[Path, str], Iterator[Any]]] = {
    "text": _read_text,
    "jsonl": _read_jsonl,
    "csv": _read_csv,
    "parquet": _read_parquet,
    "npy": lambda file, column: iter(()),
}
