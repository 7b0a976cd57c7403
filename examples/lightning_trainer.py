"""The monitor as a Lightning callback, with SGD and with AdamW.

    pip install lightning
    python examples/lightning_trainer.py [--steps 200] [--out runs]

The module's steps return the loss, logits and targets; every logger of the Trainer then receives
"train/loss/group_01" ... "val/loss/group_10".
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import heavytail
from heavytail.data.text.stdlib_text import StdlibText
from heavytail.monitor.lightning import MonitorCallback


class LanguageModel(lightning.LightningModule):
    """One causal attention block between an embedding and a linear head."""

    def __init__(self, vocabulary: int, length: int, optimizer: str, width: int = 64) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.zeros(length, width))
        self.block = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.head.weight, std=0.02)
        self.optimizer = optimizer

    def training_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, Any]:
        """Return loss, logits [B, L, C] and targets [B, L]."""
        tokens, targets = batch
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], device=tokens.device)
        hidden = self.block(self.tokens(tokens) + self.positions, src_mask=mask, is_causal=True)
        logits = self.head(self.norm(hidden))
        return {"loss": F.cross_entropy(logits.flatten(0, 1), targets.flatten()), "logits": logits, "targets": targets}

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, Any]:
        """Return the same."""
        return self.training_step(batch, batch_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        if self.optimizer == "sgd":
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return torch.optim.AdamW(self.parameters(), lr=3e-3, weight_decay=0.0)


def train(name: str, steps: int, folder: Path) -> dict[str, float]:
    """Train with one optimizer; return the last logged values."""
    data = StdlibText(max_tokens=60_000, max_vocab=1_000, length=32).load(seed=0, data_dir=folder)
    assert data.test is not None
    lightning.seed_everything(0, verbose=False)
    callback = MonitorCallback(
        counts=data.counts, every_n_steps=max(1, steps // 20), journal=heavytail.Journal(folder / name)
    )
    trainer = lightning.Trainer(
        max_steps=steps,
        val_check_interval=min(max(1, steps // 4), len(data.train) // 32),
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=1,
    )
    trainer.fit(
        LanguageModel(data.num_classes, 32, name),
        DataLoader(TensorDataset(data.train.inputs, data.train.targets), 32, shuffle=True, drop_last=True),
        DataLoader(TensorDataset(data.test.inputs, data.test.targets), 64),
    )
    return {key: float(value) for key, value in trainer.logged_metrics.items()}


def main() -> None:
    """Train with both, and print the last losses side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    args = parser.parse_args()
    sgd, adamw = (train(name, args.steps, args.out) for name in ("sgd", "adamw"))
    print(f"training loss (nats) by frequency group, {args.steps} steps\ngroup     SGD   AdamW")
    for group in sorted(key for key in sgd if key.startswith("train/loss/")):
        print(f"{group[-2:]:>5}  {sgd[group]:>6.2f}  {adamw[group]:>6.2f}")


if __name__ == "__main__":
    main()
