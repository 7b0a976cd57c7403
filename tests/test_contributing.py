"""CONTRIBUTING.md: its worked additions are written into a copy of the repository, and its commands run there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.problems import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text()
SECTIONS = {section.splitlines()[0]: section for section in TEXT.split("## Adding things")[1].split("\n### ")[1:]}
FILES = dict(re.findall(r"`(heavytail/[\w/]+\.\w+)`:\n\n```\w+\n(.*?)```", TEXT, re.S))
COMMANDS = {name: re.findall(r"```sh\n(.*?)```", section, re.S) for name, section in SECTIONS.items()}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with all additions; each is a new file."""
    copy = tmp_path_factory.mktemp("clone")
    for name in ("heavytail", "tests", "tools", "docs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, copy)
    for name, text in FILES.items():
        assert not (copy / name).exists(), f"{name} is taken"
        (copy / name).write_text(text)
    commands = copy / "bin"
    commands.mkdir()
    for name, call in (("python", ""), ("heavytail", "-m heavytail")):
        (commands / name).write_text(f'#!/bin/sh\nexec {sys.executable} {call} "$@"\n')
        (commands / name).chmod(0o755)
    return copy


def test_there_are_five_additions() -> None:
    """An optimizer, a data set, a probe, a preset and a figure, each with commands that check it."""
    assert [Path(name).parent.name for name in FILES] == ["optim", "data", "probes", "presets", "figures"]
    assert [name for name, blocks in COMMANDS.items() if blocks] == list(SECTIONS)[:5]


@pytest.mark.parametrize("section", [name for name, blocks in COMMANDS.items() if blocks])
def test_the_addition_works(section: str, clone: Path) -> None:
    """Every command of the section exits with 0 in a copy that has the new files and no other change."""
    path = f"{clone / 'bin'}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(clone), "HEAVYTAIL_ROOT": str(clone / "root")}
    for command in "".join(COMMANDS[section]).splitlines():
        options = " -q -n 0 -p no:cacheprovider" if "pytest" in command else ""
        done = subprocess.run(
            command + options, shell=True, cwd=clone, env=env, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-2000:]}"


def test_the_additions_pass_the_checks(clone: Path) -> None:
    """The code of the page is formatted, and has no fault that ruff finds."""
    ruff = Path(sys.executable).with_name("ruff")
    files = [name for name in FILES if name.endswith(".py")]
    for check in (["check"], ["format", "--check"]):
        done = subprocess.run([ruff, *check, *files], cwd=clone, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_the_files_that_are_named_exist() -> None:
    """Every link and every path in backquotes leads to a file, except the additions."""
    paths = set(re.findall(r"\]\(([\w/.-]+)\)", TEXT)) | set(re.findall(r"`((?:heavytail|tests|docs)/[\w/.-]+)`", TEXT))
    assert [path for path in paths - set(FILES) if not (ROOT / path).exists()] == []
