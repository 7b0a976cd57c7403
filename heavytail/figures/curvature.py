"""Gradient norm against Hessian trace, class by class, along a run (figures 7 and 23 to 27).

Both are per row of the head, measured by the probes `head-blocks` and `mirrored-head-blocks` along the selected runs.
Claims are judged on the run of every verdict seed, pictures show that of the first. On softmax regression the figures
show one path at the authors' step sizes, without a search.

Shapes: P measured steps, C classes, G frequency groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from heavytail.analysis.correlation import Correlation, frequency_halves, loglog
from heavytail.metrics import sum_by_group
from heavytail.plotting.style import Panel, Picture, group_colours, optimizer_name
from heavytail.results.claims import ClaimRule, claim, spearman
from heavytail.results.figure import Figure, register
from heavytail.results.results import Array, MissingRuns, Results, SweepRef

PAIR = ("gd+m", "adam+m")
LINEAR = SweepRef("linear-path", ("gd-m", "adam+m"), probed=True)
ADAM = SweepRef("linear-path", ("adam+m",), probed=True)
BLOCKS, MIRRORED = "head-blocks", "mirrored-head-blocks"
WARMED_UP, REPEATED = 10, 4  # figure 7: first step, and minimum samples of a class, of the correlation
SHOWN = 100  # its last step
OFTEN = 4.0  # least c pi_k of the classes in which gradients mirror frequencies
MIDPOINT = 0.5  # slope of log trace on log gradient norm: eq. 1 predicts 0, eq. 2 predicts 1


@dataclass(frozen=True)
class BlockTrack:
    """Head blocks along one run: step [P]; grad_norm, trace and p_correct [P, C]; count and group [C]."""

    label: str
    stochastic: bool
    step: Array
    grad_norm: Array
    trace: Array
    p_correct: Array
    count: Array
    group: Array

    @classmethod
    def read(cls, results: Results, ref: SweepRef, label: str, probe: str = BLOCKS) -> BlockTrack:
        """Read the measurements of a probe along the selected run; MissingRuns if there are none."""
        history = results.probed(ref, label)
        count = history.arrays["train/count"]
        return cls(
            label=label,
            stochastic=history.spec.batch_size is not None,
            step=history.arrays[f"probe/{probe}/step"],
            grad_norm=history.arrays[f"probe/{probe}/grad_norm"],
            trace=history.arrays[f"probe/{probe}/trace"],
            p_correct=history.arrays[f"probe/{probe}/p_correct"],
            count=count.sum(axis=0) if count.ndim == 2 else count,
            group=history.arrays["group"],
        )

    @property
    def name(self) -> str:
        """Name of the optimizer in figures."""
        return optimizer_name(self.label, stochastic=self.stochastic)

    def relation(self, row: int, where: Array | None = None) -> Correlation:
        """Return the log-log relation of trace to gradient norm over the classes that have samples.

        Args:
            row: index of the measured step.
            where: classes to use [C] bool; all by default.
        """
        seen = self.count > 0
        return loglog(self.grad_norm[row], self.trace[row], seen if where is None else seen & where)

    def group_slope(self, row: int) -> float:
        """Return the slope of log trace on log gradient norm through the groups' medians; NaN if they do not differ.

        Each group counts once. Over all classes, the many classes of few samples would decide.
        """
        medians = [
            np.log([np.median(values[row, mine]) for values in (self.grad_norm, self.trace)])
            for g in np.unique(self.group)
            if (mine := (self.group == g) & (self.count > 0)).any()
        ]
        x, y = np.array(medians).T
        return float(np.cov(x, y, bias=True)[0, 1] / x.var()) if np.ptp(x) > 0 else math.nan

    def group_p_quantiles(self, *shares: float) -> Array:
        """Return quantiles over each group's classes of the probability of the correct class, [Q, P, G]."""
        seen = self.count > 0
        groups = range(int(self.group.max()) + 1)
        quantiles = [np.quantile(self.p_correct[:, seen & (self.group == g)], shares, axis=1) for g in groups]
        return np.stack(quantiles, axis=-1)

    def group_p_correct(self) -> Array:
        """Return the mean probability of the correct class over the samples of each group, [P, G]."""
        num_groups = int(self.group.max()) + 1
        p = np.where(self.count > 0, self.p_correct, 0.0)
        with np.errstate(invalid="ignore"):
            return sum_by_group(p * self.count, self.group, num_groups) / sum_by_group(
                self.count, self.group, num_groups
            )


