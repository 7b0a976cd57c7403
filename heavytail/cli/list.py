"""List figures, presets and components: data sets, models, optimizers, losses and probes."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from heavytail.results.figure import Figure

EXAMPLE = "heavytail list optim"
DURATION = ""
KINDS = ("data", "model", "optim", "loss", "probe")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the kind to list."""
    parser.add_argument("what", nargs="?", help="figures, presets, data, model, optim, loss or probe (default: all)")


def run(args: argparse.Namespace) -> int:
    """Print names and titles."""
    from heavytail.errors import unknown
    from heavytail.experiment import preset
    from heavytail.results.figure import all_figures

    tables: dict[str, Iterable[tuple[str, str]]] = {
        "figures": ((f.id, f"{f.title} ({_origin(f)})") for f in all_figures()),
        "presets": ((name, str(preset.read_preset(name).get("title", ""))) for name in preset.preset_names()),
        **{kind: _recipes(kind) for kind in KINDS},
    }
    if args.what and args.what not in tables:
        raise unknown("kind", args.what, tables)
    for kind, rows in tables.items():
        if args.what in (None, kind):
            print(kind)
            for name, text in rows:
                print(f"  {name:24} {text}")
    return 0


def _origin(figure: Figure) -> str:
    """Return the file of a figure and the presets that it reads."""
    file = figure.plot.__module__.removeprefix("heavytail.").replace(".", "/")
    presets = ", ".join(dict.fromkeys(ref.preset for ref in figure.sweeps))
    return f"{file}.py" + (f"; presets: {presets}" if presets else "")


def _recipes(kind: str) -> Iterator[tuple[str, str]]:
    from heavytail.experiment.registry import registry

    recipes = registry(kind)
    for name in recipes.names():
        text = (recipes.recipe(name).__doc__ or "").strip().splitlines()
        yield name, text[0] if text else ""
