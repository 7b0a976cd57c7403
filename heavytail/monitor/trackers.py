"""Readings to experiment trackers, for plain loops; the Trainer's and Lightning's own trackers need none of this.

log = tensorboard(SummaryWriter("runs/gpt2"))
log(monitor.compute(), step, "train/")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from heavytail.monitor.monitor import Reading

__all__ = ["Log", "mlflow", "tensorboard", "wandb"]


class Log(Protocol):
    """Sends a reading, its names behind a prefix."""

    def __call__(self, reading: Reading, step: int, prefix: str = "") -> None: ...


def tensorboard(writer: Any) -> Log:
    """Return a log to a `torch.utils.tensorboard.SummaryWriter`."""

    def log(reading: Reading, step: int, prefix: str = "") -> None:
        for name, value in reading.to_dict(prefix).items():
            writer.add_scalar(name, value, step)

    return log


def wandb(run: Any) -> Log:
    """Return a log to a run of Weights & Biases, as `wandb.init` returns it (mode="offline" needs no account)."""

    def log(reading: Reading, step: int, prefix: str = "") -> None:
        run.log(reading.to_dict(prefix), step=step)

    return log


def mlflow(client: Any = None) -> Log:
    """Return a log to the active MLflow run, or to whatever else has `log_metrics(metrics, step=...)`."""
    if client is None:
        import mlflow as client  # type: ignore[no-redef]

    def log(reading: Reading, step: int, prefix: str = "") -> None:
        client.log_metrics(reading.to_dict(prefix), step=step)

    return log
