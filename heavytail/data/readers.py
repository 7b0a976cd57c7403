"""Read text and labels from files: text, JSON, tables and arrays, compressed or not.

One reader serves `heavytail audit` and `run --data text`. A file's format is decided by its first bytes and then by its
suffix; a format that cannot be read is refused by name. Text is read as lines, every other format as columns of cells:
polars Series of about `BATCH` values, so that memory does not grow with the file.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import glob
import gzip
import hashlib
import io
import json
import lzma
import math
import os
import re
import stat
import sys
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, count, islice, takewhile
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from heavytail.errors import DataError, SpecError, one_line

if TYPE_CHECKING:
    import polars as pl

LONGEST = 2**20  # bytes of a piece of text: longer lines and cells are read in parts
LONGEST_ROW = 2**26  # bytes of a JSON line or of a csv cell: longer ones are refused
LARGEST_JSON = 2**28  # bytes of a .json file that is not JSON lines: it is parsed as a whole
BATCH = 2**14  # cells of a column at a time
ARRAY = 2**22  # labels of an array at a time
SHOWN = 2**25  # bytes: larger inputs take seconds and have a progress bar
DTYPES = ("uint8", "uint16", "uint32", "uint64", "int16", "int32", "int64")

TEXT, TABLES, ARRAYS = ("text",), ("jsonl", "json", "csv", "tsv", "parquet", "arrow"), ("npy", "npz", "tokens")
_SUFFIXES = {"ndjson": "jsonl", "pq": "parquet", "tab": "tsv", "feather": "arrow", "ipc": "arrow"}
_PACKED = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zst"}
_PACKED |= {bytes([start]) + b"*M\x18": "zst" for start in range(0x50, 0x60)}  # zstd frames to skip, as pzstd writes
_PACKED_SUFFIXES = (".gz", ".gzip", ".bz2", ".xz", ".zst", ".zstd")
_KNOWN = {b"PAR1": "parquet", b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrow", b"\x93NUMPY": "npy"}
_REFUSED = {
    b"PK\x03\x04": "a zip archive; unpack it",
    b"PK\x05\x06": "an empty zip archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it",
    b"Rar!": "a rar archive; unpack it",
    b"%PDF": "a PDF; extract its text",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"SQLite format 3": "an SQLite database; export the table as csv or parquet",
    b"\x89HDF": "an HDF5 file; save the labels as .npy",
    b"Obj\x01": "an Avro file; convert it to parquet",
    b"ORC": "an ORC file; convert it to parquet",
    b"FEA1": "a Feather file of version 1; convert it to parquet",
    b"GGUF": "a GGUF model",
    b"\x80\x02": "a pickle, which is never loaded; save the labels as .npy",
    b"\x80\x03": "a pickle, which is never loaded; save the labels as .npy",
    b"\x80\x04": "a pickle, which is never loaded; save the labels as .npy",
    b"\x80\x05": "a pickle, which is never loaded; save the labels as .npy",
    b"\xff\xfe": "UTF-16 text; convert it: iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "UTF-16 text; convert it: iconv -f UTF-16 -t UTF-8",
}
_RAW_SUFFIXES = (".bin", ".tok", ".tokens")
_LLMC = (20240520, 20240801)  # first int32 of token files with a header of 256 int32 (llm.c, modded-nanogpt)
# Files of operating systems, notebooks and data tools, which are never data.
_HIDDEN = re.compile(
    r"\..*|__.*|_SUCCESS|_(common_)?metadata|.*\.crc|Thumbs\.db|desktop\.ini"
    r"|(README|LICEN[CS]E)(\..*)?|dataset_(info|dict)\.json|state\.json",
    re.IGNORECASE | re.DOTALL,
)
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_HEAD = 2**16


class Format(NamedTuple):
    """The format of a file.

    Attributes:
        kind: "text", "jsonl", "json", "csv", "tsv", "parquet", "arrow", "npy", "npz" or "tokens".
        packing: "gz", "bz2", "xz" or "zst"; "" if the file is not compressed.
    """

    kind: str
    packing: str = ""


class Listing(NamedTuple):
    """The files of a folder in the order of their paths, and the names of those that are left out.

    Attributes:
        files: each file once, whatever links lead to it.
        ignored: hidden files and folders.
        repeated: further names of files, relative to the folder.
    """

    files: list[Path]
    ignored: list[str]
    repeated: list[str]


# -- folders ---------------------------------------------------------------------------------------------------------


def hidden(name: str) -> bool:
    """Return whether files and folders of this name are left out of every data set.

    >>> [hidden(name) for name in (".git", "__MACOSX", "_SUCCESS", "README.md", "a.txt", "_a.txt")]
    [True, True, True, True, False, False]
    """
    return _HIDDEN.fullmatch(name) is not None


def list_files(path: Path) -> Listing:
    """Return the file at a path, or all files of the folder and its subfolders.

    Links are followed. A file of several names counts once, by the first name that has a suffix, which may tell its
    format.

    Raises:
        DataError: the path does not exist, a folder cannot be read or contains itself, or an entry is a pipe, a device
            or a broken link, which is named.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise DataError(f"{path}: no such file or folder ({error.strerror})") from error
    except ValueError as error:
        raise DataError(f"{str(path)!r}: no such file or folder ({error})") from error
    if stat.S_ISREG(mode):
        return Listing([path], [], [])
    if not stat.S_ISDIR(mode):
        raise DataError(f"{path}: expected a file or a folder, got a pipe or device; save it to a file first")
    found: dict[tuple[int, int], list[Path]] = {}
    ignored: list[str] = []
    _walk(path, (), found, ignored)
    files, repeated = [], []
    for same in found.values():
        first, *others = sorted(same, key=lambda file: (not file.suffix, file.relative_to(path).as_posix()))
        files.append(first)
        repeated += [file.relative_to(path).as_posix() for file in others]
    files.sort(key=lambda file: file.relative_to(path).as_posix())
    if not files:
        left_out = f" but {', '.join(sorted(ignored)[:3])}" if ignored else ""
        raise DataError(f"{path}: expected files in the folder, got none{left_out}")
    return Listing(files, sorted(ignored), sorted(repeated))


