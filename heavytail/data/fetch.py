"""The public data files of the paper: status, verification and download.

Every file has a digest (public.toml), and files with another digest are neither read nor stored. A file's place in the
data folder is `PublicFile.path`; a mirror is the same folder behind a URL. Loaders call `locate` or `read`, which never
use the network; only `fetch` does.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import sys
import tomllib
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, cast

from heavytail.errors import DataError, install, unknown
from heavytail.system import HAS_FLOCK, lock, try_lock

_ALGORITHMS = ("sha256", "sha1", "md5")
_HEADERS = {"User-Agent": "heavytail/0.1"}  # some hosts reject the default of Python's libraries
_TIMEOUT = 30.0  # seconds without a byte


@dataclass(frozen=True)
class Archive:
    """A zip file of data files: its URLs, tried in order, and its "algorithm:hex" digest."""

    urls: tuple[str, ...]
    digest: str


@dataclass(frozen=True)
class PublicFile:
    """One data file.

    Attributes:
        path: relative to the data folder and to a mirror.
        digest: "algorithm:hex" of its bytes.
        urls: public addresses, tried in order; none if it is in an archive or on a mirror only.
        size: number of bytes under the digest, None if unknown.
        unpacked: the file may be gzipped; digest and size are those of the decompressed bytes.
        archive: the zip file with it as `member`, if it is not published separately.
        member: its name in the archive.
    """

    path: str
    digest: str
    urls: tuple[str, ...] = ()
    size: int | None = None
    unpacked: bool = False
    archive: Archive | None = None
    member: str = ""


@dataclass(frozen=True)
class PublicDataset:
    """A named set of files; `note` describes them and their licence in a line."""

    name: str
    note: str
    files: tuple[PublicFile, ...]

    @property
    def size(self) -> int:
        """Bytes of the files whose size is known."""
        return sum(file.size or 0 for file in self.files)

    @property
    def published(self) -> bool:
        """Whether every file has a public address, its own or an archive's."""
        return all(file.urls or file.archive for file in self.files)


class State(StrEnum):
    """State of a file in the data folder."""

    PRESENT = "present"
    MISSING = "missing"
    WRONG_HASH = "wrong hash"


@dataclass(frozen=True)
class FileStatus:
    """A file, its path in the data folder, and its state."""

    file: PublicFile
    path: Path
    state: State


def _parse(name: str, table: Mapping[str, Any]) -> PublicDataset:
    """Read one table of public.toml."""

    def digest(entry: Mapping[str, Any]) -> str:
        (algorithm,) = (a for a in _ALGORITHMS if a in entry)
        return f"{algorithm}:{entry[algorithm]}"

    archive = table.get("archive")
    return PublicDataset(
        name,
        table["note"],
        tuple(
            PublicFile(
                path,
                digest(entry),
                tuple(folder + path.rpartition("/")[2] for folder in table.get("folders", ())),
                size=entry.get("size"),
                unpacked=table.get("unpacked", False),
                archive=Archive(tuple(archive["urls"]), digest(archive)) if archive else None,
                member=entry.get("member", ""),
            )
            for path, entry in table["files"].items()
        ),
    )


DATASETS: Mapping[str, PublicDataset] = {
    name: _parse(name, table)
    for name, table in tomllib.loads(files(__package__).joinpath("public.toml").read_text("utf-8")).items()
}


def status(name: str, data_dir: Path) -> list[FileStatus]:
    """Return the state of each file of the data set `name`.

    Raises:
        SpecError: no public data set has this name.
        DataError: an existing file cannot be read.
    """
    if name not in DATASETS:
        raise unknown("public data set", name, DATASETS)
    return [_status(file, data_dir) for file in DATASETS[name].files]


def verify(name: str, data_dir: Path) -> None:
    """Raise DataError for the first file of `name` that is missing or has the wrong digest."""
    for current in status(name, data_dir):
        _require(current, name, data_dir)


def locate(path: str, data_dir: Path) -> Path:
    """Return the path of a public file, after checking its digest.

    Args:
        path: as in `PublicFile.path`, for example "ptb/ptb.train.txt".
        data_dir: the data folder.

    Raises:
        DataError: it is missing or has the wrong digest; the message has the command that fetches it.
    """
    name, file = _lookup(path)
    current = _status(file, data_dir)
    _require(current, name, data_dir)
    return current.path


