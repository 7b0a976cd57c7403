"""The published times that a fresh clone estimates from: heavytail/report/times.json, from docs/results/*/timing.json.

timing.json has the time of all runs of each figure, shared ones included. The time of one search follows from the
figures in turn, those of few runs first: what other figures have not explained is divided equally among the other runs.
Where a slower machine's times of the shared runs leave nothing, the time of the others is unknown.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

from heavytail.experiment.store import RunStore
from heavytail.experiment.waves import expected, keys
from heavytail.files import read_json, strict_json
from heavytail.report.plan import search_name
from heavytail.results.figure import all_figures
from heavytail.results.results import Results
from tools.publish import SCALES


def text(published: Path) -> str:
    """Return the content of times.json for published results; scales without times are left out."""
    tables = {scale: _times(published / scale, scale) for scale in SCALES}
    return strict_json({scale: table for scale, table in tables.items() if table}).decode()


def _times(folder: Path, scale: str) -> dict[str, Any]:
    figures: dict[str, dict[str, float]] = {}
    for row in read_json(folder / "timing.json", []):
        for name, times in row.get("figure_seconds", {}).items():
            drawing = times["drawing"] or figures.get(name, times)["drawing"]  # 0: not drawn again
            figures[name] = {"runs": times["runs"], "drawing": drawing}
    if not figures:
        return {}
    machines = [str(table["processor"]) for table in read_json(folder / "environment.json", [])]
    return {
        "machine": ", ".join(dict.fromkeys(machines)),
        "seconds": dict(sorted(figures.items())),
        "searches": _searches(figures, scale),
    }


def _searches(figures: dict[str, dict[str, float]], scale: str) -> dict[str, float]:
    """The seconds of a run of each search."""
    with tempfile.TemporaryDirectory() as nowhere:
        results, guesses = Results(RunStore(Path(nowhere)), scale), dict[str, float]()
        runs: dict[str, dict[str, set[str]]] = {}  # figure -> search -> keys
        for figure in all_figures():
            for ref in figure.sweeps:
                for label, waves in expected(results.sweep(ref), lambda spec: None, guesses).items():
                    runs.setdefault(figure.id, {}).setdefault(search_name(ref, label), set()).update(keys(waves))
    # Sums that do not depend on the order of a set, which changes from one process to the next.
    of_figure = {name: set[str]().union(*mine.values()) for name, mine in runs.items() if name in figures}
    seconds: dict[str, float] = {}
    for name in sorted(of_figure, key=lambda name: (len(of_figure[name]), name)):
        known, other = of_figure[name] & seconds.keys(), of_figure[name] - seconds.keys()
        left = figures[name]["runs"] - math.fsum(seconds[key] for key in known)
        if left > 0:
            seconds |= dict.fromkeys(other, left / max(len(other), 1))
    searches: dict[str, float] = {}
    for name in of_figure:
        for search, mine in runs[name].items():
            if mine <= seconds.keys():
                searches[search] = round(math.fsum(seconds[key] for key in mine) / len(mine), 2)
    return dict(sorted(searches.items()))
