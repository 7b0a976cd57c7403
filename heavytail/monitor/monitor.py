"""Monitor: loss, accuracy and p(correct) by token frequency, around anybody's training loop (the paper's fig. 1).

    monitor = heavytail.Monitor(num_classes=50257)
    loss = monitor.cross_entropy(logits, targets)       # or monitor.update(logits or losses, targets) beside your own
    print(monitor.compute())                            # a table, most frequent group first
    monitor.reset()

Sums per class stay on the device of the targets; nothing waits for it until `compute`, which also adds the sums of all
ranks. Needs torch and numpy only.

Shapes: M rows (predicted tokens or samples), C classes, G groups.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from heavytail.errors import SpecError
from heavytail.head import HeadOutput
from heavytail.metrics import ClassStats, FrequencyGroups
from heavytail.monitor.head_watch import HeadWatch, add_over_ranks

__all__ = ["Monitor", "Reading"]

Array = NDArray[np.float64]
_COLUMNS = ("loss", "accuracy", "p_correct")


@dataclass(frozen=True, eq=False)
class Reading:
    """What a monitor measured since its last reset; means are NaN where there were no rows, or nothing to tell.

    Attributes:
        loss: mean loss of each group [G] (nats), over rows whose loss is finite, as are the next two.
        accuracy: share predicted right [G]; NaN if any losses came without logits.
        p_correct: mean probability of the right class [G].
        share: share of the rows [G].
        count: rows with a finite loss [G].
        nonfinite: rows whose loss is NaN or infinite, which no mean includes [G].
        overall: "loss", "accuracy" and "p_correct" over all rows.
        groups: which class is in which group.
        cut: what the groups were cut from.
        head: "grad_norm", "trace" and "update_norm" of the rows of the head [G], where it was watched.
        class_count: targets seen of each class since the monitor was made [C].
    """

    loss: Array
    accuracy: Array
    p_correct: Array
    share: Array
    count: NDArray[np.int64]
    nonfinite: NDArray[np.int64]
    overall: Mapping[str, float]
    groups: FrequencyGroups
    cut: str
    head: Mapping[str, Array]
    class_count: NDArray[np.int64]

    def to_dict(self, prefix: str = "") -> dict[str, float]:
        """Return what trackers take: "loss", "loss/group_01" and so on, most frequent group first.

        What there were no rows for is left out; "nonfinite" is there only if it is not 0.
        """
        table = {f"{prefix}{name}": float(value) for name, value in self.overall.items()}
        columns = {name: getattr(self, name) for name in (*_COLUMNS, "share")} | dict(self.head)
        for name, values in columns.items():
            table |= {f"{prefix}{name}/group_{g:02d}": float(value) for g, value in enumerate(values, 1)}
        table = {name: value for name, value in table.items() if math.isfinite(value)}
        if self.nonfinite.any():
            table[f"{prefix}nonfinite"] = float(self.nonfinite.sum())
        return table

    def __str__(self) -> str:
        """Return a table with a line for each group and one for all."""
        told = [name for name in _COLUMNS if name == "loss" or not math.isnan(self.overall[name])]
        names = told + list(self.head)
        classes = np.bincount(self.groups.index)
        lines = [" ".join(["group", f"{'classes':>9}", f"{'share':>7}", *(f"{name:>11}" for name in names)])]
        for g, size in enumerate(classes):
            values = [float(self.head[name][g] if name in self.head else getattr(self, name)[g]) for name in names]
            cells = [f"{g + 1:>5}", f"{size:>9}", f"{self.share[g]:>7.1%}", *(f"{value:>11.4g}" for value in values)]
            lines.append(" ".join(cells))
        means = [f"{self.overall[name]:>11.4g}" if name in self.overall else " " * 11 for name in names]
        lines.append(" ".join(["  all", f"{classes.sum():>9}", f"{self.share.sum():>7.1%}", *means]).rstrip())
        lines.append(f"groups cut from {self.cut}; {self.count.sum()} rows")
        if self.nonfinite.any():
            lines.append(f"{self.nonfinite.sum()} rows with a loss that is not finite are in no mean")
        return "\n".join(lines)


class Monitor:
    """Sums of losses per class, read by frequency group.

    Args:
        num_classes: C; needed unless one of the next two tells it.
        counts: training samples of each class [C] int, which the groups are cut from. Without them, and without
            `groups`, they are cut from all targets seen so far, over all resets.
        groups: groups to use, or another monitor whose groups this one takes (a validation monitor: the training one).
        num_groups: groups to cut.
        ignore_index: target of rows that count nowhere; None for none.
        accuracy: whether to compare logits with their maximum, one more pass over them.

    Raises:
        SpecError: an argument is out of range, or they contradict each other.

    >>> monitor = Monitor(counts=[6, 2, 1, 1], num_groups=2)
    >>> monitor.update(torch.tensor([0.5, 1.5, 2.5]), torch.tensor([0, 1, 2]))
    >>> monitor.compute().loss
    array([0.5, 2. ])
    """

    num_classes: int

    def __init__(
        self,
        num_classes: int | None = None,
        *,
        counts: ArrayLike | Tensor | None = None,
        groups: FrequencyGroups | Monitor | None = None,
        num_groups: int = 10,
        ignore_index: int | None = -100,
        accuracy: bool = True,
    ) -> None:
        if counts is not None and groups is not None:
            raise SpecError("groups: expected none beside counts, got both")
        if num_groups < 1:
            raise SpecError(f"num_groups: expected at least 1, got {num_groups}")
        self._source: Monitor = groups._source if isinstance(groups, Monitor) else self
        self._groups = groups if isinstance(groups, FrequencyGroups) else None
        self._cut = "the groups given"
        if counts is not None:
            counts = counts.cpu().numpy() if isinstance(counts, Tensor) else counts
            self._groups, self._cut = FrequencyGroups.from_counts(counts, num_groups), "the counts given"
        known = groups if self._groups is None else self._groups
        classes: int | None = num_classes if known is None else known.num_classes
        if classes is None or classes < 1 or num_classes not in (None, classes):
            raise SpecError(f"num_classes: expected {classes or 'at least 1, or counts or groups'}, got {num_classes}")
        self.num_classes = classes
        self.num_groups = num_groups
        self.ignore_index = ignore_index
        self.accuracy = accuracy
        self._watch: HeadWatch | None = None
        self._make_sums(torch.device("cpu"))

    # -- measuring -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def update(self, values: Tensor | HeadOutput, targets: Tensor, *, correct: Tensor | None = None) -> None:
        """Add rows. Nothing waits for the device.

        Args:
            values: logits [..., C], or losses that are not yet averaged [...] (nats), of any floating type; or what
                `linear_cross_entropy` returned, with targets [M].
            targets: class of each row [...], integers.
            correct: whether each row was predicted right [...] bool, for losses that come without logits.

        Raises:
            SpecError: shapes or types do not fit, or, on a CPU, a target is out of range. On a GPU, where looking
                would wait for it, such targets are left out here, and `compute` raises.
        """
        if isinstance(values, HeadOutput):
            correct = values.correct
            values = values.losses
        self._check(values, targets, correct)
        index = self._valid(targets)
        losses = values.detach().reshape(-1)
        if values.shape != targets.shape:
            losses, found = _row_results(values.detach(), index, self.accuracy and correct is None)
            correct = found if correct is None else correct
        self._add(index, losses, correct)

    def cross_entropy(self, logits: Tensor, targets: Tensor, *, normalizer: float | Tensor | None = None) -> Tensor:
        """Return the differentiable mean cross-entropy of logits [..., C], and add its rows at next to no cost.

        Args:
            logits: of any floating type; half precision is worked on in float32.
            targets: class of each row [...], integers.
            normalizer: divisor of the sum; by default the number of rows that are not ignored. Accumulating over
                micro-batches, pass the whole batch's.

        Raises:
            SpecError: as `update`.
        """
        self._check(logits, targets, None)
        if logits.shape == targets.shape:
            raise SpecError(f"logits: expected [..., {self.num_classes}], got the shape of targets, {_shape(targets)}")
        rows = logits.reshape(-1, self.num_classes)
        rows = rows.float() if rows.dtype.itemsize < 4 else rows
        with torch.no_grad():
            index = self._valid(targets)
            y = index.to(rows.device)
            correct = _is_correct(rows, y.clamp(min=0)) if self.accuracy else None
        losses = F.cross_entropy(rows, y, ignore_index=-1, reduction="none")
        with torch.no_grad():
            self._add(index, losses, correct)
        return losses.sum() / ((y >= 0).sum() if normalizer is None else normalizer)

    def watch(self, head: nn.Linear, optimizer: torch.optim.Optimizer | None = None) -> HeadWatch:
        """Measure the head itself too: gradient norm and Hessian trace of its rows, from inputs kept by a hook.

        While watched, every `update` must follow the forward pass that it belongs to, with as many targets as the head
        had inputs. It costs another pass through the head, so watch a step now and then:

            with monitor.watch(model.lm_head, optimizer):
                train_step()

        Args:
            head: the classifier, D -> C.
            optimizer: also measure how far its steps move each row.

        Raises:
            SpecError: the head does not have C outputs, or one is already watched.
        """
        if self._watch is not None and self._watch.attached:
            raise SpecError("head: expected one watched head at a time; leave the last watch first")
        if head.out_features != self.num_classes:
            raise SpecError(f"head: expected {self.num_classes} outputs, got {head.out_features}")
        self._watch = HeadWatch(head, optimizer)
        return self._watch

    # -- reading -------------------------------------------------------------------------------------------------

    @property
    def stats(self) -> ClassStats:
        """Sums per class of this process since the last reset, over rows with a finite loss."""
        return self._stats

    def compute(self, *, sync: bool = True) -> Reading:
        """Return the means by frequency group since the last reset, and leave the sums as they are.

        Args:
            sync: add the sums of all ranks where torch.distributed runs; every rank must then call this.

        Raises:
            SpecError: targets were out of range, or there are no counts and nothing was seen to cut groups from.
        """
        stats = self._stats
        parts = [stats.count, stats.loss_sum, stats.correct, stats.p_correct_sum, self._nonfinite, self._seen]
        wrong = self._out_of_range.double().expand(self.num_classes)
        rows = [part.double() for part in parts] + [wrong, torch.full_like(wrong, not self._judged)]
        count, loss, correct, p_correct, nonfinite, seen, wrong, unjudged = self._total(rows, sync)
        if wrong[0]:
            raise SpecError(f"targets: expected 0 to {self.num_classes - 1}, got {int(wrong[0])} outside")
        seen = seen + count + nonfinite
        groups, cut = self._cut_groups(seen, sync)
        totals = groups.sum(count)

        def mean(sums: Array) -> Array:
            means: Array = np.divide(groups.sum(sums), totals, out=np.full(len(totals), np.nan), where=totals > 0)
            return means

        if unjudged[0]:
            correct = np.full_like(correct, np.nan)
        sums = {"loss": loss, "accuracy": correct, "p_correct": p_correct}
        n = count.sum()
        return Reading(
            **{name: mean(value) for name, value in sums.items()},
            share=totals / n if n else np.zeros_like(totals),
            count=totals.astype(np.int64),
            nonfinite=groups.sum(nonfinite).astype(np.int64),
            overall={name: float(value.sum() / n) if n else math.nan for name, value in sums.items()},
            groups=groups,
            cut=cut,
            head=self._watch.read(groups, sync=sync) if self._watch is not None else {},
            class_count=seen.astype(np.int64),
        )

    def reset(self) -> None:
        """Forget all sums; the counts that groups are cut from stay."""
        seen = self._seen + self._stats.count + self._nonfinite
        self._make_sums(seen.device, seen)
        if self._watch is not None:
            self._watch.reset()
            self._watch = self._watch if self._watch.attached else None

    def state_dict(self) -> dict[str, Tensor]:
        """Return all sums of this process, for `load_state_dict`; they are copies."""
        sums = {f.name: getattr(self._stats, f.name) for f in fields(ClassStats)}
        others = {"nonfinite": self._nonfinite, "seen": self._seen, "out_of_range": self._out_of_range}
        return {k: v.clone() for k, v in (sums | others | {"judged": torch.tensor(self._judged)}).items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state_dict` returned.

        Raises:
            SpecError: it is of another number of classes, or not of a monitor.
        """
        missing = self.state_dict().keys() ^ state.keys()
        if missing:
            raise SpecError(f"state: expected what Monitor.state_dict returns, differs in {', '.join(sorted(missing))}")
        if len(state["count"]) != self.num_classes:
            raise SpecError(f"state: expected {self.num_classes} classes, got {len(state['count'])}")
        self._stats = ClassStats(*(state[f.name].clone() for f in fields(ClassStats)))
        self._nonfinite, self._seen = state["nonfinite"].clone(), state["seen"].clone()
        self._out_of_range, self._judged = state["out_of_range"].clone(), bool(state["judged"])

    # -- pieces --------------------------------------------------------------------------------------------------

    def _make_sums(self, device: torch.device, seen: Tensor | None = None) -> None:
        with torch.inference_mode(False):  # made in an evaluation, they must still be added to in training
            self._stats = ClassStats.zeros(self.num_classes, device)
            self._nonfinite = torch.zeros(self.num_classes, dtype=torch.int64, device=device)
            self._seen = torch.zeros_like(self._nonfinite) if seen is None else seen.clone()
            self._out_of_range = torch.zeros(1, dtype=torch.int64, device=device)
        self._judged = True

    def _move(self, device: torch.device) -> None:
        state = self.state_dict()
        with torch.inference_mode(False):
            self.load_state_dict({name: value.to(device) for name, value in state.items()})

    def _valid(self, targets: Tensor) -> Tensor:
        """The targets [M] on the device of the sums, which they decide, -1 where they count nowhere."""
        if targets.device != self._stats.count.device and targets.device.type != "mps":  # which has no float64
            self._move(targets.device)
        index = targets.reshape(-1).to(self._stats.count.device, torch.int64)
        wrong = (index < 0) | (index >= self.num_classes)
        stray = wrong if self.ignore_index is None else wrong & (index != self.ignore_index)
        if targets.device.type != "cpu":
            self._out_of_range += stray.sum()
        elif stray.any():
            raise SpecError(f"targets: expected 0 to {self.num_classes - 1}, got {index[stray][0].item()}")
        if self.ignore_index is not None:  # it may be a class
            wrong = wrong | (index == self.ignore_index)
        return torch.where(wrong, -1, index)

    def _add(self, index: Tensor, losses: Tensor, correct: Tensor | None) -> None:
        if self._watch is not None:
            self._watch.add(index)
        self._judged &= correct is not None
        judged = torch.zeros_like(index) if correct is None else correct.reshape(-1).to(index.device)
        losses = losses.detach().to(index.device)
        finite = losses.isfinite()
        p_correct = torch.exp(-losses.double())
        self._stats.update(torch.where(finite, index, -1), losses, judged, p_correct, ignore_index=-1)
        self._nonfinite.index_add_(0, index.clamp(min=0), ((index >= 0) & ~finite).long())

    def _total(self, rows: list[Tensor], sync: bool) -> Array:
        """Stack rows of [C] and add them over all ranks, in float64, which holds whole numbers to 2^53."""
        return np.asarray(add_over_ranks(torch.stack(rows), sync).cpu().numpy(), np.float64)

    def _cut_groups(self, seen: Array, sync: bool) -> tuple[FrequencyGroups, str]:
        """The groups, and what they were cut from; `seen` [C] is by this monitor, on all ranks."""
        source = self._source
        if source._groups is not None:
            return source._groups, source._cut
        if source is not self:
            parts = [source._seen, source._stats.count, source._nonfinite]
            theirs = self._total([torch.stack(parts).sum(0).double()], sync)[0]
            seen = theirs if theirs.any() else seen
        if not seen.any():
            raise SpecError("counts: expected some, or targets seen before, to cut groups from; got none of either")
        return FrequencyGroups.from_counts(seen.astype(np.int64), source.num_groups), f"{int(seen.sum())} targets seen"

    def _check(self, values: Tensor, targets: Tensor, correct: Tensor | None) -> None:
        if targets.is_floating_point() or targets.dtype == torch.bool:
            raise SpecError(f"targets: expected integers, got {targets.dtype}")
        if not values.is_floating_point():
            raise SpecError(f"values: expected floating point, got {values.dtype}")
        if values.shape not in (targets.shape, (*targets.shape, self.num_classes)):
            given, classes = _shape(targets), [*targets.shape, self.num_classes]
            raise SpecError(f"values: expected losses {given} or logits {classes}, got {_shape(values)}")
        if correct is not None and correct.shape != targets.shape:
            raise SpecError(f"correct: expected {_shape(targets)} like targets, got {_shape(correct)}")