# -- panels ----------------------------------------------------------------------------------------------------------


def scatter_groups(panel: Panel, x: Array, y: Array, group: Array) -> None:
    """Plot every class with x > 0 and y > 0 [C] on logarithmic axes, coloured by group."""
    for g, colour in enumerate(group_colours(int(group.max()) + 1)):
        mine = (group == g) & (x > 0) & (y > 0)
        style = {"marker": "o", "markersize": 2.6, "markeredgewidth": 0, "alpha": 0.7, "color": colour}
        panel.points(x[mine], y[mine], f"group {g + 1}", **style)
    panel.axes.set(xscale="log", yscale="log")


def scatter(panel: Panel, track: BlockTrack, row: int) -> None:
    """Plot Hessian trace against gradient norm of every class that has samples, with their correlation."""
    seen = track.count > 0
    scatter_groups(panel, track.grad_norm[row, seen], track.trace[row, seen], track.group[seen])
    halves = frequency_halves(track.count)
    r = [track.relation(row, where).pearson for where in (None, *halves)]
    panel.corner(
        f"r {r[0].value:.2f} [{r[0].low:.2f}, {r[0].high:.2f}]\nfrequent {r[1].value:.2f}, rare {r[2].value:.2f}"
    )


def same_axes(panels: Sequence[Panel]) -> None:
    """Give scatter panels common limits, with room for the text below the points."""
    for name, room in (("x", 0.0), ("y", 0.22)):
        ends = [getattr(panel.axes, f"get_{name}lim")() for panel in panels]
        low, high = np.min([low for low, _ in ends]), np.max([high for _, high in ends])
        for panel in panels:
            getattr(panel.axes, f"set_{name}lim")(low * (low / high) ** room, high)


def group_probabilities(panel: Panel, track: BlockTrack) -> None:
    """Plot the probability of the correct class over steps: median of each group, shaded from 5 to 95 % of classes."""
    low, median, high = track.group_p_quantiles(0.05, 0.5, 0.95)
    for g, colour in enumerate(group_colours(median.shape[1])):
        panel.band(track.step, low[:, g], high[:, g], f"group {g + 1}", color=colour, alpha=0.15)
        panel.line(track.step, median[:, g], f"group {g + 1}", color=colour, marker=".", markersize=3, linewidth=1.0)
    panel.axes.set_xscale("symlog", linthresh=1)
    panel.axes.set(yscale="log", ylim=(max(float(low.min()), 1e-8) / 2, 1.5), xlim=(0, None))


# -- figure 7 --------------------------------------------------------------------------------------------------------


def adam_track(results: Results) -> BlockTrack:
    """Return the blocks along Adam's path on the problem of figure 4."""
    return BlockTrack.read(results, ADAM, "adam+m")


def plot_adam_path(results: Results) -> Picture:
    """Plot the measured steps of figure 7."""
    track = adam_track(results)
    rows = [i for i, step in enumerate(track.step) if step in (0, 1, 5, 10, 50, 100)]
    columns = (len(rows) + 1) // 2
    picture = Picture(2, columns, width=2.4)
    panels = []
    for place, row in enumerate(rows):
        r, c = divmod(place, columns)
        panels.append(
            picture.panel(r, c, f"t = {track.step[row]}", "gradient norm" if r else "", "" if c else "Hessian trace")
        )
        scatter(panels[-1], track, row)
    same_axes(panels)
    picture.group_bar(panels, int(track.group.max()) + 1)
    return picture


def trace_spread(results: Results, row: int) -> float:
    """Return the largest trace over the smallest at a measured step, over classes that have samples."""
    track = adam_track(results)
    trace = track.trace[row, track.count > 0]
    return float(trace.max() / trace.min())


def initial_order(results: Results) -> float:
    """Return the rank correlation of gradient norm and frequency at step 0, over classes with c pi_k >= 4."""
    track = adam_track(results)
    often = len(track.count) * track.count / track.count.sum() >= OFTEN
    return spearman(track.grad_norm[0, often], track.count[often])


