"""Exceptions for errors that the user can fix.

Every message is one line with the field, the given value and the allowed values. The command line prints it and exits
with the exception's `exit_code`. A failed `assert` is always a bug in heavytail.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar


class HeavyTailError(Exception):
    """Base of all errors that the user can fix."""

    exit_code: ClassVar[int] = 2


class SpecError(HeavyTailError, ValueError):
    """A setting that is unknown, of the wrong type, or out of range."""


class RefusedError(SpecError):
    """A combination of valid settings that does not work, such as an optimizer that refuses a model's parameters."""


class DataError(HeavyTailError):
    """Missing, unreadable or invalid data."""


class StoreError(HeavyTailError):
    """A results file that cannot be read, locked or written."""


class TakenOverError(StoreError):
    """A run whose lock another process has taken over, because this one was stopped for long."""


class UnreadableError(StoreError):
    """A file that cannot be read now (no permission, a device error) but may be intact, and is kept."""


class DamagedError(UnreadableError):
    """A damaged file: the checksum or shape of its content differs from the one written."""


def reason(error: object, line: int = 0) -> str:
    """Return the first (or another) line of a message, the name of the exception's type if it has none.

    >>> reason(ValueError(" too large\\nsee the manual")), reason(KeyError())
    ('too large', 'KeyError')
    """
    lines = str(error).strip().splitlines()
    return lines[line].strip() if lines else type(error).__name__


def one_line(error: BaseException) -> str:
    """Return a message as one line of at most 200 characters, the name of the exception's type if it has none.

    >>> one_line(ValueError("too large:\\n  3"))
    'too large: 3'
    """
    return " ".join(str(error).split())[:200] or type(error).__name__


_LISTED = 12  # longer lists of names are not printed


def unknown(kind: str, name: object, known: Iterable[str], *, see: str = "") -> SpecError:
    """Return the error for an unknown name, with the nearest known one.

    Args:
        kind: noun for the name, such as "optimizer".
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
    """Return the remedy for a missing package: the command that installs an extra of pyproject.toml.

    >>> install("lab")
    "run in the repository's folder: pip install '.[lab]'"
    """
    return f"run in the repository's folder: pip install '.[{extra}]'"


def printable(text: str) -> str:
    r"""Return text that is safe to print on a terminal: control characters, such as escapes, are spelled out.

    >>> print(printable("a\x1b[31mb"))
    a\x1b[31mb
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