def _walk(
    folder: Path, above: tuple[tuple[int, int], ...], found: dict[tuple[int, int], list[Path]], ignored: list[str]
) -> None:
    """Add the paths of each file by its identity, device and number."""
    try:
        status = folder.stat()
        identity = status.st_dev, status.st_ino
        if identity in above:
            raise DataError(f"{folder}: a link to a folder that contains it")
        with os.scandir(folder) as entries:
            for entry in entries:
                path = folder / entry.name
                if hidden(entry.name):
                    ignored.append(entry.name)
                elif entry.is_dir():
                    _walk(path, (*above, identity), found, ignored)
                elif entry.is_file():
                    status = path.stat()
                    # Some file systems number no files; there every path is another file.
                    number = status.st_ino or -1 - len(found)
                    found.setdefault((status.st_dev, number), []).append(path)
                else:
                    raise DataError(f"{path}: expected a file, got a pipe, a device or a broken link")
    except OSError as error:
        raise DataError(f"{error.filename or folder}: cannot be read: {error.strerror or error}") from error


# -- formats ---------------------------------------------------------------------------------------------------------


def sniff(file: Path, dtype: str | None = None) -> Format:
    """Return the format of a file, by its first bytes and its suffix.

    Args:
        file: a regular file.
        dtype: the type of raw numbers without a header, as in nanoGPT's token files.

    Raises:
        DataError: it cannot be read, or its format is not supported, which is named.
    """
    if dtype is not None:
        return Format("tokens")
    try:
        with file.open("rb") as stream:
            head = stream.read(512)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error
    packing = _by_magic(head, _PACKED)
    name = file.name.lower()
    packed_name = next((end for end in _PACKED_SUFFIXES if name.endswith(end)), "")
    if packed_name:
        if not packing and head:
            raise DataError(f"{file}: cannot be read: not compressed, as {packed_name} promises")
        name = name.removesuffix(packed_name)
    with opened(file, packing) as stream:
        head = stream.read(_HEAD)
    suffix = Path(name).suffix.removeprefix(".")
    suffix = _SUFFIXES.get(suffix, suffix)
    by_content = _by_magic(head, _KNOWN)
    if head.startswith(b"PK\x03\x04") and (suffix in ("npz", "npy") or head[30:].split(b"PK")[0].find(b".npy") >= 0):
        by_content = "npz"
    kind = by_content or (suffix if suffix in (*TABLES, "npy", "npz") else "text")
    if kind in ("parquet", "arrow", *ARRAYS):
        if packing:
            raise DataError(f"{file}: {kind} inside {packing}; decompress it first")
        if not by_content:
            raise DataError(f"{file}: {_unreadable(kind)}{'' if head else ': it is empty'}")
        return Format(kind)
    _refuse_binary(file, head, name)
    return Format(kind, packing)


