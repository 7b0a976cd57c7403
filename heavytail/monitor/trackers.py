"""Readings to experiment trackers, for plain loops; the Trainer's and Lightning's own trackers need none of this.

log = tensorboard(SummaryWriter("runs/gpt2"))
log(monitor.compute(), step, "train/")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from heavytail.monitor.monitor import Reading

__all__ = ["Log", "mlflow", "tensorboard", "trackio", "wandb"]

STEP = "heavytail/step"


class Log(Protocol):
    """Sends a reading, with a prefix before its names."""

    def __call__(self, reading: Reading, step: int, prefix: str = "") -> None: ...


def tensorboard(writer: Any) -> Log:
    """Return a log to a `torch.utils.tensorboard.SummaryWriter`."""

    def log(reading: Reading, step: int, prefix: str = "") -> None:
        for name, value in reading.to_dict(prefix).items():
            writer.add_scalar(name, value, step)

    return log


def wandb(run: Any) -> Log:
    """Return a log to a run of Weights & Biases, as `wandb.init` returns it (mode="offline" needs no account).

    The readings have a step axis of their own, "heavytail/step": the run's own counts its calls of `log`, and drops
    what comes with a lower step.
    """
    run.define_metric(STEP)
    defined: set[str] = set()

    def log(reading: Reading, step: int, prefix: str = "") -> None:
        table = reading.to_dict(prefix)
        for name in table.keys() - defined:
            run.define_metric(name, step_metric=STEP)
        defined.update(table)
        run.log(table | {STEP: step})

    return log


def trackio(run: Any) -> Log:
    """Return a log to a run of trackio, as `trackio.init` returns it; its client has no `define_metric`."""

    def log(reading: Reading, step: int, prefix: str = "") -> None:
        run.log(reading.to_dict(prefix), step=step)

    return log


def mlflow(client: Any = None) -> Log:
    """Return a log to the active MLflow run, or to another object with `log_metrics(metrics, step=...)`."""
    if client is None:
        import mlflow as client  # type: ignore[no-redef]

    def log(reading: Reading, step: int, prefix: str = "") -> None:
        table = reading.to_dict(prefix)
        # A file store keeps a metric per file: "loss" and "loss/group_01" cannot both be.
        parents = {name for name in table if any(other.startswith(f"{name}/") for other in table)}
        client.log_metrics({f"{k}/all" if k in parents else k: v for k, v in table.items()}, step=step)

    return log
