"""Reproducing: what a reproduction trained and how long it took is written down, also when it is stopped."""

from __future__ import annotations

import json
import os
import signal
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from heavytail.experiment.store import RunStore
from heavytail.experiment.sweep import Sweep
from heavytail.experiment.waves import expected
from heavytail.plotting.style import Picture
from heavytail.report.reproduce import reproduce
from heavytail.results.claims import ClaimRule
from heavytail.results.figure import Figure
from heavytail.results.results import Results, SweepRef
from heavytail.train import cost
from heavytail.train.options import Options
from heavytail.train.progress import Bars, Lines, Silence, display
from heavytail.train.runner import Interrupted
from tests.problems import tiny, tiny_preset
from tools.publish import publish

PRESET = tiny_preset(3, "lr = [0.1, 1.0]", 'name = "gd"', 'name = "adam"')


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


def test_every_figure_has_its_seconds(mine: Figure, tmp_path: Path) -> None:
    """timing.json has, per figure, the time of drawing it and that of its runs, which a later reproduction reuses."""
    one, two = remake(mine, tmp_path)[0], remake(mine, tmp_path)[1]
    store = RunStore(tmp_path / "root")
    runs = [record["timing"] for _, _, record in store.records()]
    assert len(runs) == 4
    assert all(timing["seconds"] > 0 and timing["steps_per_second"] > 0 for timing in runs)
    for row in (one, two):
        (name,) = row["figure_seconds"]
        assert name == "fig99"
        assert row["figure_seconds"][name]["runs"] == round(sum(timing["seconds"] for timing in runs), 1)
        assert 0 < row["figure_seconds"][name]["drawing"] < 60


def test_recorded_times_replace_estimates(mine: Figure, tmp_path: Path) -> None:
    """Where a problem has finished runs, its costs are their median time; other problems are estimated."""
    remake(mine, tmp_path)
    store, sweep = RunStore(tmp_path / "root"), Results(RunStore(tmp_path / "root"), "quick").sweep(mine.sweeps[0])
    recorded = cost.recorded_seconds(store)
    seconds = [record["timing"]["seconds"] for _, _, record in store.records()]
    assert list(recorded.values()) == [statistics.median(seconds)]

    def rows(sweep: Sweep) -> list[cost.Row | None]:
        costs = cost.Costs(tmp_path, recorded)
        return [costs.row(waves) for waves in expected(sweep, lambda spec: None, {}).values()]

    for row in rows(sweep):
        assert row is not None
        assert row.seconds == row.runs * statistics.median(seconds)
        assert row.hours(speed=1.0) == row.seconds / 3600
    longer = replace(sweep, run={**sweep.run, "steps": 4}, _specs={})
    assert all(row is not None and row.recorded is None and row.seconds > 0 for row in rows(longer))


def test_a_busy_machine_does_not_look_slow() -> None:
    """The speed of a machine is measured in processor time, which waiting does not use up."""
    waits = lambda: time.sleep(0.02)  # noqa: E731
    assert cost._fastest(waits, 0.01, time.perf_counter) >= 0.02
    assert cost._fastest(waits, 0.01, time.thread_time) < 0.01
    threads = torch.get_num_threads()
    measured = cost.speed(0.05, 256)
    assert 0 < measured.now <= measured.idle
    assert torch.get_num_threads() == threads


def test_a_stopped_reproduction_is_written_down(mine: Figure, tmp_path: Path) -> None:
    """Ctrl-C in the middle leaves a row that says how many runs were trained and that more are to come."""

    class Stops(Silence):
        def started(self, spec: Any) -> None: ...

        def progressed(self, spec: Any, step: int, loss: float) -> None: ...

        def finished(self, spec: Any, status: str) -> None:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        remake(mine, tmp_path, display=Stops())
    rows = remake(mine, tmp_path)
    assert [(row["trained"], row["reused"], row["finished"]) for row in rows] == [(1, 0, False), (3, 1, True)]


def unneeding(name: str, plot: Callable[[Results], Picture] | None = None) -> Figure:
    """A figure without runs."""

    def blank(results: Results) -> Picture:
        picture = Picture(1, 1)
        picture.panel(0, 0, "nothing", "x", "y").level(1.0, "one")
        return picture

    return Figure(
        name, "Free", "Figure", "A line.", (), (ClaimRule("one", "1", "<=", 1.0, lambda _: 1.0),), plot or blank
    )