def _by_magic(head: bytes, formats: Mapping[bytes, str]) -> str:
    """The format whose files begin as this one does, "" for none: a text may begin with PAR1 or BZh."""
    found = next((name for magic, name in formats.items() if head.startswith(magic)), "")
    return "" if found and _is_text(head) and not head.startswith(b"%PDF") else found


def _is_text(head: bytes) -> bool:
    """Whether the first bytes of a file are UTF-8 without control characters, as those of no binary format are."""
    try:
        return _CONTROL.search(codecs.getincrementaldecoder("utf-8")().decode(head)) is None
    except UnicodeDecodeError:
        return False


def _unreadable(kind: str) -> str:
    names = {"npy": "a readable .npy array", "npz": "a readable .npz file", "tokens": "a readable token file"}
    return f"not {names.get(kind, f'readable {kind}')}"


def _refuse_binary(file: Path, head: bytes, name: str) -> None:
    """Raise DataError if the first bytes are those of a binary format."""
    if what := _by_magic(head, _REFUSED):
        raise DataError(f"{file}: is {what}")
    if head[257:262] == b"ustar":
        raise DataError(f"{file}: is a tar archive; unpack it and name the folder")
    zeros = head.count(0)
    if zeros > len(head) / 100 or name.endswith(_RAW_SUFFIXES):
        even, odd = head[::2].count(0), head[1::2].count(0)
        if len(head) > 8 and min(even, odd) == 0 and zeros > len(head) / 4 and not name.endswith(_RAW_SUFFIXES):
            order = "UTF-16LE" if odd else "UTF-16BE"
            raise DataError(f"{file}: seems to be {order} text; convert it: iconv -f {order} -t UTF-8")
        raise DataError(f"{file}: binary, not text; if it holds token ids, name their type by --dtype, e.g. uint16")


def require_one_kind(path: Path, files: Sequence[Path], dtype: str | None = None) -> Format:
    """Return the format of all files; DataError names those that differ from the majority."""
    formats = [sniff(file, dtype) for file in files]
    kinds = [found.kind for found in formats]
    most = max(dict.fromkeys(kinds), key=kinds.count)
    odd = [(file, kind) for file, kind in zip(files, kinds, strict=True) if kind != most]
    if odd:
        shown = ", ".join(f"{file.name} ({kind})" for file, kind in odd[:3]) + (", ..." if len(odd) > 3 else "")
        raise DataError(
            f"{path}: expected files of one kind, got {', '.join(sorted(set(kinds)))}; the odd ones: {shown}"
        )
    return formats[0]


# -- bytes -----------------------------------------------------------------------------------------------------------


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content; DataError if it cannot be read."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


_BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError)


@contextmanager
def opened(file: Path, packing: str = "", advance: Callable[[int], None] | None = None) -> Iterator[BinaryIO]:
    """Open a file for reading, decompressed; read errors inside the block become DataErrors that name the file.

    Args:
        file: a file.
        packing: "gz", "bz2", "xz", "zst" or "".
        advance: called with each number of bytes read from the disk.
    """
    broken: tuple[type[Exception], ...] = _BROKEN
    try:
        with file.open("rb", buffering=0) as raw:
            stream = io.BufferedReader(cast("io.RawIOBase", _Counted(raw, advance) if advance else raw), 2**18)
            unpacked: Any = gzip.GzipFile(fileobj=stream) if packing == "gz" else stream
            start = _DECOMPRESSORS.get(packing)
            if packing == "zst":
                start, failure = _zstandard(file)
                broken = (*_BROKEN, failure)
            if start is not None:
                # The format of xz allows zeros between streams.
                unpacked = io.BufferedReader(_Streams(stream, start, b"\0" if packing == "xz" else b""), 2**16)
            with unpacked:
                yield unpacked
    except UnicodeDecodeError:
        raise
    except broken as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{file}: cannot be read: {reason or type(error).__name__}") from error


class _Counted(io.RawIOBase):
    """A raw stream that reports the number of bytes read."""

    def __init__(self, raw: Any, advance: Callable[[int], None]) -> None:
        self._raw, self._advance = raw, advance

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        got = int(self._raw.readinto(buffer))
        self._advance(got)
        return got


