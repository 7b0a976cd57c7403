"""Beyond the paper: the head's Hessian approaches block-diagonal as the number of classes grows (arXiv 2505.02809).

At W = 0 every probability is 1/C, so that with Hbar the second moment of the inputs

    H_kk = (1/C)(1 - 1/C) Hbar,        H_kj = -(1/C^2) Hbar,        |H_kj| / |H_kk| = 1/(C - 1)        exactly,

for any data: a class shares its curvature with C - 1 others. At a random initialisation probabilities are about 1/C,
and the law holds approximately.

Shapes: C classes, D features, N samples, K sampled classes.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np

from heavytail.analysis.bigram import scaling
from heavytail.plotting.style import Picture
from heavytail.results.claims import ClaimRule, claim
from heavytail.results.figure import Figure, register
from heavytail.results.results import Array, Results

SIZES = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024, 2_000)  # C
FEATURES, SAMPLES, LOOKED_AT = 32, 512, 16
SEEDS = (0, 1, 2)
INPUTS = {"normal": "N(0, 1)", "uniform": "U[0, 1]"}
SHOWN = (16, 2_000)  # C in the panels of block norms
DECADES = 4

Init = Literal["zero", "default"]


@cache
def block_norms(num_classes: int, inputs: str, init: Init, seed: int) -> Array:
    """Return the Frobenius norms of the blocks between some classes of a softmax head at its initialisation [K, K].

    Args:
        num_classes: C.
        inputs: "normal" or "uniform", D independent features.
        init: "zero", or "default": weights and bias as PyTorch draws them, U(-1/sqrt(D), 1/sqrt(D)).
        seed: of inputs and weights.
    """
    import torch

    from heavytail.analysis.curvature import hessian_entries

    rng = np.random.default_rng(seed)
    draw = rng.standard_normal if inputs == "normal" else rng.random
    h = draw((SAMPLES, FEATURES))
    reach = 0.0 if init == "zero" else FEATURES**-0.5
    weight = rng.uniform(-reach, reach, (num_classes, FEATURES))
    bias = rng.uniform(-reach, reach, num_classes)
    targets = torch.zeros(SAMPLES, dtype=torch.int64)  # the Hessian does not depend on the targets
    classes = np.arange(min(num_classes, LOOKED_AT))
    H = hessian_entries(
        [(torch.from_numpy(h), targets)], torch.from_numpy(weight), torch.from_numpy(bias), classes, np.arange(FEATURES)
    )
    blocks = H.view(len(classes), FEATURES, len(classes), FEATURES)
    norms: Array = torch.linalg.vector_norm(blocks, dim=(1, 3)).numpy()
    return norms


def relative_size(norms: Array) -> float:
    """Return the root mean square of off-diagonal norms [K, K], relative to that of diagonal ones.

    >>> relative_size(np.array([[2.0, 1.0], [1.0, 2.0]]))
    0.5
    """
    own = np.eye(len(norms), dtype=bool)
    return float(np.sqrt((norms[~own] ** 2).mean() / (norms[own] ** 2).mean()))


def sizes(inputs: str) -> Array:
    """Return the relative size of off-diagonal blocks at the default initialisation, median over seeds, for every C."""
    return np.array([np.median([relative_size(block_norms(c, inputs, "default", s)) for s in SEEDS]) for c in SIZES])


def zero_error() -> float:
    """Return the largest relative distance from 1/(C - 1) at W = 0."""
    measured = [relative_size(block_norms(c, inputs, "zero", 0)) * (c - 1) for c in SIZES for inputs in INPUTS]
    return float(np.abs(np.array(measured) - 1).max())


def slope_rule(inputs: str) -> ClaimRule:
    """Return the claim on the relative size at the default initialisation."""
    return claim(f"slope-{inputs}", "<=", -0.8,
        f"PyTorch's initialisation, inputs {INPUTS[inputs]}: slope of log(norm of off-diagonal over diagonal blocks) "
        f"on log(C), C = {SIZES[0]} to {SIZES[-1]}", lambda results: scaling(SIZES, sizes(inputs)))  # fmt: skip


def plot(results: Results) -> Picture:
    """Draw the relative size over C, and the norms of the blocks between 16 classes for few and for many classes."""
    picture = Picture(1, 1 + len(SHOWN), width=2.9, height=2.6)
    panel = picture.panel(0, 0, "off-diagonal blocks", "classes C", "norm, relative to diagonal blocks")
    styles = ({"marker": "o", "color": "#0072B2"}, {"marker": "s", "color": "#D55E00", "markerfacecolor": "none"})
    for (inputs, words), style in zip(INPUTS.items(), styles, strict=True):
        panel.points(SIZES, sizes(inputs), f"default init, inputs {words}", markersize=5, **style)
    c = np.array(SIZES)
    panel.line(c, 1 / (c - 1), "W = 0: 1/(C−1)", color="black", linewidth=1.0)
    panel.axes.set(xscale="log", yscale="log")
    panel.axes.legend(loc="lower left", handlelength=1.4)
    images = []
    for column, num_classes in enumerate(SHOWN, 1):
        norms = block_norms(num_classes, "normal", "default", SEEDS[0])
        shown = np.log10(norms / np.diagonal(norms).mean())
        images.append(picture.panel(0, column, f"{len(norms)} of C = {num_classes} classes", "class", ""))
        images[-1].image(shown, "log10 of relative norm", vmin=-DECADES, vmax=0, cmap="magma")
        images[-1].axes.set(xticks=[], yticks=[])
    picture.colour_bar(images, "log10 of relative norm")
    return picture


register(
    Figure(
        "hessian-classes",
        "Hessian blocks against the number of classes",
        "Dong et al. 2025, arXiv 2505.02809",
        "Blocks of the head's Hessian at initialisation. Between two classes they are about 1/C of those of a class: "
        "with many classes the Hessian is close to block-diagonal before any training. Computed, not trained.",
        (),
        (
            *(slope_rule(inputs) for inputs in INPUTS),
            claim("zero-exact", "<=", 1e-9, "W = 0: largest relative distance of that ratio from 1/(C - 1)",
                lambda results: zero_error(), kind="exact"),
        ),
        plot,
    )
)  # fmt: skip
