"""Theory versus measurement: the weighted quadratic (figure 6) and the flows of theorem 3.

Shapes: C classes (coordinates), E recorded steps, T steps.
"""

from __future__ import annotations

import numpy as np

from heavytail.analysis import theory
from heavytail.experiment.store import History
from heavytail.plotting.style import Picture, group_colours, optimizer_colour, optimizer_name
from heavytail.results.claims import ClaimRule, claim
from heavytail.results.figure import Figure, register
from heavytail.results.results import Array, Results, SweepRef

# -- figure 6: the weighted quadratic --------------------------------------------------------------------------------

DIMENSIONS, STEPS = 1000, 95
SHOWN = (1, 3, 10, 30, 100, 300, 1000)  # coordinates k
RATES = {"gd": 1.0, "adam": 0.01, "sign": 0.01}  # GD's in units of 1 / pi_1, the largest that does not oscillate


def quadratic(optimizer: str, *, eps: float = 1e-8) -> Array:
    """Return the iterates of one optimizer on sum_k pi_k w_k^2 / 2 with pi_k ~ 1/k, from w = 1, [T+1, C]."""
    pi = theory.zipf(DIMENSIONS)
    rate = RATES[optimizer] / (pi[0] if optimizer == "gd" else 1.0)
    return theory.quadratic_trajectory(pi, optimizer, rate, STEPS, eps=eps)


def plot_quadratic(results: Results) -> Picture:
    """Draw some coordinates over steps, one panel per optimizer."""
    picture = Picture(1, 3)
    panels = []
    for column, optimizer in enumerate(RATES):
        name = optimizer_name(optimizer)
        panels.append(picture.panel(0, column, name, "step", "" if column else "coordinate w_k"))
        w = quadratic(optimizer)
        for k, colour in zip(SHOWN, group_colours(len(SHOWN)), strict=True):
            panels[-1].line(np.arange(STEPS + 1), w[:, k - 1], f"k = {k}", color=colour)
    panels[1].axes.legend(loc="lower left", ncols=2, handlelength=1.0, columnspacing=1.0)
    picture.share_y(panels, top=1.05)
    return picture


def gd_error() -> float:
    """Return the largest distance of GD's coordinates from (1 - alpha pi_k)^t."""
    pi = theory.zipf(DIMENSIONS)
    return float(np.abs(quadratic("gd") - theory.quadratic_gd(pi, RATES["gd"] / pi[0], STEPS)).max())


def first_coordinate(rate: float) -> Array:
    """Return w_1 of GD at a step size in units of 1 / pi_1, [T+1]."""
    pi = theory.zipf(DIMENSIONS)
    return theory.quadratic_trajectory(pi, "gd", rate / pi[0], STEPS)[:, 0]


def spread(w: Array) -> float:
    """Return the largest difference between coordinates at a step, relative to their size then [T+1, C]."""
    return float((np.ptp(w, axis=1) / np.abs(w).max(axis=1)).max())


register(
    Figure(
        "fig06",
        "The weighted quadratic",
        "Figure 6",
        "On f(w) = sum_k pi_k w_k^2 / 2 with pi_k ~ 1/k gradient descent is slow wherever pi_k is small; Adam and sign "
        "descent move all coordinates alike. Computed, not trained.",
        (),
        (
            claim("gd-closed-form", "<=", 1e-12, "largest |w_k(t) - (1 - alpha pi_k)^t| of GD", lambda r: gd_error(),
                quote="figure 6", kind="exact"),
            claim("sign-alike", "<=", 1e-6,
                "sign descent: largest difference between coordinates, relative to their size",
                lambda r: spread(quadratic("sign")), quote="figure 6", kind="exact"),
            claim("adam-alike", "<=", 1e-6,
                "Adam with eps = 0: largest difference between coordinates, relative to their size",
                lambda r: spread(quadratic("adam", eps=0.0)), quote="figure 6", kind="exact"),
            claim("oscillates", ">=", 1.0,
                "GD at step size 1.5 / pi_1: share of the steps at which w_1 changes its sign",
                lambda r: float((np.diff(np.sign(first_coordinate(1.5))) != 0).mean()),
                quote='section 3.1: "increasing it beyond 1/pi_1 would cause instabilities"', kind="exact"),
            claim("diverges", ">", 1.0,
                "GD at step size 2.01 / pi_1: smallest growth of |w_1| from one step to the next",
                lambda r: float(np.min(np.abs(first_coordinate(2.01)[1:] / first_coordinate(2.01)[:-1]))),
                quote='section 3.1: "increasing it beyond 1/pi_1 would cause instabilities"', kind="exact"),
        ),
        plot_quadratic,
    )
)  # fmt: skip

# -- theorem 3 -------------------------------------------------------------------------------------------------------

