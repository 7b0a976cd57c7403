"""Table 1: what is printed is what the presets say, at the scale that is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from heavytail.experiment.preset import SCALES, preset_names, read_preset
from heavytail.experiment.store import RunStore
from heavytail.figures.table import HEADER, rows
from heavytail.plotting.panels import draw
from heavytail.plotting.style import TextTable
from heavytail.report.files import write_figure
from heavytail.results.figure import all_figures, figure
from heavytail.results.results import Results, SweepRef

Table = dict[str, dict[str, str]]


def table(folder: Path, scale: str) -> Table:
    return {row[0]: dict(zip(HEADER, row, strict=True)) for row in rows(Results(RunStore(folder), scale))}


@pytest.mark.parametrize("scale", SCALES)
def test_every_preset_and_every_figure_is_in_it(scale: str, tmp_path: Path) -> None:
    """No preset is missing, the paper's come first, and every figure stands beside the problem that it needs."""
    made = table(tmp_path, scale)
    papers = [bool(read_preset(name.split(" ")[0]).get("paper")) for name in made]
    assert papers == sorted(papers, reverse=True)
    assert set(preset_names()) <= set(made)
    named = {name for row in made.values() for name in row["figures"].split(", ")}
    needing = {one.id.removeprefix("fig").lstrip("0") for one in all_figures() if one.sweeps}
    assert named - {"–"} == needing


@pytest.mark.parametrize("scale", SCALES)
def test_steps_and_batch_are_the_presets(scale: str, tmp_path: Path) -> None:
    """Steps and batch of a row are those of the runs that a figure's needs would train."""
    made = table(tmp_path, scale)
    for name in ("gpt2", "cnn", "two-layer-transformer", "simple-vit full"):
        sweep = SweepRef(*name.split(" ")[:1], (), *name.split(" ")[1:]).load(scale)
        spec = sweep.spec(sweep.arms[0], -1.0, 0)
        assert int(made[name]["steps"].replace(" ", "")) == spec.steps
        assert made[name]["batch"] == ("full" if spec.batch_size is None else str(spec.batch_size))
        assert made[name]["seeds"] == str(len(sweep.verdict_seeds))


def test_a_scale_names_its_own_data(tmp_path: Path) -> None:
    """A row names the data of its scale: digits at quick scale where the paper has MNIST."""
    quick, paper = (table(tmp_path, scale)["cnn"] for scale in ("quick", "paper"))
    assert quick["data"].startswith("digits+Barcoded")
    assert paper["data"].startswith("MNIST+Barcoded")
    assert paper["optimizers"] == "GD, normalised GD, sign descent, Adam ±m"


def test_variants_of_the_loss_share_a_row(tmp_path: Path) -> None:
    """Weighted losses are the same problem: figure 22, which has them, is named once and they have no row."""
    made = table(tmp_path, "paper")
    assert not any("weighted" in name for name in made)
    assert made["linear"]["figures"].split(", ").count("22") == 1


def test_the_picture_is_made_without_runs(tmp_path: Path) -> None:
    """Table 1 has a picture, a record of every cell, and no claim."""
    results = Results(RunStore(tmp_path / "none"), "quick")
    assert write_figure(figure("table1"), results, tmp_path) == []
    image = np.asarray(Image.open(tmp_path / "figures" / "table1.png").convert("L"))
    assert (image < 128).mean() > 0.01
    (panel,) = draw(figure("table1"), results).plotted
    (printed,) = panel["series"]
    assert [tuple(row) for row in printed["rows"]] == rows(results)


def test_cells_are_broken_after_commas_only() -> None:
    """A setting stays on one line, however long the cell is."""
    made = TextTable(("a",), [("first one 1, second one 22, third one 333, fourth one 4",)])
    lines = made.cells[1][0].replace("\N{NO-BREAK SPACE}", " ").split("\n")
    assert lines == ["first one 1, second one 22,", "third one 333, fourth one 4"]
