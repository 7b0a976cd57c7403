"""Barcoded digits one image and one pixel at a time."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def write_barcode(image: list[list[int]], code: int, bits: int, peak: int) -> list[list[int]]:
    """Return the image with the binary digits of the code, units first, in its first row."""
    rows = [list(row) for row in image]
    for column in range(bits):
        rows[0][column] = peak if code % 2 == 1 else 0
        code //= 2
    return rows


def read_barcode(image: NDArray[np.uint8], bits: int, peak: int) -> int:
    """Return the number written in the first row; fail on a pixel that is neither blank nor maximal."""
    code = 0
    for column in range(bits):
        assert image[0, column] in (0, peak)
        code += 2**column * (image[0, column] == peak)
    return code


def standardise(train: NDArray[np.uint8], images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the images, pixel by pixel less the mean over `train` and divided by its deviation."""
    result = np.zeros(images.shape)
    for row in range(train.shape[1]):
        for column in range(train.shape[2]):
            values = [float(v) for v in train[:, row, column]]
            mean = math.fsum(values) / len(values)
            variance = math.fsum((v - mean) ** 2 for v in values) / len(values)
            deviation = math.sqrt(variance) if max(values) > min(values) else 1.0
            result[:, row, column] = [(float(v) - mean) / deviation for v in images[:, row, column]]
    return result
