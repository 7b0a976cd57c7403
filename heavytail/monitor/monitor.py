"""Monitor: loss, accuracy and p(correct) by token frequency in any training loop (figure 1 of the paper).

    monitor = heavytail.Monitor(num_classes=50257)
    loss = monitor.cross_entropy(logits, targets)       # or monitor.update(logits or losses, targets) beside your own
    print(monitor.compute())                            # a table, most frequent group first
    monitor.reset()

Sums per class stay on the device of the targets. Only `compute` synchronizes, and it sums over all ranks. Needs torch
and numpy only.

Shapes: B batch, L sequence, M rows (predicted tokens or samples), C classes, G groups.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from heavytail.errors import SpecError
from heavytail.head import HeadOutput
from heavytail.metrics import ClassStats, FrequencyGroups
from heavytail.monitor.grouping import Grouping, class_counts, named_groups
from heavytail.monitor.head_watch import HeadWatch
from heavytail.monitor.hooks import recomputing
from heavytail.monitor.ranks import add_over_ranks
from heavytail.monitor.tokens import examples, token_bytes

__all__ = ["Monitor", "Reading"]

Array = NDArray[np.float64]
_COLUMNS = ("loss", "accuracy", "p_correct")
_NOTHING_IGNORED = -(2**62)  # F.nll_loss needs a number
_PENDING_ROWS = 4096  # batches smaller than this are summed together: a few rows cost as much as a thousand
_PENDING_LOG_P = 2**20  # numbers, 4 MB: so do the log-probabilities of small classifiers


@dataclass(frozen=True, eq=False, repr=False)
class Reading:
    """What a monitor measured since its last reset; a mean is NaN where there were no rows, or no data for it.

    Attributes:
        loss: mean loss of each group [G] (nats), over rows with a finite loss, as are all means.
        accuracy: share of the rows of each group with the highest logit at the target [G]; of equal logits the lowest
            class wins, as in `argmax`. NaN if any losses came without logits.
        p_correct: mean probability of the target [G]; NaN if any losses came without logits.
        share: share of the rows [G].
        count: rows with a finite loss [G].
        nonfinite: rows with a NaN or infinite loss, which enter no mean [G].
        overall: "loss", "accuracy" and "p_correct" over all rows.
        groups: the group of each class.
        cut: origin of the groups.
        head: "grad_norm", "trace" and "update_norm" of the rows of the head [G], if it was watched.
        class_count: targets seen of each class since the monitor was made [C].
        names: name of each group [G]; "group_01" and so on, unless the groups were given by name.
        extra: further columns [G]: "top_k" and "bits_per_byte", if asked for.
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
    names: tuple[str, ...] = ()
    extra: Mapping[str, Array] = field(default_factory=dict)
    _classes: Mapping[str, Array] = field(default_factory=dict)
    _tokenizer: Any = None

    def __post_init__(self) -> None:
        if not self.names:
            object.__setattr__(self, "names", _numbered(len(self.loss)))

    def per_class(self) -> dict[str, Array]:
        """Return "count", "loss", "accuracy", "p_correct" and "group" of each class [C], over all ranks."""
        return {**self._classes, "group": self.groups.index.astype(np.float64)}

    def macro(self) -> dict[str, Array]:
        """Return the unweighted mean over classes of "loss", "accuracy" and "p_correct" of each group [G].

        `loss` and the others weight every row equally (micro averages), these every class that has rows: the
        convention of long-tailed classification.
        """
        seen = self.groups.sum(self._classes["count"] > 0)
        means = {}
        for name in _COLUMNS:
            sums = self.groups.sum(np.where(self._classes["count"] > 0, self._classes[name], 0.0))
            means[name] = np.divide(sums, seen, out=np.full(len(seen), np.nan), where=seen > 0)
        return means

    def examples(self, tokenizer: Any = None, number: int = 5) -> list[list[str]]:
        """Return the most frequent tokens of each group, decoded [G][number].

        Args:
            tokenizer: anything with `decode([id])` (transformers, tokenizers, tiktoken), or a list of strings; by
                default that of the monitor.
            number: tokens of each group.

        Raises:
            SpecError: neither this call nor the monitor has a tokenizer.
        """
        tokenizer = self._tokenizer if tokenizer is None else tokenizer
        if tokenizer is None:
            raise SpecError("tokenizer: expected one, here or as Monitor(tokenizer=...), got none")
        return examples(tokenizer, self.class_count, self.groups.index, number)

    def to_dict(self, prefix: str = "") -> dict[str, float]:
        """Return a flat dictionary for trackers: "loss", "loss/group_01" and so on, most frequent group first.

        Values that are not finite are left out; "nonfinite" is there only if it is not 0.
        """
        table = {f"{prefix}{name}": float(value) for name, value in self.overall.items()}
        columns = {name: getattr(self, name) for name in (*_COLUMNS, "share")} | dict(self.extra) | dict(self.head)
        for name, values in columns.items():
            table |= {f"{prefix}{name}/{group}": float(v) for group, v in zip(self.names, values, strict=True)}
        table = {name: value for name, value in table.items() if math.isfinite(value)}
        if self.nonfinite.any():
            table[f"{prefix}nonfinite"] = float(self.nonfinite.sum())
        return table

    def __repr__(self) -> str:
        return f"Reading({len(self.loss)} groups, {self.count.sum()} rows, loss {self.overall['loss']:.4g})"

    def __str__(self) -> str:
        """Return a table with a line for each group and one for all."""
        shown = [name for name in _COLUMNS if name == "loss" or not math.isnan(self.overall[name])]
        columns = {name: getattr(self, name) for name in shown} | dict(self.extra) | dict(self.head)
        plain = self.names == _numbered(len(self.loss))
        labels = [str(g + 1) for g in range(len(self.loss))] if plain else list(self.names)
        width = max(5, *map(len, labels))
        tokens = [" ".join(map(repr, row)) for row in self.examples()] if self._tokenizer is not None else None
        classes = np.bincount(self.groups.index, minlength=len(self.loss))
        header = [f"{'group':>{width}}", f"{'classes':>9}", f"{'share':>7}", *(f"{name:>11}" for name in columns)]
        lines = [" ".join(header) + ("  examples" if tokens else "")]
        for g, size in enumerate(classes):
            cells = [f"{labels[g]:>{width}}", f"{size:>9}", f"{self.share[g]:>7.1%}"]
            cells += [f"{float(values[g]):>11.4g}" for values in columns.values()]
            lines.append(" ".join(cells) + (f"  {tokens[g]}" if tokens else ""))
        means = [f"{self.overall[name]:>11.4g}" if name in self.overall else " " * 11 for name in columns]
        cells = [f"{'all':>{width}}", f"{classes.sum():>9}", f"{self.share.sum():>7.1%}", *means]
        lines.append(" ".join(cells).rstrip())
        lines.append(f"groups cut from {self.cut}; {self.count.sum()} rows")
        if self.nonfinite.any():
            lines.append(f"{self.nonfinite.sum()} rows with a loss that is not finite are in no mean")
        return "\n".join(lines)


