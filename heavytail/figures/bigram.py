"""Beyond the paper: steps of gradient descent and sign descent on linear bigram models (arXiv 2505.19227)."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from heavytail.analysis.bigram import Bigrams, scaling
from heavytail.figures.tokens import EMBEDDED, PAPER, Settings, load, source
from heavytail.plotting.style import Panel, Picture, optimizer_colour, optimizer_name
from heavytail.results.claims import ClaimRule, claim
from heavytail.results.figure import Figure, register
from heavytail.results.results import MissingRuns, Results

LOSSES = (0.5, 0.2, 0.1)  # eps: target relative losses
SIZES = (100, 316, 1_000, 3_162, 10_000, 31_623, 100_000)  # d
FITTED = slice(2, None)  # the laws are for large d: slopes are fitted from d = 1 000 on
TEXT_LOSS, TEXT_SIZES = 0.1, 6  # eps, and the number of vocabulary sizes per text
SMALLEST = 100

Steps = dict[str, list[int]]
"""Steps of each optimizer, one per size."""


@lru_cache
def zipf_steps(exponent: float, eps: float) -> Steps:
    """Return the steps to a relative loss of eps on d tokens of a power law, for every d."""
    models = [Bigrams.zipf(size, exponent) for size in SIZES]
    return {"gd": [one.gd_steps(eps) for one in models], "sign": [one.sign_steps(eps) for one in models]}


def text_steps(results: Results, text: str) -> tuple[list[int], Steps]:
    """Return vocabulary sizes d, and the steps to the relative loss on the bigrams of a text's d most frequent words.

    Raises:
        MissingRuns: the text is not available; the message gives the reason.
    """
    return _text_steps(*source(results, text, "word"))


@lru_cache
def _text_steps(settings: Settings, data_dir: Path) -> tuple[list[int], Steps]:
    data = load(settings, data_dir)
    first, second = data.train.inputs.numpy(), data.train.targets.numpy()
    largest = len(np.unique(first))
    sizes = [int(size) for size in np.geomspace(SMALLEST, largest, TEXT_SIZES).round()]
    models = [Bigrams.count(first, second, size) for size in sizes]
    steps = {
        "gd": [one.gd_steps(TEXT_LOSS) for one in models],
        "sign": [one.sign_steps(TEXT_LOSS) for one in models],
    }
    return sizes, steps


# -- claims ----------------------------------------------------------------------------------------------------------


def slope(optimizer: str, exponent: float, eps: float) -> float:
    """Return the slope of log(steps) on log(d) from d = 1 000 on."""
    return scaling(SIZES[FITTED], zipf_steps(exponent, eps)[optimizer][FITTED])


def extra_growth(results: Results, text: str) -> float:
    """Return the slope of log(steps) on log(d) for gradient descent minus that for sign descent."""
    sizes, steps = text_steps(results, text)
    return scaling(sizes, steps["gd"]) - scaling(sizes, steps["sign"])


def sign_share(results: Results, text: str) -> float:
    """Return the steps of sign descent, relative to gradient descent's, with all words of a text."""
    _, steps = text_steps(results, text)
    return steps["sign"][-1] / steps["gd"][-1]


def text_rules(text: str) -> tuple[ClaimRule, ...]:
    """Return the claims on one text."""
    shown = f"{text} (at quick scale {EMBEDDED[text]['name']})" if text in EMBEDDED else text
    return (
        claim(f"gd-grows-faster-{text.lower()}", ">", 0.0,
            f"bigrams of {shown}: slope of log(steps to r = {TEXT_LOSS}) on log(vocabulary size), GD's less sign "
            "descent's", lambda results: extra_growth(results, text)),
        claim(f"sign-first-{text.lower()}", "<", 1.0,
            f"bigrams of {shown}, all words: steps of sign descent to r = {TEXT_LOSS}, relative to GD's",
            lambda results: sign_share(results, text)),
    )  # fmt: skip


# -- picture ---------------------------------------------------------------------------------------------------------


