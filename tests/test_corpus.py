"""Texts are tokenised once, in bounded memory, and what is kept can be trusted."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from heavytail.data import readers
from heavytail.data.text import corpus, tokenizer
from heavytail.data.text.corpus import Text, tokenise
from heavytail.data.text.text_file import TextFile
from heavytail.data.text.tokenizer import LearnedTokenizer, WordTokenizer, learn
from heavytail.data.text.vocabulary import basic_english, build_vocabulary
from heavytail.errors import DataError, SpecError
from heavytail.experiment.registry import Component, registry
from heavytail.experiment.spec import RunSpec
from heavytail.experiment.store import RunStore
from heavytail.files import first_writer
from heavytail.train import engine
from heavytail.train.engine import train
from tests.problems import output, python

LINES = [
    "The quick brown fox can't jump over 13 lazy dogs; it won't.\n",
    "  Two  spaces, a\ttab, and “quotes” – naïve café, 東京, 🦊.\n",
    "\n",
    "no line end",
] * 50


def write(path: Path, content: str | bytes) -> Text:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return Text((path,))


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def learned(request: pytest.FixtureRequest) -> tokenizer.Tokenizer:
    return learn(request.param, LINES, 400)


# -- tokenizers --------------------------------------------------------------------------------------------------------


@given(st.text(alphabet=st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" \n\t'aé東<>"))))
def test_learned_tokens_give_the_text_back(learned: tokenizer.Tokenizer, text: str) -> None:
    """Decoding what was encoded gives any text back, also one of characters never seen before."""
    assert learned.decode(learned.encode([text]).tolist()) == text.replace(" <unk>", "<unk>")


def test_unknown_stays_one_token(learned: tokenizer.Tokenizer) -> None:
    """`<unk>` is class 0 with the space before it, and nothing else is."""
    assert learned.encode(["a <unk> b"]).tolist().count(0) == 1
    assert 0 not in learned.encode(LINES)


def test_learned_sizes(learned: tokenizer.Tokenizer) -> None:
    """Class numbers lie below the size, which is at most the one asked for."""
    numbers = learned.encode(LINES)
    assert 256 < learned.size <= 400
    assert numbers.dtype == np.int64
    assert numbers.max() < learned.size


def test_bpe_is_reproducible() -> None:
    """The same text gives the same pieces, so that a run's key names its classes."""
    assert learn("bpe", LINES, 350).to_json() == learn("bpe", LINES, 350).to_json()


def test_words_are_those_of_the_vocabulary() -> None:
    """The streaming word tokenizer gives the classes of `build_vocabulary`."""
    words = [word for line in LINES for word in basic_english(line)]
    known = build_vocabulary(words, 20)
    found = learn("word", LINES, 20)
    assert found.size == 20
    assert found.encode(LINES).tolist() == [known.get(word, 0) for word in words]
    assert found.decode([1, 2]) == " ".join(list(known)[1:3])


@pytest.mark.parametrize("kind", ["word", "bpe", "unigram"])
def test_a_stored_tokenizer_is_the_same(kind: tokenizer.Kind, tmp_path: Path) -> None:
    """Written and read, a tokenizer gives the same classes."""
    made = learn(kind, LINES, 400)
    (tmp_path / "t.json").write_text(made.to_json())
    again = tokenizer.load(tmp_path / "t.json")
    assert isinstance(again, WordTokenizer if kind == "word" else LearnedTokenizer)
    assert again.size == made.size
    np.testing.assert_array_equal(again.encode(LINES), made.encode(LINES))


def test_a_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    """A file that is no tokenizer is an error with its path."""
    (tmp_path / "t.json").write_text("{")
    with pytest.raises(DataError, match=r"t\.json: not a readable tokenizer"):
        tokenizer.load(tmp_path / "t.json")
    (tmp_path / "t.json").write_text('{"words": ["the", "cat"]}')
    with pytest.raises(DataError, match=r"t\.json: .*: expected <unk> as the first word, got 'the'"):
        tokenizer.load(tmp_path / "t.json")


def test_a_tokenizer_without_a_token_for_the_rest_says_so() -> None:
    """Text that a finished tokenizer cannot encode is an error of one line."""
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="[UNK]"))
    with pytest.raises(DataError, match=r"the tokenizer cannot encode this text: .*UNK"):
        LearnedTokenizer(library).encode(["b"])


