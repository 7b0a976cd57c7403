"""Panels shared by the figures: histogram, overall loss, loss by frequency group, step-size search.

Shapes: E recorded steps, C classes, G frequency groups. Losses are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from textwrap import wrap
from typing import Any

import numpy as np

from heavytail.experiment.search import Best
from heavytail.plotting.style import (
    Panel,
    Picture,
    applied,
    forget_colours,
    group_colours,
    optimizer_colour,
    optimizer_name,
    split_label,
)
from heavytail.results.figure import Figure
from heavytail.results.figure import Picture as PictureOf
from heavytail.results.results import Array, Results, Selected, SweepRef

THIN = 0.7  # width of lines that would otherwise cover what they oscillate over, in points


def draw(figure: Figure, results: Results) -> PictureOf:
    """Plot a figure in the common style; MissingRuns if its runs are missing."""
    forget_colours()
    with applied():
        return figure.plot(results.for_figure(figure.id))


def loss_label(split: str) -> str:
    """Return the name of a loss axis."""
    return {"train": "training loss (nats)", "test": "validation loss (nats)"}[split]


def class_histogram(panel: Panel, run: Selected) -> None:
    """Plot samples per class against the class's rank, for the data of a run."""
    rank_histogram(panel, run.counts, run.group)


def balanced(counts: Array) -> bool:
    """Return whether all classes that occur [C] do so equally often: their groups then say nothing about frequency."""
    seen = counts[counts > 0]
    return bool(len(seen) and seen.min() == seen.max())


def shades(counts: Array, num_groups: int) -> list[Any]:
    """Return the colours of the frequency groups; grey for all where the classes are balanced."""
    return ["#8c8c8c"] * num_groups if balanced(counts) else group_colours(num_groups)


def rank_histogram(panel: Panel, counts: Array, group: Array) -> None:
    """Plot samples per class against the class's rank, both logarithmic, coloured by frequency group.

    Args:
        panel: the panel.
        counts: samples of each class [C].
        group: frequency group of each class [C].
    """
    order = np.lexsort((-counts, group))
    counts, groups = counts[order], group[order]
    rank = np.arange(1, len(counts) + 1)
    seen = counts > 0
    # Over a decade for equal counts: an axis of less has crowded labels.
    floor, top = (counts[seen].min() / 10, counts.max() * 2) if balanced(counts) else (counts[seen].min() / 2, None)
    # half a rank on each side makes a single class visible
    edges = np.append(rank[seen] - 0.5, rank[seen][-1] + 0.5)
    for g, colour in enumerate(shades(counts, int(groups.max()) + 1)):
        mine = seen & (groups == g)
        if mine.any():
            sides = np.append(rank[mine] - 0.5, rank[mine][-1] + 0.5)
            heights = np.append(counts[mine], counts[mine][-1])
            panel.axes.fill_between(sides, floor, heights, step="post", color=colour, linewidth=0)
    panel.steps(edges, counts[seen], "samples per class", color="black", linewidth=0.8)
    panel.axes.set(xscale="log", yscale="log", ylim=(floor, top), xlim=(0.5, rank[seen].max() + 0.5))


def overall_loss(
    panel: Panel,
    runs: Sequence[Selected],
    *,
    until: int | None = None,
    momentum: bool = False,
    legend: bool = True,
) -> None:
    """Draw the overall loss of several optimizers over steps: the median over seeds, shaded from minimum to maximum.

    Args:
        panel: the panel.
        runs: the optimizers.
        until: last step shown; None for all.
        momentum: whether names include "+m" or "-m"; lines without momentum are then dashed.
        legend: whether to add a key.
    """
    for run in runs:
        name = optimizer_name(run.label, stochastic=run.stochastic, momentum=momentum)
        if run.lr is None:
            panel.note(f"{name}: no stable step size")
            continue
        shown = slice(None) if until is None else run.step <= until
        step, median, low, high = (values[shown] for values in run.curve())
        colour = optimizer_colour(run.label)
        dashed = momentum and split_label(run.label)[1] == "-m"
        panel.band(step, low, high, name, color=colour, alpha=0.2)
        panel.line(step, median, name, color=colour, linestyle="--" if dashed else "-")
    panel.level(runs[0].initial_loss, "initial")
    if legend and any(run.lr is not None for run in runs):
        solved = all(run.final_loss < runs[0].initial_loss / 2 for run in runs)  # then the upper right corner is empty
        place = {"loc": "upper right", "bbox_to_anchor": (1, 0.92)} if solved else {"loc": "best"}
        panel.axes.legend(handlelength=1.4, **place)
    panel.axes.set_ylim(bottom=0)


def key_below(picture: Picture, panels: Sequence[Panel], runs: Sequence[Selected], **style: Any) -> None:
    """Add one key for several panels with the losses of the same optimizers, below the picture (`Picture.legend`)."""
    names = [optimizer_name(run.label, stochastic=run.stochastic) for run in runs]
    picture.legend(panels, dict(zip(names, names, strict=True)), **style)


