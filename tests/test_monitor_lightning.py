"""MonitorCallback in Lightning: it measures the forward passes of training, and never ends one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heavytail.monitor.monitor import Monitor
from tests.test_integrations import CLASSES, lightning_trainer, sequences, token_loader

lightning = pytest.importorskip("lightning", reason="pip install lightning")

from heavytail.monitor.lightning import MonitorCallback  # noqa: E402

OPTIMIZERS = {"sgd": (torch.optim.SGD, 1.0), "adamw": (torch.optim.AdamW, 0.1)}
# The frameworks' own deprecations and advice are no errors of ours.
pytestmark = pytest.mark.filterwarnings("ignore")


class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
    """A bigram model that measures itself in `training_step`.

    `returns` says what each kind of step returns; `manual` how it takes gradients and steps: by Lightning's methods
    ("own" is for those of PyTorch).
    """

    def __init__(
        self, returns: dict[str, str] | None = None, optimizer: str = "sgd", manual: tuple[str, str] | None = None
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.head = nn.Embedding(CLASSES, CLASSES), nn.Linear(CLASSES, CLASSES)
        self.returns, self.optimizer, self.manual = returns or {}, optimizer, manual
        self.automatic_optimization = manual is None
        self.reference = Monitor(CLASSES, num_groups=3)

    def step(self, batch: list[Tensor], kind: str) -> tuple[Tensor, Any]:
        inputs, targets = batch
        hidden = self.tokens(inputs)
        returns = self.returns.get(kind, "loss")
        logits = self.head(input=hidden) if returns == "keyword" else self.head(hidden)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        if kind == "train":
            self.reference.update(logits.detach(), targets)
        return loss, {
            "dict": {"loss": loss, "logits": logits, "targets": targets},
            "tuple": {"loss": loss, "logits": (logits,), "targets": targets},
            "list": {"loss": loss, "logits": logits, "targets": targets.tolist()},
            "nothing": None,
        }.get(returns, loss)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        loss, returned = self.step(batch, "train")
        if self.manual is not None:
            backward, step = self.manual
            optimizer = self.optimizers(use_pl_optimizer=step == "lightning")
            optimizer.zero_grad()
            if backward == "lightning":
                self.manual_backward(loss)
            else:
                loss.backward()
            optimizer.step()
        return returned

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        return self.step(batch, "val")[1]

    def test_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        return self.step(batch, "test")[1]

    def configure_optimizers(self) -> Any:
        kind, lr = OPTIMIZERS[self.optimizer]
        return kind(self.parameters(), lr=lr)


def fit(folder: Path, module: Any, callback: MonitorCallback | None, **more: Any) -> Tensor:
    """Train for two epochs of four batches and return the weights."""
    path = more.pop("ckpt_path", None)
    trainer = lightning_trainer(folder, [] if callback is None else [callback], num_sanity_val_steps=0, **more)
    trainer.fit(module, token_loader(16), token_loader(8, 1), ckpt_path=path)
    return torch.cat([p.detach().flatten() for p in module.parameters()])


# -- the weight of the forward pass ----------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("accumulate", "manual"),
    [(1, None), (2, None), (1, ("lightning", "lightning")), (1, ("own", "lightning")), (1, ("lightning", "own"))],
)
def test_training_is_measured_before_the_step(
    tmp_path: Path, optimizer: str, accumulate: int, manual: tuple[str, str] | None
) -> None:
    """Losses are those of the forward passes of training, in every kind of loop, not of the weight after the step."""
    module = Module(optimizer=optimizer, manual=manual)
    callback = MonitorCallback(head="head", num_groups=3, every_n_steps=100)
    fit(tmp_path, module, callback, accumulate_grad_batches=accumulate, max_epochs=1)
    assert callback.stopped is None
    found, expected = callback.readings["train"], module.reference.compute()
    np.testing.assert_array_equal(found.class_count, expected.class_count)
    np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-5)
    np.testing.assert_allclose(found.p_correct, expected.p_correct, rtol=1e-5)


def test_steps_past_lightning_are_not_measured(tmp_path: Path) -> None:
    """Where neither gradients nor steps go through Lightning, it stops, rather than measure the changed weight."""
    weights = []
    callback = MonitorCallback(head="head", num_groups=3)
    for given in (None, callback):
        weights.append(fit(tmp_path, Module(manual=("own", "own")), given))
    torch.testing.assert_close(*weights, rtol=0, atol=0)
    assert callback.stopped is not None
    assert "self.manual_backward" in callback.stopped


# -- a reading, or the reason ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["head", None])
@pytest.mark.parametrize("returns", ["loss", "dict", "nothing", "keyword"])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_every_split_has_a_reading_or_a_reason(
    tmp_path: Path, split: str, returns: str, head: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the steps return, each split is measured or the callback says once why not; inputs are not kept."""
    others = {} if head else dict.fromkeys(("train", "val", "test"), "dict")
    manual = ("lightning", "lightning") if (split, returns) == ("train", "nothing") else None
    module, callback = Module(others | {split: returns}, manual=manual), MonitorCallback(head=head, num_groups=3)
    fit(tmp_path, module, callback, max_epochs=1)
    lightning_trainer(tmp_path, [callback]).test(module, token_loader(8, 1), verbose=False)
    measured = returns == "dict" or (head is not None and returns != "keyword")
    assert (split in callback.readings) == measured
    assert (callback.stopped is None) == measured
    assert caplog.text.count("the monitor stops, training goes on") == (not measured)
    assert callback._inputs is None


