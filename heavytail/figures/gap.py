"""The gap figures: GD is slow on rare classes, Adam is not (figures 1, 4, 10, 17 and 18).

One row each: class histogram, overall loss, and the loss by frequency group under GD and under Adam.
"""

from __future__ import annotations

from heavytail.plotting.panels import group_row
from heavytail.plotting.style import Picture
from heavytail.results.claims import gap_rules
from heavytail.results.figure import Figure, register
from heavytail.results.results import Results, SweepRef

PAIR = ("gd+m", "adam+m")


def gap_figure(
    name: str, title: str, paper: str, preset: str, *claims: str, about: str = "", split: str = "train"
) -> Figure:
    """Return the figure of the gap between GD and Adam, both with momentum, on one preset.

    Args:
        name, title, paper: as in Figure.
        preset: the problem.
        claims: names of the gap claims; all six by default.
        about: replaces the usual caption.
        split: "train" or "test".
    """
    ref = SweepRef(preset, PAIR)

    def plot(results: Results) -> Picture:
        picture = Picture(1, 4)
        group_row(picture, 0, results, ref, split=split)
        return picture

    usual = (
        "GD lowers the loss of frequent classes and leaves rare ones behind; Adam lowers all (dashed: initial loss)."
    )
    return Figure(name, title, paper, about or usual, (ref,), gap_rules(ref, *claims, split=split), plot)


register(gap_figure("fig01", "GPT-2", "Figure 1", "gpt2"))
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
        about="The gap needs neither language nor depth: labels drawn independently of the inputs, a linear model.",
    )
)
register(
    gap_figure(
        "fig10",
        "GPT-2, validation loss",
        "Figure 10",
        "gpt2",
        "ordered",
        "rare-gap",
        "adam-ahead",
        about="As figure 1, on the validation split (grouped by training frequency).",
        split="test",
    )
)
register(gap_figure("fig17", "Two-layer transformer", "Figure 17", "two-layer-transformer"))
register(gap_figure("fig18", "One-layer transformer, full batch", "Figure 18", "one-layer-transformer"))
