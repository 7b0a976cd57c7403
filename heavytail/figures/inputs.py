"""Effect of the inputs and of the horizon on softmax regression with small synthetic data (figures 15 and 16)."""

from __future__ import annotations

import numpy as np

from heavytail.plotting.panels import final_group_losses, group_losses, loss_label, overall_loss
from heavytail.plotting.style import Picture, optimizer_name
from heavytail.results.claims import claim, compared, group_ratios, order, present, ratio
from heavytail.results.figure import Figure, register
from heavytail.results.results import Array, Results, Selected, SweepRef

SHOWN = 25  # steps in figure 15
INPUTS = {
    "inputs N(1, 1)": SweepRef("linear-inputs", ("gd-m", "adam-m"), "aligned"),
    "inputs N(0, 1)": SweepRef("linear-inputs", ("gd-m", "adam-m"), "orthogonal"),
}
ALIGNED, ORTHOGONAL = INPUTS.values()
LONG = SweepRef("linear-long", ("gd-m",))
# Figure 15: the groups are level if within this factor, or solved if below this fraction of their initial loss.
SPREAD, SOLVED = 1.5, 0.05
LOWEST = 1e-12  # nats, lower end of the logarithmic axes


def plot_inputs(results: Results) -> Picture:
    """Draw figure 15: per kind of inputs overall loss, GD and Adam by group, and final loss of each group."""
    picture = Picture(2, 4)
    for row, (name, ref) in enumerate(INPUTS.items()):
        runs = [results.selected(ref, label) for label in results.labels(ref)]
        losses = [picture.panel(row, 0, f"{name}: overall", "step", loss_label("train"))]
        overall_loss(losses[0], runs, until=SHOWN)
        for column, run in enumerate(runs, 1):
            losses.append(picture.panel(row, column, f"{name}: {optimizer_name(run.label)}", "step", ""))
            group_losses(losses[-1], run, until=SHOWN)
        losses.append(picture.panel(row, 3, f"{name}: last step", "group (1 = most frequent)", ""))
        final_group_losses(losses[-1], runs)
        if all(run.final_loss < SOLVED * runs[0].initial_loss for run in runs):
            for panel in losses:  # curves that leave a linear axis within two steps
                panel.axes.set(yscale="log", ylim=(LOWEST, 2 * runs[0].initial_loss))
        else:
            picture.share_y(losses, 2 * runs[0].initial_loss)
        picture.group_bar(losses, runs[0].num_groups)
    return picture


def level(run: Selected) -> float:
    """Return the distance of the groups from being level or solved, the smaller one; at most 1 if they are."""
    final = present(run)[1]
    return float(np.min([ratio(final.max(), final.min()) / SPREAD, group_ratios(run).max() / SOLVED]))


def groups_apart(run: Selected) -> float:
    """Return the final loss of the rarest group relative to the most frequent group's, if that is informative."""
    final, relative = present(run)[1], group_ratios(run)
    return compared(ratio(final[-1], final[0]), relative[-1], relative[0])


register(
    Figure(
        "fig15",
        "Aligned and near-orthogonal inputs",
        "Figure 15, appendix C",
        "With aligned inputs GD leaves rare groups behind; with near-orthogonal ones it fits all groups alike.",
        (ALIGNED, ORTHOGONAL),
        (
            claim("aligned-ordered", ">=", 0.9,
                "N(1, 1) inputs: Spearman correlation of a group's number with GD's final loss on it",
                lambda r: order(r.selected(ALIGNED, "gd-m")), quote="figure 15"),
            claim("aligned-apart", ">=", 2.0,
                "N(1, 1) inputs: final loss of GD on the rarest group, relative to the most frequent group's",
                lambda r: groups_apart(r.selected(ALIGNED, "gd-m")), quote="figure 15"),
            claim("orthogonal-level", "<=", 1.0,
                f"N(0, 1) inputs, GD's final losses: the smaller of (largest / smallest group) / {SPREAD} "
                f"and (largest group / its initial loss) / {SOLVED}", lambda r: level(r.selected(ORTHOGONAL, "gd-m")),
                quote="figure 15"),
            claim("adam-lowers-all", "<", 1.0,
                "N(1, 1) inputs: final loss of Adam relative to the initial loss, largest over groups",
                lambda r: group_ratios(r.selected(ALIGNED, "adam-m")).max(), quote="figure 15"),
        ),
        plot_inputs,
    )
)  # fmt: skip


def horizons(results: Results) -> tuple[int, int, int]:
    """Return the three horizons of figure 16: 1 %, 10 % and 100 % of the run (100, 1 000, 10 000 in the paper)."""
    steps = int(results.sweep(LONG).run["steps"])
    return max(steps // 100, 1), max(steps // 10, 1), steps


def plot_horizons(results: Results) -> Picture:
    """Draw figure 16: one run of GD by group, up to each of three horizons."""
    picture = Picture(1, 3, width=2.9)
    run = results.selected(LONG, "gd-m")
    losses = []
    for column, horizon in enumerate(horizons(results)):
        title = f"first {horizon:,} steps".replace(",", " ")
        losses.append(picture.panel(0, column, title, "step", "" if column else loss_label("train")))
        group_losses(losses[-1], run, until=horizon)
    losses[-1].axes.set_xscale("symlog", linthresh=1, linscale=0.3)  # all groups fall within its first tenth
    losses[-1].axes.set_xlim(left=0)
    picture.share_y(losses, 2 * run.initial_loss)
    picture.group_bar(losses, run.num_groups)
    return picture


def relative_at(results: Results, which: int) -> Array:
    """Return the loss of every group at a horizon (0, 1 or 2), relative to its initial loss."""
    run = results.selected(LONG, "gd-m")
    return group_ratios(run, run.group_loss_at(horizons(results)[which]))


register(
    Figure(
        "fig16",
        "One run of GD at three horizons",
        "Figure 16, appendix C",
        "GD does learn the rare groups, a hundred times later: their loss first rises, then waits, then falls.",
        (LONG,),
        (
            claim("rare-rises", ">", 1.0, "loss of the rarest group at the first horizon, relative to its initial loss",
                lambda r: relative_at(r, 0)[-1], quote="figure 16"),
            claim("all-fall", "<", 1.0, "loss at the last horizon relative to the initial loss, largest over groups",
                lambda r: relative_at(r, 2).max(), quote="figure 16"),
            claim("below-only-after-1k", ">=", 1.0,
                "loss of the rarest group at the second horizon, relative to its initial loss",
                lambda r: relative_at(r, 1)[-1],
                quote='figure 16: "only goes below the loss at initialization after 1k steps"'),
        ),
        plot_horizons,
    )
)  # fmt: skip
