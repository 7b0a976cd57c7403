"""The monitor in the real frameworks: what they log is what a loop over the data finds."""

from __future__ import annotations

import json
import math
import runpy
import sys
import warnings
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
from heavytail.monitor.journal import read_journal
from heavytail.monitor.monitor import Monitor

CLASSES = 12
EXAMPLES = Path(__file__).parents[1] / "examples"
# The frameworks' own deprecations and advice are no errors of ours.
pytestmark = pytest.mark.filterwarnings("ignore")


def sequences(number: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(number, 7, generator=generator) ** 3 * CLASSES).long()


# -- Lightning -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 2])
def test_lightning_logs_what_a_loop_finds(tmp_path: Path, accumulate: int) -> None:
    """Training and validation metrics are those of the whole data, under accumulation and after a sanity check."""
    lightning = pytest.importorskip("lightning", reason="pip install lightning")
    from torch.utils.data import DataLoader, TensorDataset

    from heavytail.monitor.lightning import FrequencyLoss

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.head = nn.Embedding(CLASSES, CLASSES)

        def training_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, Tensor]:
            logits, targets = self.head(batch[0][:, :-1]), batch[0][:, 1:]
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
            return {"loss": loss, "logits": logits, "targets": targets}

        def validation_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, Tensor]:
            return self.training_step(batch, batch_idx)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    tokens = sequences(16, 0)
    loader = DataLoader(TensorDataset(tokens), batch_size=4)
    callback = FrequencyLoss(CLASSES, num_groups=3, every_n_steps=1, journal=heavytail.Journal(tmp_path / "journal"))
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accumulate_grad_batches=accumulate,
        default_root_dir=tmp_path,
    )
    module = Module()
    trainer.fit(module, loader, loader)
    monitor = Monitor(CLASSES, num_groups=3)
    with torch.no_grad():
        monitor.update(module.head(tokens[:, :-1]), tokens[:, 1:])
    expected = monitor.compute()
    logged = trainer.logged_metrics
    for g in range(1, len(expected.loss) + 1):
        assert float(logged[f"val/loss/group_{g:02d}"]) == pytest.approx(expected.loss[g - 1], rel=1e-5)
    tracks, count, _ = read_journal(tmp_path / "journal")
    steps = 4 // accumulate
    assert tracks["train"].step.tolist() == list(range(1, 2 * steps + 1))
    assert tracks["test"].step.tolist() == [steps, 2 * steps]
    np.testing.assert_array_equal(count, 2 * expected.class_count)
    rows = tracks["train"].groups["count"].sum()
    assert rows == 2 * tokens[:, 1:].numel()
    state = callback.state_dict()
    other = FrequencyLoss(CLASSES, num_groups=3)
    other.load_state_dict(state)
    np.testing.assert_array_equal(other.train.state_dict()["seen"], callback.train.state_dict()["seen"])
    with pytest.raises(SpecError, match="training_step: expected it to return loss, targets and logits"):
        callback.on_train_batch_end(trainer, module, {"loss": torch.zeros(())}, None, 0)


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
        trackers.wandb(run)(reading, 7, "train/")
    wandb.teardown()  # waits for the process that writes
    (file,) = tmp_path.rglob("*.wandb")
    content = file.read_bytes()
    for name, value in reading.to_dict("train/").items():
        assert name.encode() in content
        assert repr(value).removesuffix(".0").encode() in content  # JSON


def test_mlflow_gets_every_number(tmp_path: Path, reading: heavytail.Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local MLflow run has every entry of the reading."""
    mlflow = pytest.importorskip("mlflow", reason="pip install mlflow-skinny")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    with mlflow.start_run() as run:
        trackers.mlflow()(reading, 7, "train/")
    assert mlflow.get_run(run.info.run_id).data.metrics == pytest.approx(reading.to_dict("train/"))


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
