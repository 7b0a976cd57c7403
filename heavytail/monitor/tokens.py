"""What a tokenizer tells of classes: examples of a group, and bytes for bits per byte.

Shapes: C classes, G groups.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heavytail.errors import SpecError, one_line

__all__ = ["examples", "token_bytes"]

_log = logging.getLogger("heavytail")

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_BYTE = re.compile("<0x[0-9A-F]{2}>")  # how SentencePiece writes a byte of what it has no token for
# The characters that byte-level tokenizers write for the 256 bytes: printable ones for themselves, others above.
_BYTES = frozenset(map(chr, chain(range(33, 127), range(161, 173), range(174, 324))))
_SAMPLE = 512  # tokens decoded together, to see whether the parts are the whole


def examples(tokenizer: Any, counts: NDArray[np.int64], index: NDArray[np.int64], number: int) -> list[list[str]]:
    """Return the most frequent tokens of each group, decoded [G][number]."""
    order = np.argsort(-counts, kind="stable")
    members = [order[index[order] == g][:number] for g in range(int(index.max()) + 1)]
    return [[_text(tokenizer, int(k)) for k in classes] for classes in members]


def token_bytes(tokenizer: Any, num_classes: int) -> NDArray[np.float64]:
    """Return how many bytes of UTF-8 each token stands for in a text [C]; NaN, with a warning, if that is unknown.

    The bytes of a text's tokens are those of the text as the tokenizer normalizes it, and of the space that some
    tokenizers put before it. A space counts in the token that holds it: the word after it in SentencePiece and
    byte-level tokenizers. Tokenizers that drop spaces (WordPiece, whole words, `</w>`) have none to count. Special
    and unknown tokens and the padded classes of a head count 0.

    Args:
        tokenizer: of transformers, tokenizers or tiktoken; anything else with `decode([id])` whose texts of single
            tokens, joined, are the text of all; or a list of strings.
        num_classes: C.
    """
    try:
        length = _measure(tokenizer, num_classes)
        return np.array([length(k) for k in range(num_classes)], np.float64)
    except SpecError as error:
        _log.warning("bits_per_byte is left out: %s", error)
        return np.full(num_classes, np.nan)


def _text(tokenizer: Any, token: int) -> str:
    try:
        return str(tokenizer[token] if isinstance(tokenizer, list | tuple) else tokenizer.decode([token]))
    except Exception:  # each tokenizer has its own error for a class that it has no token for
        return ""


def _measure(tokenizer: Any, num_classes: int) -> Callable[[int], int]:
    """The function from a token to its bytes; SpecError if the tokenizer tells too little."""
    if isinstance(tokenizer, list | tuple):
        return lambda token: len(_text(tokenizer, token).encode())
    if hasattr(tokenizer, "decode_single_token_bytes"):
        return _of_tiktoken(tokenizer)
    silent = {*getattr(tokenizer, "all_special_ids", ()), getattr(tokenizer, "unk_token_id", None)}
    library = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if hasattr(library, "get_added_tokens_decoder") and hasattr(library, "id_to_token"):
        return _of_library(library, silent)
    return _of_decoding(tokenizer, num_classes, silent)


def _of_tiktoken(tokenizer: Any) -> Callable[[int], int]:
    special = {tokenizer.encode_single_token(name) for name in getattr(tokenizer, "special_tokens_set", ())}

    def length(token: int) -> int:
        try:
            return 0 if token in special else len(tokenizer.decode_single_token_bytes(token))
        except KeyError:
            return 0

    return length


def _of_library(library: Any, silent: set[Any]) -> Callable[[int], int]:
    """Of Hugging Face's tokenizers, by the names of tokens and the decoder that makes text of them."""
    model, added = library.model, library.get_added_tokens_decoder()
    silent = silent | {token for token, entry in added.items() if entry.special}
    if type(model).__name__ == "Unigram":  # which has no attribute for it
        silent.add(json.loads(model.__getstate__())["unk_id"])
    elif (unknown := getattr(model, "unk_token", None)) is not None:
        silent.add(library.token_to_id(unknown))
    steps = _steps(library.decoder)
    if not steps:  # then only the splitting of texts tells how names are written
        steps = [step for step in _steps(library.pre_tokenizer) if step["type"] in ("ByteLevel", "Metaspace")]
    kinds = [step["type"] for step in steps]
    prefix = getattr(model, "continuing_subword_prefix", None) or ""
    suffix = getattr(model, "end_of_word_suffix", None) or ""
    spaces: list[tuple[str, str]] = []
    for place, (kind, step) in enumerate(zip(kinds, steps, strict=True)):
        if kind == "Metaspace":
            spaces.append((step["replacement"], " "))
        elif kind == "Replace" and "String" in step["pattern"]:
            spaces.append((step["pattern"]["String"], step["content"]))
        elif kind == "WordPiece":
            prefix = step["prefix"]
        elif kind == "BPEDecoder":
            suffix = step["suffix"]
        elif kind not in ("ByteLevel", "ByteFallback", "Fuse") and not (kind == "Strip" and "Fuse" in kinds[:place]):
            raise SpecError(f"tokenizer: what its decoder {kind} makes of single tokens is not known")

    def length(token: int) -> int:
        name = None if token in silent else library.id_to_token(token)
        if name is None:
            return 0
        if token not in added:
            name = name.removeprefix(prefix).removesuffix(suffix)
            if "ByteLevel" in kinds and _BYTES.issuperset(name):
                return len(name)
            if "ByteFallback" in kinds and _BYTE.fullmatch(name):
                return 1
        for written, meant in spaces:
            name = name.replace(written, meant)
        return len(name.encode())

    return length


def _steps(part: Any) -> list[dict[str, Any]]:
    """The settings of a decoder or pre-tokenizer, those of a sequence one after another."""

    def flat(state: dict[str, Any]) -> list[dict[str, Any]]:
        inner = state.get("decoders") or state.get("pretokenizers")
        return [state] if inner is None else [step for one in inner for step in flat(one)]

    if part is None:
        return []
    try:
        return flat(json.loads(part.__getstate__()))
    except Exception as error:  # one written in Python
        raise SpecError(f"tokenizer: its {type(part).__name__} does not tell how names become text") from error


def _of_decoding(tokenizer: Any, num_classes: int, silent: set[Any]) -> Callable[[int], int]:
    """Bytes of what `decode` returns, if the texts of single tokens make up that of all."""
    texts = ["" if token in silent else _text(tokenizer, token) for token in range(num_classes)]
    hidden = [token for token, text in enumerate(texts) if not text and token not in silent]
    if any(_REPLACEMENT in text for text in texts) or any(_name(tokenizer, token) for token in hidden):
        raise SpecError("tokenizer: it decodes some tokens to a part of a character or to nothing")
    tokens = [token for token, text in enumerate(texts) if text]
    sample = tokens[:: 1 + len(tokens) // _SAMPLE]
    try:
        whole = str(tokenizer.decode(sample))
    except Exception as error:  # each tokenizer has its own
        raise SpecError(f"tokenizer: it cannot decode its tokens together: {one_line(error)}") from error
    if whole != "".join(texts[token] for token in sample):
        raise SpecError("tokenizer: it decodes tokens to another text together than one by one; pass a list of strings")
    return lambda token: len(texts[token].encode())


def _name(tokenizer: Any, token: int) -> str:
    try:
        return str(tokenizer.convert_ids_to_tokens(token) or "")
    except Exception:  # it has no names, or none for this class
        return ""