def oscillates(curve: Array) -> bool:
    """Return whether a curve [E] turns at more than a quarter of its points."""
    change = np.diff(curve[np.isfinite(curve)])
    return len(change) > 8 and float(np.mean(change[1:] * change[:-1] < 0)) > 0.25


def group_losses(panel: Panel, run: Selected, *, until: int | None = None) -> None:
    """Draw the loss of each frequency group over steps for one optimizer, median over seeds; initial loss dashed."""
    panel.level(run.initial_loss, "initial")
    if run.lr is None:
        panel.note("no stable step size")
    else:
        shown = slice(None) if until is None else run.step <= until
        curves = run.group_curves()[shown]
        width = THIN if np.mean([*map(oscillates, curves.T)]) > 0.5 else None
        for g, colour in enumerate(shades(run.counts, run.num_groups)):
            panel.line(run.step[shown], curves[:, g], f"group {g + 1}", color=colour, linewidth=width)
    panel.axes.set_ylim(bottom=0)


def final_group_losses(panel: Panel, runs: Sequence[Selected], *, legend: bool = True) -> None:
    """Draw the final loss of each frequency group for several optimizers, median over seeds; initial loss dashed."""
    for run in runs:
        name = optimizer_name(run.label, stochastic=run.stochastic)
        if run.lr is None:
            panel.note(f"{name}: no stable step size")
            continue
        style = {"color": optimizer_colour(run.label), "marker": "o", "markersize": 3.5}
        panel.line(np.arange(1, run.num_groups + 1), run.final_group_loss, name, **style)
    panel.level(runs[0].initial_loss, "initial")
    if legend and any(run.lr is not None for run in runs):
        panel.axes.legend(loc="best", handlelength=1.4)
    panel.axes.set_ylim(bottom=0)
    panel.axes.set_xticks([1, runs[0].num_groups] if runs[0].num_groups > 1 else [1])


def step_size_search(panel: Panel, searches: Sequence[Best]) -> None:
    """Draw the final loss (maximum over seeds) of every step size; rings: selected; crosses: lost."""
    for best in searches:
        rates = np.array([c.lr for c in best.candidates])
        losses = np.array([c.loss for c in best.candidates])
        colour = optimizer_colour(best.label)
        name = optimizer_name(best.label, momentum=True)
        dashed = split_label(best.label)[1] == "-m"
        finite = np.isfinite(losses)
        panel.line(rates[finite], losses[finite], name, color=colour, marker=".", linestyle="--" if dashed else "-")
        if best.chosen is not None:
            ring = {"marker": "o", "markersize": 8, "markerfacecolor": "none", "color": colour}
            panel.points([best.chosen.lr], [best.chosen.loss], f"{name}, selected", **ring)
        if not finite.all():
            top = panel.axes.get_xaxis_transform()
            panel.points(rates[~finite], np.full((~finite).sum(), 0.98), f"{name}, lost", transform=top, marker="x",
                         color=colour, markersize=4)  # fmt: skip
    losses = np.array([c.loss for best in searches for c in best.candidates if np.isfinite(c.loss)])
    wide = losses.size > 0 and losses.max() > 10 * losses.min()
    panel.axes.set(xscale="log", yscale="log" if wide else "linear")
    handles, labels = panel.axes.get_legend_handles_labels()
    entries = [(h, text) for h, text in zip(handles, labels, strict=True) if "," not in text]
    if entries:
        panel.axes.legend(*zip(*entries, strict=True), loc="best", ncols=math.ceil(len(entries) / 4), handlelength=1.8)


def group_row(
    picture: Picture, row: int, results: Results, ref: SweepRef, *, name: str = "", split: str = "train"
) -> list[Panel]:
    """Fill a row of four panels: class histogram, overall loss, and the loss by group of two optimizers.

    Args:
        picture: of four columns.
        row: of the picture.
        results: finished runs.
        ref: a sweep of two optimizers.
        name: of the data, above the histogram.
        split: "train" or "test".

    Returns:
        The three panels with losses.
    """
    runs = [results.selected(ref, label, split) for label in results.labels(ref)]
    histogram = picture.panel(row, 0, name or "classes", "class, by frequency", "samples")
    class_histogram(histogram, results.selected(ref, runs[0].label))
    losses = [picture.panel(row, 1, "overall", "step", loss_label(split))]
    overall_loss(losses[0], runs)
    for column, run in enumerate(runs, 2):
        title = f"{optimizer_name(run.label, stochastic=run.stochastic)}, by group"
        losses.append(picture.panel(row, column, title, "step", ""))
        group_losses(losses[-1], run)
    picture.share_y(losses, 2 * runs[0].initial_loss)
    if not balanced(runs[0].counts):
        picture.group_bar(losses, runs[0].num_groups)
    return losses


def search_picture(results: Results, refs: Sequence[SweepRef]) -> Picture:
    """Return the picture of a figure's step-size searches, a panel per sweep."""
    picture = Picture(1, len(refs), width=3.6, height=2.6)
    for column, ref in enumerate(refs):
        title = "\n".join(wrap(results.sweep(ref).title, 40))
        panel = picture.panel(0, column, title, "step size", "final training loss (nats)")
        step_size_search(panel, [results.search(ref, label) for label in results.labels(ref)])
    return picture
