"""Head, engine and monitor on a GPU, against the processor: `make gpu`. Each test also runs on the processor alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from heavytail import Monitor
from heavytail.experiment.store import RunStore
from heavytail.head import linear_cross_entropy
from heavytail.metrics import ClassStats
from heavytail.train.engine import _Run, train
from tests.problems import tiny

DIGITS = {"data": {"name": "digits"}}
TEXT = {"data": {"name": "stdlib-text", "max_tokens": 2_000}}
PROBLEMS: list[dict[str, Any]] = [
    {},
    {**DIGITS, "model": {"name": "cnn", "channels": [4, 8]}},
    {**DIGITS, "model": {"name": "resnet18", "width": 8}},
    {**TEXT, "model": {"name": "transformer", "width": 16, "mlp": 16}},
]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """The processor, and a GPU."""
    name: str = request.param
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    return name


@contextmanager
def no_waiting(device: str) -> Iterator[None]:
    """Raise an error where the processor waits for the GPU."""
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def problem(M: int, C: int, D: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features, weight, bias and targets in float64."""
    g = torch.Generator().manual_seed(0)
    h, W, b = (torch.randn(shape, generator=g, dtype=torch.float64) for shape in ((M, D), (C, D), (C,)))
    return h, W / D**0.5, b, torch.randint(C, (M,), generator=g)


@pytest.mark.parametrize(
    ("dtype", "tol"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 4e-3)]
)
@pytest.mark.parametrize(("M", "C", "D"), [(300, 60, 20), (64, 1_000, 8)])
def test_the_head_is_that_of_double_precision(
    device: str, dtype: torch.dtype, tol: float, M: int, C: int, D: int
) -> None:
    """Losses, gradients and curvature agree with those in float64 on the processor to the precision of the inputs."""
    *leaves, y = problem(M, C, D)
    results = []
    for place, kind in (("cpu", torch.float64), (device, dtype)):
        rounded = [x.to(dtype).to(place, kind).requires_grad_() for x in leaves]
        out = linear_cross_entropy(*rounded, y.to(place), curvature=True)
        assert out.curvature is not None
        out.loss.backward()
        found = [out.loss, out.losses, out.p_correct, *(x.grad for x in rounded), *out.curvature]
        results.append([x.detach().cpu().double() for x in found if x is not None])
    for truth, got in zip(*results, strict=True):
        assert (got - truth).abs().max() <= tol * truth.abs().max()


@pytest.mark.parametrize("changes", PROBLEMS)
@pytest.mark.parametrize("optim", ["adam", "gd", "sign"])
def test_a_step_with_statistics_does_not_wait_for_the_gpu(
    device: str, changes: dict[str, Any], optim: str, tmp_path: Path
) -> None:
    """Gradient, sums per class and update of a full-batch step are queued without a look at any result."""
    run = _Run(tiny(**changes, optim=optim), RunStore(tmp_path), tmp_path, torch.device(device))
    sums = ClassStats.zeros(run.data.num_classes, run.device)
    for number in range(2):  # the first step loads libraries and chooses algorithms
        with no_waiting(device if number else "cpu"):
            run._gradient(number, sums)
            run.optimizer.step()
    assert sums.count.sum().item() == 2 * run.train_split.targets.numel()


@pytest.mark.parametrize("changes", [*PROBLEMS, {**DIGITS, "model": "linear", "batch_size": 100}])
def test_training_is_that_of_the_processor(device: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """Losses of a few steps agree in double precision."""
    spec = tiny(**{"steps": 3, "precision": "float64", **changes})
    plain = train(spec, RunStore(tmp_path / "cpu"), data_dir=tmp_path, device="cpu")
    there = train(spec, RunStore(tmp_path / "there"), data_dir=tmp_path, device=device)
    torch.testing.assert_close(torch.tensor(there.loss), torch.tensor(plain.loss), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_monitor_neither_waits_nor_changes_a_gradient(device: str, dtype: torch.dtype) -> None:
    """monitor.cross_entropy gives loss and gradient of F.cross_entropy in float32 bit for bit."""
    g = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(64, 500, generator=g).to(device, dtype), torch.randint(500, (64,), generator=g)
    y = targets.to(device)
    leaves = [logits.clone().requires_grad_() for _ in range(2)]
    monitor, plain = Monitor(500), Monitor(500)
    monitor.cross_entropy(leaves[0].detach(), y)  # allocates
    monitor.reset()
    with no_waiting(device):
        losses = monitor.cross_entropy(leaves[0], y), F.cross_entropy(leaves[1].float(), y)
        for loss in losses:
            loss.backward()
    assert torch.equal(*losses)
    assert leaves[0].grad is not None
    assert leaves[1].grad is not None
    assert torch.equal(leaves[0].grad, leaves[1].grad)
    plain.cross_entropy(logits.cpu(), targets)
    for got, expected in zip(monitor.compute().loss, plain.compute().loss, strict=True):
        assert got == pytest.approx(expected, rel=1e-2 if dtype == torch.bfloat16 else 1e-5, nan_ok=True)
