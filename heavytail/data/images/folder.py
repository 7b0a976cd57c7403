"""Image files in one folder per class, ImageNet's layout, decoded by worker processes (section 3; figures 3, 11-13).

HEAVYTAIL_WORKERS is the number of decoding processes (default: one per usable CPU, at most 16; 0 decodes in the
calling process). It is not a setting of the data set, because the images do not depend on it.

B batch, N samples, S pixels a side.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from heavytail.data import REGISTRY, Data, Nominal
from heavytail.data.images.base import ImageRecipe, ImageSplit, Seeded
from heavytail.data.images.content import content_digest
from heavytail.data.images.subset import digest, subset_sizes
from heavytail.data.images.transforms import centre_crop, image_uniforms, random_crops, read_rgb, to_pixels
from heavytail.data.readers import hidden
from heavytail.data.text.corpus import cache_folder, user_cache
from heavytail.errors import DataError, SpecError
from heavytail.system import num_cores

_LOG = logging.getLogger("heavytail")
SUFFIXES = (".jpeg", ".jpg", ".jfif", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
UNREAD = (".heic", ".heif", ".avif", ".svg", ".jp2", ".dng", ".psd", ".npy", ".mp4", ".zip", ".tar")  # refused by name
HELD_OUT = ("val", "test", "valid", "validation")  # of which the first is read
# ILSVRC-2012: 1 000 classes, 895 of them with 1 300 images, and 1 281 167 images in total. The counts of the others are
# approximate: only their sum is used.
IMAGENET, IMAGENET_VALIDATION = [1300] * 895 + [1121] * 67 + [1120] * 38, 50_000
MAX_WORKERS = 16
PIECE = 32  # images a worker decodes at a time: small enough to divide a mini-batch among the workers


@REGISTRY.register("image-folder")
@dataclass(frozen=True, kw_only=True)
class ImageFolder(ImageRecipe):
    """Any folder of class folders; its folders `train` and `val`, if it has them, are the splits, as in ImageNet.

    Classes are the folders of the training split, in the order of their names; images in their subfolders belong to
    them. Hidden files and folders (`readers.hidden`) are left out, and so are files without an image's suffix, whose
    number is in `info`; a folder `test`, `valid` or `validation` is not read, with a warning. Pixels are read as
    stored: an orientation in the EXIF data is not applied, as in torchvision.

    Attributes:
        path: absolute, or relative to the data directory.
        sha256: of the names and contents of all images, checked on loading; "" is filled in by `pinned` if the path is
            absolute, and by `pinned_in` if it is relative, so that a run's key follows the content.
        skip_corrupt: leave out training and validation images that cannot be decoded, and count them in
            `info`; finding them decodes every image of the subset once. If False, the first one raises a DataError.
    """

    small: ClassVar[dict[str, Any]] = {"path": "images", "size": 8}

    path: str
    skip_corrupt: bool = False
    sha256: str = ""

    def pinned(self) -> ImageFolder:
        """Return the recipe with the digest of the images as they are now, if the path is absolute."""
        return self._pinned(Path(self.path), user_cache()) if Path(self.path).is_absolute() else self

    def pinned_in(self, data_dir: Path) -> ImageFolder:
        """Return the recipe with the digest of the images as they are now."""
        return self._pinned(data_dir / self.path, cache_folder(data_dir))

    def _pinned(self, root: Path, cache: Path) -> ImageFolder:
        """The recipe with the digest; as it is if the folder is missing or unreadable, which loading reports."""
        if not self.sha256 and os.path.isdir(root):
            with suppress(DataError):
                return replace(self, sha256=_content(root, cache))
        return self

    @property
    def title(self) -> str:
        """Name of the data set in figures."""
        return Path(self.path).name

    def load(self, *, seed: int, data_dir: Path) -> Data:
        """Return the data set; its images are decoded batch by batch."""
        root = data_dir / self.path
        if self.sha256 and os.path.isdir(root) and (got := _content(root, cache_folder(data_dir))) != self.sha256:
            raise DataError(f"data.path: {self.path} has changed: expected sha256 {self.sha256}, got {got}")
        part, others = _parts(root)
        train_root = root / part
        train, ignored = _list_classes(train_root, () if part else others)
        if empty := [name for name, files in train.items() if not files]:
            raise DataError(f"{train_root / empty[0]}: expected images ({', '.join(SUFFIXES)}) in the class, got none")
        counts = [len(names) for names in train.values()]
        sizes = subset_sizes(counts, self.subset, per_class=self.per_class, largest=self.largest)
        generator = np.random.default_rng([seed, *b"image subset"])
        chosen, skipped = {}, 0
        for (name, files), size in zip(train.items(), sizes, strict=True):
            order = [files[i] for i in generator.permutation(len(files))]
            good, bad = self._readable(train_root, order, int(size))
            if len(good) < size and self.subset != "all":
                raise DataError(f"{train_root / name}: needs {size} readable images, got {len(good)}")
            chosen[name], skipped = sorted(good), skipped + bad
        info = {"source": self.path, "images": sum(map(len, chosen.values()))}
        info["digest"] = digest(name for files in chosen.values() for name in files)
        test = None
        held_out_in = f"the test split is {root / 'val'}" if "val" in others else "there is no test split"
        for unread in others:
            if unread != "val":
                _LOG.warning("%s: not read; %s", root / unread, held_out_in)
        if "val" in others:
            held_out, more = _list_classes(root / "val")
            ignored += more
            if extra := sorted(set(held_out) - set(train)):
                raise DataError(f"{root / 'val' / extra[0]}: no class of this name in {train_root}")
            for name, files in held_out.items():
                held_out[name], bad = self._readable(root / "val", files, len(files))
                skipped += bad
            validation = replace(self, augment=False)
            test = _split(root / "val", {name: held_out.get(name, []) for name in train}, validation, seed)
        if self.skip_corrupt:
            info["skipped"] = skipped
        if ignored:
            info["ignored"] = ignored
        return Data(_split(train_root, chosen, self, seed), test, len(train), info=info)

    def nominal(self) -> Nominal:
        """Return the sizes of ImageNet, without loading it, if the folder has this name; DataError otherwise."""
        if Path(self.path).name.lower() != "imagenet":
            raise DataError(f"{self.path}: no such folder; expected one folder of images per class in it")
        return self._nominal(IMAGENET, IMAGENET_VALIDATION)

    def _readable(self, root: Path, files: list[str], wanted: int) -> tuple[list[str], int]:
        """Return the first `wanted` files (that decode, if corrupt ones are skipped) and how many were skipped."""
        if not self.skip_corrupt:
            return files[:wanted], 0
        good: list[str] = []
        tried = 0
        with ThreadPoolExecutor(max(1, default_workers())) as pool:
            while len(good) < wanted and tried < len(files):
                batch = files[tried : tried + wanted - len(good)]
                good += [
                    f for f, fine in zip(batch, pool.map(lambda f: _decodes(root / f), batch), strict=True) if fine
                ]
                tried += len(batch)
        return good, tried - len(good)


@dataclass(kw_only=True)
class FileSplit(ImageSplit):
    """Image files, decoded ahead of use by worker processes, which end with the split.

    Attributes:
        root: folder of the files.
        files: [N] their paths under it, as one array of bytes: compact, without reference counts.
        workers: decoding processes; 0 decodes in the calling process.
    """

    root: Path
    files: NDArray[np.bytes_]
    workers: int = field(default_factory=lambda: default_workers())

    def pixels(self, chunks: Iterable[Seeded]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the indices [B] of each chunk and its images [B, 3, S, S] uint8.

        Raises:
            DataError: a file cannot be decoded.
        """
        started: deque[list[int]] = deque()

        def pieces() -> Generator[list[tuple[int | None, int]], None, None]:
            for chunk, seed in chunks:
                index = list(range(*chunk.indices(len(self)))) if isinstance(chunk, slice) else chunk.tolist()
                started.append(index)
                for first in range(0, max(len(index), 1), PIECE):
                    yield [(seed, i) for i in index[first : first + PIECE]]

        self._pieces.current = mine = pieces()
        decoded, parts = iter(self._loader), []
        try:
            for part in decoded:
                if isinstance(part, str):
                    raise DataError(part)
                parts.append(part.to(self.device, non_blocking=True))
                if len(parts) * PIECE >= len(started[0]):
                    yield torch.tensor(started.popleft(), dtype=torch.int64), _joined(parts)
                    assert self._pieces.current is mine, "a split decodes one pass at a time"
        except BaseException:  # a damaged image, or the caller stopped iterating
            if self._pieces.current is mine:
                mine.close()
                for _ in decoded:  # a process with undelivered images takes seconds to end,
                    pass
                del decoded, self._loader  # and one that a stored traceback refers to ends late
            raise

    @cached_property
    def _pieces(self) -> _Pieces:
        return _Pieces()

    @cached_property
    def _loader(self) -> DataLoader[Tensor | str]:
        return DataLoader(
            _Decoder(self.root, self.files, self.settings, self.seed),
            batch_sampler=self._pieces,
            num_workers=self.workers,
            collate_fn=_as_is,
            pin_memory=self.device.type == "cuda",
            persistent_workers=self.workers > 0,
            generator=torch.Generator(),  # otherwise the loader draws from the global one and changes the run
        )


