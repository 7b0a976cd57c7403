"""Bad input of every kind, seeded: the command line answers with a documented exit code and one line."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from heavytail.cli import main
from heavytail.errors import DataError
from heavytail.monitor.journal import read_journal
from tests.test_stored_formats import OLD

SECONDS = 20  # one case takes milliseconds; more is a hang
TEMPORARY = re.compile(r"\..*\.[a-z0-9_]{8}")


@contextmanager
def deadline(case: object) -> Iterator[None]:
    def give_up(signum: int, frame: FrameType | None) -> None:
        pytest.fail(f"hangs: {case!r}")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def check(arguments: list[str], capsys: pytest.CaptureFixture[str], folder: Path, case: object = "") -> int:
    """Run one command; fail unless its exit code is documented and an error is one line without a traceback."""
    with deadline((arguments, case)):
        try:
            code = main(arguments)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
    out, err = capsys.readouterr()
    told = f"{arguments} {case}\nexit {code}\n{err}"
    assert code in (0, 1, 2), told
    assert "Traceback" not in out + err, told
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", out + err), told  # such as terminal escapes
    if code == 2:
        assert re.fullmatch(r"(?:warning: [^\n]*\n)*heavytail: [^\n]{3,}\n", err), told
    assert not [file for file in folder.rglob("*") if TEMPORARY.fullmatch(file.name)], told
    return code


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Reports of damaged runs go to the log, which pytest keeps off stderr."""
    caplog.set_level("ERROR", "heavytail")


# -- command lines -----------------------------------------------------------------------------------------------------

WORDS = [
    "", " ", "-", "--", "-1", "0", "1", "x", "1e400", "nan", "inf", "-inf", "1e-320", str(10**30), "9" * 5000, "2**3",

    "\x1b[31mred", "näme", "\udcff", "~nouser", "~", "..", "/", "/dev/null", "/proc/1/mem", "a/../../b", "x" * 300,
    "[", "[" * 3000,
    "{a=" * 500, "'", '"', "true", "[1, 2]", "{name = 'gd'}", "1979-05-27",
    "\u202e", "line\nbreak", "%s", "{0}", "None",
]  # fmt: skip
KEYS = ["data", "data.groups", "data.name", "data.path", "model", "model.init", "optim", "optim.momentum", "loss",
        "loss.weights", "lr", "eval_every", "test_every", "seed", "data_seed", "precision", "train_stats", "probes",
        "microbatch", "batch_size", "x", ".", "data.", ".name", "data.groups.x"]  # fmt: skip


def base(tmp: Path) -> list[str]:
    return [
        *("run", "--data", "random-heavy-tail", "--set", "data.groups=2", "--model", "linear", "--optim", "gd"),
        *("--lr", "0.1", "--steps", "2", "--device", "cpu", "--out", str(tmp / "out"), "--root", str(tmp / "root")),
    ]