def draw_steps(panel: Panel, sizes: list[int], steps: Steps, eps: float, shade: float = 1.0) -> None:
    """Draw the steps of both optimizers to a loss of eps over sizes; `shade` is the opacity of the lines."""
    for optimizer, counts in steps.items():
        style = {"color": optimizer_colour(optimizer), "alpha": shade, "marker": "o", "markersize": 3}
        panel.line(sizes, counts, f"{optimizer_name(optimizer)}, r = {eps:g}", **style)
    panel.axes.set(xscale="log", yscale="log")


def draw_power_law(panel: Panel, exponent: float) -> None:
    """Draw the steps to every loss under a power law, each line with its r at the end."""
    for eps, shade in zip(LOSSES, (0.45, 0.7, 1.0), strict=True):
        steps = zipf_steps(exponent, eps)
        draw_steps(panel, list(SIZES), steps, eps, shade)
        for optimizer, counts in steps.items():
            shift = 2.5 if optimizer == "sign" else -2.5  # the lines of both optimizers may end at the same point
            place = {"textcoords": "offset points", "xytext": (4, shift), "va": "center", "fontsize": 6}
            colour = optimizer_colour(optimizer)
            panel.axes.annotate(f"r = {eps:g}", (SIZES[-1], counts[-1]), color=colour, **place)
    panel.axes.set_xlim(right=5 * SIZES[-1])


def plot(results: Results) -> Picture:
    """Draw steps over d for two power laws, and over the vocabulary size of each text."""
    texts = [text for text in PAPER if results.scale != "quick" or text in EMBEDDED]
    picture = Picture(1, 2 + len(texts), width=2.8, height=2.6)
    for column, exponent in enumerate((1.0, 1.5)):
        title = f"power law, a = {exponent:g}"
        draw_power_law(picture.panel(0, column, title, "tokens d", "" if column else "steps to r"), exponent)
    for column, text in enumerate(texts, 2):
        name = EMBEDDED[text]["name"] if results.scale == "quick" else text
        panel = picture.panel(0, column, f"bigrams of {name}, r = {TEXT_LOSS:g}", "vocabulary size", "")
        try:
            draw_steps(panel, *text_steps(results, text), TEXT_LOSS)
        except MissingRuns:
            panel.note(f"{name} is not available")
    lines = picture.panels[0, 0].axes.lines[-2:]
    picture.panels[0, 0].axes.legend(lines, [optimizer_name("gd"), optimizer_name("sign")], loc="upper left")
    return picture


register(
    Figure(
        "bigram",
        "Linear bigram models",
        "Kunstner and Bach 2025, arXiv 2505.19227",
        "Steps to a loss of r times the initial one, sign descent at its best step size. Under Zipf's law (a = 1) "
        "gradient descent needs a number of steps that grows as d^(1-r), sign descent as the square root of d. With a "
        "lighter tail (a = 1.5) gradient descent does not slow down. Computed in closed form.",
        (),
        (
            claim("gd-zipf", "<=", 0.1,
                f"GD, a = 1: largest |slope of log(steps to r) on log(d) - (1 - r)| over r = {LOSSES}, d = 1e3 to 1e5",
                lambda results: np.max([abs(slope("gd", 1.0, eps) - (1 - eps)) for eps in LOSSES])),
            claim("sign-zipf", "<=", 0.05,
                f"sign descent, a = 1: largest |slope of log(steps to r) on log(d) - 1/2| over r = {LOSSES}, "
                "d = 1e3 to 1e5", lambda results: np.max([abs(slope("sign", 1.0, eps) - 0.5) for eps in LOSSES])),
            claim("gd-light", "<=", 0.2,
                f"GD, a = 1.5: largest slope of log(steps to r) on log(d) over r = {LOSSES}, d = 1e3 to 1e5",
                lambda results: np.max([slope("gd", 1.5, eps) for eps in LOSSES])),
            *(rule for text in PAPER for rule in text_rules(text)),
        ),
        plot,
    )
)  # fmt: skip
