"""Other people's files: right counts or one clear line, never a traceback."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from heavytail.audit.audit import audit
from heavytail.cli import main
from heavytail.data import readers
from heavytail.data.readers import list_files, sniff
from heavytail.data.text.text_file import TextFile
from heavytail.errors import DataError, HeavyTailError

LINES = ["the cat sat, and the dog sat!", "naïve café 東京"]
WORDS = {"the": 2, "cat": 1, "sat": 2, ",": 1, "and": 1, "dog": 1, "!": 1, "naïve": 1, "café": 1, "東京": 1}
LABELS = [3, 1, None, 3, -100, 0]


def counted(path: Path, **settings: Any) -> dict[str, int]:
    result = audit(path, **settings)
    assert result.counts.sum() == sum(result.counts)
    return dict(zip(result.names, result.counts.tolist(), strict=True))


def refusal(path: Path, **settings: Any) -> str:
    with pytest.raises(HeavyTailError) as caught:
        audit(path, **settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


def saved(write: Callable[[io.BytesIO], Any]) -> bytes:
    stream = io.BytesIO()
    write(stream)
    return stream.getvalue()


# -- every format ----------------------------------------------------------------------------------------------------

TABLE = pl.DataFrame({"id": [1, 2], "text": LINES})
NUMBERS = pl.DataFrame({"y": LABELS})
PLAIN = "\n".join(LINES).encode()
JSONL = "".join(json.dumps({"id": 1, "text": line}) + "\n" for line in LINES).encode()
CSV = TABLE.write_csv().encode()

TEXTS = {
    "a.txt": PLAIN,
    "no-suffix": PLAIN,
    "bom.txt": b"\xef\xbb\xbf" + PLAIN,
    "crlf.txt": PLAIN.replace(b"\n", b"\r\n"),
    "a.TXT.GZ": gzip.compress(PLAIN, mtime=0),
    "a.txt.bz2": bz2.compress(PLAIN),
    "a.txt.xz": lzma.compress(PLAIN),
    "packed-without-a-suffix": gzip.compress(PLAIN, mtime=0),
    "two-members.gz": gzip.compress(PLAIN[:10], mtime=0) + gzip.compress(PLAIN[10:], mtime=0),
    "a.jsonl": JSONL,
    "a.ndjson": JSONL,
    "bom.jsonl": b"\xef\xbb\xbf" + JSONL,
    "a.jsonl.gz": gzip.compress(JSONL, mtime=0),
    "lines.json": JSONL,
    "array.json": json.dumps([{"text": line} for line in LINES], indent=1).encode(),
    "strings.json": json.dumps(LINES).encode(),
    "columns.json": json.dumps({"text": LINES}).encode(),
    "strings.jsonl": "".join(json.dumps(line) + "\n" for line in LINES).encode(),
    "a.csv": CSV,
    "A.CSV": CSV,
    "bom.csv": b"\xef\xbb\xbf" + CSV,
    "cr.csv": CSV.replace(b"\n", b"\r"),
    "crlf.csv": CSV.replace(b"\n", b"\r\n"),
    "semicolon.csv": TABLE.write_csv(separator=";").encode(),
    "padded.csv": CSV.replace(b"id,text", b"id, text "),
    "a.csv.gz": gzip.compress(CSV, mtime=0),
    "a.tsv": TABLE.write_csv(separator="\t").encode(),
    "tabs.csv": TABLE.write_csv(separator="\t").encode(),
    "a.parquet": saved(TABLE.write_parquet),
    "a.arrow": saved(TABLE.write_ipc),
    "stream.arrow": saved(TABLE.write_ipc_stream),
    "a.feather": saved(TABLE.write_ipc),
    "lists.parquet": saved(pl.DataFrame({"text": [LINES, []]}).write_parquet),
    "bytes.parquet": saved(TABLE.with_columns(pl.col("text").cast(pl.Binary)).write_parquet),
}


@pytest.mark.parametrize("name", TEXTS)
def test_the_same_text_in_every_format(name: str, tmp_path: Path) -> None:
    """The words of two lines are the same in every format, compression, encoding mark and line end."""
    (tmp_path / name).write_bytes(TEXTS[name])
    assert counted(tmp_path / name) == WORDS


@pytest.mark.parametrize("name", [name for name in TEXTS if name != "bytes.parquet"])
def test_training_reads_what_the_audit_reads(name: str, tmp_path: Path) -> None:
    """`run --data text` takes the same formats, and gets the same words."""
    (tmp_path / name).write_bytes(TEXTS[name])
    words = " ".join(TextFile(path=str(tmp_path / name))._text().lines()).replace("\ufeff", "")
    plain = tmp_path / "words.txt"
    plain.write_text(words)
    assert counted(plain) == WORDS


def test_zstandard(tmp_path: Path) -> None:
    """A .zst file is read where zstandard is installed; its damage is one line."""
    zstandard = pytest.importorskip("zstandard")
    packed = zstandard.ZstdCompressor().compress(PLAIN)
    (tmp_path / "a.txt.zst").write_bytes(packed)
    assert counted(tmp_path / "a.txt.zst") == WORDS
    (tmp_path / "b.txt.zst").write_bytes(packed[:-5])
    assert "b.txt.zst: cannot be read" in refusal(tmp_path / "b.txt.zst")


def zstd(content: bytes) -> bytes:
    packed: bytes = pytest.importorskip("zstandard").ZstdCompressor().compress(content)
    return packed


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": lambda content: gzip.compress(content, mtime=0),
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstd,
}
SKIPPED = b"\x5a*M\x18\x04\0\0\0abcd"  # a frame of zstd without content
FIRST, SECOND = PLAIN[:20], PLAIN[20:]


def unpacked(file: Path, content: bytes) -> bytes | None:
    """What is read of a packed file with this content; None if it is refused."""
    file.write_bytes(content)
    try:
        with readers.opened(file, sniff(file).packing) as stream:
            return stream.read()
    except DataError:
        return None


@pytest.mark.parametrize("between", [b"", b"\0" * 4, b"\0" * 300, SKIPPED], ids=["", "zeros", "more zeros", "skipped"])
@pytest.mark.parametrize("packing", PACKERS)
def test_streams_of_one_file_are_all_read(packing: str, between: bytes, tmp_path: Path) -> None:
    """Two streams, with what the format allows before, between and after them; the rest is refused, not left out."""
    first, second = map(PACKERS[packing], (FIRST, SECOND))
    allowed = (
        between == b"" or (packing == "zst" and between == SKIPPED) or (packing in ("gz", "xz") and 0 in between[:1])
    )
    for packed in (first + between + second, first + second + between):
        assert unpacked(tmp_path / f"a.txt.{packing}", packed) == (PLAIN if allowed else None)
    if between == SKIPPED:
        assert unpacked(tmp_path / f"a.txt.{packing}", between + first + second) == (PLAIN if allowed else None)


@pytest.mark.parametrize("packing", PACKERS)
def test_large_packed_files_are_read_whole(packing: str, tmp_path: Path) -> None:
    """Streams that end anywhere in the blocks that are read from the disk."""
    rng = random.Random(0)
    parts = [rng.randbytes(rng.choice([1, 100, 2**16, 2**17 + 1])).hex().encode() for _ in range(12)]
    packed = b"".join(map(PACKERS[packing], parts))
    assert unpacked(tmp_path / f"a.txt.{packing}", packed) == b"".join(parts)
    (tmp_path / f"b.txt.{packing}").write_bytes(packed)
    with readers.opened(tmp_path / f"b.txt.{packing}", packing) as stream:
        pieces = [*iter(lambda: stream.read(rng.randrange(1, 2**17)), b"")]
    assert b"".join(pieces) == b"".join(parts)


@pytest.mark.parametrize("packing", PACKERS)
def test_damaged_streams_are_never_left_out(packing: str, tmp_path: Path) -> None:
    """Garbage after a stream, each byte of the next one's beginning changed, each length: everything or an error."""
    first, second = map(PACKERS[packing], (FIRST, SECOND))
    file = tmp_path / f"a.txt.{packing}"
    for garbage in (b"\n", b"x", b"garbage of some length", second[:3], b"\1" * 5000):
        assert unpacked(file, first + garbage) is None
        assert unpacked(file, first + garbage + second) is None
    for place in range(6):
        for change in (0x01, 0x80, 0xFF):
            damaged = bytearray(second)
            damaged[place] ^= change
            assert unpacked(file, first + damaged) in (None, PLAIN)
    for length in range(1, len(first + second)):
        if length != len(first):  # which is a whole file
            assert unpacked(file, (first + second)[:length]) is None


