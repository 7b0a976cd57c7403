"""Ray: sweeps on a real cluster of two nodes (two raylets on this machine), and on one started for a command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heavytail.errors import HeavyTailError
from heavytail.experiment.spec import RunSpec
from heavytail.experiment.store import RunStore
from heavytail.train.executors import ray as ray_executor
from heavytail.train.executors.ray import Desk
from heavytail.train.options import Options
from heavytail.train.runner import Failure, Interrupted, run_all
from tests.problems import ROOT, tiny, tiny_preset
from tests.test_runner import Log, work

pytestmark = pytest.mark.cluster
pytest.importorskip("ray")
FAST = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_timeout_ms": 500}
SPECS = [tiny(seed=seed, steps=3000, eval_every=500) for seed in range(4)]  # seconds: they report every half one


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of one node with one core, at RAY_ADDRESS, to which tests add nodes."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        head = {"num_cpus": 1, "include_dashboard": False, "_system_config": FAST}
        nodes = Cluster(initialize_head=True, head_node_args=head)
        patch.setenv("RAY_ADDRESS", nodes.address)
        yield nodes
        nodes.shutdown()


def work_on_ray(specs: list[RunSpec], root: Path, log: Log, **options: Any) -> tuple[RunStore, list[Failure]]:
    store = RunStore(root)
    chosen = Options(root / "data", executor="ray", **options)
    return store, run_all(lambda: [s for s in specs if store.outcome(s) is None], store, chosen, log)


def test_a_node_killed_in_the_middle_of_a_sweep_loses_nothing(cluster: Any, tmp_path: Path) -> None:
    """A run of the killed node starts again on the other one; all histories are those of one process, each once."""
    other = cluster.add_node(num_cpus=1)
    progressed: set[str] = set()
    killed = threading.Event()

    def kill(spec: RunSpec) -> None:
        progressed.add(spec.key)
        if len(progressed) == 2 and not killed.is_set():
            killed.set()
            cluster.remove_node(other, allow_graceful=False)

    log = Log(kill)
    store, failures = work_on_ray(SPECS, tmp_path / "ray", log)
    assert failures == []
    assert killed.is_set()
    ends = [(key, event) for key, event in log.events if event != "started"]
    assert sorted(key for key, event in ends if event == "done") == sorted(spec.key for spec in SPECS)
    assert [event for _, event in ends if event != "done"] == ["interrupted"]
    whole, _ = work(SPECS, tmp_path / "whole", 1)
    for spec in SPECS:
        one, two = store.load(spec), whole.load(spec)
        assert one is not None
        assert two is not None
        assert len(one.resumed) <= 1
        for name, value in two.arrays.items():
            np.testing.assert_array_equal(one.arrays[name], value, err_msg=name)


def kill_all(cluster: Any, nodes: list[Any]) -> None:
    while nodes:
        cluster.remove_node(nodes.pop(), allow_graceful=False)


class Joining(Log):
    """Kills the nodes at the first report of a run; one joins after it has been submitted again."""

    def __init__(self, cluster: Any, nodes: list[Any], joins: list[Any]) -> None:
        super().__init__(lambda spec: kill_all(cluster, nodes))
        self._cluster, self._nodes, self._joins = cluster, nodes, joins

    def started(self, spec: RunSpec) -> None:
        super().started(spec)
        if not self._nodes:
            self._joins.append(self._cluster.add_node(num_cpus=2))


def test_a_command_waits_for_a_node_when_all_have_died(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run continues on a node that joins; without one, the command ends with the reason."""
    spec = tiny(steps=5000, eval_every=1000)
    joined: list[Any] = []
    log = Joining(cluster, [cluster.add_node(num_cpus=2)], joined)
    store, failures = work_on_ray([spec], tmp_path / "joined", log, settings={"cpus": 2})
    assert failures == []
    assert [event for _, event in log.events] == ["started", "interrupted", "started", "done"]
    assert store.status(spec) == "done"
    monkeypatch.setattr(ray_executor, "ROOM_SECONDS", 2.0)
    kill = Log(lambda spec: kill_all(cluster, joined))
    with pytest.raises(HeavyTailError, match="no node has had 2 CPUs for 0 minutes; the same command continues"):
        work_on_ray([spec], tmp_path / "alone", kill, settings={"cpus": 2})


