"""Token counts by tokenizer and text (figure 9), from the data alone, without runs."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from heavytail.analysis import zipf
from heavytail.data import Data
from heavytail.errors import DataError
from heavytail.experiment.registry import Component, registry
from heavytail.plotting.style import Picture
from heavytail.results.claims import ClaimRule, claim
from heavytail.results.figure import Figure, register
from heavytail.results.results import Array, MissingRuns, Results

PAPER = {"PTB": {"name": "ptb"}, "WikiText-2": {"name": "wikitext-2"}}
EMBEDDED = {"PTB": {"name": "stdlib-text", "max_tokens": 150_000}}  # stands for both texts
KINDS: dict[str, dict[str, Any]] = {
    "word": {"max_vocab": None},
    "bpe": {"max_vocab": 4_000},
    "unigram": {"max_vocab": 4_000},
}

Settings = tuple[tuple[str, Any], ...]
"""The settings of a data set as hashable pairs."""


def counts(results: Results, text: str, kind: str) -> Array:
    """Return the count of each token of a text, most frequent first [C]; MissingRuns if the text is not available."""
    return _counts(*source(results, text, kind))


def source(results: Results, text: str, kind: str) -> tuple[Settings, Path]:
    """Return the data settings of a text at the scale of `results`, and the data folder.

    Args:
        results: gives the scale and the data folder.
        text: "PTB" or "WikiText-2"; at quick scale the embedded text stands for PTB.
        kind: kind of tokens, "word", "bpe" or "unigram".

    Raises:
        MissingRuns: the text is not available at this scale, or the data folder is unknown.
    """
    texts = EMBEDDED if results.scale == "quick" else PAPER
    if text not in texts:
        raise MissingRuns(f"at {results.scale} scale one embedded text stands for PTB; {text} is not read")
    if results.data_dir is None:
        raise MissingRuns(f"the folder of the data sets is not known; run `heavytail reproduce {results.figure}`")
    return tuple({**texts[text], **KINDS[kind], "tokenizer": kind}.items()), results.data_dir


@lru_cache(maxsize=8)
def _counts(settings: Settings, data_dir: Path) -> Array:
    found: Array = np.sort(load(settings, data_dir).counts.numpy())[::-1]
    return found


def load(settings: Settings, data_dir: Path) -> Data:
    """Return the data that `source` names; MissingRuns with the reason if they are not available."""
    try:
        data: Data = registry("data").make(Component.parse(dict(settings), "data")).load(seed=0, data_dir=data_dir)
    except DataError as error:
        raise MissingRuns(str(error)) from error
    return data


def plot(results: Results) -> Picture:
    """Draw a row per text and a column per tokenizer, with both fits."""
    texts = [text for text in PAPER if results.scale != "quick" or text in EMBEDDED]
    picture = Picture(len(texts), len(KINDS), width=2.7)
    for row, text in enumerate(texts):
        shown = EMBEDDED[text]["name"] if results.scale == "quick" else text
        for column, kind in enumerate(KINDS):
            found = counts(results, text, kind)
            found = found[found > 0]
            rank, slope = np.arange(1, len(found) + 1), zipf.fit(found).slope
            label = f"{exponent_label(found)}\nslope {slope:.2f}"
            panel = picture.panel(row, column, f"{shown}, {kind}", "rank", "" if column else "tokens of the class")
            panel.line(rank, found, "count", color="black", linewidth=1.2)
            fitted = np.arange(zipf.LOW, zipf.HIGH + 1)
            inside = found[fitted - 1]
            scale = np.exp(np.mean(np.log(inside) - slope * np.log(fitted)))
            panel.line(fitted, scale * fitted**slope, label, color="#c0392b", linestyle="--")
            panel.axes.set(xscale="log", yscale="log")
            panel.axes.legend(handles=panel.axes.lines[1:], loc="lower left", handlelength=1.4)
    return picture


def exponent_label(found: Array) -> str:
    """Return Zipf's exponent in ranks 10 to 1 000, with its 95 % interval if the law is not rejected."""
    law = zipf.estimate(found, zipf.LOW, zipf.HIGH)
    if not law.last:
        return "$s$ not estimated"
    return f"$s$ = {law.exponent:.3f}" + (f" ± {law.high - law.exponent:.3f}" if law.fits else ", no power law")


def rule(text: str, kind: str) -> ClaimRule:
    """Return the claim that one histogram is heavy-tailed."""
    shown = f"{text} (at quick scale {EMBEDDED[text]['name']})" if text in EMBEDDED else text
    return claim(f"slope-{kind}-{text.lower()}", "within", (-1.3, -0.7),
        f"{shown}, {kind}: least-squares slope of log frequency on log rank, ranks {zipf.LOW} to {zipf.HIGH}",
        lambda results: zipf.fit(counts(results, text, kind)).slope,
        quote="figure 9: the k-th most frequent token has frequency about 1/k")  # fmt: skip


register(
    Figure(
        "fig09",
        "Token frequencies by tokenizer and text",
        "Figure 9",
        "The k-th most frequent token has frequency about 1/k, whether tokens are words or pieces of words. "
        f"Slope: least squares over ranks {zipf.LOW} to {zipf.HIGH} (dashed). s: Zipf's exponent by maximum likelihood "
        "over those of these ranks that are certain (docs/zipf.md), with its 95 % interval unless the law is rejected.",
        (),
        tuple(rule(text, kind) for text in PAPER for kind in KINDS),
        plot,
    )
)
