"""Beyond the paper: recall of a linear associative memory under GD, sign descent and Muon (arXiv 2509.26030).

Shapes: K items, G frequency groups, T steps.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from heavytail.analysis import associative, theory
from heavytail.analysis.associative import OPTIMIZERS, Embeddings
from heavytail.plotting.style import Panel, Picture, optimizer_colour, optimizer_name
from heavytail.results.claims import claim, ratio
from heavytail.results.figure import Figure, register
from heavytail.results.results import Array, Results

ITEMS, BEST = 256, 0.9
SOLVED = 1.1 * -np.log(BEST)  # nats: 1.1 times the loss of the best item after one step
LAWS = {"two levels": associative.two_levels(ITEMS), "1/k": theory.zipf(ITEMS)}
ROTATIONS = (0, 1, 2)  # seeds
GROUPS, STEPS = 7, 200  # of the training with 127 items


@lru_cache
def rotation(num_items: int, seed: int | None) -> Embeddings | None:
    """Return random embeddings, or None for the class basis."""
    return None if seed is None else Embeddings.random(num_items, seed)


@lru_cache
def stored(optimizer: str, law: str, seed: int | None) -> Array:
    """Return the recall of every item after one step [K], most frequent first."""
    return associative.one_step(optimizer, LAWS[law], BEST, rotation(ITEMS, seed))


def worst(optimizer: str, *seeds: int | None) -> list[float]:
    """Return the recall of the worst item for every frequency law and embedding."""
    return [float(stored(optimizer, law, seed).min()) for law in LAWS for seed in seeds]


@lru_cache
def trained(optimizer: str, seed: int | None) -> Array:
    """Return the loss of every group after each step [T+1, G], with the step size of the first step's best item."""
    frequency, group = associative.by_groups(GROUPS)
    embeddings = rotation(len(frequency), seed)
    lr = associative.first_step_size(optimizer, frequency, BEST, embeddings)
    losses = associative.train(optimizer, frequency, lr, STEPS, embeddings)
    return np.stack([losses[:, group == g].mean(axis=1) for g in range(GROUPS)], axis=1)


def steps_to_recall(optimizer: str, seed: int | None) -> Array:
    """Return the first step after which the mean loss of each group is at most that of the first best item [G]."""
    recalled = trained(optimizer, seed) <= SOLVED
    return np.where(recalled.any(axis=0), recalled.argmax(axis=0), np.inf)


def rare_ratio(first: tuple[str, int | None], second: tuple[str, int | None]) -> float:
    """Return the steps of the first (optimizer, seed) to the rarest group's target loss over those of the second."""
    return ratio(steps_to_recall(*first)[-1], steps_to_recall(*second)[-1])


# -- picture ---------------------------------------------------------------------------------------------------------

WIDTH = {"gd": 1.2, "sign": 3.2, "muon": 1.2}  # in the class basis the line of Muon covers that of sign descent
TRAINED = (("gd", None), ("sign", None), ("sign", ROTATIONS[0]), ("muon", None))


def name(optimizer: str, seed: int | None) -> str:
    """Return the name of an optimizer, with its basis if results depend on it."""
    basis = {"sign": ", class basis" if seed is None else ", rotated"}
    return optimizer_name(optimizer) + basis.get(optimizer, "")


def draw_recall(panel: Panel, seed: int | None) -> None:
    """Draw the recall of every item after one step: two levels of frequency as lines, 1/k dotted."""
    for optimizer in OPTIMIZERS:
        for law, dots in zip(LAWS, ("-", ":"), strict=True):
            width = WIDTH[optimizer] if seed is None else 1.2
            style = {"color": optimizer_colour(optimizer), "linestyle": dots, "linewidth": width}
            label = f"{optimizer_name(optimizer)}, {law}"
            panel.line(np.arange(1, ITEMS + 1), stored(optimizer, law, seed), label, **style)
    panel.level(1 / ITEMS, "chance")
    panel.axes.set(xscale="log", yscale="log", ylim=(1e-3, 1.3))


