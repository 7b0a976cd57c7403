"""From text to next-word prediction: normalisation, vocabulary, sequences (appendix A.1).

N sequences, L words each, C types. Words of all lines are concatenated without an end-of-line token, and target l of a
sequence is the word after input l.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from heavytail.data import Data, Nominal, Split
from heavytail.errors import DataError, SpecError

if TYPE_CHECKING:
    import torch

UNKNOWN = "<unk>"
LEARNED_SIZE = 4_000  # default number of classes of a learned tokenizer, that of figure 9
LEAST_LEARNED = 257  # 256 bytes and <unk>

_MARKS = "'.,()!?"
# White space of `str.split` that `bytes.split` does not know.
_SPACES = "\x1c\x1d\x1e\x1f\x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"


def basic_english(text: str) -> list[str]:
    """Return the words of a text, lower-cased, with some punctuation marks as words of their own.

    The normalisation the paper's word-level data sets use: `'` `.` `,` `(` `)` `!` `?` are words, `"` is dropped, `;`
    and `:` are spaces, and other characters are unchanged.

    >>> basic_english("The <unk> doesn't (yet) rise: 3.5 %!")
    ['the', '<unk>', 'doesn', "'", 't', '(', 'yet', ')', 'rise', '3', '.', '5', '%', '!']
    """
    text = text.lower().replace('"', "").replace(";", " ").replace(":", " ")
    for mark in _MARKS:  # nearly three times as fast as str.translate
        text = text.replace(mark, f" {mark} ")
    return text.split()


def basic_english_utf8(text: str) -> list[bytes]:
    """Return the words of `basic_english` in UTF-8.

    Faster to split and to count where a text has characters beyond ASCII: Python stores all of such a text two or four
    bytes wide, and has to look at each word again to store it narrower.

    >>> [word.decode() for word in basic_english_utf8("Caf\u00e9\u00a0(open)")]
    ['caf\u00e9', '(', 'open', ')']
    """
    text = text.lower()
    for space in _SPACES:
        if space in text:
            text = text.replace(space, " ")
    utf8 = text.encode("utf-8", "surrogatepass").replace(b'"', b"").replace(b";", b" ").replace(b":", b" ")
    for mark in _MARKS.encode():
        utf8 = utf8.replace(bytes([mark]), b" %c " % mark)
    return utf8.split()


def build_vocabulary(words: Iterable[str], max_size: int | None = None) -> dict[str, int]:
    """Return the class number of each type: `<unk>` is 0, then by count, then in alphabetical order.

    Args:
        words: the training text.
        max_size: keep this many types, `<unk>` included.

    >>> build_vocabulary(["to", "be", "or", "not", "to", "be"], max_size=4)
    {'<unk>': 0, 'be': 1, 'to': 2, 'not': 3}
    """
    return vocabulary_of(Counter(words), max_size)


def vocabulary_of(counts: Counter[str], max_size: int | None = None) -> dict[str, int]:
    """Return `build_vocabulary` of counted words."""
    types = sorted(counts.keys() - {UNKNOWN}, key=lambda word: (-counts[word], word))
    return {word: number for number, word in enumerate([UNKNOWN, *types][:max_size])}


def encode(words: Sequence[str], vocabulary: Mapping[str, int]) -> torch.Tensor:
    """Return the class numbers [T] of the words, int64; a word outside the vocabulary is `<unk>`."""
    import torch

    numbers = np.fromiter((vocabulary.get(word, 0) for word in words), np.int64, len(words))
    return torch.from_numpy(numbers)


def cut_sequences(tokens: torch.Tensor, length: int) -> Split:
    """Return the sequences [N, L] of a token stream [T] and their targets, N = (T - 1) // L; the tail is dropped.

    >>> import torch
    >>> split = cut_sequences(torch.arange(8), 3)
    >>> split.inputs.tolist(), split.targets.tolist()
    ([[0, 1, 2], [3, 4, 5]], [[1, 2, 3], [4, 5, 6]])
    """
    used = max(len(tokens) - 1, 0) // length * length
    # Two views of one stream may overlap because splits are never written to.
    return Split(tokens[:used].view(-1, length), tokens[1 : used + 1].view(-1, length))


@dataclass(frozen=True)
class TextSettings:
    """The settings that all text data sets share.

    Attributes:
        length: L, words in a sequence.
        max_tokens: use only the first so many words of each split.
        max_vocab: keep only this many types, `<unk>` included; the others become `<unk>`, which can make it the most
            frequent class (see `unknown_share` in `Data.info`). For a learned tokenizer, the number of pieces.
        tokenizer: "word" for `basic_english`; "bpe" or "unigram" for pieces of words learned from the training text,
            line ends among them. The units above are then tokens.
    """

    length: int = 35
    max_tokens: int | None = None
    max_vocab: int | None = None
    tokenizer: Literal["word", "bpe", "unigram"] = "word"

    def __post_init__(self) -> None:
        if self.length < 1:
            raise SpecError(f"data.length: expected at least 1, got {self.length}")
        if self.max_tokens is not None and self.max_tokens <= self.length:
            raise SpecError(f"data.max_tokens: expected more than data.length = {self.length}, got {self.max_tokens}")
        if self.max_vocab is not None and self.max_vocab < 2:
            raise SpecError(f"data.max_vocab: expected at least 2 (<unk> is one), got {self.max_vocab}")
        if self.tokenizer != "word" and self.max_vocab is not None and self.max_vocab < LEAST_LEARNED:
            raise SpecError(
                f"data.max_vocab: expected at least {LEAST_LEARNED} (256 bytes and <unk>), got {self.max_vocab}"
            )

    def _nominal(self, train: int, test: int, types: int) -> Nominal:
        """Return the sizes of a data set, without loading it, from the numbers of words and of their types.

        A learned tokenizer makes more tokens than there are words, and as many classes as it is asked for.
        """
        import torch

        tokens = torch.zeros(1, self.length, dtype=torch.int64)
        classes = min(self.max_vocab or types, types) if self.tokenizer == "word" else self.max_vocab or LEARNED_SIZE
        data = Data(Split(tokens, tokens), None, classes)
        samples = ((min(self.max_tokens or n, n) - 1) // self.length for n in (train, test))
        return Nominal(data, *samples)

    def _to_data(self, source: str, train: Sequence[str], test: Sequence[str], vocabulary: dict[str, int]) -> Data:
        """Return the data set of two lists of words."""
        return self._cut(source, encode(train, vocabulary), encode(test, vocabulary), len(vocabulary))

    def _cut(self, source: str, train: torch.Tensor, test: torch.Tensor, num_classes: int) -> Data:
        """Return the data set of two streams of class numbers [T]."""
        for part, stream in (("train", train), ("test", test)):
            if len(stream) <= self.length:
                raise DataError(
                    f"{source}: the {part} split has {len(stream)} tokens, and a sequence of data.length = "
                    f"{self.length} needs {self.length + 1}; use more text or a smaller data.length"
                    f"{'' if len(stream) else ' (a text is divided between lines)'}"
                )
        info: dict[str, Any] = {
            "source": source,
            "types": num_classes,
            "tokens": len(train),
            "unknown_share": (train == 0).sum().item() / max(len(train), 1),
        }
        return Data(cut_sequences(train, self.length), cut_sequences(test, self.length), num_classes, info=info)