# -- reading -----------------------------------------------------------------------------------------------------------


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.text(alphabet="ab é東🦊\n", max_size=60), longest=st.integers(8, 20))
def test_lines_are_the_text(content: str, longest: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the length of lines, their parts make up the text, none is longer than the limit, no word is cut
    that could be kept whole, and positions count bytes."""
    monkeypatch.setattr(readers, "LONGEST", longest)
    text = write(tmp_path / "t.txt", content)
    parts = list(readers.lines(text.paths[0]))
    assert "".join(part for _, part in parts) == content
    position = 0
    for offset, part in parts:
        assert offset == position
        assert len(part.encode()) <= longest
        position += len(part.encode())
    for (_, first), (_, second) in itertools.pairwise(parts):
        assert first.endswith("\n") or second.startswith(" ") or " " not in first[1:]


def test_split_keeps_every_line_once(tmp_path: Path) -> None:
    """Both parts of a text, over several files, are all of its lines in order, and the first is about its share."""
    texts = [write(tmp_path / f"{k}.txt", f"file {k}\n" + "x\n" * 30 * k) for k in range(4)]
    whole = Text(tuple(path for text in texts for path in text.paths))
    for share in (0.1, 0.5, 0.9):
        first, second = whole.split(share)
        assert [*first.lines(), *second.lines()] == list(whole.lines())
        assert sum(map(len, first.lines())) == pytest.approx(share * whole.size, abs=8)
        assert first.size + second.size == whole.size


@pytest.mark.parametrize(("before", "bad"), [("", b"\xff"), ("one\ntwo é ", b"\xc3("), ("x" * 30, b"\xe6\x9d")])
def test_text_that_is_not_utf8_names_file_and_byte(before: str, bad: bytes, tmp_path: Path) -> None:
    """The error has the path and the position of the first wrong byte, in the second of two files too."""
    good = write(tmp_path / "good.txt", "fine\n")
    broken = write(tmp_path / "bad.txt", before.encode() + bad)
    with pytest.raises(DataError, match=rf"bad\.txt: not UTF-8 at byte {len(before.encode())}$"):
        list(Text((*good.paths, *broken.paths)).lines())


# -- what is kept ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["word", "bpe", "unigram"])
def test_a_text_is_tokenised_once(kind: tokenizer.Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time nothing is learned or encoded, and the numbers are those of the whole text encoded at once."""
    text = write(tmp_path / "t.txt", "".join(LINES))
    monkeypatch.setattr(corpus, "BATCH", 100)  # many small batches
    made, (stream,) = tokenise(text, [text], kind, 400, tmp_path / "cache")
    np.testing.assert_array_equal(stream, made.encode(list(text.lines())))

    def refuse(*_: object) -> None:
        raise AssertionError("tokenised again")

    monkeypatch.setattr(tokenizer, "learn", refuse)
    monkeypatch.setattr(WordTokenizer, "encode", refuse)
    monkeypatch.setattr(LearnedTokenizer, "encode", refuse)
    assert torch.equal(tokenise(text, [text], kind, 400, tmp_path / "cache")[1][0], stream)


def test_damaged_tokens_are_made_again(tmp_path: Path) -> None:
    """A flipped byte and a missing note are both found, and repaired from the text."""
    text = write(tmp_path / "t.txt", "".join(LINES))
    stream = tokenise(text, [text], "word", None, tmp_path / "cache")[1][0].clone()
    (file,) = (tmp_path / "cache").rglob("*.tokens")
    content = bytearray(file.read_bytes())
    content[8] ^= 1
    file.write_bytes(content)
    assert torch.equal(tokenise(text, [text], "word", None, tmp_path / "cache")[1][0], stream)
    file.with_suffix(".json").unlink()
    file.write_bytes(b"short")
    assert torch.equal(tokenise(text, [text], "word", None, tmp_path / "cache")[1][0], stream)


CACHED = "words a b c d e\n" * 30


@pytest.mark.parametrize("kind", ["word", "bpe", "unigram"])
@pytest.mark.parametrize("damage", ["flip", "delete", "empty", "foreign"])
def test_a_damaged_tokenizer_never_mixes_classes(kind: tokenizer.Kind, damage: str, tmp_path: Path) -> None:
    """Whatever happens to tokenizer.json, tokens and tokenizer agree afterwards: training and test text alike."""
    text = write(tmp_path / "t.txt", CACHED + "".join(LINES))
    other = write(tmp_path / "other.txt", "".join(LINES[::2]))
    tokenise(text, [text], kind, 400, tmp_path / "cache")
    (stored,) = (tmp_path / "cache").rglob("tokenizer.json")
    if damage == "delete":
        stored.unlink()
    else:
        content = stored.read_bytes()
        place = content.rindex(b'["' if kind == "unigram" else b"words") + 3  # one piece becomes another
        flipped = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        stored.write_bytes({"flip": flipped, "empty": b"", "foreign": b'{"words": ["<unk>", "a"]}'}[damage])
    found, streams = tokenise(text, [text, other], kind, 400, tmp_path / "cache")
    for source, stream in zip((text, other), streams, strict=True):
        np.testing.assert_array_equal(stream, found.encode(list(source.lines())))


@pytest.mark.parametrize("note", [b"", b"{", b"[]", b"{}", b"\xff", b"[" * 10_000, b'{"sha256": 3}'])
def test_a_damaged_note_is_written_again(note: bytes, tmp_path: Path) -> None:
    """A note that is not JSON, or JSON of another shape, costs a second tokenisation and no traceback."""
    text = write(tmp_path / "t.txt", CACHED)
    stream = tokenise(text, [text], "word", None, tmp_path / "cache")[1][0].clone()
    (file,) = (tmp_path / "cache").rglob("*.tokens")
    file.with_suffix(".json").write_bytes(note)
    assert torch.equal(tokenise(text, [text], "word", None, tmp_path / "cache")[1][0], stream)
    assert json.loads(file.with_suffix(".json").read_text()).keys() == {"sha256", "tokenizer"}


def test_a_cache_that_cannot_be_locked_is_an_error_of_the_data(tmp_path: Path) -> None:
    """Every fault of the cache is a DataError, so that runs on other data go on."""
    text = write(tmp_path / "t.txt", CACHED)
    tokenise(text, [text], "word", None, tmp_path / "cache")
    (lock,) = (tmp_path / "cache").rglob(".lock")
    lock.unlink()
    lock.mkdir()
    with pytest.raises(DataError, match="cannot write"):
        tokenise(text, [text], "word", None, tmp_path / "cache")


def test_caches_of_earlier_versions_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A note without the tokenizer's digest, beside a tokenizer without a checksum, is trusted as it was."""
    text = write(tmp_path / "t.txt", CACHED)
    stream = tokenise(text, [text], "word", None, tmp_path / "cache")[1][0].clone()
    (file,) = (tmp_path / "cache").rglob("*.tokens")
    note = file.with_suffix(".json")
    note.write_text(json.dumps({"sha256": json.loads(note.read_text())["sha256"]}))
    (file.parent / "tokenizer.sha256").unlink()

    def refuse(*_: object) -> None:
        raise AssertionError("tokenised again")

    monkeypatch.setattr(WordTokenizer, "encode", refuse)
    assert torch.equal(tokenise(text, [text], "word", None, tmp_path / "cache")[1][0], stream)


@pytest.mark.parametrize("content", ["", "one two three\n"])
def test_a_short_text_says_what_is_missing(content: str, tmp_path: Path) -> None:
    """An empty text, and one shorter than a sequence, are errors that name the split, its tokens and the length."""
    (tmp_path / "t.txt").write_text(content)
    with pytest.raises(DataError, match=r"t\.txt: the train split has [03] tokens, .* data\.length = 35 needs 36"):
        TextFile(path=str(tmp_path / "t.txt")).load(seed=0, data_dir=tmp_path)


def test_the_first_writer_wins(tmp_path: Path) -> None:
    """A file that another process has written meanwhile stays, whole, and nothing else is left behind."""
    target = tmp_path / "tokenizer.json"
    with first_writer(target) as stream:
        stream.write(b"late")
        target.write_bytes(b"early")
    assert target.read_bytes() == b"early"
    assert list(tmp_path.iterdir()) == [target]


WRITING = """
import sys, time
from pathlib import Path
from heavytail.experiment.spec import RunSpec
from heavytail.experiment.store import RunStore
from heavytail.files import first_writer
from heavytail.train import engine
from heavytail.train.engine import train
with first_writer(Path(sys.argv[1])) as stream:
    stream.write(b"half")
    stream.flush()
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("suffix", ["tokens", "json"])
def test_what_killed_writers_left_is_removed(suffix: str, tmp_path: Path) -> None:
    """Temporary files of a writer killed by SIGKILL go with the next writing of that file, those of a live one stay."""
    text = write(tmp_path / "text", "".join(LINES))
    _, whole = tokenise(text, [text], "word", None, tmp_path / "cache")
    (stored,) = (tmp_path / "cache").rglob(f"{text.digest[:20]}.{suffix}")
    stored.unlink()
    with python(WRITING, stored) as dead, python(WRITING, stored) as alive:
        for writer in (dead, alive):
            assert writer.stdout is not None
            assert writer.stdout.readline() == "writing\n"
        assert len(list(stored.parent.glob(f".{stored.name}.*"))) == 2
        dead.kill()
        dead.communicate()
        _, again = tokenise(text, [text], "word", None, tmp_path / "cache")
        assert len(list(stored.parent.glob(f".{stored.name}.*"))) == 1
        alive.kill()
        alive.communicate()
    assert torch.equal(again[0], whole[0])
    stored.unlink()
    tokenise(text, [text], "word", None, tmp_path / "cache")
    assert [file.name for file in stored.parent.glob(".*")] == [".lock"]


def test_the_cache_is_where_one_can_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the data, even if their folder is not there yet; in the user's cache if it is read-only."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
    assert corpus.cache_folder(tmp_path / "data" / "new") == tmp_path / "data" / "new" / "tokenised"
    another = tmp_path / "data" / "tokenised"
    another.mkdir(parents=True)
    with monkeypatch.context() as patch:  # as root, every folder can be written
        patch.setattr(corpus.os, "access", lambda path, _: path != another)
        assert corpus.cache_folder(tmp_path / "data") == tmp_path / "mine" / "heavytail" / "tokenised"
    (tmp_path / "mine" / "heavytail").mkdir(parents=True)
    monkeypatch.setattr(corpus.os, "access", lambda *_: False)  # as root, every folder can be written
    assert corpus.cache_folder(tmp_path) == tmp_path / "mine" / "heavytail" / "tokenised"


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory in KiB, as Linux does")
@pytest.mark.slow
def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    """Tokenising 16 MB takes hardly more memory than tokenising 4 MB of the same text."""
    line = "".join(LINES).replace("no line end", "a line end\n")
    code = (
        "import sys; from pathlib import Path; from benchmarks.memory import peak\n"
        "from heavytail.data.text.corpus import Text, tokenise\n"
        "small, big, cache = map(Path, sys.argv[1:])\n"
        "tokenise(Text((small,)), [Text((small,))], 'bpe', 500, cache)\n"
        "before = peak()\n"
        "tokenise(Text((small,)), [Text((big,))], 'bpe', 500, cache)\n"
        "print(int(peak() - before))"
    )
    for name, size in (("small", 4), ("big", 16)):
        (tmp_path / name).write_text(line * (size * 2**20 // len(line.encode())))
    grown = int(output(code, tmp_path / "small", tmp_path / "big", tmp_path / "cache"))
    assert grown < 30e6  # the tokens of the text alone take about 60 MB


def test_many_start_on_one_text(tmp_path: Path) -> None:
    """None takes what another has half written for damaged: all get the tokens of one."""
    text = write(tmp_path / "text", "".join(LINES) * 20)
    with ThreadPoolExecutor(8) as pool:
        for trial in range(20):
            starts = [pool.submit(tokenise, text, [text], "word", None, tmp_path / str(trial)) for _ in range(8)]
            tokens = [start.result()[1][0] for start in starts]
            assert all(torch.equal(some, tokens[0]) for some in tokens)


def test_a_link_to_a_text_is_no_change(tmp_path: Path) -> None:
    """A backup by hard links, or another mode, while a text is read does not end the reading."""
    text = write(tmp_path / "text", "one two\n")
    assert text.digest
    os.link(tmp_path / "text", tmp_path / "backup")
    (tmp_path / "text").chmod(0o600)
    assert list(text.lines()) == ["one two\n"]


@pytest.mark.parametrize("when", ["learning", "tokenising"])
def test_a_text_that_changes_while_it_is_read_is_not_cached(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens of another text than the digest's would be used for ever; the text as it was is tokenised rightly."""
    file = tmp_path / "text"
    first, other = write(file, "one two three\n" * 9), write(tmp_path / "other", "four five\n" * 9)
    _, [expected] = tokenise(first, [first], "word", None, tmp_path / "expected")
    if when == "tokenising":
        tokenise(first, [other], "word", None, tmp_path / "cache")
    text = Text((file,))
    assert text.digest == first.digest
    file.write_text("four five six\n" * 9)
    with pytest.raises(DataError, match=f"{file}: has changed while it was read"):
        tokenise(text, [text], "word", None, tmp_path / "cache")
    file.write_text("one two three\n" * 9)
    again = Text((file,))
    _, [tokens] = tokenise(again, [again], "word", None, tmp_path / "cache")
    assert torch.equal(tokens, expected)


def test_the_tokens_of_another_tokenizer_begin_a_run_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two trainings of Unigram differ. A run of the one is not continued on the tokens of the other."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcde", k=rng.randrange(2, 7))) for _ in range(300)]
    file = tmp_path / "text"
    file.write_text("\n".join(" ".join(rng.choices(words, k=8)) for _ in range(400)))
    data = {"name": "text", "path": str(file), "tokenizer": "unigram", "max_vocab": 300, "length": 5}
    table = {"data": data, "model": {"name": "transformer", "width": 8, "heads": 2}, "optim": "gd", "lr": 0.1}
    short, long = (RunSpec.from_dict({**table, "steps": steps}) for steps in (1, 2))
    store = RunStore(tmp_path / "runs")
    before = train(short, store, data_dir=tmp_path).arrays["samples"]
    engine._load.cache_clear()
    for stored in (tmp_path / "tokenised").rglob("tokenizer.json"):  # as another training would have it
        tokens = json.loads(stored.read_text())
        tokens["model"]["vocab"][-100:] = []
        stored.write_text(json.dumps(tokens))
        stored.with_suffix(".sha256").write_text(hashlib.sha256(stored.read_bytes()).hexdigest())
    history = train(long, store, data_dir=tmp_path)
    assert "its first 1 steps are of other data" in caplog.text
    assert history.resumed == []
    assert not np.array_equal(history.arrays["samples"], before)
    assert np.isfinite(history.arrays["train/loss"]).all()


