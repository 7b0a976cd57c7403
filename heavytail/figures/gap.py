"""The gap figures: GD is slow on rare classes, Adam is not (figures 1, 4, 10, 17 and 18).

One row each: class histogram, overall loss, and the loss by frequency group under GD and under Adam.
"""

from __future__ import annotations

import math

import numpy as np

from heavytail.plotting.panels import group_row
from heavytail.plotting.style import Picture
from heavytail.results.claims import ClaimRule, claim, gap_rules, group_ratios
from heavytail.results.figure import Figure, register
from heavytail.results.results import Results, SweepRef

PAIR = ("gd+m", "adam+m")


def gap_figure(
    name: str,
    title: str,
    paper: str,
    preset: str,
    *claims: str,
    more: tuple[ClaimRule, ...] = (),
    about: str = "",
    split: str = "train",
    quote: str = "",
) -> Figure:
    """Return the figure of the gap between GD and Adam, both with momentum, on one preset.

    Args:
        name, title, paper: as in Figure.
        preset: the problem.
        claims: names of the gap claims; all six by default.
        more: further claims.
        about: replaces the usual caption.
        split: "train" or "test".
        quote: place of the gap claims in the paper, and its words.
    """
    ref = SweepRef(preset, PAIR)

    def plot(results: Results) -> Picture:
        picture = Picture(1, 4)
        group_row(picture, 0, results, ref, split=split)
        return picture

    usual = (
        "GD lowers the loss of frequent classes and leaves rare ones behind; Adam lowers all (dashed: initial loss)."
    )
    rules = (*gap_rules(ref, *claims, split=split, quote=quote or paper.lower()), *more)
    return Figure(name, title, paper, about or usual, (ref,), rules, plot)


GPT2, LINEAR = SweepRef("gpt2", PAIR), SweepRef("linear", PAIR)


def first_rise(results: Results) -> float:
    """Return the largest loss of GD on the rarest group at any step, relative to its initial loss (figure 4)."""
    run = results.selected(LINEAR, "gd+m")
    return float(group_ratios(run, run.group_curves().max(axis=0))[-1]) if run.step.size else math.inf


def largest_rise(results: Results) -> float:
    """Return the largest rise of GD's loss on the most frequent group from row to row, relative to its initial loss."""
    run = results.selected(LINEAR, "gd+m")
    curve = run.group_curves()[:, 0]
    steps = np.diff(curve[np.isfinite(curve)])
    return float(steps.max() / run.initial_group_loss[0]) if steps.size else math.nan


register(
    gap_figure(
        "fig01",
        "GPT-2",
        "Figure 1",
        "gpt2",
        more=(
            claim("rare-not-below-init", ">=", 1.0,
                "final loss of SGD on the rarest group, relative to its initial loss",
                lambda r: group_ratios(r.selected(GPT2, "gd+m"))[-1],
                quote='appendix C.2: "the average loss on 10 % of the data ... is still higher than at initialization '
                'after 15k steps"'),
        ),
    )
)  # fmt: skip
register(
    gap_figure(
        "fig04",
        "Softmax regression on random heavy-tailed labels",
        "Figure 4",
        "linear",
        "ordered",
        "rare-gap",
        "adam-ahead",
        "adam-lowers-all",
        more=(
            claim("rare-first-rises", ">", 1.0,
                "largest loss of GD on the rarest group at any step, relative to its initial loss", first_rise,
                quote='"the loss from low-frequency classes will instead first increase, as can be seen for example in '
                'figure 4"'),
            claim("frequent-oscillates", ">", 0.0,
                "largest rise of GD's loss on the most frequent group between two recorded steps, relative to its "
                "initial loss", largest_rise,
                quote='"oscillations in the loss of frequent classes, as can be seen in figures 2, 3, 4 and 5"'),
        ),
        about="The gap needs neither language nor depth: labels drawn independently of the inputs, a linear model.",
    )
)  # fmt: skip
register(
    gap_figure(
        "fig10",
        "GPT-2, validation loss",
        "Figure 10",
        "gpt2",
        about="As figure 1, on the validation split (grouped by training frequency).",
        split="test",
        quote='figure 10: "SGD makes little to no progress on low-frequency classes while Adam makes progress on all '
        'groups"',
    )
)
register(gap_figure("fig17", "Two-layer transformer", "Figure 17", "two-layer-transformer"))
register(gap_figure("fig18", "One-layer transformer, full batch", "Figure 18", "one-layer-transformer"))