NUMBER_FILES: dict[str, tuple[bytes, dict[str, Any]]] = {
    "a.parquet": (saved(NUMBERS.write_parquet), {"column": "y"}),
    "floats.parquet": (saved(NUMBERS.cast(pl.Float64).write_parquet), {"column": "y"}),
    "a.arrow": (saved(NUMBERS.write_ipc), {"column": "y"}),
    "a.csv": (NUMBERS.with_columns(z=1).write_csv().encode(), {"column": "y"}),
    "floats.csv": (NUMBERS.cast(pl.Float64).with_columns(z=1).write_csv().encode(), {"column": "y"}),
    "a.jsonl": ("".join(json.dumps({"y": y}) + "\n" for y in LABELS).encode(), {"column": "y"}),
    "nested.jsonl": ("".join(json.dumps({"x": {"y": [y]}}) + "\n" for y in LABELS).encode(), {"column": "x.y"}),
    "nan.json": (b"[3, 1, NaN, 3, -100, 0]", {}),
}
PLAIN_LABELS = np.array([3, 1, 3, -100, 0])
ARRAY_FILES: dict[str, tuple[bytes, dict[str, Any]]] = {
    "a.npy": (saved(lambda s: np.save(s, PLAIN_LABELS[None])), {}),
    "big-endian.npy": (saved(lambda s: np.save(s, PLAIN_LABELS.astype(">i2"))), {}),
    "a.npz": (saved(lambda s: np.savez(s, X=np.eye(5), y=PLAIN_LABELS)), {}),
    "z.npz": (saved(lambda s: np.savez_compressed(s, z=PLAIN_LABELS)), {"column": "z"}),
    "npz-called.npy": (saved(lambda s: np.savez(s, y=PLAIN_LABELS)), {}),
    "raw.bin": (PLAIN_LABELS.astype("<i2").tobytes(), {"dtype": "int16"}),
    "llmc.bin": (
        np.array([20240520, 1, 5] + [0] * 253, "<i4").tobytes() + PLAIN_LABELS.astype("<i2").tobytes(),
        {"dtype": "int16"},
    ),
}


