"""Claims of the figures: predicates over measured numbers, with thresholds fixed before any run.

`claim` declares a rule; checking it against results gives a Claim with the measured number and a verdict. Families of
claims shared by several figures are here: the gap between GD and Adam, the direction of the step, and balanced versus
heavy-tailed data. Losses are those at the selected step sizes, medians over seeds, in nats; "rarest" is the
last frequency group, "initial" the same quantity at step 0.

Shapes: G frequency groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from heavytail.errors import unknown
from heavytail.results.results import Array, MissingRuns, Results, Selected, SweepRef

Comparison = Literal["<=", ">=", "<", ">", "within"]
Threshold = float | tuple[float, float]
Verdict = Literal["reproduced", "not reproduced", "not run"]


@dataclass(frozen=True)
class Claim:
    """One claim of a figure, with its measured number.

    Attributes:
        figure: "fig04".
        claim: short name, unique within the figure.
        statement: the measured quantity, in words.
        measured: its value; None if the runs are missing.
        comparison: comparison with the threshold; "within" includes both ends.
        threshold: a number, or (low, high) for "within".
        scale: the scale it was measured at.
        reason: why the claim was not run, or why its number is not finite.
    """

    figure: str
    claim: str
    statement: str
    measured: float | None
    comparison: Comparison
    threshold: Threshold
    scale: str
    reason: str = ""

    @property
    def verdict(self) -> Verdict:
        """Whether the measured number meets the threshold; NaN never does."""
        if self.measured is None:
            return "not run"
        return "reproduced" if _holds(self.measured, self.comparison, self.threshold) else "not reproduced"

    def to_dict(self) -> dict[str, Any]:
        """Return a row of claims.json: a number that is not finite is null, and `reason` names its value."""
        finite = self.measured is not None and math.isfinite(self.measured)
        reason = self.reason
        if self.measured is not None and not finite:
            what = "undefined (NaN)" if math.isnan(self.measured) else f"infinite ({self.measured})"
            reason = "; ".join(filter(None, [f"measured: {what}", reason]))
        return {
            "figure": self.figure,
            "claim": self.claim,
            "verdict": self.verdict,
            "measured": self.measured if finite else None,
            "threshold": list(self.threshold) if isinstance(self.threshold, tuple) else self.threshold,
            "scale": self.scale,
            "comparison": self.comparison,
            "statement": self.statement,
            "reason": reason,
        }


@dataclass(frozen=True)
class ClaimRule:
    """The declaration of a claim: its threshold and its measurement.

    Attributes:
        id, statement, comparison, threshold: as in Claim.
        measure: computes the number from results.
    """

    id: str
    statement: str
    comparison: Comparison
    threshold: Threshold
    measure: Callable[[Results], float]

    def check(self, figure: str, results: Results, missing: str | None = None) -> Claim:
        """Return the claim as measured, or as not run if runs are missing; `missing` is the reason, if known."""
        try:
            return self._claim(figure, results.scale, float(self.measure(results)))
        except MissingRuns as error:
            return self.not_run(figure, results.scale, missing or str(error))

    def not_run(self, figure: str, scale: str, reason: str) -> Claim:
        """Return the claim as not run."""
        return self._claim(figure, scale, None, reason)

    def _claim(self, figure: str, scale: str, measured: float | None, reason: str = "") -> Claim:
        return Claim(figure, self.id, self.statement, measured, self.comparison, self.threshold, scale, reason)


def claim(
    id: str, comparison: Comparison, threshold: Threshold, statement: str, measure: Callable[[Results], float]
) -> ClaimRule:
    """Declare a claim, its threshold first: `claim("rare-stays", ">=", 0.9, "final loss ...", lambda r: ...)`."""
    return ClaimRule(id, statement, comparison, threshold, measure)


def _holds(measured: float, comparison: Comparison, threshold: Threshold) -> bool:
    if isinstance(threshold, tuple):
        assert comparison == "within", f"{comparison} of an interval"
        return threshold[0] <= measured <= threshold[1]
    match comparison:
        case "<=":
            return measured <= threshold
        case ">=":
            return measured >= threshold
        case "<":
            return measured < threshold
        case ">":
            return measured > threshold
        case "within":
            raise AssertionError("within a single number")


def ratio(a: float, b: float) -> float:
    """Return a / b for losses >= 0: 1 for 0/0 (they are equal), inf for a/0, NaN for inf/inf.

    >>> ratio(0.0, 0.0), ratio(1.0, 0.0), ratio(1.0, float("inf"))
    (1.0, inf, 0.0)
    """
    if b == 0:
        return 1.0 if a == 0 else math.nan if math.isnan(a) else math.inf
    return float(a) / float(b)


def spearman(x: Array, y: Array) -> float:
    """Return the rank correlation of x [G] and y [G], ties sharing their mean rank; NaN if either is constant."""
    from scipy.stats import spearmanr

    if min(len(np.unique(x)), len(np.unique(y))) < 2:
        return math.nan
    return float(spearmanr(x, y).statistic)


def present(run: Selected, losses: Array | None = None) -> tuple[Array, Array]:
    """Return the initial and the given (default: final) losses of the groups that have samples in the split."""
    losses = run.final_group_loss if losses is None else losses
    nonempty = ~np.isnan(run.initial_group_loss)
    return run.initial_group_loss[nonempty], losses[nonempty]


def rarest(run: Selected) -> float:
    """Return the final loss of the rarest group."""
    return float(present(run)[1][-1])


def group_ratios(run: Selected, losses: Array | None = None) -> Array:
    """Return each group's final loss (or given losses), relative to its initial one."""
    return np.array([ratio(loss, start) for start, loss in zip(*present(run, losses), strict=True)])


