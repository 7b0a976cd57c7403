"""Other systems, simulated by taking their missing names away: macOS, Windows, containers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from heavytail import system
from heavytail.errors import SpecError
from heavytail.experiment.store import RunStore
from heavytail.train.engine import train
from tests.problems import ROOT, tiny, tiny_preset

FAKES = ROOT / "tests" / "fixtures" / "platforms"


def python(simulated: str, *arguments: str, **environment: str) -> str:
    """Run Python on a simulated system; return what it prints to both streams."""
    paths = os.pathsep.join([str(FAKES), str(ROOT)])
    env = {**os.environ, "PYTHONPATH": paths, "SIMULATED_PLATFORM": simulated, **environment}
    done = subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("simulated", ["macos", "windows"])
def test_trains_and_draws_without_linux(simulated: str, tmp_path: Path) -> None:
    """Without sched_getaffinity, /proc and /sys, and on Windows without fcntl, fork, fchmod and renames of open files:
    a figure is drawn, a search trains in worker processes, and the store is read."""
    (tmp_path / "mine.toml").write_text(tiny_preset(5, "seeds = [0]", 'name = "gd"\nlr = { exponents = [-1, 0] }'))
    commands = ("reproduce fig06 --out out", "sweep mine.toml --workers 2", "status")
    calls = [f"assert main({[*command.split(), '--root', 'root']}) == 0" for command in commands]
    code = f"import os; os.chdir({str(tmp_path)!r})\nfrom heavytail.cli import main\n" + "\n".join(calls)
    printed = python(simulated, "-c", code)
    assert "exact 5 of 5" in printed
    assert "lr 1 " in printed
    assert printed.count(" done ") == 2
    assert not list(tmp_path.rglob(".*.????????"))  # temporary files


def test_the_instrument_works_on_windows(tmp_path: Path) -> None:
    """Monitor, journal, its page, the head, the audit and a download's folders work on a simulated Windows."""
    code = """
        import sys
        from pathlib import Path
        import torch, heavytail
        from heavytail.data import fetch
        from heavytail.cli import main
        folder = Path(sys.argv[1])
        x, y = torch.randn(8, 4), torch.arange(8) % 5
        monitor, journal = heavytail.Monitor(num_classes=5), heavytail.Journal(folder)
        heavytail.linear_cross_entropy(x, torch.zeros(5, 4), None, y, curvature=True)
        for step in range(2):
            monitor.cross_entropy(torch.randn(8, 5), y)
            journal.write(step, monitor.compute())
        (folder / "text.txt").write_text("a b a c a")
        assert main(["monitor", str(folder)]) == 0
        assert main(["audit", str(folder / "text.txt"), "--groups", "2", "--out", str(folder)]) == 0
        with fetch._scratch(folder) as scratch:
            assert scratch.is_dir()
        """
    (tmp_path / "code.py").write_text("import textwrap\nexec(textwrap.dedent('''" + code + "'''))")
    assert "page: " in python("windows", str(tmp_path / "code.py"), str(tmp_path))


@pytest.mark.parametrize("simulated", ["macos", "windows"])
def test_locks_exclude_other_processes(simulated: str, tmp_path: Path) -> None:
    """While one process holds the lock of a file, another one waits, and `try_lock` reports it."""
    probe = "import sys; from heavytail import system; f = open(sys.argv[1], 'rb'); print(system.try_lock(f.fileno()))"
    code = (
        "import subprocess, sys; from pathlib import Path; from heavytail import locks\n"
        f"probe = [sys.executable, '-c', {probe!r}, sys.argv[1]]\n"
        "with locks.locked(Path(sys.argv[1])):\n"
        "    subprocess.run(probe, check=True)\n"
        "subprocess.run(probe, check=True)"
    )
    assert python(simulated, "-c", code, str(tmp_path / "lock")).split() == ["False", "True"]


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, 64),
        ({"cpu.max": "garbage"}, 64),
        ({"cpu.max": "0 0\n"}, 64),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ({}, 64),
    ],
)
def test_cores_respect_the_quota_of_a_container(
    files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On 64 cores a quota of cgroups, version 1 or 2, limits the number of worker processes."""
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.delattr(os, "process_cpu_count", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    assert system.num_cores(tmp_path) == cores


def test_without_a_home_folder_runs_go_to_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without $HOME and for a user without a name, or with a read-only home: a private folder for temporary files."""
    environment = {"TMPDIR": str(tmp_path), "XDG_CACHE_HOME": "", "HEAVYTAIL_ROOT": ""}
    code = "import pwd; pwd.getpwuid = {}.__getitem__; from heavytail.cli import main; main(['status'])"
    monkeypatch.delenv("HOME", raising=False)
    place = tmp_path / f"heavytail-{os.getuid()}"
    assert python("", "-c", code, **environment) == f"0 runs under {place}\n"
    assert place.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(system.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert system.user_cache() == place
    (tmp_path / ".cache" / "heavytail").mkdir(parents=True)
    assert system.user_cache() == tmp_path / ".cache" / "heavytail"  # stored runs can be read


def test_a_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else's folder of that name among the temporary files is not used."""
    monkeypatch.setattr(system.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
    uid = os.getuid()
    (tmp_path / f"heavytail-{uid + 1}").mkdir()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    with pytest.raises(PermissionError, match="HEAVYTAIL_ROOT"):
        system.user_cache()


def test_float64_is_refused_on_mps(tmp_path: Path) -> None:
    """A run in float64, or with probes, which sum in it, is refused on mps before the model is built."""
    wrong = {
        "precision": ("float64", "precision: expected float32 or bf16"),
        "probes": (["head-blocks"], "probes: expected none"),
    }
    for name, (value, message) in wrong.items():
        with pytest.raises(SpecError, match=f"{message} on mps"):
            train(tiny(**{name: value}), RunStore(tmp_path), data_dir=tmp_path, device="mps")
