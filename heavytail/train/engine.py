"""The engine: one training loop for full batches and mini-batches (paper, section 2 and appendix A).

Row t of a history holds the losses at W_t. For a full batch they come from the pass that computes the gradient of
step t, so recording costs nothing; where dropout, batch normalisation or random transforms make that pass differ from
evaluation, and for mini-batches, a separate pass in eval mode measures them, through the deterministic transform (or,
with train_stats = "running", the losses of the mini-batches are summed between records). The head forms the logits of
one chunk of rows at a time.

Shapes: N samples, C classes, D features, M predictions, E recorded steps, T steps.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from heavytail.data import Batch, Data, Split
from heavytail.errors import HeavyTailError, RefusedError, SpecError, StoreError, reason
from heavytail.experiment.registry import registry
from heavytail.experiment.spec import RunSpec, derive_seed
from heavytail.experiment.store import UNSTABLE, Array, History, RunStore, Status
from heavytail.head import linear_cross_entropy
from heavytail.metrics import ClassStats
from heavytail.probes import Probe, StepView
from heavytail.train import checkpoint
from heavytail.train.environment import environment
from heavytail.train.group import ALONE, Group, LostProcess

# A run has diverged if its objective exceeds the initial loss by this factor: softmax regression never overflows. The
# initial loss is the recorded loss of the whole split at step 0, or log C if that is larger.
DIVERGED_FACTOR = 100.0
COMMIT_SECONDS = 30.0
COMMIT_SHARE = 0.05  # of the time, at most, is spent on commits: those of a large state are farther apart,
COMMIT_LIMIT = 600.0  # up to this many seconds
KEEP_BYTES = 16 * 2**20  # a finished run keeps its checkpoint, to be continued later, only below this size
BATCH_NORM = nn.modules.batchnorm._BatchNorm
CACHED_FEATURES = 2**31  # features of a frozen body are cached below this many bytes, not recomputed at every step
_LOG = logging.getLogger("heavytail")


@dataclass(frozen=True)
class Progress:
    """Step and loss of a run; passed to the `on_progress` callback a few times a second."""

    spec: RunSpec
    step: int
    loss: float


def train(
    spec: RunSpec,
    store: RunStore,
    *,
    data_dir: Path,
    device: str = "cpu",
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    group: Group = ALONE,
    compiled: bool = False,
) -> History:
    """Train the steps of `spec` that the store does not have yet, and return the history.

    Waits while another process trains the same run, and then reads its result. Divergence is a status of the history.

    Args:
        spec: the run.
        store: where its history and checkpoints are committed.
        data_dir: where public data sets are.
        device: torch device.
        on_progress: called a few times a second.
        should_stop: called before every step; once true, the run is committed as interrupted and returned.
        group: the processes that train it together; rank 0 holds the lock and writes.
        compiled: whether the body goes through torch.compile: faster on a GPU, the same up to rounding.

    Raises:
        LostProcess: another process of the group has died; the run is committed as interrupted.
        StoreError: the processes of the group see different commits of the run.
    """
    with store.lock(spec) if group.rank == 0 else nullcontext():
        group.wait()  # for the lock
        finished = store.finished(spec)
        _check_shared(group, int(finished is not None), store)
        if finished is not None:
            return finished
        try:
            with torch.random.fork_rng(), _numerics(spec):
                run = _begin(spec, store, data_dir, torch.device(device), group, compiled)
                try:
                    history = run.loop(on_progress, should_stop)
                except LostProcess:  # always between two updates, so the state is that at W_t
                    run.commit_interrupted()
                    raise
                except HeavyTailError as error:
                    if group.size == 1:
                        raise
                    raise HeavyTailError(str(error)) from error  # no error of this run only: the others are in it
                group.wait()  # until rank 0 has written
                return history
        except LostProcess:
            raise
        except Exception as error:
            if group.rank != 0:  # rank 0 holds the lock, and commits the run as interrupted
                raise
            store.mark_failed(spec, f"{type(error).__name__}: {error}")
            raise


def _begin(spec: RunSpec, store: RunStore, data_dir: Path, device: torch.device, group: Group, compiled: bool) -> _Run:
    """Return the run at the step from which all processes of the group continue it."""
    run, failed = None, None
    try:
        run = _Run(spec, store, data_dir, device, group, compiled)
    except Exception as error:  # the others have to know before they wait for this one
        failed = error
    if group.any(failed is not None):
        raise failed or LostProcess("another process could not begin this run; its own message says why")
    assert run is not None
    _check_shared(group, run.start if run.resumed else -1, store)
    return run


def price(spec: RunSpec, data_dir: Path, device: str = "cpu", *, steps: int = 10) -> tuple[float, int]:
    """Return the mean time of a step in seconds, its gradient included, and the bytes of the optimizer's state.

    A few steps are trained, and nothing is stored. The first one, which allocates the state, is not counted. The mean
    includes what an optimizer does in every tenth step only (SOAP). On a CPU it is processor time, which does not
    depend on other work; elsewhere elapsed time.
    """
    clock = time.process_time if device == "cpu" else time.perf_counter
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(), _numerics(spec):
        run = _Run(spec, RunStore(Path(folder)), data_dir, torch.device(device))
        start = 0.0
        for step in range(steps + 1):
            run._gradient(step, None)
            run.optimizer.step()
            if run.device.type == "cuda" and step in (0, steps):
                torch.cuda.synchronize(run.device)
            if step == 0:
                start = clock()
        seconds = (clock() - start) / steps
        run._end_pass()
        return seconds, checkpoint.state_bytes(run.optimizer)


class _Run:
    """One run in progress: the objects of the loop and the rows measured so far."""

    def __init__(
        self,
        spec: RunSpec,
        store: RunStore,
        data_dir: Path,
        device: torch.device,
        group: Group = ALONE,
        compiled: bool = False,
    ) -> None:
        self.spec, self.store, self.device, self.group = spec.resolved, store, device, group
        self.sums_device = torch.device("cpu") if device.type == "mps" else device  # mps has no float64
        self.data = load_data(self.spec, data_dir)
        self._check_data()
        self._make_model(compiled)
        self._make_splits()
        self.probes: dict[str, tuple[Probe, set[int]]] = {}
        for part in self.spec.probes:
            probe = registry("probe").make(part)
            self.probes[part.name] = (probe, set(probe.steps(self.spec.steps)))
        running = spec.train_stats == "running"
        self.running = ClassStats.zeros(self.data.num_classes, self.sums_device) if running else None
        self.ahead: Iterator[Batch] = iter(())  # the micro-batches of the steps `due`, which may be loaded early
        self.due = range(0)
        self.measured = {step for _, steps in self.probes.values() for step in steps}  # in a pass of its own
        if self.running is None and not self.gradient_pass_evaluates:
            self.measured |= set(self.spec.recorded_steps())
        self.rows: dict[str, list[Array]] = {}
        self.objective: list[Tensor] = []
        self.resumed: list[dict[str, Any]] = []
        self.start = self.step = self.judged = 0
        self.seen = 0  # rows found stable
        self.warned = False  # that it cannot be continued
        self.spent = 0.0  # seconds of the parts before the last interruption
        self.began = self.looping = time.monotonic()
        torch.manual_seed(derive_seed(self.spec.seed, "dropout"))
        self._resume()

    def _check_data(self) -> None:
        """Raise SpecError if the batch is larger than the data, or there is no test split to evaluate."""
        spec, samples = self.spec, len(self.data.train)
        if spec.precision == "float64" and self.device.type == "mps":
            raise SpecError("precision: expected float32 or bf16 on mps, which has no float64, got 'float64'")
        if spec.probes and self.device.type == "mps":
            raise SpecError("probes: expected none on mps, which has no float64, in which they sum; use --device cpu")
        if spec.batch_size is not None and spec.batch_size > samples:
            raise SpecError(f"batch_size: expected at most {samples} samples, got {spec.batch_size}")
        if spec.test_every and self.data.test is None:
            missing = f"data '{spec.data.name}' has no test split"
            raise SpecError(f"test_every: expected 0, as {missing}, got {spec.test_every}")

    def _make_model(self, compiled: bool) -> None:
        """Build the model at its initial point, its optimizer and the class weights of its objective."""
        spec = self.spec
        self.dtype = torch.float64 if spec.precision == "float64" else torch.float32
        self.model = build_model(spec, self.data).to(self.device, self.dtype)
        self.head: nn.Linear = self.model.head  # type: ignore[assignment]
        self.optimizer = build_optimizer(spec, self.model)
        weights = registry("loss").make(spec.loss).class_weights(self.data.counts)
        self.class_weights = None if weights is None else weights.to(self.device, self.dtype)
        self.differs_in_training = differs_in_training(self.model)
        if self.group.size > 1 and any(isinstance(m, BATCH_NORM) for m in self.model.modules()):
            raise SpecError(
                f"model '{spec.model.name}': batch normalisation needs the whole batch; train in one process"
            )
        self.body: Callable[[Tensor], Tensor] = self.model.features  # type: ignore[assignment]
        if compiled:
            self.body = torch.compile(self.body)

    def _make_splits(self) -> None:
        """Move the splits to the device, and choose the micro-batch size."""
        spec, data = self.spec, self.data
        self.train_split = data.train.to(self.device, self.dtype)
        self.test_split = None if data.test is None else data.test.to(self.device, self.dtype)
        self.microbatch = self.group.portion(spec.batch_size or len(data.train), spec.microbatch)
        self.averages = bool(_averaging(self.optimizer))
        self.gradient_pass_evaluates = gradient_pass_evaluates(spec, self.model, data.train) and not self.averages
        if self.gradient_pass_evaluates and _frozen_body(self.model):
            self._keep_features()

    # -- the loop ------------------------------------------------------------------------------------------------

    def loop(self, on_progress: Callable[[Progress], None] | None, should_stop: Callable[[], bool]) -> History:
        """Train to the end, to divergence or until `should_stop`.

        The order at W_t: commit, stop, end a run that may end, probe, test, evaluate (if the gradient pass does not),
        gradient, record, check for divergence, step. Commits hold the state before the gradient of step t, so that a
        resumed run repeats that pass from the same generators. The last step is checked by the same pass as every
        other one; the changes of that pass to the model's buffers are not committed.
        """
        try:
            return self._loop(on_progress, should_stop)
        finally:
            self._end_pass()

    def _loop(self, on_progress: Callable[[Progress], None] | None, should_stop: Callable[[], bool]) -> History:
        spec = self.spec
        recorded, known = set(spec.recorded_steps()), set(self._steps("train"))
        tested = set(spec.recorded_steps(spec.test_every)) - set(self._steps("test"))
        check_every = 1 if self.device.type == "cpu" else 20  # reading a loss synchronizes the device
        committed = reported = now = self.looping = time.monotonic()
        pause = COMMIT_SECONDS
        for step in range(self.start, spec.steps + 1):
            self.step = step
            last = step == spec.steps
            if self.group.any(self.group.rank == 0 and now - committed > pause):  # the others write nothing
                begun = time.monotonic()
                self._commit("running", step, self._state())
                committed = time.monotonic()
                pause = max(COMMIT_SECONDS, min((committed - begun) / COMMIT_SHARE, COMMIT_LIMIT))
            if self.group.any(should_stop()):
                return self._commit("interrupted", step, self._state())
            if spec.may_end and (ended := self._unstable(recorded)) is not None:
                return self._commit("interrupted", step, self._state(), ended)
            self._probe(step)
            if step in tested:
                assert self.test_split is not None
                self._record("test", step, self._evaluate(self.test_split))
            stats = self._observe(step, last, step in known) if step in recorded else None
            state = self._state(finished=True) if last else None
            loss = self._gradient(step, stats)
            if stats is not None:
                self._record("train", step, stats)
            self.objective.append(loss)
            if step % check_every == 0 or last:
                lost = self._first_lost(step)
                if lost is not None:
                    return self._end_diverged(lost)
            if last:
                del self.objective[-1]
                return self._commit("done", step, state)
            now = time.monotonic()
            if on_progress is not None and step % check_every == 0 and now - reported > 0.1:
                on_progress(Progress(self.spec, step, loss.item()))
                reported = now
            self.optimizer.step()
        raise AssertionError("the last step returns")

    def _unstable(self, recorded: set[int]) -> str | None:
        """Why the run may end: the first recorded loss that makes its step size unstable."""
        losses, steps = (self.rows.get(f"train/{name}", []) for name in ("loss", "step"))
        for row in range(self.seen, len(losses)):
            ratio, step = float(losses[row] / losses[0]), int(steps[row])
            if step in recorded and ratio > UNSTABLE:
                return f"unstable: its loss at step {step} is {ratio:.3g} x the initial one"
        self.seen = len(losses)
        return None

    def _first_lost(self, step: int) -> int | None:
        """The first unchecked step at which the objective has diverged (see DIVERGED_FACTOR)."""
        initial = max(float(self.rows["train/loss"][0]), math.log(self.data.num_classes))
        first = min(self.judged, step)
        values = torch.stack(self.objective[first:]).cpu().numpy()
        self.judged = step + 1
        lost = np.flatnonzero(~(np.isfinite(values) & (values <= DIVERGED_FACTOR * initial)))
        steps = [first + int(lost[0])] if len(lost) else []
        # The averaged parameters, of which the losses are recorded, may overflow though the objective does not.
        if self.averages and not np.isfinite(self.rows["train/loss"][-1]):
            steps.append(int(self.rows["train/step"][-1]))
        return min(steps, default=None)

    def _end_diverged(self, step: int) -> History:
        """Commit the run as diverged at `step`, without later measurements."""
        ends = {name: [i for i, s in enumerate(v) if int(s) <= step] for name, v in self.rows.items() if _is_step(name)}
        for name, values in self.rows.items():
            self.rows[name] = [values[i] for i in ends[f"{name.rpartition('/')[0]}/step"]]
        del self.objective[min(step, self.spec.steps - 1) + 1 :]
        return self._commit("diverged", step, None)

    def _observe(self, step: int, last: bool, known: bool) -> ClassStats | None:
        """Return sums for the gradient pass of this step to fill in; None if the row was recorded here."""
        if self.running is not None and step > 0:
            if not known:
                self._record("train", step, self.running)
            if not last:  # a longer run that continues from here continues this sum
                self.running = ClassStats.zeros(self.data.num_classes, self.sums_device)
            return None
        if known:
            return None
        if self.running is not None:
            return self.running
        if self.gradient_pass_evaluates:
            return ClassStats.zeros(self.data.num_classes, self.sums_device)
        self._record("train", step, self._evaluate(self.train_split))
        return None

    def _gradient(self, step: int, stats: ClassStats | None) -> Tensor:
        """Set the gradients to those of the objective at W_t; return the objective."""
        if self.group.size > 1:  # a lost process or a broken step leaves no trace in later random numbers
            torch.manual_seed(derive_seed(self.spec.seed, f"dropout/{self.group.rank}/{step}"))
        self.model.train(self.differs_in_training)
        self.optimizer.zero_grad(set_to_none=True)
        targets = self._targets(step)
        if self.class_weights is None:
            normalizer: Tensor | float = float(targets.numel())
        else:
            normalizer = self.class_weights[targets].sum()
        total = torch.zeros((), device=self.sums_device, dtype=torch.float64)
        sums = stats if stats is not None else self.running
        part = sums if self.group.size == 1 or sums is None else ClassStats.zeros(sums.num_classes, self.sums_device)
        for batch in self._batches(step):
            loss = self._loss(batch, self.class_weights, normalizer, part)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach().to(self.sums_device)
        if self.group.size > 1:
            self._add_up(total, sums, part)
        return total

    def _add_up(self, total: Tensor, sums: ClassStats | None, part: ClassStats | None) -> None:
        """Replace gradients and objective by their sums over the processes; add the summed statistics to `sums`."""
        gradients = []
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:  # this process had no micro-batch
                    parameter.grad = torch.zeros_like(parameter)
                gradients.append(parameter.grad)
        self.group.add([*gradients, total, *(part.tensors() if part is not None else ())])
        if sums is not None and part is not None:
            for tensor, added in zip(sums.tensors(), part.tensors(), strict=True):
                tensor += added

    def _loss(
        self, batch: Batch, weights: Tensor | None, normalizer: Tensor | float, stats: ClassStats | None
    ) -> Tensor:
        inputs, targets = batch.inputs.to(self.device), batch.targets.to(self.device).flatten()
        with self._autocast():
            features = self.body(inputs)
            out = linear_cross_entropy(  # under autocast its products are in bfloat16
                features,
                self.head.weight,
                self.head.bias,
                targets,
                class_weights=weights,
                normalizer=normalizer,
            )
        if stats is not None:
            rows = (targets, out.losses, out.correct, out.p_correct)
            stats.update(*(values.to(self.sums_device) for values in rows))
        return out.loss

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.spec.precision == "bf16")

    def _evaluate(self, split: Split) -> ClassStats:
        """Sums per class over a split, in eval mode and through its deterministic transform."""
        stats = ClassStats.zeros(self.data.num_classes, self.sums_device)
        self.model.eval()
        with torch.no_grad(), self._result():
            for batch in split.batches(self.group.share(_cut(len(split), self.microbatch))):
                self._loss(batch, None, float(batch.targets.numel()), stats)
        self.group.add(stats.tensors())
        return stats

    def _result(self) -> AbstractContextManager[None]:
        """The optimizer's result in the parameters, where it is not the point of its gradients.

        At step 0 it is the initial point, and the optimizer may have no state yet.
        """
        return _averaged(self.optimizer) if self.averages and self.step else nullcontext()

    def _batches(self, step: int) -> Iterator[Batch]:
        """This process's micro-batches of a step.

        Steps share one pass over the training split, so that a split that decodes its samples works on the next step's
        during this one. The pass ends before a step at which the split is measured, which takes a pass of its own.
        """
        if self.due[:1] != range(step, step + 1):
            end = min((s for s in self.measured if s > step), default=max(step, self.spec.steps) + 1)
            self.due = range(step, end)
            chunks = (chunk for t in self.due for chunk in self._chunks(t))
            seeds = (derive_seed(self.spec.seed, f"transform/{t}") for t in self.due for _ in self._cuts())
            self.ahead = self.train_split.batches(chunks, seeds=seeds)
        self.due = self.due[1:]
        yield from itertools.islice(self.ahead, len(self._cuts())) if self.due else self.ahead

    def _end_pass(self) -> None:
        """Drop what is loaded ahead: an open pass refers to the run, and its processes live as long as it does."""
        self.ahead, self.due = iter(()), range(0)

    def _chunks(self, step: int) -> list[slice | Tensor]:
        """This process's micro-batches of a step, as slices or index tensors."""
        order = self._order(step)
        return self._cuts() if order is None else [order[c] for c in self._cuts()]

    def _cuts(self) -> list[slice | Tensor]:
        """This process's micro-batches as slices of the batch, the same at every step."""
        return self.group.share(_cut(self.spec.batch_size or len(self.train_split), self.microbatch))

    def _targets(self, step: int) -> Tensor:
        """The targets of a step, of all processes."""
        targets, order = self.train_split.targets, self._order(step)
        return targets if order is None else targets[order.to(targets.device)]

    def _order(self, step: int) -> Tensor | None:
        """The samples of a mini-batch; None for a full batch."""
        size = self.spec.batch_size
        if size is None:
            return None
        # The incomplete last mini-batch of an epoch is dropped, so that every update averages over batch_size samples.
        epoch, position = divmod(step, len(self.train_split) // size)
        order = _permutation(len(self.train_split), derive_seed(self.spec.seed, f"order/{epoch}"))
        return order[position * size : (position + 1) * size]

    def _keep_features(self) -> None:
        """Replace the inputs by the features of a frozen body: the problem becomes a linear one."""
        size = self.train_split.targets.numel() * self.head.in_features * self.head.weight.element_size()
        if size > CACHED_FEATURES:
            return
        if self.train_split.inputs.is_floating_point() and self.train_split.inputs.ndim == 2:
            return  # a linear model: the inputs are the features
        self.model.eval()
        with torch.no_grad(), self._autocast():
            for name in ("train_split", "test_split"):
                split = getattr(self, name)
                if split is not None:
                    parts = [self.body(b.inputs) for b in split.batches(_cut(len(split), self.microbatch))]
                    setattr(self, name, Split(torch.cat(parts), split.targets.flatten()))
        self.body = _identity
        self.microbatch = self.group.portion(len(self.train_split), None)  # its limit was for the memory of the body

    # -- measurements --------------------------------------------------------------------------------------------

    def _steps(self, split: str) -> list[int]:
        return [int(s) for s in self.rows.get(f"{split}/step", [])]

    def _record(self, split: str, step: int, stats: ClassStats) -> None:
        count = stats.count.cpu().numpy().copy()  # running sums change later
        row = {
            "step": np.int64(step),
            "loss": np.float64(stats.overall_loss()),
            "class_loss": stats.mean_loss().cpu().numpy().astype(np.float32),
            "correct": stats.correct.cpu().numpy().astype(np.int32),
            "p_correct": stats.mean_p_correct().cpu().numpy().astype(np.float32),
            "count": count,
        }
        for name, value in row.items():
            self.rows.setdefault(f"{split}/{name}", []).append(np.asarray(value))

    def _probe(self, step: int) -> None:
        due = {n: p for n, (p, steps) in self.probes.items() if step in steps and step not in self._steps(f"probe/{n}")}
        if not due or self.group.rank > 0:  # measuring changes nothing, so one process is enough
            return
        self.model.eval()
        with torch.no_grad(), torch.random.fork_rng(), self._result():
            view = StepView(step, self.model, self.data, self._pairs)
            for name, probe in due.items():
                for key, value in {"step": np.int64(step), **probe.measure(view)}.items():
                    self.rows.setdefault(f"probe/{name}/{key}", []).append(np.asarray(value))

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.train_split.batches(_cut(len(self.train_split), self.microbatch)):
            with self._autocast():
                features = self.body(batch.inputs.to(self.device))
            yield features.to(self.dtype), batch.targets.to(self.device).flatten()  # bfloat16 only inside the body

    # -- persistence ---------------------------------------------------------------------------------------------

    def commit_interrupted(self) -> None:
        """Commit the run as it is after its last complete update."""
        self._commit("interrupted", self.step, self._state())

    def _state(self, *, finished: bool = False) -> dict[str, Array] | None:
        """Return the state to continue from; None except on rank 0, and for a large finished run."""
        if self.group.rank > 0 or (finished and checkpoint.size(self.model, self.optimizer) > KEEP_BYTES):
            return None
        try:
            return checkpoint.pack(self.step, self.model, self.optimizer, self.running)
        except RefusedError as error:
            if not (finished or self.warned):
                _LOG.warning("%s: it will start anew if it is interrupted: %s", self.spec.describe(), error)
                self.warned = True
            return None

    def _commit(self, status: Status, step: int, state: dict[str, Array] | None, ended: str | None = None) -> History:
        arrays: dict[str, Array] = {name: np.stack(values) for name, values in self.rows.items()}
        for split in ("train", "test"):
            # Exact passes see the same samples every time: one row of counts is enough.
            if f"{split}/count" in arrays and not (split == "train" and self.running is not None):
                arrays[f"{split}/count"] = arrays[f"{split}/count"][0]
        arrays["group"] = self.data.groups().index
        arrays["samples"] = self.data.counts.numpy()
        arrays["objective"] = torch.stack(self.objective).cpu().numpy() if self.objective else np.empty(0)
        about = environment(str(self.device)) | {"processes": self.group.size}
        if versions := getattr(registry("optim").make(self.spec.optim), "versions", {}):
            about["optim"] = versions
        history = History(
            self.spec, status, arrays, about, resumed=self.resumed, timing=self._timing(step), ended=ended
        )
        if self.group.rank > 0:
            return history
        self.store.save(history, step=step, checkpoint=state)
        return self.store.load(self.spec) or history

    def _timing(self, step: int) -> dict[str, float]:
        """The wall seconds of all parts of the training, and the steps per second of this one."""
        now = time.monotonic()
        rate = (step - self.start) / max(now - self.looping, 1e-9)
        return {"seconds": round(self.spent + now - self.began, 3), "steps_per_second": float(f"{rate:.4g}")}

    def _resume(self) -> None:
        """Continue from the last commit, if there is one and it is of the same data."""
        found = self.store.load_partial(self.spec)
        if found is None:
            return
        history, step, arrays = found
        counts = self.data.counts.numpy()
        if not np.array_equal(history.arrays.get("samples", counts), counts):
            _LOG.warning("%s: its first %d steps are of other data: training it anew", self.spec.describe(), step)
            return
        self.start = step
        checkpoint.unpack(self.start, arrays, self.model, self.optimizer, self.running)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.resumed = [*history.resumed, {"step": self.start, "at": now}]
        self.spent = history.timing.get("seconds", 0.0)
        for name, value in history.arrays.items():
            if name == "objective":
                self.objective = list(torch.from_numpy(value[: self.start].copy()).to(self.sums_device))
            elif name in ("train/count", "test/count") and value.ndim == 1:
                self.rows[name] = [value] * len(history.arrays[name.replace("count", "step")])
            elif name not in ("group", "samples"):
                self.rows[name] = list(value)


def _check_shared(group: Group, step: int, store: RunStore) -> None:
    """Raise if the processes of a group do not see the same step, in files that all of them must share."""
    if not group.same(step):
        raise StoreError(
            f"--root {store.root}: expected one folder that all processes share, but they see different commits of "
            "this run; repeat the command if another machine has just written there"
        )


@functools.lru_cache(maxsize=2)
def _load(part: str, seed: int, data_dir: Path) -> Data:
    from heavytail.experiment.registry import Component

    data: Data = registry("data").make(Component.parse(json.loads(part), "data")).load(seed=seed, data_dir=data_dir)
    return data


def build_optimizer(spec: RunSpec, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of a run for the parameters of a model that train.

    Raises:
        RefusedError: the optimizer cannot train one of them; it and the parameter are named.
    """
    recipe = registry("optim").make(spec.optim)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    optimizer: torch.optim.Optimizer
    try:
        if hasattr(recipe, "build_for"):
            optimizer = recipe.build_for(model, spec.lr)
        else:
            optimizer = recipe.build([p for _, p in named], spec.lr)
    except HeavyTailError:
        raise
    except Exception as error:
        refused = f"optim '{spec.optim.name}' cannot train {_refused(recipe, named, spec.lr)}"
        raise RefusedError(f"{refused}: {reason(error)}") from error
    return optimizer


def _averaging(optimizer: torch.optim.Optimizer) -> list[Any]:
    """The parts of an optimizer whose result is not the point of its gradients (schedule-free): they have modes."""
    parts = checkpoint.parts(optimizer)
    return [part for part in parts if callable(getattr(part, "eval", None)) and callable(getattr(part, "train", None))]


@contextmanager
def _averaged(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Put the optimizer's result into the parameters for an evaluation, and then the same bits as before."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    before = [p.detach().clone() for p in parameters]
    for part in _averaging(optimizer):
        part.eval()
    try:
        yield
    finally:
        for part in _averaging(optimizer):
            part.train()
        with torch.no_grad():
            torch._foreach_copy_(parameters, before)


def _refused(recipe: Any, named: list[tuple[str, nn.Parameter]], lr: float) -> str:
    """The first parameter that an optimizer refuses on its own."""
    for name, parameter in named:
        try:
            recipe.build([parameter], lr)
        except Exception:
            return f"parameter '{name}' {list(parameter.shape)}"
    return f"these {len(named)} parameters at step size {lr:.3g}"


def load_data(spec: RunSpec, data_dir: Path) -> Data:
    """Return the data of a run; the last two data sets are cached, as most runs differ only in step size."""
    spec = spec.resolved
    assert spec.data_seed is not None
    part = json.dumps(spec.data.to_dict(), sort_keys=True)
    return _load(part, derive_seed(spec.data_seed, "data"), data_dir)


def build_model(spec: RunSpec, data: Data) -> nn.Module:
    """Return the model of a run at its initial point."""
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(spec.seed, "init"))
        model: nn.Module = registry("model").make(spec.model).build(data)
    return model


class _numerics:  # noqa: N801 - a context manager
    """Set torch's global precision and denormal flags for one run, and restore them."""

    def __init__(self, spec: RunSpec) -> None:
        self._precision = "high" if spec.precision == "tf32" else "highest"

    def __enter__(self) -> None:
        self._before = torch.get_float32_matmul_precision()
        self._flushed = _flushes_denormal()
        torch.set_float32_matmul_precision(self._precision)
        torch.set_flush_denormal(True)  # diverging runs are full of denormals, several times slower each

    def __exit__(self, *_: object) -> None:
        torch.set_float32_matmul_precision(self._before)
        torch.set_flush_denormal(self._flushed)


def _flushes_denormal() -> bool:
    """Whether torch flushes denormals to zero; torch has no getter for this."""
    smallest = torch.tensor(torch.finfo(torch.float64).tiny, dtype=torch.float64)
    return bool(smallest * 0.5 == 0)


def _cut(total: int, size: int | None) -> list[slice | Tensor]:
    size = total if size is None else size
    return [slice(i, min(i + size, total)) for i in range(0, total, size)]


@functools.lru_cache(maxsize=2)
def _permutation(total: int, seed: int) -> Tensor:
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))


def _identity(features: Tensor) -> Tensor:
    return features


def _is_step(name: str) -> bool:
    return name.endswith("/step")


def _frozen_body(model: nn.Module) -> bool:
    return all(name.startswith("head.") for name, p in model.named_parameters() if p.requires_grad)


def differs_in_training(model: nn.Module) -> bool:
    """Whether a pass in training mode differs from one in eval mode: dropout, batch normalisation."""
    return any(isinstance(m, BATCH_NORM) or (isinstance(m, nn.Dropout) and m.p > 0) for m in model.modules())


def gradient_pass_evaluates(spec: RunSpec, model: nn.Module, train: Split) -> bool:
    """Whether the losses of the gradient pass are those of evaluation.

    They are for a full batch without dropout, batch normalisation and random transforms.
    """
    return spec.batch_size is None and not differs_in_training(model) and not train.augmented
