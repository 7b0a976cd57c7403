"""The image data sets: barcoded examples, and the number of images of each class (section 3, appendix A).

No runs and no claims: the data are those of the presets of figures 2 and 3, at the same scale.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from heavytail.data import Data
from heavytail.errors import DataError
from heavytail.experiment.registry import Component, registry
from heavytail.plotting.panels import rank_histogram
from heavytail.plotting.style import Picture
from heavytail.results.figure import Figure, register
from heavytail.results.results import MissingRuns, Results, SweepRef

EXAMPLES = 6


def load(results: Results, preset: str, variant: str) -> tuple[str, Data]:
    """Return a preset's data set and its name; MissingRuns if the data are not available."""
    run = SweepRef(preset, (), variant).load(results.scale).run
    if results.data_dir is None:
        raise MissingRuns("the folder of the data sets is not known; run `heavytail reproduce images`")
    component = Component.parse(run["data"], "data")
    return component.name, _load(component.name, tuple(component.params.items()), results.data_dir)


@lru_cache(maxsize=2)
def _load(name: str, params: tuple[tuple[str, object], ...], data_dir: Path) -> Data:
    try:
        data: Data = registry("data").make(Component(name, dict(params))).load(seed=0, data_dir=data_dir)
    except DataError as error:
        raise MissingRuns(str(error)) from error
    return data


def plot(results: Results) -> Picture:
    """Draw examples of one digit with different barcodes, and the class histograms of both problems."""
    name, barcoded = load(results, "cnn", "")
    picture = Picture(2, EXAMPLES, width=1.6, height=1.8)
    classes = np.flatnonzero(barcoded.counts.numpy() == barcoded.counts[-1].item())  # the barcoded ones
    inputs = barcoded.train.inputs.flatten(1)
    low, high = inputs.amin(0), inputs.amax(0)
    chosen = classes[(np.arange(1, EXAMPLES + 1) * 0.618 % 1 * len(classes)).astype(int)]  # digits and codes vary
    for column, k in enumerate(chosen):
        where = int((barcoded.train.targets == int(k)).nonzero()[0, 0])
        image = (inputs[where] - low) / (high - low).clamp(min=1e-6)  # standardised pixels hide the digit
        panel = picture.panel(0, column, f"class {k}", "", "")
        panel.image(image.view(barcoded.train.inputs.shape[2:]).numpy(), f"class {k}", cmap="gray")
        panel.axes.set(xticks=[], yticks=[])
    half = EXAMPLES // 2
    for column, (preset, variant) in enumerate((("cnn", ""), ("resnet18", "heavy-tailed"))):
        name, data = load(results, preset, variant)
        span = slice(column * half, (column + 1) * half)
        panel = picture.panel(1, span, f"{name}, {data.num_classes} classes", "rank of the class", "images")
        rank_histogram(panel, data.counts.numpy(), data.groups().index)
    return picture


register(
    Figure(
        "images",
        "The image data sets",
        "Section 3, appendix A",
        "Barcodes are the pixels in the upper left corner; each pixel is drawn between its extremes over all images. "
        "Below, the images per class of figures 2 and 3, in the colours of the frequency groups.",
        (),
        (),
        plot,
    )
)
