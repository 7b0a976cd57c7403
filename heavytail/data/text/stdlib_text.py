"""The sources of Python's standard library: language-like data without a download.

N sequences of L words, C types. Source code under `basic_english` follows Zipf's law about as closely as PTB does: the
slope of log frequency on log rank over ranks 10..1 000 is near -1.1. The text differs between Python versions, so the
version is a setting.
"""

from __future__ import annotations

import platform
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from heavytail.data import REGISTRY, Data
from heavytail.data.text.corpus import Text, cache_folder, tokenise
from heavytail.data.text.vocabulary import TextSettings, basic_english, build_vocabulary
from heavytail.errors import DataError

_TEST_SHARE = 10  # one word in ten
_TOKEN_BYTES = 8  # bytes of text read per requested token of a learned tokenizer; tokens are half as long

# The text consists of the top-level modules and of these packages, which are the same in every installation of a Python
# version. Packages that distributions split off or patch (tkinter, venv), tables (encodings) and tests are left out.
_PACKAGES = (
    *("asyncio", "collections", "concurrent", "ctypes", "email", "html", "http", "importlib", "json", "logging"),
    *("multiprocessing", "re", "sqlite3", "tomllib", "unittest", "urllib", "wsgiref", "xml", "xmlrpc", "zoneinfo"),
)


@REGISTRY.register("stdlib-text")
@dataclass(frozen=True)
class StdlibText(TextSettings):
    """The sources of the standard library: the first nine tenths for training, the rest for testing.

    Attributes:
        max_tokens: words in both splits together; None takes all of about 1.2 million.
        max_vocab: as in TextSettings. With the defaults `<unk>` is about 4 % of the words, half as many as the most
            frequent word.
        python: the Python version of the text, for example "3.12.4"; "" is the running one.
        length, tokenizer: see TextSettings.
    """

    max_tokens: int | None = 50_000
    max_vocab: int | None = 2_000
    python: str = ""

    title: ClassVar[str] = "Python's standard library"
    small: ClassVar[dict[str, Any]] = {"max_tokens": 2_000}

    def pinned(self) -> StdlibText:
        """Return the recipe with the running version named, so that a run's key depends on the text."""
        return replace(self, python=self.python or platform.python_version())

    def load(self, *, seed: int, data_dir: Path) -> Data:
        """Return the data; deterministic. DataError if another Python version is running."""
        running = platform.python_version()
        if self.python not in ("", running):
            raise DataError(f"data.python: expected the running Python {running}, got {self.python}")
        source, library = f"standard library of Python {running}", Path(sysconfig.get_path("stdlib"))
        if self.tokenizer != "word":
            stop = None if self.max_tokens is None else _TOKEN_BYTES * self.max_tokens
            text = Text(tuple(library / path for path in _paths(library)), stop=stop)
            first, second = text.split(1 - 1 / _TEST_SHARE)
            cache = cache_folder(data_dir)
            tokenizer, (train_tokens, test_tokens) = tokenise(
                first, [first, second], self.tokenizer, self.max_vocab, cache
            )
            if self.max_tokens is not None:
                test_tokens = test_tokens[: self.max_tokens // _TEST_SHARE]
                train_tokens = train_tokens[: self.max_tokens - len(test_tokens)]
            return self._cut(source, train_tokens, test_tokens, tokenizer.size)
        words = list(islice(_words(library), self.max_tokens))
        cut = len(words) - len(words) // _TEST_SHARE
        train, test = words[:cut], words[cut:]
        return self._to_data(source, train, test, build_vocabulary(train, self.max_vocab))


def _words(library: Path) -> Iterator[str]:
    """Yield the words of the library's files, opening each only when it is reached."""
    for path in _paths(library):
        yield from basic_english((library / path).read_text(encoding="utf-8"))


def _paths(library: Path) -> list[str]:
    """The library's files in the order of their paths."""
    paths = sorted(path.relative_to(library).as_posix() for path in _files(library))
    if not paths:
        raise DataError(f"stdlib-text: no Python sources in {library}; this Python keeps its library elsewhere")
    return paths


def _files(library: Path) -> Iterator[Path]:
    for path in library.glob("*.py"):  # a folder may also hold site hooks and build settings, which differ
        if path.stem in sys.stdlib_module_names and not path.stem.startswith("_"):
            yield path
    for package in _PACKAGES:
        for path in (library / package).rglob("*.py"):
            if not {"test", "tests"} & set(path.relative_to(library).parts):
                yield path
