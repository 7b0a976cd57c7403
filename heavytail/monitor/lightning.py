"""FrequencyLoss: the monitor as a Lightning callback.

    trainer = lightning.Trainer(callbacks=[FrequencyLoss(num_classes=50257)])

`training_step` and `validation_step` return, beside the loss, what is to be measured:

    return {"loss": loss, "logits": logits, "targets": targets}    # or "losses", per row, instead of "logits"

The readings are logged by the module, and so reach every logger the Trainer has: "train/loss/group_01" and so on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from heavytail.errors import SpecError
from heavytail.monitor.journal import Journal
from heavytail.monitor.monitor import Monitor

__all__ = ["FrequencyLoss"]


class FrequencyLoss(Callback):  # type: ignore[misc]
    """Logs loss, accuracy, p(correct) and share by frequency group.

    Training values cover the steps since the last log, validation values the whole validation, on all ranks.
    Validation takes the groups of training.

    Args:
        num_classes, **settings: of `Monitor`.
        every_n_steps: how often to log training; by default as often as the Trainer logs.
        journal: also write the readings there, for `heavytail monitor`.

    Attributes:
        train: monitor of training.
        test: monitor of validation.
    """

    def __init__(
        self,
        num_classes: int | None = None,
        *,
        every_n_steps: int | None = None,
        journal: Journal | None = None,
        **settings: Any,
    ) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise SpecError(f"every_n_steps: expected at least 1, got {every_n_steps}")
        self.train = Monitor(num_classes, **settings)
        self.test = Monitor(groups=self.train, ignore_index=self.train.ignore_index, accuracy=self.train.accuracy)
        self.every_n_steps = every_n_steps
        self.journal = journal
        self._logged = 0

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the batch, and log if it is time."""
        _add(self.train, outputs, "training_step")
        step = trainer.global_step  # unchanged by a batch that only accumulates gradients
        if step > self._logged and step % (self.every_n_steps or trainer.log_every_n_steps) == 0:
            self._log(trainer, module, self.train, "train")

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Log what came after the last log."""
        if trainer.global_step > self._logged:
            self._log(trainer, module, self.train, "train")

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add the batch."""
        _add(self.test, outputs, "validation_step")

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Log the validation; the one before training, which has no groups yet, is forgotten."""
        if trainer.sanity_checking:
            self.test.reset()
        else:
            self._log(trainer, module, self.test, "test")

    def state_dict(self) -> dict[str, Any]:
        """Return the sums, for checkpoints."""
        return {"train": self.train.state_dict(), "test": self.test.state_dict(), "logged": self._logged}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.train.load_state_dict(state_dict["train"])
        self.test.load_state_dict(state_dict["test"])
        self._logged = state_dict["logged"]

    def _log(self, trainer: Trainer, module: LightningModule, monitor: Monitor, split: str) -> None:
        reading = monitor.compute()
        monitor.reset()
        # Already the sum over ranks.
        module.log_dict(reading.to_dict("train/" if split == "train" else "val/"), sync_dist=False)
        if split == "train":
            self._logged = trainer.global_step
        if self.journal is not None and trainer.is_global_zero:
            self.journal.write(trainer.global_step, reading, split)


def _add(monitor: Monitor, outputs: Any, step: str) -> None:
    if not isinstance(outputs, Mapping) or "targets" not in outputs or not {"logits", "losses"} & set(outputs):
        got = ", ".join(outputs) if isinstance(outputs, Mapping) else type(outputs).__name__
        raise SpecError(f"{step}: expected it to return loss, targets and logits (or losses), got {got}")
    monitor.update(outputs["logits"] if "logits" in outputs else outputs["losses"], outputs["targets"])
