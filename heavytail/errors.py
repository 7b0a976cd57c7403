"""What heavytail raises when the user, not the code, has to change something.

Every message is one line that names the field, the value given and what is allowed; the command line prints it and
exits with status 2. A failed `assert` is always our own bug.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class HeavyTailError(Exception):
    """Base of all errors that a caller can fix."""


class SpecError(HeavyTailError, ValueError):
    """A setting that is unknown, of the wrong type, or out of range."""


class DataError(HeavyTailError):
    """Data that are missing, unreadable, or not what they should be."""


class StoreError(HeavyTailError):
    """A stored run that is damaged, locked, or cannot be written."""


def unknown(kind: str, name: object, known: Iterable[str]) -> SpecError:
    """Return the error for a name that does not exist, with the nearest one that does.

    >>> str(unknown("optimizer", "adm", ["adam", "gd"]))
    "unknown optimizer 'adm'; did you mean 'adam'? (known: adam, gd)"
    """
    names = sorted(known)
    near = get_close_matches(str(name), names, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    listing = ", ".join(names) if names else "none"
    return SpecError(f"unknown {kind} '{name}'{hint} (known: {listing})")
