"""Vision models on the same images with balanced and heavy-tailed labels (figures 2, 3, 11, 12, 13 and 14)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from heavytail.plotting.panels import group_row, loss_label, overall_loss
from heavytail.plotting.style import Picture
from heavytail.results.claims import (
    ClaimRule,
    NotInformative,
    area,
    claim,
    group_ratios,
    imbalance_rules,
    lag,
    moved,
    progress,
    ratio,
    stall_rule,
)
from heavytail.results.figure import Figure, register
from heavytail.results.results import Results, SweepRef

PAIR = ("gd+m", "adam+m")
Rules = Callable[[SweepRef, SweepRef], tuple[ClaimRule, ...]]
"""The claims on a model, given its balanced and its heavy-tailed data."""


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


def imbalance_figure(name: str, title: str, paper: str, preset: str, rules: Rules) -> Figure:
    """Return the figure of one vision model on a balanced and on a heavy-tailed subset of one data set."""
    uniform, heavy = SweepRef(preset, PAIR, "uniform"), SweepRef(preset, PAIR, "heavy-tailed")
    about = (
        "On balanced labels SGD keeps up with Adam; on heavy-tailed ones it falls behind, on rare classes above all."
    )
    rows = {uniform: "uniform", heavy: "heavy-tailed"}
    return rows_figure(name, title, paper, about, rows, rules(uniform, heavy))


DIGITS, BARCODED, COMBINED = (SweepRef("cnn", PAIR, variant) for variant in ("mnist", "barcoded", ""))
# Figures 14 and 21 show 400 steps of the release's runs of 600. A reduced scale has figure 2's runs here, too.
LONG_CNN = SweepRef("cnn", PAIR, "long", shown={"paper": 2 / 3})
FULL = SweepRef("simple-vit", PAIR, "full")


def least_equal_share(results: Results) -> float:
    """Return the share of the data of the group farthest from half of it (figure 2)."""
    run = results.selected(COMBINED, "gd+m")
    shares = np.bincount(run.group, weights=run.counts) / run.counts.sum()
    return float(shares[np.abs(shares - 0.5).argmax()])


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
                lambda r: np.max([progress(r.selected(DIGITS, label)) for label in PAIR]),
                quote='figure 2: "drive the loss to 0"'),
            claim("barcoded-stays", ">=", 0.9,
                "digits and barcoded ones: final loss of GD on the barcoded group, relative to its initial loss",
                lambda r: group_ratios(r.selected(COMBINED, "gd+m"))[-1],
                quote='figure 2: "makes almost no progress on half of the data"'),
            claim("digits-fall", "<=", 0.5,
                "digits and barcoded ones: final loss of GD on the digits, relative to its initial loss",
                lambda r: group_ratios(r.selected(COMBINED, "gd+m"))[0], quote="figure 2"),
            claim("adam-lowers-both", "<=", 0.5,
                "digits and barcoded ones: final loss of Adam relative to the initial loss, the larger of both groups",
                lambda r: group_ratios(r.selected(COMBINED, "adam+m")).max(), quote="figure 2"),
            stall_rule("gd-stalls", COMBINED),
            claim("equal-groups", "within", (0.45, 0.55),
                "digits and barcoded ones: share of the data of the group farthest from one half", least_equal_share,
                quote='figure 2: "two equally-sized groups"', kind="exact"),
        ),
    )
)  # fmt: skip


def fig3_rules(uniform: SweepRef, heavy: SweepRef) -> tuple[ClaimRule, ...]:
    """Return the claims of figure 3."""
    return imbalance_rules(uniform, heavy,
        quote='figure 3: "perform similarly on uniform data but a performance gap appears across class frequencies"'
    )  # fmt: skip


def fig11_rules(uniform: SweepRef, heavy: SweepRef) -> tuple[ClaimRule, ...]:
    """Return the claims of figure 11, which does not have the two alike on uniform data."""
    return imbalance_rules(uniform, heavy, "gap-appears", "rare-gap-appears",
        quote='figure 11: "Although Adam slightly outperforms SGD on the uniform dataset, the performance gap grows"'
    )  # fmt: skip


def fig13_rules(uniform: SweepRef, heavy: SweepRef) -> tuple[ClaimRule, ...]:
    """Return the claims of figure 13, which compares each optimizer with itself."""
    quote = (
        'figure 13: "the performance of Adam appears unaffected by the change in class frequencies while the '
        'performance of SGD degrades"'
    )

    def change(results: Results, label: str) -> float:
        return area(results.selected(heavy, label)) - area(results.selected(uniform, label))

    def ends(results: Results, *labels: str) -> list[float]:
        return [progress(results.selected(ref, label)) for ref in (uniform, heavy) for label in labels]

    shown = "mean over recorded steps of loss / initial loss on heavy-tailed data less on balanced data"
    return (
        claim("adam-unaffected", "<=", 0.1, f"|{shown}| of Adam",
            lambda r: moved(abs(change(r, "adam+m")), *ends(r, "adam+m")), quote=quote),
        claim("sgd-degrades", ">", 0.0, f"{shown} of SGD, less the size of Adam's",
            lambda r: moved(change(r, "gd+m") - abs(change(r, "adam+m")), *ends(r, *PAIR)), quote=quote),
    )  # fmt: skip


def full_gap(results: Results) -> float:
    """Return the area between SGD and Adam on the full data, where both have learned enough to compare (figure 12)."""
    runs = [results.selected(FULL, label) for label in PAIR]
    value = lag(*runs)
    if not all(progress(run) <= 0.5 for run in runs):
        raise NotInformative(value, "SGD or Adam has not halved its initial loss")
    return value


register(imbalance_figure("fig03", "ResNet18 on uniform and heavy-tailed labels", "Figure 3", "resnet18", fig3_rules))
register(
    imbalance_figure(
        "fig11", "ResNet18 with LayerNorm instead of BatchNorm", "Figure 11", "resnet18-layernorm", fig11_rules
    )
)
register(
    rows_figure(
        "fig12",
        "SimpleViT on nearly balanced labels",
        "Figure 12",
        "On the full, nearly balanced data set SGD and Adam train a vision transformer alike.",
        {FULL: ""},
        (
            claim("similar-when-uniform", "<=", 0.1,
                "mean over recorded steps of (loss of SGD - loss of Adam) / initial loss", full_gap,
                quote="figure 12: little difference in training performance"),
        ),
    )
)  # fmt: skip
register(
    imbalance_figure("fig13", "SimpleViT on uniform and heavy-tailed labels", "Figure 13", "simple-vit", fig13_rules)
)

SETS = (DIGITS, BARCODED, LONG_CNN)


def more_apart(results: Results) -> float:
    """Return how much larger the area between GD and Adam is on the combination than on barcoded digits (figure 14)."""
    together, alone = ([results.selected(ref, label) for label in PAIR] for ref in (LONG_CNN, BARCODED))
    value = lag(*together) - lag(*alone)
    for runs in (together, alone):
        moved(value, *map(progress, runs))
    return value


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
                "loss at two thirds of the run relative to the initial loss, the larger of GD's and Adam's on digits "
                "alone and on barcoded ones alone",
                lambda r: np.max([progress(r.selected(one, label).until(2 / 3))
                    for one in (DIGITS, BARCODED) for label in PAIR]),
                quote='on figure 14: "both algorithms reach negligible error within 200 steps"'),
            claim("combined-stays", ">=", 0.3,
                "final loss of GD on digits and barcoded ones together, relative to the initial loss",
                lambda r: progress(r.selected(LONG_CNN, "gd+m")), quote="figure 14"),
            stall_rule("stalls", LONG_CNN),
            claim("adam-faster", "<", 1.0,
                "barcoded ones alone: mean over recorded steps of Adam's loss, relative to that of GD's",
                lambda r: moved(ratio(*(area(r.selected(BARCODED, label)) for label in reversed(PAIR))),
                    *(progress(r.selected(BARCODED, label)) for label in PAIR)), quote="figure 14"),
            claim("worse-with-imbalance", ">", 0.0,
                "mean over recorded steps of (loss of GD - loss of Adam) / initial loss: on digits and barcoded ones "
                "together less on barcoded ones alone", more_apart,
                quote='on figure 14: "As the level of imbalance is increased, GD performs increasingly worse"'),
        ),
        plot_balance,
    )
)  # fmt: skip
