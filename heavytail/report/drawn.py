"""Which figures are drawn already: their files are those that this code writes from these runs.

OUT/.drawn.json has, for each figure, a key of everything that it is made of, the checksums of its files, and its claims
in full precision. A figure is drawn again if any of them differs, or if it is not one of this package.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import heavytail
from heavytail.errors import StoreError
from heavytail.files import check_shape, checksum, read_json, strict_json, write_atomic
from heavytail.locks import locked
from heavytail.report.files import LOCK, figure_files
from heavytail.results.claims import Claim
from heavytail.results.figure import Figure
from heavytail.results.results import Results

FILE = ".drawn.json"
LIBRARIES = ("matplotlib", "numpy", "scipy", "pillow", "jinja2", "torch")
DATA_DEPTH = 2  # files of the data folder are compared by name, size and time down to this depth
_CLAIM = {"measured": (str, None), "per_seed": [str], "reason": str, "informative": bool}
_ENTRY = {"key": str, "files": {}, "claims": [_CLAIM]}


@cache
def code() -> str:
    """Return a checksum of this package and of the versions of the libraries that draw."""
    digest = hashlib.sha256(f"{platform.python_version()} {[*map(metadata.version, LIBRARIES)]}".encode())
    root = Path(heavytail.__file__).parent
    for file in sorted(file for file in root.rglob("*") if file.is_file() and file.suffix != ".pyc"):
        digest.update(f"{file.relative_to(root)} {checksum(file)}".encode())
    return digest.hexdigest()


def key_of(figure: Figure, results: Results, runs: Mapping[str, str]) -> str:
    """Return a checksum of everything that a figure is made of, "" for a figure that is not one of this package.

    Args:
        figure: the figure.
        results: finished runs.
        runs: a checksum of every run that it reads, by key.
    """
    if not str(getattr(figure.plot, "__module__", "")).startswith(f"{heavytail.__name__}."):
        return ""
    titles = [results.sweep(ref).title for ref in figure.sweeps]
    parts: list[object] = [code(), figure.id, figure.title, titles, figure.caption(results), results.scale]
    parts.append(sorted(runs.items()))
    if not figure.sweeps and results.data_dir is not None:
        parts.append(_listing(results.data_dir))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _listing(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of the files and folders in a data folder, down to DATA_DEPTH; caches apart."""
    found = []
    for depth in range(DATA_DEPTH):
        for file in folder.glob("*/" * depth + "*"):
            name = file.relative_to(folder)
            if name.parts[0] != "tokenised":
                about = file.lstat()
                found.append((str(name), about.st_size, about.st_mtime_ns))
    return sorted(found)


def recall(out: Path, figure: Figure, key: str, scale: str) -> list[Claim] | None:
    """Return the claims of a figure that is drawn with this key; None if it is not, or if one of its files changed."""
    entry = _read(out).get(figure.id)
    if not key or entry is None or entry["key"] != key or len(entry["claims"]) != len(figure.rules):
        return None
    if entry["files"] != _checksums(out, figure):
        return None
    return [
        replace(
            rule.not_run(figure.id, scale, values["reason"]),
            measured=None if values["measured"] is None else float(values["measured"]),
            per_seed=tuple(map(float, values["per_seed"])),
            informative=values["informative"],
        )
        for rule, values in zip(figure.rules, entry["claims"], strict=True)
    ]


def record(out: Path, figure: Figure, key: str, claims: Sequence[Claim]) -> None:
    """Record that a figure is drawn; its files are written before."""
    values = [
        {
            "measured": None if claim.measured is None else repr(claim.measured),
            "per_seed": [*map(repr, claim.per_seed)],
            "reason": claim.reason,
            "informative": claim.informative,
        }
        for claim in claims
    ]
    entry = {"key": key, "files": _checksums(out, figure), "claims": values}
    with locked(out / LOCK):
        write_atomic(out / FILE, strict_json({**_read(out), figure.id: entry}))


def _checksums(out: Path, figure: Figure) -> dict[str, str]:
    return {name: checksum(out / "figures" / name) for name in figure_files(figure.id)}


def _read(out: Path) -> dict[str, Any]:
    """The entries of OUT/.drawn.json; none if it is damaged, as each figure can be drawn again."""
    try:
        entries: dict[str, Any] = read_json(out / FILE, {}, {})
        for entry in entries.values():
            check_shape(entry, _ENTRY)
    except (StoreError, ValueError):
        return {}
    return entries
