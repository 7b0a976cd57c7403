"""The monitor in two real processes, plain and under FSDP2, against one process that sees all rows."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from heavytail.errors import SpecError
from heavytail.monitor.monitor import Monitor, Reading
from tests.test_distributed import free_port

CLASSES, ROWS = 9, 24

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")


def _on_two_ranks(work: Callable[..., None], folder: Path) -> None:
    """Run `work(rank, folder, port)` in two processes that may meet at a free port."""
    mp.spawn(work, args=(folder, free_port()), nprocs=2)


def _check_resumed(folder: Path, rank: int) -> Any:
    """Check that a rank's reading of an interrupted training is that of the whole one; return it."""
    resumed, whole = (np.load(folder / f"{name}-{rank}.npz") for name in ("resumed", "whole"))
    for name in ("index", "class_count", "count"):
        np.testing.assert_array_equal(resumed[name], whole[name])
    np.testing.assert_allclose(resumed["loss"], whole["loss"], rtol=1e-12)
    return resumed


@pytest.fixture(scope="module")
def readings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes left what they read."""
    folder = tmp_path_factory.mktemp("ranks")
    _on_two_ranks(_rank, folder)
    return folder


def test_two_processes_read_what_one_reads(readings: Path) -> None:
    """Sums of two ranks are one process's, also where one rank saw no rows, and every rank cuts the same groups."""
    inputs, targets = _rows()
    monitor = Monitor(num_classes=CLASSES, num_groups=3)
    head = _head()
    with monitor.watch(head):
        monitor.update(head(inputs), targets)
    expected = monitor.compute()
    for rank in range(2):
        _check(np.load(readings / f"uneven-{rank}.npz"), expected)
        _check(np.load(readings / f"even-{rank}.npz"), expected)
        local = np.load(readings / f"local-{rank}.npz")
        assert local["count"].sum() == ROWS / 2


def test_fsdp_reads_what_one_process_reads(readings: Path) -> None:
    """With the parameters sharded over two ranks, losses, head statistics and updates are those of one process."""
    inputs, targets = _rows()
    model = nn.Sequential(nn.Identity(), _head())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    monitor = Monitor(num_classes=CLASSES, num_groups=3)
    with monitor.watch(model[1], optimizer):
        monitor.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    expected = monitor.compute()
    assert {"grad_norm", "trace", "update_norm"} == set(expected.head)
    for rank in range(2):
        _check(np.load(readings / f"fsdp-{rank}.npz"), expected)


def test_a_rank_that_does_not_compute_is_an_error(readings: Path) -> None:
    """`compute` on rank 0 alone ends after its time limit with the remedy, and the next one works."""
    message = (readings / "alone.txt").read_text()
    assert "rank 1 did not call it within 1 s of rank 0" in message
    assert "out of `if rank == 0`" in message
    for rank in range(2):
        assert np.load(readings / f"after-{rank}.npz")["count"].sum() == ROWS


def test_replicas_count_once(readings: Path) -> None:
    """`process_group` leaves out ranks with the same rows, and DTensor logits count on one rank of their mesh."""
    for rank in range(2):
        assert np.load(readings / f"replica-{rank}.npz")["count"].sum() == ROWS
        np.testing.assert_array_equal(np.load(readings / f"dtensor-{rank}.npz")["count"].sum(), ROWS)