class _Pieces:
    """The batch sampler of a loader that outlives a pass: the pieces of the current pass."""

    current: Iterator[list[tuple[int | None, int]]]

    def __iter__(self) -> Iterator[list[tuple[int | None, int]]]:
        return self.current


@dataclass
class _Decoder(Dataset[Tensor]):
    """The work of a decoding process: from (pass, image) pairs to images [B, 3, S, S] uint8, or an error message."""

    root: Path
    files: NDArray[np.bytes_]
    settings: ImageRecipe
    seed: int

    def __getitems__(self, pairs: list[tuple[int | None, int]]) -> Tensor | str:
        if not pairs:
            return torch.empty(0, 3, self.settings.size, self.settings.size, dtype=torch.uint8)
        try:
            return torch.stack([self._decode(*pair) for pair in pairs])
        except DataError as error:  # raising it would add the worker's traceback to the message
            return str(error)

    def _decode(self, epoch: int | None, index: int) -> Tensor:
        path = self.root / os.fsdecode(self.files[index])
        image = read_rgb(path, str(path))
        box, flip = centre_crop(*image.size), False
        if epoch is not None:
            uniforms = image_uniforms(self.seed, epoch, index)[None]
            boxes, flips = random_crops(uniforms, *image.size)
            box, flip = boxes[0].tolist(), bool(flips[0])
        left, top, width, height = box
        pixels = to_pixels(image, self.settings.size, (left, top, left + width, top + height))
        return pixels.flip(2) if flip else pixels


