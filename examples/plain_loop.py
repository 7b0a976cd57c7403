"""A plain training loop, nanoGPT style, with the monitor in it: SGD and AdamW on Python's own sources.

    python examples/plain_loop.py [--steps 300] [--out runs]
    heavytail monitor runs/adamw

Prints the loss of each frequency group at the end: SGD learns the frequent tokens, AdamW all of them (figure 1 of the
paper, in a minute and without a download).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import heavytail
from heavytail.data.text.stdlib_text import StdlibText


class TinyGPT(nn.Module):
    """Embedding, one causal attention block with an MLP, and a linear head."""

    def __init__(self, vocabulary: int, length: int, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        self.block = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits [B, L, C] of tokens [B, L]."""
        length = tokens.shape[1]
        hidden = self.tokens(tokens) + self.positions.weight[:length]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        return self.head(self.norm(self.block(hidden, src_mask=mask, is_causal=True)))


def train(name: str, steps: int, folder: Path) -> heavytail.Reading:
    """Train with one optimizer; return the last reading."""
    data = StdlibText(max_tokens=60_000, max_vocab=1_000, length=32).load(seed=0, data_dir=folder)
    torch.manual_seed(0)
    model = TinyGPT(data.num_classes, 32)
    if name == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            model.parameters(), lr=0.1, momentum=0.9
        )  # best of 0.03, 0.1, 0.3
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)

    # The monitor: counts of the training tokens cut the groups, a journal keeps the readings.
    monitor = heavytail.Monitor(counts=data.counts)
    validation = heavytail.Monitor(groups=monitor)
    journal = heavytail.Journal(folder / name)

    inputs, targets = data.train.inputs, data.train.targets
    order = torch.Generator().manual_seed(0)
    every = max(1, steps // 20)
    for step in range(steps):
        batch = torch.randint(len(inputs), (32,), generator=order)
        loss = monitor.cross_entropy(model(inputs[batch]), targets[batch])  # in place of F.cross_entropy
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % every == 0 or step == steps - 1:
            reading = monitor.compute()
            journal.write(step, reading)
            monitor.reset()
            with torch.no_grad():
                validation.update(model(data.test.inputs), data.test.targets)
            journal.write(step, validation.compute(), split="test")
            validation.reset()
    return reading


def main() -> None:
    """Train with both, and print the last losses side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    args = parser.parse_args()
    readings = {name: train(name, args.steps, args.out) for name in ("sgd", "adamw")}
    print(f"loss (nats) by frequency group, {args.steps} steps\ngroup  classes     SGD   AdamW")
    sgd, adamw = readings.values()
    for g, classes in enumerate(np.bincount(sgd.groups.index)):
        print(f"{g + 1:>5}  {classes:>7}  {sgd.loss[g]:>6.2f}  {adamw.loss[g]:>6.2f}")
    print(f"  all           {sgd.overall['loss']:>6.2f}  {adamw.overall['loss']:>6.2f}")


if __name__ == "__main__":
    main()
