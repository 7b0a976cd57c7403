"""Several processes train what one process trains, and survive the loss of one."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heavytail.errors import SpecError
from heavytail.experiment.spec import RunSpec
from heavytail.experiment.store import History, RunStore
from heavytail.optim import REGISTRY as OPTIMIZERS
from heavytail.train.distributed import joined
from heavytail.train.engine import train
from heavytail.train.group import ALONE, Group
from heavytail.train.options import Options
from tests.problems import ROOT, tiny_preset
from tests.test_engine import Groups

TEXT = {"name": "stdlib-text", "max_tokens": 8_000, "max_vocab": 300}
SMALL = {"name": "gpt2", "width": 16, "depth": 1, "heads": 2, "mlp": 16, "dropout": 0.0}
CASES: dict[str, dict[str, Any]] = {
    # 10 sequences a step in micro-batches of 3: the shares are 6 and 4 sequences.
    "mini-batches": {"batch_size": 10, "microbatch": 3, "eval_every": 5, "test_every": 10},
    "running sums": {"batch_size": 10, "eval_every": 5, "train_stats": "running"},
    "weighted full batch": {"loss": {"weights": "inverse-sqrt"}},
}


def spec(**changes: Any) -> RunSpec:
    base = {"data": TEXT, "model": SMALL, "optim": "adam", "lr": 0.01, "steps": 20}
    return RunSpec.from_dict({**base, **changes})


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes started by a test; what is left of them is killed at its end."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def arguments(run: RunSpec, root: Path) -> list[str]:
    """The command line of a run."""
    table = run.to_dict()
    settings = {f"{k}.{name}": v for k in ("data", "model", "optim", "loss") for name, v in table[k].items()}
    settings |= {k: table[k] for k in ("microbatch", "test_every", "train_stats") if table[k] is not None}
    names = [a for k in ("data", "model", "optim") for a in (f"--{k}", str(settings.pop(f"{k}.name")))]
    settings.pop("loss.name")
    sized = ["--batch-size", str(run.batch_size)] if run.batch_size else []
    return [
        *("run", *names, "--lr", str(run.lr), "--steps", str(run.steps), "--eval-every", str(run.eval_every)),
        *(*sized, "--seed", str(run.seed), "--device", "cpu", "--root", str(root), "--out", str(root / "out")),
        *(f"--set={k}={v}" for k, v in settings.items()),
    ]


# The command line, with a commit twice a second instead of twice a minute.
OFTEN = "import sys; from heavytail import cli; from heavytail.train import engine; "
OFTEN += "engine.COMMIT_SECONDS = engine.COMMIT_LIMIT = 0.5; raise SystemExit(cli.main(sys.argv[1:]))"


def start(run: RunSpec, root: Path, rank: int, port: int, program: str = "") -> subprocess.Popen[str]:
    """Start one of two processes, with the environment that torchrun gives it."""
    group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **{k: str(v) for k, v in group.items()}}
    command = [sys.executable, *(("-c", program) if program else ("-m", "heavytail")), *arguments(run, root)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def torchrun(run: RunSpec, root: Path, program: str = "") -> subprocess.Popen[str]:
    """Start the documented command: torchrun with two processes on this machine."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    launch = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    launch += ["--no-python", sys.executable, "-c", program] if program else ["-m", "heavytail"]
    command = [sys.executable, *launch, *arguments(run, root)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def assert_close(a: History, b: History) -> None:
    """Losses agree to 1e-5, and every count exactly."""
    assert a.arrays.keys() == b.arrays.keys()
    for name, value in a.arrays.items():
        exact = name.endswith(("step", "count", "group"))
        np.testing.assert_allclose(value, b.arrays[name], rtol=0 if exact else 1e-5, atol=0, err_msg=name)


def test_shares_are_a_partition() -> None:
    """Every chunk goes to exactly one process, and every process gets one where there are samples enough."""
    for size in (1, 2, 3, 5):
        for total in (1, 4, 5, 17):
            for most in (None, 1, 3, 100):
                portion = Group(0, size).portion(total, most) or total
                chunks = list(range(0, total, portion))
                shares = [Group(rank, size).share(chunks) for rank in range(size)]
                assert sorted(chunk for share in shares for chunk in share) == chunks
                assert portion <= (most or total)
                if size == 2 and total > 1:
                    assert all(shares)


def test_alone_nothing_is_exchanged() -> None:
    """A single process needs no torch.distributed."""
    ALONE.add([])
    ALONE.wait()
    assert ALONE.any(True)
    assert not ALONE.any(False)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_what_one_does(case: str, tmp_path: Path, processes: list[subprocess.Popen[str]]) -> None:
    """20 steps of the same global batch: losses to 1e-5, counts exactly, whatever the micro-batches and weights."""
    run, port = spec(**CASES[case]), free_port()
    alone = train(run, RunStore(tmp_path / "one"), data_dir=tmp_path)
    processes += [start(run, tmp_path / "two", rank, port) for rank in range(2)]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert bool(out) == (process is processes[0])  # one process speaks
    together = RunStore(tmp_path / "two").load(run)
    assert together is not None
    assert together.environment["processes"] == 2
    assert_close(together, alone)


# The command line, with an optimizer of this test suite.
GROUPS = "import sys; from heavytail import cli; from heavytail.optim import REGISTRY; "
GROUPS += "from tests.test_engine import Groups; REGISTRY.register('test-groups')(Groups); "
GROUPS += "raise SystemExit(cli.main(sys.argv[1:]))"


def test_gradients_of_every_parameter_group_are_summed(
    tmp_path: Path, processes: list[subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes and an optimizer with a group and step size for each parameter train what one process does."""
    OPTIMIZERS.names()
    monkeypatch.setitem(OPTIMIZERS._recipes, "test-groups", Groups)
    monkeypatch.setitem(OPTIMIZERS._versions, "test-groups", 1)
    run, port = spec(optim="test-groups", batch_size=10, eval_every=5, test_every=10), free_port()
    alone = train(run, RunStore(tmp_path / "one"), data_dir=tmp_path)
    processes += [start(run, tmp_path / "two", rank, port, GROUPS) for rank in range(2)]
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    together = RunStore(tmp_path / "two").load(run)
    assert together is not None
    assert together.environment["processes"] == 2
    assert alone.loss[-1] < 0.99 * alone.loss[0]  # it trained
    assert_close(together, alone)


# The command line, and which of gloo's threads are left after it.
LEFT = "import sys; from pathlib import Path; from heavytail import cli; code = cli.main(sys.argv[1:]); "
LEFT += (
    "print([n for p in Path('/proc/self/task').glob('*/comm') if 'gloo' in (n := p.read_text())], file=sys.stderr); "
)
LEFT += "raise SystemExit(code)"


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted under /proc")
def test_no_thread_outlives_the_run(tmp_path: Path, processes: list[subprocess.Popen[str]]) -> None:
    """A thread of the process group that is left when the interpreter ends can abort the process (one run in ten)."""
    port = free_port()
    processes += [start(spec(steps=1), tmp_path, rank, port, LEFT) for rank in range(2)]
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert err.strip().splitlines()[-1] == "[]"


def test_a_killed_process_leaves_a_run_to_resume(tmp_path: Path, processes: list[subprocess.Popen[str]]) -> None:
    """The first process says what happened, commits the last complete step, and one process goes on from there."""
    run, port, store = spec(steps=10**6, batch_size=10, eval_every=10), free_port(), RunStore(tmp_path / "two")
    processes += [start(run, store.root, rank, port, OFTEN) for rank in range(2)]
    deadline = time.monotonic() + 60
    while store.load_partial(run) is None and time.monotonic() < deadline:
        time.sleep(0.2)
    processes[1].send_signal(signal.SIGKILL)
    _, err = processes[0].communicate(timeout=60)
    assert processes[0].returncode == 2, err
    last = err.strip().splitlines()[-1]
    assert last.startswith("heavytail: another process of this run has ended; the same command continues it")
    assert store.status(run) == "interrupted"
    found = store.load_partial(run)
    assert found is not None
    steps = found[1]
    assert steps > 0
    shorter = spec(steps=steps + 5, batch_size=10, eval_every=10)
    resumed = train(shorter, store, data_dir=tmp_path)
    whole = train(shorter, RunStore(tmp_path / "one"), data_dir=tmp_path)
    np.testing.assert_allclose(resumed.arrays["objective"][:20], whole.arrays["objective"][:20], rtol=1e-5)
    # Rounding grows along the way, as between any two orders of summation.
    np.testing.assert_allclose(resumed.loss[-1], whole.loss[-1], rtol=0.05)


def test_torchrun_starts_the_command_line(tmp_path: Path, processes: list[subprocess.Popen[str]]) -> None:
    """The documented command trains a run with two processes."""
    run = spec(steps=3, batch_size=10)
    processes.append(torchrun(run, tmp_path))
    out, err = processes[0].communicate(timeout=120)
    assert processes[0].returncode == 0, err
    assert any(line.startswith("done: loss") for line in out.splitlines())
    assert RunStore(tmp_path).status(run) == "done"


def test_processes_must_share_their_store(tmp_path: Path, processes: list[subprocess.Popen[str]]) -> None:
    """A checkpoint that one process alone can see is refused by both: their gradients would be of different steps."""
    run, port, asked = spec(batch_size=10), free_port(), itertools.count()
    train(run, RunStore(tmp_path / "0"), data_dir=tmp_path, should_stop=lambda: next(asked) == 7)
    processes += [start(run, tmp_path / str(rank), rank, port) for rank in range(2)]
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 2, err
        assert "expected one folder that all processes share" in err
    found = RunStore(tmp_path / "0").load_partial(run)
    assert found is not None
    assert found[1] == 7


# The command line of a sweep, in which one process fails at the fifth gradient of its first run.
FAILS = "import sys; from heavytail import cli; from heavytail.train import engine; gradient = engine._Run._gradient\n"
FAILS += "def failing(self, step, stats):\n"
FAILS += "    if step == 5 and self.group.rank == int(sys.argv[1]): raise RuntimeError('the disk is on fire')\n"
FAILS += "    return gradient(self, step, stats)\n"
FAILS += "engine._Run._gradient = failing; raise SystemExit(cli.main(sys.argv[2:]))"


@pytest.mark.parametrize("failing", [0, 1])
def test_a_failure_in_one_process_ends_all(
    failing: int, tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    """No process goes on to the next run of a sweep while another is still in this one; the reason is printed."""
    (tmp_path / "mine.toml").write_text(tiny_preset(20, "lr = [0.01, 0.1, 1.0]", 'name = "gd"'))
    command = ["sweep", str(tmp_path / "mine.toml"), "--device", "cpu", "--root", str(tmp_path / "root")]
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **group}
    for rank in range(2):
        ranked = env | {"RANK": str(rank), "LOCAL_RANK": str(rank)}

        mine = [sys.executable, "-c", FAILS, str(failing), *command]
        processes.append(subprocess.Popen(mine, env=ranked, stdout=-1, stderr=-1, text=True))
    told = [process.communicate(timeout=120)[1] for process in processes]
    codes = [process.returncode for process in processes]
    assert codes[failing] == 70, told[failing]
    assert "the disk is on fire" in told[failing]
    assert codes[1 - failing] == 2, told[1 - failing]
    assert "another process of this run has ended" in told[1 - failing]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE: expected a number"),
        ({"WORLD_SIZE": "2"}, "RANK: expected a number"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_PORT: expected a number"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "1"}, "MASTER_ADDR: expected a host"),
    ],
)
def test_an_environment_that_is_not_torchruns(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One line names the variable; an empty WORLD_SIZE is none."""
    for name in ("WORLD_SIZE", "RANK", "MASTER_PORT", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SpecError, match=expected), joined(Options(tmp_path)):
        pass
    monkeypatch.setenv("WORLD_SIZE", "")
    with joined(Options(tmp_path)) as options:
        assert options.group is None