def command_line(rng: random.Random, tmp: Path) -> list[str]:
    """A command line with something wrong in it, or not."""
    root = ["--root", str(tmp / "root")]
    kind = rng.choice(
        ["run", "run", "setting", "setting", "status", "sweep", "list", "data", "audit", "monitor", "other"]
    )
    word = rng.choice(WORDS)
    if kind == "run":
        arguments = base(tmp)
        place = rng.randrange(1, len(arguments))
        if arguments[place - 1] == "--eval-every" or rng.random() < 0.7:
            arguments[place] = word
        else:
            del arguments[place]
        return arguments
    if kind == "setting":
        return [*base(tmp), "--set", rng.choice([f"{rng.choice(KEYS)}={word}", word, f"{word}={word}"])]
    return {
        "status": ["status", "--root", word],
        "sweep": ["sweep", rng.choice([word, word + ".toml"]), "--device", "cpu", "--workers", "1", *root],
        "list": ["list", word],
        "data": ["data", rng.choice(["verify", "list", word]), word, "--data-dir", str(tmp / "data"), *root],
        "audit": ["audit", rng.choice([str(tmp / word), word]), "--groups", rng.choice(WORDS)],
        "monitor": ["monitor", str(tmp / word)],
        "other": [rng.choice(["reproduce", "help", word]), rng.choice(["fig99", "--x", "--scale", word])],
    }[kind]  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_command_lines(
    seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the arguments, the exit code is documented and the error one line."""
    monkeypatch.chdir(tmp_path)
    rng = random.Random(seed)
    for _ in range(200):
        arguments = command_line(rng, tmp_path)
        if arguments[0] == "audit" and arguments[1] in ("/", "..", "", " ", "-", "."):
            continue  # the whole disk is a corpus
        if arguments[:1] == ["reproduce"] and not {"fig99", "--x"} & set(arguments):
            continue  # a valid one trains for minutes
        check(arguments, capsys, tmp_path)


# -- TOML files --------------------------------------------------------------------------------------------------------

TABLE: dict[str, Any] = {
    "name": "mine",
    "title": "Mine",
    "run": {
        "data": {"name": "random-heavy-tail", "groups": 2},
        "model": {"name": "linear"},
        "steps": 2,
        "eval_every": 1,
    },
    "sweep": {
        "lr": {"decades": [-1, 0]},
        "seeds": [0],
        "optim": [{"name": "gd", "momentum": [0.0, 0.9]}, {"name": "adam"}],
    },
    "scale": {"quick": {"run": {"steps": 2}}, "small": {"variant": {"v": {"run": {"steps": 2}}}}},
    "variant": {"v": {"run": {"model": {"name": "linear", "init": "zero"}}}},
}
VALUES: list[Any] = [
    True, -1, 0, 1, 2**63, 10**30, 0.5, float("nan"), float("inf"), -1e308, 1e-320,
    "", "x", "../x", "/tmp/x", "\x1b[31m",
    [], [1], [[1]], [{}], {}, {"a": 1}, {"name": "gd"}, {"name": 3}, ["gd"], "gd", {"exponents": [400]},
    {"exponents": [float("nan")]}, {"decades": [3, -3]}, {"decades": [-(10**12), 10**12]}, [0.1, 0.1],
    "a\nb", "linear", "e",
]  # fmt: skip


def toml(value: Any) -> str:
    """Spell a value as inline TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value).replace("NaN", "nan").replace("Infinity", "inf")


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


def preset(rng: random.Random) -> bytes:
    """A preset with one or two values replaced, removed, renamed or added, or a few bytes changed."""
    table = json.loads(json.dumps(TABLE))
    if rng.random() < 0.25:
        return damaged("\n".join(f"{key} = {toml(value)}" for key, value in table.items()).encode(), rng)
    for _ in range(rng.choice([1, 1, 2])):
        *path, last = rng.choice(list(places(table)))
        inside = table
        for key in path:
            inside = inside[key]
        match rng.choice(["replace", "replace", "replace", "remove", "add"]):
            case "replace":
                inside[last] = rng.choice(VALUES)
            case "remove":
                del inside[last]
            case "add" if isinstance(inside, dict):
                inside[rng.choice(["label", "extends", "lr", "probes", "x", "test_every", "batch_size", "seed"])] = (
                    rng.choice(VALUES)
                )
    return "\n".join(f"{json.dumps(key)} = {toml(value)}" for key, value in table.items()).encode()


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Bytes with a few of them flipped, cut off, repeated, zeroed or put in."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 3])):
        at = rng.randrange(len(data) + 1)
        match rng.choice(["flip", "cut", "repeat", "zero", "insert"]):
            case "flip" if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case "cut":
                del data[at:]
            case "repeat":
                data[at:at] = data[at : at + rng.randrange(1, 40)]
            case "zero":
                data[at : at + 8] = bytes(len(data[at : at + 8]))
            case "insert":
                data[at:at] = rng.randbytes(rng.randrange(1, 9))
    return bytes(data)