def best_agreement(results: Results) -> float:
    """Return the maximum over steps of the smaller of Pearson (gradient norm, trace) and Spearman (trace, pi)."""
    track = adam_track(results)
    often = track.count >= REPEATED
    rows = [i for i, step in enumerate(track.step) if WARMED_UP <= step <= SHOWN]
    if not rows:
        raise MissingRuns(f"nothing was measured from step {WARMED_UP} to {SHOWN}")
    both = [
        (track.relation(i, often).pearson.value, loglog(track.count, track.trace[i], often).spearman.value)
        for i in rows
    ]
    return float(np.max(np.min(both, axis=1)))


register(
    Figure(
        "fig07",
        "Gradient norm and Hessian trace of each class",
        "Figure 7",
        "Under Adam, gradient norm and Hessian trace of the rows become correlated, both ordered by class frequency.",
        (ADAM,),
        (
            claim("traces-near-uniform", "<=", 10.0, "largest over smallest Hessian trace of a class at step 0",
                lambda r: trace_spread(r, 0), quote="figure 7, t = 0: uniform traces (eq. 1)"),
            claim("no-correlation-at-start", "<=", MIDPOINT,
                "slope of log Hessian trace on log gradient norm over classes at step 0",
                lambda r: adam_track(r).relation(0).slope.value, quote="figure 7, t = 0; eq. 1 predicts 0"),
            claim("correlated-at-end", ">=", MIDPOINT, "the same at the last measured step",
                lambda r: adam_track(r).relation(-1).slope.value, quote="figure 7, t = 100; eq. 2 predicts 1"),
            claim("gradients-mirror-frequencies", ">=", 0.9,
                f"Spearman (gradient norm, frequency) at step 0 over classes with c pi_k >= {OFTEN:g}", initial_order,
                quote='"mirror the class frequencies for high-frequency classes ... the pattern observed at '
                'initialization in figure 7"'),
            claim("imbalanced", ">=", 10.0,
                "largest over smallest Hessian trace of a class at the last measured step, relative to that at step 0",
                lambda r: trace_spread(r, -1) / trace_spread(r, 0), quote='"correlated ... and become imbalanced"'),
            claim("traces-follow-gradients", ">=", 0.9,
                f"smaller of log-log Pearson (gradient norm, trace) and Spearman (trace, frequency) over classes with "
                f"at least {REPEATED} samples, at the best measured step from {WARMED_UP} to {SHOWN}", best_agreement,
                quote="figure 7"),
        ),
        plot_adam_path,
    )
)  # fmt: skip

# -- figures 23 to 27 ------------------------------------------------------------------------------------------------


COLUMNS = 4  # scatter plots of one row


def shown_rows(track: BlockTrack, num: int) -> list[int]:
    """Return up to `num` of the measured steps, the first and the last among them."""
    return sorted(set(np.linspace(0, len(track.step) - 1, num).round().astype(int).tolist()))


