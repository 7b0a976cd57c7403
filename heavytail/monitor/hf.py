"""MonitorCallback: the monitor inside `transformers.Trainer` and what derives from it (Seq2SeqTrainer, TRL).

    Trainer(..., callbacks=[MonitorCallback(num_groups=10, every=50)])

The callback observes `compute_loss`: the labels as the Trainer hands them over, before label smoothing or a fused loss
takes them away, and the model's own logits; where a model forms none (Liger, TRL's fused head), the inputs of its head.
It never takes part in the loss, so training is the same with and without it.

Shapes: B batch, L sequence, M rows, D features, C classes, G groups.
"""

from __future__ import annotations

import base64
import functools
import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from heavytail.errors import SpecError
from heavytail.monitor.alarms import Alarm, Alarms
from heavytail.monitor.head_watch import HeadWatch, whole
from heavytail.monitor.hooks import Hook, first_input
from heavytail.monitor.journal import Journal, written
from heavytail.monitor.monitor import Monitor, Reading
from heavytail.monitor.ranks import Stoppable, on_one_rank, sum_over_ranks

__all__ = ["FrequencyLoss", "MonitorCallback"]

_log = logging.getLogger("heavytail")
_IGNORED = -100  # of transformers' losses
_CHUNK = 2**22  # logits formed at a time where the model forms none
Transform = Callable[[Tensor], Tensor]


class Inputs(NamedTuple):
    """What a head computes logits from."""

    features: Tensor  # [..., D]
    weight: Tensor  # [C, D]
    bias: Tensor | None  # [C]


class Rows(NamedTuple):
    """Logits of a batch, formed a part at a time."""

    number: int
    dtype: torch.dtype
    logits: Callable[[slice], Tensor]  # of some rows [R, C]
    plain: Callable[[slice], Tensor] | None  # the same before `transform`; None where the model formed the logits


