"""Completion of values in the shell, by argcomplete (the extra `completion`); without it nothing changes.

Names of components are read from the sources, because importing an optimizer imports torch.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

_FOLDERS = {"optim": "optim", "data": "data", "model": "models"}


def autocomplete(parser: argparse.ArgumentParser) -> None:
    """Answer the shell and exit, if it is the shell that asks (see `heavytail completion`)."""
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)


def completes(action: argparse.Action, kind: str | Sequence[str]) -> None:
    """Let the shell complete an argument by names: these, or those of a kind ("public": the public data sets)."""

    def completer(prefix: str, **_: object) -> Iterable[str]:
        return [name for name in (names(kind) if isinstance(kind, str) else kind) if name.startswith(prefix)]

    action.completer = completer  # type: ignore[attr-defined]


def names(kind: str) -> list[str]:
    """Return the names of a kind."""
    special: dict[str, Callable[[], list[str]]] = {"figures": _figures, "presets": _presets, "public": _public}
    return special[kind]() if kind in special else _registered(_FOLDERS[kind])


def _figures() -> list[str]:
    from heavytail.results.figure import all_figures

    return [figure.id for figure in all_figures()]


def _presets() -> list[str]:
    from heavytail.experiment.preset import preset_names

    return [*preset_names()]


def _public() -> list[str]:
    from heavytail.data.fetch import DATASETS

    return [*DATASETS]


def _registered(folder: str) -> list[str]:
    files = (Path(__file__).parents[1] / folder).rglob("*.py")
    return sorted({name for file in files for name in re.findall(r'register\(\s*"([^"]+)"', file.read_text("utf-8"))})
