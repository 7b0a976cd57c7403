"""MNIST, plain and barcoded (section 3, figures 2, 14, 19-22).

A seeded permutation splits MNIST's 60 000 training images into 50 000 for training and 10 000 for validation;
MNIST's own test images are not used. Inputs are [N, 1, 28, 28], standardised per pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from heavytail.data import REGISTRY, Data, Nominal
from heavytail.data.fetch import read
from heavytail.data.images.barcode import Labelled, check_barcode, digit_data, nominal_digits
from heavytail.errors import SpecError

SIDE = 28
PEAK = 255
TRAIN = 50_000


@REGISTRY.register("mnist")
@dataclass(frozen=True)
class Mnist:
    """The ten digits; `samples` training images (50 000 if None) and a fifth as many for validation."""

    samples: int | None = None

    title: ClassVar[str] = "MNIST"
    small: ClassVar[dict[str, Any]] = {"samples": 200}

    def __post_init__(self) -> None:
        check_samples(self.samples)

    def load(self, *, seed: int, data_dir: Path) -> Data:
        """Read the files from `data_dir`/mnist."""
        return _load(data_dir, seed, self.samples)

    def nominal(self) -> Nominal:
        """Return the sizes of the data set, without loading it."""
        return nominal_digits(SIDE, *_sizes(self.samples))


@REGISTRY.register("barcoded-mnist")
@dataclass(frozen=True)
class BarcodedMnist:
    """MNIST's digits crossed with barcodes: 10 240 classes of 5, alone or beside the 50 000 originals.

    Barcode 0 does not change an image, so 10 of the barcoded classes hold plain digits. They count as barcoded, as in
    the paper.

    Attributes:
        bits: length of the barcode; 10 * 2^bits barcoded classes.
        per_class: images of each barcoded class.
        only: leave the originals out ("Barcoded only").
        samples: number of originals, from which barcoded images are drawn too; 50 000 if None.
    """

    bits: int = 10
    per_class: int = 5
    only: bool = False
    samples: int | None = None

    small: ClassVar[dict[str, Any]] = {"bits": 2, "samples": 200}

    def __post_init__(self) -> None:
        check_barcode("data", self.bits, self.per_class, SIDE)
        check_samples(self.samples)

    @property
    def title(self) -> str:
        """Name of the data set in figures."""
        return "barcoded MNIST" if self.only else "MNIST+Barcoded"

    def load(self, *, seed: int, data_dir: Path) -> Data:
        """Read the files from `data_dir`/mnist and draw the barcodes."""
        return _load(data_dir, seed, self.samples, self.bits, self.per_class, self.only)

    def nominal(self) -> Nominal:
        """Return the sizes of the data set, without loading it."""
        return nominal_digits(SIDE, *_sizes(self.samples), self.bits, self.per_class, self.only)


def check_samples(samples: int | None, most: int = TRAIN) -> None:
    """Raise SpecError unless `samples` is None or one of 1..most."""
    if samples is not None and not 1 <= samples <= most:
        raise SpecError(f"data.samples: expected 1..{most}, got {samples}")


def _sizes(samples: int | None) -> tuple[int, int]:
    """Number of training originals, and a fifth as many for validation."""
    samples = TRAIN if samples is None else samples
    return samples, -(-samples // 5)


def _load(
    data_dir: Path, seed: int, samples: int | None, bits: int = 0, per_class: int = 0, only: bool = False
) -> Data:
    images = parse_idx(read("mnist/train-images-idx3-ubyte.gz", data_dir))
    labels = parse_idx(read("mnist/train-labels-idx1-ubyte.gz", data_dir)).astype(np.int64)
    train_size, test_size = _sizes(samples)
    order = np.random.default_rng([seed, *b"mnist split"]).permutation(len(images))
    train, test = order[:train_size], order[TRAIN : TRAIN + test_size]
    return digit_data(
        Labelled(images[train], labels[train]),
        Labelled(images[test], labels[test]),
        peak=PEAK,
        bits=bits,
        per_class=per_class,
        only=only,
        generator=np.random.default_rng([seed, *b"mnist barcodes"]),
        info={"source": "MNIST", "originals": train_size},
    )


def parse_idx(raw: bytes) -> NDArray[np.uint8]:
    """Return the array in the bytes of an idx file: 0, 0, type (8: bytes), number of axes, their lengths, the entries.

    >>> parse_idx(bytes([0, 0, 8, 2, 0, 0, 0, 1, 0, 0, 0, 3, 7, 8, 9]))
    array([[7, 8, 9]], dtype=uint8)
    """
    ndim = raw[3]
    shape = np.frombuffer(raw, ">u4", ndim, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * ndim).reshape(shape)
