"""README and the quick start: every command and every block of Python runs, and prints what the page shows.

Commands run in a copy of the clone, in the order of the page. Only what trains, installs or tests for minutes is
shortened: `reproduce` makes figure 6, `compare` counts its runs, pip installs nothing, and `make test` runs one file.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.problems import ROOT

DATA = os.environ.get("HEAVYTAIL_DATA")
PAGES = ("README.md", "docs/index.md", "docs/guide/quickstart.md")

HEAVYTAIL = """#!/bin/sh
# `reproduce` trains for minutes: figure 6 takes seconds. A --dry-run trains nothing, and stands for `compare`.
case " $* " in
    *" --dry-run "*) ;;
    " reproduce "*" --scale small "*) set -- reproduce fig06 --scale small ;;
    " reproduce "*" --out "*) shift; set -- reproduce fig06 "$@" ;;
    " reproduce "*) set -- reproduce fig06 ;;
    " compare "*) set -- "$@" --dry-run ;;
esac
exec {python} -m heavytail "$@"
"""
PYTHON = """#!/bin/sh
# The tests of the whole project take minutes: those of one file stand for them. The environment exists.
case "$*" in
    "-m venv .venv") exit ;;
    *"-m pytest"*) set -- "$@" -q -n 0 -p no:cacheprovider tests/test_losses.py ;;
esac
exec {python} "$@"
"""
PIP = """#!/bin/sh
# The package is built and installed by `make test-wheel`: here its metadata alone must name what is asked for.
exec {python} -c 'import sys, tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
for what in sys.argv[2:]:
    extra = what.partition("[")[2].rstrip("]")
    assert what[0] in ".-c" and (not extra or extra in project["optional-dependencies"]), what' "$@"
"""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, its text, and the output that the page shows below it."""

    page: str
    line: int
    language: str
    text: str
    output: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page; a block of ```text is the output of the block before it."""
    text, made = (ROOT / page).read_text(), []
    for match in re.finditer(r"^```(\S*)\n(.*?)^```$", text, re.M | re.S):
        language, content = match.groups()
        if language == "text":
            before = made.pop()
            made.append(Block(before.page, before.line, before.language, before.text, content))
        elif not language.startswith("{"):  # a directive of the site
            made.append(Block(page, text[: match.start()].count("\n") + 1, language, content, None))
    return made


BLOCKS = [*{block.text: block for page in reversed(PAGES) for block in reversed(blocks(page))}.values()][::-1]
SHELL = [block for block in BLOCKS if block.language == "sh"]
CODE = [block for block in BLOCKS if block.language == "python"]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the content of the clone, in which .venv is installed, and the data sets are downloaded."""
    folder = tmp_path_factory.mktemp("clone")
    for name in (
        "heavytail",
        "tests",
        "docs",
        "examples",
        "README.md",
        "pyproject.toml",
        "constraints.txt",
        "Makefile",
    ):
        (folder / name).symlink_to(ROOT / name)
    if DATA is not None:
        (folder / "data").symlink_to(Path(DATA).resolve())
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, script in (("heavytail", HEAVYTAIL), ("python", PYTHON), ("python3", PYTHON), ("pip", PIP)):
        (programs / name).write_text(script.replace("{python}", sys.executable))
        (programs / name).chmod(0o755)
    for name in ("lab", "dev"):
        (programs.parent / name).touch()
    return folder


def run(command: list[str], folder: Path) -> str:
    """Run a command in a folder as a user does, without this project's environment variables; return what it prints."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("HEAVYTAIL_")}
    env |= {"HOME": str(folder), "XDG_CACHE_HOME": str(folder / ".cache"), "PYTHONPATH": str(folder)}
    env["PATH"] = f"{folder / '.venv' / 'bin'}{os.pathsep}{env['PATH']}"
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def alike(one: str, other: str) -> bool:
    """Whether two outputs have the same words, and numbers within 5 %: processors round differently."""
    pairs = zip(one.split(), other.split(), strict=False)
    return len(one.split()) == len(other.split()) and all(a == b or _near(a, b) for a, b in pairs)


def _near(a: str, b: str) -> bool:
    try:
        return math.isclose(float(a), float(b), rel_tol=0.05)
    except ValueError:
        return False


def test_blocks_are_marked() -> None:
    """Each page is read: its blocks are commands (sh), Python, or an output; README has outputs of both."""
    assert {block.language for block in BLOCKS} == {"sh", "python"}
    assert {block.page for block in BLOCKS} == set(PAGES) - {"docs/index.md"}
    assert {block.language for block in BLOCKS if block.output} == {"sh", "python"}


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_the_commands_run(block: Block, clone: Path) -> None:
    """Every command exits with 0, and prints what the page shows."""
    if DATA is None and re.search(r"\bdata/", block.text):
        pytest.skip("HEAVYTAIL_DATA is not set")
    printed = run(["bash", "-ec", block.text], clone)
    if block.output is not None:
        shown = block.output.splitlines()
        assert alike("\n".join(printed.splitlines()[-len(shown) :]), block.output)


@pytest.mark.parametrize("block", CODE, ids=str)
def test_the_code_runs(block: Block, clone: Path) -> None:
    """Every block of Python runs as it is written, by itself, and prints what the page shows."""
    printed = run([sys.executable, "-W", "error", "-c", block.text], clone)
    assert block.output is None or alike(printed, block.output)


def test_outputs_are_compared() -> None:
    """Another word or another number is another output; the last digits are not."""
    assert alike("loss 2.4721 a", "loss  2.4722 a")
    assert not alike("loss 2.4721 a", "loss 2.8 a")
    assert not alike("loss 2.4721 a", "loss 2.4721 b")
    assert not alike("loss 2.4721 a", "loss 2.4721 a a")
