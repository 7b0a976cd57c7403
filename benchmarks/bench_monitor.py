"""What the monitor costs in a training step of GPT2-Small: `python benchmarks/bench_monitor.py [--json FILE]`.

Steps with and without the monitor take turns in one process. As one percent of a step is less than its own spread, the
monitor's part is also timed by itself, on the step's own logits, and divided by the step's time in the same round.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from timing import interleave, save
from torch import Tensor

from heavytail.models.transformer import GPT2Recipe, Transformer
from heavytail.monitor import Monitor

CLASSES = 50_257


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, help="sequences in a step (default: 1, on a GPU 16)")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a sequence")
    parser.add_argument("--depth", type=int, default=12, help="blocks; fewer for a quick look")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    contenders = _contenders(args.device, args.batch or (1 if args.device == "cpu" else 16), args.length, args.depth)
    timing = interleave(contenders, rounds=args.rounds, warmup=2)
    step = timing.median("step")
    print(f"{'':>40} {'ms':>10} {'of a step':>10}")
    for name in contenders:
        print(f"{name:>40} {1e3 * timing.median(name):>10.2f} {timing.ratio(name, 'step'):>10.2%}")
    extra = timing.median("monitor.cross_entropy") - timing.median("F.cross_entropy")
    print(f"{'monitor.cross_entropy - F.cross_entropy':>40} {1e3 * extra:>10.2f} {extra / step:>10.2%}")
    if args.json:
        save(args.json, {"arguments": {k: str(v) for k, v in vars(args).items()}, "seconds": timing.seconds})


def _contenders(device: str, batch: int, length: int, depth: int) -> dict[str, Callable[[], object]]:
    torch.manual_seed(0)
    model = Transformer(GPT2Recipe(depth=depth, dropout=0.0), CLASSES).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=device != "cpu")
    tokens = (torch.rand(batch, length, device=device) ** 8 * CLASSES).long()  # heavy-tailed, as text is
    targets = tokens.roll(-1, 1).flatten()

    def plain(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), targets)

    def step(loss_of: Callable[[Tensor], Tensor]) -> None:
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
            logits = model.head(model.features(tokens))
        loss_of(logits).backward()
        optimizer.step()
        optimizer.zero_grad()

    with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
        logits = model.head(model.features(tokens)).clone()
    losses = F.cross_entropy(logits.float(), targets, reduction="none")
    monitor, without = Monitor(CLASSES), Monitor(CLASSES, accuracy=False)
    return {
        "step": partial(step, plain),
        "step, monitor.cross_entropy": partial(step, lambda z: monitor.cross_entropy(z, targets)),
        "update(losses)": lambda: monitor.update(losses, targets),
        "update(logits)": lambda: monitor.update(logits, targets),
        "update(logits), no accuracy": lambda: without.update(logits, targets),
        "F.cross_entropy": lambda: plain(logits),
        "monitor.cross_entropy": lambda: monitor.cross_entropy(logits, targets),
        "compute and reset": lambda: (monitor.compute(), monitor.reset(), monitor.update(losses, targets)),
    }


if __name__ == "__main__":
    main()
