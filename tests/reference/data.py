"""Naive counterparts of the data sets: one rule, one class, one word at a time."""

from __future__ import annotations

import re


def basic_english(line: str) -> list[str]:
    """Apply the rules of the paper's normalisation in the order in which they are usually written."""
    line = line.lower()
    for pattern, replacement in (
        (r"'", " ' "),
        (r'"', ""),
        (r"\.", " . "),
        (r",", " , "),
        (r"\(", " ( "),
        (r"\)", " ) "),
        (r"!", " ! "),
        (r"\?", " ? "),
        (r";", " "),
        (r":", " "),
        (r"\s+", " "),
    ):
        line = re.sub(pattern, replacement, line)
    return line.split()


def vocabulary(words: list[str]) -> list[str]:
    """Return `<unk>`, then the types by decreasing count, ties in alphabetical order, by repeated selection."""
    left = {word: words.count(word) for word in set(words) if word != "<unk>"}
    ranked = ["<unk>"]
    while left:
        best = max(left.values())
        first = min(word for word, count in left.items() if count == best)
        ranked.append(first)
        del left[first]
    return ranked


def sequences(stream: list[int], length: int) -> list[tuple[list[int], list[int]]]:
    """Return (inputs, targets) of each whole sequence."""
    cut = []
    start = 0
    while start + length < len(stream):
        cut.append(([stream[start + i] for i in range(length)], [stream[start + i + 1] for i in range(length)]))
        start += length
    return cut


def heavy_tailed_labels(m: int) -> tuple[list[int], list[int]]:
    """Return the label of every sample and the group of every class: group g has 2^g classes of 2^(m-g) samples."""
    labels, groups = [], []
    for g in range(m):
        for _ in range(2**g):
            for _ in range(2 ** (m - g)):
                labels.append(len(groups))
            groups.append(g)
    return labels, groups


def power_law_counts(num_classes: int, exponent: float, samples: int) -> list[int]:
    """Return max(1, samples pi_k rounded) with pi_k = k^-exponent / sum_j j^-exponent."""
    total = sum(1 / j**exponent for j in range(1, num_classes + 1))
    return [max(1, round(samples / k**exponent / total)) for k in range(1, num_classes + 1)]
