"""The content of an image folder as one digest, read once: part of the keys of its runs.

Reading every image takes minutes for ImageNet, so the digests of class folders are cached beside the tokenised texts,
under the sizes and times of their files. Times only decide what is read again; they are no part of the digest.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from heavytail.data.readers import sha256
from heavytail.errors import DataError, HeavyTailError
from heavytail.files import read_json, write_atomic

THREADS = 8
YOUNG = 2.0  # seconds: a file that changed less long ago may change again within one tick of the file system's clock


def content_digest(root: Path, listings: Mapping[str, Mapping[str, Sequence[str]]], cache: Path) -> str:
    """Return the sha256 of the names and contents of images.

    Args:
        root: the image folder.
        listings: the image files of each class of each split, as paths under the split's folder.
        cache: folder of the digests of earlier calls.

    An image that cannot be read counts as such: a run need not use it, and once it can be read, it is another data set.
    """
    file = cache / f"{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:20]}.json"
    known = _read(file)
    fresh: dict[str, list[str]] = {}
    whole = hashlib.sha256()
    for split, classes in listings.items():
        for name, files in classes.items():
            where = f"{split}/{name}"
            paths = [root / split / path for path in files]
            state, young = _state(paths)
            before, digest = known.get(where, ("", ""))
            readable = True
            if before != state:
                digest, readable = _read_all(paths)
            if readable and not young:  # what cannot be read now may be readable later, with no other time
                fresh[where] = [state, digest]
            whole.update(f"{len(os.fsencode(where))}:".encode() + os.fsencode(where) + digest.encode())
    if fresh != known:
        with suppress(OSError):  # a read-only folder: the images are read every time
            cache.mkdir(parents=True, exist_ok=True)
            write_atomic(file, json.dumps(fresh).encode())
    return whole.hexdigest()


def _read(file: Path) -> dict[str, list[str]]:
    try:
        table: dict[str, list[str]] = read_json(file, {})
        right = all(len(entry) == 2 and all(isinstance(text, str) for text in entry) for entry in table.values())
    except (HeavyTailError, AttributeError, TypeError):  # damaged: as if there were none
        return {}
    return table if right else {}


def _state(paths: Sequence[Path]) -> tuple[str, bool]:
    """A digest of names, sizes and times, which changes whenever a file does; whether it may change unseen."""
    digest, last = hashlib.sha256(), 0.0
    for path in paths:
        try:
            about = path.stat()
        except OSError:
            return "unreadable", True
        # The time of the last change of an inode cannot be set: it shows a replacement that kept the other time.
        entry = (os.fsencode(path.name).hex(), about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino)
        digest.update(repr(entry).encode())
        last = max(last, about.st_mtime, about.st_ctime)
    return digest.hexdigest(), last > time.time() - YOUNG


def _read_all(paths: Sequence[Path]) -> tuple[str, bool]:
    """The sha256 of the names and contents of the files of one class, and whether all could be read."""
    digest = hashlib.sha256()

    readable = True

    def content_of(path: Path) -> str:
        nonlocal readable
        try:
            return sha256(path)
        except DataError:
            readable = False
            return "unreadable"

    with ThreadPoolExecutor(THREADS) as pool:  # hashing releases the interpreter's lock
        for path, content in zip(paths, pool.map(content_of, paths), strict=True):
            digest.update(os.fsencode(path.name).hex().encode() + b":" + content.encode() + b"\n")
    return digest.hexdigest(), readable
