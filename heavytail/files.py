"""Files: written atomically, and JSON that every reader accepts."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from heavytail.errors import StoreError

_UMASK = os.umask(0)  # there is no way to ask but to set
os.umask(_UMASK)

Row = Mapping[str, Any]


def plain(value: Any) -> Any:
    """Return what JSON can hold: arrays as lists, floats to seven digits, null for what is not finite.

    >>> plain({"x": np.array([1.0, np.nan]), "lr": 10.0**-2.5})
    {'x': [1.0, None], 'lr': 0.003162278}
    """
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    return value


def strict_json(value: Any) -> bytes:
    """Return the file content of a value."""
    return (json.dumps(plain(value), indent=1, allow_nan=False) + "\n").encode()


def read_json(file: Path, missing: Any) -> Any:
    """Return the content of a file, or `missing` where there is none; StoreError names one that is damaged."""
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        return missing
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read {file}: {error}; delete it and make the figure again") from error


def write_atomic(file: Path, content: bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a part."""
    handle, temporary = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        os.chmod(temporary, 0o666 & ~_UMASK)  # mkstemp's files are for their owner alone
        os.replace(temporary, file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