def read(path: str, data_dir: Path) -> bytes:
    """Return the bytes of a public file (gunzipped if it is `unpacked`); arguments and errors as in `locate`."""
    _, file = _lookup(path)
    with _opened(locate(path, data_dir), file.unpacked) as stream:
        return stream.read()


def fetch(name: str, data_dir: Path, base_url: str | None = None, progress: bool = True) -> list[Path]:
    """Download the files of the data set `name` that are missing or wrong, and return the paths of all.

    Files are written atomically, after their digests are verified.

    Args:
        name: a key of DATASETS.
        data_dir: the data folder, created if needed.
        base_url: a mirror laid out like the data folder, used instead of the public addresses; by default the
            environment variable HEAVYTAIL_MIRROR.
        progress: show a bar on a terminal.

    Raises:
        SpecError: no public data set has this name.
        DataError: a download failed, a digest is wrong, or the folder cannot be written.
    """
    mirror = base_url or os.environ.get("HEAVYTAIL_MIRROR")
    current = status(name, data_dir)
    absent = [f.file for f in current if f.state is not State.PRESENT]
    if not absent:  # before the first write: the folder may be read-only
        return [f.path for f in current]
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with _scratch(data_dir) as scratch:
            for file in absent:
                part, target = _obtain(file, scratch, mirror, progress), data_dir / file.path
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(part, target)
    except OSError as error:
        raise DataError(f"{name}: cannot write to {data_dir}: {error.strerror or error}") from error
    return [f.path for f in status(name, data_dir)]


