"""Corpora: text files of any size, tokenised once and cached as memory-mapped arrays.

A text is read line by line, so that memory is bounded by a batch of lines. Learned tokenizers and the class numbers of
whole files are cached under the digest of their inputs. Numbers are stored as int64, torch's index type, so that a
memory map needs no copy.

T tokens.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from heavytail import system
from heavytail.data import Data, readers
from heavytail.data.text import tokenizer as tokenizers
from heavytail.data.text.tokenizer import Kind, Tokenizer
from heavytail.data.text.vocabulary import TextSettings
from heavytail.errors import DataError, StoreError
from heavytail.files import first_writer
from heavytail.locks import locked

FORMAT = 1  # part of every name: raise it when the tokenisation of a text changes
PLAIN = readers.Format("text")
BATCH = 2**20  # bytes of text tokenised at a time: four times as many take 100 MB more, and no less time


@dataclass(frozen=True)
class Text:
    """Files read one after the other, or the lines that begin between two byte positions of them.

    Attributes:
        paths: the files, UTF-8.
        start, stop: byte positions, counted over all files.
    """

    paths: tuple[Path, ...]
    start: int = 0
    stop: int | None = None

    def split(self, share: float) -> tuple[Text, Text]:
        """Return the lines that begin in the first `share` of the bytes, and the others."""
        cut = self.start + int(self.size * share)
        return replace(self, stop=cut), replace(self, start=cut)

    @cached_property
    def size(self) -> int:
        """Bytes of text between the two positions."""
        try:
            end = sum(self._sizes)
        except OSError as error:
            raise DataError(f"cannot read {error.filename}: {error.strerror}") from error
        return (end if self.stop is None else min(end, self.stop)) - self.start

    @cached_property
    def digest(self) -> str:
        """Sha256 of the files' contents and of the positions."""
        digest = hashlib.sha256(f"{self.start}:{self.stop}".encode())
        for path, _ in zip(self.paths, self._states, strict=True):  # the states before the files are read
            try:
                with path.open("rb") as stream:
                    digest.update(hashlib.file_digest(stream, "sha256").digest())
            except OSError as error:
                raise DataError(f"cannot read {path}: {error.strerror}") from error
            if (form := readers.sniff(path)) != PLAIN:  # the same bytes in another format are another text
                digest.update(":".join(form).encode())
        return digest.hexdigest()

    def lines(self) -> Iterator[str]:
        """Yield the lines, each with its end, or the cells of column "text" of a table; long ones in parts.

        Raises:
            DataError: a file cannot be read, is not UTF-8 or has changed since its digest; names file and byte.
        """
        states = self._states
        for position, line in self._positions():
            if self.stop is not None and position >= self.stop:
                break
            if position >= self.start:
                yield line
        for path, state in zip(self.paths, states, strict=True):
            if _state(path) != state:
                raise DataError(f"{path}: has changed while it was read; run again when it is complete")

    @cached_property
    def _states(self) -> list[tuple[int, ...]]:
        """What differs between two versions of each file: size, time and inode; a link or a mode is no version."""
        return [_state(path) for path in self.paths]

    def _positions(self) -> Iterator[tuple[int, str]]:
        """All lines, each with its byte position over all files."""
        begin = 0
        for path, size in zip(self.paths, self._sizes, strict=True):
            for offset, line in _pieces(path):
                yield begin + offset, line
            begin += size

    @cached_property
    def _sizes(self) -> list[int]:
        """Bytes of text in each file: of the content if the file is compressed or a table."""
        return [
            path.stat().st_size
            if readers.sniff(path) == PLAIN
            else sum(len(piece.encode()) for _, piece in _pieces(path))
            for path in self.paths
        ]


def _state(path: Path) -> tuple[int, ...]:
    try:
        about = path.stat()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    return about.st_size, about.st_mtime_ns, about.st_ino


def _pieces(path: Path) -> Iterator[tuple[int, str]]:
    """Lines or cells, each with its byte position in the text of the file."""
    form = readers.sniff(path)
    if form.kind == "text":
        yield from readers.lines(path, form.packing)
        return
    if form.kind in readers.ARRAYS:
        raise DataError(f"{path}: expected text, got a .{form.kind} array; use data=arrays for features and labels")
    offset = 0
    for text in readers.texts(path, form):
        yield offset, text
        offset += len(text.encode())


