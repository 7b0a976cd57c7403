"""The style of all figures, and a picture that records every number plotted in it.

Colours are those of Okabe and Ito, distinct for all common kinds of colour vision; groups run from light (most
frequent) to dark (rarest), which stays legible in black and white. The global state of pyplot is not changed.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from io import BytesIO
from textwrap import wrap
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

COLOURS = {"gd": "#0072B2", "adam": "#D55E00", "normalized-gd": "#009E73", "sign": "#CC79A7", "muon": "#E69F00"}
NAMES = {"gd": "GD", "adam": "Adam", "normalized-gd": "normalised GD", "sign": "sign descent", "muon": "Muon"}
# Colours of other optimizers, distinct from those above and from each other for all common kinds of colour vision
# (Okabe and Ito's light blue, then Paul Tol's "muted" set).
OTHERS = ("#56B4E9", "#332288", "#882255", "#999933", "#117733", "#661100")
_assigned: dict[str, str] = {}  # other optimizer -> its colour in the present figure
INK = "#3a3a3a"
TABLE_FONT = 7.0
TABLE_WRAP = 34  # characters per line of a table cell
_RC: Any = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.5,
    # A white ground, so that no line crosses the words of a legend.
    "legend.frameon": True,
    "legend.facecolor": "white",
    "legend.edgecolor": "none",
    "legend.framealpha": 0.9,
    "legend.fancybox": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
}


def applied() -> AbstractContextManager[None]:
    """Return a context in which matplotlib draws in this style; leaving it restores the previous one."""
    import matplotlib

    context: AbstractContextManager[None] = matplotlib.rc_context(_RC)
    return context


def split_label(label: str) -> tuple[str, str]:
    """Return the optimizer and the momentum suffix of a label.

    The suffix is "+m" with momentum (for Adam: beta1 > 0), "-m" with a momentum of 0, and "" for optimizers without
    this setting and for labels that a preset sets itself (see `experiment.sweep.momentum_suffix`).

    >>> split_label("gd+m"), split_label("lion")
    (('gd', '+m'), ('lion', ''))
    """
    return (label[:-2], label[-2:]) if label.endswith(("+m", "-m")) else (label, "")


def optimizer_name(label: str, *, stochastic: bool = False, momentum: bool = False) -> str:
    """Return the name of an optimizer in figures: "Adam", "SGD" for GD on mini-batches, the label of any other.

    Args:
        label: of the optimizer, "gd+m".
        stochastic: whether it was run on mini-batches.
        momentum: whether to append the suffix.

    >>> optimizer_name("gd+m", stochastic=True, momentum=True)
    'SGD +m'
    """
    base, suffix = split_label(label)
    name = NAMES.get(base, base)
    if base == "gd" and stochastic:
        name = "SGD"
    return f"{name} {suffix}".strip().replace("-", "−") if momentum else name


def optimizer_colour(label: str) -> str:
    """Return the colour of an optimizer, the same with and without momentum.

    An optimizer that is not in COLOURS gets one of OTHERS by its name; two share a colour only if OTHERS has too few.
    """
    base = split_label(label)[0]
    if base in COLOURS:
        return COLOURS[base]
    if base not in _assigned:
        start = zlib.crc32(base.encode())
        cycle = [OTHERS[(start + k) % len(OTHERS)] for k in range(len(OTHERS))]
        _assigned[base] = next((colour for colour in cycle if colour not in _assigned.values()), cycle[0])
    return _assigned[base]


def forget_colours() -> None:
    """Assign the colours of other optimizers anew: those of a figure must not depend on the figures drawn before it."""
    _assigned.clear()


def group_colours(num_groups: int) -> list[Any]:
    """Return the colours of the frequency groups, most frequent (light) to rarest (dark)."""
    from matplotlib import colormaps

    places = np.linspace(0.12, 1.0, num_groups) if num_groups > 1 else [0.6]
    return [colormaps["viridis_r"](place) for place in places]


class TextTable:
    """The layout of a text table, in points: long cells are wrapped, and each column fits its widest line.

    Args:
        header: names of the columns.
        rows: cells of each row.
    """

    def __init__(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        from matplotlib.textpath import TextPath

        self.header, self.rows = header, rows
        self.cells = [[_broken(cell) for cell in row] for row in (header, *rows)]
        columns = ["\n".join(column).split("\n") for column in zip(*self.cells, strict=True)]
        size = TABLE_FONT
        self.widths = [max(TextPath((0, 0), x or "-", size=size).get_extents().width for x in c) + 12 for c in columns]
        self.heights = [(max(cell.count("\n") for cell in row) + 1) * 1.2 * size + 4 for row in self.cells]

    @property
    def inches(self) -> tuple[float, float]:
        """Width and height of a picture that contains only this table."""
        return sum(self.widths) / 72 + 0.1, sum(self.heights) / 72 + 0.35


def _broken(cell: str) -> str:
    """A cell wrapped into lines, only after commas and semicolons."""
    bound = re.sub(r"(?<![,;]) ", "\N{NO-BREAK SPACE}", cell)
    return "\n".join(wrap(bound, TABLE_WRAP, break_on_hyphens=False))


class Panel:
    """One pair of axes of a picture; `record` holds the numbers of everything drawn through it."""

    def __init__(self, axes: Any, title: str, xlabel: str, ylabel: str) -> None:
        self.axes = axes
        self.record: dict[str, Any] = {"title": title, "xlabel": xlabel, "ylabel": ylabel, "series": [], "notes": []}
        axes.set_title(title, loc="left", color="black")
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)

    def line(self, x: ArrayLike, y: ArrayLike, label: str, **style: Any) -> None:
        """Plot y [E] over x [E]."""
        self._add_series("line", label, style, x=x, y=y)
        self.axes.plot(x, y, label=label, **style)

    def band(self, x: ArrayLike, low: ArrayLike, high: ArrayLike, label: str, **style: Any) -> None:
        """Shade between low [E] and high [E]."""
        self._add_series("band", label, style, x=x, low=low, high=high)
        self.axes.fill_between(x, low, high, linewidth=0, **style)

    def points(self, x: ArrayLike, y: ArrayLike, label: str, **style: Any) -> None:
        """Mark the points (x, y)."""
        self._add_series("points", label, style, x=x, y=y)
        self.axes.plot(x, y, linestyle="none", label=label, **style)

    def steps(self, edges: ArrayLike, y: ArrayLike, label: str, **style: Any) -> None:
        """Draw the outline of bars of height y [C] between edges [C + 1]."""
        self._add_series("steps", label, style, edges=edges, y=y)
        self.axes.stairs(y, edges, label=label, baseline=None, **style)

    def level(self, y: float, label: str) -> None:
        """Draw a dashed horizontal line."""
        self._add_series("level", label, {}, y=y)
        self.axes.axhline(y, color="black", linestyle=(0, (4, 3)), linewidth=0.9, zorder=1.5)

    def image(self, values: ArrayLike, label: str, **style: Any) -> None:
        """Show a matrix [R, R], first row on top, each number as a coloured square."""
        self._add_series("image", label, {}, values=values)
        self.axes.imshow(values, interpolation="nearest", **style)
        self.axes.grid(False)

    def table(self, table: TextTable) -> None:
        """Draw a table, with a line below its header."""
        self._add_series("table", "", {}, header=table.header, rows=table.rows)
        height = sum(table.heights)
        self.axes.set(xlim=(0, sum(table.widths)), ylim=(height, 0))
        self.axes.axis("off")
        bottom = np.cumsum(table.heights)
        left = np.cumsum(table.widths) - table.widths
        for y, row in zip(bottom - np.array(table.heights) / 2, table.cells, strict=True):
            ink = {"weight": "bold", "color": "black"} if row is table.cells[0] else {"color": INK}
            for x, cell in zip(left, row, strict=True):
                self.axes.text(x, y, cell, fontsize=TABLE_FONT, va="center_baseline", linespacing=1.1, **ink)
        for y, thick in ((0, 0.9), (bottom[0], 0.6), (height, 0.9)):
            self.axes.axhline(y, color=INK, linewidth=thick, clip_on=False)

    def corner(self, text: str) -> None:
        """Write measured numbers in the lower right corner."""
        self.record["notes"].append(text)
        box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.0}
        place = {"transform": self.axes.transAxes, "ha": "right", "va": "bottom"}
        self.axes.text(0.98, 0.03, text, color=INK, fontsize=6.5, bbox=box, **place)

    def below(self, text: str) -> None:
        """Write measured numbers below the axis, off the data."""
        self.record["notes"].append(text)
        name = self.axes.get_xlabel()
        self.axes.set_xlabel(f"{name}\n{text}" if name else text)

    def note(self, text: str) -> None:
        """Write a remark in the middle of the panel, below earlier ones."""
        height = 0.5 - 0.12 * len(self.record["notes"])
        self.record["notes"].append(text)
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
        self.axes.text(0.5, height, text, transform=self.axes.transAxes, ha="center", color="#a02020", bbox=paper)

    def view(self) -> dict[str, Any]:
        """Return the scales of the axes ("linear", "log", "symlog"), and the range of y."""
        return {"xscale": self.axes.get_xscale(), "yscale": self.axes.get_yscale(), "ylim": self.axes.get_ylim()}

    def _add_series(self, kind: str, label: str, style: Mapping[str, Any], **values: ArrayLike) -> None:
        from matplotlib.colors import to_hex

        look: dict[str, Any] = {"colour": to_hex(style["color"])} if "color" in style else {}
        if style.get("linestyle", "-") not in ("-", "solid"):
            look["dash"] = True
        arrays = {key: np.asarray(value) for key, value in values.items()}
        self.record["series"].append({"kind": kind, "label": label, **look, **arrays})


class Picture:
    """A grid of panels.

    Args:
        rows, columns: of the grid.
        width, height: of one panel, in inches; `height` may be one for each row.
    """

    def __init__(self, rows: int, columns: int, *, width: float = 2.5, height: float | Sequence[float] = 2.25) -> None:
        from matplotlib.figure import Figure

        heights = [height] * rows if isinstance(height, float | int) else [*height]
        self.figure = Figure(figsize=(columns * width, sum(heights)), layout="constrained")
        self._grid = self.figure.add_gridspec(rows, columns, height_ratios=heights)
        self.panels: dict[tuple[int, ...], Panel] = {}
        self._laid_out = False

    def panel(self, row: int | slice, column: int | slice, title: str, xlabel: str, ylabel: str) -> Panel:
        """Add a panel in one cell of the grid, or across several rows or columns."""
        place = tuple(cell.start if isinstance(cell, slice) else cell for cell in (row, column))
        assert place not in self.panels, f"panel {place} is taken"
        axes = self.figure.add_subplot(self._grid[row, column])
        self.panels[place] = Panel(axes, title, xlabel, ylabel)
        return self.panels[place]

    @property
    def plotted(self) -> list[dict[str, Any]]:
        """Every number in the picture: per panel, in reading order, its title, axes, series and notes."""
        return [{**panel.record, **panel.view()} for _, panel in sorted(self.panels.items(), key=lambda item: item[0])]

    def share_y(self, panels: Iterable[Panel], top: float) -> None:
        """Set a common y range, cut off at `top` so that a short spike does not compress the rest."""
        shared = list(panels)
        limits = [panel.axes.get_ylim() for panel in shared]
        for panel in shared:
            panel.axes.set_ylim(min(low for low, _ in limits), min(max(high for _, high in limits), top))

    def group_bar(self, panels: Sequence[Panel], num_groups: int) -> None:
        """Add the key of the frequency groups' colours, to the right of panels."""
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import BoundaryNorm, ListedColormap

        edges = np.arange(num_groups + 1) + 0.5
        mapping = ScalarMappable(BoundaryNorm(edges, num_groups), ListedColormap(group_colours(num_groups)))
        ends = [1, num_groups] if num_groups > 1 else [1]
        bar = self.figure.colorbar(mapping, ax=[p.axes for p in panels], ticks=ends, aspect=28, pad=0.01)
        bar.ax.set_yticklabels(["frequent", "rare"][: len(ends)])
        bar.ax.invert_yaxis()
        bar.ax.tick_params(which="both", length=0)
        bar.outline.set_visible(False)

    def legend(self, panels: Iterable[Panel], names: Mapping[str, str], **style: Any) -> None:
        """Add a key of the lines of panels, by default below the picture.

        Args:
            panels: each may have some of the lines.
            names: what the key calls a line, by its label; lines without a name are left out.
            style: of `Figure.legend`.
        """
        lines = {line.get_label(): line for panel in panels for line in panel.axes.get_lines()}
        shown = [label for label in names if label in lines]
        style = {"loc": "outside lower center", "ncols": len(names), **style}
        self.figure.legend([lines[label] for label in shown], [names[label] for label in shown], **style)

    def colour_bar(self, panels: Sequence[Panel], label: str) -> None:
        """Add the key of the colours of image panels, which must share one range."""
        bar = self.figure.colorbar(panels[0].axes.images[0], ax=[p.axes for p in panels], aspect=28, pad=0.01)
        bar.set_label(label)
        bar.outline.set_visible(False)

    def render(self, kind: Literal["png", "pdf"]) -> bytes:
        """Return the picture as a file's content (PNG at 200 dots per inch); the same numbers give the same bytes."""
        if not self._laid_out:  # the layout takes longer than the drawing, and is the same for every file
            with applied():
                self.figure.draw_without_rendering()
            self.figure.set_layout_engine("none")
            self._laid_out = True
        undated = {"Software": None} if kind == "png" else {"CreationDate": None, "Creator": None, "Producer": None}
        buffer = BytesIO()
        with applied():
            self.figure.savefig(buffer, format=kind, dpi=200, metadata=undated)
        return buffer.getvalue()
