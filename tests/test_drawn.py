"""Figures that have not changed are not drawn again; everything that could change one draws it again."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from heavytail.experiment.store import RunStore
from heavytail.plotting.style import Picture
from heavytail.report import drawing, drawn
from heavytail.report.files import figure_files
from heavytail.report.page import write_report
from heavytail.report.reproduce import reproduce
from heavytail.results.claims import Claim, ClaimRule
from heavytail.results.figure import Figure, all_figures, figure
from heavytail.results.results import Results, SweepRef
from heavytail.train.options import Options
from heavytail.train.progress import display
from tests.problems import tiny_preset


def picture(results: Results) -> Picture:
    made = Picture(1, 1)
    made.panel(0, 0, "nothing", "x", "y").level(1.0, "one")
    return made


picture.__module__ = "heavytail.figures.mine"  # figures of other modules are always drawn


def mine(folder: Path) -> Figure:
    """A figure on two runs, with claims whose numbers are finite, infinite and undefined."""
    preset = folder / "mine.toml"
    if not preset.exists():
        preset.write_text(tiny_preset(3, "lr = [0.1]", 'name = "gd"', 'name = "adam"'))
    ref = SweepRef(str(preset))
    rules = (
        ClaimRule("third", "1/3 of the loss", "<=", 2.0, lambda r: r.selected(ref, r.labels(ref)[0]).final_loss / 3),
        ClaimRule("infinite", "inf", "<=", 2.0, lambda r: float("inf")),
        ClaimRule("undefined", "nan", "<=", 2.0, lambda r: float("nan")),
    )
    return Figure("fig99", "Mine", "Figure 99", "A loss.", (ref,), rules, picture)


def make(folder: Path, *, figures: list[Figure] | None = None, scale: str = "quick") -> list[Claim]:
    options = Options(folder / "data", "cpu", 1)
    with display(quiet=True) as shown:
        return reproduce(
            figures or [mine(folder)], RunStore(folder / "root"), folder / "out", scale=scale, options=options,
            display=shown,
        )  # fmt: skip


def stamps(folder: Path) -> dict[str, int]:
    """The inode of each file of the figure and of the page: a file that is written again has another."""
    files = [*(folder / "out" / "figures" / name for name in figure_files("fig99")), folder / "out" / "report.html"]
    return {file.name: os.stat(file).st_ino for file in files if file.exists()}


def shorten(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-2])


CHANGES: dict[str, Callable[[Path], object]] = {
    "damaged picture": lambda folder: shorten(folder / "out" / "figures" / "fig99.png"),
    "damaged pdf": lambda folder: shorten(folder / "out" / "figures" / "fig99.pdf"),
    "edited numbers": lambda folder: (folder / "out" / "figures" / "fig99.json").write_text("{}"),
    "deleted search": lambda folder: (folder / "out" / "figures" / "fig99-search.png").unlink(),
    "damaged entries": lambda folder: shorten(folder / "out" / drawn.FILE),
    "deleted run": lambda folder: next((folder / "root" / "runs").glob("*/status.json")).unlink(),
    "damaged run": lambda folder: shorten(next((folder / "root" / "runs").glob("*/history-*"))),
    "recommitted run": lambda folder: _recommit(folder),
    "renamed preset": lambda folder: _edit(folder / "mine.toml", "title = ", "title = 'another' # "),
    "longer runs": lambda folder: _edit(folder / "mine.toml", "steps = 3", "steps = 4"),
    "another scale": lambda folder: None,
    "another code": lambda folder: None,
}


def _edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def _recommit(folder: Path) -> None:
    """Commit a run again as another machine would have: same numbers, another environment."""
    store = RunStore(folder / "root")
    spec = Results(store, "quick").sweep(mine(folder).sweeps[0]).propose(lambda spec: None)[0]
    history = store.load(spec)
    assert history is not None
    history.environment = {**history.environment, "processor": "another"}
    store.save(history, step=spec.steps)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Claim]]:
    folder = tmp_path_factory.mktemp("made")
    return folder, make(folder)


def test_an_unchanged_figure_is_left_alone(first: tuple[Path, list[Claim]]) -> None:
    """A second reproduction writes neither the figure nor the page, and returns the same claims, NaN included."""
    folder, claims = first
    before = stamps(folder)
    assert len(before) == 5
    again = make(folder)
    assert stamps(folder) == before
    assert [repr(claim) for claim in again] == [repr(claim) for claim in claims]


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_draws_it_again(
    change: str, first: tuple[Path, list[Claim]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damaged, edited and missing files, changed runs, presets, scales and code: the figure is drawn again, whole."""
    folder, claims = tmp_path / "copy", first[1]
    shutil.copytree(first[0], folder)
    whole = {name: (folder / "out" / "figures" / name).exists() for name in figure_files("fig99")}
    before = stamps(folder)
    CHANGES[change](folder)
    if change == "another code":
        monkeypatch.setattr(drawn, "code", lambda: "another version")
    again = make(folder, scale="small" if change == "another scale" else "quick")
    after = stamps(folder)
    assert after["fig99.json"] != before["fig99.json"]
    assert after["fig99.png"] != before["fig99.png"]
    assert {name: (folder / "out" / "figures" / name).exists() for name in figure_files("fig99")} == whole
    if change not in ("another scale", "longer runs"):
        assert repr(again) == repr(claims)