@pytest.mark.parametrize("name", [*NUMBER_FILES, *ARRAY_FILES])
def test_the_same_labels_in_every_format(name: str, tmp_path: Path) -> None:
    """Whole numbers are classes; those below 0 are left out, and empty cells are counted as such."""
    content, settings = (NUMBER_FILES | ARRAY_FILES)[name]
    (tmp_path / name).write_bytes(content)
    assert counted(tmp_path / name, **settings) == {"3": 2, "1": 1, "0": 1}
    result = audit(tmp_path / name, **settings)
    assert (result.left_out, result.missing) == (1, int(name in NUMBER_FILES))


# -- what a column holds ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "settings", "expected"),
    [
        ("a.csv", "y\n00501\n501\n0501\n", {}, {"00501": 1, "501": 1, "0501": 1}),
        ("a.csv", "y\n1.0\n2.0\n1.0\n", {}, {"1": 2, "2": 1}),
        ("a.csv", "y,z\n,1\n1,1\n1,1\n", {}, {"1": 2}),
        ("a.csv", "y\n1984\nby orwell\n", {}, {"1984": 1, "by": 1, "orwell": 1}),
        ("a.csv", "y\nby orwell\n1984\n", {}, {"1984": 1, "by": 1, "orwell": 1}),
        ("a.csv", "y\n" + "9" * 5000 + "\n", {}, {"9" * 5000: 1}),
        ("a.csv", "y\nGolden Retriever\ncat\nGolden Retriever\n", {"labels": True}, {"Golden Retriever": 2, "cat": 1}),
        ("a.csv", "y\n1\n1\nunknown\n", {"labels": True}, {"1": 2, "unknown": 1}),
        ("a.csv", "y\n1.0\nnan\n2.0\n-1\n NA\n1\n", {}, {"1": 2, "2": 1}),
        ("a.csv", "y\n1.0\nnan\n2.0\n-1\n NA\n1\n", {"labels": True}, {"1": 2, "2": 1}),
        ("a.csv", "y\nnone\ncat\nnone\n", {"labels": True}, {"none": 2, "cat": 1}),
        ("a.csv", "y\nnone\nnone\n", {}, {"none": 2}),
        ("a.csv", "y\n" + "a b " * 50_000 + "\n", {}, {"a": 50_000, "b": 50_000}),
        ("a.csv", 'y\n"two\nlines"\n', {}, {"two": 1, "lines": 1}),
        ("a.tsv", "x\ty\nsome words\t1\n\t1\n", {}, {"1": 2}),
        ("a.tsv", 'x\ty\n"stray\t1\na\t2\nstray"\t1\n"a" and b\t1\n"c\nd"\t3\n', {}, {"1": 3, "2": 1, "3": 1}),
        ("a.json", '\n{"y": 1}\n\n{"y": 1}\n', {}, {"1": 2}),
        ("a.jsonl", '{"y": "b c"}\n{"y": ["a", null]}\n', {"labels": True}, {"b c": 1, "a": 1}),
        ("a.jsonl", '{"y": true}\n{"y": false}\n{"y": true}\n', {}, {"true": 2, "false": 1}),
        ("a.jsonl", '{"y": "\\ud800 x"}\n', {}, {"\ufffd": 1, "x": 1}),
        ("a.jsonl", '{"y": 0.5}\n{"y": 0.5}\n{"y": 1.5}\n', {"labels": True}, {"0.5": 2, "1.5": 1}),
    ],
)
def test_the_whole_column_decides(
    name: str, content: str, settings: dict[str, Any], expected: dict[str, int], tmp_path: Path
) -> None:
    """Labels, texts and identifiers are told apart by all cells of a column, in any order, or by --labels."""
    (tmp_path / name).write_text(content)
    assert counted(tmp_path / name, column="y", **settings) == expected


