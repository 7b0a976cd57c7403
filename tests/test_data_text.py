"""Text becomes words, classes and sequences by the paper's rules."""

from __future__ import annotations

import doctest
import platform
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import heavytail.data.text.vocabulary
from heavytail.data import Data
from heavytail.data.text.ptb import PTB, TinyPTB
from heavytail.data.text.stdlib_text import StdlibText, _files
from heavytail.data.text.vocabulary import (
    basic_english,
    basic_english_utf8,
    build_vocabulary,
    cut_sequences,
    encode,
)
from heavytail.errors import DataError, SpecError
from heavytail.experiment.registry import Component, registry
from tests.reference import data as naive

NOWHERE = Path("no-such-folder")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (" pierre <unk> N years old will join the board ", "pierre <unk> n years old will join the board"),
        ("it's Mr. Vinken's", "it ' s mr . vinken ' s"),
        ('he said: "No (really?!)"; then left', "he said no ( really ? ! ) then left"),
        ('a"b', "ab"),
        ("U.S. $1,000 co-op @-@ x/y", "u . s . $1 , 000 co-op @-@ x/y"),
        ("\t \n", ""),
    ],
)
def test_normalisation_by_hand(line: str, words: str) -> None:
    """Lines worked by hand."""
    assert basic_english(line) == words.split()


@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from("'\".,()!?;: aA\n<>"))))
def test_normalisation_equals_the_rules_applied_one_by_one(line: str) -> None:
    """Any text gives the words that the rules give when applied in turn."""
    assert basic_english(line) == naive.basic_english(line)


SPACES = "".join(chr(k) for k in range(sys.maxunicode + 1) if chr(k).isspace())


@given(
    st.text(alphabet=st.one_of(st.characters(codec=None), st.sampled_from(SPACES + "'\".,()!?;:aBÉİΣß\ud800\u200b")))
)
def test_words_in_utf8_are_the_same_words(text: str) -> None:
    """White space of every kind, half surrogates, marks, and letters that change length when lower-cased."""
    assert [word.decode("utf-8", "surrogatepass") for word in basic_english_utf8(text)] == basic_english(text)


@given(st.lists(st.sampled_from(["<unk>", "a", "b", "c", "dd", "e"]), max_size=30), st.integers(2, 8))
def test_vocabulary_order(words: list[str], size: int) -> None:
    """`<unk>` is class 0 even if the text has it; the others come by count, then alphabetically; the rest is cut."""
    ranked = naive.vocabulary(words)
    assert list(build_vocabulary(words)) == ranked
    kept = build_vocabulary(words, size)
    assert list(kept.items()) == [(word, k) for k, word in enumerate(ranked[:size])]
    assert encode(words, kept).tolist() == [ranked.index(w) if w in ranked[:size] else 0 for w in words]


@given(st.lists(st.integers(0, 9), max_size=40), st.integers(1, 9))
def test_sequences_predict_the_next_word(stream: list[int], length: int) -> None:
    """Inputs and targets are those of a walk through the stream, without the incomplete tail."""
    split = cut_sequences(torch.tensor(stream, dtype=torch.int64), length)
    pairs = list(zip(split.inputs.tolist(), split.targets.tolist(), strict=True))
    assert pairs == naive.sequences(stream, length)
    assert split.inputs.shape == split.targets.shape == (len(pairs), length)


def test_doctests() -> None:
    """The examples of the docstrings are right."""
    assert doctest.testmod(heavytail.data.text.vocabulary).failed == 0


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"length": 0}, "data.length"),
        ({"max_tokens": 35}, "data.max_tokens"),
        ({"max_vocab": 1}, "data.max_vocab"),
        ({"vocabulary": "some"}, "data.vocabulary"),
        ({"python": "3"}, "setting of data set ptb: 'python'"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, object], field: str) -> None:
    """A setting out of range or unknown is a SpecError of one line that names it."""
    with pytest.raises(SpecError, match=field) as caught:
        registry("data").make(Component("ptb", settings))
    assert "\n" not in str(caught.value)


def test_missing_files_name_the_command(tmp_path: Path) -> None:
    """Without the files, one line names the file, the folder and the command that fetches it."""
    for recipe in (PTB(), TinyPTB()):
        with pytest.raises(DataError) as caught:
            recipe.load(seed=0, data_dir=tmp_path)
        message = str(caught.value)
        assert "ptb/ptb." in message
        assert f"not found in {tmp_path};" in message
        assert message.endswith(f"run: heavytail data fetch ptb --data-dir {tmp_path}")
        assert "\n" not in message


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    """A file with another content is never read as PTB."""
    (tmp_path / "ptb").mkdir()
    (tmp_path / "ptb" / "ptb.train.txt").write_text(" no it was n't black monday \n")
    with pytest.raises(DataError, match=r"ptb\.train\.txt has the wrong hash"):
        PTB().load(seed=0, data_dir=tmp_path)


@pytest.fixture(scope="module")
def ptb(data_dir: Path) -> Data:
    return PTB().load(seed=0, data_dir=data_dir)


