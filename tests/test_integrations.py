"""The monitor in the real frameworks: what they log is what a loop over the data finds."""

from __future__ import annotations

import json
import math
import os
import runpy
import sqlite3
import subprocess
import sys
import warnings
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import heavytail
from heavytail.errors import SpecError
from heavytail.monitor import trackers
from heavytail.monitor.journal import Journal, read_journal
from heavytail.monitor.monitor import Monitor

CLASSES = 12
EXAMPLES = Path(__file__).parents[1] / "examples"
# The frameworks' own deprecations and advice are no errors of ours.
pytestmark = pytest.mark.filterwarnings("ignore")


def sequences(number: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(number, 7, generator=generator) ** 3 * CLASSES).long()


# -- Lightning -------------------------------------------------------------------------------------------------------


def lightning_module(returns: str = "loss", lr: float = 0.0, manual: bool = False) -> Any:
    """A bigram model as a module whose steps return the loss only, or with logits and targets, or skip a batch."""
    lightning = pytest.importorskip("lightning", reason="pip install lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.tokens = nn.Embedding(CLASSES, CLASSES)
            self.head = nn.Linear(CLASSES, CLASSES)
            self.automatic_optimization = not manual

        def training_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int = 0) -> Any:
            inputs, targets = batch
            logits = self.head(self.tokens(inputs))
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
            if returns == "skips" and batch_idx == 1:
                return None
            if manual:
                for optimizer in self.optimizers():
                    optimizer.zero_grad()
                self.manual_backward(loss)
                for optimizer in self.optimizers():
                    optimizer.step()
            return {"loss": loss, "logits": logits, "targets": targets} if returns == "dict" else loss

        def validation_step(self, *args: Any) -> Any:
            return self.training_step(*args)

        def test_step(self, *args: Any) -> Any:
            return self.training_step(*args)

        def configure_optimizers(self) -> Any:
            parts = (self.tokens, self.head) if manual else (self,)
            return [torch.optim.SGD(part.parameters(), lr=lr) for part in parts]

    if manual:
        Module.validation_step = lambda self, batch, i, j=0: None  # type: ignore[method-assign]
    return Module()


def token_loader(number: int, seed: int = 0) -> Any:
    tokens = sequences(number, seed)
    return torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()), batch_size=4
    )


