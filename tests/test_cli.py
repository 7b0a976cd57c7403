"""The command line: what it writes, and the one line it answers to each kind of bad input."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from heavytail import cli, optim
from heavytail.cli import _command, commands, main, status
from heavytail.cli._table import print_table
from heavytail.errors import SpecError
from heavytail.experiment.registry import registry
from heavytail.experiment.store import RunStore
from heavytail.experiment.sweep import Sweep
from heavytail.report.files import write_claims
from heavytail.results.claims import Claim
from heavytail.train.runner import Interrupted
from tests.problems import ROOT, made_up, output, tiny_preset

PACKAGE = ROOT / "heavytail"

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


def test_run_describes_its_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that trains prints the size, the classes and the source of its data, a stored one does not load them."""
    line = "data: 24 training samples, 7 classes, source random inputs, groups 3, inputs uniform, balanced False\n"
    assert run(out=tmp_path / "a") == 0
    assert capsys.readouterr().out.startswith(line)
    assert run(out=tmp_path / "b") == 0
    assert line not in capsys.readouterr().out


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
        (["--optim", "gdd"], "unknown optimizer 'gdd'; did you mean 'gd'?"),
        (["--data", "pbt"], "unknown data set 'pbt'; did you mean 'ptb'?"),
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
        (["--device", "cpu:x"], "--device: expected cpu"),
        (["--device", "cuda:99"], "--device: expected cpu"),
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