def default_workers() -> int:
    """Return HEAVYTAIL_WORKERS, else the number of usable CPUs up to 16."""
    value = os.environ.get("HEAVYTAIL_WORKERS")
    if not value:
        return min(MAX_WORKERS, num_cores())
    if not value.isdecimal():
        raise SpecError(f"HEAVYTAIL_WORKERS: expected a number of processes, 0 or more, got '{value}'")
    return int(value)


def _joined(parts: list[Tensor]) -> Tensor:
    """The parts as one tensor; empties the list, as the caller waits while the images are used."""
    whole = torch.cat(parts)
    parts.clear()
    return whole


def _as_is(images: Any) -> Any:
    return images


def _decodes(path: Path) -> bool:
    try:
        read_rgb(path, str(path))
    except DataError:
        return False
    return True


def _parts(root: Path) -> tuple[str, list[str]]:
    """The folder of the training split, "" for the root itself, and the folders of the others.

    Beside classes, a folder of such a name is a split if it has folders itself.
    """
    train = "train" if os.path.isdir(root / "train") else ""
    others = [name for name in HELD_OUT if os.path.isdir(root / name) and (train or _has_folders(root / name))]
    return train, others


def _has_folders(folder: Path) -> bool:
    with suppress(OSError), os.scandir(folder) as entries:
        return any(entry.is_dir() and not hidden(entry.name) for entry in entries)
    return False


def _list_classes(root: Path, left_out: Sequence[str] = ()) -> tuple[dict[str, list[str]], int]:
    """The image files of each class folder, as paths under `root`, sorted by name; the number of other files."""
    if not os.path.isdir(root):
        raise DataError(f"{root}: no such folder; expected one folder of images per class in it")
    listing: dict[str, list[str]] = {}
    ignored, top = 0, Path(os.path.realpath(root))
    try:
        for folder in sorted(os.scandir(root), key=lambda entry: entry.name):
            if hidden(folder.name) or folder.name in left_out or not folder.is_dir():
                continue
            if top.is_relative_to(os.path.realpath(folder)):
                raise DataError(f"{root / folder.name}: expected images in the class, got a link to what contains it")
            files = [f"{folder.name}/{file}" for file in _files(folder.path)]
            images = [file for file in files if file.lower().endswith(SUFFIXES)]
            if odd := [file for file in files if file.lower().endswith(UNREAD)]:
                raise DataError(f"{root / odd[0]}: expected images ({', '.join(SUFFIXES)})")
            ignored += len(files) - len(images)
            listing[folder.name] = sorted(images)
    except OSError as error:
        raise DataError(f"{error.filename or root}: cannot be read: {error.strerror or error}") from error
    if not any(listing.values()):
        raise DataError(f"{root}: expected one folder of images ({', '.join(SUFFIXES)}) per class, got none")
    return listing, ignored


def _files(folder: str) -> Iterator[str]:
    """The files of a class folder and of its subfolders, as paths under it; a folder is read once, and none above."""

    def fail(error: OSError) -> None:
        raise error

    top = os.path.realpath(folder)
    seen = {top}
    for base, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        within = "" if base == folder else f"{os.path.relpath(base, folder).replace(os.sep, '/')}/"
        yield from (f"{within}{file}" for file in files if not hidden(file))
        found, folders[:] = sorted(folders), []
        for name in found:
            place = os.path.realpath(os.path.join(base, name))
            if not hidden(name) and place not in seen and not Path(top).is_relative_to(place):
                folders.append(name)
                seen.add(place)


def _content(root: Path, cache: Path) -> str:
    """The digest of the names and contents of the images that `load` reads."""
    part, others = _parts(root)
    listings = {part: _list_classes(root / part, () if part else others)[0]}
    if "val" in others:
        listings["val"] = _list_classes(root / "val")[0]
    return content_digest(root, listings, cache.with_name("digests"))


def _split(root: Path, listing: dict[str, list[str]], settings: ImageRecipe, seed: int) -> FileSplit:
    targets = np.repeat(np.arange(len(listing)), [len(files) for files in listing.values()])
    files = np.array([os.fsencode(file) for files in listing.values() for file in files], dtype=np.bytes_)
    return FileSplit(root=root, files=files, targets=torch.from_numpy(targets), settings=settings, seed=seed)