def test_ptb_has_9922_types(ptb: Data, data_dir: Path) -> None:
    """The rules give 9 922 types and 924 412 words on the public files, where the paper prints 9 920 types."""
    text = (data_dir / "ptb" / "ptb.train.txt").read_text("utf-8")
    words = [word for line in text.splitlines() for word in naive.basic_english(line)]
    assert ptb.num_classes == 9_922 == len(set(words))
    assert ptb.info["tokens"] == len(words) == 924_412
    assert ptb.train.inputs.shape == ((len(words) - 1) // 35, 35)
    types = list(build_vocabulary(words))
    assert types[:3] == ["<unk>", "the", "n"]
    assert [types[k] for k in ptb.train.inputs[:3].flatten()] == words[:105]
    assert [types[k] for k in ptb.train.targets[-1]] == words[len(ptb.train) * 35 - 34 : len(ptb.train) * 35 + 1]


def test_tiny_ptb_uses_the_classes_of_ptb(ptb: Data, data_dir: Path) -> None:
    """TinyPTB has PTB's classes and, as text, the validation split to train on and the test split to test on."""
    tiny = TinyPTB().load(seed=0, data_dir=data_dir)
    assert tiny.num_classes == ptb.num_classes
    assert ptb.test is not None
    assert torch.equal(tiny.train.targets, ptb.test.targets)
    assert tiny.test is not None
    assert len(tiny.test) > len(tiny.train)


def test_a_small_scale_can_drop_the_classes_that_never_occur(data_dir: Path) -> None:
    """With `seen`, only `<unk>` could be without a training word; with a cut vocabulary, the rest is `<unk>`."""
    seen = TinyPTB(max_tokens=4_000, vocabulary="seen").load(seed=0, data_dir=data_dir)
    words = naive.basic_english((data_dir / "ptb" / "ptb.valid.txt").read_text("utf-8"))[:4_000]
    assert seen.num_classes == len({"<unk>", *words})
    assert seen.info["tokens"] == 4_000
    cut = TinyPTB(max_tokens=4_000, max_vocab=100).load(seed=0, data_dir=data_dir)
    assert cut.num_classes == 100
    assert cut.info["unknown_share"] > seen.info["unknown_share"]
    full = TinyPTB(max_tokens=4_000).load(seed=0, data_dir=data_dir)
    changed = cut.train.targets != full.train.targets
    assert (full.train.targets[changed] >= 100).all()
    assert (cut.train.targets[changed] == 0).all()


def test_stdlib_text_is_heavy_tailed() -> None:
    """At the defaults the slope of log frequency on log rank over ranks 10..1 000 is in the range of figure 9."""
    counts = StdlibText().load(seed=0, data_dir=NOWHERE).counts.double().sort(descending=True).values[9:1_000]
    x, y = torch.arange(10, 10 + len(counts)).double().log(), counts.log()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
    assert -1.3 <= slope.item() <= -0.7


def test_stdlib_text_unknown_words_are_not_the_main_class() -> None:
    """At the defaults the words outside the vocabulary are not made the most frequent class."""
    data = StdlibText().load(seed=0, data_dir=NOWHERE)
    assert data.counts.argmax() != 0
    assert 0 < data.info["unknown_share"] < 0.1


def test_stdlib_text_splits_by_position() -> None:
    """The first nine tenths of the words are the training text and alone decide the classes."""
    data = StdlibText(length=10, max_tokens=2_000, max_vocab=None).load(seed=0, data_dir=NOWHERE)
    library = Path(doctest.__file__).parent
    ordered = sorted(str(path.relative_to(library)) for path in _files(library))
    words = [w for name in ordered[:9] for w in naive.basic_english((library / name).read_text("utf-8"))][:2_000]
    types = naive.vocabulary(words[:1_800])
    assert data.num_classes == len(types)
    assert [types[k] for k in data.train.targets.flatten()] == words[1 : len(data.train) * 10 + 1]
    assert data.test is not None
    expected = [w if w in types else "<unk>" for w in words[1_801 : 1_801 + len(data.test) * 10]]
    assert [types[k] for k in data.test.targets.flatten()] == expected


def test_stdlib_text_takes_nothing_that_differs_between_installations() -> None:
    """No site hook, build settings, private module, test or third-party package is part of the text."""
    library = Path(doctest.__file__).parent
    names = {path.relative_to(library).as_posix() for path in _files(library)}
    assert {"argparse.py", "json/decoder.py"} <= names
    tops = {name.split("/")[0].removesuffix(".py") for name in names}
    assert tops <= sys.stdlib_module_names
    assert not tops & {"idlelib", "lib2to3", "test", "tkinter", "turtledemo", "sitecustomize"}
    assert not [n for n in names if n.startswith("_") or "/test/" in n or "site-packages" in n]


def test_stdlib_text_is_pinned_to_a_python_version() -> None:
    """`resolve` names the running version; loading the text of another version is refused."""
    resolved = registry("data").resolve(Component("stdlib-text"))
    assert resolved.params["python"] == platform.python_version()
    pinned = registry("data").make(Component("stdlib-text", {"python": "2.7.18"}))
    assert pinned.pinned() == pinned
    with pytest.raises(DataError, match=r"data\.python: expected the running Python \S+, got 2\.7\.18"):
        pinned.load(seed=0, data_dir=NOWHERE)
