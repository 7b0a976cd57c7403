"""A user's own features and labels from an .npz file.

N samples, C classes, D features.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from heavytail.data import REGISTRY, Data, Split
from heavytail.data.readers import BROKEN_ARRAY, sha256
from heavytail.errors import DataError, SpecError, reason
from heavytail.files import expanded

_MOST_CLASSES = 2**24  # larger labels are identifiers, not class numbers


@REGISTRY.register("arrays")
@dataclass(frozen=True)
class Arrays:
    """The arrays of an .npz file: X [N, D] and y [N], and optionally X_test and y_test.

    Attributes:
        path: the file; relative to the current folder, `~` understood.
        sha256: of the file, checked on loading; "" is filled in by `pinned`, so that a run's key follows the content.
        num_classes: C; by default the largest label of y plus one.
    """

    path: str
    sha256: str = ""
    num_classes: int | None = None

    small: ClassVar[dict[str, Any]] = {"path": "arrays.npz"}

    def __post_init__(self) -> None:
        if self.num_classes is not None and self.num_classes < 2:
            raise SpecError(f"data.num_classes: expected at least 2, got {self.num_classes}")

    def pinned(self) -> Arrays:
        """Return the recipe with the digest of the current file; DataError if it cannot be read."""
        return replace(self, sha256=self.sha256 or self._digest())

    @property
    def title(self) -> str:
        """Name of the data set in figures."""
        return Path(self.path).name

    def load(self, *, seed: int, data_dir: Path) -> Data:
        """Return the data, X as float32; DataError names the fault of the file in one line."""
        arrays, got = _read(self._file)
        if self.sha256 and got != self.sha256:
            raise DataError(f"data.path: {self.path} has changed: expected sha256 {self.sha256}, got {got}")
        train = _split(arrays, "X", "y", self.path)
        test = None
        if "X_test" in arrays or "y_test" in arrays:
            test = _split(arrays, "X_test", "y_test", self.path)
            if test.inputs.shape[1] != train.inputs.shape[1]:
                widths = f"{train.inputs.shape[1]} columns, X_test {test.inputs.shape[1]}"
                raise DataError(f"{self.path}: expected X and X_test of one width, got X of {widths}")
        num_classes = self.num_classes or max(int(train.targets.max()) + 1, 2)
        return Data(train, test, num_classes, info={"source": self._file.name})

    @property
    def _file(self) -> Path:
        return expanded(self.path)

    def _digest(self) -> str:
        try:
            return sha256(self._file)
        except DataError as error:
            raise DataError(f"data.path: {error}") from error


def _read(path: Path) -> tuple[dict[str, NDArray[np.generic]], str]:
    """Return X, y, X_test and y_test, where the file has them, and its digest; pickles are never loaded."""
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            stream.seek(0)
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"{path}: expected an .npz file with X and y, got a single array")
            with archive:
                return {name: archive[name] for name in ("X", "y", "X_test", "y_test") if name in archive}, digest
    except OSError as error:
        raise DataError(f"data.path: cannot read {path}: {error.strerror or error}") from error
    except BROKEN_ARRAY as error:
        raise DataError(f"{path}: not a readable .npz file of plain arrays: {reason(error)}") from error


def _split(arrays: dict[str, NDArray[np.generic]], x: str, y: str, path: str) -> Split:
    """Return validated features and labels as tensors."""
    for name in (x, y):
        if name not in arrays:
            raise DataError(f"{path}: has no array {name}; expected X and y (and X_test and y_test, or neither)")
    features, labels = arrays[x], arrays[y]
    if features.ndim != 2 or features.dtype.kind not in "fiu":
        raise DataError(f"{path}: expected {x} to be numbers [n, d], got {features.dtype} {list(features.shape)}")
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(f"{path}: expected {y} to be integers [n], got {labels.dtype} {list(labels.shape)}")
    if len(features) != len(labels):
        raise DataError(f"{path}: expected {x} and {y} of one length, got {len(features)} and {len(labels)}")
    if features.size == 0:
        raise DataError(f"{path}: expected {x} to have samples and features, got {list(features.shape)}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= _MOST_CLASSES:
        raise DataError(f"{path}: expected {y} to be class numbers 0, 1, ..., got {low if low < 0 else high}")
    with np.errstate(over="ignore"):  # values beyond float32 become inf and are reported below
        inputs = torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32))
    bad = int((~torch.isfinite(inputs)).sum())
    if bad:
        raise DataError(f"{path}: expected {x} to be finite in float32, got {bad} values that are not")
    return Split(inputs, torch.from_numpy(labels.astype(np.int64)))
