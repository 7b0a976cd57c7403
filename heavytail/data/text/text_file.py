"""A user's own text: a file, or every file of a folder.

N sequences of L tokens, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from heavytail.data import REGISTRY, Data, readers
from heavytail.data.text.corpus import Text, tokenised_data
from heavytail.data.text.vocabulary import TextSettings
from heavytail.errors import DataError, SpecError
from heavytail.files import expanded

_TRAIN_SHARE = 0.9  # of the bytes, rounded to whole lines


@REGISTRY.register("text")
@dataclass(frozen=True)
class TextFile(TextSettings):
    """UTF-8 text of any size: the first nine tenths for training and for learning the tokenizer, the rest for testing.

    Attributes:
        path: a file, or a folder, whose files are read in the order of their paths (hidden ones are left out);
            relative to the current folder, `~` understood.
        sha256: of the text, checked on loading; "" is filled in by `pinned`, so that a run's key follows the content.
        length, max_tokens, max_vocab, tokenizer: see TextSettings.
    """

    path: str = ""
    sha256: str = ""

    small: ClassVar[dict[str, Any]] = {"path": "text.txt", "length": 10}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path:
            raise SpecError("data.path: expected a text file or a folder of them, got none")

    def pinned(self) -> TextFile:
        """Return the recipe with the digest of the current text; DataError if it cannot be read."""
        return replace(self, sha256=self.sha256 or self._text().digest)

    @property
    def title(self) -> str:
        """Name of the data set in figures."""
        return Path(self.path).name

    def load(self, *, seed: int, data_dir: Path) -> Data:
        """Return the data; deterministic. DataError names the fault of the text in one line."""
        text = self._text()
        if self.sha256 and text.digest != self.sha256:
            raise DataError(f"data.path: {self.path} has changed: expected sha256 {self.sha256}, got {text.digest}")
        train, test = text.split(_TRAIN_SHARE)
        return tokenised_data(self, Path(self.path).name, train, test, data_dir, known=train)

    def _text(self) -> Text:
        files = readers.list_files(expanded(self.path)).files
        readers.require_one_kind(Path(self.path), files)
        return Text(tuple(files))
