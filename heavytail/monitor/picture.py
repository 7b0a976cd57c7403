"""The picture of a monitored training, in the panels of figures 1 and 10.

Shapes: C classes, E readings, G groups. Losses are in nats.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heavytail.experiment.search import Best
from heavytail.monitor.journal import Track
from heavytail.plotting.panels import class_histogram, group_losses
from heavytail.plotting.style import Panel, Picture, applied, group_colours
from heavytail.results.results import Selected

Array = NDArray[Any]
_NAMES = {"train": "training", "test": "validation", "eval": "validation"}
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_HEAD = {"grad_norm": "gradient norm", "trace": "Hessian trace", "update_norm": "update norm"}


class _Given(Selected):
    """A run whose step size was its owner's business."""

    lr = property(lambda self: float("nan"))


def draw_monitored(tracks: Mapping[str, Track], counts: Array, index: Array) -> Picture:
    """Return the picture of a monitored training.

    Args:
        tracks: readings by split.
        counts: targets seen of each class [C]; empty if unknown.
        index: group of each class [C].
    """
    with applied():
        head = [name for name in _HEAD if "train" in tracks and np.isfinite(tracks["train"].groups.get(name, [])).any()]
        picture = Picture(1, 2 + len(tracks) + len(head), height=2.4)
        runs = {split: _as_selected(split, track, counts, index) for split, track in tracks.items()}
        first = next(iter(runs.values()))
        panel = picture.panel(0, 0, "classes", "class, by frequency", "targets seen")
        if counts.any():
            class_histogram(panel, first)
        else:
            panel.note("no targets seen" if len(counts) else "no training readings")
        losses = [picture.panel(0, 1, "overall", "step", "loss (nats)")]
        for number, (split, track) in enumerate(tracks.items()):
            name, colour = _NAMES.get(split, split), _COLOURS[number % len(_COLOURS)]
            losses[0].line(track.step, track.overall["loss"], name, color=colour, **_marker(track))
        losses[0].axes.legend(loc="best")
        losses[0].axes.set_ylim(bottom=0)
        for column, (split, run) in enumerate(runs.items(), 2):
            losses.append(picture.panel(0, column, f"{_NAMES.get(split, split)}, by group", "step", ""))
            group_losses(losses[-1], run)
            for line in losses[-1].axes.get_lines()[1:]:
                line.set(**_marker(tracks[split]))
        initial = max((run.initial_loss for run in runs.values() if np.isfinite(run.initial_loss)), default=np.inf)
        picture.share_y(losses, 2 * initial)
        measured = [
            _head_panel(picture.panel(0, column, f"head, {_HEAD[name]}", "step", ""), tracks["train"], name)
            for column, name in enumerate(head, 2 + len(tracks))
        ]
        picture.group_bar([*losses, *measured], first.num_groups)
        return picture


def _as_selected(split: str, track: Track, counts: Array, index: Array) -> Selected:
    loss = track.overall.get("loss", np.empty(0))
    by_group = track.groups["loss"]
    started = np.flatnonzero(np.isfinite(loss))
    return _Given(
        label=_NAMES.get(split, split),
        best=Best(_NAMES.get(split, split), None, (), ()),
        split=split,
        stochastic=True,
        steps=int(track.step[-1]) if len(track.step) else 0,
        step=track.step,
        loss=loss[None],
        group_loss=by_group[None],
        start=loss[started[:1]] if len(started) else np.array([np.nan]),
        group_start=by_group[:1] if len(by_group) else np.full((1, by_group.shape[1]), np.nan),
        group=index,
        counts=counts,
    )


def _head_panel(panel: Panel, track: Track, name: str) -> Panel:
    values = track.groups[name]
    kept = np.isfinite(values).any(axis=1)
    for g, colour in enumerate(group_colours(values.shape[1])):
        panel.line(track.step[kept], values[kept, g], f"group {g + 1}", color=colour, **_marker(track))
    panel.axes.set(yscale="log")
    return panel


def _marker(track: Track) -> dict[str, Any]:
    """A marker where lines would be too few to see."""
    return {"marker": "o", "markersize": 2.5} if len(track.step) < 20 else {}