def lightning_trainer(folder: Path, callbacks: list[Any], **more: Any) -> Any:
    lightning = pytest.importorskip("lightning", reason="pip install lightning")
    settings: dict[str, Any] = {"max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder}
    return lightning.Trainer(callbacks=callbacks, **(settings | quiet | more))


def expected_reading(module: Any, tokens: Tensor) -> heavytail.Reading:
    monitor = Monitor(CLASSES, num_groups=3)
    with torch.no_grad():
        monitor.update(module.head(module.tokens(tokens[:, :-1])), tokens[:, 1:])
    return monitor.compute()


@pytest.mark.parametrize("returns", ["loss", "dict"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_lightning_logs_what_a_loop_finds(tmp_path: Path, accumulate: int, returns: str) -> None:
    """By hook or from what the steps return, the metrics are those of the whole data, under accumulation, too."""
    module = lightning_module(returns)
    from heavytail.monitor.lightning import MonitorCallback

    head = "head" if returns == "loss" else None
    callback = MonitorCallback(head=head, num_groups=3, every_n_steps=1, journal=heavytail.Journal(tmp_path / "j"))
    trainer = lightning_trainer(tmp_path, [callback], accumulate_grad_batches=accumulate)
    trainer.fit(module, token_loader(16), token_loader(16))
    assert callback.stopped is None
    expected = expected_reading(module, sequences(16, 0))
    for g in range(len(expected.loss)):
        assert float(trainer.logged_metrics[f"val/loss/group_{g + 1:02d}"]) == pytest.approx(expected.loss[g], rel=1e-5)
    tracks, count, _ = read_journal(tmp_path / "j")
    steps = 4 // accumulate
    assert tracks["train"].step.tolist() == list(range(1, 2 * steps + 1))
    assert tracks["val"].step.tolist() == [steps, 2 * steps]
    np.testing.assert_array_equal(count, 2 * expected.class_count)
    assert tracks["train"].groups["count"].sum() == 2 * 16 * 6


@pytest.mark.parametrize("returns", ["loss", "dict", "skips"])
def test_lightning_trains_the_same_with_it(tmp_path: Path, returns: str) -> None:
    """Weights are those of a training without the callback, bit for bit; a step that skips its batch is no error."""
    from heavytail.monitor.lightning import MonitorCallback

    weights = []
    for with_it in (False, True):
        module = lightning_module(returns, lr=0.1)
        callback = MonitorCallback(head="head", num_groups=3)
        lightning_trainer(tmp_path, [callback] if with_it else []).fit(module, token_loader(16), token_loader(8, 1))
        weights.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
    torch.testing.assert_close(*weights, rtol=0, atol=0)
    assert callback.stopped is None
    assert callback.readings["train"].count.sum() == (16 if returns != "skips" else 12) * 6


def test_lightning_loggers_get_every_reading(tmp_path: Path) -> None:
    """Whatever the interval of the loggers, they get all readings under their own steps."""
    module = lightning_module()
    from lightning.pytorch.loggers import CSVLogger

    from heavytail.monitor.lightning import MonitorCallback

    logger = CSVLogger(str(tmp_path))
    callback = MonitorCallback(head="head", every_n_steps=4, num_groups=2)
    lightning_trainer(tmp_path, [callback], logger=logger, log_every_n_steps=10, max_epochs=5).fit(
        module, token_loader(32)
    )
    lines = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("step")
    assert [int(line.split(",")[column]) for line in lines[1:]] == list(range(3, 40, 4))


def test_lightning_loaders_tests_and_instances(tmp_path: Path) -> None:
    """Each loader has its own reading, `trainer.test` too, and two instances log under their names."""
    module = lightning_module()
    from heavytail.monitor.lightning import MonitorCallback

    first = MonitorCallback(head="head", num_groups=3)
    second = MonitorCallback(head="head", num_groups=2, name="coarse")
    trainer = lightning_trainer(tmp_path, [first, second])
    trainer.fit(module, token_loader(16), [token_loader(16), token_loader(8, 1)])
    trainer.test(module, token_loader(8, 2), verbose=False)
    assert set(first.readings) == {"train", "val_0", "val_1", "test"}
    for split, tokens in (("val_0", sequences(16, 0)), ("val_1", sequences(8, 1)), ("test", sequences(8, 2))):
        expected = expected_reading(module, tokens)
        assert first.readings[split].overall["loss"] == pytest.approx(expected.overall["loss"], rel=1e-5)
    assert "coarse/test/loss/group_01" in trainer.logged_metrics
    assert first.state_key != second.state_key


def test_lightning_manual_optimization(tmp_path: Path) -> None:
    """Two optimizers advance the step by one, as the batches do."""
    module = lightning_module(manual=True)
    from heavytail.monitor.lightning import MonitorCallback

    callback = MonitorCallback(head="head", every_n_steps=2, journal=heavytail.Journal(tmp_path / "j"))
    lightning_trainer(tmp_path, [callback], limit_val_batches=0).fit(module, token_loader(16))
    assert read_journal(tmp_path / "j")[0]["train"].step.tolist() == [2, 4, 6, 8]


def test_lightning_state_and_refusals(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A checkpoint keeps the sums; unknown heads are errors, and steps without anything to measure stop it."""
    module = lightning_module()
    from heavytail.monitor.lightning import FrequencyLoss, MonitorCallback

    callback = MonitorCallback(head="head", every_n_steps=100)
    lightning_trainer(tmp_path, [callback]).fit(module, token_loader(16))
    other = MonitorCallback(head="head")
    other.load_state_dict(callback.state_dict())
    assert other.train is not None
    assert callback.train is not None
    np.testing.assert_array_equal(other.train.state_dict()["seen"], callback.train.state_dict()["seen"])
    with pytest.raises(SpecError, match="head: expected a Linear of the module"):
        lightning_trainer(tmp_path, [MonitorCallback(head="none")]).fit(module, token_loader(16))
    with pytest.warns(FutureWarning, match="MonitorCallback"):
        old = FrequencyLoss(CLASSES)
    lightning_trainer(tmp_path, [old]).fit(module, token_loader(16))
    assert old.stopped is not None
    assert "expected the name of the classifier" in old.stopped


def test_lightning_after_a_failed_training(tmp_path: Path) -> None:
    """A training that raised leaves no hook, and the same callback measures the next module."""
    from heavytail.monitor.lightning import MonitorCallback

    failing, module, callback = lightning_module(), lightning_module(), MonitorCallback(head="head", every_n_steps=1)

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    failing.training_step = fail
    with pytest.raises(ZeroDivisionError):
        lightning_trainer(tmp_path, [callback]).fit(failing, token_loader(16))
    assert not failing.head._forward_hooks
    lightning_trainer(tmp_path, [callback]).fit(module, token_loader(16))
    assert callback.stopped is None
    assert callback.readings["train"].count.sum() > 0
    assert not module.head._forward_hooks


def test_lightning_trains_on_without_its_journal(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A journal with the readings of another run stops with one line; readings and training go on."""
    from heavytail.monitor.lightning import MonitorCallback

    monitor = Monitor(CLASSES, num_groups=1)
    monitor.update(torch.zeros(4, CLASSES), torch.arange(4) % CLASSES)
    for step in (1, 4):
        Journal(tmp_path / "j").write(step, monitor.compute())
    callback = MonitorCallback(head="head", every_n_steps=2, journal=Journal(tmp_path / "j"))
    lightning_trainer(tmp_path, [callback]).fit(lightning_module(), token_loader(16))
    assert caplog.text.count("the journal stops, training goes on") == 1
    assert callback.stopped is None


# -- trackers --------------------------------------------------------------------------------------------------------


@pytest.fixture
def reading() -> heavytail.Reading:
    monitor = Monitor(counts=[6, 2, 1, 1], num_groups=2)
    monitor.update(torch.tensor([0.5, 1.5, 2.0, 4.0]), torch.tensor([0, 0, 1, 3]))
    return monitor.compute()


def test_tensorboard_gets_every_number(tmp_path: Path, reading: heavytail.Reading) -> None:
    """TensorBoard's files hold every entry of the reading."""
    pytest.importorskip("tensorboard", reason="pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        trackers.tensorboard(writer)(reading, 7, "train/")
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    found = {tag: events.Scalars(tag)[0] for tag in events.Tags()["scalars"]}
    expected = reading.to_dict("train/")
    assert found.keys() == expected.keys()
    assert all(found[tag].step == 7 and math.isclose(found[tag].value, expected[tag], rel_tol=1e-6) for tag in found)


def test_wandb_gets_every_number(tmp_path: Path, reading: heavytail.Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of an offline run of Weights & Biases holds every entry of the reading."""
    wandb = pytest.importorskip("wandb", reason="pip install wandb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SILENT", "true")
    with wandb.init(mode="offline", dir=str(tmp_path)) as run:
        for step in range(20):  # a script that logs without steps is ahead of the reading's
            run.log({"mine": step})
        trackers.wandb(run)(reading, 7, "train/")
    wandb.teardown()  # waits for the process that writes
    (file,) = tmp_path.rglob("*.wandb")
    content = file.read_bytes()
    for name, value in reading.to_dict("train/").items():
        assert name.encode() in content
        assert repr(value).removesuffix(".0").encode() in content  # JSON
    assert b"heavytail/step" in content


def test_trackio_gets_every_number(tmp_path: Path, reading: heavytail.Reading) -> None:
    """The database of a local trackio run holds every entry of the reading, also under a step already passed."""
    pytest.importorskip("trackio", reason="pip install trackio")
    script = """if True:
        import torch, trackio
        from heavytail import Monitor
        from heavytail.monitor import trackers
        monitor = Monitor(counts=[6, 2, 1, 1], num_groups=2)
        monitor.update(torch.tensor([0.5, 1.5, 2.0, 4.0]), torch.tensor([0, 0, 1, 3]))
        run = trackio.init(project="p", name="n", auto_log_cpu=False, auto_log_gpu=False)
        run.log({"mine": 1}, step=9)
        trackers.trackio(run)(monitor.compute(), 7, "train/")
        trackio.finish()
    """
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path), "HF_HUB_OFFLINE": "1"}  # read when it is imported
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True, timeout=300)
    with closing(sqlite3.connect(tmp_path / "p.db")) as database:
        rows = database.execute("SELECT step, metrics FROM metrics ORDER BY step").fetchall()
    assert [(step, json.loads(metrics)) for step, metrics in rows] == [(7, reading.to_dict("train/")), (9, {"mine": 1})]


def test_mlflow_gets_every_number(tmp_path: Path, reading: heavytail.Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local MLflow run has every entry of the reading."""
    mlflow = pytest.importorskip("mlflow", reason="pip install mlflow-skinny")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    with mlflow.start_run() as run:
        trackers.mlflow()(reading, 7, "train/")
    expected = reading.to_dict("train/")
    for name in ("loss", "p_correct"):  # a file cannot be a folder, too
        if f"train/{name}" in expected:
            expected[f"train/{name}/all"] = expected.pop(f"train/{name}")
    assert mlflow.get_run(run.info.run_id).data.metrics == pytest.approx(expected)


# -- examples --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "needs"),
    [("plain_loop", []), ("hf_trainer", ["transformers", "accelerate"]), ("lightning_trainer", ["lightning"])],
)
def test_examples_show_the_gap(
    name: str, needs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each example runs and ends with AdamW below SGD on the rarest groups, by more than on the most frequent."""
    for package in needs:
        pytest.importorskip(package, reason=f"pip install {package}")
    monkeypatch.setattr(sys, "argv", [name, "--steps", "120", "--out", str(tmp_path)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    table = [line.split() for line in lines if len(line.split()) in (3, 4) and line.split()[0].isdigit()]
    gap = [float(row[-2]) - float(row[-1]) for row in table]
    assert len(gap) >= 9
    assert min(gap[-3:]) > 0.2
    assert sum(gap[-4:]) > sum(gap[:4])
    tracks, _, _ = read_journal(tmp_path / "adamw")
    assert len(tracks) == 2  # training and evaluation


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cells of docs/monitor.ipynb run from top to bottom, and its groups show what its text says."""
    monkeypatch.chdir(tmp_path)
    cells = json.loads((EXAMPLES.parent / "docs" / "monitor.ipynb").read_text())["cells"]
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert names["sgd"].loss[-1] > math.log(1000)
    assert (names["adamw"].loss < math.log(1000)).all()
    head = names["monitor"].compute().head
    np.testing.assert_allclose(head["update_norm"], 0.024 * np.sqrt(np.bincount(names["sgd"].groups.index)), rtol=0.01)
