"""Slurm: sweeps on a real cluster of one node, whose daemons are started on this machine."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heavytail.cli import main
from heavytail.errors import HeavyTailError
from heavytail.experiment.spec import RunSpec
from heavytail.experiment.store import RunStore
from heavytail.train.executors import slurm as executor
from heavytail.train.options import Options
from heavytail.train.runner import Failure, Interrupted, run_all
from tests import slurm
from tests.problems import ROOT, tiny, tiny_preset
from tests.test_runner import Log, work

pytestmark = pytest.mark.cluster
pytest.importorskip("submitit")
LONG = [tiny(seed=seed, steps=100_000, eval_every=10_000) for seed in range(3)]  # cancelled before their end


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cluster of this machine, to which SLURM_CONF leads."""
    if (reason := slurm.obstacle()) is not None:
        pytest.skip(reason)
    with pytest.MonkeyPatch.context() as patch, slurm.cluster(tmp_path_factory.mktemp("slurm")):
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is on a disk of this machine, where nothing needs a minute to become visible."""
    monkeypatch.setattr(executor, "QUEUE_SECONDS", 1.0)
    monkeypatch.setattr(executor, "VISIBLE_SECONDS", 2.0)


def work_on_slurm(specs: list[RunSpec], root: Path, log: Log, **options: Any) -> tuple[RunStore, list[Failure]]:
    store = RunStore(root)
    chosen = Options(root / "data", executor="slurm", **options)
    return store, run_all(lambda: [s for s in specs if store.outcome(s) is None], store, chosen, log)


def printed(*command: str, **options: Any) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300, **options).stdout


def wait_for(condition: Callable[[], object], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, printed("squeue")
        time.sleep(0.05)


def assert_equal_histories(specs: list[RunSpec], stores: tuple[RunStore, RunStore]) -> None:
    for spec in specs:
        one, two = (store.load(spec) for store in stores)
        assert one is not None
        assert two is not None
        for name, value in two.arrays.items():
            np.testing.assert_array_equal(one.arrays[name], value, err_msg=name)


def test_a_sweep_that_is_itself_a_job_ends_as_a_local_one(
    cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`sbatch --wrap 'heavytail sweep ... --executor slurm'` goes through all waves while nobody waits.

    It prints what the local executor prints, of histories that are equal bit for bit, each trained once. The same
    command then trains nothing. The next one that trains something deletes the folders of the jobs.
    """
    sweep = "lr = { decades = [-2, -1], refine = 0 }\nseeds = [0, 1]\nverdict_seeds = [0]"
    (tmp_path / "mine.toml").write_text(tiny_preset(20, sweep, 'name = "gd"'))
    sweep_of = ["sweep", str(tmp_path / "mine.toml"), "--device", "cpu", "--root"]
    assert main([*sweep_of, str(tmp_path / "local"), "--jobs", "1"]) == 0
    alone = capsys.readouterr().out
    same = [*sweep_of, str(tmp_path / "slurm"), "--executor", "slurm"]
    line = shlex.join([sys.executable, "-m", "heavytail", *same])
    printed("sbatch", "--wait", "--output=out", "--error=err", "--wrap", line, cwd=tmp_path)
    assert (tmp_path / "out").read_text() == alone, (tmp_path / "err").read_text()
    stores = RunStore(tmp_path / "slurm"), RunStore(tmp_path / "local")
    records = list(stores[1].records())
    assert sorted(stores[0].keys()) == sorted(key for key, _, _ in records)
    assert len(records) == 3
    assert_equal_histories([RunSpec.from_dict(table) for _, table, _ in records], stores)
    assert len(executor._submissions(stores[0].root, ())) == 2  # waves
    assert main(same) == 0
    assert capsys.readouterr().out == alone
    wait_for(lambda: not executor._queue())
    executor.connect(stores[0], Options(tmp_path, executor="slurm"), lambda: False)
    assert executor._submissions(stores[0].root, ()) == []


def test_interrupted_jobs_resume_and_outlive_the_command(cluster: None, tmp_path: Path) -> None:
    """A command left by SIGTERM, a job that is requeued, and one that reaches its time limit lose no step.

    The job of the first command goes on; the second one waits for it, and submits nothing. The history equals that of
    an undisturbed run bit for bit.
    """
    [spec] = specs = [tiny(steps=4000, eval_every=1000)]
    store = RunStore(tmp_path)
    whole, _ = work(specs, tmp_path / "whole", 1)
    undisturbed = whole.load(spec)
    assert undisturbed is not None

    def interrupt() -> None:
        wait_for(lambda: store.locked(spec.key))
        signal.raise_signal(signal.SIGTERM)

    threading.Thread(target=interrupt).start()
    with pytest.raises(Interrupted):
        work_on_slurm(specs, tmp_path, Log())
    [submission] = executor._submissions(tmp_path, ())
    for signals in (["scontrol", "requeue"], ["scancel", "--signal=USR2"]):
        wait_for(lambda: store.locked(spec.key))
        time.sleep(undisturbed.timing["seconds"] / 4)
        printed(*signals, submission.jobs[spec.key])
        wait_for(lambda: not store.locked(spec.key))
    assert store.status(spec) == "interrupted"
    log = Log()
    assert work_on_slurm(specs, tmp_path, log)[1] == []
    assert log.events == [(spec.key, "started"), (spec.key, "done")]
    assert len(executor._submissions(tmp_path, ())) == 1
    history = store.load(spec)
    assert history is not None
    steps = [resumption["step"] for resumption in history.resumed]
    assert len(steps) == 2
    assert steps == sorted(steps)
    assert 0 < steps[1] < spec.steps
    assert_equal_histories(specs, (store, whole))