@pytest.mark.parametrize("seed", range(4))
def test_presets(seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], quiet: None) -> None:
    """Whatever a TOML file holds, `sweep` trains it or refuses it in one line, and writes under --out alone."""
    rng = random.Random(seed)
    file, out = tmp_path / "in" / "mine.toml", tmp_path / "deep" / "out"
    file.parent.mkdir()
    for _ in range(110):
        file.write_bytes(content := preset(rng))
        if b"groups" not in content or re.search(rb"groups\W+\d\d|groups\W+[4-9]|steps\W+\d{3,7}\b", content):
            continue  # a valid problem, and a large one
        arguments = [
            "sweep",
            str(file),
            "--out",
            str(out),
            "--root",
            str(tmp_path / "root"),
            "--device",
            "cpu",
            "--workers",
            "1",
        ]
        check([*arguments, *rng.choice([[], ["--scale", "small"], ["--variant", "v"]])], capsys, tmp_path, content)
        assert {entry.name for entry in tmp_path.iterdir()} <= {"in", "deep", "root"}
        assert [entry.name for entry in (tmp_path / "deep").glob("*")] in ([], ["out"])


# -- damaged files -----------------------------------------------------------------------------------------------------


def corpora(folder: Path) -> dict[str, bytes]:
    """Every kind of file that a command reads, whole."""
    import gzip
    from io import BytesIO

    import polars as pl

    words = "the cat sat on the mat the end " * 8
    parquet, npy, npz = BytesIO(), BytesIO(), BytesIO()
    pl.DataFrame({"text": words.split()}).write_parquet(parquet)
    np.save(npy, np.arange(50) % 7)
    np.savez(npz, X=np.arange(80.0).reshape(20, 4), y=np.arange(20) % 3)
    return {
        "a.txt": words.encode(),
        "a.txt.gz": gzip.compress(words.encode(), mtime=0),
        "a.csv": b"text,n\n" + b"".join(b'"%s",1\n' % word.encode() for word in words.split()),
        "a.jsonl": b"".join(json.dumps({"text": word}).encode() + b"\n" for word in words.split()),
        "a.parquet": parquet.getvalue(),
        "a.npy": npy.getvalue(),
        "a.npz": npz.getvalue(),
    }


@pytest.mark.parametrize("seed", range(2))
def test_damaged_corpora(seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the bytes of a data file, `audit` and `run` read it or name it in one line."""
    rng = random.Random(seed)
    whole = corpora(tmp_path)
    for _ in range(200):
        name = rng.choice(list(whole))
        file = tmp_path / name
        file.write_bytes(damaged(whole[name], rng))
        if name == "a.npz":
            arguments = [*base(tmp_path), "--set", f"data.path={file}"]
            arguments[2:5] = ["arrays"]
        else:
            arguments = ["audit", str(file), "--groups", "2"]
        check(arguments, capsys, tmp_path, file.read_bytes())


@pytest.mark.parametrize("what", ["journal", "runs"])
def test_damaged_results(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], quiet: None) -> None:
    """Whatever the bytes of a stored run or a journal, the command that reads it names it in one line, or redoes it."""
    rng = random.Random(0)
    folder = tmp_path / what
    shutil.copytree(OLD / what, folder)
    whole = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    spec = next((json.loads(content) for file, content in whole.items() if file.name == "spec.json"), {})
    for _ in range(180):
        file = rng.choice(list(whole))
        file.write_bytes(damaged(whole[file], rng))
        if what == "journal":
            try:  # the page itself takes a second to draw
                read_journal(folder)
            except DataError as error:
                if "\n" in str(error) or rng.random() < 0.2:
                    assert check(["monitor", str(folder)], capsys, tmp_path, file.read_bytes()) == 2
        else:
            assert check(["status", "--root", str(tmp_path)], capsys, tmp_path, file.read_bytes()) == 0
            if rng.random() < 0.3:
                arguments = ["run", "--root", str(tmp_path), "--out", str(tmp_path / "out"), "--device", "cpu"]
                for kind in ("data", "model", "optim"):
                    name, *settings = spec[kind].items()
                    arguments += [f"--{kind}", name[1]]
                    arguments += [word for key, value in settings for word in ("--set", f"{kind}.{key}={toml(value)}")]
                arguments += ["--lr", str(spec["lr"]), "--steps", str(spec["steps"])]
                assert check(arguments, capsys, tmp_path, file.read_bytes()) == 0
        shutil.rmtree(folder)
        for path, content in whole.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
