"""Weighting the loss by how rare a class is lets SGD reach rare classes without Adam (figure 22).

A column for each problem: the unweighted loss of SGD, Adam, and SGD on the losses weighted by 1/sqrt(pi) and 1/pi.
"""

from __future__ import annotations

from heavytail.figures import ClaimRule, Figure, register
from heavytail.figures.claims import rarest, ratio
from heavytail.figures.panels import group_losses, loss_label, overall_loss
from heavytail.figures.results import Need, Results, Selected
from heavytail.figures.style import Picture

# Name -> preset, with the variants "weighted-sqrt" and "weighted-inverse". Another problem is another line.
PROBLEMS = {
    "transformer": "two-layer-transformer",
    "linear": "linear",
    "CNN": "cnn",
    "ResNet18": "resnet18",
}
PLAIN = ("gd+m", "adam+m")
WEIGHTED = {"weighted-sqrt": r"SGD, $1/\sqrt{\pi_k}$", "weighted-inverse": r"SGD, $1/\pi_k$"}


def needs(preset: str) -> tuple[Need, ...]:
    """Return the sweeps of one problem: without weights, then with each kind of them."""
    return (Need(preset, PLAIN), *(Need(preset, ("gd+m",), variant) for variant in WEIGHTED))


def plot(results: Results) -> Picture:
    """Draw a column for each problem: the overall loss, then each of the four by group."""
    picture = Picture(5, len(PROBLEMS), width=2.8, height=2.0)
    for column, (name, preset) in enumerate(PROBLEMS.items()):
        plain, *weighted = needs(preset)
        runs = {label: results.best(plain, label) for label in PLAIN}
        named: dict[str, Selected] = {"SGD": runs["gd+m"], "Adam": runs["adam+m"]}
        named |= {title: results.best(need, "gd+m") for need, title in zip(weighted, WEIGHTED.values(), strict=True)}
        top = picture.panel(0, column, name, "", "" if column else loss_label("train"))
        overall_loss(top, list(runs.values()))
        for style, (title, run) in zip((":", "-."), list(named.items())[2:], strict=True):
            if run.lr is None:
                top.note(f"{title}: no stable step size")
                continue
            step, median, _, _ = run.curve()
            top.line(step, median, title, color="#2e7d32", linestyle=style)
        top.axes.legend(loc="lower left", handlelength=1.6)
        losses = [top]
        for row, (title, run) in enumerate(named.items(), 1):
            xlabel = "step" if row == len(named) else ""
            losses.append(picture.panel(row, column, f"{name}: {title}", xlabel, "" if column else loss_label("train")))
            group_losses(losses[-1], run)
        picture.share_y(losses, 2 * runs["gd+m"].initial_loss)
    return picture


def rules(name: str, preset: str) -> tuple[ClaimRule, ClaimRule]:
    """Return the claims on one problem."""
    plain, root, _ = needs(preset)
    return (
        ClaimRule(
            f"weighted-ahead-{name.lower()}",
            f"{name}: final unweighted loss of SGD on the 1/sqrt(pi) weighted loss, relative to plain SGD's",
            "<",
            1.0,
            lambda r: ratio(r.best(root, "gd+m").final_loss, r.best(plain, "gd+m").final_loss),
        ),
        ClaimRule(
            f"weighted-rare-{name.lower()}",
            f"{name}: the same on the rarest group",
            "<=",
            0.95,
            lambda r: ratio(rarest(r.best(root, "gd+m")), rarest(r.best(plain, "gd+m"))),
        ),
    )


register(
    Figure(
        "fig22",
        "SGD on reweighted losses",
        "Figure 22",
        "Weights of 1/sqrt(pi) let SGD lower rare groups without Adam; weights of 1/pi overdo it on frequent ones. "
        "The unweighted loss is shown, by frequency group (dark: frequent; dashed: initial loss).",
        tuple(need for preset in PROBLEMS.values() for need in needs(preset)),
        tuple(rule for name, preset in PROBLEMS.items() for rule in rules(name, preset)),
        plot,
    )
)
