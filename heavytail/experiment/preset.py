"""Presets: TOML files that describe a problem and its optimizers, at three scales and in variants.

The tables of a preset are overlaid in the order preset <- variant <- protocol <- scale <- scale.variant. The protocol
is the choice of seeds at a reduced scale (rule 1 of docs/claims.md); a preset without scales has none. This module
reads the tables; `sweep` interprets their content. It does not import torch.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from heavytail.errors import DataError, SpecError, reason, unknown

SCALES = ("paper", "small", "quick")
# Reduced scales search on one seed and judge claims on fresh ones; the paper's scale uses the preset's seeds for both.
PROTOCOL: Mapping[str, Mapping[str, Any]] = {
    "small": {"sweep": {"seeds": [0], "verdict_seeds": [11, 12, 13]}},
    "quick": {"sweep": {"seeds": [0], "verdict_seeds": [14]}},
}
_TABLES = ("name", "title", "paper", "run", "sweep", "variant", "scale")


@dataclass(frozen=True)
class Preset:
    """The tables of a preset at one scale, in one variant.

    Attributes:
        name: name of the preset.
        title: title in the most specific layer.
        run: settings of every run.
        sweep: optimizers, step sizes, seeds and probes.
    """

    name: str
    title: str
    run: Mapping[str, Any]
    sweep: Mapping[str, Any]

    @classmethod
    def load(cls, preset: str | Path, scale: str, variant: str) -> Preset:
        """Read a preset by name, or from a .toml file; raise SpecError on unknown or mistyped tables."""
        table = read_preset(preset)
        name = _text(table, "name", str(preset))
        tables, overlays = f"table of preset {name}:", ("title", "run", "sweep")
        known(table, _TABLES, tables)
        scales, variants = subtable(table, "scale"), subtable(table, "variant")
        if scale not in scales and (scales or scale not in SCALES):
            raise unknown(f"scale of preset {name}:", scale, scales or SCALES)
        if variant and variant not in variants:
            raise unknown(f"variant of preset {name}:", variant, variants)
        scaled, varied = subtable(scales, scale), subtable(variants, variant)
        within = subtable(scaled, "variant")
        known(within, variants, f"variant of preset '{name}' in its scale '{scale}'")
        both = subtable(within, variant)
        known(varied, overlays, tables)
        known(scaled, (*overlays, "variant"), tables)
        known(both, overlays, tables)
        run: dict[str, Any] = {}
        sweep: dict[str, Any] = {}
        protocol = PROTOCOL.get(scale, {}) if scales else {}
        for layer in (table, varied, protocol, scaled, both):
            run, sweep = overlay(run, subtable(layer, "run")), overlay(sweep, subtable(layer, "sweep"))
        title = name
        for layer in (table, scaled, varied, both):
            title = _text(layer, "title", title)
        return cls(name, title, run, sweep)


def subtable(table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return a table within a table, empty if it is absent; raise SpecError if the value is not a table."""
    value = table.get(key, {})
    if not isinstance(value, Mapping):
        raise SpecError(f"{key}: expected a table, got {value!r}")
    return value


def known(table: Mapping[str, Any], allowed: Collection[str], what: str) -> None:
    """Raise SpecError with the nearest allowed key if a table has any other key."""
    for key in table:
        if key not in allowed:
            raise unknown(what, key, allowed)


def _text(table: Mapping[str, Any], key: str, default: str) -> str:
    value = table.get(key, default)
    if not isinstance(value, str):
        raise SpecError(f"{key}: expected a string, got {value!r}")
    return value


def overlay(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `top` laid over it, table by table; a table that names another component replaces the old one.

    >>> overlay({"data": {"name": "a", "m": 1}}, {"data": {"m": 2}})
    {'data': {'name': 'a', 'm': 2}}
    >>> overlay({"data": {"name": "a", "m": 1}}, {"data": {"name": "b"}})
    {'data': {'name': 'b'}}
    """
    merged = dict(base)
    for key, value in top.items():
        old = merged.get(key)
        if isinstance(old, str) and isinstance(value, Mapping) and "name" not in value:
            old = {"name": old}
        if (
            isinstance(old, Mapping)
            and isinstance(value, Mapping)
            and value.get("name", old.get("name")) == old.get("name")
        ):
            merged[key] = overlay(old, value)
        else:
            merged[key] = value
    return merged


def preset_names() -> list[str]:
    """Return the names of the presets that come with the package."""
    folder = resources.files("heavytail.experiment") / "presets"
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))


def read_preset(preset: str | Path) -> dict[str, Any]:
    """Return the tables of a preset, by name or by the path of a .toml file.

    A preset with `extends = "other"` is laid over that packaged preset; packaged presets do not extend each other in a
    circle (tested). `paper` lists the figures of the paper whose settings the preset has at scale "paper"; it is not
    inherited.

    Raises:
        DataError: the file cannot be read.
        SpecError: there is no such preset, or the file is not TOML.
    """
    if str(preset).endswith(".toml"):
        try:
            content = Path(preset).read_bytes()
        except OSError as error:
            raise DataError(f"cannot read preset {preset}: {error.strerror}") from error
        except ValueError as error:  # a null character in the path
            raise SpecError(f"preset {str(preset)!r}: {error}") from error
    else:
        names = preset_names()
        if preset not in names:
            raise unknown("preset", preset, names)
        content = (resources.files("heavytail.experiment") / "presets" / f"{preset}.toml").read_bytes()
    try:
        table = tomllib.loads(content.decode())
    except UnicodeDecodeError as error:
        raise SpecError(f"preset {preset}: expected UTF-8 text, got byte {content[error.start]:#04x}") from error
    except (ValueError, RecursionError) as error:
        raise SpecError(f"preset {preset}: {reason(error)}") from error
    base = table.pop("extends", None)
    if base is None:
        return table
    if base not in preset_names():
        raise unknown(f"preset extended by {preset}:", base, preset_names())
    return overlay(read_preset(base) | {"paper": ""}, table)
