"""A user's arrays are taken as they are, or refused in one line that says what is wrong."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from heavytail.data.arrays import Arrays
from heavytail.errors import DataError, SpecError
from heavytail.experiment.registry import Component, registry

X = np.arange(12.0).reshape(6, 2)
Y = np.array([0, 2, 2, 1, 0, 2])
NOWHERE = Path("no-such-folder")


def save(folder: Path, **arrays: object) -> str:
    """Write the arrays, X and Y by default, None leaving one out; return the path."""
    path = folder / "mine.npz"
    kept = {name: value for name, value in ({"X": X, "y": Y} | arrays).items() if value is not None}
    np.savez(path, **kept)  # type: ignore[arg-type]
    return str(path)


@pytest.mark.parametrize("x_type", ["float64", "float32", "float16", "int32", "uint8", ">f8"])
@pytest.mark.parametrize("y_type", ["int64", "int8", "uint16", ">i4"])
def test_arrays_are_taken_as_they_are(tmp_path: Path, x_type: str, y_type: str) -> None:
    """Any numeric X gives the same float32 inputs, any integer y the same int64 labels."""
    path = save(tmp_path, X=X.astype(x_type), y=Y.astype(y_type))
    data = Arrays(path).load(seed=0, data_dir=NOWHERE)
    assert data.train.inputs.tolist() == X.tolist()
    assert data.train.inputs.dtype == torch.float32
    assert data.train.targets.tolist() == Y.tolist()
    assert data.num_classes == 3
    assert data.counts.tolist() == [2, 1, 3]
    assert data.test is None


def test_test_arrays_become_the_test_split(tmp_path: Path) -> None:
    """X_test and y_test are the test split; C comes from y or from the setting."""
    path = save(tmp_path, X_test=X[:2], y_test=Y[:2])
    data = Arrays(path, num_classes=5).load(seed=0, data_dir=NOWHERE)
    assert data.test is not None
    assert data.test.inputs.tolist() == X[:2].tolist()
    assert data.test.targets.tolist() == [0, 2]
    assert data.num_classes == 5


def test_the_content_is_part_of_the_identity(tmp_path: Path) -> None:
    """`resolve` names the digest of the file; a file that has changed since is refused."""
    path = save(tmp_path)
    resolved = registry("data").resolve(Component("arrays", {"path": path}))
    assert resolved.params["sha256"] == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    recipe = registry("data").make(resolved)
    recipe.load(seed=0, data_dir=NOWHERE)
    save(tmp_path, X=X + 1)
    with pytest.raises(DataError, match=r"mine\.npz has changed: expected sha256"):
        recipe.load(seed=0, data_dir=NOWHERE)
    assert recipe.pinned() == recipe


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"X": None}, "has no array X"),
        ({"y": None}, "has no array y"),
        ({"X_test": X}, "has no array y_test"),
        ({"y_test": Y}, "has no array X_test"),
        ({"X": X[:, 0]}, r"expected X to be numbers \[n, d\], got float64 \[6\]"),
        ({"X": X[None]}, r"expected X to be numbers \[n, d\]"),
        ({"X": X.astype(complex)}, "expected X to be numbers .* got complex128"),
        ({"X": X.astype(str)}, "expected X to be numbers"),
        ({"X": X > 1}, "expected X to be numbers .* got bool"),
        ({"y": Y[:, None]}, r"expected y to be integers \[n\], got int64 \[6, 1\]"),
        ({"y": Y.astype(float)}, "expected y to be integers .* got float64"),
        ({"y": Y > 1}, "expected y to be integers .* got bool"),
        ({"y": -Y}, "expected y to be class numbers .* got -2"),
        ({"y": Y + 10**9}, "expected y to be class numbers"),
        ({"y": Y.astype(np.uint64) + np.uint64(2**63)}, "expected y to be class numbers"),
        ({"y": Y[:5]}, "expected X and y of one length, got 6 and 5"),
        ({"X": X[:0], "y": Y[:0]}, "expected X to have samples and features"),
        ({"X": X[:, :0]}, "expected X to have samples and features"),
        ({"X": np.where(X == 3, np.nan, X)}, "expected X to be finite in float32, got 1 values"),
        ({"X": np.where(X > 9, np.inf, X)}, "expected X to be finite in float32, got 2 values"),
        ({"X": X * 1e300}, "expected X to be finite in float32"),
        ({"X": X.astype(object)}, "not a readable .npz file of plain arrays: Object arrays cannot be loaded"),
        ({"X_test": X[:, :1], "y_test": Y}, "expected X and X_test of one width"),
        ({"X_test": X, "y_test": Y + 1}, r"test targets: expected 0\.\.2, got 1\.\.3"),
    ],
)
def test_bad_arrays_are_refused(tmp_path: Path, arrays: dict[str, object], message: str) -> None:
    """Each is a DataError of one line."""
    with pytest.raises(DataError, match=message) as caught:
        Arrays(save(tmp_path, **arrays)).load(seed=0, data_dir=NOWHERE)
    assert "\n" not in str(caught.value)


def test_bad_files_are_refused(tmp_path: Path) -> None:
    """Missing, empty, foreign, cut and damaged files and a folder are each a DataError of one line."""
    whole = Path(save(tmp_path)).read_bytes()
    damaged = bytearray(whole)
    damaged[whole.index(np.float64(3).tobytes())] ^= 1
    np.save(tmp_path / "single.npy", X)
    for name, content in {
        "empty.npz": b"",
        "text.npz": b"a,b\n1,2\n",
        "pickle.npz": b"\x80\x04N.",
        "cut.npz": whole[: len(whole) // 2],
        "damaged.npz": bytes(damaged),
        "encrypted.npz": whole.replace(b"PK\3\4-\0\0", b"PK\3\4-\0\1").replace(b"-\3-\0\0", b"-\3-\0\1"),
    }.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.npz").mkdir()
    names = ("missing", "folder", "empty", "text", "pickle", "cut", "damaged", "encrypted")
    for path in [*(tmp_path / f"{name}.npz" for name in names), tmp_path / "single.npy"]:
        with pytest.raises(DataError, match=path.name) as caught:
            Arrays(str(path)).load(seed=0, data_dir=NOWHERE)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"data\.path: cannot read .*missing\.npz: No such file"):
        Arrays(str(tmp_path / "missing.npz")).pinned()


def test_bad_settings_are_named() -> None:
    """A missing path and a number of classes out of range are SpecErrors."""
    with pytest.raises(SpecError, match=r"data\.path"):
        registry("data").make(Component("arrays"))
    with pytest.raises(SpecError, match=r"data\.num_classes"):
        Arrays("mine.npz", num_classes=1)
