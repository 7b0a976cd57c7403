"""Beyond the paper: what of Adam the tail needs, by changing one thing at a time.

Rotated coordinates (arXiv 2410.08198), clipped gradients (2605.17787), Adam for some layers (2407.07972, 2506.16659)
and weight decay (2410.11985). Most are measured by the share of the gap between gradient descent and Adam that a change
closes, overall and on the rarest group.
"""

from __future__ import annotations

import math

import numpy as np

from heavytail.plotting.panels import final_group_losses, key_below, loss_label, overall_loss
from heavytail.plotting.style import Picture
from heavytail.results.claims import claim, present, rarest, ratio, versus
from heavytail.results.figure import Figure, register
from heavytail.results.results import Array, Results, Selected, SweepRef

BASE = SweepRef("beyond-transformer", ("gd+m", "adam+m"))
CLIPPED = SweepRef("clipping", ("clipped 1", "clipped 0.1", "rows clipped 0.01", "rows clipped 0.001"))
SOME = SweepRef("where-adaptive", ("Adam on head and norms", "Adam on head", "Adam on the rest"))
DECAY = SweepRef("decay", ("decay 0", "decay 0.1", "decay 0.3", "decay 1"))
ROTATED = SweepRef("rotation")


def gap_closed(results: Results, run: Selected, *, rare: bool = False) -> float:
    """Return the share of the gap in final loss between GD and Adam that a run closes; NaN without a gap."""
    gd, adam = (results.selected(BASE, label) for label in BASE.optim)
    slow, fast, mine = (rarest(one) if rare else one.final_loss for one in (gd, adam, run))
    return ratio(slow - mine, slow - fast) if slow > fast else math.nan


def best(results: Results, ref: SweepRef, start: str) -> Selected:
    """Return the run with the smallest final loss of those whose label starts with `start`."""
    aside = results.for_seed(results.place)  # a run that diverged is no failure of the best one
    labels = [label for label in ref.optim if label.startswith(start)]
    return results.selected(ref, min(labels, key=lambda label: aside.selected(ref, label).final_loss))


def draw(results: Results, *refs: SweepRef) -> Picture:
    """Draw the overall loss and the final loss of every group, of all optimizers of some sweeps of one problem."""
    runs = [results.selected(ref, label) for ref in refs for label in results.labels(ref)]
    picture = Picture(1, 2, width=3.6, height=2.8)
    overall_loss(picture.panel(0, 0, "overall", "step", loss_label("train")), runs, legend=False)
    final_group_losses(picture.panel(0, 1, "last step, by group", "group (1 = most frequent)", ""), runs, legend=False)
    key_below(picture, [picture.panels[0, 0]], runs, ncols=3)
    return picture


register(
    Figure(
        "clipping",
        "Clipped gradients",
        "arXiv 2605.17787",
        "Gradient descent with momentum and its gradient clipped as a whole, or every row of the head's gradient (that "
        "of one class) clipped, at two bounds each, beside plain gradient descent and Adam.",
        (BASE, CLIPPED),
        (
            claim("global-overall", "<=", 0.5,
                "share of the gap between GD and Adam in the final loss that global clipping closes, at the better of "
                "two bounds", lambda r: gap_closed(r, best(r, CLIPPED, "clipped"))),
            claim("rows-rarest", ">=", 0.5,
                "the same of clipping by row of the head, on the rarest group",
                lambda r: gap_closed(r, best(r, CLIPPED, "rows"), rare=True)),
            claim("rows-beat-global-on-rarest", "<", 1.0,
                "final loss on the rarest group with clipping by row, relative to that with global clipping",
                lambda r: versus(best(r, CLIPPED, "rows"), best(r, CLIPPED, "clipped"), rare=True)),
        ),
        lambda results: draw(results, BASE, CLIPPED),
    )
)  # fmt: skip