def test_stray_quote_marks_lose_no_row(tmp_path: Path) -> None:
    """In a tsv that quotes nothing, marks that open cells and none that close them leave every row as it is."""
    rng = random.Random(0)
    for trial in range(50):
        rows = [
            [rng.choice(['"', '"" ', ""]) + rng.choice(["a", 'say "hi" b', "c's"]), str(rng.randrange(3))]
            for _ in range(rng.randrange(1, 30))
        ]
        file = tmp_path / f"{trial}.tsv"
        file.write_text("".join("\t".join(row) + "\n" for row in [["x", "y"], *rows]))
        for index, column in enumerate(["x", "y"]):
            cells = [cell for part in readers.columns(file, sniff(file), column) for cell in part.values]
            assert cells == [row[index] for row in rows]


def test_quoted_cells_of_a_tsv_are_read_as_they_were_written(tmp_path: Path) -> None:
    """Cells with marks, tabs and line ends, as the csv module quotes them."""
    rng = random.Random(0)
    for trial in range(50):
        pieces = ["a", " ", '"', '""', "\n", "b"]
        rows = [["".join(rng.choices(pieces, k=rng.randrange(1, 6))) + "c" for _ in range(3)] for _ in range(20)]
        rows[trial % 20][1] += "\tafter a tab"
        file = tmp_path / f"{trial}.tsv"
        with file.open("w", newline="") as stream:
            csv.writer(stream, delimiter="\t", lineterminator="\n").writerows([["x", "y", "z"], *rows])
        for index, column in enumerate(["x", "y", "z"]):
            cells = [cell for part in readers.columns(file, sniff(file), column) for cell in part.values]
            assert cells == [row[index] for row in rows]


@pytest.mark.parametrize("start", ["ORCHARDS", "BZh is a name", "PAR1 and ARROW1", "Rar! it said", "GGUF", "FEA1 OK"])
def test_texts_that_begin_like_another_format(start: str, tmp_path: Path) -> None:
    """The first letters of a binary format are not enough: binary formats go on with bytes that no text has."""
    (tmp_path / "a.txt").write_text(f"{start} grow\n")
    assert counted(tmp_path / "a.txt")["grow"] == 1


@pytest.mark.parametrize("write", [pl.DataFrame.write_parquet, pl.DataFrame.write_ipc, pl.DataFrame.write_ipc_stream])
def test_names_that_look_like_patterns(write: Callable[..., Any], tmp_path: Path) -> None:
    """A table named data[1] is that file, not data1 beside it."""
    for name, text in (("data[1]", "a"), ("data1", "b"), ("d*", "c"), ("d?ta1", "d")):
        write(pl.DataFrame({"text": [text]}), tmp_path / f"{name}.table")
    for name, text in (("data[1]", "a"), ("d*", "c"), ("d?ta1", "d")):
        file = tmp_path / f"{name}.table"
        assert counted(file) == {text: 1}


