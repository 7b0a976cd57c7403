"""Digits with barcodes: a number drawn into each image turns ten classes into thousands (section 3).

The class of a barcoded image is the pair (digit, code), so 10 digits and b bits give 10 * 2^b classes. Together
with the plain digits they are the paper's imbalanced vision problem: 10 classes of thousands of images and
10 240 classes of five.

Class numbering: the plain digits are classes 0..9, the barcoded ones 10 + digit * 2^b + code; without the
plain digits (`only`) the numbering starts at digit * 2^b + code. Bit j of the code is the pixel in row 0,
column j.

N images of H x W pixels, C classes, b bits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from heavytail.data import Data, Nominal, Split
from heavytail.errors import DataError, SpecError

DIGITS = 10
MAX_BITS = 16


class Labelled(NamedTuple):
    """Grey images [N, H, W] uint8 and their classes [N] int64, before standardising."""

    images: NDArray[np.uint8]
    classes: NDArray[np.int64]


def write_barcodes(images: NDArray[np.uint8], codes: NDArray[np.int64], bits: int, peak: int) -> NDArray[np.uint8]:
    """Return copies of the images with bit j of each image's code written at row 0, column j.

    Ones are pixels of the maximal value, zeros blank pixels. MNIST's corners are blank, so code 0 does not change
    its images.

    Args:
        images: [N, H, W], with W >= bits.
        codes: [N], each in 0..2^bits - 1.
        bits: length of the barcode in pixels.
        peak: the maximal pixel value.
    """
    written = images.copy()
    written[:, 0, :bits] = (codes[:, None] >> np.arange(bits) & 1) * peak
    return written


def sample_barcoded(plain: Labelled, bits: int, per_class: int, peak: int, generator: np.random.Generator) -> Labelled:
    """Return `per_class` images of every (digit, code), each barcode on a random image of its digit.

    Images are drawn with replacement. Classes are numbered digit * 2^bits + code, and the result is in class
    order.

    Raises:
        DataError: if a digit has no image to draw from.
    """
    num_codes = 2**bits
    chosen = []
    for digit in range(DIGITS):
        pool = np.flatnonzero(plain.classes == digit)
        if len(pool) == 0:
            raise DataError(f"barcodes: expected at least one image of every digit, got none of digit {digit}")
        chosen.append(pool[generator.integers(len(pool), size=num_codes * per_class)])
    classes = np.repeat(np.arange(DIGITS * num_codes), per_class)
    images = write_barcodes(plain.images[np.concatenate(chosen)], classes % num_codes, bits, peak)
    return Labelled(images, classes)


def concatenate(plain: Labelled, barcoded: Labelled) -> Labelled:
    """Return the plain digits as classes 0..9 followed by the barcoded images as classes 10 and up."""
    return Labelled(
        np.concatenate([plain.images, barcoded.images]),
        np.concatenate([plain.classes, barcoded.classes + DIGITS]),
    )


def standardise(train: Labelled, test: Labelled) -> tuple[Split, Split]:
    """Return both splits, each pixel standardised by its training mean and deviation, as inputs [N, 1, H, W] float32.

    Deviations are those of the population; constant pixels are only centred. Sums are integers and so exact.
    """
    pixels = train.images.reshape(len(train.images), -1)
    count = len(pixels)
    total = pixels.sum(0, dtype=np.int64)
    squares = np.einsum("np,np->p", pixels, pixels, dtype=np.int64)
    mean = total / count
    deviation = np.sqrt(count * squares - total**2) / count
    deviation[deviation == 0] = 1

    def split(part: Labelled) -> Split:
        inputs = torch.from_numpy(part.images).float().unsqueeze(1)
        shape = inputs.shape[1:]
        inputs -= torch.from_numpy(mean).float().view(shape)
        inputs /= torch.from_numpy(deviation).float().view(shape)
        return Split(inputs, torch.from_numpy(part.classes))

    return split(train), split(test)


def digit_data(
    train: Labelled,
    test: Labelled,
    *,
    peak: int,
    bits: int = 0,
    per_class: int = 5,
    only: bool = False,
    generator: np.random.Generator,
    info: dict[str, Any],
) -> Data:
    """Return the data set: plain if `bits` is 0, else barcoded alone (`only`) or beside the plain digits.

    The validation split is built the same way from the validation images, so it shares no image with
    training; it has a fifth as many images per barcoded class (at least one), as MNIST's validation split is
    a fifth of its training split.
    """
    num_classes, natural_groups = DIGITS, None
    if bits:
        barcoded_train = sample_barcoded(train, bits, per_class, peak, generator)
        barcoded_test = sample_barcoded(test, bits, -(-per_class // 5), peak, generator)
        num_classes = DIGITS * 2**bits
        if only:
            train, test = barcoded_train, barcoded_test
        else:
            train, test = concatenate(train, barcoded_train), concatenate(test, barcoded_test)
            natural_groups = torch.tensor([0] * DIGITS + [1] * num_classes)
            num_classes += DIGITS
    return Data(*standardise(train, test), num_classes, natural_groups, info)


def nominal_digits(side: int, train: int, test: int, bits: int = 0, per_class: int = 5, only: bool = False) -> Nominal:
    """Return the sizes of `digit_data`, without loading it, from the numbers of plain digits."""
    plain, barcoded = DIGITS * (not only or not bits), DIGITS * 2**bits * (bits > 0)
    stand_in = Split(torch.zeros(1, 1, side, side), torch.zeros(1, dtype=torch.int64))
    data = Data(stand_in, None, plain + barcoded)
    train, test = (n * (plain > 0) + barcoded * k for n, k in ((train, per_class), (test, -(-per_class // 5))))
    return Nominal(data, train, test)


def check_barcode(field: str, bits: int, per_class: int, width: int) -> None:
    """Raise SpecError unless the barcode fits into the first row and its classes can be counted."""
    limit = min(width, MAX_BITS)
    if not 1 <= bits <= limit:
        raise SpecError(f"{field}.bits: expected 1..{limit}, got {bits}")
    if per_class < 1:
        raise SpecError(f"{field}.per_class: expected at least 1, got {per_class}")
