"""Journals: what is written is read, through crashes and resumed trainings, and the report shows it."""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from heavytail.cli import main
from heavytail.errors import DataError, SpecError, StoreError
from heavytail.monitor.journal import Journal, read_journal
from heavytail.monitor.monitor import Monitor, Reading
from heavytail.report.page import SCRIPTS

COUNTS = [40, 20, 10, 8, 4, 2, 1, 1]


def reading(seed: int, monitor: Monitor | None = None) -> Reading:
    generator = torch.Generator().manual_seed(seed)
    monitor = Monitor(counts=COUNTS, num_groups=3) if monitor is None else monitor
    targets = (torch.rand(30, generator=generator) ** 3 * 8).long()
    monitor.update(torch.randn(30, 8, generator=generator), targets)
    return monitor.compute()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Steps, means and counts of both splits come back to the last digit, NaN as NaN."""
    journal = Journal(tmp_path / "run")
    readings = [reading(seed) for seed in range(3)]
    for step, entry in enumerate(readings):
        journal.write(10 * step, entry)
    journal.write(20, Monitor(counts=COUNTS, num_groups=3).compute(), split="test")
    tracks, count, group = read_journal(tmp_path / "run")
    assert tracks["train"].step.tolist() == [0, 10, 20]
    np.testing.assert_array_equal(tracks["train"].groups["loss"], [entry.loss for entry in readings])
    np.testing.assert_array_equal(tracks["train"].overall["loss"], [entry.overall["loss"] for entry in readings])
    assert np.isnan(tracks["test"].groups["loss"]).all()
    np.testing.assert_array_equal(count, readings[-1].class_count)
    np.testing.assert_array_equal(group, readings[-1].groups.index)
    assert not tracks["train"].recut


def test_a_resumed_training_replaces_what_it_repeats(tmp_path: Path) -> None:
    """Readings at or after the step that a training went back to are those of the second time."""
    for steps in ([0, 10, 20, 30], [20, 40]):
        journal = Journal(tmp_path)
        for step in steps:
            journal.write(step, reading(step + len(steps)))
    tracks, _, _ = read_journal(tmp_path)
    assert tracks["train"].step.tolist() == [0, 10, 20, 40]
    np.testing.assert_array_equal(tracks["train"].groups["loss"][2], reading(22).loss)


def test_another_run_is_refused(tmp_path: Path) -> None:
    """A run with another interval cannot write between the readings of the one before; the journal stays as it was."""
    journal = Journal(tmp_path)
    for step in range(10, 60, 10):
        journal.write(step, reading(step))
    with pytest.raises(SpecError, match="holds readings of another run, every 10 steps, got step 25; give each run"):
        Journal(tmp_path).write(25, reading(1))
    assert read_journal(tmp_path)[0]["train"].step.tolist() == [10, 20, 30, 40, 50]
    Journal(tmp_path).write(5, reading(1))  # starts over
    assert read_journal(tmp_path)[0]["train"].step.tolist() == [5]


def test_splits_and_groups_have_names(tmp_path: Path) -> None:
    """Evaluations of any name have a track each, training first, and groups given by name keep their names."""
    monitor = Monitor(8, groups={"digits": [0, 1, 2]})
    journal = Journal(tmp_path)
    for split in ("eval_b", "train", "eval_a"):
        journal.write(10, reading(0, monitor), split)
    tracks, _, _ = read_journal(tmp_path)
    assert list(tracks) == ["train", "eval_a", "eval_b"]
    assert tracks["train"].names == ("digits", "other")
    assert main(["monitor", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "eval_b, step 10" in page
    assert "digits" in page


def test_a_killed_writer_loses_one_line(tmp_path: Path) -> None:
    """A half-written line is left out, and the next writer begins a new one."""
    Journal(tmp_path).write(0, reading(0))
    with (tmp_path / "monitor.jsonl").open("a") as file:
        file.write('{"step": 1, "spl')
    assert read_journal(tmp_path)[0]["train"].step.tolist() == [0]
    Journal(tmp_path).write(2, reading(2))
    assert read_journal(tmp_path)[0]["train"].step.tolist() == [0, 2]


def test_groups_that_change_are_told(tmp_path: Path) -> None:
    """Groups cut anew may differ in number; the missing ones are NaN, and the track says that they were recut."""
    monitor = Monitor(num_classes=8, num_groups=3)
    monitor.update(torch.ones(2), torch.tensor([0, 0]))
    journal = Journal(tmp_path)
    journal.write(0, monitor.compute())
    journal.write(1, reading(1, monitor))
    track = read_journal(tmp_path)[0]["train"]
    assert track.recut
    assert track.groups["loss"].shape == (2, 3)
    assert np.isnan(track.groups["loss"][0, 1:]).all()


def test_wrong_journals_are_refused(tmp_path: Path) -> None:
    """No folder, nothing in it, damage, and wrong arguments are errors in a line."""
    with pytest.raises(DataError, match=r"no monitor\.jsonl in"):
        read_journal(tmp_path / "none")
    journal = Journal(tmp_path)
    with pytest.raises(DataError, match="no readings"):
        read_journal(tmp_path)
    with pytest.raises(SpecError, match="split: expected a name, got ''"):
        journal.write(0, reading(0), split="")
    with pytest.raises(SpecError, match="step: expected a whole number"):
        journal.write(-1, reading(0))
    journal.write(0, reading(0))
    (tmp_path / "classes.npz").write_bytes(b"not an archive")
    with pytest.raises(DataError, match="is damaged"):
        read_journal(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        Journal(tmp_path / "file")


def numbered(template: dict[str, object], split: str, step: int, number: int) -> str:
    """A line of a journal, with a loss that tells it from others."""
    overall = {"loss": float(number), "accuracy": None, "p_correct": None}
    return json.dumps({**template, "split": split, "step": step, "overall": overall}) + "\n"


@pytest.mark.parametrize("train_first", [True, False])
@pytest.mark.parametrize("seed", range(40))
def test_no_split_keeps_readings_of_an_abandoned_training(seed: int, train_first: bool, tmp_path: Path) -> None:
    """Trainings that are killed anywhere and go back to a checkpoint: what is read is one training, in every split."""
    rng = random.Random(seed)
    Journal(tmp_path).write(0, reading(0))
    template = json.loads((tmp_path / "monitor.jsonl").read_text())
    every = {"train": 10, "eval_a": rng.choice([10, 20, 40]), "eval_b": rng.choice([20, 30])}
    splits = list(every) if train_first else ["eval_a", "train", "eval_b"]
    lines: list[str] = []
    kept: list[tuple[str, int, int]] = []
    complete = attempts = 0
    while attempts < 4:
        attempts += 1
        start = rng.randrange(0, complete + 1, 10)
        kept = [entry for entry in kept if entry[1] <= start]
        writes = [
            (split, step, 1000 * attempts + step)
            for step in range(start + 10, start + 10 * rng.randrange(2, 9), 10)
            for split in splits
            if step % every[split] == 0
        ]
        killed = writes[: rng.randrange(1, len(writes) + 1)] if attempts < 4 else writes
        lines += [numbered(template, *entry) for entry in killed]
        kept += killed
        complete = killed[-1][1] if len(killed) == len(writes) else max(start, killed[-1][1] - 10)
    (tmp_path / "monitor.jsonl").write_text("".join(lines))
    tracks, _, _ = read_journal(tmp_path)
    found = {
        (split, step, number)
        for split, track in tracks.items()
        for step, number in zip(track.step.tolist(), track.overall["loss"].tolist(), strict=True)
    }
    assert found == set(kept)


def test_readings_of_one_step_stay_together(tmp_path: Path) -> None:
    """A training that reads its last step again keeps the evaluation of that step."""
    journal = Journal(tmp_path)
    for split in ("eval", "train", "train"):
        journal.write(10, reading(0), split)
    assert {split: track.step.tolist() for split, track in read_journal(tmp_path)[0].items()} == {
        "train": [10],
        "eval": [10],
    }


def test_a_write_that_fails_anywhere_loses_that_reading_alone(tmp_path: Path) -> None:
    """A disk that is full after any byte of a line: the readings before and after are read."""
    journal, entry = Journal(tmp_path), Monitor(counts=[1], num_groups=1).compute()
    file = tmp_path / "monitor.jsonl"
    journal.write(10, entry, "eval")
    first = file.read_bytes()
    journal.write(20, entry, "eval")
    length = file.stat().st_size - len(first)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for number in range(length):
        file.write_bytes(first)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(first) + number, limits[1]))
        try:
            with pytest.raises(StoreError, match="cannot write"):
                journal.write(20, entry, "eval")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        journal.write(30, entry, "eval")
        journal.write(40, entry, "eval")
        steps = read_journal(tmp_path)[0]["eval"].step.tolist()
        assert steps == [10, *([20] if number == length - 1 else []), 30, 40]  # that line lacks its end alone


class Tags(HTMLParser):
    """Counts tags, and keeps what is loaded from elsewhere and the scripts that run."""

    def __init__(self) -> None:
        super().__init__()
        self.count: dict[str, int] = {}
        self.external: list[str] = []
        self.scripts: list[str] = []
        self.runs = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        self.external += [v for k, v in attrs if k in ("src", "href") and v and not v.startswith(("data:", "#"))]
        self.runs = tag == "script" and ("type", "application/json") not in attrs

    def handle_endtag(self, tag: str) -> None:
        self.runs = False

    def handle_data(self, data: str) -> None:
        if self.runs:
            self.scripts.append(data)


def test_the_report_shows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`heavytail monitor` writes one self-contained page, the picture and its numbers; a hostile name is escaped."""
    folder = tmp_path / "<script>run"
    journal, head = Journal(folder), nn.Linear(4, 8)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    for step in range(3):
        monitor = Monitor(counts=COUNTS, num_groups=3)
        with monitor.watch(head, optimizer):
            monitor.cross_entropy(head(torch.randn(30, 4)), torch.arange(30) % 8).backward()
            optimizer.step()
        journal.write(step, monitor.compute())
    journal.write(2, reading(0), split="test")
    assert main(["monitor", str(folder)]) == 0
    assert str(folder / "report.html") in capsys.readouterr().out
    page = (folder / "report.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert tags.count["img"] == 1
    assert tags.count["table"] == 2
    assert tags.scripts == [(resources.files("heavytail.report") / name).read_text("utf-8") for name in SCRIPTS]
    assert tags.external == []
    with Image.open(folder / "monitor.png") as image:
        assert len(image.convert("L").getcolors() or []) > 20
    panels = json.loads((folder / "monitor.json").read_text())["panels"]
    titles = [panel["title"] for panel in panels]
    assert titles == ["classes", "overall", "training, by group", "validation, by group", "head, gradient norm",
                      "head, Hessian trace", "head, update norm"]  # fmt: skip
    lines = [series for series in panels[2]["series"] if series["kind"] == "line"]
    np.testing.assert_allclose(
        [line["y"] for line in lines], read_journal(folder)[0]["train"].groups["loss"].T, rtol=1e-6
    )
    assert main(["monitor", str(tmp_path / "none")]) == 2
    assert "no monitor.jsonl in" in capsys.readouterr().err


def test_several_runs_share_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`heavytail monitor A B` writes one page with the pictures and readings of both."""
    for name in ("sgd", "adam"):
        Journal(tmp_path / name).write(3, reading(0))
    assert main(["monitor", str(tmp_path / "sgd"), str(tmp_path / "adam")]) == 0
    page = (tmp_path / "sgd" / "runs.html").read_text()
    assert "sgd: Training, step 3" in page
    assert "adam: Training, step 3" in page
    tags = Tags()
    tags.feed(page)
    assert tags.count["img"] == 2


def empty() -> Reading:
    return Monitor(counts=COUNTS, num_groups=3).compute()


def nonfinite() -> Reading:
    monitor = Monitor(counts=COUNTS, num_groups=3)
    monitor.update(torch.full((8,), torch.inf), torch.arange(8))
    return monitor.compute()


WRITTEN: dict[str, list[tuple[Callable[[], Reading], str]]] = {
    "evaluations alone": [(lambda: reading(0), "eval"), (lambda: reading(1), "eval")],
    "a reading without rows": [(empty, "train")],
    "evaluations without rows": [(empty, "eval"), (empty, "test")],
    "no finite row": [(nonfinite, "train")],
    "one reading": [(lambda: reading(0), "train")],
    "a reading without rows, then one with": [(empty, "train"), (lambda: reading(0), "train")],
}


def journal_of(name: str, folder: Path) -> str:
    journal = Journal(folder)
    for step, (make, split) in enumerate(WRITTEN[name]):
        journal.write(step, make(), split)
    return str(folder)


@pytest.mark.parametrize("name", WRITTEN)
def test_every_journal_has_a_page(name: str, tmp_path: Path) -> None:
    """Whatever the readings lack."""
    assert main(["monitor", journal_of(name, tmp_path)]) == 0
    assert f"step {len(WRITTEN[name]) - 1}" in (tmp_path / "report.html").read_text()


def test_every_journal_shares_a_page(tmp_path: Path) -> None:
    """The same journals under one another."""
    folders = [journal_of(name, tmp_path / name) for name in WRITTEN]
    assert main(["monitor", *folders]) == 0
    page = (Path(folders[0]) / "runs.html").read_text()
    assert all(f"{name}: " in page for name in WRITTEN)


def test_groups_whose_number_changes_are_labelled(tmp_path: Path) -> None:
    """Groups by name, of which the last reading has fewer: the others have numbers."""
    journal = Journal(tmp_path)
    journal.write(1, reading(0, Monitor(8, groups={"a": [0], "b": [1], "c": [2]})))
    journal.write(2, reading(0, Monitor(8, groups={"x": [0]})))
    assert main(["monitor", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    for label in ("x", "other", "3", "4"):
        assert f'<td class="number">{label}</td>' in page


@pytest.mark.parametrize("name", [0, None, ("a", "b"), ""])
def test_names_of_groups_are_texts(name: object) -> None:
    """Other names would stop the table and the journal later."""
    with pytest.raises(SpecError, match="groups: expected texts as names, got"):
        Monitor(8, groups={"a": [0], name: [1]})  # type: ignore[dict-item]


def test_pages_name_their_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder has its own name, runs of one name have longer paths, and `~` is the home folder."""
    for run in ("a/run", "b/run", "c/other"):
        Journal(tmp_path / run).write(1, reading(0))
    monkeypatch.chdir(tmp_path / "a" / "run")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["monitor", "."]) == 0
    assert "Loss by token frequency: run<" in Path("report.html").read_text()
    assert json.loads(Path("monitor.json").read_text())["folder"] == "run"
    assert main(["monitor", "~/c/other", ".", "../../b/run"]) == 0
    page = (tmp_path / "c" / "other" / "runs.html").read_text()
    for name in ("a/run", "b/run", "other"):
        assert f">{name}: Training, step 1<" in page
    assert not Path("~").exists()


def test_watch_waits_for_the_first_reading(tmp_path: Path) -> None:
    """`--watch` may start before the training: it says what it waits for, and writes the page when that is there."""
    command = [sys.executable, "-m", "heavytail", "monitor", str(tmp_path / "run"), "--watch"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            assert process.stderr.readline().startswith("waiting: no monitor.jsonl in ")
            Journal(tmp_path / "run").write(1, reading(0))
            assert "page: " in process.stdout.readline()
        finally:
            process.kill()


def test_watch_rewrites_the_page(tmp_path: Path) -> None:
    """`--watch` writes the page again when the journal grows."""
    journal = Journal(tmp_path)
    journal.write(1, reading(0))
    command = [sys.executable, "-m", "heavytail", "monitor", str(tmp_path), "--watch"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert "page: " in process.stdout.readline()
            journal.write(2, reading(1))
            assert "page: " in process.stdout.readline()
            assert "step 2" in (tmp_path / "report.html").read_text()
        finally:
            process.kill()
