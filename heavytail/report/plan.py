"""The plan of a reproduction: the runs that its figures still lack, and the time that these take.

Runs are counted by carrying out every search with made-up outcomes (`experiment.waves`). Runs that several searches
share count once.

The time of a run is that of stored runs of its problem; without any, the published one of its search (see `published`);
without that, a rough estimate (`train.forecast`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heavytail.experiment.search import Lookup
from heavytail.experiment.waves import expected
from heavytail.train.forecast import Estimates

if TYPE_CHECKING:
    from heavytail.results.figure import Figure
    from heavytail.results.results import Results, SweepRef

TIMES = "times.json"  # written by `python -m tools`


class Plan:
    """The runs that figures lack, by key, and the estimated seconds of each.

    Args:
        results: finished runs; their store has the times of its runs.
        lookup: the outcome of a finished run of the store, None for one that is not finished.
        data_dir: where public data sets are.
    """

    def __init__(self, results: Results, lookup: Lookup, data_dir: Path) -> None:
        self._results, self._lookup = results, lookup
        self._guesses: dict[str, float] = {}
        self._of: dict[SweepRef, dict[str, float]] = {}
        self.estimates = Estimates(results.store, data_dir)

    def runs(self, figure: Figure) -> dict[str, float]:
        """Return the seconds of the runs that a figure lacks, by key."""
        seconds: dict[str, float] = {}
        for ref in figure.sweeps:
            if ref not in self._of:
                self._of[ref] = self._search(ref)
            seconds |= self._of[ref]
        return seconds

    def _search(self, ref: SweepRef) -> dict[str, float]:
        sweep, seconds = self._results.sweep(ref), dict[str, float]()
        for label, waves in expected(sweep, self._lookup, self._guesses).items():
            seconds |= self.estimates.runs(waves, self._published(ref, label))
        return seconds

    def _published(self, ref: SweepRef, label: str) -> float | None:
        searches: Mapping[str, float] = published(self._results.scale).get("searches", {})
        return searches.get(search_name(ref, label))


def search_name(ref: SweepRef, label: str) -> str:
    """Return the name of a search in the published times."""
    return f"{ref.preset}/{ref.variant}/{label}"


def published(scale: str) -> Mapping[str, Any]:
    """Return the published times of a scale: `machine`, `seconds` of each figure, `searches`; empty if there are none.

    `seconds` has, by figure, the time of its `runs`, shared ones included, and that of `drawing` it, on one core;
    `searches` the time of a run of each search (see `search_name`).
    """
    table: Mapping[str, Any] = _published().get(scale, {})
    return table


@cache
def _published() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(resources.files("heavytail.report").joinpath(TIMES).read_text("utf-8"))
    return table
