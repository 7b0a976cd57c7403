"""A figure: the sweeps it reads, the claims it checks, the function that plots it; and the registry of figures."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Literal, Protocol

from heavytail.errors import unknown
from heavytail.results.claims import Claim, ClaimRule
from heavytail.results.results import Results, SweepRef


class Picture(Protocol):
    """The result of a figure's plot function: rendered images, and the numbers in them."""

    @property
    def plotted(self) -> list[dict[str, Any]]:
        """All plotted numbers, panel by panel."""

    def render(self, kind: Literal["png", "pdf"]) -> bytes:
        """Return the content of an image file."""


@dataclass(frozen=True)
class Figure:
    """One figure, of the paper or of later work.

    Attributes:
        id: "fig04".
        title: short title.
        paper: its place in the paper, "Figure 4, section 3.1", or the later work that it is from, "arXiv 2505.19227".
        about: one or two sentences on the effect to look for; the caption begins with it.
        sweeps: references to the sweeps that it reads.
        rules: the claims that it checks.
        plot: the function that plots it (see `plotting.panels.draw`).
    """

    id: str
    title: str
    paper: str
    about: str
    sweeps: tuple[SweepRef, ...]
    rules: tuple[ClaimRule, ...]
    plot: Callable[[Results], Picture]

    @property
    def later(self) -> bool:
        """Whether it shows later work, not the paper's."""
        return "arXiv" in self.paper

    def claims(self, results: Results, missing: str | None = None) -> list[Claim]:
        """Return every claim, "not run" if its runs are missing; `missing` is the reason, if known."""
        results = results.for_figure(self.id)
        seeds = max((len(results.sweep(ref).verdict_seeds) for ref in self.sweeps), default=1)
        return [rule.check(self.id, results, missing, seeds) for rule in self.rules]

    def caption(self, results: Results) -> str:
        """Return the caption: the effect, the method, the data and the scale."""
        sweeps = [results.sweep(ref) for ref in self.sweeps]
        if not sweeps:
            return self.about
        seeds = sorted({sweep.verdict_seeds for sweep in sweeps})
        words = " or ".join(", ".join(map(str, one)) for one in seeds)
        spread = f"seed {words}" if max(map(len, seeds)) == 1 else f"medians over seeds {words}"
        if all(ref.probed for ref in self.sweeps):
            spread = f"measured along the run of seed {seeds[0][0]}"
        fixed = all(arm.grid.fixed for sweep in sweeps for arm in sweep.arms)
        rates = "Fixed step sizes" if fixed else "Step sizes by the paper's search"
        data = ", ".join(dict.fromkeys(results.data_title(ref) for ref in self.sweeps))
        return f"{self.about} {rates}, {spread}; data: {data}; {sweeps[0].caption}."

    def search(self, results: Results) -> list[dict[str, Any]]:
        """Return the step-size search of every optimizer: all candidates, and why each was selected or rejected."""
        results, tables = results.for_figure(self.id), []
        for ref in self.sweeps:
            for label in results.labels(ref):
                best = results.search(ref, label)
                tables.append(
                    {
                        "preset": ref.preset,
                        "variant": ref.variant,
                        "optimizer": label,
                        "selected": best.chosen.lr if best.chosen else None,
                        "candidates": [{"lr": lr, "loss": loss, "reason": why} for lr, loss, why in best.table()],
                        "warning": best.warning,
                    }
                )
        return tables

    def environments(self, results: Results) -> list[Mapping[str, Any]]:
        """Return the versions and devices of the selected runs, without duplicates."""
        unique: list[Mapping[str, Any]] = []
        for ref in self.sweeps:
            for label in results.labels(ref):
                unique += [e for e in results.selected(ref, label).environments if e not in unique]
        return unique


_FIGURES: dict[str, Figure] = {}


def register(new: Figure) -> Figure:
    """Register a figure under its id."""
    assert new.id not in _FIGURES, f"{new.id} is registered twice"
    assert len({rule.id for rule in new.rules}) == len(new.rules), f"{new.id} has two claims of one name"
    _FIGURES[new.id] = new
    return new


def all_figures() -> list[Figure]:
    """Return all figures, by id."""
    _discover()
    return [_FIGURES[name] for name in sorted(_FIGURES)]


def figure(name: str) -> Figure:
    """Return a figure by its id ("fig04", "fig4" or "4"); raise SpecError with the nearest one if there is none."""
    _discover()
    if number := re.fullmatch(r"(?:fig)?(\d+)", name):
        name = f"fig{int(number[1]):02}"
    if name not in _FIGURES:
        raise unknown("figure", name, _FIGURES, see="heavytail list figures")
    return _FIGURES[name]


@cache
def _discover() -> None:
    figures = import_module("heavytail.figures")
    for info in pkgutil.iter_modules(figures.__path__):
        import_module(f"{figures.__name__}.{info.name}")
