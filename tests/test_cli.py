"""The command line: what it writes, and the one line it answers to each kind of bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from heavytail.cli import main

RUN = ["run", "--data", "random-heavy-tail", "--set", "data.groups=3", "--model", "linear"]
RUN += ["--optim", "gd", "--lr", "0.1", "--steps", "5"]


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs go under a folder of the test's own; no data set is found by accident."""
    monkeypatch.setenv("HEAVYTAIL_ROOT", str(tmp_path / "root"))
    monkeypatch.delenv("HEAVYTAIL_DATA", raising=False)
    return tmp_path / "root"


def run(*extra: str, out: Path) -> int:
    return main([*RUN, "--out", str(out), *extra])


def test_run_writes_losses_per_class_and_group(tmp_path: Path) -> None:
    """`heavytail run` writes long tables whose weighted means agree with each other and with log C at step 0."""
    assert run("--set", "model.init=zero", out=tmp_path / "out") == 0
    classes = pl.read_parquet(tmp_path / "out" / "history.parquet")
    groups = pl.read_parquet(tmp_path / "out" / "groups.parquet")
    assert classes.columns == ["step", "split", "class", "loss", "count", "correct"]
    assert groups.columns == ["step", "split", "group", "loss", "count", "correct"]
    assert classes.height == 6 * 7
    assert groups.height == 6 * 3
    assert groups["group"].unique().sort().to_list() == [1, 2, 3]

    def overall(table: pl.DataFrame) -> np.ndarray:
        mean = (pl.col("loss") * pl.col("count")).sum() / pl.col("count").sum()
        return table.group_by("step").agg(mean.alias("loss")).sort("step")["loss"].to_numpy()

    np.testing.assert_allclose(overall(classes), overall(groups), rtol=1e-12)
    assert overall(classes)[0] == pytest.approx(np.log(7), rel=1e-6)
    by_step = [t.group_by("step").agg(pl.col("correct").sum()).sort("step")["correct"] for t in (classes, groups)]
    assert by_step[0].to_list() == by_step[1].to_list()