def test_cells_inside_tables(tmp_path: Path) -> None:
    """A dotted column reaches into objects and lists of objects, in JSON as in parquet; the table itself is refused."""
    chat = [
        {"messages": [{"role": "user", "content": "a b"}, {"role": "bot", "content": "c"}]},
        {"messages": [{"role": "user", "content": "a"}]},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chat))
    pl.DataFrame(chat).write_parquet(tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        assert counted(tmp_path / name, column="messages.content") == {"a": 2, "b": 1, "c": 1}
        message = refusal(tmp_path / name, column="messages")
        assert "fields role, content" in message
        assert "--column messages.content" in message
        assert "body" in refusal(tmp_path / name, column="messages.body")


def test_categories_are_labels(tmp_path: Path) -> None:
    """A categorical column of parquet holds class names, not texts."""
    frame = pl.DataFrame({"y": ["Golden Retriever", "cat", "Golden Retriever"]}).with_columns(
        pl.col("y").cast(pl.Categorical)
    )
    frame.write_parquet(tmp_path / "a.parquet")
    assert counted(tmp_path / "a.parquet", column="y") == {"Golden Retriever": 2, "cat": 1}


def test_empty_cells_are_counted_however_they_are_spelled(tmp_path: Path) -> None:
    """NaN and its kin among whole numbers are empty cells, as an empty cell is."""
    (tmp_path / "a.csv").write_text("y,z\n1,a\nnan,a\n,a\nNULL,a\n2,a\n")
    for settings in ({}, {"labels": True}):
        assert audit(tmp_path / "a.csv", column="y", **settings).missing == 3


@pytest.mark.parametrize(
    ("one", "two", "message"),
    [
        ("1", '"1"', "both whole numbers and text"),
        ("true", "1", "both whole numbers and true and false"),
        ("true", '"true"', "both true and false and text"),
    ],
)
def test_files_that_hold_several_types_are_refused(one: str, two: str, message: str, tmp_path: Path) -> None:
    """Labels of different types in two files of a folder are refused, as they are within one."""
    (tmp_path / "a.jsonl").write_text(f'{{"y": {one}}}\n')
    (tmp_path / "b.jsonl").write_text(f'{{"y": {two}}}\n')
    assert message in refusal(tmp_path, column="y", labels=True)


def test_infinite_labels_are_classes_if_asked(tmp_path: Path) -> None:
    """A float column with an infinite value is counted by --labels, as the message says."""
    pl.DataFrame({"y": [1.0, float("inf"), 1.0, float("nan")]}).write_parquet(tmp_path / "a.parquet")
    assert "--labels" in refusal(tmp_path / "a.parquet", column="y")
    assert counted(tmp_path / "a.parquet", column="y", labels=True) == {"1.0": 2, "inf": 1}


def test_many_distinct_texts_do_not_look_repeated(tmp_path: Path) -> None:
    """The note counts all distinct cells of a column, however many rows it has."""
    pl.DataFrame({"y": [f"text {k}" for k in range(120_000)]}).write_parquet(tmp_path / "a.parquet")
    assert audit(tmp_path / "a.parquet", column="y").notes == ()
    pl.DataFrame({"y": [f"name {k % 3000}" for k in range(30_000)]}).write_parquet(tmp_path / "a.parquet")
    [note] = audit(tmp_path / "a.parquet", column="y").notes
    assert note.startswith("3000 distinct cells in 30000 rows: --labels")


def test_repeated_cells_hint_at_labels(tmp_path: Path) -> None:
    """A column of few distinct texts is counted as words, with a note that names --labels."""
    (tmp_path / "a.csv").write_text("y\n" + "new york\nparis\n" * 20)
    result = audit(tmp_path / "a.csv", column="y")
    assert result.counts.sum() == 60
    assert any("--labels" in note for note in result.notes)


def test_text_without_spaces_is_noted(tmp_path: Path) -> None:
    """Words of very many characters are noted, as in Chinese text."""
    (tmp_path / "a.txt").write_text("我们在这里学习语言模型今天天气很好我们去公园散步吧\n" * 10)
    assert any("--tokenizer bpe" in note for note in audit(tmp_path / "a.txt").notes)


# -- refusals --------------------------------------------------------------------------------------------------------


def _tar() -> bytes:
    def write(stream: io.BytesIO) -> None:
        with tarfile.open(fileobj=stream, mode="w") as archive:
            info = tarfile.TarInfo("a.txt")
            info.size = len(PLAIN)
            archive.addfile(info, io.BytesIO(PLAIN))

    return saved(write)


def _zip() -> bytes:
    def write(stream: io.BytesIO) -> None:
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("a.txt", "x")

    return saved(write)


ENGLISH = "the cat and the dog\n" * 20
REFUSED: list[tuple[str, bytes, dict[str, Any], str]] = [
    ("a.tar", _tar(), {}, "tar archive"),
    ("a.tar.gz", gzip.compress(_tar(), mtime=0), {}, "tar archive"),
    ("a.zip", _zip(), {}, "zip archive"),
    ("a.txt", _zip(), {}, "zip archive"),
    ("a.txt", ENGLISH.encode("utf-16"), {}, "UTF-16"),
    ("a.txt", ENGLISH.encode("utf-16-le"), {}, "UTF-16LE"),
    ("a.txt", ENGLISH.encode("utf-16-be"), {}, "UTF-16BE"),
    ("a.csv", ENGLISH.encode("utf-16"), {}, "UTF-16"),
    ("train.bin", np.arange(500, dtype="<u2").tobytes(), {}, "--dtype"),
    ("train.bin", np.arange(500, dtype="<u2").tobytes()[:-1], {"dtype": "uint16"}, "no whole number of uint16"),
    ("a.bin", b"\0\0", {"dtype": "uint17"}, "--dtype: expected uint8"),
    ("a.pdf", b"%PDF-1.7 ...", {}, "PDF"),
    ("a.png", b"\x89PNG\r\n\x1a\n", {}, "PNG image"),
    ("a.db", b"SQLite format 3\0", {}, "SQLite"),
    ("a.pkl", b"\x80\x04\x95", {}, "pickle"),
    ("a.txt", b"\x80" * (2**20 + 9), {}, "not UTF-8 at byte 0"),
    ("a.jsonl", b'{"text":' + b"[" * 20_000, {}, "line 1 is not JSON: nested too deeply"),
    ("a.json", b"[" * 20_000, {}, "nested too deeply"),
    ("a.json", b'{"text": ', {}, "not JSON"),
    ("a.jsonl", b'{"text": {"body": "a", "title": "x"}}', {}, "fields body, title"),
    ("a.jsonl", b'{"text": "a\xff"}', {}, "line 1 is not UTF-8"),
    ("a.jsonl", b'{"text": 123456789012345678901234567890}', {}, "beyond 64 bits"),
    ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}", {}, "not JSON"),
    ("a.jsonl", b'[1, 2]\n{"text": "x"}', {}, "line 1 has no field 'text' (it is a list)"),
    ("a.jsonl", b'{"text": 0.5}', {}, "--labels"),
    ("a.jsonl", b'{"text": "x"}\n{"text": 1}', {}, "both whole numbers and text"),
    ("a.csv", b"text,id,text\na,1,b\n", {}, "2 columns 'text'"),
    ("a.csv", b"text\nhello, world\n", {}, "line 2 has 2 cells, the header 1; quote"),
    ("a.csv", b"id;body\n1;x\n", {}, "no column 'text' (it has: id, body)"),
    ("a.csv", b"id,text\n1,\xff\n", {}, "not UTF-8"),
    ("a.csv", b"", {}, "no column 'text'"),
    ("a.csv", b'text,id\n"a,1\nb,2\n', {}, "opens a cell and none closes it"),
    ("a.csv", b'text,id\n"a" b,1\nb,2\n', {}, "line 1: text follows the quote mark"),
    ("a.json", b'["a", "\xff"]', {}, "not UTF-8"),
    ("a.csv", b"text,id\n,1\n", {}, "only 1 empty cells"),
    ("a.csv", b"text\n-1\n-100\n", {}, "2 labels below 0 only"),
    ("a.npy", b"", {}, "empty"),
    ("a.npy", saved(lambda s: np.save(s, np.array([1, 2], "m8[s]"))), {}, "timedelta64"),
    ("a.npy", saved(lambda s: np.save(s, np.array([{}]), allow_pickle=True)), {}, "not a readable .npy array"),
    ("a.npz", saved(lambda s: np.savez(s, X=np.eye(2))), {}, "no array 'y' (it has: X)"),
    ("a.parquet.gz", gzip.compress(saved(TABLE.write_parquet), mtime=0), {}, "decompress"),
    ("a.parquet", saved(pl.DataFrame({"text": [b"\xff\xd8"]}).write_parquet), {}, "bytes that are not UTF-8"),
    ("a.parquet", saved(pl.DataFrame({"text": [{"de": "x", "en": "y"}]}).write_parquet), {}, "fields de, en"),
    ("a.txt", PLAIN, {"labels": True}, "--labels: expected a table"),
    ("a.txt", PLAIN, {"num_groups": 10**19}, "--groups: expected 1 to 1000"),
    ("a.txt", PLAIN, {"num_groups": 0}, "--groups"),
    ("a.gz", gzip.compress(PLAIN, mtime=0)[:-9], {}, "cannot be read"),
    ("a.csv", b"text\n1\n", {"vocab": 5}, "--vocab"),
    ("a.txt", PLAIN, {"tokenizer": "bpe", "vocab": 256}, "--vocab: expected at least 257 (256 bytes"),
    ("a.txt", PLAIN, {"tokenizer": "~no-such-user/t.json"}, "~no-such-user/t.json: no home folder for '~'"),
]


