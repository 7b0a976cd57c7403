"""Who may import whom: data flows one way, and reading a store or a preset costs no torch."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import heavytail
from tests.problems import output

PACKAGE = Path(heavytail.__file__).parent

# What the modules of a part may import when they are imported themselves, besides `heavytail` (its version) and
# `errors`; a part imports itself freely. An import inside a function is a late one, and not looked at.
MAY_IMPORT: dict[str, str] = {
    "errors": "",
    "registry": "",
    "metrics": "",
    "theory": "",
    "zipf": "",
    "environment": "",
    "head": "metrics",
    "spec": "registry",
    "store": "spec",
    "sweep": "registry spec store",
    "losses": "registry",
    "data": "registry metrics",
    "models": "registry",
    "optim": "registry",
    "probes": "registry data head losses metrics analysis theory",
    "analysis": "head losses metrics",
    "watch": "head metrics",
    "monitor": "head metrics watch",
    "journal": "store",
    "audit": "metrics zipf",
    "train": "registry spec store sweep data models optim losses head metrics probes environment",
    "figures": "registry spec sweep store data metrics theory analysis zipf audit journal",
    "export": "store",
    "cost": "data registry spec sweep train",
    "report": "figures store",
    "publish": "report store",
    "scoreboard": "figures publish report store",
    "monitor_report": "figures journal report store",
    "progress": "spec",
    "reproduce": "figures report spec store sweep train environment",
    "integrations": "monitor journal",
    "cli": "",
    "__main__": "cli",
    "__init__": "",
}


def imports(file: Path) -> set[str]:
    """The parts of the package that a file imports at module level, TYPE_CHECKING blocks left out."""
    found: set[str] = set()
    nodes = list(ast.parse(file.read_text()).body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If):
            nodes += node.orelse if "TYPE_CHECKING" in ast.dump(node.test) else node.body + node.orelse
        elif isinstance(node, ast.Try | ast.With | ast.ClassDef):
            nodes += node.body
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in found if name.startswith("heavytail.")} & _parts()


def _parts() -> set[str]:
    return {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}


def _files(part: str) -> list[Path]:
    return sorted((PACKAGE / part).rglob("*.py")) if (PACKAGE / part).is_dir() else [PACKAGE / f"{part}.py"]


@pytest.mark.parametrize("part", sorted(_parts()))
def test_a_part_imports_only_what_it_may(part: str) -> None:
    """Every module-level import is one that the table allows; a new part needs its line in the table."""
    allowed = {part, "errors", *MAY_IMPORT[part].split()}
    for file in _files(part):
        assert imports(file) <= allowed, f"{file.relative_to(PACKAGE)} imports {sorted(imports(file) - allowed)}"


def test_no_cycles() -> None:
    """The table orders the parts: each imports only such as come before it."""
    left = {part: set(allowed.split()) for part, allowed in MAY_IMPORT.items()}
    while left:
        first = {part for part, needed in left.items() if not needed & left.keys()}
        assert first, f"a cycle among {sorted(left)}"
        left = {part: needed for part, needed in left.items() if part not in first}


def test_siblings_do_not_know_each_other() -> None:
    """Data, models, optimizers and losses never import each other (models may name `Data` in an annotation)."""
    siblings = {"data", "models", "optim", "losses"}
    for part in siblings:
        assert not siblings & set(MAY_IMPORT[part].split())
    assert "train" not in MAY_IMPORT["figures"].split()
    assert "figures" not in MAY_IMPORT["train"].split()


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        ("heavytail", "torch numpy"),
        ("heavytail.cli", "torch numpy"),
        ("heavytail.spec, heavytail.sweep, heavytail.store", "torch matplotlib polars"),
        ("heavytail.train.runner", "torch"),
    ],
)
def test_importing_is_light(modules: str, heavy: str) -> None:
    """Help, specs, presets and stores, and the parent of a pool of workers until it needs a key, load no torch."""
    code = f"import sys, {modules}; print([m for m in {heavy.split()} if m in sys.modules])"
    assert output(code) == "[]"


def test_public_names_exist() -> None:
    """Every public name resolves on first use, is listed by dir(), and no other does."""
    assert set(heavytail.__all__) == {"__version__", *heavytail._PUBLIC}
    for name in heavytail.__all__:
        assert getattr(heavytail, name) is not None
        assert name in dir(heavytail)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = heavytail.nonsense
