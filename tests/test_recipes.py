"""The recipes of docs/support.md run as printed, on small models of the shape of each framework's own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import heavytail

TEXT = (Path(__file__).parents[1] / "docs" / "support.md").read_text()
RECIPES = dict(re.findall(r"### ([^\n]+)\n(?:(?!###).)*?```python\n(.*?)```", TEXT, re.DOTALL))
CLASSES, B, L = 9, 4, 6
pytestmark = pytest.mark.filterwarnings("ignore")


def batch() -> tuple[Tensor, Tensor]:
    tokens = torch.randint(0, CLASSES, (B, L + 1), generator=torch.Generator().manual_seed(0))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


class Bigram(nn.Module):
    """Embedding and head; `forward` is each framework's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.head = nn.Embedding(CLASSES, 5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor, y: Tensor | None = None, **more: Any) -> Any:
        logits = self.head(self.tokens(x))
        if "lm_head_chunk_size" in more:
            return list(logits.split(more["lm_head_chunk_size"], 1))
        if y is None:
            return logits
        losses = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction=more.get("loss_reduction", "mean"))
        return (logits, losses) if self.returns_logits else losses

    returns_logits = False


def run(name: str, **names: Any) -> dict[str, Any]:
    code = RECIPES[name]
    assert len(code.splitlines()) <= 5
    exec(code, names)
    return names


def test_every_recipe_is_run() -> None:
    """Each recipe in the document has a test here."""
    names = {"nanoGPT", "nanochat", "modded-nanogpt", "torchtitan", "litgpt", "Accelerate", "Lightning"}
    assert set(RECIPES) == names | {"TRL and the Hugging Face Trainer"}


@pytest.mark.parametrize("name", ["nanoGPT", "nanochat", "modded-nanogpt", "torchtitan", "litgpt"])
def test_plain_loops(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The reading is the mean loss of the batch, by the framework's own calls."""
    model, (x, y) = Bigram(), batch()
    model.returns_logits = name == "nanoGPT"
    monitor = heavytail.Monitor(CLASSES, ignore_index=-1, num_groups=3)
    expected = F.cross_entropy(model.head(model.tokens(x)).flatten(0, 1), y.flatten()).item()
    names: dict[str, Any] = {"model": model, "monitor": monitor, "torch": torch, "F": F, "step": 0}
    names |= {"X": x, "Y": y, "x": x, "y": y, "inputs": x, "labels": y, "input_ids": x, "targets": y}
    names |= {"iter_num": 0, "log_interval": 10}
    names["loss_fn"] = lambda pred, labels: F.cross_entropy(pred.flatten(0, 1), labels.flatten())
    names["chunked_cross_entropy"] = lambda parts, t: F.cross_entropy(torch.cat(parts, 1).flatten(0, 1), t.flatten())
    if name == "modded-nanogpt":
        names |= {"lm_head": model.head, "hidden": model.tokens(x).flatten(0, 1), "target_seq": y.flatten()}
        capped = 30 * torch.sigmoid(model.head(model.tokens(x)) / 7.5)
        expected = F.cross_entropy(capped.flatten(0, 1), y.flatten()).item()
    names = run(name, **names)
    assert names["loss"].item() == pytest.approx(expected, rel=1e-6)
    if name == "nanoGPT":
        assert f"{expected:.4g}" in capsys.readouterr().out
    else:
        assert monitor.compute().overall["loss"] == pytest.approx(expected, rel=1e-6)


def test_accelerate() -> None:
    """Evaluation through Accelerate counts every sample once."""
    accelerate = pytest.importorskip("accelerate", reason="pip install accelerate")
    model, (x, y) = Bigram(), batch()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=3)
    monitor = heavytail.Monitor(CLASSES)
    names = run(
        "Accelerate", accelerator=accelerate.Accelerator(cpu=True), validation_loader=loader, model=model,
        monitor=monitor,
    )  # fmt: skip
    assert names["reading"].count.sum() == B * L


def test_the_trainer(tmp_path: Path) -> None:
    """The callback is passed as every callback is."""
    transformers = pytest.importorskip("transformers", reason="pip install transformers accelerate")
    from heavytail.monitor.hf import MonitorCallback
    from tests.test_monitor_hf import causal_rows, gpt2

    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=2, logging_steps=1, report_to="none", use_cpu=True, save_strategy="no",
        disable_tqdm=True,
    )  # fmt: skip
    names = run(
        "TRL and the Hugging Face Trainer", MonitorCallback=MonitorCallback, Trainer=transformers.Trainer,
        model=gpt2(), arguments=arguments, rows=causal_rows(),
    )  # fmt: skip
    assert "train" in names["callback"].readings


def test_lightning() -> None:
    """The module is left as it is."""
    lightning = pytest.importorskip("lightning", reason="pip install lightning")
    from heavytail.monitor.lightning import MonitorCallback
    from tests.test_integrations import lightning_module, token_loader

    names = run(
        "Lightning", MonitorCallback=MonitorCallback, lightning=lightning, module=lightning_module(),
        train_loader=token_loader(16),
    )  # fmt: skip
    assert "train" in names["callback"].readings