def test_file_systems_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a file cannot have two names, files are written all the same, and the first one stays."""

    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    for content in (b"first", b"second"):
        with first_writer(tmp_path / "file") as stream:
            stream.write(content)
    assert (tmp_path / "file").read_bytes() == b"first"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


# -- a user's own text -------------------------------------------------------------------------------------------------


def test_a_folder_is_its_files_in_order(tmp_path: Path) -> None:
    """Hidden files are left out, the others are read by the order of their paths."""
    (tmp_path / "b").mkdir()
    for name, content in {"b/1.txt": "third\n", "a.txt": "first\n", "b.txt": "second\n", ".hidden": "no\n"}.items():
        (tmp_path / name).write_text(content)
    assert list(TextFile(path=str(tmp_path))._text().lines()) == ["first\n", "second\n", "third\n"]


def test_a_text_that_changes_is_another_run(tmp_path: Path) -> None:
    """The key of a run follows the content; a run pinned to other content refuses to load."""
    file = tmp_path / "t.txt"
    file.write_text("one two three\n" * 100)
    part = Component("text", {"path": str(file), "length": 5})
    before = registry("data").resolve(part)
    file.write_text("four five six\n" * 100)
    assert registry("data").resolve(part) != before
    with pytest.raises(DataError, match="has changed"):
        registry("data").make(before).load(seed=0, data_dir=tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "data.path: expected a text file"),
        ({"path": "x", "tokenizer": "bpe", "max_vocab": 256}, "data.max_vocab: expected at least 257"),
        ({"path": "x", "tokenizer": "bpr"}, "did you mean 'bpe'"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], message: str) -> None:
    """Errors name the field, what is allowed and what was given."""
    with pytest.raises(SpecError, match=message):
        registry("data").make(Component("text", settings))


@pytest.mark.parametrize("path", ["none.txt", "empty"])
def test_a_text_that_is_not_there_is_named(path: str, tmp_path: Path) -> None:
    """A missing file and an empty folder are errors that name them."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=path):
        TextFile(path=str(tmp_path / path)).pinned()


def test_wikitext_103_says_how_to_get_it(tmp_path: Path) -> None:
    """Without its files, the error names the command that fetches them."""
    with pytest.raises(DataError, match="heavytail data fetch wikitext-103"):
        registry("data").make(Component("wikitext-103")).load(seed=0, data_dir=tmp_path)


def test_notes_are_json(tmp_path: Path) -> None:
    """The note beside the numbers holds their sha256."""
    text = write(tmp_path / "t.txt", "a b c\n")
    tokenise(text, [text], "word", None, tmp_path / "cache")
    (note,) = [f for f in (tmp_path / "cache").rglob("*.json") if f.name != "tokenizer.json"]
    assert len(json.loads(note.read_text())["sha256"]) == 64