def tokenise(
    known: Text, texts: Sequence[Text], kind: Kind, size: int | None, cache: Path
) -> tuple[Tokenizer, list[torch.Tensor]]:
    """Return a tokenizer learned from a text, and the class numbers [T] int64 of several.

    Results in `cache` are reused after their checksums are verified.

    Args:
        known: the text to learn the tokenizer from.
        texts: the texts to tokenise.
        kind, size: of the tokenizer, as `learn` takes them.
        cache: folder of tokenizers and tokens, created if needed.

    Raises:
        DataError: a text is not UTF-8 or empty, or the folder cannot be written.
    """
    name = hashlib.sha256(f"{FORMAT}/{kind}/{size}/{known.digest}".encode()).hexdigest()[:20]
    folder = cache / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stored = folder / "tokenizer.json"
        # One process at a time fills a folder: what another one has half done would look damaged.
        with locked(folder / ".lock") if os.access(folder, os.W_OK) else nullcontext():
            content = _stored_tokenizer(stored)
            if content is None:
                learned = tokenizers.learn(kind, _shown(known, f"learning {kind} tokenizer"), size)
                content = learned.to_json().encode()
                with first_writer(stored) as stream:
                    stream.write(content)
                content = stored.read_bytes()  # written by the first process, where there are no locks
                with first_writer(stored.with_suffix(".sha256")) as stream:
                    stream.write(hashlib.sha256(content).hexdigest().encode())
            tokenizer, digest = tokenizers.load(stored), hashlib.sha256(content).hexdigest()
            return tokenizer, [_tokens(text, tokenizer, digest, folder / text.digest[:20]) for text in texts]
    except OSError as error:
        raise DataError(f"cannot write {folder}: {error.strerror or error}") from error
    except StoreError as error:  # of the lock
        raise DataError(str(error)) from error


def _stored_tokenizer(stored: Path) -> bytes | None:
    """The stored tokenizer; None if it is missing, or was deleted because it does not have its checksum."""
    note = stored.with_suffix(".sha256")
    if not stored.exists():
        note.unlink(missing_ok=True)
        return None
    content = stored.read_bytes()
    try:
        right = not note.exists() or note.read_text(encoding="utf-8") == hashlib.sha256(content).hexdigest()
        tokenizers.load(stored)
    except (DataError, UnicodeDecodeError):
        right = False
    if right:
        return content
    note.unlink(missing_ok=True)
    stored.unlink()
    return None


def tokenised_data(settings: TextSettings, source: str, train: Text, test: Text, data_dir: Path, known: Text) -> Data:
    """Return the data set of two texts.

    Args:
        settings: tokenizer, its size, length of sequences, number of tokens.
        source: the name of the text in `Data.info`.
        train, test: the texts.
        data_dir: the data folder; see `cache_folder`.
        known: the text that the tokenizer is learned from.
    """
    cache = cache_folder(data_dir)
    tokenizer, streams = tokenise(known, [train, test], settings.tokenizer, settings.max_vocab, cache)
    first, second = (stream[: settings.max_tokens] for stream in streams)
    return settings._cut(source, first, second, tokenizer.size)


def cache_folder(data_dir: Path) -> Path:
    """Return the folder of tokenised texts: in the data folder or, if that is read-only, in the user's cache folder."""
    place = data_dir / "tokenised"  # which may be another user's
    while not place.exists() and place != place.parent:
        place = place.parent
    if os.access(place, os.W_OK):
        return data_dir / "tokenised"
    return user_cache()


def user_cache() -> Path:
    """Return the folder of tokenised texts in the user's cache folder."""
    return system.user_cache() / "tokenised"


def _tokens(text: Text, tokenizer: Tokenizer, digest: str, stem: Path) -> torch.Tensor:
    """The class numbers of a text, from `stem`.tokens if it is valid and of the tokenizer with this digest."""
    data, note = stem.with_suffix(".tokens"), stem.with_suffix(".json")
    stored = _verified(data, note, digest)
    if stored is None:
        data.unlink(missing_ok=True)
        note.unlink(missing_ok=True)
        written = hashlib.sha256()
        with first_writer(data) as stream:
            for batch in _batches(_shown(text, "tokenising")):
                numbers = tokenizer.encode(batch).astype("<i8").tobytes()
                written.update(numbers)
                stream.write(numbers)
        with first_writer(note) as stream:
            stream.write(json.dumps({"sha256": written.hexdigest(), "tokenizer": digest}).encode())
        stored = _verified(data, note, digest)
    if stored is None:
        raise DataError(f"{data}: damaged while it was written; is the disk full or failing?")
    return stored


def _verified(data: Path, note: Path, tokenizer: str) -> torch.Tensor | None:
    """The stored class numbers, memory-mapped; None if missing, unfinished, damaged or of another tokenizer.

    Notes of earlier versions do not name the tokenizer. They are accepted while the tokenizer has no checksum file,
    which is written when it is learned again.
    """
    if not (data.exists() and note.exists()):
        return None
    try:
        entry = json.loads(note.read_bytes())
        named = entry.get("tokenizer")
        expected = entry["sha256"]
    except (ValueError, KeyError, AttributeError, RecursionError):
        return None
    if named != tokenizer and (named is not None or (note.parent / "tokenizer.sha256").exists()):
        return None
    with data.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != expected:
            return None
    size = data.stat().st_size
    if size % 8:
        return None
    if size == 0:  # an empty file cannot be mapped
        return torch.empty(0, dtype=torch.int64)
    return torch.from_numpy(np.memmap(data, "<i8", mode="c"))  # "c": torch requires writable memory


def _batches(lines: Iterable[str]) -> Iterator[list[str]]:
    """Lines in lists of about BATCH characters."""
    batch, size = [], 0
    for line in lines:
        batch.append(line)
        size += len(line)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _shown(text: Text, what: str) -> Iterator[str]:
    """The lines of a text, with a progress bar on a terminal if it is large."""
    with readers.progress(f"{what}: {text.paths[0].name}", text.size) as advance:
        for line in text.lines():
            if advance:
                advance(len(line))
            yield line
