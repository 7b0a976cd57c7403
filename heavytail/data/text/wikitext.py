"""WikiText-2 and WikiText-103: articles of Wikipedia (figures 1, 9 and 10).

N sequences of L tokens, C classes. The files are the tokenised ones, in which rare words are replaced by `<unk>`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from heavytail.data import REGISTRY, Data, Nominal, fetch
from heavytail.data.text.corpus import Text, tokenised_data
from heavytail.data.text.vocabulary import TextSettings


def _load(settings: TextSettings, source: str, train: str, test: str, data_dir: Path) -> Data:
    first, second = (Text((fetch.locate(path, data_dir),)) for path in (train, test))
    return tokenised_data(settings, source, first, second, data_dir, known=first)


@REGISTRY.register("wikitext-2")
@dataclass(frozen=True)
class WikiText2(TextSettings):
    """WikiText-2, two million words: trained on its training split, tested on its validation split.

    Attributes:
        length, max_tokens, max_vocab, tokenizer: see TextSettings.
    """

    title: ClassVar[str] = "WikiText-2"
    small: ClassVar[dict[str, Any]] = {"max_tokens": 2_000}

    def load(self, *, seed: int, data_dir: Path) -> Data:
        """Return the data; deterministic. DataError if the files are missing or wrong."""
        return _load(self, "WikiText-2", "wikitext-2/train.txt", "wikitext-2/valid.txt", data_dir)

    def nominal(self) -> Nominal:
        """Return the sizes of the data set, without loading it: exact for words, fewer tokens than pieces."""
        return self._nominal(2_049_990, 214_417, 28_782)


@REGISTRY.register("wikitext-103")
@dataclass(frozen=True)
class WikiText103(TextSettings):
    """WikiText-103, a hundred million words, as GPT2-Small is trained on it: 50 608 BPE pieces, sequences of 1 024.

    Attributes:
        length, max_tokens, max_vocab, tokenizer: see TextSettings.
    """

    length: int = 1024
    max_vocab: int | None = 50_608
    tokenizer: Literal["word", "bpe", "unigram"] = "bpe"

    title: ClassVar[str] = "WikiText-103"
    small: ClassVar[dict[str, Any]] = {"max_tokens": 2_000, "max_vocab": 300, "length": 32}

    def load(self, *, seed: int, data_dir: Path) -> Data:
        """Return the data; deterministic. DataError if the files are missing or wrong."""
        return _load(self, "WikiText-103", "wikitext-103/train.txt", "wikitext-103/valid.txt", data_dir)

    def nominal(self) -> Nominal:
        """Return approximate sizes, without loading: 1.15 pieces for each of 103 and 0.21 million words."""
        return self._nominal(118_000_000, 250_000, 267_735)