def test_jobs_are_cancelled(cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`heavytail cancel` ends queued and running jobs; a command that waits for them says so, and submits none again.

    At most --jobs run at a time. A run in progress has committed its step.
    """
    store = RunStore(tmp_path)
    running: list[int] = []

    def cancel() -> None:
        wait_for(lambda: any(store.locked(spec.key) for spec in LONG))
        time.sleep(1)
        running.append(len(printed("squeue", "--noheader", "--states=RUNNING").splitlines()))
        assert main(["cancel", "--root", str(tmp_path)]) == 0

    thread = threading.Thread(target=cancel)
    thread.start()
    failures = work_on_slurm(LONG, tmp_path, Log(), workers=1)[1]
    thread.join()
    assert running == [1]
    assert [failure.reason for failure in failures] == [f"{spec.describe()}: cancelled" for spec in LONG]
    assert "3 jobs cancelled" in capsys.readouterr().out
    wait_for(lambda: not executor._queue())
    assert [store.status(spec) for spec in LONG] == ["interrupted", "missing", "missing"]
    found = store.load_partial(LONG[0])
    assert found is not None
    assert 0 < found[1] < LONG[0].steps
    assert main(["cancel", "--root", str(tmp_path)]) == 0
    assert "0 jobs cancelled" in capsys.readouterr().out


def test_what_fails_is_named_with_its_reason(cluster: None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A run that raises is named with the error; a job that dies is tried once more, and named with its last words."""
    too_large = tiny(data={"name": "simple-imbalanced", "num_classes": 2**23, "samples": 2**23})  # 256 TiB
    store, [failure] = work_on_slurm([too_large, tiny()], tmp_path, Log())
    assert failure.reason.startswith(f"{too_large.describe()}: RuntimeError: ")
    assert [store.status(spec) for spec in (too_large, tiny())] == ["failed", "done"]
    settings = {"setup": "echo no such module >&2; exit 3"}
    [failure] = work_on_slurm([tiny(seed=1)], tmp_path, Log(), settings=settings)[1]
    assert re.search(r"its job \d+ ended as FAILED: no such module \(log: .*_0_log.err\)$", failure.reason)
    assert "trying once more" in caplog.text


def test_runs_are_left_to_the_cluster(cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --leave the command submits and ends; repeated, it submits nothing twice; refused options are one line."""
    (tmp_path / "mine.toml").write_text(tiny_preset(20, "seeds = [0]", 'name = "gd"\nlr = { exponents = [-1, 0] }'))
    command = ["sweep", str(tmp_path / "mine.toml"), "--root", str(tmp_path), "--executor", "slurm"]
    leave = [*command, "--leave", "--sbatch", "hold"]
    for _ in range(2):
        assert main(leave) == 0
        assert "runs that were left to the cluster are missing" in capsys.readouterr().err
        assert len(executor._queue()) == 2
    for which in ([], [str(tmp_path / "mine.toml")]):
        assert main(["status", *which, "--root", str(tmp_path)]) == 0
        assert f"2 runs under {tmp_path}: 2 queued" in capsys.readouterr().out
    assert main(["cancel", "mine", "--root", str(tmp_path)]) == 2
    assert main(["cancel", str(tmp_path / "mine.toml"), "--root", str(tmp_path)]) == 0
    assert "2 jobs cancelled" in capsys.readouterr().out
    assert main([*command, "--partition", "nowhere"]) == 2
    assert "--executor slurm: sbatch refuses the jobs: " in capsys.readouterr().err


def test_arrays_share_the_limit_of_jobs(cluster: None, tmp_path: Path) -> None:
    """A second array gets what the first one leaves of --jobs, and all of it once the first one has ended."""
    specs = [tiny(seed=seed) for seed in range(7)]
    options = Options(tmp_path, executor="slurm", workers=3, settings={"sbatch": {"hold": True}})
    queue = executor.connect(RunStore(tmp_path), options, lambda: False)
    for wave in (specs[:2], specs[2:6]):
        assert queue.start(wave) == wave
    assert queue.start(specs[6:]) == []  # six are in the queue
    arrays = [submission.array for submission in executor._submissions(tmp_path, ())]

    def throttle(array: str) -> str:
        return printed("scontrol", "--oneliner", "show", "job", array).partition("ArrayTaskThrottle=")[2].split()[0]

    assert [*map(throttle, arrays)] == ["2", "1"]
    assert executor.cancel(tmp_path, {spec.key for spec in specs[:2]}) == 2
    ended: list[tuple[RunSpec, str]] = []
    deadline = time.monotonic() + 60
    while throttle(arrays[1]) != "3":
        queue.poll(lambda event: ended.append((event.spec, event.text)), 0.1)
        assert time.monotonic() < deadline
    assert ended == [(spec, "cancelled") for spec in specs[:2]]
    assert executor.cancel(tmp_path) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [({}, "needs squeue, which is not on the PATH"), ({"gres": "gpu:1"}, "--device: expected cuda with --gres gpu:1")],
)
def test_a_machine_outside_the_cluster_is_refused(
    settings: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there are no commands of Slurm, and where a GPU is reserved but not used, nothing is submitted."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HeavyTailError, match=message):
        work_on_slurm(LONG, tmp_path, Log(), settings=settings)


def test_a_cluster_that_does_not_answer_is_refused(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A controller that cannot be reached is one line."""
    text = Path(os.environ["SLURM_CONF"]).read_text()
    (tmp_path / "slurm.conf").write_text(re.sub("SlurmctldPort=.*", "SlurmctldPort=1\nMessageTimeout=2", text))
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    with pytest.raises(HeavyTailError, match="Slurm does not answer: squeue: "):
        work_on_slurm(LONG, tmp_path, Log())
