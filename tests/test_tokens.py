"""Bytes of tokens: those of a text's tokens are those of the text, whatever the tokenizer."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from heavytail.monitor.monitor import Monitor
from heavytail.monitor.tokens import token_bytes

TEXT = [
    "the cat sat on the mat, and the other cats were sitting there",
    "a naïve café in 東京 has (some) cats;  two  spaces and\ttabs",
    "Thé end: 2024-11-30 🦊 ends the text.",
]
SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def learned(model: Any, trainer: Any, pre_tokenizer: Any, decoder: Any, normalizer: Any = None) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.decoder, tokenizer.normalizer = pre_tokenizer, decoder, normalizer
    tokenizer.train_from_iterator(TEXT[:2] * 4, trainer)
    return tokenizer


def byte_level(kind: str = "bpe", decoder: Any = None) -> Tokenizer:
    settings = {
        "vocab_size": 320,
        "special_tokens": SPECIAL,
        "initial_alphabet": pre_tokenizers.ByteLevel.alphabet(),
        "show_progress": False,
    }
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if kind == "bpe":
        return learned(models.BPE(), trainers.BpeTrainer(**settings), split, decoder)
    trainer = trainers.UnigramTrainer(**settings, unk_token="<unk>")
    return learned(models.Unigram(), trainer, split, decoder)


def metaspace(kind: str) -> Tokenizer:
    alphabet = sorted({character for text in TEXT for character in text if character != " "})
    settings: dict[str, Any] = {"vocab_size": 120, "special_tokens": SPECIAL, "initial_alphabet": alphabet}
    settings["show_progress"] = False
    split = pre_tokenizers.Metaspace(), decoders.Metaspace()
    if kind == "bpe":
        return learned(models.BPE(unk_token="<unk>"), trainers.BpeTrainer(**settings), *split)
    return learned(models.Unigram(), trainers.UnigramTrainer(**settings, unk_token="<unk>"), *split)


def llama() -> Tokenizer:
    """SentencePiece's BPE as transformers converts it: a sign for a space, and bytes for what it has no token for."""
    learner = trainers.BpeTrainer(vocab_size=120, special_tokens=SPECIAL, show_progress=False)
    split = pre_tokenizers.Metaspace(prepend_scheme="always")
    model = json.loads(learned(models.BPE(unk_token="<unk>"), learner, split, None).to_str())["model"]
    vocab = {name: k for k, name in enumerate([*SPECIAL, *BYTES])}
    for name in model["vocab"]:
        vocab.setdefault(name, len(vocab))
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def word_pieces(decoder: Any) -> Tokenizer:
    alphabet = sorted({character for text in TEXT for character in text if character.strip()})
    trainer = trainers.WordPieceTrainer(
        vocab_size=150, special_tokens=["[UNK]", "[CLS]"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer = learned(models.WordPiece(unk_token="[UNK]"), trainer, pre_tokenizers.Whitespace(), decoder)
    # every character both at the start of a word and inside, so that no word is unknown
    vocab = tokenizer.get_vocab(with_added_tokens=False)
    for name in [*alphabet, *(f"##{character}" for character in alphabet)]:
        vocab.setdefault(name, len(vocab))
    tokenizer.model = models.WordPiece(vocab, unk_token="[UNK]")
    return tokenizer


def clip() -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    split = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer = learned(models.BPE(end_of_word_suffix="</w>"), trainer, split, decoders.ByteLevel())
    tokenizer.train_from_iterator(TEXT * 4, trainer)  # it has no token for a last character that it has not seen
    return tokenizer


def words(text: str) -> str:
    return "".join(text.split())


def kept(text: str) -> str:
    return text


def prefixed(text: str) -> str:
    return " " + text


KINDS: dict[str, tuple[Callable[[], Tokenizer], Callable[[str], str]]] = {
    "byte-level BPE": (lambda: byte_level(decoder=decoders.ByteLevel()), kept),
    "byte-level BPE without a decoder": (byte_level, kept),
    "byte-level Unigram": (lambda: byte_level("unigram", decoders.ByteLevel()), kept),
    "Metaspace BPE": (lambda: metaspace("bpe"), prefixed),
    "Metaspace Unigram": (lambda: metaspace("unigram"), prefixed),
    "Llama": (llama, prefixed),
    "WordPiece": (lambda: word_pieces(decoders.WordPiece()), words),
    "WordPiece without a decoder": (lambda: word_pieces(None), words),
    "CLIP": (clip, words),
}


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_of_a_texts_tokens_are_its_bytes(kind: str, wrapped: bool) -> None:
    """Each kind of tokenizer, bare and inside transformers' class, on texts with and without unseen characters."""
    make, meant = KINDS[kind]
    library = tokenizer = make()
    if wrapped:
        transformers = pytest.importorskip("transformers")
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=library, eos_token="<|end|>")
        library = tokenizer.backend_tokenizer
    size = library.get_vocab_size()
    length = token_bytes(tokenizer, size + 2)
    assert length.shape == (size + 2,)
    assert length[size:].tolist() == [0, 0]  # the padded classes of a head
    for text in TEXT:
        tokens = library.encode(text, add_special_tokens=False).ids
        assert length[tokens].sum() == len(meant(text).encode()), library.encode(text).tokens


def test_special_unknown_and_added_tokens() -> None:
    """Special and unknown tokens are no text, bare or wrapped; added tokens are their text, not names of bytes."""
    transformers = pytest.importorskip("transformers")
    tokenizer = byte_level(decoder=decoders.ByteLevel())
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.add_tokens([AddedToken("é!", normalized=False), AddedToken("東京", normalized=False)])
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    for each in (tokenizer, wrapped):
        length = token_bytes(each, tokenizer.get_vocab_size())
        assert [length[tokenizer.token_to_id(name)] for name in ("<|end|>", "<s>", "é!", "東京")] == [0, 0, 3, 6]
    unmarked = Tokenizer(models.BPE(vocab={"<unk>": 0, "▁the": 1, "▁cat": 2, "s": 3}, merges=[], unk_token="<unk>"))
    unmarked.decoder = decoders.Metaspace()
    assert token_bytes(unmarked, 5).tolist() == [0, 4, 4, 1, 0]


class Characters:
    """Somebody's own tokenizer: a token is a character, and their texts are joined by `between`."""

    def __init__(self, characters: str, between: str = "") -> None:
        self.characters, self.between = characters, between

    def decode(self, tokens: list[int]) -> str:
        return self.between.join(self.characters[token] for token in tokens)


class Exact(Characters):
    """With the methods of a tiktoken.Encoding."""

    special_tokens_set = frozenset({"<|end|>"})

    def encode_single_token(self, name: str) -> int:
        return len(self.characters)

    def decode_single_token_bytes(self, token: int) -> bytes:
        if token > len(self.characters):
            raise KeyError(token)
        return b"<|end|>" if token == len(self.characters) else self.characters[token].encode()[:2]


def test_tiktokens_own_bytes_count() -> None:
    """Bytes of single tokens are taken as they are, parts of characters included; special tokens are no text."""
    assert token_bytes(Exact("aé東"), 5).tolist() == [1, 2, 2, 0, 0]


def test_other_tokenizers_are_believed_if_their_parts_make_the_whole(caplog: pytest.LogCaptureFixture) -> None:
    """`decode` of single tokens counts, unless texts are more than their tokens', or less than a character."""
    assert token_bytes(Characters("aé東"), 4).tolist() == [1, 2, 3, 0]
    assert token_bytes(["a", "é"], 3).tolist() == [1, 2, 0]
    fused = byte_level(decoder=decoders.CTC())
    transformers = pytest.importorskip("transformers")
    for refused, reason in (
        (Characters("abc", " "), "another text together than one by one"),
        (Characters("a\N{REPLACEMENT CHARACTER}"), "a part of a character or to nothing"),
        (transformers.ByT5Tokenizer(), "a part of a character or to nothing"),
        (fused, "its decoder CTC"),
    ):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "heavytail"):
            assert np.isnan(token_bytes(refused, 300)).all()
        assert len(caplog.messages) == 1
        assert caplog.messages[0].startswith("bits_per_byte is left out: tokenizer: ")
        assert reason in caplog.messages[0]


def test_bits_per_byte_of_a_text() -> None:
    """The reading's bits per byte are the bits of a text's tokens over its bytes, and NaN where they are unknown."""
    tokenizer = llama()
    tokens = torch.tensor(tokenizer.encode(TEXT[0], add_special_tokens=False).ids)
    monitor = Monitor(tokenizer.get_vocab_size(), tokenizer=tokenizer, num_groups=1)
    monitor.update(torch.full((len(tokens),), 2.0), tokens, plain=True)
    expected = len(tokens) * 2 / math.log(2) / len(f" {TEXT[0]}".encode())
    np.testing.assert_allclose(monitor.compute().extra["bits_per_byte"], [expected])
    unknown = Monitor(3, tokenizer=Characters("abc", " "), num_groups=1)
    unknown.update(torch.ones(3), torch.arange(3), plain=True)
    reading = unknown.compute()
    assert np.isnan(reading.extra["bits_per_byte"]).all()
    assert "bits_per_byte/group_01" not in reading.to_dict()
