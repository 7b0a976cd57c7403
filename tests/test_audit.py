"""The audit: counts from every kind of file, and what it says of them against slow references."""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import os
import pty
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from heavytail.analysis.zipf import fit
from heavytail.audit import counting
from heavytail.audit.audit import audit, audit_counts, group_times
from heavytail.audit.counting import count
from heavytail.cli import main
from heavytail.data import readers
from heavytail.errors import DataError, SpecError
from tests.reference import monitor as reference

TEXT = "the cat and the dog and the bird\nA cat, the cat!\n"
WORDS = {"the": 4, "cat": 3, "and": 2, "dog": 1, "bird": 1, "a": 1, ",": 1, "!": 1}


def found(path: Path, **settings: object) -> dict[str, int]:
    result = audit(path, **settings)  # type: ignore[arg-type]
    return dict(zip(result.names, result.counts.tolist(), strict=True))


# -- counting --------------------------------------------------------------------------------------------------------


def test_text_in_every_container(tmp_path: Path) -> None:
    """The same two lines give the same counts as text, gzip, folder, JSON lines, CSV and parquet."""
    lines = TEXT.splitlines()
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(TEXT.encode(), mtime=0))
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"text": line, "n": 1}) + "\n" for line in lines) + "\n")
    (tmp_path / "d.csv").write_text('n,text\n1,"the cat and the dog\nand the bird"\n2,"A cat, the cat!"\n')
    pl.DataFrame({"body": [lines, None, []]}).write_parquet(tmp_path / "e.parquet")
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    (tmp_path / "folder" / "1").write_text(lines[0])
    (tmp_path / "folder" / "sub" / "2").write_text(lines[1])
    (tmp_path / "folder" / ".hidden").write_bytes(b"\xff")
    for name in ("a.txt", "b.txt.gz", "c.jsonl", "d.csv", "folder"):
        assert found(tmp_path / name) == WORDS, name
    assert found(tmp_path / "e.parquet", column="body") == WORDS


def test_processes_count_what_one_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several processes give the counts of one, classes in the same order, for every container of text."""
    generator = random.Random(0)
    rows = [" ".join(f"w{int(generator.paretovariate(0.8))}, it's" for _ in range(50)) for _ in range(300)]
    (tmp_path / "a.txt").write_text("\n".join(rows))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress("\n".join(rows).encode(), mtime=0))
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    monkeypatch.setattr(readers, "SHOWN", 0)
    monkeypatch.setattr(counting, "_TASK", 1)
    for name in ("a.txt", "b.txt.gz", "c.jsonl"):
        one, two = count(tmp_path / name), count(tmp_path / name, jobs=2)
        assert list(one.by_name.items()) == list(two.by_name.items())
        assert sum(one.by_name.values()) == 300 * 50 * 5


def test_a_long_audit_shows_its_progress_on_a_terminal(tmp_path: Path) -> None:
    """Standard error has a bar that names the file if it is a terminal, and standard output the same table."""
    (tmp_path / "a.txt").write_text(TEXT * 20_000)
    code = "import sys; from heavytail.data import readers; readers.SHOWN = 0; from heavytail.cli import main; "
    command = [sys.executable, "-c", code + f"main(['audit', {str(tmp_path / 'a.txt')!r}])"]
    shown, terminal = pty.openpty()
    with subprocess.Popen(command, stderr=terminal, stdout=subprocess.PIPE, text=True) as process:
        os.close(terminal)
        table, bar = process.communicate()[0], b""
        with contextlib.suppress(OSError):  # the end of a terminal
            while part := os.read(shown, 4096):
                bar += part
    os.close(shown)
    assert b"reading a.txt" in bar
    assert table == subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "280000 samples of 8 classes" in table


def test_labels_in_every_container(tmp_path: Path) -> None:
    """Whole numbers are classes already; those below 0 are left out and counted."""
    labels = [3, 1, 3, -100, 3, 1, 0]
    np.save(tmp_path / "a.npy", np.array([labels], np.int16))
    pl.DataFrame({"y": labels}).write_parquet(tmp_path / "b.parquet")
    pl.DataFrame({"y": labels}).write_csv(tmp_path / "c.csv")
    (tmp_path / "d.jsonl").write_text("".join(json.dumps({"y": [y]}) + "\n" for y in labels))
    for name in ("a.npy", "b.parquet", "c.csv", "d.jsonl"):
        result = audit(tmp_path / name, column=None if name == "a.npy" else "y")
        assert dict(zip(result.names, result.counts.tolist(), strict=True)) == {"3": 3, "1": 2, "0": 1}, name
        assert result.left_out == 1


def test_large_files_are_read_in_parts(tmp_path: Path) -> None:
    """A line of several megabytes is cut between words or characters, and loses none."""
    (tmp_path / "a.txt").write_text("word é " * 400_000)
    assert found(tmp_path / "a.txt") == {"word": 400_000, "é": 400_000}
    (tmp_path / "b.txt").write_text("é" * 1_500_000)
    assert sum(len(word) * n for word, n in found(tmp_path / "b.txt").items()) == 1_500_000


def test_vocab_keeps_the_most_frequent(tmp_path: Path) -> None:
    """With `vocab` N, the N - 1 most frequent words stay and `<unk>` has the rest."""
    (tmp_path / "a.txt").write_text(TEXT)
    assert found(tmp_path / "a.txt", vocab=3) == {"the": 4, "cat": 3, "<unk>": 7}


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_learned_and_stored_tokenizers(tmp_path: Path, kind: str) -> None:
    """A learned tokenizer's counts are those of encoding the text; one from a file is used as it is."""
    from heavytail.data.text import tokenizer

    text = "the cat sat on the mat, and the dog sat on the log. " * 20 + "\n"
    (tmp_path / "a.txt").write_text(text * 3)
    result = audit(tmp_path / "a.txt", tokenizer=kind, vocab=300)
    learned = tokenizer.learn(kind, [text] * 3, 300)  # type: ignore[arg-type]
    assert result.counts.sum() == pytest.approx(len(learned.encode([text] * 3)), rel=0.2 if kind == "unigram" else 0)
    (tmp_path / "tok.json").write_text(learned.to_json())
    stored = audit(tmp_path / "a.txt", tokenizer=str(tmp_path / "tok.json"))
    expected = np.bincount(learned.encode([text] * 3))
    np.testing.assert_array_equal(stored.counts, np.sort(expected[expected > 0])[::-1])


