"""Tokenizers: from text to class numbers 0..C-1 and back (appendix A.1 and figure 9).

"word" splits by `basic_english`; "bpe" and "unigram" learn C pieces from the text itself. The learned ones work on
bytes, so that no character is unknown and decoding returns the text; the `<unk>` in the public word-level files is one
token, including the space before it.

T tokens, C classes.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from heavytail.data.text.vocabulary import LEARNED_SIZE, UNKNOWN, basic_english, vocabulary_of
from heavytail.errors import DataError, one_line

Kind: TypeAlias = Literal["word", "bpe", "unigram"]


class Tokenizer(Protocol):
    """Text to class numbers and back."""

    @property
    def size(self) -> int:
        """C."""

    def encode(self, lines: Sequence[str]) -> NDArray[np.int64]:
        """Return the class numbers [T] of lines of text, one line after the other."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of class numbers [T]."""

    def pieces(self) -> Sequence[str]:
        """Return the name of each class [C]: distinct, as in the vocabulary; "" for an unused number."""

    def to_json(self) -> str:
        """Return the text that `load` reads."""


class WordTokenizer:
    """Words under `basic_english`; a word outside the vocabulary is `<unk>`, number 0.

    >>> tokenizer = WordTokenizer({"<unk>": 0, "the": 1, "cat": 2})
    >>> tokenizer.encode(["The cat", "sat."]).tolist()
    [1, 2, 0, 0]
    """

    def __init__(self, vocabulary: Mapping[str, int]) -> None:
        self._numbers = dict(vocabulary)
        self._size = max(self._numbers.values(), default=-1) + 1

    @property
    def size(self) -> int:
        """C, `<unk>` included."""
        return self._size

    def encode(self, lines: Sequence[str]) -> NDArray[np.int64]:
        """Return the class numbers [T] of the words of all lines."""
        words = chain.from_iterable(map(basic_english, lines))
        return np.fromiter((self._numbers.get(word, 0) for word in words), np.int64)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the words, separated by spaces: the normalised text, not the original one."""
        words = self.pieces()
        return " ".join(words[token] for token in tokens)

    def pieces(self) -> Sequence[str]:
        """Return the words in the order of their numbers."""
        return _by_number(self._numbers, self._size)

    def to_json(self) -> str:
        """Return the words in the order of their numbers."""
        return json.dumps({"words": self.pieces()}, ensure_ascii=False)


class LearnedTokenizer:
    """BPE or Unigram over bytes, by the `tokenizers` library."""

    def __init__(self, tokenizer: Any) -> None:
        tokenizer.no_truncation()  # a tokenizer file may enable both
        tokenizer.no_padding()
        self._tokenizer = tokenizer

    @cached_property
    def size(self) -> int:
        """C, the largest class number plus one; smaller than requested where the text has too few pieces."""
        return max(self._tokenizer.get_vocab().values(), default=-1) + 1

    def encode(self, lines: Sequence[str]) -> NDArray[np.int64]:
        """Return the class numbers [T] of all lines, without special tokens such as [CLS], on all cores.

        Raises:
            DataError: the tokenizer has no token for a piece of text and none for unknown ones.
        """
        try:
            encoded = self._tokenizer.encode_batch_fast(list(lines), add_special_tokens=False)
        except Exception as error:  # the library raises nothing more specific
            raise DataError(f"the tokenizer cannot encode this text: {one_line(error)}") from error
        return np.concatenate([np.empty(0, np.int64), *(np.array(line.ids, np.int64) for line in encoded)])

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=False))

    def pieces(self) -> Sequence[str]:
        """Return the vocabulary in the order of its numbers."""
        return _by_number(self._tokenizer.get_vocab(), self.size)

    def to_json(self) -> str:
        """Return the tokenizer in the library's own format, a tokenizer.json."""
        return str(self._tokenizer.to_str())


def learn(kind: Kind, lines: Iterable[str], size: int | None) -> Tokenizer:
    """Return a tokenizer learned from a text.

    "word" and "bpe" are deterministic. The library's Unigram trainer is not: it sums in varying order, and two
    trainings differ in a few pieces. Learned tokenizers are therefore cached.

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
        reason = one_line(error)
        raise DataError(f"data.tokenizer: cannot learn {size} {kind} pieces from this text: {reason}") from error
    return LearnedTokenizer(tokenizer)


def load(path: Path) -> Tokenizer:
    """Return the tokenizer in a file: a tokenizer.json of the `tokenizers` library, or {"words": [...]}.

    Raises:
        DataError: the file cannot be read or has another format, which is named.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: not a readable tokenizer: {error.strerror or error}") from error
    try:
        text = content.decode("utf-8")
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a readable tokenizer: {_other_format(content) or 'not JSON'}") from error
    if not isinstance(table, dict):
        raise DataError(f"{path}: not a readable tokenizer: expected a JSON object")
    words = table.get("words")
    if words is not None:
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words) or not words:
            raise DataError(f"{path}: not a readable tokenizer: expected a list of words")
        if words[0] != UNKNOWN:
            raise DataError(f"{path}: not a readable tokenizer: expected {UNKNOWN} as the first word, got '{words[0]}'")
        return WordTokenizer({word: number for number, word in reversed([*enumerate(words)])})
    if table and all(isinstance(value, int) for value in table.values()):
        raise DataError(f"{path}: not a readable tokenizer: a vocabulary without its model; {_SAVE}")
    from tokenizers import Tokenizer as Library

    try:
        return LearnedTokenizer(Library.from_str(text))
    except BaseException as error:  # the library raises Exception, and PanicException, a BaseException
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise DataError(f"{path}: not a readable tokenizer: {one_line(error)}") from error


_SAVE = "save it as tokenizer.json (AutoTokenizer.from_pretrained(...).save_pretrained(...))"


def _other_format(content: bytes) -> str:
    """The format of a file that is not JSON, if it is a known tokenizer format."""
    if re.match(rb"[A-Za-z0-9+/]+=* \d+\r?\n", content):
        return f"tiktoken ranks, which do not hold the splitting rule; {_SAVE}"
    if content.startswith(b"\n") and b"<unk>" in content[:100]:
        return f"a SentencePiece model; {_SAVE}"
    if content.startswith(b"#version"):
        return f"merges without their vocabulary; {_SAVE}"
    return ""


def _by_number(vocabulary: Mapping[str, int], size: int) -> list[str]:
    names = [""] * size
    for name, number in vocabulary.items():
        names[number] = name
    return names
