"""Penn Treebank at the word level, and TinyPTB: the paper's small language data (appendix A.1).

N sequences of L = 35 words, C types. The paper prints 9 920 types; its normalisation gives 9 922 on the public files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from heavytail.data import REGISTRY, Data, Nominal, fetch
from heavytail.data.text.corpus import Text, tokenised_data
from heavytail.data.text.vocabulary import TextSettings, basic_english, build_vocabulary
from heavytail.errors import SpecError

TOKENS, TYPES = {"train": 924_412, "valid": 73_339, "test": 82_114}, 9_922  # after normalisation


@dataclass(frozen=True)
class _Treebank(TextSettings):
    vocabulary: Literal["full", "seen"] = "full"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokenizer != "word" and self.vocabulary != "full":
            raise SpecError(f"data.vocabulary: expected full with data.tokenizer {self.tokenizer}, got seen")

    def _load(self, source: str, parts: tuple[str, str], data_dir: Path) -> Data:
        if self.tokenizer != "word":
            learn, first, second = (Text((fetch.locate(_path(part), data_dir),)) for part in ("train", *parts))
            return tokenised_data(self, source, first, second, data_dir, learn)
        needed = parts if self.vocabulary == "seen" else ("train", *parts)
        words = {part: _words(part, data_dir) for part in dict.fromkeys(needed)}
        train, test = (words[part][: self.max_tokens] for part in parts)
        known = train if self.vocabulary == "seen" else words["train"]
        return self._to_data(source, train, test, build_vocabulary(known, self.max_vocab))


@REGISTRY.register("ptb")
@dataclass(frozen=True)
class PTB(_Treebank):
    """Penn Treebank: trained on its training split, tested on its validation split.

    Attributes:
        vocabulary: "full" has the types of the whole training split (C = 9 922); "seen" only those of the
            training text, which at a small `max_tokens` leaves out classes that never occur.
        length, max_tokens, max_vocab, tokenizer: see TextSettings.
    """

    title: ClassVar[str] = "PTB"
    small: ClassVar[dict[str, Any]] = {"max_tokens": 2_000}

    def load(self, *, seed: int, data_dir: Path) -> Data:
        """Return the data; deterministic. DataError if the files are missing or wrong."""
        return self._load("Penn Treebank", ("train", "valid"), data_dir)

    def nominal(self) -> Nominal:
        """Return the sizes of the data set, without loading it; with "seen" words, an upper bound on the classes."""
        return self._nominal(TOKENS["train"], TOKENS["valid"], TYPES)


@REGISTRY.register("tiny-ptb")
@dataclass(frozen=True)
class TinyPTB(_Treebank):
    """TinyPTB: trained on the validation split of Penn Treebank, tested on its test split.

    Small enough for full-batch training. The classes are those of PTB; some never occur.

    Attributes:
        vocabulary, length, max_tokens, max_vocab, tokenizer: as in PTB.
    """

    title: ClassVar[str] = "TinyPTB"
    small: ClassVar[dict[str, Any]] = {"max_tokens": 2_000, "vocabulary": "seen"}

    def load(self, *, seed: int, data_dir: Path) -> Data:
        """Return the data; deterministic. DataError if the files are missing or wrong."""
        return self._load("TinyPTB", ("valid", "test"), data_dir)

    def nominal(self) -> Nominal:
        """Return the sizes of the data set, without loading it; with "seen" words, an upper bound on the classes."""
        return self._nominal(TOKENS["valid"], TOKENS["test"], TYPES)


def _words(part: str, data_dir: Path) -> list[str]:
    """Return the words of a split of the public files."""
    return basic_english(fetch.read(_path(part), data_dir).decode("utf-8"))


def _path(part: str) -> str:
    return f"ptb/ptb.{part}.txt"
