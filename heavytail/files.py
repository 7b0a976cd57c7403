"""Atomic writes, and JSON checked on reading."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, Any

import numpy as np

from heavytail.errors import DamagedError, SpecError, StoreError, UnreadableError
from heavytail.locks import has_flock
from heavytail.system import HAS_FLOCK, lock, try_lock

# What systems answer where a file cannot have two names (exFAT, some network file systems).
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK)
_UMASK = os.umask(0)  # reading the umask requires setting it
os.umask(_UMASK)

Row = Mapping[str, Any]


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return a path with `~` replaced by the home folder; SpecError if there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise SpecError(f"{path}: no home folder for '~'; set HOME, or give a path without '~'") from error


# -- JSON --------------------------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """Return a value as plain JSON data: arrays as lists, floats to seven digits, null for non-finite numbers.

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
    """Return a value as the content of a JSON file."""
    return (json.dumps(plain(value), indent=1, allow_nan=False) + "\n").encode()


def checksum(file: Path) -> str:
    """Return the SHA-256 checksum of a file, "" if it cannot be read."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return ""


def read_json(file: Path, missing: Any, shape: object = object) -> Any:
    """Return the content of a JSON file, checked against a shape, or `missing` if there is no file.

    Args:
        file: the file.
        missing: value to return if the file does not exist.
        shape: expected shape of the content (see `check_shape`); by default any.

    Raises:
        UnreadableError: the file cannot be read now.
        DamagedError: the file is not JSON, or its content has another shape.
    """
    try:
        value = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return missing
    except OSError as error:
        raise UnreadableError(f"cannot read {file}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{file} is damaged: not JSON ({error})") from error
    try:
        check_shape(value, shape)
    except ValueError as error:
        raise DamagedError(f"{file} is damaged: {error}") from error
    return value


def check_shape(value: object, shape: object, where: str = "content") -> None:
    """Raise ValueError unless a JSON value has the given shape.

    A shape is a type (`float` accepts integers; only `bool` accepts booleans), a tuple of alternatives, a list with one
    shape for all items, or a table of shapes. The value may have further keys; a key that ends in "?" is optional.

    >>> check_shape([{"step": 3, "loss": 0.5}], [{"step": int, "loss": (float, None), "note?": str}])
    >>> check_shape([{"step": 3.5}], [{"step": int}])
    Traceback (most recent call last):
    ValueError: content[0].step: expected int, got 3.5
    """
    if isinstance(shape, dict) and isinstance(value, dict):
        for key, inner in shape.items():
            name = key.removesuffix("?")
            if name in value:
                if type(value[name]) is inner:  # most are, and a store has many records
                    continue
                check_shape(value[name], inner, f"{where}.{name}")
            elif name == key:
                raise ValueError(f"{where}: expected a table with '{name}', got none")
    elif isinstance(shape, list) and isinstance(value, list):
        if shape[0] is int and set(map(type, value)) <= {int}:  # fast: a record has a long list of steps
            return
        for index, item in enumerate(value):
            check_shape(item, shape[0], f"{where}[{index}]")
    elif not _matches(value, shape, where):
        given = repr(value)
        raise ValueError(f"{where}: expected {_spell(shape)}, got {given if len(given) < 60 else given[:57] + '...'}")


def _matches(value: object, shape: object, where: str) -> bool:
    if isinstance(shape, tuple):
        if type(value) in shape or (value is None and None in shape):
            return True
        for alternative in shape:
            with contextlib.suppress(ValueError):
                check_shape(value, alternative, where)
                return True
    if isinstance(shape, type):
        kinds = (int, float) if shape is float else shape
        return isinstance(value, kinds) and (shape in (bool, object) or not isinstance(value, bool))
    return shape is None and value is None


def _spell(shape: object) -> str:
    if isinstance(shape, tuple):
        return " or ".join(map(_spell, shape))
    if isinstance(shape, type):
        return shape.__name__
    return "null" if shape is None else "a table" if isinstance(shape, dict) else "a list"


# -- writing -----------------------------------------------------------------------------------------------------------


def write_atomic(file: Path, content: bytes) -> None:
    """Write a file atomically: a reader, or a crash, sees the old content or the new one, never a part.

    Temporary files left by killed writers of the same file are removed.
    """
    with _temporary(file) as stream:
        stream.write(content)
        _complete(stream)
        os.replace(stream.name, file)


def write_result(file: Path, content: bytes) -> None:
    """Write a file that a user asked for atomically, in a folder that is made if needed.

    Raises:
        StoreError: it cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, content)
    except OSError as error:
        raise StoreError(f"cannot write {file}: {error.strerror or error}") from error


@contextlib.contextmanager
def first_writer(file: Path) -> Iterator[IO[bytes]]:
    """Write a file that appears whole or not at all; if another process was first, its file stays.

    Temporary files left by killed writers of the same file are removed.
    """
    with _temporary(file) as stream:
        yield stream
        _complete(stream)
        try:
            os.link(stream.name, file)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if not file.exists():  # two processes may both see none; the files of both are whole
                os.replace(stream.name, file)


@contextlib.contextmanager
def _temporary(file: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file next to `file`, locked until its writer exits, and delete it at the end."""
    sweep_temporaries(file.parent, file.name)
    stream = _locked_temporary(file)
    try:
        with stream:
            yield stream
    except OSError as error:
        if error.filename is None:  # a full disk names no file
            error.filename = str(file)
        raise
    finally:
        Path(stream.name).unlink(missing_ok=True)


def _locked_temporary(file: Path) -> IO[bytes]:
    while True:
        stream = NamedTemporaryFile(prefix=f".{file.name}.", dir=file.parent, delete=False)  # noqa: SIM115
        with contextlib.suppress(OSError):  # no locks on this file system: no process sweeps there
            lock(stream.fileno())
        if os.fstat(stream.fileno()).st_nlink or not HAS_FLOCK:
            return stream
        stream.close()  # another process deleted it before it was locked, as a dead writer's


def _complete(stream: IO[bytes]) -> None:
    """Flush a temporary file to disk, with the permissions of the user's other files."""
    stream.flush()
    os.fsync(stream.fileno())
    if HAS_FLOCK:
        os.fchmod(stream.fileno(), 0o666 & ~_UMASK)  # temporary files are readable by their owner only
    else:
        stream.close()  # Windows cannot rename an open file


def sweep_temporaries(folder: Path, name: str) -> None:
    """Delete the temporary files of one file whose writers are dead.

    A writer holds a lock on its temporary file, which the system releases when the writer dies. Without such locks
    (Windows, some network file systems) nothing is deleted.
    """
    if not HAS_FLOCK:
        return
    own = re.compile(rf"\.{re.escape(name)}\.[a-z0-9_]{{8}}")  # as tempfile names them
    with contextlib.suppress(OSError):
        for left in [Path(entry) for entry in os.scandir(folder) if own.fullmatch(entry.name) and has_flock(folder)]:
            with contextlib.suppress(OSError), open(left, "rb") as handle:
                if try_lock(handle.fileno()):
                    left.unlink()
