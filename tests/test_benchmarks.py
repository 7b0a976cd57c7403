"""The benchmarks: every case runs, and the file that they write is complete. No time is asserted."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", "--tiny", "--rounds", "1", "--threads", "1", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("group", "ratios"),
    [
        (
            "head",
            {
                "plain / head",
                "head / bare",
                "head / torch mean",
                "stats / torch rows",
                "stats / head",
                "curvature / head",
                "diverged / head",
            },
        ),
        ("step", {"step / bare", "step / no stats", "step / release", "diverged / normal"}),
        ("curvature", {"blocks / bare"}),
        ("monitor", {"update(losses) / step"}),
        ("pool", {"2 processes x 1 thread / 1 process x 2 threads"}),
        ("audit", {"audit, words / Counter, str.split", "audit, labels / polars, value_counts"}),
        ("start", {"import heavytail / nothing", "heavytail --help / nothing"}),
    ],
)
def test_every_group_runs_and_writes_its_numbers(group: str, ratios: set[str], tmp_path: Path) -> None:
    done = bench(group, "--json", str(tmp_path / "new" / "bench.json"))
    assert done.returncode == 0, done.stderr
    table = json.loads((tmp_path / "new" / "bench.json").read_text())
    assert {"torch", "threads", "processor", "load"} <= set(table["environment"])
    (rows,) = table["rows"].values()
    assert ratios <= {f"{row['name']} / {row['base']}" for row in rows}
    for row in rows:
        assert math.isfinite(row["value"])
        assert row["value"] > 0 or row["unit"] == "MB"
        assert f"{row['name']} / {row['base']}" in done.stdout or row["unit"] == "MB"


def test_an_unknown_group_is_one_clear_line() -> None:
    done = bench("heads")
    assert done.returncode == 2
    assert "no group 'heads'; choose from head, step, curvature, monitor, pool, quick, start" in done.stderr
