"""What earlier versions wrote is read by this one: run store, claims.json, a monitor's journal; and run keys are equal.

The fixtures in tests/fixtures/before_move were written by version 0.1.0, before its modules moved into folders.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from heavytail.experiment.spec import RunSpec
from heavytail.experiment.store import RunStore
from heavytail.files import read_json
from heavytail.monitor.journal import read_journal
from heavytail.report.page import write_report
from heavytail.train.engine import train

OLD = Path(__file__).parent / "fixtures" / "before_move"


def test_run_keys_are_equal() -> None:
    """A run of every model, data set, optimizer and loss weight has the key that it had: nothing is trained twice."""
    rows = json.loads((OLD / "keys.json").read_text())
    assert len(rows) > 20
    for row in rows:
        assert RunSpec.from_dict(row["spec"]).key == row["key"]


def test_a_stored_run_is_read_and_continued(tmp_path: Path) -> None:
    """The stored run answers for its spec, and training on from it equals a run that was never interrupted."""
    shutil.copytree(OLD / "runs", tmp_path / "old" / "runs")
    store = RunStore(tmp_path / "old")
    (folder,) = (tmp_path / "old" / "runs").iterdir()
    table = json.loads((folder / "spec.json").read_text())
    history = store.load(RunSpec.from_dict(table))
    assert history is not None
    assert history.status == "done"
    np.testing.assert_allclose(history.loss[[0, 6]], [3.2135, 0.7066], atol=1e-4)
    longer = RunSpec.from_dict({**table, "steps": 9})
    continued = train(longer, store, data_dir=tmp_path)
    whole = train(longer, RunStore(tmp_path / "new"), data_dir=tmp_path)
    np.testing.assert_allclose(continued.loss, whole.loss, rtol=1e-5)  # the first six steps are another machine's


def test_claims_are_read(tmp_path: Path) -> None:
    """A claims.json makes a report."""
    shutil.copy(OLD / "claims.json", tmp_path)
    page = write_report(tmp_path).read_text()
    for row in read_json(OLD / "claims.json", []):
        assert row["claim"] in page


def test_a_journal_is_read() -> None:
    """Every reading of a journal is there, with its groups and counts."""
    tracks, counts, index = read_journal(OLD / "journal")
    assert tracks["train"].step.tolist() == [0, 1, 2]
    np.testing.assert_allclose(tracks["train"].overall["loss"], [2.068674, 1.903525, 2.342578], atol=1e-6)
    assert counts.sum() == 96
    assert len(index) == 6
