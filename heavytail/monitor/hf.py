"""FrequencyLoss: the monitor inside `transformers.Trainer`.

    FrequencyLoss(num_classes=model.config.vocab_size).attach(trainer)
    trainer.train()
    trainer.state.log_history    # "loss/group_01" ... "eval_loss/group_10", and so in every tracker the Trainer has

Through `compute_loss_func` the losses are computed once, for training and measuring; through a hook they are measured
beside whatever loss the model computes itself. Both see training and evaluation, -100 labels and accumulated batches.

Shapes: B batch, L sequence, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from heavytail.errors import SpecError
from heavytail.monitor.journal import Journal
from heavytail.monitor.monitor import Monitor

__all__ = ["FrequencyLoss"]


class FrequencyLoss(TrainerCallback):  # type: ignore[misc]
    """Adds loss, accuracy, p(correct) and share by frequency group to what the Trainer logs.

    Training values cover all steps since the last log, evaluation values the whole evaluation set, on all ranks.
    Evaluation takes the groups of training.

    Args:
        num_classes, **settings: of `Monitor`.
        shift: whether the label of position l is that of position l + 1, as for causal language models.
        journal: also write the readings there, for `heavytail monitor`.

    Attributes:
        train: monitor of training.
        test: monitor of evaluation.
    """

    def __init__(
        self, num_classes: int | None = None, *, shift: bool = True, journal: Journal | None = None, **settings: Any
    ) -> None:
        self.train = Monitor(num_classes, **settings)
        self.test = Monitor(groups=self.train, ignore_index=self.train.ignore_index, accuracy=self.train.accuracy)
        self.shift = shift
        self.journal = journal

    def attach(self, trainer: Trainer, *, through: str = "loss") -> FrequencyLoss:
        """Add itself to a Trainer, before `train`.

        Args:
            trainer: the Trainer.
            through: "loss" to be its `compute_loss_func`, "hook" to leave the loss to the model, which must be given
                `labels` and return `logits`.

        Raises:
            SpecError: `through` is neither, or the Trainer has a `compute_loss_func` already.
        """
        if through == "hook":
            trainer.model.register_forward_hook(self._hook, with_kwargs=True)
        elif through != "loss":
            raise SpecError(f"through: expected 'loss' or 'hook', got '{through}'")
        elif trainer.compute_loss_func is not None:
            raise SpecError("compute_loss_func: expected none, got one; attach with through='hook'")
        else:
            trainer.compute_loss_func = self
        # Ahead of the trackers' callbacks: they then log what this one adds.
        trainer.callback_handler.callbacks.insert(0, self)
        return self

    def __call__(self, outputs: Any, labels: Tensor | None, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Return the loss as a `compute_loss_func` must: summed over `num_items_in_batch`, or else the mean."""
        if labels is None:
            raise SpecError("labels: expected some in every batch, got none")
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        if isinstance(num_items_in_batch, Tensor):
            num_items_in_batch = num_items_in_batch.to(logits.device)
        return self._monitor().cross_entropy(logits, self._align(labels), normalizer=num_items_in_batch)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """Add the readings to what is being logged."""
        if not logs:
            return
        if "loss" in logs:
            split, monitor, prefix = "train", self.train, ""
        elif any(name.startswith("eval_") for name in logs):
            split, monitor, prefix = "test", self.test, "eval_"
        else:
            return
        reading = monitor.compute()
        if not reading.class_count.any():
            raise SpecError("labels: expected the model to be given them by name, got none; attach with through='loss'")
        monitor.reset()
        # The Trainer's own loss stays what it is.
        added = {name: value for name, value in reading.to_dict(prefix).items() if name not in logs}
        logs.update(added)
        state.log_history[-1].update(added)
        if self.journal is not None and state.is_world_process_zero:
            self.journal.write(state.global_step, reading, split)

    def _hook(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> None:
        if kwargs.get("labels") is None:  # generation, say
            return
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[1]
        self._monitor().update(logits, self._align(kwargs["labels"]))

    def _monitor(self) -> Monitor:
        return self.train if torch.is_grad_enabled() else self.test

    def _align(self, labels: Tensor) -> Tensor:
        """The labels of each position; shifting these leaves the logits, far larger, where they are."""
        if not self.shift:
            return labels
        ignored = self.train.ignore_index
        if ignored is None:
            raise SpecError("ignore_index: expected a number for shift, which has no label for the last position")
        return F.pad(labels, (0, 1), value=ignored)[..., 1:]