def _alone(rank: int, folder: Path) -> None:
    monitor = Monitor(num_classes=CLASSES, num_groups=3)
    inputs, targets = _rows()
    mine = slice(rank * ROWS // 2, (rank + 1) * ROWS // 2)
    monitor.update(_head()(inputs[mine]), targets[mine])
    if rank == 0:
        try:
            monitor.compute(timeout=1.0)
        except SpecError as error:
            (folder / "alone.txt").write_text(str(error))
    dist.barrier()
    _save(folder / f"after-{rank}.npz", monitor.compute())


def _replicated(rank: int, folder: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    inputs, targets = _rows()
    groups = [dist.new_group([r]) for r in range(2)]
    monitor = Monitor(num_classes=CLASSES, num_groups=3, process_group=groups[rank])
    monitor.update(_head()(inputs), targets)
    _save(folder / f"replica-{rank}.npz", monitor.compute())
    logits = distribute_tensor(_head()(inputs).detach(), init_device_mesh("cpu", (2,)), [Shard(1)])
    monitor = Monitor(num_classes=CLASSES, num_groups=3)
    monitor.update(logits, targets)
    _save(folder / f"dtensor-{rank}.npz", monitor.compute())


def _plain(rank: int, folder: Path) -> None:
    inputs, targets = _rows()
    head = _head()
    for name, mine in (
        ("even", slice(rank * ROWS // 2, (rank + 1) * ROWS // 2)),
        ("uneven", slice(0, ROWS - rank * ROWS)),
    ):
        monitor = Monitor(num_classes=CLASSES, num_groups=3)
        with monitor.watch(head):
            if len(targets[mine]):
                monitor.update(head(inputs[mine]), targets[mine])
        _save(folder / f"{name}-{rank}.npz", monitor.compute())
        if name == "even":
            _save(folder / f"local-{rank}.npz", monitor.compute(sync=False))


def _sharded(rank: int, folder: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    inputs, targets = _rows()
    mine = slice(rank * ROWS // 2, (rank + 1) * ROWS // 2)
    model = nn.Sequential(nn.Identity(), _head())
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    monitor = Monitor(num_classes=CLASSES, num_groups=3)
    with monitor.watch(model[1], optimizer):
        monitor.cross_entropy(model(inputs[mine]), targets[mine]).backward()
        optimizer.step()
    _save(folder / f"fsdp-{rank}.npz", monitor.compute())


def _rows() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(ROWS, 4, generator=generator), (torch.rand(ROWS, generator=generator) ** 3 * CLASSES).long()


def _head() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, CLASSES)


def _save(file: Path, reading: Reading) -> None:
    means = {
        name: getattr(reading, name) for name in ("loss", "accuracy", "p_correct", "share", "count", "class_count")
    }
    np.savez(file, index=reading.groups.index, **means, **reading.head)


def _check(found: np.lib.npyio.NpzFile, expected: Reading) -> None:
    np.testing.assert_array_equal(found["index"], expected.groups.index)
    np.testing.assert_array_equal(found["count"], expected.count)
    np.testing.assert_array_equal(found["class_count"], expected.class_count)
    for name in ("loss", "accuracy", "p_correct", "share"):
        np.testing.assert_allclose(found[name], getattr(expected, name), rtol=1e-6, err_msg=name)
    for name, values in expected.head.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, err_msg=name)


def _rank(rank: int, folder: Path, port: int) -> None:
    import torch.distributed.nn.functional  # noqa: F401 - before there is a group: see heavytail.train.distributed

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    try:
        _plain(rank, folder)
        _sharded(rank, folder)
        _replicated(rank, folder)
        _alone(rank, folder)
    finally:
        dist.destroy_process_group()


# -- the Hugging Face Trainer in two processes -----------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_the_trainer_counts_repeated_samples_once(tmp_path: Path) -> None:
    """Nine sequences on two ranks in batches of four: the sampler repeats some, and the reading has nine.

    Interrupted and resumed, the reading and its groups are those without interruption. Once the monitor of one rank has
    stopped, the other's stops at its next reading, and nobody waits.
    """
    pytest.importorskip("transformers", reason="pip install transformers accelerate")
    _on_two_ranks(_trainer_rank, tmp_path)
    for rank in range(2):
        _check_resumed(tmp_path, rank)
        found = np.load(tmp_path / f"trainer-{rank}.npz")
        assert found["eval"] == 9 * 6
        assert found["train"] > 0
    stopped = [(tmp_path / f"stopped-{rank}.txt").read_text() for rank in range(2)]
    assert stopped == ["that of another rank has stopped False", "made up False"]


def _trainer_rank(rank: int, folder: Path, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    from heavytail.monitor.hf import MonitorCallback
    from tests.test_monitor_hf import gpt2, make_trainer, tokens

    readings = {}
    for name, limit, resume in (("whole", 6, False), ("first", 3, False), ("resumed", 6, True)):
        torch.manual_seed(0)
        callback = MonitorCallback(num_groups=3)
        trainer = make_trainer(
            folder, gpt2(), [{"input_ids": row, "labels": row} for row in tokens(32)], callbacks=[callback],
            ddp_backend="gloo", max_steps=limit, logging_steps=6, eval_strategy="no",
            save_strategy="steps" if name == "first" else "no", save_steps=3,
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=resume)
        assert callback.stopped is None, callback.stopped
        readings[name] = callback.readings
    for name in ("whole", "resumed"):
        _save(folder / f"{name}-{rank}.npz", readings[name]["train"])
    torch.manual_seed(0)
    rows = [{"input_ids": row, "labels": row} for row in tokens(9)]
    callback = MonitorCallback(num_groups=3)
    trainer = make_trainer(
        folder, gpt2(), rows, callbacks=[callback], per_device_eval_batch_size=4, ddp_backend="gloo", max_steps=4
    )
    trainer.train()
    assert callback.stopped is None, callback.stopped
    counts = {split: reading.count.sum() for split, reading in callback.readings.items()}
    np.savez(folder / f"trainer-{rank}.npz", **counts)
    if rank == 1:
        callback._stop("made up")
    found = [trainer.evaluate() for _ in range(2)]
    (folder / f"stopped-{rank}.txt").write_text(f"{callback.stopped} {'eval_loss/group_01' in found[0] | found[1]}")
    dist.destroy_process_group()


# -- Lightning in two processes --------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_lightning_resumes_the_sums_of_all_ranks(tmp_path: Path) -> None:
    """Interrupted on two ranks and resumed, the reading and its groups are those without interruption."""
    pytest.importorskip("lightning", reason="pip install lightning")
    _on_two_ranks(_lightning_rank, tmp_path)
    for rank in range(2):
        resumed = _check_resumed(tmp_path, rank)
        assert resumed["count"].sum() == 2 * 16 * 6


def _lightning_rank(rank: int, folder: Path, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    from heavytail.monitor.lightning import MonitorCallback
    from tests.test_monitor_lightning import Module, fit

    for name, epochs, path in (("whole", 2, None), ("first", 1, None), ("resumed", 2, folder / "first.ckpt")):
        callback = MonitorCallback(head="head", num_groups=3, every_n_steps=100)
        callback.on_train_epoch_end = lambda *_: None  # type: ignore[method-assign]  # which would reset the sums
        module = Module()
        fit(
            folder, module, callback, accelerator="cpu", devices=2, strategy="ddp", max_epochs=epochs,
            limit_val_batches=0, ckpt_path=None if path is None else str(path),
        )  # fmt: skip
        assert callback.stopped is None, callback.stopped
        if name == "first":
            module.trainer.save_checkpoint(folder / "first.ckpt")
        assert callback.train is not None
        _save(folder / f"{name}-{rank}.npz", callback.train.compute())
    dist.destroy_process_group()
