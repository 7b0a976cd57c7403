"""Executors: the interface they share, shards, and the commands' options for them."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest

from heavytail.cli import main
from heavytail.errors import HeavyTailError, SpecError
from heavytail.experiment.spec import RunSpec
from heavytail.experiment.store import RunStore
from heavytail.train import executors
from heavytail.train.executors.slurm import minutes
from heavytail.train.options import Options, Shard
from heavytail.train.runner import run_all
from tests.problems import tiny, tiny_preset
from tests.test_runner import Log

PRESET = tiny_preset(3, "lr = { decades = [-2, 0], refine = 1 }\nseeds = [0, 1]", 'name = "gd"', 'name = "adam"')


def test_every_file_of_the_folder_is_an_executor() -> None:
    """Each module is found by its name and has the interface; another name is refused with the nearest one."""
    assert "local" in executors.names()
    for name in executors.names():
        assert callable(executors.executor(name).connect)
    with pytest.raises(SpecError, match="unknown --executor 'locl'; did you mean 'local'"):
        executors.executor("locl")


@pytest.mark.parametrize(("name", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_an_executor_without_its_package_names_the_extra(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An executor whose package is not installed is one line with the command that installs it."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(HeavyTailError, match=rf"--executor {name} needs .*; .*pip install '\.\[{name}\]'"):
        run_all(lambda: [tiny()], RunStore(tmp_path), Options(tmp_path, executor=name), Log())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--cpus", "2"], "--cpus: expected --executor ray or slurm, got local"),
        (["--executor", "ray", "--leave"], "--leave: expected --executor slurm, got ray"),
        (["--executor", "ray", "--cpus", "0"], "argument --cpus: expected an integer >= 1, got '0'"),
        (["--time", "4"], "argument --time: expected 5 minutes or more as minutes, H:M:S or D-H:M:S, got '4'"),
        (["--time", "1h"], "argument --time: expected 5 minutes or more as minutes, H:M:S or D-H:M:S, got '1h'"),
        (["--sbatch", "-A me"], "argument --sbatch: expected options such as 'account=NAME mem=8G', got '-A'"),
        (["--sbatch", "array=0-3"], "argument --sbatch: expected other options than 'array', which heavytail sets"),
    ],
)
def test_a_setting_of_another_executor_is_refused(
    given: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An option that the chosen executor does not have names those that have it; a wrong value is one line, too."""
    with contextlib.suppress(SystemExit):
        assert main(["sweep", "simple-imbalanced", *given]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 90),
        ("9:30", 10),
        ("1:30:00", 90),
        ("0:59:01", 60),
        ("2-12", 3600),
        ("1-0:30", 1470),
        ("1-00:00:05", 1441),
    ],
)
def test_time_limits_have_the_forms_of_slurm(text: str, expected: int) -> None:
    """M, M:S, H:M:S, D-H, D-H:M and D-H:M:S, in minutes, seconds rounded up."""
    assert minutes(text) == expected


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "1/0", "a/b", "-1/3", "1/3/5", "1/٣", ""])
def test_a_shard_that_does_not_exist_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Anything but i/n with 1 <= i <= n is one line with the form expected, and exit code 2."""
    assert main(["sweep", "simple-imbalanced", f"--shard={text}"]) == 2
    assert f"--shard: expected i/n with 1 <= i <= n, such as 1/3, got '{text}'" in capsys.readouterr().err


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_split_the_runs(count: int) -> None:
    """Every run is in exactly one shard, whichever other runs there are, and the shards are of similar size."""
    specs = [tiny(seed=seed, optim=optim) for seed in range(60) for optim in ("gd", "adam")]
    parts = [Shard(i, count).of(specs) for i in range(1, count + 1)]
    assert sorted(spec.key for part in parts for spec in part) == sorted(spec.key for spec in specs)
    assert all(Shard(i, count).of([spec]) == [spec] for i, part in enumerate(parts, 1) for spec in part)
    assert min(map(len, parts)) > len(specs) / count / 2


def test_shards_that_share_a_store_finish_a_search_in_turns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each shard trains its part of what the stored runs imply, names what others have to do, and trains nothing twice.

    After as many turns as the search has waves, any shard prints the same result as one search of all runs.
    """
    (tmp_path / "mine.toml").write_text(PRESET)
    sweep = ["sweep", str(tmp_path / "mine.toml"), "--jobs", "1"]
    assert main([*sweep, "--root", str(tmp_path / "whole")]) == 0
    whole = capsys.readouterr().out
    shared = ["--root", str(tmp_path / "shared")]
    assert main([*sweep, *shared, "--shard", "1/2"]) == 0
    assert "runs of other shards are missing" in capsys.readouterr().err
    for _ in range(3):
        for shard in ("2/2", "1/2"):
            assert main([*sweep, *shared, "--shard", shard]) == 0
    capsys.readouterr()
    assert main([*sweep, *shared, "--shard", "1/2"]) == 0
    printed = capsys.readouterr()
    assert printed.out == whole
    assert "missing" not in printed.err
    assert sorted(RunStore(tmp_path / "shared").keys()) == sorted(RunStore(tmp_path / "whole").keys())


def test_the_longest_runs_of_a_proposal_are_started_in_its_order(tmp_path: Path) -> None:
    """Runs start in the order of the proposal, which puts the longest runs of the next figure first."""
    specs: list[RunSpec] = [tiny(seed=seed) for seed in (3, 1, 2)]
    store, log = RunStore(tmp_path), Log()
    run_all(lambda: [s for s in specs if store.outcome(s) is None], store, Options(tmp_path, workers=1), log)
    assert [key for key, event in log.events if event == "started"] == [spec.key for spec in specs]


@pytest.mark.parametrize(
    ("device", "gpus", "expected"),
    [("cpu", 4, ["cpu"] * 3), ("cuda", 1, ["cuda"] * 3), ("cuda", 2, ["cuda:0", "cuda:1", "cuda:0"]),
     ("cuda:1", 2, ["cuda:1"] * 3)],
)  # fmt: skip
def test_workers_use_the_gpus_in_turn(
    device: str, gpus: int, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worker i uses GPU i modulo their number, unless one GPU is named; by default there is a worker per GPU."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    options = Options(Path(), device)
    assert [options.device_of(worker) for worker in range(3)] == expected
    if device == "cuda":
        assert options.num_workers() == gpus