@contextmanager
def _scratch(data_dir: Path) -> Iterator[Path]:
    """A temporary folder on the file system of the data folder, so that the last step is a rename.

    Folders of killed downloads are removed first: the lock of a process is released when it dies.
    """
    with ExitStack() as stack:
        with _locked(data_dir):  # no other process sweeps between the creation of the folder and its lock
            for left in data_dir.glob(".fetch-*"):
                with suppress(OSError), _descriptor(left) as handle:
                    if HAS_FLOCK and try_lock(handle):
                        shutil.rmtree(left)
            scratch = Path(stack.enter_context(TemporaryDirectory(prefix=".fetch-", dir=data_dir)))
            stack.enter_context(_locked(scratch))
        yield scratch


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder. Windows cannot open it, and NFS locks none: nothing is locked or deleted there."""
    with _descriptor(folder) if HAS_FLOCK else nullcontext(None) as handle:
        if handle is not None:
            with suppress(OSError):
                lock(handle)
        yield


@contextmanager
def _descriptor(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lookup(path: str) -> tuple[str, PublicFile]:
    for name, dataset in DATASETS.items():
        for file in dataset.files:
            if file.path == path:
                return name, file
    raise unknown("public file", path, [f.path for d in DATASETS.values() for f in d.files])


def _status(file: PublicFile, data_dir: Path) -> FileStatus:
    path = data_dir / file.path
    if file.unpacked and not path.exists() and path.with_suffix("").exists():
        path = path.with_suffix("")
    if not path.is_file():
        return FileStatus(file, path, State.MISSING)
    right = _digest(path, file.digest, file.unpacked) == file.digest
    return FileStatus(file, path, State.PRESENT if right else State.WRONG_HASH)


def _require(current: FileStatus, name: str, data_dir: Path) -> None:
    if current.state is not State.PRESENT:
        problem = "not found in" if current.state is State.MISSING else "has the wrong hash in"
        remedy = f"run: heavytail data fetch {name} --data-dir {data_dir}"
        raise DataError(f"{current.file.path} {problem} {data_dir}; {remedy}")


@contextmanager
def _opened(path: Path, unpacked: bool) -> Iterator[BinaryIO]:
    """Open a file for reading; if `unpacked`, through gunzip where the file itself is gzipped."""
    with path.open("rb") as raw:
        if unpacked and raw.peek(2)[:2] == b"\x1f\x8b":
            with gzip.open(raw) as stream:
                yield cast("BinaryIO", stream)
        else:
            yield raw


def _digest(path: Path, expected: str, unpacked: bool) -> str:
    """Return the file's digest by the algorithm of the expected one; a damaged .gz file has none."""
    algorithm = expected.partition(":")[0]
    try:
        with _opened(path, unpacked) as stream:
            return f"{algorithm}:{hashlib.file_digest(stream, algorithm).hexdigest()}"  # type: ignore[arg-type]
    except (gzip.BadGzipFile, EOFError, zlib.error):
        return f"{algorithm}:none (broken gzip file)"
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _obtain(file: PublicFile, scratch: Path, mirror: str | None, progress: bool) -> Path:
    """Return a verified temporary file, from the mirror, the file's own URLs, or an archive."""
    part = scratch / "file"
    urls = (f"{mirror.rstrip('/')}/{file.path}",) if mirror else file.urls
    if urls:
        return _download(urls, part, file.digest, file.unpacked, progress)
    if file.archive is None:
        raise DataError(f"{file.path} has no public address; set HEAVYTAIL_MIRROR to the URL of a mirror")
    packed = scratch / file.archive.digest.replace(":", "-")
    if not packed.exists():  # one download for all files of an archive
        _download(file.archive.urls, packed, file.archive.digest, False, progress)
    origin = f"{file.member} in {file.archive.urls[0]}"
    try:
        with zipfile.ZipFile(packed) as archive, archive.open(file.member) as member, part.open("wb") as out:
            shutil.copyfileobj(member, out)
    except (KeyError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise DataError(f"{origin}: no such member, or not readable") from error
    _check(part, file.digest, file.unpacked, origin)
    return part


def _download(urls: tuple[str, ...], part: Path, digest: str, unpacked: bool, progress: bool) -> Path:
    """Download to `part` from the first URL with the right content; raise the DataError of the last one."""
    failure: DataError | None = None
    for url in urls:
        try:
            _get(url, part, progress)
            _check(part, digest, unpacked, url)
            return part
        except DataError as error:
            part.unlink(missing_ok=True)
            failure = error
    assert failure is not None, "nowhere to download from"
    raise failure


def _check(part: Path, expected: str, unpacked: bool, url: str) -> None:
    got = _digest(part, expected, unpacked)
    if got != expected:
        raise DataError(f"{url}: wrong hash, expected {expected}, got {got}; nothing was stored")


def _get(url: str, part: Path, progress: bool) -> None:
    """Download one URL; every failure is a DataError."""
    try:
        import pooch
        import requests
    except ImportError as error:
        raise DataError(f"downloading needs pooch; {install('lab')}") from error
    bar = _Bar(url.rpartition("/")[2]) if progress and sys.stderr.isatty() else None
    downloader = pooch.HTTPDownloader(progressbar=bar or False, chunk_size=1 << 16, headers=_HEADERS, timeout=_TIMEOUT)
    try:
        downloader(url, str(part), None)
    except requests.HTTPError as error:
        if error.response is not None:
            error.response.close()  # pooch leaves it open
        raise DataError(f"{url}: the server answered {str(error).partition(' for url')[0]}") from error
    except requests.Timeout as error:
        raise DataError(f"{url}: no answer within {_TIMEOUT:g} s") from error
    except requests.exceptions.ChunkedEncodingError as error:
        raise DataError(f"{url}: the connection was cut before the end; nothing was stored") from error
    except requests.ConnectionError as error:
        if "timed out" in str(error):  # a stalled server: requests reports it as a failed connection
            raise DataError(f"{url}: connected, but no data for {_TIMEOUT:g} s; nothing was stored") from error
        raise DataError(f"{url}: cannot connect; is there a network?") from error
    except requests.RequestException as error:
        raise DataError(f"{url}: {str(error) or type(error).__name__}") from error
    finally:
        if bar:
            bar.close()


class _Bar:
    """A progress bar by rich with the interface that pooch expects."""

    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.progress import DownloadColumn, Progress, TextColumn

        columns = (TextColumn("{task.description}"), *Progress.get_default_columns()[1:], DownloadColumn())
        self._progress = Progress(*columns, console=Console(stderr=True))
        self._task = self._progress.add_task(title, total=None)
        self._progress.start()

    @property
    def total(self) -> int:
        return int(self._progress.tasks[self._task].total or 0)

    @total.setter
    def total(self, value: int) -> None:
        self._progress.update(self._task, total=value or None)

    def update(self, advance: int) -> None:
        self._progress.advance(self._task, advance)

    def reset(self) -> None:
        self._progress.reset(self._task)

    def close(self) -> None:
        self._progress.stop()
