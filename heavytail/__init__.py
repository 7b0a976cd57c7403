"""heavytail: reproduce, check and measure why Adam outperforms gradient descent on language models.

Public names are imported on first use, so that `import heavytail` and `heavytail --help` stay fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # so that a user's type checker knows what __getattr__ imports
    from heavytail import functional
    from heavytail.errors import HeavyTailError
    from heavytail.head import linear_cross_entropy
    from heavytail.metrics import ClassStats, FrequencyGroups
    from heavytail.monitor.journal import Journal
    from heavytail.monitor.monitor import Monitor, Reading

__version__ = "0.2.0"

_PUBLIC = {
    "ClassStats": "heavytail.metrics",
    "FrequencyGroups": "heavytail.metrics",
    "Journal": "heavytail.monitor.journal",
    "Monitor": "heavytail.monitor.monitor",
    "Reading": "heavytail.monitor.monitor",
    "linear_cross_entropy": "heavytail.head",
    "HeavyTailError": "heavytail.errors",
}

__all__ = [
    "ClassStats",
    "FrequencyGroups",
    "HeavyTailError",
    "Journal",
    "Monitor",
    "Reading",
    "__version__",
    "functional",
    "linear_cross_entropy",
]


def __getattr__(name: str) -> Any:
    if name == "functional":
        return import_module("heavytail.functional")
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'heavytail' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
