"""What a tokenizer tells of classes: examples of a group, and bytes for bits per byte.

Shapes: C classes, G groups.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["examples", "token_bytes"]

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def examples(tokenizer: Any, counts: NDArray[np.int64], index: NDArray[np.int64], number: int) -> list[list[str]]:
    """Return the most frequent tokens of each group, decoded [G][number]."""
    order = np.argsort(-counts, kind="stable")
    members = [order[index[order] == g][:number] for g in range(int(index.max()) + 1)]
    return [[_text(tokenizer, int(k)) for k in classes] for classes in members]


def token_bytes(tokenizer: Any, num_classes: int) -> NDArray[np.float64]:
    """Return the length of each token in UTF-8 [C] (bytes); 0 for padded classes of a head."""
    return np.array([_length(tokenizer, k) for k in range(num_classes)], np.float64)


def _text(tokenizer: Any, token: int) -> str:
    try:
        return str(tokenizer[token] if isinstance(tokenizer, list | tuple) else tokenizer.decode([token]))
    except Exception:  # each tokenizer has its own error for a class that it has no token for
        return ""


def _length(tokenizer: Any, token: int) -> int:
    exact = getattr(tokenizer, "decode_single_token_bytes", None)  # tiktoken
    if exact is not None:
        try:
            return len(exact(token))
        except KeyError:
            return 0
    text = _text(tokenizer, token)
    if _REPLACEMENT not in text:
        return len(text.encode())
    # Part of a character: byte-level tokenizers write one character for each byte; others write bytes as <0xE2>.
    names = getattr(tokenizer, "convert_ids_to_tokens", None) or getattr(tokenizer, "id_to_token", None)
    name = names(token) if names is not None else text
    return 1 if name.startswith("<0x") else len(name)
