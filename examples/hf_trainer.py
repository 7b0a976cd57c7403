"""The monitor inside the Hugging Face Trainer: a tiny GPT-2 built from scratch, with SGD and with AdamW.

    pip install transformers accelerate
    python examples/hf_trainer.py [--steps 200] [--out runs]

The Trainer also reports "loss/group_01" ... "eval_loss/group_10" (to TensorBoard, Weights & Biases, ...);
here they are read from `trainer.state.log_history`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PrinterCallback, Trainer, TrainingArguments

import heavytail
from heavytail.data.text.stdlib_text import StdlibText
from heavytail.monitor.hf import MonitorCallback


def train(name: str, steps: int, folder: Path) -> list[dict[str, Any]]:
    """Train with one optimizer; return the log history."""
    data = StdlibText(max_tokens=60_000, max_vocab=1_000, length=33).load(seed=0, data_dir=folder)
    train_set = [{"input_ids": row, "labels": row} for row in data.train.inputs]
    test_set = [{"input_ids": row, "labels": row} for row in data.test.inputs]
    torch.manual_seed(0)
    sizes = {"n_positions": 33, "n_embd": 64, "n_layer": 1, "n_head": 4}
    tokens = {"bos_token_id": None, "eos_token_id": None}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=data.num_classes, tie_word_embeddings=False, **sizes, **tokens))
    if name == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    arguments = TrainingArguments(
        output_dir=str(folder / name),
        max_steps=steps,
        per_device_train_batch_size=16,
        gradient_accumulation_steps=2,
        lr_scheduler_type="constant",
        logging_steps=max(1, steps // 20),
        eval_strategy="steps",
        eval_steps=max(1, steps // 4),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
    )
    monitor = MonitorCallback(counts=data.counts, journal=heavytail.Journal(folder / name))
    trainer = Trainer(
        model,
        arguments,
        train_dataset=train_set,
        eval_dataset=test_set,
        optimizers=(optimizer, None),
        callbacks=[monitor],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer.state.log_history


def main() -> None:
    """Train with both, and print the last losses side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    args = parser.parse_args()
    last = {}
    for name in ("sgd", "adamw"):
        history = train(name, args.steps, args.out)
        last[name] = next(entry for entry in reversed(history) if "loss/group_01" in entry)
    print(f"training loss (nats) by frequency group, {args.steps} steps\ngroup     SGD   AdamW")
    for group in sorted(key for key in last["sgd"] if key.startswith("loss/group")):
        print(f"{group[-2:]:>5}  {last['sgd'][group]:>6.2f}  {last['adamw'][group]:>6.2f}")


if __name__ == "__main__":
    main()
