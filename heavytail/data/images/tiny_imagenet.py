"""Tiny ImageNet: 200 of ImageNet's classes at 64 x 64 pixels, its substitute below paper scale (figures 3, 11, 13, 22).

`data_dir`/tiny-imagenet-200 holds the extracted folder, the tar files with 300 training images of each class, or the
original zip file with 500; the first that exists is read. Archives are not extracted: the images of the subset are
decoded into memory, and the undecoded ones (80 MB) are cached for the next seed.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from heavytail.data import REGISTRY, Data, Nominal
from heavytail.data.archive import read_members
from heavytail.data.fetch import locate
from heavytail.data.images.base import ImageRecipe, MemorySplit
from heavytail.data.images.subset import Subset, digest, subset_sizes
from heavytail.data.images.transforms import read_rgb, to_pixels
from heavytail.errors import DataError, SpecError

FOLDER = "tiny-imagenet-200"
PER_TAR = 100
TARS = tuple(f"{FOLDER}/train_{first:03}_{first + PER_TAR - 1:03}.tar.gz" for first in (0, 100, 200))
ZIP = f"{FOLDER}/{FOLDER}.zip"
NUM_CLASSES = 200
MOST, MOST_VALIDATION = 500, 50  # images of each class

_TRAIN = re.compile(r"train/(n\d{8})/(?:images/)?\1_(\d+)\.JPEG")
_VALIDATION = re.compile(r"val/(?:images/)?(val_\d+\.JPEG)")
_LABELS = ("val_labels.tsv", "val/val_annotations.txt")


@REGISTRY.register("tiny-imagenet")
@dataclass(frozen=True, kw_only=True)
class TinyImageNet(ImageRecipe):
    """Tiny ImageNet, whole, balanced or heavy-tailed.

    Classes are numbered as in wnids.txt. All have equally many images; the heavy-tailed subset has most of
    class 0.

    Attributes:
        pool: training images of each class to choose from: those numbered 0..pool-1.
        size: pixels a side; below 64 the images are scaled once, when they are loaded.
        validation: validation images of each class, at most 50; 0 for no validation split.
    """

    subset: Subset = "balanced"
    pool: int = 300
    size: int = 64
    validation: int = MOST_VALIDATION

    title: ClassVar[str] = "Tiny ImageNet"
    small: ClassVar[dict[str, Any]] = {"per_class": 1, "pool": 100, "size": 8, "validation": 1}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.pool <= MOST:
            raise SpecError(f"data.pool: expected 1..{MOST}, got {self.pool}")
        if not 0 <= self.validation <= MOST_VALIDATION:
            raise SpecError(f"data.validation: expected 0..{MOST_VALIDATION}, got {self.validation}")

    def load(self, *, seed: int, data_dir: Path) -> Data:
        """Read the archives, choose the subset and decode it."""
        # Archives are checked on every start; nothing shows that an extracted folder is still the same.
        extracted = os.path.isdir(data_dir / FOLDER / "train")
        files = (_read if extracted else _read_once)(data_dir, self.pool)
        sizes = subset_sizes([self.pool] * NUM_CLASSES, self.subset, per_class=self.per_class, largest=self.largest)
        generator = np.random.default_rng([seed, *b"image subset"])
        names, classes = [], []
        for k, (wnid, size) in enumerate(zip(files.wnids, sizes, strict=True)):
            numbers = np.sort(generator.permutation(self.pool)[:size])
            names += [f"{wnid}_{number}" for number in numbers]
            classes += [k] * int(size)
        info = {"source": "Tiny ImageNet", "images": len(names), "digest": digest(names)}
        train = _split([files.train[name] for name in names], names, classes, self, seed)
        test = None
        if self.validation:
            held_out = [
                (name, k)
                for k, wnid in enumerate(files.wnids)
                for name in files.validation_names[wnid][: self.validation]
            ]
            names, classes = [name for name, _ in held_out], [k for _, k in held_out]
            test = _split([files.validation[n] for n in names], names, classes, replace(self, augment=False), seed)
        return Data(train, test, NUM_CLASSES, info=info)

    def nominal(self) -> Nominal:
        """Return the sizes of the data set, without loading it."""
        return self._nominal([self.pool] * NUM_CLASSES, self.validation * NUM_CLASSES)


@dataclass
class _Files:
    """Undecoded training images by WNID_NUMBER, validation images by file name, and these names by class."""

    wnids: list[str]
    train: dict[str, bytes]
    validation: dict[str, bytes]
    validation_names: dict[str, list[str]]


def _read(data_dir: Path, pool: int) -> _Files:
    """Read the files of the data set in any of its forms; raise DataError if one is missing."""

    def wanted(name: str) -> bool:
        match = _TRAIN.fullmatch(name.removeprefix(f"{FOLDER}/"))
        return int(match[2]) < pool if match else not name.removeprefix(f"{FOLDER}/").startswith(("train", "test"))

    train, validation, tables = {}, {}, {}
    for path, raw in _members(data_dir, pool, wanted):
        name = path.removeprefix(f"{FOLDER}/")
        if match := _TRAIN.fullmatch(name):
            train[f"{match[1]}_{int(match[2])}"] = raw
        elif match := _VALIDATION.fullmatch(name):
            validation[match[1]] = raw
        else:
            tables[name] = raw
    folder = data_dir / FOLDER
    labels = next((tables[name] for name in _LABELS if name in tables), None)
    if "wnids.txt" not in tables or labels is None:
        raise DataError(
            f"{folder}: expected wnids.txt and one of {', '.join(_LABELS)}, got {', '.join(tables) or 'none'}"
        )
    names = defaultdict(list)
    try:
        wnids = tables["wnids.txt"].decode().split()
        for line in filter(str.strip, labels.decode().splitlines()):
            file, wnid = line.split("\t")[:2]
            names[wnid].append(file)
    except ValueError as error:
        raise DataError(f"{folder}: the tables of classes are damaged: {error}") from error
    if len(wnids) != NUM_CLASSES:
        raise DataError(f"{folder / 'wnids.txt'}: expected {NUM_CLASSES} classes, got {len(wnids)}")
    absent = [f"{wnid}_{n}.JPEG" for wnid in wnids for n in range(pool) if f"{wnid}_{n}" not in train]
    absent += [file for wnid in wnids for file in names[wnid] if file not in validation]
    if absent:
        raise DataError(f"{folder}: {len(absent)} images are missing, the first is {absent[0]}")
    return _Files(wnids, train, validation, names)


_read_once = lru_cache(maxsize=1)(_read)


def _members(data_dir: Path, pool: int, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    folder = data_dir / FOLDER
    if (folder / "train").is_dir():
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if path.is_file() and wanted(name):
                yield name, path.read_bytes()
    elif pool <= PER_TAR * len(TARS) and (data_dir / TARS[0]).exists():
        for tar in (*TARS[: -(-pool // PER_TAR)], f"{FOLDER}/val.tar.gz"):
            yield from read_members(locate(tar, data_dir), wanted)
        for table in ("wnids.txt", "val_labels.tsv"):
            yield table, locate(f"{FOLDER}/{table}", data_dir).read_bytes()
    else:
        yield from read_members(locate(ZIP, data_dir), wanted)


def _split(
    files: Iterable[bytes], names: list[str], classes: list[int], settings: TinyImageNet, seed: int
) -> MemorySplit:
    images = torch.stack([_decode(raw, name, settings.size) for raw, name in zip(files, names, strict=True)])
    return MemorySplit(images=images, targets=torch.tensor(classes), settings=settings, seed=seed)


def _decode(raw: bytes, name: str, size: int) -> Tensor:
    return to_pixels(read_rgb(BytesIO(raw), name), size)
