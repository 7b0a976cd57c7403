"""Claims of the figures: predicates over measured numbers, with thresholds fixed before any run (docs/claims.md).

`claim` declares a rule. It is measured on every verdict seed; the number of a Claim is the median, and the verdict
needs all seeds to agree. Families of claims shared by several figures are here: the gap between GD and Adam, the
direction of the step, and balanced versus heavy-tailed data. Losses are those at the selected step sizes, in nats.
"Final" is the mean over the last tenth of the recorded rows, "rarest" the last frequency group, "initial" the same
quantity at step 0.

Shapes: G frequency groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from heavytail.errors import unknown
from heavytail.experiment.store import History
from heavytail.results.results import Array, MissingRuns, Results, Selected, SweepRef

Comparison = Literal["<=", ">=", "<", ">", "within"]
Threshold = float | tuple[float, float]
Verdict = Literal["reproduced", "not reproduced", "undecided", "not run"]
Kind = Literal["exact", "measured"]
SOLVED, MOVED = 0.01, 0.9  # losses relative to their initial value: see `compared`


@dataclass(frozen=True)
class Claim:
    """One claim of a figure, with its measured number.

    Attributes:
        figure: "fig04".
        claim: short name, unique within the figure.
        statement: the measured quantity, in words.
        measured: its value, the median over seeds; None if the runs are missing.
        comparison: comparison with the threshold; "within" includes both ends.
        threshold: a number, or (low, high) for "within".
        scale: the scale it was measured at.
        reason: why the claim was not run, is not informative, or has a number that is not finite.
        per_seed: the value on each verdict seed.
        kind: "exact" for identities that only a bug can break, "measured" for the rest.
        quote: place in the paper, with its words.
        informative: whether the runs can decide the claim (see `compared`).
    """

    figure: str
    claim: str
    statement: str
    measured: float | None
    comparison: Comparison
    threshold: Threshold
    scale: str
    reason: str = ""
    per_seed: tuple[float, ...] = ()
    kind: Kind = "measured"
    quote: str = ""
    informative: bool = True

    @property
    def verdict(self) -> Verdict:
        """Whether the number meets the threshold on every seed, or on none; NaN never does."""
        if self.measured is None:
            return "not run"
        held = {_holds(value, self.comparison, self.threshold) for value in self.per_seed or (self.measured,)}
        if len(held) > 1 or not self.informative:
            return "undecided"
        return "reproduced" if held == {True} else "not reproduced"

    @property
    def margin(self) -> float | None:
        """Distance of the number from the threshold in units of the threshold, positive where it holds.

        The unit is 1 for a threshold of 0, and half the width of an interval. None for a number that is not finite.
        """
        if self.measured is None or not math.isfinite(self.measured):
            return None
        if isinstance(self.threshold, tuple):
            low, high = self.threshold
            return min(self.measured - low, high - self.measured) / ((high - low) / 2)
        distance = self.measured - self.threshold
        return (distance if self.comparison in (">", ">=") else -distance) / (abs(self.threshold) or 1.0)

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
            "per_seed": [value if math.isfinite(value) else None for value in self.per_seed],
            "margin": self.margin,
            "kind": self.kind,
            "quote": self.quote,
        }


class NotInformative(Exception):
    """The runs cannot decide a comparison; it carries the value that was measured nevertheless."""

    def __init__(self, value: float, reason: str) -> None:
        super().__init__(reason)
        self.value = value


@dataclass(frozen=True)
class ClaimRule:
    """The declaration of a claim: its threshold and its measurement.

    Attributes:
        id, statement, comparison, threshold: as in Claim.
        measure: computes the number from results, which are restricted to one verdict seed.
        kind, quote: as in Claim.
    """

    id: str
    statement: str
    comparison: Comparison
    threshold: Threshold
    measure: Callable[[Results], float]
    kind: Kind = "measured"
    quote: str = ""

    def check(self, figure: str, results: Results, missing: str | None = None, seeds: int = 1) -> Claim:
        """Return the claim as measured, or as not run if runs are missing.

        Args:
            figure: id of the figure.
            results: finished runs.
            missing: the reason for missing runs, if known.
            seeds: number of verdict seeds.
        """
        values: list[float] = []
        doubts: list[str] = []
        try:
            for place in range(seeds):
                mine = results.for_seed(place)
                try:
                    values.append(float(self.measure(mine)))
                except NotInformative as error:
                    values.append(float(error.value))
                    doubts.append(str(error))
                # An infinite loss may refute a claim, but reproduces none.
                if _holds(values[-1], self.comparison, self.threshold):
                    doubts += mine.failures
        except MissingRuns as error:
            return self.not_run(figure, results.scale, missing or str(error))
        reason = f"not informative: {doubts[0]}" if doubts else ""
        made = self._claim(figure, results.scale, float(np.median(values)), reason)
        return replace(made, per_seed=tuple(values), informative=not doubts)

    def not_run(self, figure: str, scale: str, reason: str) -> Claim:
        """Return the claim as not run."""
        return self._claim(figure, scale, None, reason)

    def _claim(self, figure: str, scale: str, measured: float | None, reason: str) -> Claim:
        return Claim(
            figure, self.id, self.statement, measured, self.comparison, self.threshold, scale, reason,
            kind=self.kind, quote=self.quote,
        )  # fmt: skip


def claim(
    id: str,
    comparison: Comparison,
    threshold: Threshold,
    statement: str,
    measure: Callable[[Results], float],
    *,
    quote: str = "",
    kind: Kind = "measured",
) -> ClaimRule:
    """Declare a claim, its threshold first: `claim("rare-stays", ">=", 0.9, "final loss ...", lambda r: ...)`."""
    return ClaimRule(id, statement, comparison, threshold, measure, kind, quote)


def summary(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return how many claims are reproduced, from rows of claims.json; exact claims are counted apart.

    >>> row = {"verdict": "reproduced", "kind": "exact"}
    >>> summary([row, {"verdict": "undecided"}, {"verdict": "reproduced"}])  # files of the first edition have no kind
    '1 of 2, 1 undecided; exact 1 of 1'
    """
    counts = []
    by_kind: dict[str, list[str]] = {"measured": [], "exact": []}
    for row in rows:
        by_kind[row.get("kind", "measured")].append(row["verdict"])
    for kind, verdicts in by_kind.items():
        if not verdicts:
            continue
        if verdicts.count("not run") == len(verdicts):
            words = ["not run"]
        else:
            others = [f"{verdicts.count(name)} {name}" for name in ("undecided", "not run") if name in verdicts]
            words = [f"{verdicts.count('reproduced')} of {len(verdicts)}", *others]
        counts.append(("exact " if kind == "exact" else "") + ", ".join(words))
    return "; ".join(counts)


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


