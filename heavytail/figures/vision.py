"""Vision models on the same images with balanced and heavy-tailed labels (figures 2, 3, 11, 12, 13 and 14)."""

from __future__ import annotations

import numpy as np

from heavytail.plotting.panels import group_row, loss_label, overall_loss
from heavytail.plotting.style import Picture
from heavytail.results.claims import ClaimRule, claim, group_ratios, imbalance_rules, progress, ratio
from heavytail.results.figure import Figure, register
from heavytail.results.results import Results, SweepRef

PAIR = ("gd+m", "adam+m")


def rows_figure(
    name: str, title: str, paper: str, about: str, rows: dict[SweepRef, str], rules: tuple[ClaimRule, ...]
) -> Figure:
    """Return a figure with a row for each data set (and its labels): classes, overall loss, GD and Adam by group."""

    def plot(results: Results) -> Picture:
        picture = Picture(len(rows), 4)
        for row, (ref, labels) in enumerate(rows.items()):
            name = ", ".join(filter(None, (results.data_title(ref), labels)))
            group_row(picture, row, results, ref, name=name)
        return picture

    return Figure(name, title, paper, about, tuple(rows), rules, plot)


def imbalance_figure(name: str, title: str, paper: str, preset: str) -> Figure:
    """Return the figure of one vision model on a balanced and on a heavy-tailed subset of one data set."""
    uniform, heavy = SweepRef(preset, PAIR, "uniform"), SweepRef(preset, PAIR, "heavy-tailed")
    about = (
        "On balanced labels SGD keeps up with Adam; on heavy-tailed ones it falls behind, on rare classes above all."
    )
    rows = {uniform: "uniform", heavy: "heavy-tailed"}
    return rows_figure(name, title, paper, about, rows, imbalance_rules(uniform, heavy))


DIGITS, BARCODED, COMBINED = (SweepRef("cnn", PAIR, variant) for variant in ("mnist", "barcoded", ""))
FULL = SweepRef("simple-vit", PAIR, "full")

register(
    rows_figure(
        "fig02",
        "CNN on digits, without and with barcoded ones",
        "Figure 2",
        "GD solves the ten digits; with many rare, barcoded classes added it fits the digits and makes no progress on "
        "the rest.",
        {DIGITS: "", COMBINED: ""},
        (
            claim("mnist-solved", "<=", 0.1,
                "digits alone: final loss relative to the initial loss, the larger of GD and Adam",
                lambda r: np.max([progress(r.selected(DIGITS, label)) for label in PAIR])),
            claim("barcoded-stays", ">=", 0.9,
                "digits and barcoded ones: final loss of GD on the barcoded group, relative to its initial loss",
                lambda r: group_ratios(r.selected(COMBINED, "gd+m"))[-1]),
            claim("digits-fall", "<=", 0.5,
                "digits and barcoded ones: final loss of GD on the digits, relative to its initial loss",
                lambda r: group_ratios(r.selected(COMBINED, "gd+m"))[0]),
            claim("adam-lowers-both", "<=", 0.5,
                "digits and barcoded ones: final loss of Adam relative to the initial loss, the larger of both groups",
                lambda r: group_ratios(r.selected(COMBINED, "adam+m")).max()),
        ),
    )
)  # fmt: skip
register(imbalance_figure("fig03", "ResNet18 on uniform and heavy-tailed labels", "Figure 3", "resnet18"))
register(imbalance_figure("fig11", "ResNet18 with LayerNorm instead of BatchNorm", "Figure 11", "resnet18-layernorm"))
register(
    rows_figure(
        "fig12",
        "SimpleViT on nearly balanced labels",
        "Figure 12",
        "On the full, nearly balanced data set SGD and Adam train a vision transformer alike.",
        {FULL: ""},
        (
            claim("no-gap", "<=", 0.1, "|L(SGD)/L(Adam) - 1|, final losses",
                lambda r: abs(ratio(r.selected(FULL, "gd+m").final_loss, r.selected(FULL, "adam+m").final_loss) - 1)),
        ),
    )
)  # fmt: skip
register(imbalance_figure("fig13", "SimpleViT on uniform and heavy-tailed labels", "Figure 13", "simple-vit"))

SETS = (DIGITS, BARCODED, COMBINED)


def plot_balance(results: Results) -> Picture:
    """Draw figure 14: the overall loss of GD and Adam on each of the three data sets."""
    picture = Picture(1, len(SETS), width=2.7)
    for column, ref in enumerate(SETS):
        panel = picture.panel(0, column, results.data_title(ref), "step", "" if column else loss_label("train"))
        overall_loss(panel, [results.selected(ref, label) for label in results.labels(ref)])
    return picture


register(
    Figure(
        "fig14",
        "It is the imbalance, not the number of classes",
        "Figure 14",
        "GD trains the CNN on either balanced set, of ten classes or of many; only on their union does it fall behind.",
        SETS,
        (
            claim("balanced-solved", "<=", 0.05,
                "final loss of GD relative to the initial loss, the larger of digits alone and barcoded ones alone",
                lambda r: np.max([progress(r.selected(ref, "gd+m")) for ref in (DIGITS, BARCODED)])),
            claim("combined-stays", ">=", 0.3,
                "final loss of GD on digits and barcoded ones together, relative to the initial loss",
                lambda r: progress(r.selected(COMBINED, "gd+m"))),
        ),
        plot_balance,
    )
)  # fmt: skip