def _zstandard(file: Path) -> tuple[Any, type[Exception]]:
    """What makes a decompressor of a zstd frame, and its exception."""
    with suppress(ImportError):
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]  # Python 3.14

        return zstd.ZstdDecompressor, zstd.ZstdError
    try:
        import zstandard
    except ImportError:
        raise DataError(f"{file}: .zst needs zstandard; run: pip install zstandard") from None
    shared = zstandard.ZstdDecompressor()
    return (lambda: _Frame(shared.decompressobj())), zstandard.ZstdError


class _Frame:
    """zstandard's decompressor of a frame, with the interface of the standard library's."""

    needs_input = True

    def __init__(self, frame: Any) -> None:
        self._frame = frame

    def decompress(self, data: bytes, _: int) -> bytes:
        return bytes(self._frame.decompress(data))

    @property
    def eof(self) -> bool:
        return bool(self._frame.eof)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._frame.unused_data)


class _Streams(io.RawIOBase):
    """The content of compressed streams, one after another.

    EOFError if the last one is cut. What follows a stream and begins no other is an error of the decompressor;
    `bz2.open` and `lzma.open` take it for the end of the file, and the streams after it would be missing.

    Args:
        stream: the file.
        start: makes the decompressor of a stream.
        padding: the byte, if any, of which there may be more between streams.
    """

    def __init__(self, stream: BinaryIO, start: Callable[[], Any], padding: bytes) -> None:
        self._stream, self._start, self._padding = stream, start, padding
        self._current: Any = None
        self._input = b""
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            if self._current is None or self._current.needs_input:
                self._input = self._input or self._stream.read(2**16)
                if not self._input:
                    if self._current is not None:
                        raise EOFError("the compressed file ended before its end-of-stream marker")
                    return 0
            if self._current is None:
                self._input = self._input.lstrip(self._padding)
                if not self._input:
                    continue
                self._current = self._start()
            self._output, self._input = memoryview(self._current.decompress(self._input, 2**16)), b""
            if self._current.eof:
                self._input, self._current = self._current.unused_data, None
        size = min(len(buffer), len(self._output))
        buffer[:size], self._output = self._output[:size], self._output[size:]
        return size


_DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    "bz2": bz2.BZ2Decompressor,
    "xz": partial(lzma.LZMADecompressor, lzma.FORMAT_XZ),
}


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None] | None]:
    """Show a progress bar on a terminal for `total` > SHOWN bytes; yield the function that advances it, or None."""
    import multiprocessing

    if total < SHOWN or not sys.stderr.isatty() or multiprocessing.parent_process() is not None:
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield partial(bar.advance, task)


# -- text ------------------------------------------------------------------------------------------------------------


def lines(file: Path, packing: str = "", advance: Callable[[int], None] | None = None) -> Iterator[tuple[int, str]]:
    """Yield the lines of UTF-8 text with their ends, each with its byte position; a byte order mark is removed.

    A line of more than LONGEST bytes comes in parts that end before white space, or else before a character.

    Raises:
        DataError: the file cannot be read or is not UTF-8; names file and byte.
    """
    offset, rest = 0, b""
    try:
        with opened(file, packing, advance) as stream:
            while chunk := rest + stream.readline(LONGEST - len(rest)):
                rest = b""
                if len(chunk) == LONGEST and not chunk.endswith(b"\n"):
                    cut = _cut(chunk)
                    chunk, rest = chunk[:cut], chunk[cut:]
                text = chunk.decode("utf-8")
                yield offset, text.removeprefix("\ufeff") if offset == 0 else text
                offset += len(chunk)
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 at byte {offset + error.start}") from error


def _cut(chunk: bytes) -> int:
    """Where to cut a part of a line: before its last white space, or else before its last character."""
    space = max(chunk.rfind(mark) for mark in (b" ", b"\t", b"\r", b"\v", b"\f"))
    if space > 0:
        return space
    end = len(chunk) - 1
    while end > len(chunk) - 4 and 0x80 <= chunk[end] < 0xC0:
        end -= 1
    return end


