"""Reproducing: what a reproduction trained and how long it took is written down, also when it is stopped."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from heavytail.experiment.store import RunStore
from heavytail.plotting.style import Picture
from heavytail.report.reproduce import reproduce
from heavytail.results.claims import ClaimRule
from heavytail.results.figure import Figure
from heavytail.results.results import Results, SweepRef
from heavytail.train.options import Options
from heavytail.train.progress import display
from tools.publish import publish

PRESET = """
name = "mine"
[run]
data = { name = "random-heavy-tail", groups = 3 }
model = "linear"
steps = 3
[sweep]
lr = [0.1, 1.0]
[[sweep.optim]]
name = "gd"
[[sweep.optim]]
name = "adam"
"""


@pytest.fixture
def mine(tmp_path: Path) -> Figure:
    """A figure and a claim on four runs of three steps."""
    (tmp_path / "mine.toml").write_text(PRESET)
    ref = SweepRef(str(tmp_path / "mine.toml"))

    def final(results: Results) -> float:
        return results.selected(ref, results.labels(ref)[0]).final_loss

    def plot(results: Results) -> Picture:
        picture = Picture(1, 1)
        picture.panel(0, 0, "loss", "step", "").level(final(results), "final")
        return picture

    rule = ClaimRule("falls", "final loss of gradient descent", "<=", 2.0, final)
    return Figure("fig99", "Mine", "Figure 99", "A loss.", (ref,), (rule,), plot)


def remake(mine: Figure, folder: Path, **changed: Any) -> list[dict[str, Any]]:
    """Reproduce the figure, and return the rows of timing.json."""
    options = Options(folder / "data", "cpu", 1)
    with display(quiet=True) as shown:
        settings = {"scale": "quick", "options": options, "display": shown, **changed}
        reproduce([mine], RunStore(folder / "root"), folder / "out", **settings)
    rows: list[dict[str, Any]] = json.loads((folder / "out" / "timing.json").read_text())
    return rows


def test_timing_tells_trained_from_reused(mine: Figure, tmp_path: Path) -> None:
    """The first time every run is trained, the second time every run is reused; both are written down."""
    before = datetime.now(UTC)
    remake(mine, tmp_path)
    first, second = remake(mine, tmp_path)
    assert (first["trained"], first["reused"], first["finished"]) == (4, 0, True)
    assert (second["trained"], second["reused"], second["finished"]) == (0, 4, True)
    assert (first["scale"], first["figures"]) == ("quick", ["fig99"])
    assert -1 <= (datetime.fromisoformat(first["started"]) - before).total_seconds() < 60
    assert 0 < first["seconds"] < 60


def test_a_stopped_reproduction_is_written_down(mine: Figure, tmp_path: Path) -> None:
    """Ctrl-C in the middle leaves a row that says how many runs were trained and that more are to come."""

    class Stops:
        def started(self, spec: Any) -> None: ...

        def progressed(self, spec: Any, step: int, loss: float) -> None: ...

        def finished(self, spec: Any, status: str) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        remake(mine, tmp_path, display=Stops())
    rows = remake(mine, tmp_path)
    assert [(row["trained"], row["reused"], row["finished"]) for row in rows] == [(1, 0, False), (3, 1, True)]


def test_what_is_reproduced_can_be_published(mine: Figure, tmp_path: Path) -> None:
    """The folder that `reproduce` leaves is one that `publish` takes: verdict, picture, machine and time."""
    remake(mine, tmp_path)
    (made,) = publish([tmp_path / "out"], tmp_path / "to")
    (claim,) = json.loads((made / "claims.json").read_text())
    assert claim["verdict"] == "reproduced"
    assert (made / "figures" / "fig99.png").is_file()
    (machine,) = json.loads((made / "environment.json").read_text())
    assert machine["device"] == "cpu"
    assert json.loads((made / "timing.json").read_text())[0]["trained"] == 4
    text = " ".join(file.read_text() for file in made.rglob("*.json"))
    assert str(tmp_path) not in text
