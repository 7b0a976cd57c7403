"""Beyond the paper: the gap between SGD and Adam by batch size, at equal tokens (arXiv 2506.12543, 2507.07101)."""

from __future__ import annotations

from heavytail.plotting.panels import final_group_losses
from heavytail.plotting.style import Picture
from heavytail.results.claims import claim, compared, progress, ratio, relative, versus
from heavytail.results.figure import Figure, register
from heavytail.results.results import Results, SweepRef

BATCHES = {
    name: SweepRef("batch-size", ("gd+m", "adam+m"), variant)
    for name, variant in (("few", "few"), ("some", "some"), ("all", ""))
}
FEW, _, ALL = BATCHES.values()


def gap(results: Results, ref: SweepRef, *, rare: bool = False) -> float:
    """Return SGD's final loss (or the rarest group's) relative to Adam's."""
    slow, fast = (results.selected(ref, label) for label in ref.optim)
    return versus(slow, fast, rare=rare)


def growth(results: Results, *, rare: bool = False) -> float:
    """Return the gap of full batches relative to that of the smallest batches."""
    pairs = [[results.selected(ref, label) for label in ref.optim] for ref in (ALL, FEW)]
    value = ratio(*(relative(*pair, rare=rare) for pair in pairs))
    for pair in pairs:
        compared(value, *(progress(run, rare=rare) for run in pair))
    return value


def sequences(results: Results, ref: SweepRef) -> str:
    """Return the batch size in words."""
    size = results.sweep(ref).run.get("batch_size")
    return "full batch" if size is None else f"batches of {size}"


def plot(results: Results) -> Picture:
    """Draw the final loss of every group, a panel for each batch size."""
    picture = Picture(1, len(BATCHES), width=2.8, height=2.5)
    panels = []
    for column, ref in enumerate(BATCHES.values()):
        label = "" if column else "final training loss (nats)"
        panels.append(picture.panel(0, column, sequences(results, ref), "group (1 = most frequent)", label))
        final_group_losses(panels[-1], [results.selected(ref, label) for label in ref.optim], legend=False)
    picture.share_y(panels, 2 * results.selected(ALL, "gd+m").initial_loss)
    picture.legend(panels, {"SGD": "SGD (full batch: GD)", "Adam": "Adam"})
    return picture


SIMILAR = '"SGD with momentum can actually perform similarly to Adam in small-batch settings, if tuned correctly"'
register(
    Figure(
        "batch-size",
        "SGD and Adam by batch size",
        "Srećković et al. 2025, arXiv 2506.12543; Marek et al. 2025, arXiv 2507.07101",
        "SGD with momentum and Adam on as many tokens with batches from a few sequences to all of them; the half-life "
        "of Adam's second moments is a fixed number of tokens.",
        tuple(BATCHES.values()),
        (
            claim("small-batches-similar", "<=", 1.1,
                "smallest batches: final loss of SGD, relative to Adam's", lambda r: gap(r, FEW), quote=SIMILAR),
            claim("small-batches-similar-rarest", "<=", 1.1, "the same on the rarest group",
                lambda r: gap(r, FEW, rare=True), quote=SIMILAR),
            claim("gap-grows-with-batch", ">=", 1.1,
                "final loss of GD relative to Adam's with full batches, over the same ratio with the smallest batches",
                growth, quote=SIMILAR),
            claim("gap-grows-with-batch-rarest", ">=", 1.1, "the same on the rarest group",
                lambda r: growth(r, rare=True)),
        ),
        plot,
    )
)  # fmt: skip
