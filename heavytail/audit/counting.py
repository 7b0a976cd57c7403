"""Count the classes of a corpus: words, pieces of words, or labels.

Counts are keyed by the identity of a class (a word, a token's number, a label), not by its display form, and their sum
is checked. Memory is bounded by the number of classes and `readers.LONGEST`.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from heavytail.data import readers
from heavytail.data.readers import Format
from heavytail.data.text.vocabulary import LEAST_LEARNED, UNKNOWN
from heavytail.errors import DataError, SpecError
from heavytail.files import expanded

if TYPE_CHECKING:
    import polars as pl

TOKENIZERS = ("words", "bpe", "unigram")
MOST_CLASSES = 10_000_000  # about 1 GB of words
_LINES = 10_000  # tokenised at a time
_BLOCK = 2**14  # characters of text split into words at a time: they fit into a core's cache
_TASK = 256  # blocks sent to a process at a time
_LONG_WORDS = 20  # mean characters of a word: text without spaces

_WHOLE = r"^\s*-?[0-9]{1,18}(\.0*)?\s*$"  # in csv: a whole number, also with the .0 of a column of floats
_ABSENT = r"(?i)^\s*(nan|na|n/a|null|none)\s*$"  # in csv, among whole numbers: an empty cell
_DISTINCT = 100_000  # distinct texts of a column that are told apart, to see whether they repeat
_PADDED = re.compile(r"-?0[0-9]")  # an identifier, not a number: 00501 is not 501


@dataclass(frozen=True)
class Counts:
    """Class counts of a corpus.

    Attributes:
        by_name: samples of each class.
        what: description of the classes.
        left_out: number of labels below 0, which mark ignored samples.
        missing: number of empty cells.
        notes: caveats about the counts.
    """

    by_name: Mapping[str, int]
    what: str
    left_out: int = 0
    missing: int = 0
    notes: tuple[str, ...] = ()


def count(
    path: Path,
    *,
    tokenizer: str = "words",
    vocab: int | None = None,
    column: str | None = None,
    labels: bool = False,
    dtype: str | None = None,
    jobs: int = 1,
) -> Counts:
    """Count the classes in a file or in all files of a folder; arguments and errors as for `audit`."""
    least = LEAST_LEARNED if tokenizer in ("bpe", "unigram") else 2
    if vocab is not None and vocab < least:
        why = " (256 bytes and <unk>)" if least > 2 else ""
        raise SpecError(f"--vocab: expected at least {least}{why}, got {vocab}")
    if dtype is not None and dtype not in readers.DTYPES:
        raise SpecError(f"--dtype: expected {', '.join(readers.DTYPES)}, got '{dtype}'")
    files, ignored, others = readers.list_files(path)
    form = readers.require_one_kind(path, files, dtype)
    if column is not None and form.kind in ("text", "npy", "tokens"):
        raise SpecError(f"--column: expected none for {form.kind}, which has no columns, got '{column}'")
    if labels and form.kind == "text":
        raise SpecError("--labels: expected a table with a column of labels, got text")
    corpus = _Corpus(files, column, dtype)
    notes = [f"left out by the rule for hidden files: {_some(ignored)}"] if ignored else []
    notes += [f"left out, as other names of files that are counted: {_some(others)}"] if others else []
    if form.kind != "text":
        found = _count_column(corpus, labels or form.kind in readers.ARRAYS)
        if isinstance(found, Counts):
            if vocab is not None or tokenizer != "words":
                raise SpecError("--tokenizer, --vocab: expected neither for labels, which are classes already")
            where = "" if form.kind in readers.ARRAYS else f" in {column or 'text'}"
            return Counts(found.by_name, f"{found.what}{where}", found.left_out, found.missing, tuple(notes))
        corpus.missing, repeated = found
        if repeated:
            notes.append(repeated)
    by_name, what = _count_text(corpus, tokenizer, vocab, jobs if corpus.size >= readers.SHOWN else 1)
    return Counts(by_name, what, missing=corpus.missing, notes=(*notes, *_long_words(by_name, tokenizer)))


@dataclass
class _Corpus:
    """The files of one audit; a pass over large ones has a progress bar."""

    files: Sequence[Path]
    column: str | None
    dtype: str | None
    missing: int = 0

    @cached_property
    def size(self) -> int:
        """Bytes of the files."""
        return sum(file.stat().st_size for file in self.files)

    def cells(self) -> Iterator[readers.Cells]:
        return self._read(lambda file, form, bar: readers.columns(file, form, self.column, self.dtype, bar))

    def texts(self) -> Iterator[str]:
        return self._read(lambda file, form, bar: readers.texts(file, form, self.column, bar))

    def _read(self, read: Callable[..., Iterator[Any]]) -> Iterator[Any]:
        with readers.progress(f"reading {self.files[0].name}", self.size) as bar:
            for file in self.files:
                form: Format = readers.sniff(file, self.dtype)
                yield from read(file, form, bar)


# -- text ------------------------------------------------------------------------------------------------------------


def _count_text(corpus: _Corpus, tokenizer: str, vocab: int | None, jobs: int) -> tuple[Mapping[str, int], str]:
    """Counts by token, and a description of the tokens."""
    if tokenizer == "words":
        from heavytail.data.text.vocabulary import vocabulary_of

        found: Counter[bytes] = Counter()
        for some in _counted(_blocks(corpus.texts()), jobs):
            found.update(some)
            _check_size(found)
        counts = Counter({word.decode("utf-8", "surrogatepass"): n for word, n in found.items()})
        if vocab is None:
            return counts, "words"
        known = {word: counts[word] for word in vocabulary_of(counts, vocab) if word != UNKNOWN}
        return {**known, UNKNOWN: counts.total() - sum(known.values())}, f"words, {vocab} types"

    from heavytail.data.text import tokenizer as tokenizers

    if tokenizer in TOKENIZERS:
        learned = tokenizers.learn(tokenizer, corpus.texts(), vocab)  # type: ignore[arg-type]
        what = f"{tokenizer} pieces, {learned.size} learned"
    else:
        file = expanded(tokenizer)
        if not file.is_file():
            raise SpecError(f"--tokenizer: expected {', '.join(TOKENIZERS)} or a file, got '{tokenizer}'")
        if vocab is not None:
            raise SpecError(f"--vocab: expected none beside a finished tokenizer, got {vocab}")
        learned = tokenizers.load(file)
        what = f"tokens of {file.name}"
    total, tokens = np.zeros(learned.size, np.int64), 0
    texts = corpus.texts()
    while batch := list(islice(texts, _LINES)):
        numbers = learned.encode(batch)
        total += np.bincount(numbers, minlength=learned.size)
        tokens += len(numbers)
    pieces = learned.pieces()
    by_name = {pieces[k] or f"#{k}": int(total[k]) for k in np.flatnonzero(total).tolist()}
    assert sum(by_name.values()) == tokens, "two tokens share a name"
    return by_name, what


def _counted(blocks: Iterator[str], jobs: int) -> Iterator[Counter[bytes]]:
    """Counts of the words of all blocks, in their order, by `jobs` processes."""
    tasks = iter(lambda: list(islice(blocks, _TASK)), [])
    if jobs == 1:
        yield from map(_count_words, tasks)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        waiting: deque[Future[Counter[bytes]]] = deque()
        for task in tasks:
            waiting.append(pool.submit(_count_words, task))
            if len(waiting) > 2 * jobs:  # reading must not run far ahead of counting
                yield waiting.popleft().result()
        yield from (future.result() for future in waiting)


def _count_words(blocks: list[str]) -> Counter[bytes]:
    from heavytail.data.text.vocabulary import basic_english_utf8

    counts: Counter[bytes] = Counter()
    for block in blocks:
        counts.update(basic_english_utf8(block))
    return counts


def _blocks(texts: Iterable[str]) -> Iterator[str]:
    """Texts joined to about _BLOCK characters, with white space between them."""
    block: list[str] = []
    size = 0
    for text in texts:
        block.append(text)
        size += len(text)
        if size >= _BLOCK:
            yield " ".join(block)
            block, size = [], 0
    yield " ".join(block)


def _long_words(counts: Mapping[str, int], tokenizer: str) -> Iterator[str]:
    total = sum(counts.values())
    mean = sum(len(word) * n for word, n in counts.items()) / total if total else 0.0
    if tokenizer == "words" and mean > _LONG_WORDS:
        yield f"words have {mean:.0f} characters on average: for text without spaces between words use --tokenizer bpe"


# -- labels ----------------------------------------------------------------------------------------------------------


def _count_column(corpus: _Corpus, labels: bool) -> Counts | tuple[int, str]:
    """The counts of a column of labels; of a column of texts, its empty cells and a note.

    A column holds labels if every cell is a whole number, a boolean or categorical, or with `labels`; otherwise it
    holds text. In a typed format a column must not hold both.
    """
    import polars as pl

    counts: Counter[Any] = Counter()
    missing = rows = 0
    kinds: set[str] = set()
    types: set[str] = set()
    distinct: set[int] = set()
    for cells in corpus.cells():
        values = cells.values
        rows += len(values)
        missing += cells.missing + values.null_count()
        values = values.drop_nulls()
        if values.dtype.is_float():
            missing += int(values.is_nan().sum())
            values = values.filter(values.is_not_nan())
            if not labels or ((values == values.floor()) & (values.abs() < 2**63)).all():
                values = _whole(values, corpus)
        elif values.dtype == pl.String:
            filled = values.str.contains(r"\S")
            missing += int((~filled).sum())
            values = values.filter(filled)
        if not len(values):
            continue
        types.add(_type_of(values))
        if len(types) > 1:
            raise DataError(
                f"{corpus.files[0]}: the column holds both {' and '.join(sorted(types, reverse=True))}; "
                "write one type, or text, and count it by --labels"
            )
        kinds.add(_kind_of(values, cells.typed, labels))
        if "text" in kinds:
            counts.clear()
            distinct.update(values.cast(pl.String).hash().unique() if len(distinct) <= _DISTINCT else ())
            continue
        tally = values.value_counts()
        counts.update(dict(zip(*(tally[name].to_list() for name in tally.columns), strict=True)))
        _check_size(counts)
    if "text" in kinds:
        few = rows - missing >= 10 and len(distinct) <= min((rows - missing) / 5, _DISTINCT)
        return missing, f"{len(distinct)} distinct cells in {rows} rows: --labels counts each cell as one class" * few
    by_name, left_out, absent = _named(counts)
    return Counts(by_name, "labels", left_out, missing + absent)


def _type_of(values: pl.Series) -> str:
    import polars as pl

    if values.dtype == pl.Boolean:
        return "true and false"
    return "whole numbers" if values.dtype.is_numeric() else "text"


def _kind_of(values: pl.Series, typed: bool, labels: bool) -> str:
    import polars as pl

    if labels or values.dtype.is_integer() or values.dtype in (pl.Boolean, pl.Categorical, pl.Enum):
        return "labels"
    return "labels" if not typed and values.str.contains(f"{_WHOLE}|{_ABSENT}").all() else "text"


def _whole(values: pl.Series, corpus: _Corpus) -> pl.Series:
    """Floats as integers; DataError if they are not whole numbers."""
    import polars as pl

    fractions = values.filter((values != values.floor()) | (values.abs() >= 2**63))
    if len(fractions):
        raise DataError(
            f"{corpus.files[0]}: expected text or whole numbers, got float ({fractions[0]}); "
            "--labels counts each value as one class"
        )
    return values.cast(pl.Int64)


def _named(counts: Counter[Any]) -> tuple[dict[str, int], int, int]:
    """Counts by the name of the label, the number of labels below 0, and of those that stand for none."""
    texts = {label for label in counts if isinstance(label, str)}
    absent = {text for text in texts if re.match(_ABSENT, text)}
    numbers = counts
    if texts:
        whole = texts - absent
        if not whole or not all(re.match(_WHOLE, text) for text in whole) or any(map(_PADDED.match, whole)):
            return dict(counts), 0, 0  # names, or identifiers such as 00501
        numbers = Counter()
        for text in whole:
            numbers[int(text.strip().split(".")[0])] += counts[text]
    below = sum(n for label, n in numbers.items() if not isinstance(label, bool) and label < 0)
    classes = {label: n for label, n in numbers.items() if isinstance(label, bool) or label >= 0}
    if below and not classes:
        raise DataError(f"expected at least one class, got {below} labels below 0 only")
    by_name = {str(label).lower() if isinstance(label, bool) else str(label): n for label, n in classes.items()}
    assert sum(by_name.values()) == sum(classes.values()), "two labels share a name"
    return by_name, below, sum(counts[text] for text in absent)


def _check_size(counts: Counter[Any]) -> None:
    if len(counts) > MOST_CLASSES:
        raise DataError(f"more than {MOST_CLASSES} classes, too many to count; for text, take --tokenizer bpe")


def _some(names: Sequence[str]) -> str:
    shown = sorted(set(names))
    return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")
