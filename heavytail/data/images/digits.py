"""scikit-learn's handwritten digits, 8 x 8 pixels, plain and barcoded: a substitute for MNIST without a download.

A seeded permutation splits the 1 797 images into 1 500 for training and 297 for validation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from heavytail.data import REGISTRY, Data
from heavytail.data.images.barcode import Labelled, check_barcode, digit_data
from heavytail.errors import DataError, install

SIDE = 8
PEAK = 16
TRAIN = 1_500


@REGISTRY.register("digits")
@dataclass(frozen=True)
class Digits:
    """Ten digits and, with `bits` > 0, barcodes that replace the first pixels of the top row.

    Attributes:
        bits: length of the barcode, at most 8; 0 for the plain digits.
        per_class: images of each barcoded class.
        only: leave the plain digits out.
    """

    bits: int = 0
    per_class: int = 5
    only: bool = False

    small: ClassVar[dict[str, Any]] = {"bits": 2}

    def __post_init__(self) -> None:
        if self.bits:
            check_barcode("data", self.bits, self.per_class, SIDE)

    @property
    def title(self) -> str:
        """Name of the data set in figures."""
        return ("barcoded digits" if self.only else "digits+Barcoded") if self.bits else "digits"

    def load(self, *, seed: int, data_dir: Path) -> Data:
        """Return scikit-learn's data set; `data_dir` is not used."""
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise DataError(f"data 'digits' needs scikit-learn; {install('lab')}") from None
        pixels, labels = load_digits(return_X_y=True)
        images = pixels.reshape(-1, SIDE, SIDE).astype(np.uint8)
        classes = labels.astype(np.int64)
        order = np.random.default_rng([seed, *b"digits split"]).permutation(len(images))
        train, test = order[:TRAIN], order[TRAIN:]
        return digit_data(
            Labelled(images[train], classes[train]),
            Labelled(images[test], classes[test]),
            peak=PEAK,
            bits=self.bits,
            per_class=self.per_class,
            only=self.only,
            generator=np.random.default_rng([seed, *b"digits barcodes"]),
            info={"source": "scikit-learn digits", "originals": TRAIN},
        )