def paths_plot(ref: SweepRef, probe: str = BLOCKS, *, times: int = COLUMNS) -> Callable[[Results], Picture]:
    """Return a plot function: per optimizer the scatter plots along its path, and p(correct) by group on their right.

    Args:
        ref: the sweep.
        probe: the measurements.
        times: the largest number of scatter plots of an optimizer.
    """

    def plot(results: Results) -> Picture:
        tracks = [BlockTrack.read(results, ref, label, probe) for label in results.labels(ref)]
        rows = shown_rows(tracks[0], times)
        lines = -(-len(rows) // COLUMNS)
        columns = min(len(rows), COLUMNS)
        picture = Picture(len(tracks) * lines, columns + 1, width=2.0, height=1.9)
        scatters = []
        for first, track in zip(range(0, len(tracks) * lines, lines), tracks, strict=True):
            for place, row in enumerate(rows):
                r, c = first + place // COLUMNS, place % COLUMNS
                xlabel = "gradient norm" if r == len(tracks) * lines - 1 else ""
                title = f"{track.name}, t = {track.step[row]}"
                scatters.append(picture.panel(r, c, title, xlabel, "" if c else "Hessian trace"))
                scatter(scatters[-1], track, row)
            tall = slice(first, first + lines)
            group_probabilities(picture.panel(tall, columns, f"{track.name}, p(correct)", "step", ""), track)
        same_axes(scatters)
        picture.group_bar(list(picture.panels.values()), int(tracks[0].group.max()) + 1)
        return picture

    return plot


def only_frequent(ref: SweepRef, gd: str) -> ClaimRule:
    """Return the claim that on GD's path the two are proportional on frequent classes alone."""

    def halves_apart(results: Results) -> float:
        track = BlockTrack.read(results, ref, gd)
        frequent, rare = (track.relation(-1, half).pearson.value for half in frequency_halves(track.count))
        return frequent - rare

    return claim("gd-only-frequent", ">", 0.0,
        "log-log Pearson (gradient norm, trace) at the last measured step of GD: more frequent half of classes less "
        "rarer half", halves_apart, quote="figure 23: under GD, only on high-frequency classes")  # fmt: skip


def frequent_spread(results: Results) -> float:
    """Return the largest over the smallest probability over the more frequent half of groups at Adam's last step."""
    p = adam_track(results).group_p_correct()[-1]
    return float(p[: len(p) // 2].max() / p[: len(p) // 2].min())


def gd_order(results: Results) -> float:
    """Return the rank correlation of a group's number with the probability of the correct class at GD's last step."""
    p = BlockTrack.read(results, LINEAR, "gd-m").group_p_correct()[-1]
    return spearman(np.arange(len(p)), p)


register(
    Figure(
        "fig23",
        "Gradient norm and Hessian trace along the paths of GD and Adam",
        "Figure 23",
        "Where samples are assigned to their class, the two are correlated: all classes under Adam, the frequent "
        "ones under GD.",
        (LINEAR,),
        (
            claim("adam-fits-rare", ">=", 0.9,
                "probability of the correct class on the rarest group at the last measured step of Adam",
                lambda r: adam_track(r).group_p_correct()[-1, -1],
                quote='figure 23: "p -> 1 for the least frequent"'),
            claim("adam-similar", "<=", 2.0,
                "largest over smallest probability of the correct class over the more frequent half of the groups at "
                "the last measured step of Adam", frequent_spread, quote="figure 23: similar among the most frequent"),
            claim("gd-frequent-first", "<=", -0.9,
                "Spearman of a group's number (1 = most frequent) with the probability of the correct class on it, at "
                "the last measured step of GD", gd_order, quote='figure 23: "frequent classes are learned faster"'),
            only_frequent(LINEAR, "gd-m"),
        ),
        paths_plot(LINEAR, times=8),
    )
)  # fmt: skip


def correlation_figure(name: str, title: str, paper: str, preset: str, variant: str = "") -> Figure:
    """Return figure 23 for another model: paths of GD and Adam, and the claims that the two become proportional."""
    ref = SweepRef(preset, PAIR, variant, probed=True)

    def adam(results: Results, row: int) -> float:
        return BlockTrack.read(results, ref, "adam+m").group_slope(row)

    through = "slope of log Hessian trace on log gradient norm through the medians of the frequency groups"
    rules = (
        claim("no-correlation-at-start", "<=", MIDPOINT, f"{through} at step 0", lambda r: adam(r, 0),
            quote=f"{paper.lower()}; eq. 1 predicts 0"),
        claim("correlated-at-end", ">=", MIDPOINT, f"{through} at the last measured step of Adam",
            lambda r: adam(r, -1), quote=f"{paper.lower()}; eq. 2 predicts 1"),
        only_frequent(ref, PAIR[0]),
    )  # fmt: skip
    about = "The correlation of gradient norm and Hessian trace over classes that training brings about (last layer)."
    return Figure(name, title, paper, about, (ref,), rules, paths_plot(ref))


register(correlation_figure("fig24", "The head of the CNN", "Figure 24", "cnn"))
register(correlation_figure("fig25", "The head of ResNet18", "Figure 25", "resnet18", "heavy-tailed"))
register(correlation_figure("fig26", "The head of a two-layer transformer", "Figure 26", "two-layer-transformer"))


def mirrored_correlation(results: Results) -> float:
    """Return Pearson at the last measured step along -W_t of Adam."""
    return BlockTrack.read(results, ADAM, "adam+m", MIRRORED).relation(-1).pearson.value


register(
    Figure(
        "fig27",
        "The same along the mirrored path",
        "Figure 27",
        "At -W_t, where samples are assigned to wrong classes, gradient norm and Hessian trace do not grow together: "
        "it takes training, not only large weights.",
        (ADAM,),
        (
            claim("negative", "<", 0.0,
                "log-log Pearson (gradient norm, trace) over classes at the last measured -W_t of Adam",
                mirrored_correlation,
                quote='on figure 27: "a negative correlation can instead be found ... over the path taken by Adam"'),
        ),
        paths_plot(ADAM, MIRRORED, times=8),
    )
)  # fmt: skip
