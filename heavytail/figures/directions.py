"""The direction figures: the sign matters more than step length or momentum (figures 5, 19, 20 and 21).

Two rows, without and with momentum: the overall loss of GD, Adam, normalised GD and sign descent, then each by group.
"""

from __future__ import annotations

from dataclasses import replace

from heavytail.experiment.preset import SCALES
from heavytail.figures.vision import LONG_CNN
from heavytail.plotting.panels import group_losses, key_below, loss_label, overall_loss
from heavytail.plotting.style import Picture, optimizer_name
from heavytail.results.claims import direction_rules
from heavytail.results.figure import Figure, register
from heavytail.results.results import Results, SweepRef

DIRECTIONS = ("gd", "adam", "normalized-gd", "sign")
MOMENTA = {"-m": "without momentum", "+m": "with momentum"}
HALF = SweepRef("linear", shown=dict.fromkeys(SCALES, 0.5))  # the paper searches over 1 000 steps and shows 500
ABOUT = (
    "Normalised GD, which changes the length of the step alone, stays with GD; sign descent, which changes its "
    "direction, lowers rare groups as Adam does, with momentum and without (dashed: initial loss)."
)


def direction_figure(name: str, title: str, paper: str, problem: SweepRef) -> Figure:
    """Return the figure of all eight optimizers on one problem."""
    ref = replace(problem, optim=tuple(f"{base}{m}" for m in MOMENTA for base in DIRECTIONS))

    def plot(results: Results) -> Picture:
        picture = Picture(2, 5, width=2.2, height=2.1)
        losses = []
        for row, (m, words) in enumerate(MOMENTA.items()):
            runs = [results.selected(ref, f"{base}{m}") for base in DIRECTIONS]
            losses.append(picture.panel(row, 0, f"overall, {words}", "step", loss_label("train")))
            overall_loss(losses[-1], runs, legend=False)
            for column, run in enumerate(runs, 1):
                title = optimizer_name(run.label, stochastic=run.stochastic, momentum=True)
                losses.append(picture.panel(row, column, title, "step", ""))
                group_losses(losses[-1], run)
        picture.share_y(losses, 2 * runs[0].initial_loss)
        picture.group_bar(losses, runs[0].num_groups)
        key_below(picture, [picture.panels[row, 0] for row in range(len(MOMENTA))], runs)
        return picture

    return Figure(name, title, paper, ABOUT, (ref,), direction_rules(ref), plot)


register(direction_figure("fig05", "Last layer of a simplified transformer", "Figure 5", SweepRef("last-layer")))
register(direction_figure("fig19", "Eight optimizers, softmax regression", "Figure 19", HALF))
register(
    direction_figure("fig20", "Eight optimizers, one-layer transformer", "Figure 20", SweepRef("one-layer-transformer"))
)
register(direction_figure("fig21", "Eight optimizers, CNN", "Figure 21", LONG_CNN))