@pytest.mark.parametrize(
    ("name", "content", "settings", "message"),
    [
        ("a.txt", b"", {}, "expected at least one class, got none"),
        ("a.txt", b"good \xff", {}, "not UTF-8 at byte 5"),
        ("a.gz", b"not gzip", {}, "cannot be read"),
        ("a.txt", b"x", {"column": "text"}, "--column: expected none for text"),
        ("a.txt", b"x", {"vocab": 1}, "--vocab: expected at least 2, got 1"),
        ("a.txt", b"x", {"tokenizer": "wrods"}, "--tokenizer: expected words, bpe, unigram or a file, got 'wrods'"),
        ("a.jsonl", b'{"text": "x"}\n{"tex', {}, "line 2 is not JSON"),
        ("a.jsonl", b'{"body": "x"}', {}, "line 1 has no field 'text' .it has: body."),
        ("a.jsonl", b'{"text": 0.5}', {}, "expected text or whole numbers, got float"),
        ("a.jsonl", b'{"text": 1}\n{"text": "x"}', {}, "holds both whole numbers and text"),
        ("a.csv", b"body\nx\n", {}, "no column 'text' .it has: body."),
        ("a.parquet", b"not parquet", {}, "not readable parquet"),
        ("a.npy", b"not an array", {}, "not a readable .npy array"),
    ],
)
def test_bad_input_is_named(
    tmp_path: Path, name: str, content: bytes, settings: dict[str, object], message: str
) -> None:
    """What cannot be read, or asked for, is an error that names the file or the setting."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises((DataError, SpecError), match=message):
        audit(tmp_path / name, **settings)  # type: ignore[arg-type]


def test_other_bad_input(tmp_path: Path) -> None:
    """Missing paths, empty folders, mixed folders and arrays of fractions are refused."""
    with pytest.raises(DataError, match="no such file or folder"):
        audit(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="expected files in the folder"):
        audit(tmp_path / "empty")
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "a.csv").write_text("text\n")
    (tmp_path / "mixed" / "b.txt").write_text("x")
    with pytest.raises(DataError, match="files of one kind, got csv, text"):
        audit(tmp_path / "mixed")
    np.save(tmp_path / "a.npy", np.ones(3))
    with pytest.raises(DataError, match="expected integer labels, got float64"):
        audit(tmp_path / "a.npy")


# -- what counts mean ------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 10**9), min_size=2, max_size=30))
def test_the_exponent_maximises_the_likelihood(counts: list[int]) -> None:
    """No exponent nearby is likelier than the estimate; balanced counts have exponent 0."""
    ranked = sorted(counts, reverse=True)
    _, exponent, low, high = fit(ranked, 1, len(ranked))
    best = reference.zipf_likelihood(ranked, exponent)
    for other in (exponent - 1e-3, exponent + 1e-3):
        assert reference.zipf_likelihood(ranked, other) <= best
    assert low <= exponent <= high
    if len(set(counts)) == 1:
        assert exponent == pytest.approx(0, abs=1e-9)


def test_numbers_by_hand() -> None:
    """Entropy, rare share, groups and slope of counts 8, 4, 2, 1, 1."""
    result = audit_counts(Counter({"a": 8, "b": 4, "c": 2, "d": 1, "e": 1, "f": 0}), num_groups=2)
    assert result.entropy == 1.875
    assert result.num_classes == 5
    assert result.rare_share == 4 / 16  # rarer than a fifth: c, d, e
    assert [row["classes"] for row in result.rows()] == [1, 4]
    assert [(row["most"], row["least"]) for row in result.rows()] == [(8, 8), (4, 1)]
    assert math.isnan(result.slope)
    assert result.to_dict()["least_squares_slope"] is None
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["samples"] == 16
    power = audit_counts(Counter({str(k): round(1e9 / k) for k in range(1, 1200)}))
    assert power.slope == pytest.approx(-1, abs=1e-4)
    one = audit_counts(Counter({"a": 3}))
    assert math.isnan(one.zipf.exponent)
    assert "3 samples of 1 class" in str(one)


@pytest.mark.parametrize(
    ("file", "samples", "classes", "entropy"),
    [
        ("tinyshakespeare/input.txt", 246_127, 12_235, 9.0523),
        ("ptb/ptb.train.txt", 924_412, 9_922, 9.4716),
        ("wikitext-2/train.txt", 2_049_990, 28_782, 9.9563),
    ],
)
def test_public_texts_have_their_independent_numbers(
    file: str, samples: int, classes: int, entropy: float, data_dir: Path
) -> None:
    """Words, types and unigram bits per word of the public texts are those of an independent count."""
    result = audit(data_dir / file)
    assert (result.counts.sum(), result.num_classes) == (samples, classes)
    assert round(result.entropy, 4) == entropy
    assert not result.zipf.fits
    assert "no power law fits" in str(result)


def test_shots_examples_and_the_range_of_proposition_2() -> None:
    """Classes are told apart at 100 and 20 samples, with examples, and the first C/log(C)^2 of them are summed."""
    counts = {f"c{k:02}": n for k, n in enumerate([500, 101, 100, 50, 20, 19, 1, 1, 1, 1])}
    result = audit_counts(counts, num_groups=2)
    assert [(row["group"], row["classes"]) for row in result.shots()] == [("many", 2), ("medium", 3), ("few", 5)]
    assert result.shots()[1]["examples"] == ["c02", "c03", "c04"]
    assert result.assigned_share == 500 / 794  # 10 / log(10)^2 = 1.9
    assert result.rows()[0]["examples"] == ["c00"]
    table = result.to_dict()
    assert [row["group"] for row in table["shots"]] == ["many", "medium", "few"]
    assert "> 100" in str(result)


def test_tiny_counts_read_well() -> None:
    """Few samples give no NaN, no interval from noise, no negative entropy and no plural of one."""
    for counts in ({"a": 1}, {"a": 3}, {"a": 2, "b": 1}, {str(k): 1 for k in range(30)}):
        text = str(audit_counts(counts))
        assert "nan" not in text
        assert "-0.0" not in text
        assert "1 samples" not in text
        assert "1 classes" not in text.split("\n")[1]
        assert "not estimated" in text


def test_group_times_are_those_of_the_flow() -> None:
    """At the times the audit predicts, gradient flow, integrated step by step, has brought each group to the loss."""
    pi, group = [0.5, 0.2, 0.15, 0.1, 0.05], [0, 1, 1, 2, 2]
    times = group_times(pi, group, loss=0.5)
    losses = reference.flow_group_losses(pi, group, sorted(times))
    for g, row in zip(np.argsort(times), losses, strict=True):
        assert row[g] == pytest.approx(0.5, rel=1e-3)


def test_slowdown_is_the_ratio_of_frequencies() -> None:
    """For groups of one class each, gradient descent's times are nearly as 1 to pi: Theta(1/(pi t)) of Theorem 3."""
    counts = Counter({"a": 100_000, **{f"b{k}": 1_000 for k in range(100)}, **{f"c{k}": 10 for k in range(10_000)}})
    result = audit_counts(counts, num_groups=3)
    assert result.groups.num_groups == 3
    np.testing.assert_allclose(result.slowdown, [1, 100, 10_000], rtol=0.02)


# -- the command -----------------------------------------------------------------------------------------------------


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`heavytail audit` prints the table, writes strict JSON and a picture, and exits 2 with a line on bad input."""
    (tmp_path / "a.txt").write_text(" ".join(f"w{k} " * (1000 // k) for k in range(1, 200)))
    assert main(["audit", str(tmp_path / "a.txt"), "--out", str(tmp_path / "out"), "--groups", "4"]) == 0
    out = capsys.readouterr().out
    assert "Zipf exponent" in out
    table = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert len(table["groups"]) == 4
    assert table["zipf_interval"][0] < table["zipf_exponent"] < table["zipf_interval"][1]
    with Image.open(tmp_path / "out" / "audit.png") as image:
        assert len(image.convert("L").getcolors() or []) > 20
    assert main(["audit", str(tmp_path / "none")]) == 2
    assert "no such file" in capsys.readouterr().err
