"""Plot an audit: class frequencies, and the training time of each group."""

from __future__ import annotations

import numpy as np

from heavytail.audit.audit import TARGET_LOSS, Audit
from heavytail.plotting.panels import rank_histogram
from heavytail.plotting.style import Picture, applied


def draw_audit(found: Audit) -> Picture:
    """Return the plot of an audit: frequency by rank, and the time of each group by Theorem 3."""
    with applied():
        picture = Picture(1, 2, width=3.2, height=2.6)
        panel = picture.panel(0, 0, "classes", "class, by frequency", "samples")
        rank_histogram(panel, found.counts, found.groups.index)
        rank = np.arange(1, found.num_classes + 1)
        if np.isfinite(found.zipf.exponent):
            zipf = rank**-found.zipf.exponent
            zipf *= found.counts.sum() / zipf.sum()
            label = f"Zipf, exponent {found.zipf.exponent:.2f}"
            panel.line(rank, zipf, label, color="#D55E00", linestyle="--", linewidth=1)
            panel.axes.legend(loc="upper right")
        title = f"time to loss {TARGET_LOSS} (Theorem 3)"
        times = picture.panel(0, 1, title, "group, by frequency", "relative to group 1")
        group = np.arange(1, found.groups.num_groups + 1)
        times.line(group, found.slowdown, "gradient descent", color="#0072B2", marker="o", markersize=3.5)
        times.line(group, np.ones(len(group)), "sign descent", color="#CC79A7", marker="o", markersize=3.5)
        times.axes.set(yscale="log")
        times.axes.set_xticks([group[0], group[-1]] if len(group) > 1 else group)
        times.axes.legend(loc="upper left")
        return picture
