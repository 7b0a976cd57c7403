"""Read images as RGB; the crops and flips of section 3, a function of (seed, pass, image).

A crop is a box (left, top, width, height) in the image's own pixels, scaled to S x S. Random numbers come
from a counter-based generator, so an image's transform depends neither on the order of the images nor on the number
of worker processes.

B images of H x W pixels.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from heavytail.errors import DataError, install

if TYPE_CHECKING:
    from PIL import Image

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

AREA = (0.08, 1.0)  # of a random crop, as a share of the image
RATIO = (3 / 4, 4 / 3)  # of its width to its height
CENTRE = 224 / 256  # side of the evaluation crop, as a share of the image's shorter side
ATTEMPTS = 10
DRAWS = 2 * ATTEMPTS + 3

_WORD = 1 << 64


def image_uniforms(seed: int, epoch: int, index: int) -> NDArray[np.float64]:
    """Return the uniform numbers in [0, 1) for the transform of image `index` in pass `epoch`, [DRAWS]."""
    philox = np.random.Philox(key=seed % _WORD * _WORD + epoch % _WORD, counter=index * _WORD)
    return np.random.Generator(philox).random(DRAWS)


def random_crops(uniforms: NDArray[np.float64], width: int, height: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return a random resized crop's box [B, 4] for each row of uniforms [B, DRAWS], and whether to flip it [B].

    Area and logarithm of the aspect ratio are uniform in AREA and log RATIO; the first of ATTEMPTS pairs that fits into
    the image is placed uniformly. If none fits: the largest centred box with an allowed ratio.
    """
    area = width * height * (AREA[0] + (AREA[1] - AREA[0]) * uniforms[:, :ATTEMPTS])
    low, high = map(math.log, RATIO)
    ratio = np.exp(low + (high - low) * uniforms[:, ATTEMPTS : 2 * ATTEMPTS])
    widths, heights = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    first, row = fits.argmax(1), np.arange(len(uniforms))
    w, h = widths[row, first], heights[row, first]
    x, y, flip = uniforms[:, 2 * ATTEMPTS :].T
    left, top = np.floor(x * (width - w + 1)), np.floor(y * (height - h + 1))
    boxes = np.stack([left, top, w, h], 1)
    boxes[~fits.any(1)] = _largest_box(width, height)
    return boxes.astype(np.int64), flip < 0.5


def centre_crop(width: int, height: int) -> tuple[float, float, float, float]:
    """Return the box of the evaluation crop: as if the shorter side were scaled to 256 and the middle 224 cut out."""
    side = CENTRE * min(width, height)
    return (width - side) / 2, (height - side) / 2, side, side


def read_rgb(source: Path | BinaryIO, name: str) -> Image.Image:
    """Return the decoded image in RGB; grey, palette and CMYK images are converted, transparency is dropped.

    16-bit grey is divided by 256, as Pillow's own conversion would clip it to white. The orientation in the EXIF data
    is not applied.

    Args:
        source: a path or an open file.
        name: name of the image in messages.

    Raises:
        DataError: the image is missing or damaged, or Pillow is not installed.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise DataError(f"images need Pillow; {install('lab')}") from None
    try:
        with Image.open(source) as image:
            if image.mode == "RGB":
                image.load()
                return image
            if image.mode.startswith("I"):
                grey = np.asarray(image)
                if grey.min() < 0 or grey.max() > 0xFFFF:
                    raise DataError(f"{name}: expected 8 or 16 bits a pixel, got values up to {grey.max()}")
                return Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")
            if image.mode == "F":
                raise DataError(f"{name}: expected 8 or 16 bits a pixel, got floating-point numbers")
            if image.mode == "P":  # straight to RGB would warn about transparent palettes
                return image.convert("RGBA").convert("RGB")
            return image.convert("RGB")
    except UnidentifiedImageError:
        raise DataError(f"{name}: not an image of a known format") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise DataError(f"{name}: not a readable image ({reason})") from None


def to_pixels(image: Image.Image, size: int, box: tuple[float, float, float, float] | None = None) -> Tensor:
    """Return an RGB image, or its part between (left, upper, right, lower), scaled to [3, size, size] uint8.

    Bilinear, antialiased.
    """
    from PIL import Image

    scaled = image.resize((size, size), Image.Resampling.BILINEAR, box)  # a copy if the size is right already
    return torch.from_numpy(np.array(scaled)).permute(2, 0, 1).contiguous()


def crop_pixels(images: Tensor, boxes: Tensor, flips: Tensor) -> Tensor:
    """Return each image's crop scaled to the image's own size, bilinear, on the device of the images.

    Crops are never larger than the image, so no antialiasing is needed.

    Args:
        images: [B, channels, H, W], floating point.
        boxes: [B, 4] left, top, width, height in pixels.
        flips: [B] bool, mirror left and right.
    """
    height, width = images.shape[-2:]
    left, top, w, h = boxes.to(images.dtype).unbind(1)
    # Affine map from output to input coordinates, both running from -1 to 1 between the outer edges.
    affine = images.new_zeros(len(images), 2, 3)
    affine[:, 0, 0] = torch.where(flips, -w, w) / width
    affine[:, 0, 2] = (2 * left + w) / width - 1
    affine[:, 1, 1] = h / height
    affine[:, 1, 2] = (2 * top + h) / height - 1
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def normalise(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Return pixels [B, 3, H, W] in 0..255 as (pixels / 255 - mean) / std, float32."""
    centre, width = (torch.tensor(v, device=pixels.device).mul(255).view(3, 1, 1) for v in (mean, std))
    return (pixels - centre).div_(width)


def _largest_box(width: int, height: int) -> tuple[int, int, int, int]:
    ratio = min(max(width / height, RATIO[0]), RATIO[1])
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    return (width - w) // 2, (height - h) // 2, w, h