def progress(run: Selected, *, rare: bool = False) -> float:
    """Return the final overall loss, or that of the rarest group, relative to the initial one."""
    return float(group_ratios(run)[-1]) if rare else ratio(run.final_loss, run.initial_loss)


def order(run: Selected) -> float:
    """Return the rank correlation of the group's number (1 = most frequent) with its final loss."""
    final = present(run)[1]
    return spearman(np.arange(len(final)), final) if not np.isnan(final).any() else math.nan


def area(run: Selected, *, rare: bool = False) -> float:
    """Return the mean over recorded rows of the loss (or the rarest group's) relative to its initial value.

    The area under the curve as the figures draw it; infinite without a stable step size. A of docs/claims.md.
    """
    if not run.step.size:
        return math.inf
    group = np.flatnonzero(~np.isnan(run.initial_group_loss))[-1]
    curves, start = (run.group_loss[:, :, group], run.group_start[:, group]) if rare else (run.loss, run.start)
    return float(np.median(curves.mean(axis=1) / start))


def lag(slow: Selected, fast: Selected, *, rare: bool = False) -> float:
    """Return the area between the curves of two optimizers on one problem. D of docs/claims.md."""
    return area(slow, rare=rare) - area(fast, rare=rare)


def compared(value: float, *losses: float) -> float:
    """Return the value of a comparison of final losses, given relative to their initial values.

    Raises:
        NotInformative: all of them are below 0.01, so that solved losses are compared, or none is below 0.9.
    """
    if all(loss < SOLVED for loss in losses):
        raise NotInformative(value, f"all losses compared are below {SOLVED} of their initial value")
    return moved(value, *losses)