def test_steps_that_all_skip_their_batch_are_told(tmp_path: Path) -> None:
    """Automatic steps that return nothing train nothing; after an epoch of them it says so."""
    callback = MonitorCallback(head="head")
    fit(tmp_path, Module({"train": "nothing"}), callback, max_epochs=1)
    assert callback.stopped is not None
    assert "every step of train skipped its batch" in callback.stopped


# -- errors of its own -----------------------------------------------------------------------------------------------


class Partitioned(nn.Linear):
    """A head whose weight is elsewhere but in its forward pass, as under ZeRO-3."""

    def __init__(self) -> None:
        super().__init__(CLASSES, CLASSES)
        self.whole, self.weight = self.weight, nn.Parameter(torch.empty(0))

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.whole, self.bias)


def raise_type_error(*_: Any) -> Any:
    raise TypeError("made up")


FAULTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "targets a list": ({"head": "head", "targets": lambda batch: batch[1].tolist()}, "loss", "tensor, got list"),
    "targets none": ({"head": "head", "targets": lambda batch: None}, "loss", "tensor, got NoneType"),
    "targets raise": ({"head": "head", "targets": raise_type_error}, "loss", "TypeError: made up"),
    "targets floating": ({"head": "head", "targets": lambda batch: batch[1].float()}, "loss", "expected integers"),
    "returned logits a tuple": ({}, "tuple", "logits: expected a tensor, got tuple"),
    "returned targets a list": ({}, "list", "targets: expected a tensor, got list"),
    "weight empty": ({"head": "head", "counts": range(1, CLASSES + 1)}, "loss", "partitioned"),
}


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("fault", FAULTS)
def test_no_error_of_the_monitor_ends_a_training(tmp_path: Path, fault: str, every: int) -> None:
    """Whatever the callback is given, training is bit for bit that without it, and it says why it stopped."""
    settings, returns, reason = FAULTS[fault]
    weights = []
    callback = MonitorCallback(every=every, **settings)
    for given in (None, callback):
        module = Module(dict.fromkeys(("train", "val"), returns))
        if fault == "weight empty":
            module.head = Partitioned()
        weights.append(fit(tmp_path, module, given))
    torch.testing.assert_close(*weights, rtol=0, atol=0)
    assert callback.stopped is not None
    assert reason in callback.stopped


def test_a_failing_logger_or_alarm_ends_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is called with a reading may raise, too."""
    callback = MonitorCallback(head="head")
    monkeypatch.setattr(callback.alarms, "check", raise_type_error)
    fit(tmp_path, Module(), callback)
    assert callback.stopped == "TypeError: made up"


# -- checkpoints -----------------------------------------------------------------------------------------------------


def other_classes(state: dict[str, Any]) -> None:
    state["train"] = Monitor(5).state_dict()


def without_a_sum(state: dict[str, Any]) -> None:
    del state["train"]["seen"]


def without_its_steps(state: dict[str, Any]) -> None:
    del state["logged"]


def no_tensor(state: dict[str, Any]) -> None:
    state["train"]["count"] = "damaged"


@pytest.mark.parametrize("damage", [other_classes, without_a_sum, without_its_steps, no_tensor])
def test_a_checkpoint_that_does_not_fit_ends_no_training(
    tmp_path: Path, damage: Callable[[dict[str, Any]], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Resumed with sums of something else, training goes on, and the callback says why it does not."""
    fit(tmp_path, Module(), MonitorCallback(CLASSES, head="head"), enable_checkpointing=True, max_epochs=1)
    (path,) = tmp_path.rglob("*.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    damage(checkpoint["callbacks"]["MonitorCallback"])
    torch.save(checkpoint, path)
    weights = []
    callback = MonitorCallback(CLASSES, head="head")
    with caplog.at_level(logging.WARNING, "heavytail"):
        for given in (None, callback):
            weights.append(fit(tmp_path, Module(), given, ckpt_path=str(path)))
    torch.testing.assert_close(*weights, rtol=0, atol=0)
    assert callback.stopped is not None
    assert callback.stopped.startswith("the checkpoint's sums: ")
    assert caplog.text.count("the monitor stops, training goes on") == 1


def test_a_resumed_training_continues_the_sums(tmp_path: Path) -> None:
    """Interrupted after an epoch and resumed, the reading of two epochs is the one without interruption."""
    settings: dict[str, Any] = {"head": "head", "num_groups": 3, "every_n_steps": 100}
    whole, first, second = (MonitorCallback(**settings) for _ in range(3))
    for callback in (whole, first, second):  # `on_train_epoch_end` reads, so that sums in a checkpoint are of an epoch
        callback.on_train_epoch_end = lambda *_: None  # type: ignore[method-assign]
    fit(tmp_path / "whole", Module(), whole)
    fit(tmp_path, Module(), first, enable_checkpointing=True, max_epochs=1)
    (path,) = tmp_path.rglob("*.ckpt")
    fit(tmp_path, Module(), second, ckpt_path=str(path))
    assert whole.train is not None
    assert second.train is not None
    found, expected = second.train.compute(), whole.train.compute()
    np.testing.assert_array_equal(found.class_count, 2 * np.bincount(sequences(16, 0)[:, 1:].flatten(), minlength=12))
    np.testing.assert_array_equal(found.class_count, expected.class_count)
    np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-12)