HEAD_AND_NORMS, HEAD, REST = SOME.optim
register(
    Figure(
        "where-adaptive",
        "Adam for some layers",
        "Zhao et al. 2024, arXiv 2407.07972; Glentis et al. 2025, arXiv 2506.16659",
        "Adam trains the head, the head and the norms, or everything else; gradient descent with momentum trains the "
        "other parameters, at ten times the step size.",
        (BASE, SOME),
        (
            claim("head-and-norms-suffice", ">=", 0.8,
                "share of the gap between GD and Adam in the final loss that Adam on head and norms closes",
                lambda r: gap_closed(r, r.selected(SOME, HEAD_AND_NORMS)),
                quote='"adaptivity on both the last layer and LayerNorm parameters in particular are necessary for '
                'retaining performance"; version 1: "the remaining layers can be trained with SGD"'),
            claim("head-and-norms-suffice-rarest", ">=", 0.8, "the same on the rarest group",
                lambda r: gap_closed(r, r.selected(SOME, HEAD_AND_NORMS), rare=True)),
            claim("head-and-norms-are-necessary", "<=", 0.5,
                "share of the gap that Adam on all other parameters closes",
                lambda r: gap_closed(r, r.selected(SOME, REST)),
                quote='"necessary for retaining performance"'),
            claim("head-and-norms-are-necessary-rarest", "<=", 0.5, "the same on the rarest group",
                lambda r: gap_closed(r, r.selected(SOME, REST), rare=True)),
        ),
        lambda results: draw(results, BASE, SOME),
    )
)  # fmt: skip


def at_equal_loss(one: Selected, other: Selected) -> Array:
    """Return the ratio of the group losses of two runs, each in the row whose overall loss is nearest to the level [G].

    The level is the larger one of the two final losses; NaN if that is infinite.
    """
    level = max(one.final_loss, other.final_loss)
    if not math.isfinite(level):
        return np.full(one.num_groups, math.nan)
    mine, theirs = (run.group_curves()[np.abs(run.curve()[1] - level).argmin()] for run in (one, other))
    return np.array([ratio(a, b) for a, b in zip(mine, theirs, strict=True)])


def decays(results: Results) -> tuple[Selected, Selected]:
    """Return the runs with the largest and without weight decay."""
    return results.selected(DECAY, DECAY.optim[-1]), results.selected(DECAY, DECAY.optim[0])


def rise(results: Results) -> float:
    """Return the rise of the rarest group's final loss by weight decay, relative to the most frequent group's."""
    with_decay, without = (present(run)[1] for run in decays(results))
    if not (np.isfinite(with_decay).all() and np.isfinite(without).all()):
        return math.nan
    risen = with_decay - without
    return ratio(risen[-1], risen[0]) if risen[0] > 0 else math.inf if risen[-1] > 0 else math.nan


register(
    Figure(
        "decay",
        "Weight decay",
        "Pinto et al. 2024, arXiv 2410.11985",
        "AdamW with decoupled weight decay from 0 to 1, all at one step size.",
        (DECAY,),
        (
            claim("costs-rarest", ">=", 1.1,
                "final loss of the rarest group with decay 1, relative to that without decay",
                lambda r: versus(*decays(r), rare=True),
                quote='"as weight decay increases, low-frequency tokens are disproportionately depreciated"'),
            claim("disproportionately", ">=", 1.1,
                "rise of the final loss by decay 1 on the rarest group (in nats), relative to that on the most "
                "frequent one", rise, quote='"disproportionately depreciated"'),
            claim("at-equal-loss", ">", 1.0,
                "loss of the rarest group with decay 1 where the overall loss is the same, relative to that without "
                "decay",
                lambda r: at_equal_loss(*decays(r))[-1],
                quote='"performance biases detectable only at the token level"'),
        ),
        lambda results: draw(results, DECAY),
    )
)  # fmt: skip


def rotated(results: Results, axis: str) -> tuple[Selected, Selected]:
    """Return Adam with an axis of the head rotated ("classes", "features"), and Adam."""
    return results.selected(ROTATED, f"{axis} rotated"), results.selected(ROTATED, "adam+m")


register(
    Figure(
        "rotation",
        "Adam in rotated coordinates",
        "Xie et al. 2024, arXiv 2410.08198",
        "Adam on the head in rotated coordinates: an orthogonal matrix mixes the classes, or the features. Gradient "
        "descent does not depend on coordinates.",
        (ROTATED,),
        (
            claim("classes-cost-rarest", ">=", 1.5,
                "final loss of Adam on the rarest group with classes rotated, relative to Adam's",
                lambda r: versus(*rotated(r, "classes"), rare=True),
                quote='"Adam performs much worse when the favorable l-infinity geometry is changed"'),
            claim("classes-cost-overall", ">=", 1.1, "the same of the overall loss",
                lambda r: versus(*rotated(r, "classes")),
                quote='"Adam performs much worse when the favorable l-infinity geometry is changed"'),
            claim("features-cost-little", "<=", 1.25,
                "final loss of Adam on the rarest group with features rotated, relative to Adam's",
                lambda r: versus(*rotated(r, "features"), rare=True)),
        ),
        lambda results: draw(results, ROTATED),
    )
)  # fmt: skip