def test_figures_are_there_as_soon_as_their_runs_are(mine: Figure, tmp_path: Path) -> None:
    """A figure is drawn, with claims and report, before the first run that only another figure needs is trained."""
    longer = tmp_path / "longer.toml"
    longer.write_text(PRESET.replace("steps = 3", "steps = 4000").replace("groups = 3", "groups = 2"))
    other = replace(mine, id="fig98", sweeps=(SweepRef(str(longer)),))
    out = tmp_path / "out"
    seen: list[tuple[int, list[str], list[str]]] = []

    class Watch(Silence):
        def started(self, spec: Any) -> None:
            drawn = sorted(file.stem for file in out.glob("figures/fig??.png"))
            rows = json.loads((out / "claims.json").read_text()) if drawn else []
            seen.append((spec.steps, drawn, [row["figure"] for row in rows]))
            assert not drawn or all(name in (out / "report.html").read_text() for name in drawn)
            if spec.steps == 4000:
                raise KeyboardInterrupt

        def progressed(self, spec: Any, step: int, loss: float) -> None: ...

        def finished(self, spec: Any, status: str) -> None: ...

    options = Options(tmp_path / "data", "cpu", 1)
    with pytest.raises(Interrupted):
        reproduce(
            [other, mine, unneeding("fig97")],
            RunStore(tmp_path / "root"),
            out,
            scale="quick",
            options=options,
            display=Watch(),
        )
    assert seen[0] == (3, ["fig97"], ["fig97"])
    assert seen[-1] == (4000, ["fig97", "fig99"], ["fig97", "fig99"])


def test_the_page_reloads_until_all_is_done(mine: Figure, tmp_path: Path) -> None:
    """The report is shown once, with its first figure, reloads itself while runs are trained, and stops at the end."""
    shown: list[str] = []
    options = Options(tmp_path / "data", "cpu", 1)
    reproduce(
        [mine, unneeding("fig97")],
        RunStore(tmp_path / "root"),
        tmp_path / "out",
        scale="quick",
        options=options,
        display=display(quiet=True),
        on_page=lambda page: shown.append(page.read_text()),
    )
    (first,) = shown
    assert 'http-equiv="refresh"' in first
    assert "fig97" in first
    assert "refresh" not in (tmp_path / "out" / "report.html").read_text()