def plot(results: Results) -> Picture:
    """Draw the recall after one step in both bases, and the losses of many steps, over time and by group."""
    picture = Picture(1, 4, width=2.8, height=2.6)
    panels = [
        picture.panel(0, 0, "one step, class basis", "item, by frequency", "probability of the answer"),
        picture.panel(0, 1, "one step, rotated", "item, by frequency", ""),
    ]
    for panel, seed in zip(panels, (None, ROTATIONS[0]), strict=True):
        draw_recall(panel, seed)
    names = [optimizer_name(optimizer) for optimizer in OPTIMIZERS]
    panels[0].axes.legend(
        panels[0].axes.lines[:-1:2], names, loc="lower left", bbox_to_anchor=(0.0, 0.2), handlelength=1, fontsize=6
    )
    curve = picture.panel(0, 2, "many steps: rarest group", "step", "loss (nats)")
    groups = picture.panel(0, 3, "many steps: by group", "group, by frequency", f"steps to {SOLVED:.2f} nats")
    for optimizer, seed in TRAINED:
        losses = trained(optimizer, seed)
        line, width = ("-", WIDTH[optimizer]) if seed is None else ("--", 1.5)
        style = {"color": optimizer_colour(optimizer), "linestyle": line, "linewidth": width}
        steps = np.arange(1, STEPS + 1)
        curve.line(steps, losses[1:, -1], name(optimizer, seed), **style)
        needed = steps_to_recall(optimizer, seed)
        reached = np.isfinite(needed)
        numbers = np.arange(1, GROUPS + 1)
        groups.line(numbers[reached], needed[reached], name(optimizer, seed), marker="o", markersize=3, **style)
    curve.level(SOLVED, f"{SOLVED:.2f} nats")
    curve.axes.set(xscale="log", ylim=(0, None))
    groups.axes.set(yscale="log", xticks=[1, GROUPS])
    groups.axes.legend(loc="upper left", handlelength=1.8, fontsize=6)
    return picture


register(
    Figure(
        "memory",
        "Linear associative memory",
        "Wang et al. 2025, arXiv 2509.26030",
        f"{ITEMS} items with orthonormal embeddings and heavy-tailed frequencies. Left: after one step from W = 0, of "
        f"the size at which the best item has probability {BEST}; solid: a fifth of the items has four fifths of the "
        f"data, dotted: frequencies 1/k. Right: more steps of that size on {2**GROUPS - 1} "
        f"items in {GROUPS} groups as in the synthetic data. Only sign descent depends on the basis. Computed in "
        "float64.",
        (),
        (
            claim("muon-balanced", ">=", 0.85,
                "Muon, one step: probability of the worst item, smallest over frequencies (two levels, 1/k) and bases "
                "(class, three rotations)", lambda results: np.min(worst("muon", None, *ROTATIONS))),
            claim("sign-balanced-in-class-basis", ">=", 0.85,
                "sign descent, one step in the class basis: probability of the worst item, smallest over frequencies",
                lambda results: np.min(worst("sign", None))),
            claim("sign-unbalanced-rotated", "<=", 0.1,
                "sign descent, one step in a rotated basis: probability of the worst item, largest over frequencies "
                "and three rotations", lambda results: np.max(worst("sign", *ROTATIONS))),
            claim("gd-unbalanced", "<=", 0.1, "GD, one step: probability of the worst item, largest over frequencies",
                lambda results: np.max(worst("gd", None))),
            claim("many-steps-muon", "<=", 0.8,
                f"steps of Muon until the rarest group's loss is {SOLVED:.2f} nats, relative to GD's",
                lambda results: rare_ratio(("muon", None), ("gd", None))),
            claim("many-steps-rotated", ">=", 1.25,
                f"rotated basis: steps of sign descent until the rarest group's loss is {SOLVED:.2f} nats, relative to "
                "Muon's", lambda results: rare_ratio(("sign", ROTATIONS[0]), ("muon", ROTATIONS[0]))),
        ),
        plot,
    )
)  # fmt: skip