def texts(
    file: Path, form: Format, column: str | None = None, advance: Callable[[int], None] | None = None
) -> Iterator[str]:
    """Yield the text of a file in pieces of at most about LONGEST: its lines, or the cells of a column of texts.

    Raises:
        DataError: the file cannot be read, or its column does not hold text.
    """
    if form.kind == "text":
        yield from (line for _, line in lines(file, form.packing, advance))
        return
    for cells in columns(file, form, column, advance=advance):
        if cells.is_numeric:
            raise DataError(f"{file}: expected text in column '{column or 'text'}', got {cells.values.dtype}")
        for text in cells.values.drop_nulls():
            yield from _pieces(text)


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > LONGEST:
        spaces = (text.rfind(mark, start + 1, start + LONGEST) for mark in " \n\t")
        end = max(spaces)
        end = end if end > start else start + LONGEST
        yield text[start:end]
        start = end
    yield text[start:] if start else text


# -- columns ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cells:
    """Some cells of a column, or some labels of an array.

    Attributes:
        values: scalars: whole numbers, fractions, booleans, or text; null where a cell is empty.
        typed: whether the format distinguishes numbers from text, which csv does not.
        missing: empty cells that are not among the values.
    """

    values: pl.Series
    typed: bool = True
    missing: int = 0

    @property
    def is_numeric(self) -> bool:
        """Whether the file stores the values as numbers or booleans."""
        import polars as pl

        return self.typed and (self.values.dtype.is_numeric() or self.values.dtype == pl.Boolean)


def columns(
    file: Path,
    form: Format,
    column: str | None = None,
    dtype: str | None = None,
    advance: Callable[[int], None] | None = None,
) -> Iterator[Cells]:
    """Yield the cells of one column of a table, or the labels of an array, in parts.

    Args:
        file: the file.
        form: what `sniff` returned.
        column: its name, or the path to a field inside its cells ("messages.content"); by default "text", and "y" of
            an .npz file.
        dtype: of a "tokens" file.
        advance: called with each number of bytes read.

    Raises:
        DataError: the file is damaged, has no such column, or has cells that are not scalars or lists of them.
    """
    kind = form.kind
    if kind in ARRAYS:
        for array in _arrays(file, kind, column or "y", dtype, advance):
            yield Cells(_series(array, file))
    elif kind in ("parquet", "arrow"):
        yield from _polars(file, kind, column or "text", advance)
    elif kind in ("csv", "tsv"):
        for batch in _batched(_csv(file, form, column or "text", advance)):
            yield Cells(_series(batch, file), typed=False)
    else:
        for batch in _batched(_json(file, form, column, advance)):
            yield Cells(_series(batch, file))


