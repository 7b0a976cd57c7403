"""SGD on losses weighted by inverse class frequency learns rare classes without Adam (figure 22).

A row for each problem: the unweighted loss of SGD, Adam, and SGD on the losses weighted by 1/sqrt(pi) and 1/pi.
"""

from __future__ import annotations

from collections.abc import Callable

from heavytail.plotting.panels import group_losses, loss_label, overall_loss
from heavytail.plotting.style import Picture, optimizer_name
from heavytail.results.claims import ClaimRule, Comparison, claim, versus
from heavytail.results.figure import Figure, register
from heavytail.results.results import Results, SweepRef

PLAIN = ("gd+m", "adam+m")
# Name -> problem, whose preset has the variants "weighted-sqrt" and "weighted-inverse". The release weights the loss of
# the linear model and of the CNN in runs of 500 steps, beside others of 1 000 and 600.
PROBLEMS = {
    "transformer": SweepRef("two-layer-transformer", PLAIN),
    "linear": SweepRef("linear", PLAIN, shown={"paper": 1 / 2}),
    "CNN": SweepRef("cnn", PLAIN, "long", shown={"paper": 5 / 6}),
    "ResNet18": SweepRef("resnet18", PLAIN),
}
WEIGHTED = {"weighted-sqrt": r"$1/\sqrt{\pi_k}$", "weighted-inverse": r"$1/\pi_k$"}


def refs(plain: SweepRef) -> tuple[SweepRef, ...]:
    """Return the sweeps of one problem: without weights, then with each kind of weights."""
    return (plain, *(SweepRef(plain.preset, ("gd+m",), variant) for variant in WEIGHTED))


def plot(results: Results) -> Picture:
    """Draw a row per problem: the overall loss of all four sweeps, then each by group."""
    picture = Picture(len(PROBLEMS), 5, width=2.2, height=2.1)
    for row, (name, problem) in enumerate(PROBLEMS.items()):
        plain, *weighted = refs(problem)
        sgd, adam = (results.selected(plain, label) for label in PLAIN)
        others = {title: results.selected(ref, "gd+m") for ref, title in zip(weighted, WEIGHTED.values(), strict=True)}
        losses = [picture.panel(row, 0, f"{name}: overall", "step", loss_label("train"))]
        overall_loss(losses[0], [sgd, adam], legend=False)
        for style, (title, run) in zip((":", "-."), others.items(), strict=True):
            if run.lr is None:
                losses[0].note(f"{title}: no stable step size")
            else:
                step, median, _, _ = run.curve()
                losses[0].line(step, median, title, color="#2e7d32", linestyle=style)
        plain_name = optimizer_name(sgd.label, stochastic=sgd.stochastic)
        named = {plain_name: sgd, "Adam": adam, **{f"{plain_name}, {title}": run for title, run in others.items()}}
        for column, (title, run) in enumerate(named.items(), 1):
            losses.append(picture.panel(row, column, title, "step", ""))
            group_losses(losses[-1], run)
        picture.share_y(losses, 2 * sgd.initial_loss)
        picture.group_bar(losses, sgd.num_groups)
    words = {"SGD": "SGD or GD", "Adam": "Adam"} | {w: f"SGD or GD, loss weighted by {w}" for w in WEIGHTED.values()}
    picture.legend([picture.panels[row, 0] for row in range(len(PROBLEMS))], words)
    return picture


HURT = ("transformer", "ResNet18")  # by weights of 1/pi, which help on the others


def rules(name: str, problem: SweepRef) -> tuple[ClaimRule, ...]:
    """Return the claims on one problem."""
    plain, root, inverse = refs(problem)

    def against_plain(ref: SweepRef, *, rare: bool = False) -> Callable[[Results], float]:
        return lambda r: versus(r.selected(ref, "gd+m"), r.selected(plain, "gd+m"), rare=rare)

    verb = "hurts" if name in HURT else "helps"
    comparison: Comparison = ">" if name in HURT else "<"
    return (
        claim(f"weighted-ahead-{name.lower()}", "<", 1.0,
            f"{name}: final unweighted loss of SGD on the 1/sqrt(pi) weighted loss, relative to plain SGD's",
            against_plain(root), quote='figure 22: "consistently outperforms"'),
        claim(f"weighted-rare-{name.lower()}", "<=", 0.95, f"{name}: the same on the rarest group",
            against_plain(root, rare=True), quote="figure 22"),
        claim(f"inverse-{verb}-{name.lower()}", comparison, 1.0,
            f"{name}: final unweighted loss of SGD on the 1/pi weighted loss, relative to plain SGD's",
            against_plain(inverse),
            quote='appendix F: "sometimes better (Linear, MNIST) but can be worse (PTB, ImageNet)"'),
    )  # fmt: skip


register(
    Figure(
        "fig22",
        "SGD on reweighted losses",
        "Figure 22",
        "Weights of 1/sqrt(pi) let SGD lower rare groups without Adam; weights of 1/pi overdo it on frequent ones. "
        "The unweighted loss is shown, by frequency group (dashed: initial loss).",
        tuple(ref for problem in PROBLEMS.values() for ref in refs(problem)),
        tuple(rule for name, problem in PROBLEMS.items() for rule in rules(name, problem)),
        plot,
    )
)
