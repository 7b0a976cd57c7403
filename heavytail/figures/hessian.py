"""Blocks of the Hessian between classes: those on the diagonal dominate (figures 8 and 28, section H.1).

Measured by the probe `hessian-entries` along Adam's path on the problem of figure 4. Figure 8 shows the traces of
blocks, figure 28 entries. The captions and the text of the paper disagree on the sampling of the classes (erratum 7):
here figure 8 samples log-uniformly, figure 28 uniformly.

Shapes: P measured steps, C classes, K sampled classes, J inputs.
"""

from __future__ import annotations

import numpy as np

from heavytail.plotting.style import Picture
from heavytail.results.claims import claim
from heavytail.results.figure import Figure, register
from heavytail.results.results import Array, Results, SweepRef

ADAM = SweepRef("linear-path", ("adam+m",), probed=True)
DECADES = 6  # range of the colour scale below the largest entry
ROUNDING = 1e-9  # relative rounding error allowed in an identity of sums over classes


def measured(results: Results, name: str) -> Array:
    """Return one array of the probe along Adam's path."""
    value: Array = results.probed(ADAM, "adam+m").arrays[f"probe/hessian-entries/{name}"]
    return value


def num_inputs(results: Results) -> int:
    """Return J."""
    probes = results.probed(ADAM, "adam+m").spec.resolved.probes
    return int(next(p.params["inputs"] for p in probes if p.name == "hessian-entries"))


def block_medians(entries: Array, inputs: int) -> tuple[float, float]:
    """Return the median magnitudes of the entries [K J, K J] within diagonal blocks and outside them.

    >>> block_medians(np.array([[2.0, 1.0, 0.0, 0.5], [1.0, 2.0, 0.5, 0.0]] * 2), 2)
    (0.75, 0.75)
    """
    block = np.arange(len(entries)) // inputs
    diagonal = block[:, None] == block[None, :]
    size = np.abs(entries)
    return float(np.median(size[diagonal])), float(np.median(size[~diagonal]))


def hessian_figure(name: str, paper: str, array: str, words: str, *, traces: bool) -> Figure:
    """Return the figure of one sampling of the classes, of the traces of blocks or of entries."""
    shown_array, axis = (f"{array}_traces", "class") if traces else (array, "class x input")
    value = "|block trace|" if traces else "|entry|"

    def plot(results: Results) -> Picture:
        steps, matrices = measured(results, "step"), measured(results, shown_array)
        inputs = 1 if traces else num_inputs(results)
        picture = Picture(1, len(steps) + 1, width=2.0, height=2.4)
        with np.errstate(divide="ignore"):
            size = np.log10(np.abs(matrices.astype(np.float64)))
        top = float(size.max())
        panels = []
        for column, step in enumerate(steps):
            panels.append(picture.panel(0, column, f"t = {step}", axis, "" if column else axis))
            shown = np.maximum(size[column], top - DECADES)
            panels[-1].image(shown, f"log10 {value}", vmin=top - DECADES, vmax=top, cmap="magma")
            within, between = block_medians(matrices[column], inputs)
            panels[-1].below(f"median: diagonal {within:.0e},\nothers {between:.0e}")
            panels[-1].axes.set(xticks=[], yticks=[])
        picture.colour_bar(panels, f"log10 {value}")
        panel = picture.panel(0, len(steps), "largest other block", "classes, sorted", "of the diagonal trace")
        others = measured(results, "largest_other")
        for column, step in enumerate(steps):
            shade = str(0.75 - 0.75 * column / max(1, len(steps) - 1))
            share = np.linspace(0, 1, others.shape[1])
            panel.line(share, np.sort(others[column])[::-1], f"t = {step}", color=shade)
        panel.axes.set(ylim=(0, None), xticks=[0, 0.5, 1], xticklabels=["0", "half", "all"])
        panel.axes.legend(loc="best", handlelength=1.2)
        return picture

    def contrast(results: Results) -> float:
        inputs = num_inputs(results)
        pairs = [block_medians(entries, inputs) for entries in measured(results, array)]
        return float(np.min([within / between if between else np.inf for within, between in pairs]))

    rules = [
        claim("blocks-stand-out", ">=", 100.0,
            f"median magnitude within diagonal blocks over that between blocks, {words}, smallest over measured steps",
            contrast, quote=f'{paper.lower()}: "orders of magnitude"'),
        claim("diagonally-dominant", ">=", 1 - ROUNDING,
            "Tr H_kk over sum of |Tr H_kj| over j != k, smallest over classes and measured steps (1 by an identity of "
            "the softmax, up to rounding)", lambda r: float(measured(r, "diagonal_share").min()),
            quote="section H.1; an identity by erratum 12", kind="exact"),
    ]  # fmt: skip
    if traces:
        rules.append(
            claim("trace-blocks", "<=", 0.01,
                "median over j != k of |Tr H_kj| / Tr H_kk, median over classes, largest over measured steps",
                lambda r: float(np.median(measured(r, "median_other"), axis=1).max()),
                quote=f'{paper.lower()}: "orders of magnitude"'))  # fmt: skip
    what = "Traces of Hessian blocks" if traces else "Entries of the Hessian"
    about = (
        f"{what} along Adam's path, classes sampled {words}, most frequent first: the blocks on the diagonal stand out."
    )
    return Figure(name, f"{what}, classes sampled {words}", paper, about, (ADAM,), tuple(rules), plot)


register(hessian_figure("fig08", "Figure 8", "log_uniform", "log-uniformly", traces=True))
register(hessian_figure("fig28", "Figure 28", "uniform", "uniformly", traces=False))