def test_a_damaged_page_is_written_again(first: tuple[Path, list[Claim]]) -> None:
    """A page is left alone only if all of it is there, made of the same files with the same title."""
    folder, _ = first
    page = folder / "out" / "report.html"
    whole = page.read_bytes()
    for damage in (b"", whole[:-1], whole[:100] + b"x" + whole[101:]):
        page.write_bytes(damage)
        assert write_report(folder / "out").read_bytes() == whole
    write_report(folder / "out", title="Another")
    assert page.read_bytes() != whole
    write_report(folder / "out")
    assert page.read_bytes() == whole


def test_figures_of_other_modules_are_always_drawn(tmp_path: Path) -> None:
    """The key covers the code of this package alone."""
    other = dataclasses.replace(mine(tmp_path), plot=lambda results: picture(results))
    make(tmp_path, figures=[other])
    before = stamps(tmp_path)
    make(tmp_path, figures=[other])
    assert stamps(tmp_path)["fig99.png"] != before["fig99.png"]


def test_the_data_folder_is_part_of_figures_without_runs(tmp_path: Path) -> None:
    """A text that is fetched later draws figure 9 again; tokenised texts, which drawing itself writes, do not."""
    nine, results = figure("fig09"), Results(RunStore(tmp_path), "quick", data_dir=tmp_path)
    before = drawn.key_of(nine, results, {})
    (tmp_path / "tokenised" / "one").mkdir(parents=True)
    assert drawn.key_of(nine, results, {}) == before
    (tmp_path / "ptb").mkdir()
    with_folder = drawn.key_of(nine, results, {})
    (tmp_path / "ptb" / "train.txt").write_text("a b")
    assert len({before, with_folder, drawn.key_of(nine, results, {})}) == 3


def test_every_figure_of_the_package_has_a_key(tmp_path: Path) -> None:
    """No plot function hides its module, and no two figures share a key."""
    results = Results(RunStore(tmp_path), "quick")
    keys = [drawn.key_of(one, results, {}) for one in all_figures()]
    assert all(keys)
    assert len(set(keys)) == len(keys)


def test_processes_draw_the_same_files(tmp_path: Path) -> None:
    """Figures drawn in several processes have the same bytes, claims and order as in this one."""
    tasks = [drawing.Task(figure(name), None, "key") for name in ("fig18", "fig06", "fig16", "fig04")]
    results = Results(RunStore(tmp_path / "root"), "quick", data_dir=tmp_path)
    made = {}
    for workers in (1, 2):
        out = tmp_path / str(workers)
        claims = []
        for task, one in drawing.draw(tasks, results, out, workers):
            assert isinstance(one, drawing.Made)
            claims.append((task.figure.id, repr(one.claims)))
            assert drawn.recall(out, task.figure, "key", "quick") is not None
        made[workers] = claims, {f.name: f.read_bytes() for f in out.glob("figures/*")}
    assert made[1] == made[2]
    assert len(made[1][1]) == 1 + 3 + 1 + 1  # three of them have no runs, and only the reason