class MonitorCallback(Stoppable, TrainerCallback, ExportableState):  # type: ignore[misc]
    """Adds loss, accuracy, p(correct) and share by frequency group to what the Trainer logs.

    Training is logged as "loss/group_01" ... "loss/all", over the measured steps since the last log; an evaluation
    under the Trainer's own prefix, "eval_loss/group_01", over the whole set, which takes the groups of training.
    The first batch is checked against the model's own loss; on a mismatch the callback logs a diagnosis and stops
    measuring, while training goes on; so it does on any other error of its own. A checkpoint keeps the sums and counts
    of all ranks. There are hooks on the model only while the Trainer trains or evaluates.

    Args:
        num_classes: size of the head; by default that of the model.
        every: measure every so many optimizer steps, from the first.
        head: also measure gradient norm, Hessian trace and update norm of the head's rows, at those steps.
        shift: whether position l predicts the label of position l + 1; by default as the model's class does.
        transform: function of a chunk of logits [R, C], where the model forms none: its softcap or scale. By default
            the one in the model's configuration (`final_logit_softcapping`, `logit_scale`, `logits_scaling`).
        check: whether to compare the first batch with the model's own loss.
        journal: also write the readings there, for `heavytail monitor FOLDER`.
        on_alarm: called with each `Alarm`; they are logged as warnings in any case.
        **settings: of `Monitor`, such as `counts`, `groups`, `num_groups`, `tokenizer`.

    Attributes:
        stopped: why it does not measure, or None.
        readings: the last reading by split: "train", "eval", ...
    """

    def __init__(
        self,
        num_classes: int | None = None,
        *,
        every: int = 1,
        head: bool = False,
        shift: bool | None = None,
        transform: Transform | None = None,
        check: bool = True,
        journal: Journal | None = None,
        on_alarm: Callable[[Alarm], object] | None = None,
        **settings: Any,
    ) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise SpecError(f"every: expected at least 1, got {every}")
        settings = {"ignore_index": _IGNORED} | settings
        Monitor(*_size(num_classes, settings), **settings)  # refuses bad settings now, not at the first batch
        self.num_classes, self.settings = num_classes, settings
        self.every, self.head, self.shift, self.transform, self.check = every, head, shift, transform, check
        self.journal = journal
        self.alarms = Alarms(on_alarm)
        self.readings: dict[str, Reading] = {}
        self.train: Monitor | None = None
        self.test: Monitor | None = None
        self._trainer: Trainer | None = None
        self._hooks = Hook(None, self._keep_inputs), Hook(None, self._keep_output)
        self._hooked = False
        self._patched: dict[str, tuple[Any, Any]] = {}  # methods of the Trainer: ours, and what was its own
        self._watch: HeadWatch | None = None
        self._armed = False  # whether the next compute_loss is measured
        self._checked = not check
        self._hidden: dict[str, Tensor] = {}  # inputs of the head, and the body's output, in this forward pass
        self._restored: dict[str, Any] | None = None
        self._summed: dict[str, Any] | None = None  # over the ranks, while a checkpoint is written

    # -- events of the Trainer -----------------------------------------------------------------------------------

    def attach(self, trainer: Trainer) -> MonitorCallback:
        """Observe a Trainer; one that got this callback in `callbacks` needs no call."""
        if trainer is self._trainer:
            return self
        self._trainer = trainer
        if self not in trainer.callback_handler.callbacks:
            trainer.add_callback(self)
        self._patched = {}
        for name, observe in (
            ("train", self._training),
            ("compute_loss", self._loss),
            ("evaluation_loop", self._evaluation),
            ("log", self._logs),
            ("_save_checkpoint", self._saving),
        ):
            original = getattr(trainer, name)
            patch = functools.wraps(original)(functools.partial(observe, original))
            self._patched[name] = patch, trainer.__dict__.get(name)
            setattr(trainer, name, patch)
        return self

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Find the Trainer that is being made, which callbacks are not given."""
        self._find_trainer()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Continue from a checkpoint."""
        self._find_trainer()
        self._hook()  # by now the Trainer has made its model; if the callback was added late, it sees it only here
        with self._guarded("the checkpoint's sums"):
            saved = state.stateful_callbacks.get(type(self).__name__) if state.global_step else None
            if isinstance(saved, list):
                saved = saved[0] if saved else None
            if saved and saved["attributes"].get("sums"):
                sums = io.BytesIO(base64.b64decode(saved["attributes"]["sums"]))
                self._restored = torch.load(sums, map_location="cpu", weights_only=True)
                self._make_monitors(len(self._restored["train"]["count"]))

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Decide whether this optimizer step, with all its micro-batches, is measured."""
        self._armed = self.stopped is None and state.global_step % self.every == 0
        if self.stopped is None and not self._hooked:  # after a forward pass that raised, and was caught
            self._hook()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Keep the head's weight, to measure its update."""
        if self._watch is not None and self._armed:
            with self._guarded():
                self._watch._before_step()

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Measure the head's update."""
        if self._watch is not None and self._armed and self._watch._before is not None:
            with self._guarded():
                self._watch._after_step()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stop measuring until the next step."""
        self._armed = False

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Leave the model as it was."""
        self._unhook()

    def state(self) -> dict[str, Any]:
        """Return the sums, for trainer_state.json: of all ranks in a checkpoint, else of this one."""
        sums = ""
        with self._guarded():
            kept = self._sums() if self._summed is None else self._summed
            if kept:
                buffer = io.BytesIO()
                torch.save(kept, buffer)
                sums = base64.b64encode(buffer.getvalue()).decode()
        return {"args": {}, "attributes": {"sums": sums}}

    # -- what stands around the Trainer's own methods ------------------------------------------------------------

    def _loss(self, original: Any, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        training = torch.is_grad_enabled() and model.training
        labels = inputs.get("labels") if isinstance(inputs, Mapping) else None
        shifted = inputs.get("shift_labels") if isinstance(inputs, Mapping) else None
        if self._off():
            return original(model, inputs, *args, **kwargs)
        if labels is None or (training and not self._armed):
            with self._guarded():
                if labels is None and training and self._armed:
                    got = ", ".join(map(str, inputs)) if isinstance(inputs, Mapping) else type(inputs).__name__
                    raise SpecError(f"labels: expected them in the batch, got {got}")
                if labels is not None and self.train is not None:
                    self.train.count(self._align(_classes(labels), shifted))
            return original(model, inputs, *args, **kwargs)
        outputs: list[Any] = []
        handle = model.register_forward_hook(lambda module, given, result: outputs.append(result))
        self._hidden.clear()
        self._armed = True
        try:
            result = original(model, inputs, *args, **kwargs)
        except BaseException:
            self._unhook()
            raise
        finally:
            handle.remove()
            self._armed = training
        with self._guarded(), torch.no_grad():
            loss = result[0] if isinstance(result, tuple) else result
            self._measure(loss.detach(), labels, shifted, outputs, kwargs.get("num_items_in_batch"), training)
        self._hidden.clear()
        return result

    def _training(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        if self._removed():
            return original(*args, **kwargs)
        with self._hooks_added():
            return original(*args, **kwargs)

    def _evaluation(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        prefix = kwargs.get("metric_key_prefix", args[4] if len(args) > 4 else "eval")
        if self._removed():
            return original(*args, **kwargs)
        armed = self._armed
        with self._guarded():
            if self.test is not None:
                self.test.reset()
        try:
            with self._hooks_added():
                output = original(*args, **kwargs)
        finally:
            self._armed = armed
        if self._removed() or not self._together(self.settings) or self.test is None:
            return output
        output.metrics.update(self._read(self.test, prefix, f"{prefix}_"))
        return output

    def _logs(self, original: Any, logs: dict[str, float], *args: Any, **kwargs: Any) -> Any:
        if "loss" in logs and "learning_rate" in logs and not self._removed() and self._together(self.settings):
            logs = logs | ({} if self.train is None else self._read(self.train, "train", ""))
        return original(logs, *args, **kwargs)

    def _saving(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        """Sum over the ranks: all write a checkpoint, but only the first its state."""
        if not self._removed() and self._together(self.settings):
            with self._guarded():
                group = self.settings.get("process_group")
                self._summed = {split: sum_over_ranks(sums, group) for split, sums in self._sums().items()}
        try:
            return original(*args, **kwargs)
        finally:
            self._summed = None

    # -- pieces --------------------------------------------------------------------------------------------------

    def _off(self) -> bool:
        """Whether it is to leave everything alone: stopped, or removed from the Trainer."""
        return self._removed() or self.stopped is not None

    def _removed(self) -> bool:
        """Whether it was removed from the Trainer, which then gets its methods back."""
        if self._trainer is not None and self in self._trainer.callback_handler.callbacks:
            return False
        self._detach()
        return True

    def _detach(self) -> None:
        """Undo `attach`, unless another one has wrapped what this one has."""
        self._unhook()
        own = {} if self._trainer is None else self._trainer.__dict__
        if all(own.get(name) is patch for name, (patch, _) in self._patched.items()):
            for name, (_, before) in self._patched.items():
                del own[name]
                if before is not None:
                    own[name] = before
            self._trainer, self._patched = None, {}

    def _stop(self, reason: str) -> None:
        super()._stop(reason)
        self._armed = False

    def _find_trainer(self) -> None:
        """Attach to the Trainer up the stack: it calls its callbacks without naming itself."""
        frame = sys._getframe(1)
        while frame is not None:
            caller = frame.f_locals.get("self")
            if isinstance(caller, Trainer):
                if caller is not self._trainer:
                    before = getattr(getattr(caller.compute_loss, "func", None), "__self__", None)
                    if isinstance(before, MonitorCallback) and before not in caller.callback_handler.callbacks:
                        # restore_callback_states_from_checkpoint made this one anew, with no settings.
                        before.__dict__.update(sums=getattr(self, "sums", ""))
                        handler = caller.callback_handler.callbacks
                        handler[handler.index(self)] = before
                        self.__dict__ = before.__dict__
                    else:
                        self.attach(caller)
                return
            frame = frame.f_back  # type: ignore[assignment]

    @contextmanager
    def _hooks_added(self) -> Iterator[None]:
        """Hooks on the model for as long as the Trainer trains or evaluates."""
        outermost = not self._hooked
        if outermost:
            self._hook()
        try:
            yield
        finally:
            if outermost:
                self._unhook()

    def _hook(self) -> None:
        """Keep what the head is given. Added before any compilation, as compiled code does not see later hooks."""
        with self._guarded():
            if self._trainer is None:
                raise SpecError("trainer: expected transformers.Trainer, or a class derived from it, got another one")
            model = self._trainer.model
            for hook, module in zip(self._hooks, (_head(model), _body(model)), strict=True):
                if module is not None and module is not model:
                    hook.add(module)
            self._hooked = True

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooked = False
        self._hidden.clear()

    def _keep_inputs(self, args: tuple[Any, ...], result: Any) -> None:
        if self._armed and (given := first_input(args)) is not None:
            self._hidden["head"] = given

    def _keep_output(self, args: tuple[Any, ...], result: Any) -> None:
        if self._armed:
            last = result[0] if isinstance(result, tuple | list) else getattr(result, "last_hidden_state", None)
            if isinstance(last, Tensor):
                self._hidden["body"] = last.detach()

    def _sums(self) -> dict[str, dict[str, Tensor]]:
        """What this rank has summed, if anything."""
        monitors = {"train": self.train, "test": self.test}
        return {split: monitor.state_dict() for split, monitor in monitors.items() if monitor is not None}

    def _measure(
        self, loss: Tensor, labels: Tensor, shifted: Tensor | None, outputs: list[Any], items: Any, training: bool
    ) -> None:
        """Add the rows of a batch, after checking the first one against the loss of the model."""
        assert self._trainer is not None
        targets = self._align(_classes(labels), shifted)
        logits = _logits(outputs, targets)
        inputs = self._head_inputs(targets) if logits is None or self.head else None
        if logits is not None:
            num_classes = logits.shape[-1]
            flat = logits.reshape(-1, num_classes)
            rows = Rows(len(flat), flat.dtype, lambda part: flat[part], None)
        else:
            assert inputs is not None
            num_classes, rows = len(inputs.weight), self._rows(inputs)
        if self.train is None or self.test is None:
            self._make_monitors(num_classes)
        assert self.train is not None
        assert self.test is not None
        if self.train.num_classes != num_classes:
            raise SpecError(
                f"num_classes: expected {num_classes}, the size of the model's head, got {self.train.num_classes}, "
                "that of the sums so far"
            )
        if not self._checked:
            self._checked = True
            self._compare(loss, targets, labels, rows, outputs, items)
        monitor = self.train if training else self.test
        flat_targets = (targets if training else self._without_repeats(targets)).reshape(-1)
        step = rows.number if logits is not None else max(1, _CHUNK // num_classes)
        for start in range(0, rows.number, max(1, step)):
            part = slice(start, start + step)
            monitor.update(rows.logits(part), flat_targets[part])
        if training and self.head:
            assert inputs is not None
            self._watch_head(inputs.features, targets)

    def _rows(self, inputs: Inputs) -> Rows:
        """Logits of the head's inputs as the model would form them, a part at a time."""
        features = inputs.features.reshape(-1, inputs.features.shape[-1])
        weight, bias, transform = inputs.weight, inputs.bias, self.transform

        def plain(part: slice) -> Tensor:
            h = features[part]
            dtype = min(h.dtype, weight.dtype, key=lambda dtype: dtype.itemsize)  # of autocast, or of the weight
            chunk = F.linear(h.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
            return chunk.float() if chunk.dtype.itemsize < 4 else chunk

        logits = plain if transform is None else lambda part: transform(plain(part))
        return Rows(len(features), features.dtype, logits, plain)

    def _head_inputs(self, targets: Tensor) -> Inputs:
        """What the head was given in this forward pass.

        Raises:
            SpecError: it is no Linear, or its inputs were not seen or do not match the labels.
        """
        assert self._trainer is not None
        head = _head(self._trainer.model)
        features = self._hidden.get("head", self._hidden.get("body"))
        problem = None
        if not isinstance(head, nn.Linear):
            problem = f"expected a Linear output embedding, got {type(head).__name__}"
        elif features is None:
            problem = "its inputs were not seen; under torch.compile, add the callback before compiling"
        elif features.shape[:-1] != targets.shape:
            problem = f"expected an input for each label {list(targets.shape)}, got {list(features.shape[:-1])}"
        elif head.weight.numel() == 0:
            problem = "its weight is partitioned (ZeRO-3), which the monitor does not gather"
        if problem is not None:
            raise SpecError(f"head: {problem}")
        assert features is not None
        assert isinstance(head, nn.Linear)
        if self.transform is None:
            self.transform = _configured_transform(self._trainer.model)
        return Inputs(features, whole(head.weight), None if head.bias is None else head.bias.detach())

    def _watch_head(self, features: Tensor, targets: Tensor) -> None:
        assert self.train is not None
        assert self._trainer is not None
        if self._watch is None:
            head = _head(self._trainer.model)
            assert isinstance(head, nn.Linear)
            self._watch = HeadWatch(head)
            self._watch._handles[0].remove()  # the inputs come from this callback's own hook
        index = targets.reshape(-1).masked_fill(targets.reshape(-1) == _IGNORED, -1)
        self._watch._inputs = features
        self._watch.add(index)

    def _align(self, labels: Tensor, shifted: Tensor | None) -> Tensor:
        """The target of each position; shifting these leaves the logits, far larger, where they are."""
        if shifted is not None:
            return shifted
        if self.shift is None:
            assert self._trainer is not None
            self.shift = _is_causal(self._trainer.model)
        return _shift(labels) if self.shift and labels.ndim > 1 else labels

    def _without_repeats(self, targets: Tensor) -> Tensor:
        """Ignore samples that the sampler repeats to fill the last batch of all ranks, as `gather_for_metrics` does."""
        assert self._trainer is not None
        state = self._trainer.accelerator.gradient_state
        if not state.end_of_dataloader or state.remainder <= 0:
            return targets
        kept = state.remainder - self._trainer.accelerator.process_index * len(targets)
        if kept >= len(targets):
            return targets
        targets = targets.clone()
        targets[max(0, kept) :] = _IGNORED
        return targets

    def _make_monitors(self, num_classes: int) -> None:
        if self.train is None or self.test is None:
            classes = self.num_classes or num_classes
            if classes != num_classes:
                raise SpecError(f"num_classes: expected {num_classes}, the size of the model's head, got {classes}")
            self.train = Monitor(classes, **self.settings)
            kept = ("ignore_index", "accuracy", "top_k", "tokenizer", "process_group")
            self.test = Monitor(groups=self.train, **{k: v for k, v in self.settings.items() if k in kept})
        if self._restored is not None:
            group = self.settings.get("process_group")
            self.train.load_state_dict(on_one_rank(self._restored["train"], group))
            self.test.load_state_dict(on_one_rank(self._restored["test"], group))
            self._restored = None

    def _read(self, monitor: Monitor, split: str, prefix: str) -> dict[str, float]:
        """What to log of the reading of a monitor, written to the journal; nothing without rows."""
        entries: dict[str, float] = {}
        with self._guarded():
            assert self._trainer is not None
            if monitor is self.train:
                monitor._watch = self._watch
            reading = monitor.compute()
            monitor.reset()
            monitor._watch = None  # its targets are added here, not by `update`
            if reading.count.sum() or reading.nonfinite.sum():
                self.readings[split] = reading
                entries = _entries(reading, prefix)
                state = self._trainer.state
                if state.is_world_process_zero:
                    self.journal = written(self.journal, state.global_step, reading, split)
                    self.alarms.check(state.global_step, reading, split)
        return entries

    # -- the first batch -----------------------------------------------------------------------------------------

    def _compare(
        self, loss: Tensor, targets: Tensor, labels: Tensor, rows: Rows, outputs: list[Any], items: Any
    ) -> None:
        """Raise with a diagnosis if the mean loss of the rows is not the model's own, as far as that is known."""
        trainer = self._trainer
        assert trainer is not None
        args = trainer.args
        if trainer.compute_loss_func is not None or getattr(args, "loss_type", "nll") != "nll":
            _log.info("the monitor measures cross-entropy; the loss of training is another one and is not compared")
            return
        own = float(loss) - _auxiliary(trainer.model, outputs)
        smoothing = args.label_smoothing_factor if trainer.label_smoother is not None else 0.0
        processes = trainer.accelerator.num_processes if args.average_tokens_across_devices else 1
        total = None if items is None else float(items) / processes  # of all micro-batches and ranks
        half = args.bf16 or args.fp16 or loss.dtype.itemsize < 4 or rows.dtype.itemsize < 4
        tolerance = (2e-2 if half else 5e-4) * max(abs(own), 1.0)

        def candidates(targets: Tensor, form: Callable[[slice], Tensor]) -> list[float]:
            """The mean over this batch, and that over all micro-batches."""
            losses = _sum_losses(form, targets.reshape(-1), smoothing)
            return [losses / n for n in (total, float((targets != _IGNORED).sum())) if n]

        def fits(targets: Tensor, form: Callable[[slice], Tensor]) -> bool:
            return any(abs(value - own) <= tolerance for value in candidates(targets, form))

        mine = candidates(targets, rows.logits)
        if not mine or any(abs(value - own) <= tolerance for value in mine):
            return
        guesses = []
        if labels.ndim > 1 and fits(labels if self.shift else _shift(labels), rows.logits):
            guesses.append(f"labels that are {'not ' if self.shift else ''}shifted: pass shift={not self.shift}")
        if rows.plain is not None and self.transform is not None and fits(targets, rows.plain):
            guesses.append("logits without the softcap or scale: pass transform=lambda logits: logits")
        if rows.plain is not None:
            guesses.append("logits that the model caps, scales, pads or cuts: pass transform=")
        guesses.append("a loss with more terms than cross-entropy: pass check=False to measure the latter")
        also = f" (or {'; or '.join(guesses[1:])})" if guesses[1:] else ""
        raise SpecError(
            f"the cross-entropy of the first batch is {mine[0]:.5g}, the model's own loss {own:.5g}; this looks like "
            f"{guesses[0]}{also}"
        )


class FrequencyLoss(MonitorCallback):
    """The former name of `MonitorCallback`, kept for one release; it no longer computes the loss of training."""

    def __init__(self, num_classes: int | None = None, **settings: Any) -> None:
        warnings.warn("FrequencyLoss is now MonitorCallback, passed as callbacks=[...]", FutureWarning, stacklevel=2)
        super().__init__(num_classes, **settings)

    def attach(self, trainer: Trainer, *, through: str | None = None) -> FrequencyLoss:
        """Observe a Trainer; `through` has no effect any more."""
        if through not in (None, "loss", "hook"):
            raise SpecError(f"through: expected 'loss' or 'hook', got '{through}'")
        super().attach(trainer)
        return self


def _size(num_classes: int | None, settings: Mapping[str, Any]) -> tuple[int]:
    """A number of classes that lets `Monitor` check the other settings before the head is known."""
    if num_classes is not None:
        return (num_classes,)
    for name in ("counts", "groups"):
        value = settings.get(name)
        if isinstance(value, Mapping):
            members = value if name == "counts" else [k for ids in value.values() for k in ids]
            return (1 + max((int(k) for k in members), default=0),)
        if value is not None and not isinstance(value, str):
            return (getattr(value, "num_classes", None) or len(value),)
    return (1,)


def _entries(reading: Reading, prefix: str) -> dict[str, float]:
    """What to log. Totals are "loss/all": "eval_accuracy" would be another metric to select the best model by."""
    table = reading.to_dict(prefix)
    return {name if "/" in name else f"{name}/all": value for name, value in table.items()}


def _classes(labels: Any) -> Tensor:
    """The labels, if they are of a classification."""
    if not isinstance(labels, Tensor):
        raise SpecError(f"labels: expected a tensor of classes, got {type(labels).__name__}")
    if labels.is_floating_point():
        raise SpecError(f"labels: expected classes, got {labels.dtype}; the monitor is for classification losses")
    return labels


def _shift(labels: Tensor) -> Tensor:
    return F.pad(labels, (0, 1), value=_IGNORED)[..., 1:]


def _unwrapped(model: nn.Module) -> nn.Module:
    """The transformers model under PEFT's wrapper."""
    get = getattr(model, "get_base_model", None)
    return get() if get is not None else model


def _is_causal(model: nn.Module) -> bool:
    """Whether the model's loss shifts labels, as that of a causal language model does."""
    model = _unwrapped(model)
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return False
    kind, name = getattr(model, "loss_type", None), type(model).__name__
    if kind is not None:
        return bool(kind == "ForCausalLM")
    return name.endswith(("ForCausalLM", "LMHeadModel"))


def _head(model: nn.Module) -> nn.Module | None:
    """The output embedding, or the only Linear that a classifier adds to its body."""
    model = _unwrapped(model)
    get = getattr(model, "get_output_embeddings", None)
    head = get() if get is not None else None
    for name in ("lm_head", "classifier", "score", "head"):
        head = getattr(model, name, None) if head is None else head
    return head if isinstance(head, nn.Module) else None


def _body(model: nn.Module) -> nn.Module | None:
    body = getattr(_unwrapped(model), "base_model", None)
    return body if isinstance(body, nn.Module) else None


def _logits(outputs: list[Any], targets: Tensor) -> Tensor | None:
    """The logits [..., C] of the last forward pass that has some for each target; None if it formed none."""
    for output in reversed(outputs):
        candidates = [output.get("logits")] if isinstance(output, Mapping) else output
        for value in candidates if isinstance(candidates, list | tuple) else [candidates]:
            fits = isinstance(value, Tensor) and value.is_floating_point() and value.ndim == targets.ndim + 1
            if fits and value.shape[:-1] == targets.shape:
                found: Tensor = value.detach()
                return found
    return None


def _auxiliary(model: nn.Module, outputs: list[Any]) -> float:
    """The router's loss in the model's own, where it says."""
    weight = getattr(getattr(_unwrapped(model), "config", None), "router_aux_loss_coef", None)
    value = outputs[-1].get("aux_loss") if outputs and isinstance(outputs[-1], Mapping) else None
    return float(weight) * float(value) if weight and value is not None else 0.0


def _configured_transform(model: nn.Module) -> Transform | None:
    """The softcap or scale of logits in the configuration of a transformers model."""
    config = getattr(_unwrapped(model), "config", None)
    cap = getattr(config, "final_logit_softcapping", None)
    times, over = getattr(config, "logit_scale", None), getattr(config, "logits_scaling", None)
    if cap:
        return lambda logits: cap * torch.tanh(logits / cap)
    if isinstance(times, int | float):
        return lambda logits: logits * times
    if isinstance(over, int | float):
        return lambda logits: logits / over
    return None


def _sum_losses(form: Callable[[slice], Tensor], targets: Tensor, smoothing: float) -> float:
    """Sum of the (smoothed) losses over rows that are not ignored."""
    total = 0.0
    for start in range(0, len(targets), 512):
        part = slice(start, start + 512)
        log_p = form(part).float().log_softmax(1)
        y = targets[part].to(log_p.device)
        losses = -log_p.gather(1, y.clamp(min=0)[:, None])[:, 0]
        losses = (1 - smoothing) * losses - smoothing * log_p.mean(1)
        total += float(losses[y != _IGNORED].double().sum())
    return total