def moved(value: float, *losses: float) -> float:
    """Return the value of a comparison of whole curves, given the final losses relative to their initial values.

    Raises:
        NotInformative: none of them is below 0.9.
    """
    if all(loss >= MOVED for loss in losses):
        raise NotInformative(value, f"no loss compared has come below {MOVED} of its initial value")
    return value


def relative(one: Selected, other: Selected, *, rare: bool = False) -> float:
    """Return the final loss (or the rarest group's) of a run relative to another's."""
    return ratio(rarest(one), rarest(other)) if rare else ratio(one.final_loss, other.final_loss)


def versus(one: Selected, other: Selected, *, rare: bool = False) -> float:
    """Return `relative`, if that is informative."""
    return compared(relative(one, other, rare=rare), progress(one, rare=rare), progress(other, rare=rare))


def mean_error(history: History, split: str) -> float:
    """Return the largest relative distance of the groups' weighted mean from the overall loss over finite rows."""
    loss = history.arrays[f"{split}/loss"]
    count = history.sums(split, "class_loss", history.arrays["group"])[1]
    mean = np.nansum(history.group_loss(split) * count, axis=1) / count.sum(axis=1)
    finite = np.isfinite(loss)
    return float((np.abs(mean - loss)[finite] / loss[finite]).max())


def gap_rules(
    ref: SweepRef, *chosen: str, gd: str = "gd+m", adam: str = "adam+m", split: str = "train", quote: str = ""
) -> tuple[ClaimRule, ...]:
    """Return the claims on the gap between GD and Adam on one problem, and that groups average to the overall loss.

    Args:
        ref: the problem.
        chosen: names of the gap claims; none for all six.
        gd, adam: labels of the two optimizers.
        split: "train" or "test".
        quote: place in the paper and its words.
    """

    def slow(results: Results) -> Selected:
        return results.selected(ref, gd, split)

    def fast(results: Results) -> Selected:
        return results.selected(ref, adam, split)

    rules = {
        rule.id: rule
        for rule in (
            claim("rare-stays", ">=", 0.9, "final loss of GD on the rarest group, relative to its initial loss",
                lambda r: group_ratios(slow(r))[-1], quote=quote),
            claim("frequent-falls", "<=", 0.75,
                "final loss of GD on the most frequent group, relative to its initial loss",
                lambda r: group_ratios(slow(r))[0], quote=quote),
            claim("adam-lowers-all", "<", 1.0, "final loss of Adam relative to the initial loss, largest over groups",
                lambda r: group_ratios(fast(r)).max(), quote=quote),
            claim("adam-ahead", "<=", 0.9, "final overall loss of Adam, relative to GD's",
                lambda r: versus(fast(r), slow(r)), quote=quote),
            claim("ordered", ">=", 0.9,
                "Spearman correlation of a group's number (1 = most frequent) with GD's final loss on it",
                lambda r: order(slow(r)), quote=quote),
            claim("rare-gap", "<=", 0.8, "final loss of Adam on the rarest group, relative to GD's",
                lambda r: versus(fast(r), slow(r), rare=True), quote=quote),
        )
    }  # fmt: skip
    for name in chosen:
        if name not in rules:
            raise unknown("gap claim", name, rules)
    identity = claim("overall-is-mean", "<=", 1e-6,
        "largest relative distance of the overall loss from the mean of the groups' losses, weighted by their samples",
        lambda r: np.max([mean_error(run, split) for label in (gd, adam) for run in r.histories(ref, label)]),
        quote='figure 1: "(b) is the average of (c, d)"', kind="exact")  # fmt: skip
    return (*(rules[name] for name in chosen or rules), identity)


