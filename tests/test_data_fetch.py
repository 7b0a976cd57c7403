"""Public files arrive whole and with the right digest, or not at all: against a real server on the loopback device."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import socket
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from heavytail.cli import main
from heavytail.data import fetch
from heavytail.data.fetch import Archive, PublicDataset, PublicFile, State
from heavytail.errors import DataError, SpecError

CONTENT = b"no it was n't black monday\n" * 20_000  # some hundred chunks


class Server:
    """A web server over a folder; the paths in `cut` end after half of what they announce."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cut: set[str] = set()
        self.requests: list[str] = []
        server = self

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append(self.path)
                if self.path not in server.cut:
                    return super().do_GET()
                content = (folder / self.path.lstrip("/")).read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2])
                return None

            def log_message(self, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HEAVYTAIL_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "served"
    folder.mkdir()
    with Server(folder) as running:
        yield running


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


Publish = Callable[..., None]


@pytest.fixture
def publish(server: Server, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Add a data set `sample` of files {path: content} that are published on the server under their names."""

    def add(contents: dict[str, bytes], **changes: object) -> None:
        made = []
        for path, content in contents.items():
            (server.folder / Path(path).name).write_bytes(content)
            settings = {"digest": sha256(content), "urls": (f"{server.url}/{Path(path).name}",)} | changes
            made.append(PublicFile(path, **settings))  # type: ignore[arg-type]
        monkeypatch.setitem(fetch.DATASETS, "sample", PublicDataset("sample", "", tuple(made)))  # type: ignore[arg-type]

    return add


def everything_in(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def refused(data_dir: Path, match: str, **settings: str) -> None:
    """Fetching fails with one line, and leaves no file behind."""
    with pytest.raises(DataError, match=match) as caught:
        fetch.fetch("sample", data_dir, **settings)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert everything_in(data_dir) == []


def test_a_file_is_fetched_once(server: Server, publish: Publish, tmp_path: Path) -> None:
    """What is fetched has the right content; what is there is not fetched again."""
    publish({"s/a.txt": CONTENT, "s/b.txt": b"b"})
    data = tmp_path / "new" / "data"
    paths = fetch.fetch("sample", data)
    assert [path.read_bytes() for path in paths] == [CONTENT, b"b"]
    assert everything_in(data) == ["s/a.txt", "s/b.txt"]
    fetch.fetch("sample", data)
    assert server.requests == ["/a.txt", "/b.txt"]
    assert fetch.locate("s/a.txt", data) == data / "s" / "a.txt"
    assert fetch.read("s/b.txt", data) == b"b"


def test_only_what_is_missing_or_wrong_is_fetched(server: Server, publish: Publish, tmp_path: Path) -> None:
    """`status` tells present, missing and wrong files apart; fetching replaces the last two; then `verify` agrees."""
    publish({"s/a.txt": b"a", "s/b.txt": b"b", "s/c.txt": b"c"})
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "a.txt").write_bytes(b"a")
    (tmp_path / "s" / "b.txt").write_bytes(b"not b")
    assert [f.state for f in fetch.status("sample", tmp_path)] == [State.PRESENT, State.WRONG_HASH, State.MISSING]
    with pytest.raises(DataError, match=r"s/b\.txt has the wrong hash in .*; run: heavytail data fetch sample"):
        fetch.verify("sample", tmp_path)
    fetch.fetch("sample", tmp_path)
    assert server.requests == ["/b.txt", "/c.txt"]
    fetch.verify("sample", tmp_path)


def test_wrong_content_is_not_kept(publish: Publish, tmp_path: Path) -> None:
    """A file with another digest is refused; what lay in its place stays as it was."""
    publish({"s/a.txt": CONTENT}, digest=sha256(b"something else"))
    refused(tmp_path / "data", "wrong hash, expected sha256:.*, got sha256:.*; nothing was stored")
    place = tmp_path / "data" / "s" / "a.txt"
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(b"old")
    with pytest.raises(DataError):
        fetch.fetch("sample", tmp_path / "data")
    assert place.read_bytes() == b"old"


def test_a_cut_connection_keeps_nothing(server: Server, publish: Publish, tmp_path: Path) -> None:
    """A server that closes half way is reported as such."""
    publish({"s/a.txt": CONTENT})
    server.cut.add("/a.txt")
    refused(tmp_path / "data", "the connection was cut before the end")


def test_a_missing_page_is_reported(server: Server, publish: Publish, tmp_path: Path) -> None:
    """A 404 answer is named."""
    publish({"s/a.txt": CONTENT})
    (server.folder / "a.txt").unlink()
    refused(tmp_path / "data", "the server answered 404")


def test_no_network_is_reported(publish: Publish, tmp_path: Path) -> None:
    """Nobody listens on the port."""
    with socket.socket() as taken:  # bound but not listening: connections to it are refused
        taken.bind(("127.0.0.1", 0))
        publish({"s/a.txt": CONTENT}, urls=(f"http://127.0.0.1:{taken.getsockname()[1]}/a.txt",))
        refused(tmp_path / "data", "cannot connect")


def test_the_next_address_is_tried(server: Server, publish: Publish, tmp_path: Path) -> None:
    """A dead address, then a wrong file, then the right one."""
    publish({"s/a.txt": b"a"}, urls=tuple(f"{server.url}/{name}" for name in ("gone", "wrong", "a.txt")))
    (server.folder / "wrong").write_bytes(b"b")
    (path,) = fetch.fetch("sample", tmp_path / "data")
    assert path.read_bytes() == b"a"
    assert server.requests == ["/gone", "/wrong", "/a.txt"]


@pytest.mark.parametrize("by_environment", [True, False])
def test_a_mirror_replaces_the_public_address(
    server: Server,
    publish: Publish,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    by_environment: bool,
) -> None:
    """A mirror laid out like the data folder is used alone, also for files with no public address."""
    publish({"s/a.txt": b"a"}, urls=())
    with pytest.raises(DataError, match="no public address; set HEAVYTAIL_MIRROR"):
        fetch.fetch("sample", tmp_path / "data")
    (server.folder / "m" / "s").mkdir(parents=True)
    (server.folder / "m" / "s" / "a.txt").write_bytes(b"a")
    mirror = f"{server.url}/m/"
    if by_environment:
        monkeypatch.setenv("HEAVYTAIL_MIRROR", mirror)
    fetch.fetch("sample", tmp_path / "data", None if by_environment else mirror)
    assert server.requests == ["/m/s/a.txt"]


def test_gzipped_files_are_known_by_what_is_inside(server: Server, publish: Publish, tmp_path: Path) -> None:
    """Any packing of the right bytes is right, also none; a damaged one is not."""
    publish({"s/a.gz": gzip.compress(b"pixels", 9, mtime=0)}, digest=sha256(b"pixels"), unpacked=True)
    data = tmp_path / "data"
    (path,) = fetch.fetch("sample", data)
    assert fetch.read("s/a.gz", data) == b"pixels"
    path.write_bytes(gzip.compress(b"pixels", 1, mtime=1))
    fetch.verify("sample", data)
    path.write_bytes(gzip.compress(b"pixels", mtime=0)[:-5])
    assert fetch.status("sample", data)[0].state is State.WRONG_HASH
    path.unlink()
    path.with_suffix("").write_bytes(b"pixels")
    assert fetch.locate("s/a.gz", data) == data / "s" / "a"
    assert fetch.read("s/a.gz", data) == b"pixels"


def test_files_of_an_archive_come_with_one_download(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each member lands in its place, the archive in none; a member that is not there is an error."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("w/a", b"a")
        archive.writestr("w/b", b"b")
    (server.folder / "w.zip").write_bytes(packed.getvalue())
    source = Archive((f"{server.url}/w.zip",), sha256(packed.getvalue()))
    members = [PublicFile(f"s/{n}", sha256(n.encode()), archive=source, member=f"w/{n}") for n in "abc"]
    monkeypatch.setitem(fetch.DATASETS, "sample", PublicDataset("sample", "", tuple(members[:2])))  # type: ignore[arg-type]
    fetch.fetch("sample", tmp_path / "data")
    assert everything_in(tmp_path / "data") == ["s/a", "s/b"]
    assert server.requests == ["/w.zip"]
    monkeypatch.setitem(fetch.DATASETS, "sample", PublicDataset("sample", "", tuple(members[2:])))  # type: ignore[arg-type]
    refused(tmp_path / "other", "w/c in .*: no such member")


def test_an_unwritable_folder_is_reported(publish: Publish, tmp_path: Path) -> None:
    """A folder that cannot be written is an error of one line, unless everything is there."""
    publish({"s/a.txt": b"a"})
    fetch.fetch("sample", tmp_path / "full")
    (tmp_path / "full").chmod(0o500)
    if os.access(tmp_path / "full", os.W_OK):
        pytest.skip("this user can write everywhere")
    fetch.fetch("sample", tmp_path / "full")
    (tmp_path / "empty").mkdir(0o500)
    refused(tmp_path / "empty", "cannot write to .*empty: Permission denied")


def test_a_file_in_the_way_of_the_folder_is_reported(publish: Publish, tmp_path: Path) -> None:
    """A data folder that is a file is an error of one line."""
    publish({"s/a.txt": b"a"})
    (tmp_path / "data").write_bytes(b"")
    with pytest.raises(DataError, match=r"cannot write to .*data: File exists"):
        fetch.fetch("sample", tmp_path / "data")


def test_unknown_names_suggest_the_nearest(tmp_path: Path) -> None:
    """A misspelt data set or file gets the nearest name."""
    with pytest.raises(SpecError, match="did you mean 'wikitext-2'"):
        fetch.status("wikitext2", tmp_path)
    with pytest.raises(SpecError, match=r"did you mean 'ptb/ptb\.train\.txt'"):
        fetch.locate("ptb/train.txt", tmp_path)


def test_the_catalogue_is_well_formed() -> None:
    """Digests have the length of their algorithm, URLs a host, paths stay in the folder and have one digest each."""
    digests: dict[str, str] = {}
    for dataset in fetch.DATASETS.values():
        for file in dataset.files:
            assert not Path(file.path).is_absolute()
            assert ".." not in Path(file.path).parts
            assert digests.setdefault(file.path, file.digest) == file.digest
            assert bool(file.member) == (file.archive is not None)
            for source in (file, *([file.archive] if file.archive else [])):
                algorithm, _, value = source.digest.partition(":")
                assert len(bytes.fromhex(value)) == hashlib.new(algorithm).digest_size
                assert all(urlsplit(url).hostname and urlsplit(url).scheme for url in source.urls)


def test_the_real_files_are_those_of_the_catalogue(data_dir: Path) -> None:
    """Every file in the data folder has the digest and the size of its entry."""
    found = [f for name in fetch.DATASETS for f in fetch.status(name, data_dir) if f.state is not State.MISSING]
    assert found
    for f in found:
        assert f.state is State.PRESENT, f.path
        assert f.file.size in (None, len(fetch.read(f.file.path, data_dir)))


def test_real_files_from_a_mirror(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data folder itself, served, is a mirror: PTB and MNIST fetched from it verify."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server(data_dir) as mirror:
        for name in ("ptb", "mnist"):
            fetch.fetch(name, tmp_path, mirror.url, progress=False)
            fetch.verify(name, tmp_path)


# -- the command -----------------------------------------------------------------------------------------------------


def test_one_failure_does_not_stop_the_other_data_sets(
    server: Server,
    publish: Publish,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`data fetch` tries every data set, shows size and note before, reports each failure and exits with 2."""
    publish({"s/a.txt": CONTENT})
    (file,) = fetch.DATASETS["sample"].files
    good = PublicDataset("good", "a note (a licence)", (replace(file, size=len(CONTENT)),))
    lost = PublicDataset("lost", "", (replace(file, path="s/lost.txt", urls=(f"{server.url}/none",)),))
    unpublished = PublicDataset("mirror-only", "", (replace(file, path="s/m.txt", urls=()),))
    monkeypatch.setattr(fetch, "DATASETS", {"mirror-only": unpublished, "lost": lost, "good": good})
    folder = tmp_path / "new"
    assert main(["data", "fetch", "--data-dir", str(folder)]) == 2
    printed = capsys.readouterr()
    assert (folder / "s" / "a.txt").read_bytes() == CONTENT
    assert "good: a note (a licence); 0.5 MB" in printed.out
    assert printed.err.count("\n") == 1
    assert "404" in printed.err
    assert main(["data", "fetch", "mirror-only", "--data-dir", str(folder)]) == 2
    assert "HEAVYTAIL_MIRROR" in capsys.readouterr().err


def test_a_failed_fetch_leaves_no_folders(server: Server, publish: Publish, tmp_path: Path) -> None:
    """Nothing stays in the data folder when the only file cannot be fetched."""
    publish({"s/a.txt": CONTENT})
    (server.folder / "a.txt").unlink()
    with pytest.raises(DataError, match="404"):
        fetch.fetch("sample", tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_what_a_killed_download_left_is_removed(publish: Publish, tmp_path: Path) -> None:
    """The next fetch removes abandoned scratch folders, and leaves alone those that a process still locks."""
    publish({"s/a.txt": CONTENT})
    folder = tmp_path / "data"
    for name in (".fetch-dead", ".fetch-busy"):
        (folder / name).mkdir(parents=True)
        (folder / name / "file").write_bytes(b"part")
    with fetch._locked(folder / ".fetch-busy"):
        fetch.fetch("sample", folder)
    assert sorted(path.name for path in folder.iterdir()) == [".fetch-busy", "s"]


def test_a_stalled_server_is_not_taken_for_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that sends half and then nothing is reported as stalled."""
    monkeypatch.setattr(fetch, "_TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/a.txt"

        def stall() -> None:
            with listener.accept()[0] as client:
                client.recv(4096)
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")
                done.wait(10)

        done = threading.Event()
        thread = threading.Thread(target=stall)
        thread.start()
        file = PublicFile("s/a.txt", "sha256:0", (url,))
        monkeypatch.setitem(fetch.DATASETS, "sample", PublicDataset("sample", "", (file,)))  # type: ignore[arg-type]
        try:
            with pytest.raises(DataError, match=r"no data for 0\.3 s|no answer within 0\.3 s"):
                fetch.fetch("sample", tmp_path / "data")
        finally:
            done.set()
            thread.join()
