"""Cost of the monitor in a training step of GPT2-Small.

Steps with and without the monitor alternate in one process. As one percent of a step is below its noise, the monitor's
part is also timed separately, on the step's own logits, and divided by the step's time in the same round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.timing import Options, Row, Timing, interleave
from heavytail.models.transformer import GPT2Recipe, Transformer
from heavytail.monitor.monitor import Monitor

CLASSES = 50_257


def rows(options: Options) -> Iterator[Row]:
    """Return the parts of the monitor over a step."""
    depth, length = (1, 16) if options.tiny else (12, 1024)
    contenders = _contenders(options.device, 1 if options.device == "cpu" else 16, length, depth)
    timing = interleave(contenders, rounds=options.rounds or 3, warmup=1)
    for name in contenders:
        if name != "step":
            yield timing.row("GPT2-Small", name, "step")
    for every, target in ((10, 0.03), (50, 0.01)):
        yield _per_step(timing, every, target)
    for M, C in ((32, 10), (256, 100)):
        small = interleave(_small(options.device, M, C), rounds=options.rounds or 9)
        yield small.row(f"{M} x {C}, forward and backward", "monitor.cross_entropy", "F.cross_entropy", target=1.5)


def _per_step(timing: Timing, every: int, target: float) -> Row:
    """Fraction of a step spent on measuring one step in `every` and counting the labels of the others."""
    seconds = zip(timing.seconds["update(logits)"], timing.seconds["count(targets)"], strict=True)
    parts = [measure / every + count * (1 - 1 / every) for measure, count in seconds]
    name = f"measured every {every} steps"
    return Timing({name: parts, "step": timing.seconds["step"]}).row("GPT2-Small", name, "step", target=target)


def _small(device: str, M: int, C: int) -> dict[str, Callable[[], object]]:
    """Time many calls at once, as one is shorter than the noise of the clock."""
    logits = torch.randn(M, C, device=device, requires_grad=True)
    targets = torch.randint(C, (M,), device=device)
    monitor = Monitor(C)

    def repeated(loss_of: Callable[[Tensor], Tensor]) -> None:
        for _ in range(64):
            loss_of(logits).backward()

    return {
        "F.cross_entropy": partial(repeated, lambda z: F.cross_entropy(z, targets)),
        "monitor.cross_entropy": partial(repeated, lambda z: monitor.cross_entropy(z, targets)),
    }


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
        "count(targets)": lambda: monitor.count(targets),
        "update(losses)": lambda: monitor.update(losses, targets),
        "update(logits)": lambda: monitor.update(logits, targets),
        "update(logits), no accuracy": lambda: without.update(logits, targets),
        "F.cross_entropy": lambda: plain(logits),
        "monitor.cross_entropy": lambda: monitor.cross_entropy(logits, targets),
        "compute and reset": lambda: (monitor.compute(), monitor.reset(), monitor.update(losses, targets)),
    }
