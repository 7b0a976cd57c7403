"""The plan of a reproduction: how many runs it will train, and how long they take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from heavytail.errors import DataError
from heavytail.experiment.store import RunStore
from heavytail.experiment.sweep import Sweep
from heavytail.experiment.waves import expected
from heavytail.report.plan import Plan, published
from heavytail.results.figure import Figure, all_figures
from heavytail.results.results import Results, SweepRef
from heavytail.train import cost
from heavytail.train.forecast import remaining
from heavytail.train.options import Options
from heavytail.train.progress import display
from heavytail.train.runner import remember, search
from tests.problems import ROOT, tiny_preset

SEARCH = 'name = "gd"\nmomentum = [0.0, 0.9]\nlr = { decades = [-3, 1], refine = 2 }'


def figure(name: str, *refs: SweepRef) -> Figure:
    """A figure that reads these sweeps."""
    return Figure(name, name, name, "", refs, (), lambda results: pytest.fail("not drawn"))


def written(folder: Path, sweep: str, *, steps: int = 12, optim: str = SEARCH, name: str = "mine") -> SweepRef:
    """A preset of one problem in a folder."""
    (folder / f"{name}.toml").write_text(tiny_preset(steps, sweep, optim))
    return SweepRef(str(folder / f"{name}.toml"))


def train(sweep: Sweep, store: RunStore, folder: Path) -> int:
    """Train a sweep; return the number of runs that were trained."""
    before = set(store.keys())
    with display(quiet=True) as shown:
        assert search([sweep], store, Options(folder, "cpu", 1), shown) == []
    return len(set(store.keys()) - before)


@pytest.mark.parametrize(
    "sweep",
    [
        "seeds = [0]\nverdict_seeds = [5]",
        "seeds = [0, 1]",
        "seeds = [0]\nverdict_seeds = [0, 5]",
        'seeds = [0]\nverdict_seeds = [5]\nprobes = ["head-blocks"]',
    ],
)
def test_as_many_runs_as_are_trained(tmp_path: Path, sweep: str) -> None:
    """A search, its dense grid and its verdict seeds: the plan has the number of runs that are then trained."""
    ref, store = written(tmp_path, sweep), RunStore(tmp_path / "root")
    results = Results(store, "quick")
    plan = Plan(results, remember(store), tmp_path).runs(figure("fig98", ref))
    assert len(plan) == train(results.sweep(ref), store, tmp_path)
    assert Plan(results, remember(store), tmp_path).runs(figure("fig98", ref)) == {}


def test_an_interrupted_search_needs_the_rest(tmp_path: Path) -> None:
    """With the runs of one optimizer stored, the other one's are planned, the sparse grid first."""
    ref, store = written(tmp_path, "seeds = [0]\nverdict_seeds = [5]"), RunStore(tmp_path / "root")
    results = Results(store, "quick")
    whole = results.sweep(ref)
    every = len(Plan(results, remember(store), tmp_path).runs(figure("fig98", ref)))
    trained = train(whole.only(("gd+m",)), store, tmp_path)
    rest = Plan(results, remember(store), tmp_path).runs(figure("fig98", ref))
    assert len(rest) == every - trained
    sparse, *_ = expected(whole.only(("gd-m",)), remember(store), {})["gd-m"]
    first = {spec.key for spec in whole.only(("gd-m",)).propose(remember(store))}
    assert {spec.key for spec in sparse} == first


def test_shared_runs_count_once(tmp_path: Path) -> None:
    """Two presets of one problem, one with a wider grid, share the runs that they have in common."""
    one = written(tmp_path, "seeds = [0]\nverdict_seeds = [5]", name="one")
    two = written(tmp_path, "seeds = [0]\nverdict_seeds = [5]", name="two", optim=SEARCH.replace("[-3, 1]", "[-4, 1]"))
    store = RunStore(tmp_path / "root")
    plan = Plan(Results(store, "quick"), remember(store), tmp_path)
    narrow, wide = plan.runs(figure("fig98", one)), plan.runs(figure("fig99", two))
    assert len(narrow.keys() | wide.keys()) == len(narrow) + 2


def test_times_are_recorded_ones_or_estimates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A problem with stored runs takes their time, one without takes an estimate; missing data take none."""
    ref, store = written(tmp_path, "seeds = [0]\nverdict_seeds = [5]"), RunStore(tmp_path / "root")
    results = Results(store, "quick")
    train(results.sweep(ref).only(("gd+m",)), store, tmp_path)
    recorded = cost.recorded_seconds(store)
    seconds = Plan(results, remember(store), tmp_path).runs(figure("fig98", ref))
    assert set(seconds.values()) == set(recorded.values())
    longer = written(tmp_path, "seeds = [0]\nverdict_seeds = [5]", steps=13, name="longer")
    (estimate,) = set(Plan(results, remember(store), tmp_path).runs(figure("fig98", longer)).values())
    assert estimate > 0
    assert estimate not in recorded.values()

    def missing(*_: object) -> None:
        raise DataError("no data")

    monkeypatch.setattr(cost, "cost", missing)
    assert set(Plan(results, remember(store), tmp_path).runs(figure("fig98", longer)).values()) == {0.0}


def test_the_plan_of_quick_is_what_was_made(tmp_path: Path) -> None:
    """All figures at quick scale, nothing stored: the published number of runs within 1 %, its time within 30 %."""
    rows = json.loads((ROOT / "docs" / "results" / "quick" / "timing.json").read_text())
    (made,) = [row for row in rows if row["reused"] == 0 and len(row["figures"]) > 40]
    store = RunStore(tmp_path)
    plan, runs = Plan(Results(store, "quick"), remember(store), tmp_path), {}
    for one in all_figures():
        runs |= plan.runs(one)
    assert len(runs) == pytest.approx(made["trained"], rel=0.01)
    drawing = sum(times["drawing"] for times in published("quick")["seconds"].values())
    assert (sum(runs.values()) + drawing) / 2 == pytest.approx(made["seconds"], rel=0.3)  # on two cores


@pytest.mark.parametrize("speed", [0.5, 1.0, 2.0])
def test_the_time_left_is_right_from_the_start(tmp_path: Path, speed: float) -> None:
    """Runs of quick scale, cheapest first, 2 s to start each, at several speeds: off by less than a factor of 2.5.

    A forecast from the measured rate alone is up to seven times what is left.
    """
    store = RunStore(tmp_path)
    plan, runs = Plan(Results(store, "quick"), remember(store), tmp_path), {}
    for one in all_figures():
        runs |= plan.runs(one)
    seconds = sorted(runs.values())
    planned, done, elapsed = sum(seconds), 0.0, 0.0
    whole = sum(2 + each / speed for each in seconds)
    for each in seconds[:-1]:
        done += each
        elapsed += 2 + each / speed
        assert 1 / 2.5 < remaining(planned, done, elapsed) / (whole - elapsed) < 2.5


def test_published_times_are_of_this_package() -> None:
    """Every search of quick scale has a published time; figures and searches that no longer exist have none."""
    times, store = published("quick"), RunStore(Path("none"))
    results, names = Results(store, "quick"), set[str]()
    for one in all_figures():
        for ref in one.sweeps:
            names |= {f"{ref.preset}/{ref.variant}/{label}" for label in results.labels(ref)}
    assert set(times["searches"]) == names
    assert set(times["seconds"]) <= {one.id for one in all_figures()}