class Monitor:
    """Sums of losses per class, averaged by frequency group.

    Args:
        num_classes: C, the size of the head, padding included; needed unless `counts` or `groups` have it.
        counts: training samples of each class, to cut the groups from: whole numbers [C], or a Counter of classes.
            Fewer than `num_classes` are padded with zeros. Without `counts` and `groups`, groups are cut from all
            targets seen so far, over all resets.
        groups: the groups themselves: `FrequencyGroups`; the group of each class [C]; classes by name, such as
            {"digits": [15, 16], "other": ...}; "shots", many (> 100 samples), medium and few (< 20), which needs
            `counts`; or another monitor to share its groups (validation takes those of training).
        num_groups: groups to cut.
        ignore_index: target of rows to leave out; None for none.
        accuracy: whether to measure accuracy, one more pass over the logits.
        top_k: also measure how often the target is among the k highest logits.
        tokenizer: adds example tokens to the printed table and "bits_per_byte" to the reading.
        process_group: ranks to sum over; by default all. Under tensor parallelism, pass the data-parallel group.

    Raises:
        SpecError: an argument is out of range, or two contradict each other.

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
        counts: ArrayLike | Tensor | Mapping[int, int] | None = None,
        groups: FrequencyGroups | Monitor | Mapping[str, ArrayLike] | ArrayLike | str | None = None,
        num_groups: int = 10,
        ignore_index: int | None = -100,
        accuracy: bool = True,
        top_k: int | None = None,
        tokenizer: Any = None,
        process_group: Any = None,
    ) -> None:
        if counts is not None and groups is not None and not isinstance(groups, str):
            raise SpecError("groups: expected none beside counts, got both")
        _whole("num_classes", num_classes, " or counts or groups")
        _whole("num_groups", num_groups)
        _whole("top_k", top_k)
        self._source: Monitor = groups._source if isinstance(groups, Monitor) else self
        self._grouping: Grouping | None = None
        if isinstance(groups, Monitor):
            classes: int | None = groups.num_classes
        else:
            n_k = None if counts is None else class_counts(counts, num_classes)
            self._grouping = named_groups(groups, n_k, num_classes, num_groups)
            classes = num_classes if self._grouping is None else self._grouping.groups.num_classes
        if classes is None or num_classes not in (None, classes):
            raise SpecError(f"num_classes: expected {classes or 'at least 1, or counts or groups'}, got {num_classes}")
        self.num_classes = int(classes)
        self.num_groups = num_groups
        self.ignore_index = ignore_index
        self.accuracy = accuracy
        self.top_k = top_k
        self.tokenizer = tokenizer
        self.process_group = process_group
        self._bytes: Array | None = None
        self._watch: HeadWatch | None = None
        self._make_sums(torch.device("cpu"))

    def __repr__(self) -> str:
        cut = "targets seen" if self._source._grouping is None else self._source._grouping.cut
        return f"Monitor({self.num_classes} classes, groups cut from {cut}, {int(self.stats.count.sum())} rows)"

    # -- measuring -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def update(
        self, values: Tensor | HeadOutput, targets: Tensor, *, correct: Tensor | None = None, plain: bool = False
    ) -> None:
        """Add rows without synchronizing the device.

        Args:
            values: logits [..., C], or losses that are not yet averaged [...] (nats), of any floating type; or the
                output of `linear_cross_entropy`, with targets [M]. Rows may be flattened, [M, C] or [M].
            targets: class of each row [...], integers.
            correct: whether each row was predicted right [...] bool, for losses that come without logits.
            plain: the losses are -log p of the target, without class weights or label smoothing: then p(correct) is
                measured, too.

        Raises:
            SpecError: a shape or type does not fit, or, on a CPU, a target is out of range. On a GPU, where checking
                would synchronize, such targets are left out and `compute` raises.
        """
        if recomputing():
            return  # activation checkpointing repeats the forward pass: these rows are counted
        if isinstance(values, HeadOutput):
            correct, plain = values.correct, True
            values = values.losses
        values, targets = _local(values, targets)
        self._check(values, targets, correct)
        index = self._valid(targets)
        if self._watch is not None:
            self._watch.add(index)
        if values.numel() == targets.numel() and (values.shape == targets.shape or values.ndim == 1):
            self._add(index, values.detach().reshape(-1), correct, None, plain)
        else:
            losses, judged, top = self._row_results(values.detach(), index, self.accuracy and correct is None)
            self._add(index, losses, judged if correct is None else correct, top, True)

    def cross_entropy(self, logits: Tensor, targets: Tensor, *, normalizer: float | Tensor | None = None) -> Tensor:
        """Return `F.cross_entropy` of logits [..., C], bit for bit, and add its rows at next to no cost.

        Args:
            logits: of any floating type; half precision is converted to float32.
            targets: class of each row [...], integers.
            normalizer: divisor of the sum; by default the number of rows that are not ignored. When accumulating over
                micro-batches, pass that of the whole batch.

        Raises:
            SpecError: as `update`.
        """
        self._check(logits, targets, None)
        C, M = self.num_classes, targets.numel()
        if logits.numel() == M and logits.shape not in ((*targets.shape, C), (M, C)):  # so are no rows, or one class
            raise SpecError(f"logits: expected [..., {C}], got the shape of targets, {_shape(targets)}")
        rows = logits if logits.ndim == 2 else logits.reshape(-1, self.num_classes)
        rows = rows.float() if rows.dtype.itemsize < 4 else rows
        if targets.is_cpu and rows.is_cpu:  # there, nll_loss checks the range itself
            index, ignored = targets, self.ignore_index
            if targets.ndim != 1 or targets.dtype != torch.int64:  # small batches feel a call that changes nothing
                index = targets.reshape(-1).long()
            y, ignored = index, _NOTHING_IGNORED if ignored is None else ignored
        else:
            with torch.no_grad():
                index, ignored = self._valid(targets), -1
            y = index.to(rows.device)
        log_p = rows.log_softmax(1)
        try:
            loss = F.nll_loss(log_p, y, ignore_index=ignored, reduction="mean" if normalizer is None else "sum")
        except IndexError as error:
            self._valid(targets)  # raises, naming the class
            raise SpecError(f"targets: {error}") from error
        if torch.compiler.is_compiling() or not (recomputing() or self._keep(log_p, index)):
            with torch.no_grad():
                losses = F.nll_loss(log_p, y, ignore_index=ignored, reduction="none")
                correct = _is_first(log_p, y) if self.accuracy else None
                top = None if self.top_k is None else _rank(rows.detach(), y) < self.top_k
                if self._watch is not None or not self._pending_allowed(index):
                    index = self._valid(targets)
                if self._watch is not None:
                    self._watch.add(index)
                self._add(index, losses, correct, top, True, owned=True)
        return loss if normalizer is None else loss / normalizer

    @torch.no_grad()
    def count(self, targets: Tensor) -> None:
        """Count targets [...] for the cut of the groups only, where losses are measured now and then."""
        targets = targets.reshape(-1)
        if targets.device != self._seen.device and targets.device.type != "mps":
            self._move(targets.device)
        index = targets.to(self._seen.device, torch.int64)
        valid = (index >= 0) & (index < self.num_classes)
        if self.ignore_index is not None:
            valid &= index != self.ignore_index
        self._seen.index_add_(0, index * valid, valid.long())

    def watch(self, head: nn.Linear, optimizer: torch.optim.Optimizer | None = None) -> HeadWatch:
        """Measure the head itself, too: gradient norm and Hessian trace of its rows, from inputs kept by a hook.

        While watched, every `update` must follow the forward pass that it belongs to, with as many targets as the head
        had inputs. It costs another pass through the head, so watch a step now and then:

            with monitor.watch(model.lm_head, optimizer):
                train_step()

        Watching the same head again adds to the sums since the last reset; another head begins new ones. Under
        `torch.compile`, watch before the first compiled call, which does not see hooks added later.

        Args:
            head: the classifier, D -> C.
            optimizer: also measure the norm of its updates; Accelerate's wrapper will do.

        Raises:
            SpecError: the head does not have C outputs, one is already watched, or the optimizer's steps have no hooks.
        """
        if self._watch is not None and self._watch.attached:
            raise SpecError("head: expected one watched head at a time; leave the last watch first")
        outputs = len(head.weight) if hasattr(head, "weight") else None
        if outputs != self.num_classes:
            got = f"got {outputs}" if outputs is not None else f"got {type(head).__name__} without a weight [C, D]"
            hint = "; for a padded head, pass its size as num_classes" if (outputs or 0) > self.num_classes else ""
            raise SpecError(f"head: expected {self.num_classes} outputs, {got}{hint}")
        if self._watch is not None and self._watch.head is head:
            self._watch.attach(optimizer)
        else:
            self._watch = HeadWatch(head, optimizer)
        return self._watch

    # -- reading -------------------------------------------------------------------------------------------------

    @property
    def stats(self) -> ClassStats:
        """Sums per class of this process since the last reset, over rows with a finite loss."""
        self._flush()
        return self._stats

    def compute(self, *, sync: bool = True, timeout: float = 600.0) -> Reading:
        """Return the means by frequency group since the last reset, and leave the sums as they are.

        Args:
            sync: sum over all ranks (or `process_group`) where torch.distributed runs; every rank must then call this.
            timeout: seconds to wait for the other ranks.

        Raises:
            SpecError: targets were out of range; there are no counts and no targets to cut groups from; or a rank did
                not call `compute` in time.
        """
        stats = self.stats
        parts = [stats.count, stats.loss_sum, stats.correct, stats.p_correct_sum, self._top, self._nonfinite]
        flags = [self._out_of_range, self._unjudged, self._unplain, self._untopped]
        rows = [part.double() for part in (*parts, self._seen)]
        rows += [flag.double().expand(self.num_classes) for flag in flags]
        total = self._total(rows, sync, timeout)
        count, loss, correct, p_correct, top, nonfinite, seen, wrong, unjudged, unplain, untopped = total
        if wrong[0]:
            raise SpecError(f"targets: expected 0 to {self.num_classes - 1}, got {int(wrong[0])} outside")
        seen = seen + count + nonfinite
        grouping = self._cut_groups(seen, sync, timeout)
        groups = grouping.groups
        totals = groups.sum(count)

        def mean(sums: Array, over: Array) -> Array:
            means: Array = np.divide(sums, over, out=np.full(len(over), np.nan), where=over > 0)
            return means

        for sums, flag in ((correct, unjudged), (p_correct, unplain), (top, untopped)):
            if flag[0]:
                sums[:] = np.nan
        sums = {"loss": loss, "accuracy": correct, "p_correct": p_correct}
        extra = {} if self.top_k is None else {f"top_{self.top_k}": mean(groups.sum(top), totals)}
        if self.tokenizer is not None:
            if self._bytes is None:
                self._bytes = token_bytes(self.tokenizer, self.num_classes)
            extra["bits_per_byte"] = mean(groups.sum(loss) / math.log(2), groups.sum(count * self._bytes))
        n = count.sum()
        return Reading(
            **{name: mean(groups.sum(value), totals) for name, value in sums.items()},
            share=totals / n if n else np.zeros_like(totals),
            count=totals.astype(np.int64),
            nonfinite=groups.sum(nonfinite).astype(np.int64),
            overall={name: float(value.sum() / n) if n else math.nan for name, value in sums.items()},
            groups=groups,
            cut=grouping.cut,
            head=self._watch.read(groups, sync=sync, group=self.process_group) if self._watch is not None else {},
            class_count=seen.astype(np.int64),
            names=grouping.names or _numbered(groups.num_groups),
            extra=extra,
            _classes={"count": count} | {name: mean(value, count) for name, value in sums.items()},
            _tokenizer=self.tokenizer,
        )

    def reset(self) -> None:
        """Clear all sums; the counts that groups are cut from stay."""
        stats = self.stats
        seen = self._seen + stats.count + self._nonfinite
        self._make_sums(seen.device, seen)
        if self._watch is not None:
            self._watch.reset()
            self._watch = self._watch if self._watch.attached else None

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of all sums of this process, for `load_state_dict`."""
        sums = {f.name: getattr(self.stats, f.name) for f in fields(ClassStats)}
        others = {name: getattr(self, f"_{name}") for name in _OTHERS}
        return {k: v.clone() for k, v in (sums | others).items()}

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
        self._pending.clear()
        self._log_p.clear()
        self._stats = ClassStats(*(state[f.name].clone() for f in fields(ClassStats)))
        for name in _OTHERS:
            setattr(self, f"_{name}", state[name].clone())

    # -- pieces --------------------------------------------------------------------------------------------------

    def _make_sums(self, device: torch.device, seen: Tensor | None = None) -> None:
        with torch.inference_mode(False):  # made in an evaluation, they must still be added to in training
            self._stats = ClassStats.zeros(self.num_classes, device)
            self._nonfinite = torch.zeros(self.num_classes, dtype=torch.int64, device=device)
            self._top = torch.zeros_like(self._nonfinite)
            self._seen = torch.zeros_like(self._nonfinite) if seen is None else seen.clone()
            flag = torch.zeros(1, dtype=torch.int64, device=device)
            self._out_of_range, self._unjudged = flag, flag.clone()
            self._unplain, self._untopped = flag.clone(), flag.clone()
        self._pending: list[tuple[Tensor, Tensor, Tensor | None, Tensor | None, bool]] = []
        self._pending_rows = 0
        self._log_p: list[tuple[Tensor, Tensor]] = []
        self._log_p_room = _PENDING_LOG_P

    def _move(self, device: torch.device) -> None:
        state = self.state_dict()
        with torch.inference_mode(False):
            self.load_state_dict({name: value.to(device) for name, value in state.items()})

    def _valid(self, targets: Tensor) -> Tensor:
        """The targets [M] on the device of the sums, which is theirs; -1 where they are ignored."""
        if targets.device != self._stats.count.device and targets.device.type != "mps":  # which has no float64
            self._move(targets.device)
        index = targets.reshape(-1).to(self._stats.count.device, torch.int64)
        wrong = (index < 0) | (index >= self.num_classes)
        stray = wrong if self.ignore_index is None else wrong & (index != self.ignore_index)
        if targets.device.type != "cpu" or torch.compiler.is_compiling():  # a branch would synchronize, or break
            self._out_of_range += stray.sum()
        elif stray.any():
            raise SpecError(f"targets: expected 0 to {self.num_classes - 1}, got {index[stray][0].item()}")
        if self.ignore_index is not None:  # it may be a class
            wrong = wrong | (index == self.ignore_index)
        return torch.where(wrong, -1, index)

    def _keep(self, log_p: Tensor, index: Tensor) -> bool:
        """Keep the log-probabilities [M, C] of a small batch, which nobody else can change, to judge them with others.

        Each of the kernels that judge a batch takes as long for a few rows as for a thousand.
        """
        room = log_p.numel()
        if 32 * room > _PENDING_LOG_P or self._watch is not None or self.top_k is not None:
            return False
        if index.device != self._stats.count.device or log_p.device != index.device:
            return False
        self._log_p.append((log_p.detach(), index.clone()))  # callers may overwrite their targets
        self._log_p_room -= room
        if self._log_p_room < room or len(self._log_p) >= 64:
            self._flush()
        return True

    @torch.no_grad()
    def _judge_kept(self) -> None:
        kept, self._log_p, self._log_p_room = self._log_p, [], _PENDING_LOG_P
        kinds: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}
        for batch in kept:
            kinds.setdefault(batch[0].dtype, []).append(batch)
        for batches in kinds.values():
            log_p, index = (torch.cat(parts) for parts in zip(*batches, strict=True))
            y = _classes(index, self.num_classes)
            losses = log_p.gather(1, y[:, None]).neg_()[:, 0]
            self._fold(index, losses, _is_first(log_p, y) if self.accuracy else None, None, True)

    def _pending_allowed(self, index: Tensor) -> bool:
        return len(index) < _PENDING_ROWS and index.device == self._stats.count.device and self._is_eager()

    @staticmethod
    def _is_eager() -> bool:
        return not torch.compiler.is_compiling()

    def _add(
        self,
        index: Tensor,
        losses: Tensor,
        correct: Tensor | None,
        top: Tensor | None,
        plain: bool,
        *,
        owned: bool = False,
    ) -> None:
        """Add rows [M]; those of small batches wait. Callers may overwrite their tensors, so that these are copied."""
        if correct is not None and correct.ndim != 1:
            correct = correct.reshape(-1)
        if not self._pending_allowed(index):
            self._fold(index, losses, correct, top, plain)
            return
        if owned and not torch.is_inference_mode_enabled():
            rows = index.clone(), losses, correct, top, plain
        else:
            with torch.inference_mode(False):
                rows = index.clone(), losses.clone(), None if correct is None else correct.clone(), top, plain
        self._pending.append(rows)
        self._pending_rows += len(index)
        if self._pending_rows >= _PENDING_ROWS or len(self._pending) >= 16:
            self._flush()

    @torch.no_grad()
    def _flush(self) -> None:
        if self._log_p:
            self._judge_kept()
        pending, self._pending, self._pending_rows = self._pending, [], 0
        kinds: dict[tuple[Any, ...], list[Any]] = {}
        for rows in pending:
            kind = rows[2] is None, rows[3] is None, rows[4], rows[1].dtype, rows[1].device
            kinds.setdefault(kind, []).append(rows)
        for (unjudged, untopped, plain, *_), batches in kinds.items():
            index, losses, correct, top, _ = zip(*batches, strict=True)
            self._fold(
                torch.cat(index),
                torch.cat(losses),
                None if unjudged else torch.cat(correct),
                None if untopped else torch.cat(top),
                plain,
            )

    def _fold(self, index: Tensor, losses: Tensor, correct: Tensor | None, top: Tensor | None, plain: bool) -> None:
        device = self._stats.count.device
        if top is None and self._all_count(index, losses):
            self._untopped += 1
            if correct is None:
                self._unjudged += 1
            if not plain:
                self._unplain += 1
            judged = torch.zeros_like(index) if correct is None else correct.to(device)
            self._stats.update(index, losses, judged, torch.exp(-losses.double()))
            return
        valid = (index >= 0) & (index < self.num_classes)
        if self.ignore_index is not None:
            valid &= index != self.ignore_index
        losses = losses.detach().to(device)
        finite = losses.isfinite()
        self._unjudged += correct is None
        self._unplain += not plain
        self._untopped += top is None
        judged = torch.zeros_like(index) if correct is None else correct.to(device)
        p_correct = torch.exp(-losses.double())
        rows = torch.where(valid & finite, index, -1)
        self._stats.update(rows, losses, judged, p_correct, ignore_index=-1)
        self._nonfinite.index_add_(0, index * valid, (valid & ~finite).long())
        if top is not None:
            self._top.index_add_(0, rows.clamp(min=0), (top.to(device) & (rows >= 0)).long())

    def _all_count(self, index: Tensor, losses: Tensor) -> bool:
        """Whether no row is ignored or not finite, where that is cheap to know: three passes instead of a dozen."""
        if torch.compiler.is_compiling() or index.device.type != "cpu" or losses.device.type != "cpu":
            return False
        if not len(index):
            return False
        low, high = (int(end) for end in index.aminmax())
        ignored = self.ignore_index is not None and low <= self.ignore_index <= high
        return low >= 0 and high < self.num_classes and not ignored and math.isfinite(losses.sum().item())

    def _row_results(self, logits: Tensor, index: Tensor, judge: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Losses [M] of logits [..., C] and, on request, whether each target comes first, or among the first k."""
        own = _classes(index, self.num_classes).to(logits.device)
        losses, judged, top, start = [], [], [], 0
        for rows in _row_chunks(logits, 2**18 if logits.device.type == "cpu" else 2**26):
            y = own[start : start + len(rows)]
            rows = rows.float() if rows.dtype.itemsize < 4 else rows
            losses.append(F.cross_entropy(rows, y, reduction="none"))
            if judge:
                judged.append(_is_first(rows, y))
            if self.top_k is not None:
                top.append(_rank(rows, y) < self.top_k)
            start += len(rows)
        if not losses:
            none = own.new_zeros(0, dtype=torch.bool)
            return logits.new_zeros(0), none if judge else None, none if self.top_k is not None else None
        return _joined(losses), _joined(judged) if judge else None, _joined(top) if top else None

    def _total(self, rows: list[Tensor], sync: bool, timeout: float) -> Array:
        """Stack rows of [C] and sum them over the ranks, in float64, which holds whole numbers to 2^53."""
        total = add_over_ranks(torch.stack(rows), sync, self.process_group, timeout)
        return np.array(total.cpu().numpy(), np.float64)

    def _cut_groups(self, seen: Array, sync: bool, timeout: float) -> Grouping:
        """The groups; `seen` [C] are the targets of this monitor, on all ranks."""
        source = self._source
        if source._grouping is not None:
            return source._grouping
        if source is not self:
            parts = [source._seen, source.stats.count, source._nonfinite]
            theirs = self._total([torch.stack(parts).sum(0).double()], sync, timeout)[0]
            seen = theirs if theirs.any() else seen
        if not seen.any():
            raise SpecError("counts: expected some, or targets seen before, to cut groups from; got none of either")
        groups = FrequencyGroups.from_counts(seen.astype(np.int64), source.num_groups)
        return Grouping(groups, (), f"{int(seen.sum())} targets seen")

    def _check(self, values: Tensor, targets: Tensor, correct: Tensor | None) -> None:
        if not isinstance(values, Tensor):
            raise SpecError(f"values: expected a tensor of logits or losses, got {type(values).__name__}")
        if targets.is_floating_point() or targets.dtype == torch.bool:
            raise SpecError(f"targets: expected integers, got {targets.dtype}")
        if not values.is_floating_point():
            raise SpecError(f"values: expected floating point, got {values.dtype}")
        C, M, shape = self.num_classes, targets.numel(), tuple(values.shape)
        if shape not in (tuple(targets.shape), (*targets.shape, C), (M,), (M, C)):
            given, classes = _shape(targets), [*targets.shape, C]
            raise SpecError(f"values: expected losses {given} or logits {classes}, got {_shape(values)}")
        if targets.ndim > 1 and shape == (len(targets), C, *targets.shape[1:]) and M > 0:
            raise SpecError(
                f"values: {_shape(values)} could be [B, L, C] or [B, C, L]; pass logits.reshape(-1, {C}) with the "
                "classes last, and targets.reshape(-1)"
            )
        if correct is not None and correct.numel() != M:
            raise SpecError(f"correct: expected {_shape(targets)} like targets, got {_shape(correct)}")


_OTHERS = ("nonfinite", "top", "seen", "out_of_range", "unjudged", "unplain", "untopped")


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


def _is_first(logits: Tensor, targets: Tensor) -> Tensor:
    """Whether `argmax` of logits [M, C] is the target [M]: of equal ones the lowest class.

    On a CPU argmax of many classes takes ten times as long as the maximum, so large batches take it of tied rows only.
    """
    if logits.numel() < 2**14 or logits.shape[1] <= 32 or logits.device.type != "cpu" or torch.compiler.is_compiling():
        return logits.argmax(1) == targets
    y = _classes(targets, logits.shape[1])
    own = logits.gather(1, y[:, None])
    first = own[:, 0] >= logits.amax(1)
    leading = first.nonzero()[:, 0]
    others = logits[leading].scatter_(1, y[leading, None], -math.inf)
    tied = leading[others.amax(1) == own[leading, 0]]
    first[tied] = logits[tied].argmax(1) == targets[tied]
    return first


def _rank(logits: Tensor, targets: Tensor) -> Tensor:
    """How many logits of [M, C] come before the target's; of equal ones the lowest class comes first [M]."""
    y = _classes(targets, logits.shape[1])[:, None]
    own = logits.gather(1, y)
    before = torch.arange(logits.shape[1], device=logits.device) < y
    return ((logits > own) | ((logits == own) & before)).sum(1)


def _classes(targets: Tensor, num_classes: int) -> Tensor:
    """Targets [M] that can be looked up, also where they are ignored: such rows are left out later, by `_fold`."""
    return targets.clamp(0, num_classes - 1)


def _local(values: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Plain tensors of DTensors; the rows count on the first rank of their mesh only, which all see them."""
    mesh = getattr(values, "device_mesh", None)
    if mesh is None:
        return values, targets.full_tensor() if hasattr(targets, "full_tensor") else targets
    values = values.full_tensor()  # type: ignore[attr-defined]
    targets = targets.full_tensor() if hasattr(targets, "full_tensor") else targets
    if any(mesh.get_coordinate() or [0]):
        return values.reshape(-1, values.shape[-1])[:0], targets.reshape(-1)[:0]
    return values, targets


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _numbered(number: int) -> tuple[str, ...]:
    """Names that sort: group_01, group_02 and so on."""
    return tuple(f"group_{g:0{max(2, len(str(number)))}d}" for g in range(1, number + 1))


def _whole(name: str, value: Any, alternatives: str = "") -> None:
    """Raise unless the value is None or a whole number of at least 1."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1):
        comma = "," if alternatives else ""
        raise SpecError(f"{name}: expected at least 1{comma}{alternatives}, got {value}")


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)