def progress(run: Selected) -> float:
    """Return the final overall loss relative to the initial one."""
    return ratio(run.final_loss, run.initial_loss)


def order(run: Selected) -> float:
    """Return the rank correlation of the group's number (1 = most frequent) with its final loss."""
    final = present(run)[1]
    return spearman(np.arange(len(final)), final) if not np.isnan(final).any() else math.nan


def gap_rules(
    ref: SweepRef, *chosen: str, gd: str = "gd+m", adam: str = "adam+m", split: str = "train"
) -> tuple[ClaimRule, ...]:
    """Return the claims on the gap between GD and Adam on one problem.

    Args:
        ref: the problem.
        chosen: names of the claims; none for all six.
        gd, adam: labels of the two optimizers.
        split: "train" or "test".
    """

    def slow(results: Results) -> Selected:
        return results.selected(ref, gd, split)

    def fast(results: Results) -> Selected:
        return results.selected(ref, adam, split)

    rules = {
        rule.id: rule
        for rule in (
            claim("rare-stays", ">=", 0.9, "final loss of GD on the rarest group, relative to its initial loss",
                lambda r: group_ratios(slow(r))[-1]),
            claim("frequent-falls", "<=", 0.75,
                "final loss of GD on the most frequent group, relative to its initial loss",
                lambda r: group_ratios(slow(r))[0]),
            claim("adam-lowers-all", "<", 1.0, "final loss of Adam relative to the initial loss, largest over groups",
                lambda r: group_ratios(fast(r)).max()),
            claim("adam-ahead", "<=", 0.9, "final overall loss of Adam, relative to GD's",
                lambda r: ratio(fast(r).final_loss, slow(r).final_loss)),
            claim("ordered", ">=", 0.9,
                "Spearman correlation of a group's number (1 = most frequent) with GD's final loss on it",
                lambda r: order(slow(r))),
            claim("rare-gap", "<=", 0.8, "final loss of Adam on the rarest group, relative to GD's",
                lambda r: ratio(rarest(fast(r)), rarest(slow(r)))),
        )
    }  # fmt: skip
    for name in chosen:
        if name not in rules:
            raise unknown("gap claim", name, rules)
    return tuple(rules[name] for name in chosen or rules)


def direction_rules(ref: SweepRef) -> tuple[ClaimRule, ...]:
    """Return the claims that the direction of the step matters more than its length or momentum (8 optimizers)."""
    rules: list[ClaimRule] = []
    for m, words in (("-m", "without momentum"), ("+m", "with momentum")):

        def rare(results: Results, m: str = m) -> float:
            return ratio(rarest(results.selected(ref, f"sign{m}")), rarest(results.selected(ref, f"normalized-gd{m}")))

        def distance(results: Results, m: str = m) -> float:
            adam, normalized, sign = (
                results.selected(ref, f"{name}{m}").final_loss for name in ("adam", "normalized-gd", "sign")
            )
            return _log_distance(normalized, adam) - _log_distance(sign, adam)

        rules += [
            claim(f"direction-matters{m}", "<=", 0.8,
                f"final loss of sign descent on the rarest group, relative to normalised GD's, {words}", rare),
            claim(f"normalising-is-less{m}", ">", 0.0,
                f"|log L(normalised GD)/L(Adam)| - |log L(sign)/L(Adam)|, final overall losses {words}", distance),
        ]  # fmt: skip
    momentum = claim("momentum-is-less", "<=", 1.0,
        "final loss of sign descent without momentum on the rarest group, relative to GD's with momentum",
        lambda r: ratio(rarest(r.selected(ref, "sign-m")), rarest(r.selected(ref, "gd+m"))))  # fmt: skip
    return (*rules, momentum)


def _log_distance(a: float, b: float) -> float:
    quotient = ratio(a, b)
    return abs(math.log(quotient)) if 0 < quotient < math.inf else math.nan if math.isnan(quotient) else math.inf


def imbalance_rules(
    uniform: SweepRef, heavy: SweepRef, *, gd: str = "gd+m", adam: str = "adam+m"
) -> tuple[ClaimRule, ClaimRule, ClaimRule]:
    """Return the claims that SGD keeps up with Adam on balanced data and falls behind on heavy-tailed ones (fig 3)."""

    def lag(results: Results, ref: SweepRef) -> float:
        return ratio(results.selected(ref, gd).final_loss, results.selected(ref, adam).final_loss)

    return (
        claim("even-when-uniform", "within", (0.67, 1.5), "final loss of SGD relative to Adam's on balanced data",
            lambda r: lag(r, uniform)),
        claim("apart-when-heavy", ">=", 1.3,
            "final loss of SGD relative to Adam's on heavy-tailed data, divided by the same on balanced data",
            lambda r: ratio(lag(r, heavy), lag(r, uniform))),
        claim("rare-apart", ">=", 1.2, "final loss of SGD on the rarest group of heavy-tailed data, relative to Adam's",
            lambda r: ratio(rarest(r.selected(heavy, gd)), rarest(r.selected(heavy, adam)))),
    )  # fmt: skip
