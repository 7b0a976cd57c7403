"""List figures, presets and components: data sets, models, optimizers, losses and probes.

Figures are listed with what is stored of them at each scale. For those of which nothing is stored, the time that they
take on this machine's cores is printed, as published.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from heavytail.cli._command import SCALES, data_dir, run_store, store_arguments
from heavytail.cli._complete import completes

if TYPE_CHECKING:
    from heavytail.results.figure import Figure
    from heavytail.results.results import Results

EXAMPLE = "heavytail list optim"
DURATION = ""
KINDS = ("figures", "presets", "data", "model", "optim", "loss", "probe")
Row = Mapping[str, Any]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the kind to list, and where runs are stored."""
    completes(parser.add_argument("what", nargs="?", help=f"{', '.join(KINDS)} (default: all)"), KINDS)
    parser.add_argument("--json", action="store_true", help="print JSON")
    store_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print names and titles."""
    from heavytail.cli._table import print_table
    from heavytail.errors import unknown

    if args.what and args.what not in KINDS:
        raise unknown("kind", args.what, KINDS)
    chosen = [args.what] if args.what else [*KINDS]
    rows: dict[str, list[Row]] = {kind: [*_rows(kind, args)] for kind in chosen}
    if args.json:
        print(json.dumps(rows, indent=1))
        return 0
    for kind in chosen:
        print(kind)
        if kind == "figures":
            lines = [
                (f"  {row['name']}", *map(_state, row["scales"].values()), f"{row['title']} ({_origin(row)})")
                for row in rows[kind]
            ]
            print_table(("", *reversed(SCALES), ""), lines, colours={"stored": "green"})
        else:
            for row in rows[kind]:
                print(f"  {row['name']:24} {row['title']}")
    return 0


def _rows(kind: str, args: argparse.Namespace) -> Iterator[Row]:
    if kind == "figures":
        yield from _figures(args)
    elif kind == "presets":
        from heavytail.experiment import preset

        for name in preset.preset_names():
            yield {"name": name, "title": str(preset.read_preset(name).get("title", ""))}
    else:
        from heavytail.experiment.registry import registry

        recipes = registry(kind)
        for name in recipes.names():
            text = (recipes.recipe(name).__doc__ or "").strip().splitlines()
            yield {"name": name, "title": text[0] if text else ""}


def _figures(args: argparse.Namespace) -> Iterator[Row]:
    """The figures: name, title, file, presets; by scale the number of missing runs and the published seconds.

    `missing` is null where nothing is stored, `seconds` where no time is published.
    """
    from heavytail.report.plan import published
    from heavytail.results.figure import all_figures
    from heavytail.results.results import Results
    from heavytail.system import num_cores

    store, cores = run_store(args), num_cores()
    keys = set(store.keys())
    states: dict[str, dict[str, Row]] = {}
    for scale in reversed(SCALES):
        missing = _missing(all_figures(), Results(store, scale, data_dir=data_dir(args)), keys)
        times = published(scale).get("seconds", {})
        for figure in all_figures():
            time = times.get(figure.id)
            seconds = None if time is None else round(time["runs"] / cores + time["drawing"], 1)
            states.setdefault(figure.id, {})[scale] = {"missing": missing.get(figure.id), "seconds": seconds}
    for figure in all_figures():
        presets = list(dict.fromkeys(ref.preset for ref in figure.sweeps))
        file = figure.plot.__module__.removeprefix("heavytail.").replace(".", "/") + ".py"
        yield {
            "name": figure.id, "title": figure.title, "file": file, "presets": presets, "scales": states[figure.id]
        }  # fmt: skip


def _missing(figures: Sequence[Figure], results: Results, stored: set[str]) -> dict[str, int]:
    """The number of runs that figures lack, of those figures of which at least one run is stored."""
    if not stored:
        return {}
    from heavytail.experiment.waves import expected, keys
    from heavytail.train.runner import remember

    lookup, guesses = remember(results.store), dict[str, float]()
    missing: dict[str, int] = {}
    for figure in figures:
        sweeps = [results.sweep(ref) for ref in figure.sweeps]
        if any(spec.key in stored for sweep in sweeps for spec in sweep.propose(lambda spec: None)):
            lacking = [expected(sweep, lookup, guesses) for sweep in sweeps]
            missing[figure.id] = len({key for one in lacking for waves in one.values() for key in keys(waves)})
    return missing


def _state(state: Row) -> str:
    missing, seconds = state["missing"], state["seconds"]
    if missing is not None:
        return f"{missing} runs missing" if missing else "stored"
    if seconds is None:
        return "-"
    return f"{max(seconds, 1):.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _origin(row: Row) -> str:
    """The file of a figure and the presets that it reads."""
    return f"{row['file']}" + (f"; presets: {', '.join(row['presets'])}" if row["presets"] else "")
