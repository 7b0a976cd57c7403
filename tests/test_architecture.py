"""Who may import whom: data flow one way, no two modules import each other, reading a preset loads no torch."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import heavytail
from tests.problems import output

PACKAGE = Path(heavytail.__file__).parent
DESIGN = PACKAGE.parent / "docs" / "design.md"


def module_name(file: Path) -> str:
    """`experiment.spec` of heavytail/experiment/spec.py, `experiment` of its `__init__.py`, "" of heavytail itself."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}
PARTS = sorted({name.split(".")[0] for name in MODULES if name})


def imports(name: str) -> set[str]:
    """The modules of the package that a module imports when it is imported, or names to a type checker.

    An import inside a function is a late one, and not looked at.
    """
    nodes: list[ast.stmt] = list(ast.parse(MODULES[name].read_text()).body)
    found: set[str] = set()
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If):
            nodes += node.body + node.orelse
        elif isinstance(node, ast.Try | ast.With | ast.ClassDef):
            nodes += node.body
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    ours = {target.removeprefix("heavytail.") for target in found if target.startswith("heavytail.")}
    return {_module(target) for target in ours} - {"", name}


def _module(target: str) -> str:
    """The module that `a.b.name` is or lies in."""
    while target and target not in MODULES:
        target = target.rpartition(".")[0]
    return target


def table() -> dict[str, set[str]]:
    """The table of docs/design.md: each part of the package, and the parts that its modules may import."""
    section = DESIGN.read_text().split("## Who may import whom")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", section, re.M)
    return {part: set(re.findall(r"`(\w+)`", allowed)) for part, allowed in rows}


def cycles(graph: dict[str, set[str]]) -> list[str]:
    """What is left of a graph once every node without unresolved imports is taken away, again and again."""
    left = dict(graph)
    while first := {node for node, needed in left.items() if not needed & left.keys()}:
        left = {node: needed for node, needed in left.items() if node not in first}
    return sorted(left)


def test_the_table_lists_every_part() -> None:
    """A new folder or top module needs its row, and a row needs its folder."""
    assert sorted(table()) == PARTS


@pytest.mark.parametrize("name", [name for name in MODULES if name])
def test_a_module_imports_only_what_its_part_may(name: str) -> None:
    """Every import, those for type checkers included, is one that docs/design.md allows."""
    part = name.split(".")[0]
    used = {target.split(".")[0] for target in imports(name)}
    assert used <= {part, *table()[part]}, f"{name} imports {sorted(used - {part, *table()[part]})}"


def test_the_table_has_no_circle() -> None:
    """The parts can be ordered so that each imports only earlier ones."""
    assert cycles(table()) == []


def test_no_row_allows_more_than_is_used() -> None:
    """A permission that nothing uses any more is deleted."""
    used: dict[str, set[str]] = {part: set() for part in PARTS}
    for name in filter(None, MODULES):
        part = name.split(".")[0]
        used[part] |= {target.split(".")[0] for target in imports(name)} - {part}
    assert used == table()


def test_modules_have_no_circle() -> None:
    """No two modules import each other, directly or through others: inside folders, and for type checkers, too.

    A package's `__init__` counts as a module of its own: its siblings may import it, and it must not import them.
    """
    assert cycles({name: imports(name) for name in MODULES if name}) == []


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        ("heavytail", "torch numpy"),
        ("heavytail.cli", "torch numpy"),
        (
            "heavytail.experiment.spec, heavytail.experiment.sweep, heavytail.experiment.store",
            "torch matplotlib polars",
        ),
        ("heavytail.train.runner", "torch"),
        ("heavytail.audit.audit, heavytail.data.text.vocabulary, heavytail.data.text.tokenizer", "torch matplotlib"),
    ],
)
def test_importing_is_light(modules: str, heavy: str) -> None:
    """Help, presets, stores, audits, and the parent of a pool of workers until it needs a key load no torch."""
    code = f"import sys, {modules}; print([m for m in {heavy.split()} if m in sys.modules])"
    assert output(code) == "[]"


def test_public_names_exist() -> None:
    """Every public name resolves on first use, is listed by dir(), and no other does."""
    assert set(heavytail.__all__) == {"__version__", "functional", *heavytail._PUBLIC}
    for name in heavytail.__all__:
        assert getattr(heavytail, name) is not None
        assert name in dir(heavytail)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = heavytail.nonsense