FLOWS = SweepRef("simple-imbalanced")
TARGET = 0.1  # nats: time is measured until the loss falls below it
SOLVED = 1e-3  # nats: smaller losses are not compared; float32 histories and finite steps limit their precision


def simulation(results: Results, label: str) -> tuple[Array, Array, Array, History]:
    """Return times [E], losses [E, C] and class frequencies [C] of the descent that discretises a flow, and its run."""
    history = next(results.histories(FLOWS, label))
    count = history.arrays["train/count"].astype(np.float64)
    loss = history.arrays["train/class_loss"].astype(np.float64)
    return history.step * history.spec.lr, loss, count / count.sum(), history


def closed_form(label: str, t: Array, pi: Array) -> Array:
    """Return the loss of each class under the flow of "gd" or "sign" at times t, [E, C]."""
    if label == "gd":
        return theory.gradient_flow_loss(t[:, None], pi, len(pi))
    return np.broadcast_to(theory.sign_flow_loss(t, len(pi))[:, None], (len(t), len(pi)))


def ode_error(label: str, results: Results) -> float:
    """Return the largest relative distance of the closed form from an integration of the flow itself."""
    from scipy.integrate import solve_ivp

    t, _, pi, _ = simulation(results, label)
    c, rows = len(pi), slice(1, None)
    expected = closed_form(label, t, pi)[rows]
    errors = []
    for k, share in enumerate(pi):

        def velocity(_: float, w: Array, share: float = share) -> Array:
            # one column of W: w[0] in the row of its class, w[1] in each other, of probability p
            p = 1.0 / (c - 1.0 + np.exp(w[0] - w[1]))
            pull = share * p * np.array([c - 1.0, -1.0])
            change: Array = np.sign(pull) if label == "sign" else pull
            return change

        w = solve_ivp(velocity, (0.0, t[-1]), [0.0, 0.0], "DOP853", t[rows], rtol=1e-12, atol=1e-14).y
        loss = np.log1p((c - 1.0) * np.exp(w[1] - w[0]))
        errors.append(np.abs(expected[:, k] / loss - 1).max())
    return float(np.max(errors))


def descent_error(label: str, results: Results) -> float:
    """Return the largest relative distance of trained losses from the closed form, where the latter is above 1e-3."""
    t, loss, pi, _ = simulation(results, label)
    expected = closed_form(label, t, pi)
    seen = expected > SOLVED
    return float(np.abs(loss[seen] / expected[seen] - 1).max())


def times_to_target(results: Results, label: str) -> Array:
    """Return the time at which each class's trained loss falls below 0.1, [C]; NaN if it never does."""
    t, loss, _, _ = simulation(results, label)
    crossed = np.argmax(loss <= TARGET, axis=0)
    times = np.full(loss.shape[1], np.nan)
    for k, row in enumerate(crossed):
        if row > 0:
            before, after = np.log(loss[row - 1 : row + 1, k])
            times[k] = t[row - 1] + (t[row] - t[row - 1]) * (before - np.log(TARGET)) / (before - after)
    return times


def time_exponent(results: Results, label: str) -> float:
    """Return the slope of log(time to loss 0.1) on log(pi_k)."""
    pi = simulation(results, label)[2]
    return float(np.polyfit(np.log(pi), np.log(times_to_target(results, label)), 1)[0])


CLASSES = (10, 1000)  # c of the closed forms that are compared with the statement of theorem 3


def rate_error(c: int) -> float:
    """Return the largest relative distance of pi_k t l_k(t) of gradient flow from (c-1)/c, once t is large enough.

    That is t >= 100 z (log z + 1)/(c pi_k) with z = c - 1; by then the loss is proportional to 1/(pi_k t).
    """
    pi, z = theory.zipf(c), c - 1
    late = 100 * z * (np.log(z) + 1) / (c * pi) * np.geomspace(1.0, 1e6, 25)[:, None]  # [T, C]
    loss = theory.gradient_flow_loss(late, pi, c)
    return float(np.abs(pi * late * loss * c / z - 1).max())


def sign_rate_error(results: Results) -> float:
    """Return the largest relative distance of the slope of log(loss) on t from -2 under sign flow, over all classes.

    From a loss of 0.01 on: closed forms, and the trained classes of sign descent one by one.
    """
    slopes = []
    for c in CLASSES:
        t = theory.sign_flow_time(0.01, c) + np.linspace(0.0, 10.0, 50)
        slopes.append(np.polyfit(t, np.log(theory.sign_flow_loss(t, c)), 1)[0])
    t, loss, _, _ = simulation(results, "sign")
    for trained in loss.T:
        small = (trained > 0) & (trained < 0.01)
        slopes.append(np.polyfit(t[small], np.log(trained[small]), 1)[0])
    return float(np.abs(np.array(slopes) / -2 - 1).max())