class SlowDesk(Desk):
    """A desk on a busy machine."""

    def report(self, key: str, step: int, loss: float) -> bool:
        """Answer after half a second."""
        time.sleep(0.5)
        return super().report(key, step, loss)


def test_sigterm_commits_and_the_same_command_continues(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After SIGTERM the run in progress is committed where it is, and no other begins; run again, all are trained.

    Ray's own handler of SIGTERM would end the command at once. The cluster has one core, which a run must not lend to
    the other one while it waits for the desk.
    """
    monkeypatch.setattr(ray_executor, "Desk", SlowDesk)
    # Many times the seconds that the request takes: from the task to the desk, to the driver, and back.
    specs = [tiny(seed=seed, steps=7000, eval_every=1000) for seed in range(2)]
    once = iter([signal.SIGTERM])
    with pytest.raises(Interrupted):
        work_on_ray(specs, tmp_path, Log(lambda spec: [*map(signal.raise_signal, once)]), workers=2)
    store = RunStore(tmp_path)
    assert sorted(store.status(spec) for spec in specs) == ["interrupted", "missing"]
    log = Log()
    assert work_on_ray(specs, tmp_path, log)[1] == []
    assert sorted(store.status(spec) for spec in specs) == ["done", "done"]
    [resumed] = [h for h in map(store.load, specs) if h is not None and h.resumed]
    assert resumed.resumed[0]["step"] > 0


def test_a_worker_that_dies_is_tried_once_more(cluster: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A run whose worker process is killed at its first reports is started twice, and then named with the reason."""

    def kill(spec: RunSpec) -> None:
        inode = (store.folder(spec) / "lock").stat().st_ino
        for line in Path("/proc/locks").read_text().splitlines():
            if line.split()[5].endswith(f":{inode}"):
                os.kill(int(line.split()[4]), signal.SIGKILL)

    store = RunStore(tmp_path)
    log = Log(kill)
    [failure] = work_on_ray([tiny(steps=100_000, eval_every=1000)], tmp_path, log)[1]
    assert [event for _, event in log.events] == ["started", "interrupted", "started", "failed"]
    assert "worker" in failure.reason
    assert "trying once more" in caplog.text


def test_a_run_that_no_node_can_train_and_a_cluster_that_does_not_answer_are_refused(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Needs that no node has, and a wrong RAY_ADDRESS, are one line each."""
    with pytest.raises(HeavyTailError, match="no node has 3 CPUs, which each run needs"):
        work_on_ray(SPECS, tmp_path, Log(), settings={"cpus": 3})
    with pytest.raises(HeavyTailError, match="no node has 1 CPU and a GPU, which each run needs"):
        work_on_ray(SPECS, tmp_path, Log(), device="cuda")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(HeavyTailError, match=r"RAY_ADDRESS: cannot connect to 127\.0\.0\.1:1: "):
        work_on_ray(SPECS, tmp_path, Log())


def test_a_local_cluster_is_started_for_a_command(tmp_path: Path) -> None:
    """`sweep --executor ray` prints what `sweep` prints."""
    preset = tiny_preset(30, "lr = { decades = [-2, 0], refine = 1 }\nseeds = [0, 1]", 'name = "gd"')
    (tmp_path / "mine.toml").write_text(preset)
    printed = []
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"PYTHONPATH": str(ROOT)}
    for executor in ("ray", "local"):
        args = ["sweep", "mine.toml", "--root", executor, "--executor", executor, "--jobs", "1"]
        command = [sys.executable, "-m", "heavytail", *args]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
    assert printed[0] == printed[1]