def test_running_again_trains_nothing(tmp_path: Path, root: Path) -> None:
    """The same command finds the stored run: no file of it is written again."""
    assert run(out=tmp_path / "a") == 0
    before = {f: f.stat().st_mtime_ns for f in root.rglob("*") if f.name != "lock"}
    assert run(out=tmp_path / "b") == 0
    assert {f: f.stat().st_mtime_ns for f in root.rglob("*") if f.name != "lock"} == before
    assert (tmp_path / "a/history.parquet").read_bytes() == (tmp_path / "b/history.parquet").read_bytes()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--optim", "gdd"], "unknown optim 'gdd'; did you mean 'gd'?"),
        (["--data", "pbt"], "unknown data 'pbt'; did you mean 'ptb'?"),
        (["--lr", "-1"], "lr: expected a positive finite number, got -1.0"),
        (["--lr", "nan"], "lr: expected a positive finite number, got nan"),
        (["--lr", "x"], "argument --lr: invalid float value: 'x'"),
        (["--steps", "0"], "steps: expected an integer >= 1, got 0"),
        (["--set", "data.groups=1"], "groups"),
        (["--set", "data.grups=4"], "did you mean 'groups'?"),
        (["--set", "data.groups=many"], "data.groups: expected int, got 'many'"),
        (["--set", "data.inputs=unifrom"], "did you mean 'uniform'?"),
        (["--set", "optim.momentum=1.5"], "momentum"),
        (["--set", "modle.init=zero"], "did you mean 'model'?"),
        (["--set", "groups"], "--set: expected KEY=VALUE, got 'groups'"),
        (["--batch-size", "100"], "batch_size: expected at most 24 samples, got 100"),
        (["--batchsize", "100"], "unknown argument '--batchsize'; did you mean '--batch-size'?"),
        (["--device", "tpu"], "--device: expected cpu"),
    ],
)
def test_bad_settings_are_one_line(
    extra: list[str], message: str, tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong flag or setting exits with 2 and one line that names it; no run is written."""
    with pytest.raises(SystemExit) as stop:
        raise SystemExit(run(*extra, out=tmp_path / "out"))
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("heavytail: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert not list(root.rglob("history*"))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"X": np.zeros((4, 2)), "y": np.array([0, 1, 2])}, "y"),
        ({"X": np.zeros((4, 2)), "y": np.array([0.0, 1.0, 0.0, 1.0])}, "y"),
        ({"X": np.full((2, 2), np.nan), "y": np.array([0, 1])}, "X"),
        ({"X": np.zeros((0, 2)), "y": np.zeros(0, np.int64)}, "X"),
        ({"X": np.zeros((2, 2))}, "y"),
        ({"X": np.zeros((2, 2)), "y": np.array([0, -1])}, "y"),
    ],
)
def test_bad_arrays_are_one_line(
    arrays: dict[str, np.ndarray], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A user's .npz that cannot be trained on is refused in one line that names the array."""
    np.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
    command = ["run", "--data", "arrays", "--set", f"data.path={tmp_path}/x.npz", "--model", "linear", "--optim", "gd"]
    assert main([*command, "--lr", "1", "--steps", "1", "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert message in printed
    assert "Traceback" not in printed


def test_own_arrays_are_trained_on(tmp_path: Path) -> None:
    """Anybody's labelled data: an .npz with X and y."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", X=rng.normal(size=(20, 3)), y=rng.integers(0, 4, 20))
    command = [
        "run",
        "--data",
        "arrays",
        "--set",
        f"data.path={tmp_path}/x.npz",
        "--model",
        "linear",
        "--optim",
        "adam",
    ]
    assert main([*command, "--lr", "0.1", "--steps", "30", "--out", str(tmp_path / "out")]) == 0
    loss = pl.read_parquet(tmp_path / "out/groups.parquet").filter(pl.col("step") == 30)["loss"]
    assert loss.max() < np.log(4)


def test_missing_data_names_file_folder_and_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A public data set that is not there: the file, the folder looked in, and the command that fetches it."""
    command = ["run", "--data", "tiny-ptb", "--model", "transformer", "--optim", "gd", "--lr", "1", "--steps", "1"]
    assert main([*command, "--out", str(tmp_path / "out"), "--data-dir", str(tmp_path / "none")]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    for part in ("ptb.train.txt", str(tmp_path / "none"), "heavytail data fetch ptb"):
        assert part in printed


def test_unwritable_output_is_refused_before_training(
    tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An output folder that cannot be made is refused before anything is trained."""
    (tmp_path / "file").write_text("in the way")
    assert run(out=tmp_path / "file" / "out") == 2
    assert "--out: cannot write to" in capsys.readouterr().err
    assert not root.exists()


def test_sweep_on_an_own_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`heavytail sweep FILE.toml` searches step sizes and says why each candidate lost."""
    (tmp_path / "mine.toml").write_text(
        """
        name = "mine"
        [run]
        data = { name = "random-heavy-tail", groups = 3 }
        model = "linear"
        steps = 10
        [sweep]
        seeds = [0, 1]
        [[sweep.optim]]
        name = "gd"
        momentum = [0.0, 0.9]
        lr = { decades = [-2, 1], refine = 1 }
        """
    )
    assert main(["sweep", str(tmp_path / "mine.toml"), "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("selected: ") == 2
    assert printed.count("\n  lr ") == 6
    for label in ("gd-m", "gd+m"):
        assert (tmp_path / "out" / label / "seed1" / "groups.parquet").is_file()


def test_status_lists_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`heavytail status` shows what is stored."""
    run(out=tmp_path / "out")
    assert main(["status"]) == 0
    printed = capsys.readouterr().out
    assert "done" in printed
    assert "1 runs under" in printed


def test_ctrl_c_leaves_a_resumable_run(tmp_path: Path, root: Path) -> None:
    """SIGINT to a long run exits with 130 and a stored step; the same command then finishes it."""
    command = [sys.executable, "-m", "heavytail", *RUN, "--out", str(tmp_path / "out"), "--steps"]
    child = subprocess.Popen([*command, "200000", "--eval-every", "1000"], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(root.rglob("lock")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    child.send_signal(signal.SIGINT)
    _, error = child.communicate(timeout=60)
    assert child.returncode == 130, error
    assert "the same command continues" in error
    record = json.loads(next(root.rglob("status.json")).read_text())
    assert record["status"] == "interrupted"
    assert record["step"] < 200000
    assert "Traceback" not in error
    finish = [*command, str(record["step"] + 10), "--eval-every", "1000"]
    subprocess.run(finish, check=True, timeout=120, env={**os.environ})
    assert (tmp_path / "out" / "history.parquet").is_file()
