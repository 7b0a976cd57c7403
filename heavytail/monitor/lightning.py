"""MonitorCallback: the monitor as a Lightning callback.

    trainer = lightning.Trainer(callbacks=[MonitorCallback(head="head", every=50)])

The callback watches the head by a hook: the inputs and the weight of its last forward pass, kept before an optimizer
changes it, give the losses, and the targets are the last entry of the batch, or `targets=` of it. A module whose steps
return {"loss": ..., "logits": ..., "targets": ...} (or "losses", per row) needs no head. In either case the module's
loss is left alone.

Readings go to every logger of the Trainer under their own step: "train/loss/group_01", "val/loss/group_01" and so on.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from heavytail.errors import SpecError
from heavytail.monitor.alarms import Alarm, Alarms
from heavytail.monitor.head_watch import whole
from heavytail.monitor.hooks import Hook, first_input, recomputing
from heavytail.monitor.journal import Journal, written
from heavytail.monitor.monitor import Monitor, Reading
from heavytail.monitor.ranks import Stoppable, on_one_rank, sum_over_ranks

__all__ = ["FrequencyLoss", "MonitorCallback"]

_log = logging.getLogger("heavytail")
_CHUNK = 2**22  # logits formed at a time


class MonitorCallback(Stoppable, Callback):  # type: ignore[misc]
    """Logs loss, accuracy, p(correct) and share by frequency group.

    Training values cover the measured steps since the last reading, evaluations their whole loader, on all ranks; they
    take the groups of training. Several loaders of an evaluation have a reading each: "val_0", "val_1" and so on.
    On an error of its own, or if a split gives it nothing to measure, it logs the reason and stops measuring, while
    training goes on. A checkpoint keeps the sums and counts of all ranks.

    Args:
        num_classes: size of the head; by default the number of rows of its weight.
        head: name of the classifier, a Linear inside the module, such as "model.lm_head"; None if the steps return
            logits or losses beside the loss.
        targets: function from a batch to the targets of the head's inputs [...]; by default the batch's last entry.
        every: measure every so many optimizer steps.
        every_n_steps: steps between readings of training; by default as often as the Trainer logs.
        name: prefix of everything it logs, needed for two instances.
        journal: also write the readings there, for `heavytail monitor FOLDER`.
        on_alarm: called with each `Alarm`; they are logged as warnings in any case.
        **settings: of `Monitor`, such as `counts`, `groups`, `num_groups`.

    Attributes:
        train: monitor of training, made at the first batch if `num_classes` is not given.
        stopped: why it does not measure, or None.
        readings: the last reading by split: "train", "val", "test".
    """

    def __init__(
        self,
        num_classes: int | None = None,
        *,
        head: str | None = None,
        targets: Callable[[Any], Tensor] | None = None,
        every: int = 1,
        every_n_steps: int | None = None,
        name: str = "",
        journal: Journal | None = None,
        on_alarm: Callable[[Alarm], object] | None = None,
        **settings: Any,
    ) -> None:
        for field, value in (("every", every), ("every_n_steps", every_n_steps)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise SpecError(f"{field}: expected at least 1, got {value}")
        self.head, self.targets, self.every, self.every_n_steps, self.name = head, targets, every, every_n_steps, name
        self.journal = journal
        self.alarms = Alarms(on_alarm)
        self.readings: dict[str, Reading] = {}
        self._settings = settings
        self._tests: dict[str, Monitor] = {}
        self.train: Monitor | None = None
        if num_classes is not None or settings.get("counts") is not None or settings.get("groups") is not None:
            self.train = Monitor(num_classes, **settings)
        self._linear: nn.Linear | None = None
        self._handle: Any = None
        self._inputs: Tensor | None = None  # of the head, in its last forward pass
        self._versions: list[tuple[str, nn.Parameter, int]] = []  # of its parameters in that pass
        self._parameters: tuple[Tensor, Tensor | None] | None = None  # kept, where an optimizer has changed them since
        self._measured: set[str] = set()  # splits
        self._missed: set[str] = set()  # splits with batches that gave nothing to measure
        self._logged = self._steps = 0
        self._last_global = 0

    @property
    def state_key(self) -> str:
        """Of its state in checkpoints; two instances differ in `name`."""
        return f"{type(self).__qualname__}{{name: {self.name}}}" if self.name else type(self).__qualname__

    # -- events of the Trainer -----------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Add the hook to the head, before anything is compiled or wrapped."""
        if self.head is None:
            return
        modules = dict(pl_module.named_modules())
        linear = modules.get(self.head)
        if self._handle is not None and linear is self._linear:
            return
        self.teardown(trainer, pl_module, stage)  # of another module, whose training has failed
        if not isinstance(linear, nn.Linear):
            known = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
            raise SpecError(
                f"head: expected a Linear of the module ({', '.join(known) or 'it has none'}), got {self.head}"
            )
        self._linear = linear
        self._handle = Hook(linear, self._keep)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove the hook."""
        if self._handle is not None:
            self._handle.remove()
        self._handle = None
        self._forget()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the hook: Lightning tears nothing down after an exception."""
        self.teardown(trainer, pl_module, "")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Forget inputs of the head that another forward pass left."""
        self._forget()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Keep the head's weight where steps may be taken past Lightning."""
        if not pl_module.automatic_optimization:
            self._keep_parameters()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Keep the head's weight of the forward pass."""
        self._keep_parameters()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the batch, and log if it is time."""
        if self._steps % self.every == 0:
            self._add("train", outputs, batch, skipped=not outputs and pl_module.automatic_optimization)
        self._forget()
        step = trainer.global_step  # unchanged by a batch that only accumulates gradients
        if step > self._last_global:
            # With several optimizers it advances by more than one: the batches count, as the loggers do.
            self._last_global = step
            self._steps += 1
            if self._steps % (self.every_n_steps or trainer.log_every_n_steps or 1) == 0:
                self._read(trainer, "train")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the rest of the epoch."""
        self._check_measured("train")
        self._read(trainer, "train")

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add the batch."""
        self._add(_split("val", trainer.val_dataloaders, dataloader_idx), outputs, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the validation; the one before training, which has no groups yet, is dropped."""
        for split in _splits("val", trainer.val_dataloaders):
            if not trainer.sanity_checking:
                self._check_measured(split)
                self._read(trainer, split)
            elif split in self._tests:
                with self._guarded():
                    self._tests[split].reset()

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add the batch."""
        self._add(_split("test", trainer.test_dataloaders, dataloader_idx), outputs, batch)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the test."""
        for split in _splits("test", trainer.test_dataloaders):
            self._check_measured(split)
            self._read(trainer, split)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the sums of all ranks into a checkpoint, which every rank makes."""
        if self.train is not None and self._together(self._settings):
            with self._guarded():
                sums = sum_over_ranks(self.train.state_dict(), self._settings.get("process_group"))
                checkpoint["callbacks"][self.state_key]["train"] = sums

    def state_dict(self) -> dict[str, Any]:
        """Return the sums of this rank, for checkpoints."""
        train = None if self.train is None else self.train.state_dict()
        return {"train": train, "logged": self._logged, "steps": self._steps, "last": self._last_global}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        with self._guarded("the checkpoint's sums"):
            self._logged, self._steps = state_dict["logged"], state_dict.get("steps", state_dict["logged"])
            self._last_global = state_dict.get("last", self._steps)
            sums = state_dict["train"]
            if sums is not None:
                if self.train is None:
                    self.train = Monitor(len(sums["count"]), **self._settings)
                sums = {name: value.cpu() for name, value in sums.items()}
                self.train.load_state_dict(on_one_rank(sums, self._settings.get("process_group")))

    # -- pieces --------------------------------------------------------------------------------------------------

    def _keep(self, args: tuple[Any, ...], output: Any) -> None:
        if not recomputing():
            self._forget()
            self._inputs = first_input(args)
            if self._inputs is not None and not torch.compiler.is_compiling():
                with self._guarded():
                    assert self._linear is not None
                    own = self._linear._parameters.items()
                    self._versions = [(k, p, p._version) for k, p in own if p is not None and not p.is_inference()]

    def _forget(self) -> None:
        self._inputs, self._parameters, self._versions = None, None, []

    def _keep_parameters(self) -> None:
        """Keep what the last outputs of the head were computed from, before an optimizer changes it."""
        if self._inputs is None or self._parameters is not None or self.stopped is not None:
            return
        if self._steps % self.every == 0:
            with self._guarded(), torch.no_grad():
                weight, bias = self._current()
                self._parameters = weight.clone(), None if bias is None else bias.clone()

    def _current(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the head, which have to be those of its last forward pass."""
        linear = self._linear
        assert linear is not None
        if any(linear._parameters.get(name) is p and p._version != version for name, p, version in self._versions):
            raise SpecError(
                "head: its weight has changed since the forward pass, past Lightning; take gradients by "
                "self.manual_backward, or steps by what self.optimizers() returns"
            )
        return linear.weight.detach(), None if linear.bias is None else linear.bias.detach()

    def _add(self, split: str, outputs: Any, batch: Any, *, skipped: bool = False) -> None:
        if self.stopped is not None:
            return
        with self._guarded(), torch.no_grad():
            if isinstance(outputs, Mapping) and "targets" in outputs and {"logits", "losses"} & set(outputs):
                values, targets = outputs["logits"] if "logits" in outputs else outputs["losses"], outputs["targets"]
                _tensor("logits" if "logits" in outputs else "losses", values)
                num_classes = values.shape[-1] if values.ndim > _tensor("targets", targets).ndim else None
                self._monitor(split, num_classes).update(values, targets)
                self._measured.add(split)
            elif self._linear is not None and self._inputs is not None and not skipped:
                self._add_head(split, batch, self._inputs)
                self._measured.add(split)
            elif self._linear is not None or (split == "train" and not outputs):
                self._missed.add(split)  # a step of another optimizer, or one that skipped its batch
            else:
                raise SpecError(_nothing(split, outputs))
        self._forget()

    def _check_measured(self, split: str) -> None:
        """Stop if a split is over and had nothing to measure, rather than never say so."""
        if split in self._missed - self._measured and self.stopped is None:
            missed = f"head: every step of {split} skipped its batch, or did not call {self.head} as head(x)"
            self._stop(_nothing(split, None) if self._linear is None else missed)

    def _add_head(self, split: str, batch: Any, inputs: Tensor) -> None:
        targets = _tensor("targets", self.targets(batch) if self.targets is not None else _last(batch))
        if targets.shape != inputs.shape[:-1] and targets.numel() != inputs.shape[:-1].numel():
            raise SpecError(
                f"targets: expected one for each input of the head {list(inputs.shape[:-1])}, got "
                f"{list(targets.shape)}; pass targets=, a function of the batch"
            )
        weight, bias = self._current() if self._parameters is None else self._parameters
        weight, bias = whole(weight), None if bias is None else whole(bias)
        if not weight.numel():
            raise SpecError("head: its weight is partitioned (ZeRO-3), which the monitor does not gather")
        monitor = self._monitor(split, len(weight))
        features, flat = inputs.reshape(-1, inputs.shape[-1]), targets.reshape(-1)
        rows = max(1, _CHUNK // len(weight))
        for start in range(0, len(features), rows):
            h = features[start : start + rows]
            logits = F.linear(h, weight.to(h.dtype), None if bias is None else bias.to(h.dtype))
            monitor.update(logits, flat[start : start + rows])

    def _monitor(self, split: str, num_classes: int | None) -> Monitor:
        if self.train is None:
            self.train = Monitor(num_classes, **self._settings)
        if split == "train":
            return self.train
        if split not in self._tests:
            kept = ("ignore_index", "accuracy", "top_k", "tokenizer", "process_group")
            settings = {k: v for k, v in self._settings.items() if k in kept}
            self._tests[split] = Monitor(groups=self.train, **settings)
        return self._tests[split]

    def _read(self, trainer: Trainer, split: str) -> None:
        """Log the reading of a split under the step of the loggers."""
        monitor = self.train if split == "train" else self._tests.get(split)
        if self._together(self._settings) and monitor is not None:
            with self._guarded():
                self._log(trainer, split, monitor)

    def _log(self, trainer: Trainer, split: str, monitor: Monitor) -> None:
        reading = monitor.compute()
        monitor.reset()
        if not reading.count.sum() and not reading.nonfinite.sum():
            return
        self.readings[split] = reading
        step = self._steps
        prefix = f"{self.name}/{split}/" if self.name else f"{split}/"
        entries = reading.to_dict(prefix)
        # Not by module.log: that keeps values until the loggers' own next step, and loses all but the last.
        trainer._logger_connector._logged_metrics.update({k: torch.tensor(v) for k, v in entries.items()})
        for logger in trainer.loggers:
            logger.log_metrics(entries, step=max(0, step - 1))
        if split == "train":
            self._logged = step
        if trainer.is_global_zero:
            self.journal = written(self.journal, step, reading, split)
            self.alarms.check(step, reading, split)


class FrequencyLoss(MonitorCallback):
    """The former name of `MonitorCallback`, kept for one release."""

    def __init__(self, num_classes: int | None = None, **settings: Any) -> None:
        warnings.warn("FrequencyLoss is now MonitorCallback", FutureWarning, stacklevel=2)
        super().__init__(num_classes, **settings)


def _split(name: str, loaders: Any, number: int) -> str:
    """The name of an evaluation; with its number if there are several loaders."""
    return f"{name}_{number}" if isinstance(loaders, Sequence) and len(loaders) > 1 else name


def _splits(name: str, loaders: Any) -> list[str]:
    """The names of all evaluations of the loaders, the same on every rank."""
    return [_split(name, loaders, i) for i in range(len(loaders) if isinstance(loaders, Sequence) else 1)]


def _nothing(split: str, outputs: Any) -> str:
    got = ", ".join(map(str, outputs)) if isinstance(outputs, Mapping) else type(outputs).__name__
    got = "nothing" if outputs is None or not got else got
    return (
        f"head: expected the name of the classifier, or steps of {split} that return loss, targets and logits (or "
        f"losses), got {got}"
    )


def _tensor(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise SpecError(f"{name}: expected a tensor, got {type(value).__name__}")
    return value


def _last(batch: Any) -> Tensor:
    value = batch[-1] if isinstance(batch, list | tuple) and batch else None
    if isinstance(batch, Mapping):
        value = next((batch[name] for name in ("targets", "labels", "target", "label") if name in batch), None)
    if not isinstance(value, Tensor):
        raise SpecError(f"targets: expected the batch to end in them, got {type(batch).__name__}; pass targets=")
    return value
