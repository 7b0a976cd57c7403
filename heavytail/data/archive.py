"""Read the files of a tar or zip archive into memory; nothing is extracted to disk.

Members that suggest an attack or a damaged archive are errors all the same.
"""

from __future__ import annotations

import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from heavytail.errors import DataError

LARGEST = 64 * 2**20  # bytes of one member, unpacked
TOTAL = 8 * 2**30  # bytes of all members read, unpacked
HEADERS = 2**20  # bytes of the extended headers (pax) of one member


def read_members(archive: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the bytes of each wanted file, in the order of the archive.

    Args:
        archive: a .zip, .tar or compressed .tar file.
        wanted: returns whether to read the file of a name; others are not unpacked.

    Raises:
        DataError: the archive is unreadable, or a member is a link or a device, has a path that leaves the archive, or
            is larger than LARGEST, or the members read are larger than TOTAL together.
    """
    total = 0
    try:
        for name, content in (_zip_members if zipfile.is_zipfile(archive) else _tar_members)(archive, wanted):
            total += len(content)
            if total > TOTAL:
                raise DataError(f"{archive}: refused, its members have more than {TOTAL} bytes together")
            yield name, content
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, zlib.error, lzma.LZMAError, RuntimeError) as error:
        raise DataError(f"{archive}: not a readable archive ({error or type(error).__name__})") from None


class _Member(tarfile.TarInfo):
    """A member with a limit on its extended headers, which tarfile reads into memory whole."""

    def _proc_pax(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        self._bound()
        return super()._proc_pax(archive)  # type: ignore[misc,no-any-return]

    def _proc_gnulong(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        self._bound()
        return super()._proc_gnulong(archive)  # type: ignore[misc,no-any-return]

    def _bound(self) -> None:
        if self.size > HEADERS:
            raise tarfile.ReadError(f"refused, a member's extended headers have {self.size} bytes")


def _tar_members(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path, "r|*", tarinfo=_Member) as archive:
        for member in archive:
            _check(path, member.name, member.size, member.isfile(), member.isdir())
            if member.isfile() and wanted(member.name):
                stream = archive.extractfile(member)
                assert stream is not None
                yield member.name, stream.read()


def _zip_members(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where the archive was not made on Unix
            _check(path, member.filename, member.file_size, kind in (0, stat.S_IFREG), member.is_dir())
            if not member.is_dir() and wanted(member.filename):
                yield member.filename, archive.read(member)


def _check(archive: Path, name: str, size: int, is_file: bool, is_folder: bool) -> None:
    parts = name.replace("\\", "/").split("/")
    if parts[0] == "" or ".." in parts or ":" in parts[0]:
        raise DataError(f"{archive}: refused, member {name!r} has a path outside the archive")
    if not (is_file or is_folder):
        raise DataError(f"{archive}: refused, member {name!r} is neither a file nor a folder")
    if size > LARGEST:
        raise DataError(f"{archive}: refused, member {name!r} has {size} bytes, expected at most {LARGEST}")
