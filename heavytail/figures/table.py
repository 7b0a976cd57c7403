"""Table 1: models x data x batch, generated from the presets at the requested scale.

No runs and no claims. A row is a problem: variants of a preset with another loss share the preset's row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from heavytail.experiment.preset import preset_names, read_preset
from heavytail.experiment.registry import Component, registry
from heavytail.experiment.sweep import Sweep
from heavytail.plotting.style import Picture, TextTable, optimizer_name, split_label
from heavytail.results.figure import Figure, all_figures, register
from heavytail.results.results import Results, SweepRef

HEADER = ("preset", "model", "data", "batch", "steps", "optimizers", "seeds", "figures")


def rows(results: Results) -> list[tuple[str, ...]]:
    """Return the rows of the table, one per problem, those of the paper first."""
    users: dict[tuple[str, str], list[str]] = {}
    for figure in all_figures():
        for ref in figure.sweeps:
            users.setdefault((ref.preset, ref.variant), []).append(figure.id.removeprefix("fig").lstrip("0"))
    table: dict[tuple[str, ...], tuple[str, dict[str, None]]] = {}  # problem -> name, figures that use it
    for preset in sorted(preset_names(), key=lambda name: not read_preset(name).get("paper")):
        for variant in ("", *read_preset(preset).get("variant", ())):
            name, sweep = " ".join(filter(None, (preset, variant))), SweepRef(preset, (), variant).load(results.scale)
            if "loss" in sweep.run:
                sweep = SweepRef(preset).load(results.scale)
            _, figures = table.setdefault((preset, *problem(sweep)), (name, {}))
            figures |= dict.fromkeys(users.get((preset, variant), ()))
    return [
        (name, *cells[1:], ", ".join(sorted(figures, key=_place)) or "–") for cells, (name, figures) in table.items()
    ]


def problem(sweep: Sweep) -> tuple[str, ...]:
    """Return the cells of a problem: model, data, batch, steps, optimizers, seeds of the verdicts."""
    model, data = (Component.parse(sweep.run[kind], kind) for kind in ("model", "data"))
    batch = sweep.run.get("batch_size")
    return (
        ", ".join((model.name, *_settings(model.params))),
        ", ".join((registry("data").make(data).title, *_settings(data.params))),
        "full" if batch is None else _format(batch),
        _format(sweep.run["steps"]),
        _optimizers((arm.label for arm in sweep.arms), stochastic=batch is not None),
        str(len(sweep.verdict_seeds)),
    )


def plot(results: Results) -> Picture:
    """Draw the table."""
    table = TextTable(HEADER, rows(results))
    width, height = table.inches
    picture = Picture(1, 1, width=width, height=height)
    picture.panel(0, 0, f"The problems at {results.scale} scale", "", "").table(table)
    return picture


def _settings(params: Mapping[str, Any]) -> Iterator[str]:
    for key, value in params.items():
        name = key.replace("_", " ")
        if isinstance(value, bool):
            yield name if value else f"no {name}"
        elif key != "path":  # the title of the data contains it
            yield f"{name} {_format(value)}"


def _format(value: Any) -> str:
    """Format a setting: 12 000, 16 × 32."""
    if isinstance(value, list | tuple):
        return " × ".join(map(_format, value))
    return f"{value:,}".replace(",", " ") if isinstance(value, int) and value > 9_999 else str(value)


def _optimizers(labels: Iterable[str], *, stochastic: bool) -> str:
    """Group optimizers that have the same kinds of momentum: "GD, Adam ±m"."""
    kinds: dict[str, list[str]] = {}
    for label in labels:
        kinds.setdefault(optimizer_name(label, stochastic=stochastic), []).append(split_label(label)[1])
    sets: dict[tuple[str, ...], list[str]] = {}
    for name, suffixes in kinds.items():
        sets.setdefault(tuple(sorted(suffixes)), []).append(name)
    signs = {("+m", "-m"): " ±m", ("+m",): " +m", ("-m",): " −m"}
    return "; ".join(", ".join(names) + signs.get(suffixes, "") for suffixes, names in sets.items())


def _place(figure: str) -> tuple[int, str]:
    """Sort key: figures by number, then theorems and tables by name."""
    return (int(figure), "") if figure.isdigit() else (1_000, figure)


register(
    Figure(
        "table1",
        "Models, data and batches",
        "Table 1",
        "The problems of the paper, and then those of later work and of comparisons, as the presets state them: "
        "settings that differ from a component's defaults, the optimizers whose step sizes are searched (−m: without "
        "momentum, +m: with), and the figures made from them.",
        (),
        (),
        plot,
    )
)
