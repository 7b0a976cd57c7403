"""Beyond the paper: normalised gradient descent and sign descent on the softmax unigram model (arXiv 2512.00763)."""

from __future__ import annotations

from functools import cache

import numpy as np

from heavytail.analysis import theory
from heavytail.analysis.unigram import OPTIMIZERS, bound, fewest_steps
from heavytail.plotting.style import Picture, optimizer_colour, optimizer_name
from heavytail.results.claims import claim
from heavytail.results.figure import Figure, register
from heavytail.results.results import Array, Results

SIZES = (10, 30, 100, 300, 1_000, 3_000, 10_000)  # c
EPS = 0.01  # nats above the entropy of the data
RATES = 10.0 ** np.arange(-2.0, 0.51, 0.25)


@cache
def steps(optimizer: str) -> Array:
    """Return the steps of an optimizer at its best step size, for every vocabulary size."""
    return np.array([fewest_steps(theory.zipf(c), optimizer, EPS, RATES)[0] for c in SIZES])


def advantage() -> Array:
    """Return the ratio of the steps of normalised GD to those of sign descent, for every vocabulary size."""
    ratio: Array = steps("normalized-gd") / steps("sign")
    return ratio


def plot(results: Results) -> Picture:
    """Draw the steps of both over c, and their ratio with that of the bounds."""
    picture = Picture(1, 2, width=3.2, height=2.6)
    left = picture.panel(0, 0, f"steps to {EPS} nats of the minimum", "tokens c", "steps")
    for optimizer in OPTIMIZERS:
        style = {"color": optimizer_colour(optimizer), "marker": "o", "markersize": 3}
        left.line(SIZES, steps(optimizer), optimizer_name(optimizer), **style)
    right = picture.panel(0, 1, "normalised GD over sign descent", "tokens c", "ratio")
    right.line(SIZES, advantage(), "steps", color="black", marker="o", markersize=3)
    bounds = [bound(theory.zipf(c), "normalized-gd") / bound(theory.zipf(c), "sign") for c in SIZES]
    right.line(SIZES, bounds, "upper bounds", color="black", linestyle="--", linewidth=1.0)
    for panel in (left, right):
        panel.axes.set(xscale="log", yscale="log")
        panel.axes.legend(loc="upper left", handlelength=1.6)
    return picture


register(
    Figure(
        "unigram",
        "Softmax unigram models",
        "Yadav et al. 2025, arXiv 2512.00763",
        "Steps of fixed length to a small excess loss under Zipf's law, each optimizer at its best step size. The more "
        "tokens, the more steps normalised gradient descent takes relative to sign descent. Computed, not trained.",
        (),
        (
            claim("advantage-grows", ">", 1.0,
                "steps of normalised GD over those of sign descent: smallest factor from one vocabulary size to the "
                f"next, c = {SIZES[0]} to {SIZES[-1]}",
                lambda results: float((advantage()[1:] / advantage()[:-1]).min())),
            claim("sign-first", "<", 1.0, f"steps of sign descent relative to those of normalised GD, c = {SIZES[-1]}",
                lambda results: float(1 / advantage()[-1])),
        ),
        plot,
    )
)  # fmt: skip