def _batched(values: Iterable[Any]) -> Iterator[list[Any]]:
    """Cells in lists of BATCH, or of about LONGEST characters."""
    batch: list[Any] = []
    size = 0
    for value in values:
        batch.append(value)
        size += len(value) if isinstance(value, str) else 0
        if len(batch) >= BATCH or size >= LONGEST:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _series(values: Any, file: Path) -> pl.Series:
    """A polars Series of scalars of one type; DataError if they are of several."""
    import polars as pl

    if isinstance(values, np.ndarray):
        return pl.Series(values.astype(values.dtype.newbyteorder("="), copy=False))
    types = {type(value) for value in values} - {type(None)}
    if types == {int, float}:
        types = {float}
    if len(types) > 1:
        raise DataError(
            f"{file}: the column holds both {' and '.join(sorted((_NAMES[t] for t in types), reverse=True))}; "
            "write one type, or text, and count it by --labels"
        )
    dtype = {str: pl.String, int: pl.Int64, float: pl.Float64, bool: pl.Boolean}[types.pop() if types else str]
    try:
        return pl.Series(values, dtype=dtype)
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can hold
        fixed = [v and v.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for v in values]
        return pl.Series(fixed, dtype=dtype)
    except (OverflowError, TypeError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{file}: holds a whole number beyond 64 bits") from error


_NAMES = {str: "text", int: "whole numbers", float: "fractions", bool: "true and false"}


def _no_column(file: Path, column: str, known: Iterable[str], where: str = "no column") -> DataError:
    return DataError(f"{file}: {where} '{column}' (it has: {', '.join(known)}); name one by --column")


# -- JSON


def _json(file: Path, form: Format, column: str | None, advance: Callable[[int], None] | None) -> Iterator[Any]:
    """The scalars of a column of JSON records, None for null."""
    for where, record in _json_records(file, form, advance):
        name = column or "text"
        if isinstance(record, dict):
            value, path = _field(record, name, file, where)
            yield from _scalars(value, path, file, where)
        elif column is None and not isinstance(record, list):
            yield from _scalars(record, "", file, where)
        else:
            raise DataError(
                f"{file}: {where} has no field '{name}' (it is a {_JSON_NAMES[type(record)]}); "
                "expected an object per record"
            )


def _json_records(file: Path, form: Format, advance: Callable[[int], None] | None) -> Iterator[tuple[str, Any]]:
    """The records of JSON lines, of an array, or the one object of a file, each with its place for messages."""
    number, text = 0, ""
    try:
        with opened(file, form.packing, advance) as stream:
            if form.kind == "json":
                first = _first_record(stream)
                if first is None:
                    stream.seek(0)
                    content = stream.read(LARGEST_JSON + 1)
                    if len(content) > LARGEST_JSON:
                        raise DataError(
                            f"{file}: one JSON text of more than {LARGEST_JSON // 2**20} MB; convert it to JSON lines"
                        )
                    text = content.decode("utf-8-sig")
                    found = json.loads(text) if text.strip() else []
                    for number, record in enumerate(found if isinstance(found, list) else [found], 1):
                        yield f"record {number}", record
                    return
                stream.seek(0)
            while line := stream.readline(LONGEST_ROW + 1):
                number += 1
                if len(line) > LONGEST_ROW:
                    raise DataError(
                        f"{file}: line {number} exceeds {LONGEST_ROW // 2**20} MB; expected one JSON object a line"
                    )
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if text.strip():
                    yield f"line {number}", json.loads(text)
    except UnicodeDecodeError as error:
        place = f"line {number} is not UTF-8: {error.reason} at its" if number else f"not UTF-8: {error.reason} at"
        raise DataError(f"{file}: {place} byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else one_line(error)
        place = f"line {number} is" if form.kind == "jsonl" or number else ""
        raise DataError(f"{file}: {place or ''} not JSON: {reason}".replace(":  ", ": ")) from error


def _first_record(stream: BinaryIO) -> Any:
    """The JSON value on the first line of JSON lines; None if the file is one JSON text."""
    filled = (line for line in iter(partial(stream.readline, LONGEST_ROW), b"") if line.strip())
    try:
        lines = [*islice(filled, 2)]
        value = json.loads(lines[0].decode("utf-8-sig")) if len(lines) == 2 else None
    except (ValueError, RecursionError):
        return None
    return value


_JSON_NAMES: dict[type, str] = {
    list: "list", str: "string", int: "number", float: "number", bool: "boolean", type(None): "null", dict: "object",
}  # fmt: skip


def _field(record: Any, path: str, file: Path, where: str) -> tuple[Any, str]:
    """The value at a dotted path, reaching into the objects of lists; DataError lists the fields."""
    if path in record:
        return record[path], path
    name, _, rest = path.partition(".")
    if name not in record or not rest:
        raise _no_column(file, path, record, f"{where} has no field")
    value = record[name]
    if isinstance(value, list):
        return [_field(part, rest, file, where)[0] for part in value if isinstance(part, dict)], path
    if isinstance(value, dict):
        return _field(value, rest, file, where)[0], path
    if value is None:
        return None, path
    raise DataError(f"{file}: {where}: {name} is a {_JSON_NAMES[type(value)]}, which has no field '{rest}'")


def _scalars(value: Any, path: str, file: Path, where: str) -> Iterator[Any]:
    if isinstance(value, list):
        for part in value:
            yield from _scalars(part, path, file, where)
    elif isinstance(value, dict):
        raise DataError(f"{file}: {where}: {_table_of(path, list(value))}")
    elif isinstance(value, float) and not math.isfinite(value):
        yield None
    else:
        yield value


def _table_of(path: str, fields: list[str]) -> str:
    choose = f"; choose one, e.g. --column {path}.{fields[-1]}" if fields and path else ""
    return f"{path or 'it'} holds tables with the fields {', '.join(fields) or '(none)'}{choose}"


# -- csv


def _csv(file: Path, form: Format, column: str, advance: Callable[[int], None] | None) -> Iterator[str | None]:
    """The cells of a column of a csv or tsv file; None where a cell is empty or its row too short."""
    limit = csv.field_size_limit(LONGEST_ROW)
    number = 0
    try:
        with opened(file, form.packing, advance) as binary:
            stream = io.TextIOWrapper(binary, "utf-8-sig", newline="")
            first = stream.readline(LONGEST_ROW)
            separator = _separator(first, "\t" if form.kind == "tsv" else ",", column)
            rows = _rows(chain([first] if first else [], stream), separator)
            number, names = next(rows, (0, []))
            header = [name.strip() for name in names]
            if header.count(column) != 1:
                if column in header:
                    raise DataError(f"{file}: has {header.count(column)} columns '{column}'")
                raise _no_column(file, column, header)
            index, width = header.index(column), len(header)
            for number, row in rows:
                if len(row) > width and any(cell.strip() for cell in row[width:]):
                    raise DataError(
                        f"{file}: line {number} has {len(row)} cells, the header {width}; "
                        f"quote cells that contain '{separator}'"
                    )
                if row:
                    yield (row[index] if index < len(row) and row[index].strip() else None)
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 near line {number + 1}: {error.reason}") from error
    except csv.Error as error:
        reason = one_line(error)
        for words, meaning in _CSV_ERRORS.items():
            if words in reason:
                reason = meaning
        raise DataError(f"{file}: not readable csv after line {number}: {reason}") from error
    finally:
        csv.field_size_limit(limit)


_CSV_ERRORS = {
    "field limit": f"a cell of more than {LONGEST_ROW // 2**20} MB",
    "end of data": 'a quote mark (") opens a cell and none closes it; double those that are text',
    "expected after": "text follows the quote mark that closes a cell; double those that are text",
}


def _rows(lines: Iterator[str], separator: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of a table, each with the number of its last line.

    Between tabs, many files do not quote cells, and a quote mark is text. There it quotes a cell only if it is closed
    as csv has it, and not if a line with as many cells as the header, and no quote mark, comes first.
    """
    if separator != "\t":
        reader = csv.reader(lines, delimiter=separator, strict=True)
        yield from ((reader.line_num, row) for row in reader)
        return
    ahead: deque[str] = deque()

    def line(index: int) -> str:
        """A line ahead; "" after the last one."""
        while len(ahead) <= index:
            ahead.append(next(lines, ""))
        return ahead[index]

    def inside(index: int) -> bool:
        """Whether a line ahead can belong to the cell that the first one opens."""
        return index == 0 or (line(index) != "" and ('"' in line(index) or line(index).count("\t") != width - 1))

    number = width = 0
    while line(0):
        text = line(0).rstrip("\r\n")
        row, used = text.split("\t") if text else [], 1
        if '"' in text:
            reader = csv.reader(map(line, takewhile(inside, count())), delimiter="\t", strict=True)
            with suppress(csv.Error):
                row, used = next(reader), reader.line_num
        if max(map(len, row), default=0) > LONGEST_ROW:
            raise csv.Error("field limit")
        for _ in range(used):
            ahead.popleft()
        number, width = number + used, width or len(row)
        yield number, row


def _separator(header: str, usual: str, column: str) -> str:
    """The usual separator, or the one that the header uses."""
    for separator in (usual, ",", ";", "\t", "|"):
        names = [name.strip() for name in next(csv.reader([header], delimiter=separator), [])]
        if column in names:
            return separator
    return next((s for s in (usual, ";", "\t", "|") if s in header), usual)


# -- parquet and arrow


def _polars(file: Path, kind: str, path: str, advance: Callable[[int], None] | None) -> Iterator[Cells]:
    import polars as pl

    path_alone = glob.escape(str(file))  # polars expands * ? [ in a path
    try:
        if kind == "parquet":
            frame = pl.scan_parquet(path_alone)
        else:
            with file.open("rb") as stream:
                as_file = stream.read(6) == b"ARROW1"
            frame = pl.scan_ipc(path_alone) if as_file else pl.read_ipc_stream(file).lazy()
        schema = frame.collect_schema()
        name = path if path in schema else path.partition(".")[0]
        if name not in schema:
            raise _no_column(file, path, schema.names())
        rest = path.removeprefix(name).removeprefix(".")
        size, start, rows = file.stat().st_size, 0, BATCH * 4
        total = frame.select(pl.len()).collect().item() if advance else 0
        while len(part := frame.select(name).slice(start, rows).collect()):
            yield _reach(part[name], name, rest, file)
            start += len(part)
            if advance:
                advance(size * len(part) // total)
    except pl.exceptions.PanicException as error:  # derives from BaseException
        raise DataError(f"{file}: {_unreadable(kind)}: {one_line(error)}") from error
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{file}: {_unreadable(kind)}: {one_line(error)}") from error


def _reach(values: pl.Series, name: str, rest: str, file: Path) -> Cells:
    """The scalars in a column's cells: lists are flattened, fields of structs are selected by the rest of the path."""
    import polars as pl

    missing = 0
    while True:
        if isinstance(values.dtype, pl.Array):
            values = values.arr.to_list()
        if isinstance(values.dtype, pl.List):
            missing += values.null_count()
            values = values.drop_nulls()
            values = values.filter(values.list.len() > 0).explode()
        elif isinstance(values.dtype, pl.Struct):
            fields = [field.name for field in values.dtype.fields]
            field = rest if rest in fields else rest.partition(".")[0]
            if not rest:
                raise DataError(f"{file}: {_table_of(name, fields)}")
            if field not in fields:
                raise _no_column(file, field, [f"{name}.{f}" for f in fields], f"{name} has no field")
            missing += values.null_count()
            values = values.drop_nulls().struct.field(field)
            name, rest = f"{name}.{field}", rest.removeprefix(field).removeprefix(".")
        else:
            break
    if rest:
        raise DataError(f"{file}: {name} is {values.dtype}, which has no field '{rest}'")
    if values.dtype == pl.Binary:
        try:
            values = values.cast(pl.String)
        except pl.exceptions.PolarsError:
            raise DataError(f"{file}: column '{name}' holds bytes that are not UTF-8 text") from None
    elif values.dtype == pl.Null:
        values = values.cast(pl.String)
    elif values.dtype == pl.Decimal:
        values = values.cast(pl.Float64 if getattr(values.dtype, "scale", 0) else pl.Int64)
    elif values.dtype.is_temporal() or values.dtype in (pl.Object, pl.Unknown):
        raise DataError(f"{file}: column '{name}': expected text or whole numbers, got {values.dtype}")
    return Cells(values, missing=missing)


# -- arrays


def _arrays(
    file: Path, kind: str, name: str, dtype: str | None, advance: Callable[[int], None] | None
) -> Iterator[NDArray[Any]]:
    """The labels of an array file, flat, in parts."""
    try:
        labels = _tokens(file, dtype) if kind == "tokens" else _numpy(file, kind, name)
    except BROKEN_ARRAY as error:
        raise DataError(f"{file}: {_unreadable(kind)}: {one_line(error)}") from error
    if labels.dtype.kind not in "iubU":
        raise DataError(f"{file}: expected integer labels, got {labels.dtype}")
    flat = labels.reshape(-1)
    for start in range(0, len(flat), ARRAY):
        part = flat[start : start + ARRAY]
        yield np.asarray(part)
        if advance:
            advance(part.nbytes)


# Exceptions of numpy and zipfile on damaged files; numpy parses the header of an array as Python.
BROKEN_ARRAY = (
    *(OSError, EOFError, ValueError, TypeError, KeyError, SyntaxError, TokenError, zipfile.BadZipFile, zlib.error),
    *(NotImplementedError, MemoryError, OverflowError, RuntimeError),  # RuntimeError: an encrypted archive
)


def _numpy(file: Path, kind: str, name: str) -> NDArray[Any]:
    if kind == "npy":
        return cast("NDArray[Any]", np.load(file, mmap_mode="r", allow_pickle=False))
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
        if name not in archive:
            raise _no_column(file, name, archive.files, "no array")
        return cast("NDArray[Any]", archive[name])


def _tokens(file: Path, dtype: str | None) -> NDArray[Any]:
    if dtype not in DTYPES:
        raise SpecError(f"--dtype: expected {', '.join(DTYPES)}, got '{dtype}'")
    kind, size = np.dtype(dtype).newbyteorder("<"), file.stat().st_size
    with file.open("rb") as stream:
        head = np.frombuffer(stream.read(4).ljust(4, b"\0"), "<i4")
    skip = 1024 if head[0] in _LLMC and size >= 1024 else 0
    if (size - skip) % kind.itemsize:
        raise DataError(f"{file}: {size} bytes are no whole number of {dtype} values; is --dtype right?")
    if size == skip:
        return np.empty(0, kind)
    return np.memmap(file, kind, mode="r", offset=skip)
