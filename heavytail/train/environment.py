"""Versions, machine and threads: the conditions besides its spec on which a measured number may depend."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import torch

from heavytail import __version__


def environment(device: str = "cpu") -> dict[str, Any]:
    """Return the environment as a table to store with measured numbers."""
    return {
        "heavytail": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
