"""Exceptions for problems that the user can solve.

Every message is one line that names the field, the value given and what is allowed. The command line prints it and
exits with the exception's `exit_code`. A failed `assert` is always our own bug.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar


class HeavyTailError(Exception):
    """Base of all errors that a caller can fix."""

    exit_code: ClassVar[int] = 2


class SpecError(HeavyTailError, ValueError):
    """A setting that is unknown, of the wrong type, or out of range."""


class RefusedError(SpecError):
    """A combination of valid settings that does not work, such as an optimizer that refuses a model's parameters."""


class DataError(HeavyTailError):
    """Data that are missing, unreadable or invalid."""


class StoreError(HeavyTailError):
    """A file of results that cannot be read, locked or written."""


class UnreadableError(StoreError):
    """A file that cannot be read now: no permission, a device error. Its content may be whole, so keep it."""


class DamagedError(UnreadableError):
    """A file whose content is wrong: its checksum or its shape differs from what was written."""


_LISTED = 12  # a longer list of names is not read


def unknown(kind: str, name: object, known: Iterable[str], *, see: str = "") -> SpecError:
    """Return the error for an unknown name, with the nearest known one.

    Args:
        kind: the noun of what is unknown.
        name: the name given.
        known: the allowed names.
        see: the command that lists the names; replaces a long list of them.

    >>> str(unknown("optimizer", "adm", ["adam", "gd"]))
    "unknown optimizer 'adm'; did you mean 'adam'? (known: adam, gd)"
    """
    names = sorted(known)
    near = get_close_matches(str(name), names, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    listing = f"see: {see}" if see and len(names) > _LISTED else f"known: {', '.join(names) or 'none'}"
    return SpecError(f"unknown {kind} '{name}'{hint} ({listing})")


def install(extra: str) -> str:
    """Return the remedy for a missing package: how to install one of the extras of pyproject.toml.

    >>> install("lab")
    "run in the repository's folder: pip install '.[lab]'"
    """
    return f"run in the repository's folder: pip install '.[{extra}]'"


def printable(text: str) -> str:
    r"""Return text that is safe to print on a terminal: control characters, such as escapes, are spelled out.

    >>> print(printable("a\x1b[31mb"))
    a\x1b[31mb
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