def plot_flows(results: Results) -> Picture:
    """Plot the loss of some classes under both flows, and the time to loss 0.1 of every class."""
    picture = Picture(1, 3, width=2.8)
    for column, (label, name) in enumerate((("gd", "gradient"), ("sign", "sign"))):
        t, loss, pi, _ = simulation(results, label)
        panel = picture.panel(
            0, column, f"{name} flow and descent", "time (step size x steps)", "" if column else "loss (nats)"
        )
        classes = np.unique(np.geomspace(1, len(pi), 6).round().astype(int)) - 1
        expected = closed_form(label, t, pi)
        for k, colour in zip(classes, group_colours(len(classes)), strict=True):
            rows = np.unique(np.geomspace(1, len(t) - 1, 14).round().astype(int))
            panel.points(t[rows], loss[rows, k], f"class {k + 1}, trained", marker="o", markersize=3, color=colour)
            panel.line(t[1:], expected[1:, k], f"pi = {pi[k]:.3f}", color=colour, linewidth=1.0)
        panel.axes.set(xscale="log", yscale="log", ylim=(SOLVED, None))
        if label == "sign":
            shown = theory.sign_flow_loss_printed(t[1:], len(pi))
            panel.line(t[1:], shown, "Lemma 7 as printed", color="black", linestyle=":", linewidth=1.0)
            handles, labels = panel.axes.get_legend_handles_labels()
            panel.axes.legend(handles[-1:], labels[-1:], loc="lower left")
        else:
            handles, labels = panel.axes.get_legend_handles_labels()
            panel.axes.legend(handles[1::2], labels[1::2], loc="lower left", handlelength=1.0)
    panel = picture.panel(0, 2, "time to loss 0.1", "class frequency", "time")
    pi = simulation(results, "gd")[2]
    for label, name, expected in (
        ("gd", "gradient descent", theory.gradient_flow_time(TARGET, pi, len(pi))),
        ("sign", "sign descent", np.full(len(pi), theory.sign_flow_time(TARGET, len(pi)))),
    ):
        colour = optimizer_colour(label)
        panel.points(pi, times_to_target(results, label), name, marker="o", markersize=3.5, color=colour)
        panel.line(pi, expected, f"{name}: closed form", color=colour, linewidth=1.0)
    panel.axes.set(xscale="log", yscale="log")
    panel.axes.set_xticks([0.03, 0.1, 0.3], ["0.03", "0.1", "0.3"])
    panel.axes.set_xticks([], minor=True)
    panel.axes.legend(loc="best", handlelength=1.0)
    return picture


def flow_rules(label: str, name: str, exponent: float) -> tuple[ClaimRule, ...]:
    """Return the claims on one flow."""
    return (
        claim(f"{name}-flow-solves-its-ode", "<=", 1e-8,
            f"{name} flow: largest relative distance of the closed form from a numerical integration",
            lambda r: ode_error(label, r), quote="theorem 3", kind="exact"),
        claim(f"{name}-descent-follows", "<=", 0.01,
            f"{name} descent with small steps: largest relative distance of a class's loss (above {SOLVED}) from the "
            "closed form", lambda r: descent_error(label, r), quote="theorem 3", kind="exact"),
        claim(f"{name}-time-exponent", "within", (exponent - 0.05, exponent + 0.05),
            f"{name} descent: slope of log(time to loss {TARGET}) on log(class frequency)",
            lambda r: time_exponent(r, label), quote="theorem 3", kind="exact"),
    )  # fmt: skip


register(
    Figure(
        "thm3",
        "Gradient flow and sign flow on the simple imbalanced setting",
        "Theorem 3",
        "Gradient flow takes a class of frequency pi a time of order 1/pi; sign flow takes all the same (lines: closed "
        "form; points: trained with small fixed steps).",
        (FLOWS,),
        (
            *flow_rules("gd", "gradient", -1.0),
            *flow_rules("sign", "sign", 0.0),
            claim(
                "gradient-flow-statement",
                "<=",
                0.1,
                "gradient flow: largest relative distance of pi_k t l_k(t) from (c-1)/c over classes and "
                f"t >= 100 z (log z + 1)/(c pi_k), z = c - 1, c = {CLASSES[0]} and {CLASSES[1]}, closed form",
                lambda r: np.max([rate_error(c) for c in CLASSES]),
                quote="theorem 3: loss Theta(1/(pi_k t))",
                kind="exact",
            ),
            claim(
                "sign-flow-statement",
                "<=",
                0.01,
                "sign flow: largest relative distance of the slope of log(loss) on t from -2, over closed forms "
                f"(c = {CLASSES[0]} and {CLASSES[1]}) and every trained class",
                sign_rate_error,
                quote="theorem 3, corrected by erratum 4: exponential, independent of pi_k",
                kind="exact",
            ),
        ),
        plot_flows,
    )
)
