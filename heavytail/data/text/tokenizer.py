"""Tokenizers: how a stream of text becomes class numbers 0..C-1 (appendix A.1 and figure 9).

"word" splits by `basic_english`; "bpe" and "unigram" learn C pieces from the text itself. The learned ones work on
bytes, so that no character is unknown and decoding gives the text back; the `<unk>` that the public word-level files
contain stays one token, and takes the space before it along.

T tokens, C classes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from heavytail.data.text.vocabulary import UNKNOWN, basic_english, vocabulary_of
from heavytail.errors import DataError

Kind: TypeAlias = Literal["word", "bpe", "unigram"]
LEARNED_SIZE = 4_000  # classes of a learned tokenizer where none are asked for: those of figure 9


class Tokenizer(Protocol):
    """Text to class numbers and back."""

    @property
    def size(self) -> int:
        """C."""

    def encode(self, lines: Sequence[str]) -> NDArray[np.int64]:
        """Return the class numbers [T] of lines of text, one line after the other."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of class numbers [T]."""

    def to_json(self) -> str:
        """Return the text that `load` reads."""


class WordTokenizer:
    """Words under `basic_english`; a word outside the vocabulary is `<unk>`, number 0.

    >>> tokenizer = WordTokenizer({"<unk>": 0, "the": 1, "cat": 2})
    >>> tokenizer.encode(["The cat", "sat."]).tolist()
    [1, 2, 0, 0]
    """

    def __init__(self, vocabulary: dict[str, int]) -> None:
        self._numbers = vocabulary

    @property
    def size(self) -> int:
        """C, `<unk>` included."""
        return len(self._numbers)

    def encode(self, lines: Sequence[str]) -> NDArray[np.int64]:
        """Return the class numbers [T] of the words of all lines."""
        words = chain.from_iterable(map(basic_english, lines))
        return np.fromiter((self._numbers.get(word, 0) for word in words), np.int64)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the words, separated by spaces: normalised, so not the text they were read from."""
        words = list(self._numbers)
        return " ".join(words[token] for token in tokens)

    def to_json(self) -> str:
        """Return the words in the order of their numbers."""
        return json.dumps({"words": list(self._numbers)}, ensure_ascii=False)


class LearnedTokenizer:
    """BPE or Unigram over bytes, by the `tokenizers` library."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @property
    def size(self) -> int:
        """C; smaller than asked for where the text has too few different pieces."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, lines: Sequence[str]) -> NDArray[np.int64]:
        """Return the class numbers [T] of all lines, on all cores."""
        found = self._tokenizer.encode_batch_fast(list(lines))
        return np.concatenate([np.empty(0, np.int64), *(np.array(line.ids, np.int64) for line in found)])

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=False))

    def to_json(self) -> str:
        """Return the tokenizer in the library's own format, which others can read."""
        return str(self._tokenizer.to_str())


def learn(kind: Kind, lines: Iterable[str], size: int | None) -> Tokenizer:
    """Return a tokenizer learned from a text.

    The same text gives the same words and the same BPE pieces. The library's Unigram trainer sums in no fixed order:
    two trainings differ in a few pieces, which is why a tokenizer, once learned, is kept.

    Args:
        kind: "word", "bpe" or "unigram".
        lines: the training text, read once.
        size: C; None takes all words, or LEARNED_SIZE pieces.

    Raises:
        DataError: the text is too small for so many pieces (Unigram only; BPE then learns fewer).
    """
    if kind == "word":
        counts = Counter(chain.from_iterable(map(basic_english, lines)))
        return WordTokenizer(vocabulary_of(counts, size))
    from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Library

    size = size or LEARNED_SIZE
    tokenizer = Library(models.BPE() if kind == "bpe" else models.Unigram())
    # GPT-2's: words with the space before them, numbers, runs of other characters; then every byte is a character.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    settings: dict[str, Any] = {
        "vocab_size": size,
        "special_tokens": [AddedToken(UNKNOWN, lstrip=True, special=True)],
        "initial_alphabet": pre_tokenizers.ByteLevel.alphabet(),
        "show_progress": False,
    }
    trainer = (
        trainers.BpeTrainer(**settings) if kind == "bpe" else trainers.UnigramTrainer(unk_token=UNKNOWN, **settings)
    )
    try:
        tokenizer.train_from_iterator(iter(lines), trainer)
    except DataError:
        raise
    except Exception as error:  # the library raises nothing more specific
        raise DataError(f"data.tokenizer: cannot learn {size} {kind} pieces from this text: {error}") from error
    return LearnedTokenizer(tokenizer)


def load(path: Path) -> Tokenizer:
    """Return a stored tokenizer; raise DataError if it cannot be read."""
    try:
        text = path.read_text("utf-8")
        table = json.loads(text)
        if "words" in table:
            return WordTokenizer({word: number for number, word in enumerate(table["words"])})
        from tokenizers import Tokenizer as Library

        return LearnedTokenizer(Library.from_str(text))
    except Exception as error:
        raise DataError(
            f"{path}: not a readable tokenizer ({type(error).__name__}); delete it to learn it anew"
        ) from error