def _row_results(logits: Tensor, index: Tensor, judge: bool) -> tuple[Tensor, Tensor | None]:
    """Losses [M] of logits [..., C] and, if `judge`, whether each row was predicted right."""
    own = index.clamp(min=0).to(logits.device)
    losses, judged, start = [logits.new_zeros(0)], [own.new_zeros(0, dtype=torch.bool)], 0
    for rows in _row_chunks(logits, 2**18 if logits.device.type == "cpu" else 2**26):
        y = own[start : start + len(rows)]
        rows = rows.float() if rows.dtype.itemsize < 4 else rows
        losses.append(F.cross_entropy(rows, y, reduction="none"))
        if judge:
            judged.append(_is_correct(rows, y))
        start += len(rows)
    return torch.cat(losses), torch.cat(judged) if judge else None


def _row_chunks(logits: Tensor, most: int) -> Iterator[Tensor]:
    """Rows [R, C] of logits [..., C] in order, at most about `most` numbers at a time, without copying them all."""
    if logits.ndim == 1:
        yield logits[None]
    elif logits.ndim > 2 and not logits.is_contiguous():  # logits[:, :-1], say
        for part in logits:
            yield from _row_chunks(part, most)
    elif logits.numel():
        rows = logits.flatten(0, -2)
        yield from torch.split(rows, max(1, most // rows.shape[1]))


def _is_correct(logits: Tensor, targets: Tensor) -> Tensor:
    """Whether no logit of [M, C] exceeds the target's: ties count, and it takes no argmax."""
    return logits.gather(1, targets[:, None])[:, 0] >= logits.amax(1)


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)
