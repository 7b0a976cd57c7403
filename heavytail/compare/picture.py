"""The picture of a comparison: final loss by frequency group, and share of the gap closed, of each problem."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from heavytail.compare.comparison import BASELINES, BETTER
from heavytail.plotting.style import OTHERS, Picture, applied, forget_colours, optimizer_colour

_COLOURS = dict(zip(BASELINES.values(), ("gd", "adam"), strict=True))
_LEAST, _MOST = -0.5, 1.5  # of the shares drawn: GD is 0 and Adam 1, and others may be far outside
_FLOOR = 1e-4  # nats; the losses of solved groups are drawn at it
_MARKERS = "osD^vP*Xphd<>"
_GREY = "0.6"


def draw(rows: Sequence[Mapping[str, Any]], scale: str) -> Picture:
    """Draw the rows of compare.json in the common style.

    Of more optimizers than there are colours, those that are better than Adam on the tail of some problem have one.

    Args:
        rows: of one or more problems.
        scale: for the titles.
    """
    forget_colours()
    with applied():
        return _draw(rows, scale)


def _draw(rows: Sequence[Mapping[str, Any]], scale: str) -> Picture:
    problems = list(dict.fromkeys(row["problem"] for row in rows))
    optimizers = list(dict.fromkeys(row["optimizer"] for row in rows))
    others = [name for name in optimizers if name not in BASELINES.values()]
    better = {row["optimizer"] for row in rows if row["verdict"] == BETTER}
    grey = [name for name in others if name not in better] if len(others) > len(OTHERS) else []
    vivid = [name for name in optimizers if name not in grey]
    colours = dict.fromkeys(grey, _GREY) | {name: optimizer_colour(_COLOURS.get(name, name)) for name in vivid}
    short = _short(optimizers)
    picture = Picture(2, len(problems), width=3.0, height=(2.6, 0.6 + 0.16 * len(others)))
    for column, problem in enumerate(problems):
        mine = {row["optimizer"]: row for row in rows if row["problem"] == problem}
        label = "" if column else "final loss (nats)"
        panel = picture.panel(0, column, f"{problem} ({scale})", "frequency group, rarest last", label)
        for name in [*grey, *vivid]:  # the grey ones below
            if losses := mine[name]["group_losses"]:
                style: dict[str, Any] = {"linewidth": 0.7}
                if name in vivid:
                    style = {"marker": _MARKERS[vivid.index(name) % len(_MARKERS)], "markersize": 3}
                if name in BASELINES.values():
                    style |= {"linewidth": 2, "linestyle": "--"}
                values = [np.nan if loss is None else max(loss, _FLOOR) for loss in losses]
                panel.line(np.arange(1, len(values) + 1), values, name, color=colours[name], **style)
        panel.axes.set_yscale("log")
        panel.axes.xaxis.get_major_locator().set_params(integer=True)
        share = picture.panel(1, column, "", "gap closed, rarest group", "")
        share.axes.set_yticks(range(len(others)), [""] * len(others) if column else [short[name] for name in others])
        share.axes.set_ylim(len(others) - 0.5, -0.5)
        for x in (0, 1):
            share.axes.axvline(x, color="0.7", linewidth=0.8, zorder=0)
        share.axes.set_xlim(_LEAST - 0.05, _MOST + 0.05)
        for place, name in enumerate(others):
            value, interval = (mine[name][key] for key in ("closed_rarest", "closed_rarest_interval"))
            if value is not None:
                dot: dict[str, Any] = {"color": colours[name], "marker": "o", "markersize": 4}
                share.points(np.clip([value], _LEAST, _MOST), [place], name, **dot)
                share.line(np.clip(interval, _LEAST, _MOST), [place, place], f"{name}, 95 %", color=colours[name])
    panels = [picture.panels[0, column] for column in range(len(problems))]
    drawn = [name for name in grey if any(row["group_losses"] for row in rows if row["optimizer"] == name)]
    names = {name: short[name] for name in vivid} | dict.fromkeys(drawn[:1], "others")
    picture.legend(panels, names, loc="outside upper center", ncols=3 * len(problems))
    return picture


def _short(names: Sequence[str]) -> dict[str, str]:
    """Names of optimizers without the modules of their paths, as far as they differ without."""
    short = {name: re.sub(r"[\w.]+[.:](?=\w)", "", name) for name in names}
    taken = Counter(short.values())
    return {name: short[name] if taken[short[name]] == 1 else name for name in names}