def test_the_plan_and_each_figure_are_announced(
    mine: Figure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lines name the runs expected, the order of figures, and each finished figure with its claims."""
    options = Options(tmp_path / "data", "cpu", 1)
    with Lines() as lines:
        reproduce(
            [mine, unneeding("fig97")], RunStore(tmp_path / "root"), tmp_path / "out",
            scale="quick", options=options, display=lines,
        )  # fmt: skip
    printed = capsys.readouterr().err
    assert "fig97 done, claims reproduced: 1 of 1 (1 of 2 figures)" in printed
    assert "about 4 runs to train, roughly 1 minute with 1 worker\n" in printed
    assert "1 to draw after training, in this order: fig99" in printed
    assert "fig99 done" in printed


def test_the_rate_of_a_run_counts_from_its_first_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps per second are of the time that was seen: none at the first report, also of a run that is continued."""
    now = iter([100.0, 100.5, 102.0])
    bars, spec = Bars(), tiny()
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    notes = []
    for step in (60, 61, 64):
        bars.progressed(spec, step, 1.0)
        notes.append(bars._progress.tasks[-1].fields["note"])
    assert notes == ["loss 1.000", "loss 1.000  2.0 steps/s", "loss 1.000  2.0 steps/s"]


def test_finished_searches_are_not_in_the_plan(
    mine: Figure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs that are stored count neither as runs to train nor in the time left."""
    remake(mine, tmp_path)
    (tmp_path / "longer.toml").write_text(PRESET.replace("steps = 3", "steps = 4"))
    longer = replace(mine, id="fig98", sweeps=(SweepRef(str(tmp_path / "longer.toml")),))
    options = Options(tmp_path / "data", "cpu", 1)
    with Lines() as lines:
        reproduce([mine, longer], RunStore(tmp_path / "root"), tmp_path / "other",
                  scale="quick", options=options, display=lines)  # fmt: skip
    printed = capsys.readouterr().err
    assert "about 3 runs to train" in printed  # Adam's large step size has ended early: more steps cannot select it
    assert "3 runs trained" in printed


def test_nothing_is_planned_when_everything_is_stored(
    mine: Figure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stored figures are drawn at once, with the headline among them: nothing is planned, which takes seconds."""
    figures = [replace(mine, id="fig04"), mine, unneeding("fig06"), unneeding("fig97")]
    options = Options(tmp_path / "data", "cpu", 1)
    for folder in ("out", "again"):
        capsys.readouterr()
        with Lines() as lines:
            reproduce(figures, RunStore(tmp_path / "root"), tmp_path / folder,
                      scale="quick", options=options, display=lines)  # fmt: skip
    printed = capsys.readouterr().err
    assert "4 of 4 figures" in printed
    assert "to train" not in printed
    assert "to draw after training" not in printed


@pytest.mark.parametrize("moment", ["started", "drawn"])
def test_the_page_stops_reloading_when_it_is_interrupted(moment: str, mine: Figure, tmp_path: Path) -> None:
    """SIGINT, while a run is trained or a figure drawn, leaves a report of what is complete, which does not reload.

    The error names what is missing, and what is complete.
    """

    def interrupt(*_: Any) -> Picture:
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("not interrupted")

    class Interrupts(Silence):
        def started(self, spec: Any) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    second = unneeding("fig99", interrupt) if moment == "drawn" else mine
    options, figures = Options(tmp_path / "data", "cpu", 1), [second, unneeding("fig97")]
    shown = Interrupts() if moment == "started" else Silence()
    out = tmp_path / "out"
    with pytest.raises(Interrupted, match=r"^stopped; .*continues; 1 of 2 figures .*; missing: fig99"):
        reproduce(figures, RunStore(tmp_path / "root"), out, scale="quick", options=options, display=shown)
    page = (out / "report.html").read_text()
    assert "fig97" in page
    assert "1 of 2 drawn" in page  # and the page says which is not
    assert "fig99" in page
    assert 'http-equiv="refresh"' not in page
    assert not json.loads((out / "timing.json").read_text())[0]["finished"]


def test_a_figure_with_a_bug_hides_no_other(mine: Figure, tmp_path: Path) -> None:
    """An error while drawing is raised, but after all other figures are made."""

    def broken(results: Results) -> Picture:
        raise ZeroDivisionError("a bug")

    options = Options(tmp_path / "data", "cpu", 1)
    figures, quiet = [unneeding("fig01", broken), mine], display(quiet=True)
    with pytest.raises(ZeroDivisionError) as caught:
        reproduce(figures, RunStore(tmp_path / "root"), tmp_path / "out", scale="quick", options=options, display=quiet)
    assert "fig01" in caught.value.__notes__[0]
    assert (tmp_path / "out" / "figures" / "fig99.png").is_file()
    assert [row["figure"] for row in json.loads((tmp_path / "out" / "claims.json").read_text())] == ["fig99"]


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


@pytest.mark.parametrize("available", [True, False], ids=["trained", "no data"])
def test_the_headline_is_drawn_first(mine: Figure, tmp_path: Path, available: bool) -> None:
    """Of all figures that train, the headline is drawn first, and before most of those without runs; beside its runs,
    none that is longer is started. If they fail, the others are drawn as soon as ever."""
    texts = {
        "fig04": PRESET if available else PRESET.replace('"random-heavy-tail", groups = 3', '"mnist"'),
        "brief": PRESET.replace("groups = 3", "groups = 2"),
        "long": PRESET.replace("steps = 3", "steps = 40").replace("groups = 3", "groups = 4"),
    }
    figures = [unneeding("fig06"), unneeding("fig97")]
    for name, text in texts.items():
        (tmp_path / f"{name}.toml").write_text(text)
        figures.append(replace(mine, id=name, sweeps=(SweepRef(str(tmp_path / f"{name}.toml")),)))
    events: list[str] = []

    class Watch(Silence):
        def announce(self, text: str) -> None:
            events.extend(text.split()[:1] if " done" in text else [])

        def started(self, spec: Any) -> None:
            events.append(f"{spec.steps} steps")

        def progressed(self, spec: Any, step: int, loss: float) -> None: ...

        def finished(self, spec: Any, status: str) -> None: ...

    options, store = Options(tmp_path / "data", "cpu", 1), RunStore(tmp_path / "root")
    reproduce(figures, store, tmp_path / "out", scale="quick", options=options, display=Watch())
    drawn = [event for event in events if not event.endswith("steps")]
    order = ["fig97", "brief", "long"]
    assert drawn == ["fig06", *(["fig04", *order] if available else [*order, "fig04"])]
    if available:
        assert events.index("fig04") < events.index("40 steps")