def direction_rules(ref: SweepRef) -> tuple[ClaimRule, ...]:
    """Return the claims that the direction of the step matters more than its length or momentum (8 optimizers)."""

    def against(one: str, other: str, *, rare: bool = False) -> Callable[[Results], float]:
        return lambda r: versus(r.selected(ref, one), r.selected(ref, other), rare=rare)

    impact = 'on figure 5: "changing the direction ... has more impact than just changing the magnitude"'
    similar = 'on figure 5: "Sign descent and Adam have a similar performance"'
    helps = 'on figure 5: "Momentum and normalizing ... help but have smaller effects"'
    rules: list[ClaimRule] = []
    for m, words in (("-m", "without momentum"), ("+m", "with momentum")):
        rules += [
            claim(f"direction-matters{m}", "<=", 0.8,
                f"final loss of sign descent on the rarest group, relative to normalised GD's, {words}",
                against(f"sign{m}", f"normalized-gd{m}", rare=True), quote=impact),
            claim(f"direction-beats-length{m}", "<=", 0.8,
                f"final overall loss of sign descent, relative to normalised GD's, {words}",
                against(f"sign{m}", f"normalized-gd{m}"), quote=impact),
            claim(f"sign-as-adam{m}", "<=", 1.5, f"final overall loss of sign descent, relative to Adam's, {words}",
                against(f"sign{m}", f"adam{m}"), quote=similar),
            claim(f"normalising-helps{m}", "<=", 1.0,
                f"final overall loss of normalised GD, relative to GD's, {words}",
                against(f"normalized-gd{m}", f"gd{m}"), quote=helps),
        ]  # fmt: skip
    return (
        *rules,
        claim("momentum-helps", "<=", 1.0, "final overall loss of GD with momentum, relative to GD's without",
            against("gd+m", "gd-m"), quote=helps),
        claim("momentum-is-less", "<=", 1.0,
            "final loss of sign descent without momentum on the rarest group, relative to GD's with momentum",
            against("sign-m", "gd+m", rare=True), quote=helps),
    )  # fmt: skip


def imbalance_rules(
    uniform: SweepRef, heavy: SweepRef, *chosen: str, gd: str = "gd+m", adam: str = "adam+m", quote: str = ""
) -> tuple[ClaimRule, ...]:
    """Return the claims that SGD is as fast as Adam on balanced data and slower on heavy-tailed data (fig 3).

    Args:
        uniform, heavy: the same problem on balanced and on heavy-tailed data.
        chosen: names of the claims; none for all three.
        gd, adam: labels of the two optimizers.
        quote: place in the paper and its words.
    """

    def pair(results: Results, ref: SweepRef) -> tuple[Selected, Selected]:
        return results.selected(ref, gd), results.selected(ref, adam)

    def apart(results: Results, *, rare: bool = False) -> float:
        on_heavy, on_uniform = pair(results, heavy), pair(results, uniform)
        value = lag(*on_heavy, rare=rare) - lag(*on_uniform, rare=rare)
        for runs in (on_heavy, on_uniform):
            moved(value, *(progress(run, rare=rare) for run in runs))
        return value

    between = "mean over recorded steps of (loss of SGD - loss of Adam) / initial loss"
    rules = {
        rule.id: rule
        for rule in (
            claim("similar-when-uniform", "<=", 0.1, f"{between}, on balanced data",
                lambda r: moved(lag(*pair(r, uniform)), *map(progress, pair(r, uniform))), quote=quote),
            claim("gap-appears", ">=", 0.1, f"{between}: on heavy-tailed data less on balanced data", apart,
                quote=quote),
            claim("rare-gap-appears", ">=", 0.1,
                f"{between}, on the rarest group: on heavy-tailed data less on balanced data",
                lambda r: apart(r, rare=True), quote=quote),
        )
    }  # fmt: skip
    return tuple(rules[name] for name in chosen or rules)


def stall_rule(name: str, ref: SweepRef, gd: str = "gd+m") -> ClaimRule:
    """Return the claim that GD makes no more progress on the rarest group (figures 2 and 14)."""

    def fall(results: Results) -> float:
        run = results.selected(ref, gd)
        return progress(run.until(2 / 3), rare=True) - progress(run, rare=True)

    return claim(name, "<=", 0.1,
        "digits and barcoded ones: loss of GD on the barcoded group, relative to its initial loss, at two thirds of "
        "the run less that at the end", fall,
        quote='figure 2: "makes almost no progress on half of the data ... and progress stalls"')  # fmt: skip