@pytest.mark.parametrize(("name", "content", "settings", "message"), REFUSED)
def test_what_is_not_read_is_named(
    name: str, content: bytes, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """An unknown format, a damaged file and an impossible setting are one line that names file and remedy."""
    (tmp_path / name).write_bytes(content)
    told = refusal(tmp_path / name, **settings)
    assert message in told
    assert "--" in message or "~" in message or name in told or str(tmp_path) in told or "labels" in told


def test_rows_too_long_to_hold_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A JSON line, a csv cell and a JSON text beyond their limits are refused before they are parsed."""
    monkeypatch.setattr(readers, "LONGEST_ROW", 1000)
    monkeypatch.setattr(readers, "LARGEST_JSON", 1000)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x" * 2000}))
    assert "line 1 exceeds" in refusal(tmp_path / "a.jsonl")
    (tmp_path / "a.csv").write_text("text\n" + "x" * 2000)
    assert "a cell of more than" in refusal(tmp_path / "a.csv")
    (tmp_path / "a.json").write_text(json.dumps(["x" * 2000]))
    assert "JSON lines" in refusal(tmp_path / "a.json")


# -- tokenizers ------------------------------------------------------------------------------------------------------

TEXT = "the cat sat on the mat\nthe dog\n" * 10


def _word_level(words: dict[str, int]) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


@pytest.mark.parametrize("state", ["special", "truncated", "padded", "gaps"])
def test_a_tokenizers_hidden_state_stays_out_of_the_counts(state: str, tmp_path: Path) -> None:
    """Special tokens, truncation, padding and gaps in the numbers change no count."""
    words = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", *dict.fromkeys(TEXT.split())]
    step = 1000 if state == "gaps" else 1
    tokenizer = _word_level({word: k * step for k, word in enumerate(words)})
    if state == "special":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
        )
    elif state == "truncated":
        tokenizer.enable_truncation(2)
    elif state == "padded":
        tokenizer.enable_padding(length=32, pad_id=3)
    tokenizer.save(str(tmp_path / "t.json"))
    (tmp_path / "a.txt").write_text(TEXT)
    found = counted(tmp_path / "a.txt", tokenizer=str(tmp_path / "t.json"))
    assert found == {word: TEXT.split().count(word) for word in set(TEXT.split())}


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize(
    "text",
    [
        "我们在这里学习语言模型。你好，世界！今天天气很好，我们去公园散步吧。\n" * 30
        + "机器学习是人工智能的一个分支。\n" * 20,
        "Мы учим языковые модели, и они учатся.\n" * 40,
        "café 我们 🦊 שלום the cat\n" * 40,
    ],
)
def test_no_count_vanishes(kind: str, text: str, tmp_path: Path) -> None:
    """In any script, the counts of a learned tokenizer sum to its tokens, one class for each number."""
    from heavytail.data.text import tokenizer

    (tmp_path / "a.txt").write_text(text)
    learned = tokenizer.learn(kind, text.splitlines(keepends=True), 270)  # type: ignore[arg-type]
    (tmp_path / "t.json").write_text(learned.to_json())
    tokens = learned.encode(text.splitlines(keepends=True))
    found = counted(tmp_path / "a.txt", tokenizer=str(tmp_path / "t.json"))
    assert sum(found.values()) == len(tokens)
    assert len(found) == len(set(tokens.tolist()))
    assert sorted(found.values()) == sorted(np.unique(tokens, return_counts=True)[1].tolist())


def test_pieces_with_one_text_are_two_classes(tmp_path: Path) -> None:
    """ "▁the" and "the", which decode alike, are counted apart."""
    tokenizer = tokenizers.Tokenizer(models.BPE({"▁": 0, "a": 1, "▁a": 2}, [("▁", "a")]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.save(str(tmp_path / "t.json"))
    (tmp_path / "a.txt").write_text("aa a")
    assert counted(tmp_path / "a.txt", tokenizer=str(tmp_path / "t.json")) == {"▁a": 2, "a": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"IQ== 0\nIg== 1\n", "tiktoken"),
        (b"\n\x0e\n\x05<unk>\x15\0\0\0\0", "SentencePiece"),
        (b"#version: 0.2\n\xc4\xa0 t\n", "merges"),
        (b'{"the": 0, "cat": 1}', "vocabulary without its model"),
        (b'{"words": [1]}', "list of words"),
        (b"[1]", "JSON object"),
        (b'{"model": {"type": "BPE"}}', "not a readable tokenizer"),
        (b"\xff", "not a readable tokenizer"),
    ],
)
def test_other_tokenizer_formats_are_named(content: bytes, message: str, tmp_path: Path) -> None:
    """A tokenizer that cannot be read is named, and nobody is advised to delete their own file."""
    (tmp_path / "t").write_bytes(content)
    (tmp_path / "a.txt").write_text(TEXT)
    told = refusal(tmp_path / "a.txt", tokenizer=str(tmp_path / "t"))
    assert message in told
    assert "delete" not in told


def test_duplicate_words_keep_their_first_number(tmp_path: Path) -> None:
    """A word list with duplicates is read; its first numbers count."""
    (tmp_path / "t.json").write_text(json.dumps({"words": ["<unk>", "the", "the", "cat"]}))
    (tmp_path / "a.txt").write_text("the cat the dog")
    assert counted(tmp_path / "a.txt", tokenizer=str(tmp_path / "t.json")) == {"the": 2, "cat": 1, "<unk>": 1}


# -- folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dropping",
    [".DS_Store", "._a.parquet", "_SUCCESS", ".part-0.parquet.crc", "x.crc", "README.md", "LICENSE", "__MACOSX/a",
     ".ipynb_checkpoints/a.txt", "dataset_info.json", "state.json", "Thumbs.db"],
)  # fmt: skip
def test_droppings_are_ignored_and_named(dropping: str, tmp_path: Path) -> None:
    """Files that tools leave behind change no count and are named in a note."""
    TABLE.write_parquet(tmp_path / "a.parquet")
    (tmp_path / dropping).parent.mkdir(exist_ok=True)
    (tmp_path / dropping).write_bytes(b"\xff\0 not a table")
    assert counted(tmp_path) == WORDS
    assert dropping.split("/")[0] in str(audit(tmp_path))


def test_mixed_folders_name_the_odd_file(tmp_path: Path) -> None:
    """A folder of several kinds names the files of the rarer kind."""
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_bytes(CSV)
    (tmp_path / "notes.txt").write_text("x")
    assert "notes.txt (text)" in refusal(tmp_path)


def test_folders_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    """A looping link, a broken link and a pipe are errors with their path, not files that are left out."""
    (tmp_path / "a.txt").write_text("x")
    for name, make in {
        "loop": lambda path: path.symlink_to(tmp_path, target_is_directory=True),
        "broken": lambda path: path.symlink_to("nowhere"),
        "self": lambda path: path.symlink_to(path),
        "pipe": os.mkfifo,
    }.items():
        make(tmp_path / name)
        assert str(tmp_path / name) in refusal(tmp_path)
        (tmp_path / name).unlink()
    os.mkfifo(tmp_path / "pipe")
    assert "pipe" in refusal(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe"):
        TextFile(path=str(tmp_path / "pipe")).pinned()


def test_a_folder_that_may_not_be_entered_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts and the content's digest never leave out a folder silently."""
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def denied(path: Any) -> Any:  # chmod does not stop root, as whom tests may run
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(readers.os, "scandir", denied)
    assert "locked: cannot be read: Permission denied" in refusal(tmp_path)
    with pytest.raises(DataError, match="locked"):
        TextFile(path=str(tmp_path)).pinned()


def test_links_to_folders_are_followed(tmp_path: Path) -> None:
    """Files behind a link to a folder are counted."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.txt").write_text("x")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert [file.name for file in list_files(tmp_path / "corpus").files] == ["a.txt"]


def hub(root: Path) -> None:
    """The cache of a hub: contents by their digest, and links to them by name."""
    (root / "blobs").mkdir()
    (root / "blobs" / "0f3a").write_bytes(JSONL)
    (root / "snapshots" / "main").mkdir(parents=True)
    (root / "snapshots" / "main" / "train.jsonl").symlink_to("../../blobs/0f3a")


def linked(how: str, root: Path) -> None:
    (root / "x").mkdir()
    (root / "x" / "a.jsonl").write_bytes(JSONL)
    if how == "link":
        (root / "b.jsonl").symlink_to("x/a.jsonl")
    elif how == "hard link":
        os.link(root / "x" / "a.jsonl", root / "b.jsonl")
    else:
        (root / "y").symlink_to("x", target_is_directory=True)


LINKED: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "link to a file": (lambda root: linked("link", root), "b.jsonl", "x/a.jsonl"),
    "hard link": (lambda root: linked("hard link", root), "b.jsonl", "x/a.jsonl"),
    "link to a folder": (lambda root: linked("folder", root), "x/a.jsonl", "y/a.jsonl"),
    "hub": (hub, "snapshots/main/train.jsonl", "blobs/0f3a"),
}


@pytest.mark.parametrize("how", LINKED)
def test_a_file_of_several_names_counts_once(how: str, tmp_path: Path) -> None:
    """By the name that tells its format; the others are in a note."""
    make, kept, repeated = LINKED[how]
    make(tmp_path)
    assert [file.relative_to(tmp_path).as_posix() for file in list_files(tmp_path).files] == [kept]
    assert counted(tmp_path) == WORDS
    assert f"other names of files that are counted: {repeated}" in str(audit(tmp_path))


# -- the command -----------------------------------------------------------------------------------------------------


def test_any_name_can_be_printed(tmp_path: Path) -> None:
    """Class and file names that the terminal cannot show are escaped, not a traceback."""
    from tests.problems import output

    folder = os.fsencode(tmp_path) + b"/\xff.txt"
    with open(folder, "w") as stream:
        stream.write("שלום 我们 🦊\n")
    code = "import sys; from heavytail.cli import main; sys.exit(main(sys.argv[1:]))"
    printed = output("import sys; sys.stdout.reconfigure(encoding='latin-1')\n" + code, "audit", tmp_path)
    assert "3 samples of 3 classes" in printed


def test_bad_files_exit_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every refusal is one line on stderr and exit status 2."""
    for name, content, settings, message in REFUSED:
        if "num_groups" in settings:
            continue
        (tmp_path / name).write_bytes(content)
        options = [f"--{key}" if value is True else f"--{key}={value}" for key, value in settings.items()]
        assert main(["audit", str(tmp_path / name), *options]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert message.split("(")[0] in error


def test_random_damage_never_ends_in_a_traceback(tmp_path: Path) -> None:
    """Any file under any name, cut, with flipped bytes or foreign, is counted or refused in one line."""
    generator = random.Random(0)
    contents = {**TEXTS, **{name: content for name, (content, _) in (NUMBER_FILES | ARRAY_FILES).items()}}
    contents |= {name: content[:2000] for name, content, _, _ in REFUSED}
    names = sorted(contents)
    for trial in range(600):
        content = bytearray(contents[generator.choice(names)])
        for _ in range(generator.choice([0, 1, 1, 5, 50])):
            if content:
                content[generator.randrange(len(content))] = generator.randrange(256)
        if generator.random() < 0.3:
            content = content[: generator.randrange(len(content) + 1)]
        path = tmp_path / f"{trial}-{generator.choice(names)}"
        path.write_bytes(content)
        settings: dict[str, Any] = {"column": generator.choice([None, "text", "y"])}
        settings["dtype"] = generator.choice([None, None, None, "uint16"])
        problem = ""
        try:
            settings["column"] = None if sniff(path, settings["dtype"]).kind in ("text", "npy", "tokens") else "text"
            audit(path, labels=generator.random() < 0.3 and settings["column"] is not None, **settings)
        except HeavyTailError as error:
            problem = str(error)
        assert "\n" not in problem
        path.unlink()