@pytest.mark.parametrize("command", ["audit", "theory", "report", "run", "sweep"])
def test_outputs_go_to_the_home_folder(
    command: str, two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--out ~/out`, as a script or a quoted argument passes it, is in the home folder, not in one called `~`."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("a b b c c c")
    (tmp_path / "mine.toml").write_text(tiny_preset(2, "seeds = [0]", 'name = "gd"\nlr = { exponents = [-2, -1] }'))
    given, written = {
        "audit": (["audit", "a.txt"], "audit.json"),
        "theory": (["theory"], ""),
        "report": (["report", *map(str, two)], ""),
        "run": (RUN, "history.parquet"),
        "sweep": (["sweep", "mine.toml", "--jobs", "1"], "gd/seed0/history.parquet"),
    }[command]
    assert main([*given, "--out", "~/out"]) == 0
    assert (tmp_path / "home" / "out" / written).is_file()
    assert not (tmp_path / "~").exists()


def test_sweep_on_an_own_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`heavytail sweep FILE.toml` searches step sizes and says why each candidate lost."""
    optim = 'name = "gd"\nmomentum = [0.0, 0.9]\nlr = { decades = [-2, 1], refine = 1 }'
    (tmp_path / "mine.toml").write_text(tiny_preset(10, "seeds = [0, 1]", optim))
    assert main(["sweep", str(tmp_path / "mine.toml"), "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("selected: ") == 2
    assert printed.count("\n  lr ") == 6
    for label in ("gd-m", "gd+m"):
        assert (tmp_path / "out" / label / "seed1" / "groups.parquet").is_file()


def test_a_wrong_probe_is_named_before_training(tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only the runs at the selected step size have probes, and the search would end in the error."""
    optim = 'name = "gd"\nlr = { decades = [-2, 1], refine = 1 }'
    (tmp_path / "mine.toml").write_text(tiny_preset(10, 'probes = ["head-blcks"]', optim))
    assert main(["sweep", str(tmp_path / "mine.toml")]) == 2
    assert "unknown probe 'head-blcks'" in capsys.readouterr().err
    assert not (root / "runs").exists()


def test_a_dry_run_reads_the_options_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The parts of a search sum to its runs, several workers share recorded times, and wrong options are refused."""
    optim = 'name = "gd"\nlr = { decades = [-2, 1], refine = 1 }'
    (tmp_path / "mine.toml").write_text(tiny_preset(10, "", optim))
    command = ["sweep", str(tmp_path / "mine.toml"), "--dry-run"]

    def counted(*more: str) -> int:
        assert main([*command, *more]) == 0
        found = re.search(r"^(\d+) runs that are not stored", capsys.readouterr().out, re.MULTILINE)
        assert found is not None
        return int(found[1])

    assert counted() == sum(counted("--shard", f"{part}/3") for part in (1, 2, 3)) > counted("--shard", "1/3")
    for wrong in (["--shard", "4/3"], ["--executor", "lokal"], ["--jobs", "0"]):
        assert main([*command, *wrong]) == 2
        assert wrong[0] in capsys.readouterr().err or wrong[1] in capsys.readouterr().err


@pytest.mark.parametrize("command", ["status", "cancel"])
def test_a_scale_without_a_sweep_is_refused(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It would be ignored, and `cancel` would cancel the jobs of every scale."""
    assert main([command, "--scale", "small"]) == 2
    assert "--scale: expected a sweep with it, got 'small' alone" in capsys.readouterr().err


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


HELP = [[], *([name] for name in commands())]


def example(words: list[str], capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """Return the commands of the example that a --help ends with."""
    with pytest.raises(SystemExit) as stop:
        main([*words, "--help"])
    assert stop.value.code == 0
    match = re.search(r"^example(?: \(.*\))?:\n  (.*)$", capsys.readouterr().out, re.M)
    assert match is not None
    return [shlex.split(part) for part in match[1].split("&&")]


@pytest.mark.parametrize("words", HELP, ids=["heavytail", *commands()])
def test_every_example_of_the_help_runs(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The example that each --help ends with exits with 0; only what trains for long is shortened."""
    for name in ("examples", "docs", "README.md"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    for program, *arguments in example(words, capsys):
        if program == "python":
            subprocess.run(
                [sys.executable, *arguments, "--steps", "2"], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
            )
        else:
            assert program == "heavytail"
            long = {"reproduce": ["fig06"], "sweep": [quick_sweep(tmp_path)]}
            arguments[1:] = long.get(arguments[0], arguments[1:])
            assert main(arguments) == 0


def quick_sweep(folder: Path) -> str:
    """Write a sweep of a second, and return its path."""
    text = tiny_preset(5, "seeds = [0]", 'name = "gd"\nlr = { exponents = [-1] }')
    (folder / "mine.toml").write_text(text)
    return str(folder / "mine.toml")


def test_help_documents_environment_variables_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    """`heavytail --help` names every variable that the package reads, and every exit code; so does its guide."""
    read = set(
        re.findall(r"environ(?:\.get\(|\[)\"(HEAVYTAIL_\w+)\"", "".join(f.read_text() for f in PACKAGE.rglob("*.py")))
    )
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    guide = (ROOT / "docs" / "guide" / "command-line.md").read_text()
    for text in (shown, guide):
        assert set(re.findall(r"HEAVYTAIL_[A-Z]+", text)) == read
    for text, pattern in ((shown, r"^  (\d+) "), (guide, r"^\| (\d+) \|")):
        assert re.findall(pattern, text, re.M) == ["0", "1", "2", "70", "130"]


def test_tables_of_a_sweep_whose_verdict_is_elsewhere(
    tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`sweep --out` writes the tables of the runs that are here, says which are not, and calls nothing a bug."""
    text = tiny_preset(5, "seeds = [0]\nverdict_seeds = [5, 6, 7]", 'name = "gd"\nlr = { exponents = [-2, -1] }')
    (tmp_path / "mine.toml").write_text(text)
    command = ["sweep", str(tmp_path / "mine.toml"), "--device", "cpu", "--jobs", "1"]
    for part in (1, 2):
        assert main([*command, "--shard", f"{part}/2", "--out", str(tmp_path / "out")]) == 0
    assert "runs of other shards are missing" in capsys.readouterr().err
    written = sorted(folder.name for folder in (tmp_path / "out" / "gd").iterdir())
    assert set(written) < {"seed5", "seed6", "seed7"}
    assert all((tmp_path / "out" / "gd" / name / "history.parquet").is_file() for name in written)


def test_help_is_immediate() -> None:
    """`heavytail --help` loads no other package, and of heavytail's own only what the command line is made of.

    This is what keeps it at a quarter of a second; the time itself depends on what else the machine does.
    """
    code = """
        import sys
        before = set(sys.modules)
        from heavytail.cli import main
        try:
            main(["--help"])
        except SystemExit:
            print("loaded", *set(sys.modules) - before)
        """
    loaded = output(textwrap.dedent(code)).split("loaded ")[1].split()
    packages = {name.partition(".")[0] for name in loaded} - set(sys.stdlib_module_names)
    assert packages - {"__mp_main__"} == {"heavytail"}
    own = {".".join(name.split(".")[1:2]) for name in loaded if name.startswith("heavytail.")}
    assert own == {"cli", "errors", "system", "train"}
    assert [name for name in loaded if name.startswith("heavytail.train.") and "executors" not in name] == []


def test_a_command_is_one_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file in the folder of commands is a command; a file with an underscore is not."""
    source = 'EXAMPLE, DURATION = "heavytail greet", ""\ndef arguments(parser): pass\n'
    source += 'def run(args): print("hello"); return 0\n'
    for name in ("greet", "_hidden"):
        (tmp_path / f"{name}.py").write_text(f'"""Greet."""\n{source}')
    monkeypatch.setattr(cli, "__path__", [*cli.__path__, str(tmp_path)])
    assert "_hidden" not in commands()
    assert main(["greet"]) == 0
    assert capsys.readouterr().out == "hello\n"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (SpecError("lr: expected\n a number"), 2, "heavytail: lr: expected a number\n"),
        (Interrupted("stopped"), 130, "heavytail: stopped\n"),
        (KeyboardInterrupt(), 130, "heavytail: interrupted\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "heavytail: No space left on device\n"),
        (PermissionError(errno.EACCES, "Permission denied", "x.npz"), 2, "heavytail: x.npz: Permission denied\n"),
        (MemoryError(), 2, "heavytail: out of memory\n"),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each kind of failure has its exit code and one line."""
    monkeypatch.setattr(status, "run", raiser(error))
    assert main(["status"]) == code
    assert capsys.readouterr().err == message


@pytest.mark.parametrize(
    "error",
    [KeyError("x"), AssertionError(), RuntimeError("a\nb"), ValueError("c"), OSError("no errno"), RecursionError()],
)
def test_a_bug_is_one_line_and_a_log(
    error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Any other exception exits with 70 and one line, which names a file with the traceback."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(status, "run", raiser(error))
    assert main(["status"]) == 70
    message = capsys.readouterr().err
    assert message.startswith(f"heavytail: bug in heavytail: {type(error).__name__}")
    assert message.count("\n") == 1
    log = Path(re.search(r"traceback in (\S+);", message)[1])
    assert log.parent == tmp_path
    assert "Traceback" in log.read_text()
    assert type(error).__name__ in log.read_text()


@pytest.mark.parametrize(
    ("what", "code", "message"),
    [("broken optimizer", 70, "bug in heavytail: ZeroDivisionError: "), ("no memory", 2, "out of memory: ")],
)
def test_a_run_that_raises(
    what: str,
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A run that ends by an exception of ours exits with 70 and a traceback; one out of memory, with 2 and a line."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    optim.REGISTRY.names()
    monkeypatch.setitem(optim.REGISTRY._recipes, "test-broken", BrokenOptimizer)
    monkeypatch.setitem(optim.REGISTRY._versions, "test-broken", 1)
    command = [*RUN, "--out", str(tmp_path / "out")]
    if what == "no memory":
        large = ["--data", "simple-imbalanced", "--set", f"data.num_classes={2**23}", "--set", f"data.samples={2**23}"]
        command = [*command[:1], *large, *command[5:]]
    else:
        command[command.index("gd")] = "test-broken"
    assert main(command) == code
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"heavytail: {message}")
    if code == 70:
        log = Path(re.search(r"traceback in (\S+);", line)[1])
        assert "in step\n" in log.read_text()


@dataclass(frozen=True)
class BrokenOptimizer:
    """An optimizer whose first step raises."""

    def build(self, params: Iterable[torch.nn.Parameter], lr: float) -> torch.optim.Optimizer:
        class Broken(torch.optim.SGD):
            def step(self, closure: object = None) -> None:
                raise ZeroDivisionError("by the step size")

        return Broken(params, lr)


def raiser(error: BaseException) -> Callable[[object], int]:
    def run(_: object) -> int:
        raise error

    return run


def test_a_closed_pipe_is_silent() -> None:
    """`heavytail list | head -1`: no traceback, and no error."""
    reader = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    reader.stdin.close()
    reader.wait()
    read, write = os.pipe()
    os.close(read)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "heavytail", "list", "loss"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, env=env, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def claim(figure: str, name: str, measured: float, *, threshold: float = 1.0) -> Claim:
    """A claim that a number is at most a threshold."""
    return Claim(figure, name, f"quantity of {name}", measured, "<=", threshold, "quick")


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Two results: B loses `fig06 b`, has another number of `fig06 a`, and has figure 16 that A has not."""
    folders = tmp_path / "A", tmp_path / "B"
    claims = [claim("fig06", "a", 0.5), claim("fig06", "b", 0.5)], [claim("fig06", "a", 0.6), claim("fig06", "b", 2.0)]
    for folder, rows, drawn in zip(folders, claims, (["fig06"], ["fig06", "fig16"]), strict=True):
        (folder / "figures").mkdir(parents=True)
        for name in drawn:
            texts = {"figure": name, "title": name, "paper": name, "scale": "quick", "caption": ""}
            lists = {"panels": [], "search": [], "environments": [{"commit": folder.name}]}
            (folder / "figures" / f"{name}.json").write_text(json.dumps({**texts, "missing": None, **lists}))
        write_claims(folder, rows)
    return folders


def test_report_prints_what_changed(two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`heavytail report A B` prints changes of verdicts, then of numbers, and what B alone has; it writes a page."""
    page = tmp_path / "new" / "page.html"
    assert main(["report", *map(str, two), "--out", str(page)]) == 0
    lines = capsys.readouterr().out.splitlines()
    changed = [line.split() for line in lines if line.startswith("fig06")]
    assert changed[0] == ["fig06", "b", "reproduced", "->", "not", "reproduced", "0.5", "->", "2", "<=", "1", "+1.5"]
    assert changed[1] == ["fig06", "a", "reproduced", "0.5", "->", "0.6", "<=", "1", "+0.1"]
    assert [line.split() for line in lines if line.startswith("commit")] == [["commit", "A", "B"]]
    assert "1 verdicts and 1 numbers alone differ, of 2 claims in both" in lines
    assert "drawn in B only: fig16" in lines
    assert lines[-1] == f"page: {page}"
    assert page.exists()


def test_report_json(two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --json the same is one JSON object on standard output."""
    assert main(["report", *map(str, two), "--out", str(tmp_path / "page.html"), "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert [(row["claim"], row["change"]) for row in table["claims"]] == [
        ("b", "no longer reproduced"),
        ("a", "other number"),
    ]
    assert table["claims"][0]["b"]["measured"] == 2.0
    assert (table["lost"], table["figures_only"]) == (["fig06 b"], {"a": [], "b": ["fig16"]})
    assert (table["a"]["commit"], table["b"]["commit"]) == ("A", "B")


def test_report_strict(two: tuple[Path, Path], tmp_path: Path) -> None:
    """With --strict the exit code is 1 if B does not reproduce what A does, and only then."""
    a, b = map(str, two)
    out = ["--out", str(tmp_path / "page.html"), "--strict"]
    assert main(["report", a, b, *out]) == 1
    assert main(["report", b, a, *out]) == 0
    assert main(["report", a, a, *out]) == 0


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("none", None, "none: no such folder; expected the --out folder of `heavytail reproduce`"),
        ("empty", "x", "empty is not the folder of a reproduction: expected claims.json and figures/ in it"),
        ("journal", "monitor.jsonl", "figures/ in it; `heavytail monitor` made it"),
        ("compared", "compare.json", "figures/ in it; `heavytail compare` made it"),
        ("file", "", "file: no such folder"),
    ],
)
def test_report_refuses_other_folders(
    two: tuple[Path, Path],
    tmp_path: Path,
    name: str,
    file: str | None,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A folder without results is one line: which, what is expected, what made it; no page is written."""
    if file == "":
        (tmp_path / name).write_text("")
    elif file is not None:
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("")
    for pair in ((two[0], tmp_path / name), (tmp_path / name, two[0])):
        assert main(["report", *map(str, pair), "--out", str(tmp_path / "page.html")]) == 2
        printed = capsys.readouterr().err
        assert message in printed
        assert printed.count("\n") == 1
    assert not (tmp_path / "page.html").exists()


def test_published_results_can_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both folders may be published ones, whose environments are in a file of their own."""
    out = tmp_path / "page.html"
    published = ROOT / "docs" / "results"
    assert main(["report", str(published / "paper"), str(published / "small"), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^scale +paper +small$", printed, re.M)
    assert re.search(r"^torch +2\S+ +2\S+$", printed, re.M)


@pytest.mark.parametrize("more", [[], ["--open"]])
def test_reproduce_makes_a_figure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, more: list[str]) -> None:
    """`heavytail reproduce` draws a figure that needs no runs; only --open opens the page in a browser."""
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address))
    out = tmp_path / "out"
    assert main(["reproduce", "table1", "--scale", "quick", "--out", str(out), *more]) == 0
    assert "table1" in (out / "report.html").read_text()
    assert len(opened) == len(more)


def test_a_long_list_of_names_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown figure gets the nearest names' command, not all 32 names."""
    assert main(["reproduce", "fig99"]) == 2
    assert (
        capsys.readouterr().err
        == "heavytail: unknown figure 'fig99'; did you mean 'fig19'? (see: heavytail list figures)\n"
    )


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a package of the lab, the message says how to install the extra from a clone."""
    monkeypatch.setattr(_command, "find_spec", lambda name: None if name == "polars" else object())
    assert main(["status"]) == 2
    message = "heavytail: the command line needs polars; run in the repository's folder: pip install '.[lab]'\n"
    assert capsys.readouterr().err == message


def test_a_failed_search_does_not_hide_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One optimizer that cannot be trained: the searches of the others are printed and written, then exit 2."""
    text = Path(quick_sweep(tmp_path)).read_text()
    Path(tmp_path / "mine.toml").write_text(text + '[[sweep.optim]]\nname = "raises"\nlr = { exponents = [-1] }\n')

    @optim.REGISTRY.register("raises")
    @dataclass(frozen=True)
    class Raises:
        """An optimizer that cannot be built."""

        def build(self, params: object, lr: float) -> torch.optim.Optimizer:
            raise ValueError("refused")

    try:
        assert main(["sweep", str(tmp_path / "mine.toml"), "--out", str(tmp_path / "out"), "--workers", "1"]) == 2
    finally:
        del optim.REGISTRY._recipes["raises"], optim.REGISTRY._versions["raises"]
    printed = capsys.readouterr()
    assert "selected: " in printed.out
    assert "refused" in printed.err
    assert (tmp_path / "out" / "gd" / "seed0" / "groups.parquet").is_file()


# -- tables, --json, --quiet, completion -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "codes"),
    [({}, set()), ({"FORCE_COLOR": "1"}, {"1", "31", "32"}), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, {"1"})],
)
def test_tables_are_plain_in_a_pipe(
    variables: dict[str, str], codes: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a pipe a table is aligned text without lines, colours or cut cells; NO_COLOR leaves no colour anywhere."""
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    rows = [("a" * 90, "1.5", "reproduced"), ("b", "22", "not reproduced")]
    print_table(("claim", "number", "verdict"), rows, numeric=(1,))
    printed = capsys.readouterr().out
    assert set(re.findall(r"\x1b\[(\d+)m", printed)) - {"0"} == codes
    lines = re.sub(r"\x1b\[\d+m", "", printed).splitlines()
    assert lines[0].split() == ["claim", "number", "verdict"]
    assert lines[1].rstrip() == f"{'a' * 90}     1.5  reproduced"
    assert lines[2].rstrip() == f"b{' ' * 89}      22  not reproduced"


def test_a_cell_cannot_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Escapes and markup in a cell are printed as text."""
    print_table(("x",), [("\x1b[31m[red]a[/red]",)])
    assert capsys.readouterr().out == "x\n\\x1b[31m[red]a[/red]\n"


def test_list_json(capsys: pytest.CaptureFixture[str]) -> None:
    """`heavytail list --json` has every kind, and the published seconds of a figure."""
    assert main(["list", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert list(table) == ["figures", "presets", "data", "model", "optim", "loss", "probe"]
    assert all(row["title"] for rows in table.values() for row in rows)
    (figure,) = [row for row in table["figures"] if row["name"] == "fig04"]
    assert figure["presets"] == ["linear"]
    assert figure["scales"]["quick"]["missing"] is None
    assert 0 < figure["scales"]["quick"]["seconds"] < 100


def test_list_shows_what_is_stored(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Figures show whether their runs are stored, how many are missing, or else how long they take."""

    def cell() -> str:
        assert main(["list", "figures"]) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  thm3 ")]
        return re.split(r"  +", line.strip())[1]

    assert re.fullmatch(r"\d+ s", cell())
    store, sweep = RunStore(root), Sweep.load("simple-imbalanced", scale="quick")
    runs = sweep.propose(lambda spec: None)
    assert len(runs) == 2
    for spec, expected in zip(runs, ("1 runs missing", "stored"), strict=True):
        store.save(made_up(spec), step=spec.steps)
        assert cell() == expected


def test_audit_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`heavytail audit --json` prints what it writes into audit.json, and nothing else."""
    assert main(["audit", str(ROOT / "README.md"), "--json", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed)
    assert printed.encode() == (tmp_path / "audit.json").read_bytes()


def test_quiet_prints_the_last_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --quiet a command prints its last line, and nothing on standard error."""
    sweep = quick_sweep(tmp_path)
    for command, last in (
        ([*RUN, "--out", str(tmp_path / "run")], f"{tmp_path / 'run' / 'groups.parquet'}\n"),
        (["sweep", sweep, "--jobs", "1"], "step sizes: gd 0.1\n"),
        (["reproduce", "table1", "--out", str(tmp_path / "out")], f"report: {tmp_path / 'out' / 'report.html'}\n"),
    ):
        assert main([*command, "--quiet"]) == 0
        assert capsys.readouterr() == (last, "")


def test_quiet_prints_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --quiet an error is its one line."""
    assert main([*RUN, "--out", str(tmp_path), "--quiet", "--set", "data.groups=1"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1


def completions(line: str, tmp_path: Path) -> list[str]:
    """What the shell is told for a command line with the cursor at its end."""
    answer = tmp_path / "answer"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "COMP_LINE": line}
    env |= {"COMP_POINT": str(len(line)), "_ARGCOMPLETE_STDOUT_FILENAME": str(answer), "COMP_TYPE": "9"}
    command = [sys.executable, "-c", "from heavytail.cli import main; main()"]
    subprocess.run(command, env=env, check=True, capture_output=True, timeout=60)
    return [one.strip() for one in answer.read_text().split("\n")]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("heavytail repr", ["reproduce"]),
        ("heavytail reproduce fig0", [f"fig0{i}" for i in range(1, 10)]),
        ("heavytail reproduce --scale p", ["paper"]),
        ("heavytail sweep linear", ["linear", "linear-inputs", "linear-long", "linear-path"]),
        ("heavytail compare normal", ["normalized-gd"]),
        ("heavytail compare gd --problems bi", ["bigram"]),
        ("heavytail run --optim sign", ["sign", "signum"]),
        ("heavytail run --data random-h", ["random-heavy-tail"]),
        ("heavytail data fetch tinys", ["tinyshakespeare"]),
        ("heavytail completion z", ["zsh"]),
    ],
)
def test_the_shell_completes_names(line: str, expected: list[str], tmp_path: Path) -> None:
    """Commands, options, choices, and names of figures, presets, optimizers, data sets and problems complete."""
    pytest.importorskip("argcomplete")
    assert completions(line, tmp_path) == expected


def test_names_complete_without_torch() -> None:
    """The names that the shell is told are those of the registries, found without importing torch."""
    code = """
        import sys
        from heavytail.cli._complete import names
        print(*(" ".join(names(kind)) for kind in ("optim", "data", "model")), "torch" in sys.modules, sep="|")
        names("figures"), names("presets"), names("public")
        assert "torch" not in sys.modules
        """
    *found, loaded = output(textwrap.dedent(code)).strip().split("|")
    assert loaded == "False"
    for kind, one in zip(("optim", "data", "model"), found, strict=True):  # other tests may have registered more
        assert one.split() == sorted(name for name in registry(kind).names() if not name.startswith("test-"))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`heavytail completion SHELL` prints a script for that shell."""
    pytest.importorskip("argcomplete")
    assert main(["completion", shell]) == 0
    assert "heavytail" in capsys.readouterr().out
