"""Image data: barcodes, subsets, crops, files and archives."""

from __future__ import annotations

import io
import itertools
import multiprocessing
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from heavytail.data import REGISTRY, Data
from heavytail.data.archive import LARGEST, read_members
from heavytail.data.images import content
from heavytail.data.images.barcode import Labelled, digit_data, sample_barcoded, write_barcodes
from heavytail.data.images.folder import FileSplit
from heavytail.data.images.subset import subset_sizes
from heavytail.data.images.transforms import (
    DRAWS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    centre_crop,
    crop_pixels,
    image_uniforms,
    random_crops,
    read_rgb,
)
from heavytail.errors import DataError, SpecError
from heavytail.experiment.registry import Component, registry
from heavytail.experiment.spec import RunSpec
from heavytail.experiment.store import RunStore
from heavytail.train.engine import train
from tests import problems
from tests.reference import barcode as barcodes
from tests.reference import vision


def load(name: str, data_dir: Path, seed: int = 0, **settings: Any) -> Data:
    return REGISTRY.make(Component(name, settings)).load(seed=seed, data_dir=data_dir)


def everything(data: Data, seed: int = 0, chunk: int = 5) -> torch.Tensor:
    """All training inputs in order."""
    chunks = [slice(i, i + chunk) for i in range(0, len(data.train), chunk)]
    return torch.cat([batch.inputs for batch in data.train.batches(chunks, seeds=[seed] * len(chunks))])


# -- barcodes -------------------------------------------------------------------------------------------------------


def labelled(per_digit: int, side: int = 4) -> Labelled:
    """Digits whose pixel (1, 0) is the digit and (1, 1) the number of the image, below a blank row."""
    classes = np.repeat(np.arange(10), per_digit)
    pixels = np.zeros((len(classes), side, side), np.uint8)
    pixels[:, 1, 0], pixels[:, 1, 1] = classes, np.arange(len(classes))
    return Labelled(pixels, classes)


def test_barcode_pixels_of_a_worked_case() -> None:
    """Code 5 = 1 + 4 in four bits is bright, blank, bright, blank in row 0; everything else stays."""
    image = np.array([[[9, 9, 9, 9, 7], [1, 2, 3, 4, 5]]], np.uint8)
    written = write_barcodes(image, np.array([5]), bits=4, peak=200)
    assert written.tolist() == [[[200, 0, 200, 0, 7], [1, 2, 3, 4, 5]]]
    assert image[0, 0, 0] == 9


def test_barcodes_match_the_reference_on_every_code() -> None:
    """All 16 codes of four bits are what writing binary digits one by one gives."""
    images = np.random.default_rng(0).integers(0, 256, (16, 3, 6)).astype(np.uint8)
    written = write_barcodes(images, np.arange(16), bits=4, peak=255)
    for code in range(16):
        assert written[code].tolist() == barcodes.write_barcode(images[code].tolist(), code, 4, 255)


def test_classes_are_pairs_of_digit_and_code() -> None:
    """Class digit * 2^bits + code holds exactly `per_class` images of that digit with that code written in it."""
    plain = labelled(per_digit=7)
    barcoded = sample_barcoded(plain, 3, 2, peak=255, generator=np.random.default_rng(0))
    assert len(barcoded.images) == 10 * 8 * 2
    for image, number in zip(barcoded.images, barcoded.classes, strict=True):
        digit, code = divmod(int(number), 8)
        assert image[1, 0] == digit
        assert barcodes.read_barcode(image, 3, 255) == code
    assert np.bincount(barcoded.classes).tolist() == [2] * 80


def test_code_zero_keeps_an_image_with_a_blank_corner() -> None:
    """The all-zero barcode is one of the 2^bits: its images are unmodified originals (erratum 9)."""
    plain = labelled(per_digit=3)
    barcoded = sample_barcoded(plain, 2, 4, peak=255, generator=np.random.default_rng(0))
    originals = {image.tobytes() for image in plain.images}
    unmodified = [
        int(k) for image, k in zip(barcoded.images, barcoded.classes, strict=True) if image.tobytes() in originals
    ]
    assert unmodified == [digit * 4 for digit in range(10) for _ in range(4)]


@pytest.mark.parametrize("only", [False, True])
def test_class_numbering_with_and_without_the_originals(only: bool) -> None:
    """Beside the originals (classes 0..9) barcoded classes start at 10, alone at 0; the two are the natural groups."""
    train, test = labelled(per_digit=6), labelled(per_digit=2)
    data = digit_data(
        train, test, peak=255, bits=2, per_class=6, only=only, generator=np.random.default_rng(0), info={"source": "x"}
    )
    barcoded = 10 * 4
    assert data.num_classes == barcoded + (0 if only else 10)
    assert data.counts.tolist() == ([] if only else [6] * 10) + [6] * barcoded
    assert data.test is not None
    assert torch.bincount(data.test.targets).tolist() == ([] if only else [2] * 10) + [2] * barcoded
    if only:
        assert data.natural_groups is None
    else:
        assert data.natural_groups is not None
        assert data.natural_groups.tolist() == [0] * 10 + [1] * barcoded


def test_pixels_are_standardised_with_the_training_statistics() -> None:
    """Both splits equal (pixel - training mean) / training deviation of that pixel; a constant pixel becomes 0."""
    generator = np.random.default_rng(0)
    train, test = (Labelled(generator.integers(0, 256, (n, 3, 3)).astype(np.uint8), np.arange(n) % 10) for n in (30, 9))
    train.images[:, 2, 2] = 17
    train.images[:, 0, 0] = np.arange(30) == 4
    data = digit_data(train, test, peak=255, generator=generator, info={"source": "x"})
    assert data.test is not None
    for split, part in ((data.train, train), (data.test, test)):
        assert split.inputs.dtype == torch.float32
        assert split.inputs.shape == (len(part.images), 1, 3, 3)
        expected = barcodes.standardise(train.images, part.images)
        np.testing.assert_allclose(split.inputs[:, 0].double().numpy(), expected, rtol=1e-5, atol=1e-5)
    assert data.train.inputs[:, 0, 2, 2].eq(0).all()


def test_digits_and_their_barcodes(tmp_path: Path) -> None:
    """scikit-learn's digits: 1 500 + 297 images of 8x8; with three bits 80 more classes, whose codes can be read."""
    plain = load("digits", tmp_path)
    assert (len(plain.train), len(plain.test or ()), plain.num_classes) == (1_500, 297, 10)
    assert plain.train.inputs.shape == (1_500, 1, 8, 8)
    coded = load("digits", tmp_path, bits=3, per_class=2)
    assert (len(coded.train), coded.num_classes) == (1_500 + 160, 90)
    barcoded = coded.train.targets >= 10
    # Standardising keeps the order of the values of a pixel: bright is the largest, blank the smallest.
    corner = coded.train.inputs[:, 0, 0, :3]
    bright = corner[barcoded] == corner.amax(0)
    codes = (bright * torch.tensor([1, 2, 4])).sum(1)
    assert torch.equal(codes, (coded.train.targets[barcoded] - 10) % 8)


def test_a_seed_decides_the_split_and_the_barcodes(tmp_path: Path) -> None:
    """The same seed gives the same images, another one others."""
    first, second, third = (load("digits", tmp_path, seed, bits=2).train.inputs for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


# -- subsets --------------------------------------------------------------------------------------------------------


def test_heavy_tailed_imagenet_has_the_papers_size() -> None:
    """ceil(1300 / k) images of the k-th of 1 000 classes are 10 217, and 10 of each are 10 000."""
    assert subset_sizes([1300] * 1000, "heavy-tailed").sum() == 10_217
    assert subset_sizes([1300] * 1000, "balanced").sum() == 10_000


def test_heavy_tailed_classes_are_ranked_by_their_images() -> None:
    """The class with most images comes first, equals in their own order; `largest` sets the first one's number."""
    assert subset_sizes([8, 12, 9, 12], "heavy-tailed").tolist() == [3, 12, 4, 6]
    assert subset_sizes([8, 12, 9, 12], "heavy-tailed", largest=5).tolist() == [2, 5, 2, 3]
    assert subset_sizes([8, 12, 9, 12], "all").tolist() == [8, 12, 9, 12]


@pytest.mark.parametrize(("subset", "kind"), [("balanced", {"per_class": 4}), ("heavy-tailed", {"largest": 9})])
def test_a_class_with_too_few_images_is_an_error(subset: Any, kind: dict[str, int]) -> None:
    """No class is silently smaller than the subset says."""
    with pytest.raises(DataError, match=f"{subset} subset: needs 4 images of class 1, got 3|needs 9 images of class 0"):
        subset_sizes([6, 3], subset, **kind)


# -- crops ----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**63), st.integers(1, 60), st.integers(1, 60))
def test_random_crops_match_the_reference_and_fit(seed: int, width: int, height: int) -> None:
    """Boxes and flips are those of the rule applied one draw at a time, and lie inside the image."""
    uniforms = np.stack([image_uniforms(seed, 3, index) for index in range(20)])
    boxes, flips = random_crops(uniforms, width, height)
    for draws, box, flip in zip(uniforms, boxes.tolist(), flips.tolist(), strict=True):
        left, top, w, h = box
        assert 0 <= left < left + w <= width
        assert 0 <= top < top + h <= height
        expected = vision.random_crop(draws.tolist(), width, height)
        assert expected is None or (tuple(box), flip) == expected


def test_an_image_too_long_for_any_crop_gives_the_widest_middle() -> None:
    """Where no attempt fits, the box is the largest allowed one in the middle: 13 x 10 of 400 x 10 pixels."""
    uniforms = np.ones((1, DRAWS)) - 1e-9  # area of the whole image, ratio 4 / 3
    boxes, _ = random_crops(uniforms, 400, 10)
    assert boxes.tolist() == [[193, 0, 13, 10]]


def test_uniforms_depend_on_seed_pass_and_image_alone() -> None:
    """The numbers of (seed, pass, image) are reproducible, and change with each of the three."""
    assert np.array_equal(image_uniforms(7, 8, 9), image_uniforms(7, 8, 9))
    different = [image_uniforms(*key) for key in [(7, 8, 9), (6, 8, 9), (7, 9, 9), (7, 8, 10), (8, 7, 9)]]
    assert len({draws.tobytes() for draws in different}) == 5
    assert all(draws.min() >= 0 and draws.max() < 1 and len(draws) == DRAWS for draws in different)


def test_uniforms_are_uniform() -> None:
    """Means over 4 000 images lie within four deviations of 1/2, and no two draws are correlated beyond chance."""
    draws = np.stack([image_uniforms(0, 0, index) for index in range(4_000)])
    bound = 4 / np.sqrt(len(draws))
    assert np.abs(draws.mean(0) - 0.5).max() < bound / np.sqrt(12)
    assert np.abs(np.corrcoef(draws.T) - np.eye(DRAWS)).max() < bound


def test_cropping_in_memory_matches_loops() -> None:
    """A crop scaled to the image's size is the bilinear one, pixel by pixel, mirrored where asked."""
    generator = np.random.default_rng(0)
    images = generator.uniform(0, 255, (4, 3, 7, 9))
    boxes = np.array([[0, 0, 9, 7], [2, 1, 4, 3], [0, 4, 9, 2], [8, 6, 1, 1]])
    flips = np.array([False, True, True, False])
    got = crop_pixels(torch.from_numpy(images), torch.from_numpy(boxes), torch.from_numpy(flips))
    for index in range(4):
        expected = vision.crop(images[index], boxes[index], flips[index])
        np.testing.assert_allclose(got[index].numpy(), expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(got[0].numpy(), images[0], rtol=0, atol=1e-9)


def test_centre_crop_of_a_worked_case() -> None:
    """A 512 x 256 image keeps the middle 224 x 224."""
    assert centre_crop(512, 256) == (144, 16, 224, 224)


# -- reading images -------------------------------------------------------------------------------------------------


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> io.BytesIO:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    stream.seek(0)
    return stream


@pytest.mark.parametrize("mode", ["L", "1", "LA", "RGBA", "P", "CMYK", "RGB"])
def test_every_kind_of_image_becomes_rgb(mode: str) -> None:
    """Grey, palette, transparent and CMYK images have three channels after reading, of the colour they show."""
    colour = (255, 255, 255) if mode in ("L", "1", "LA") else (255, 0, 0)
    stream = encoded(Image.new("RGB", (4, 4), colour).convert(mode), "TIFF" if mode == "CMYK" else "PNG")
    image = read_rgb(stream, "it")
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image, int) - colour).max() <= 2


def test_a_transparent_palette_becomes_rgb() -> None:
    """A palette with transparent colours is read without a warning."""
    image = Image.new("P", (4, 4))
    image.putpalette([0, 0, 0, 0, 0, 255])
    image.paste(1, (0, 0, 4, 4))
    read = read_rgb(encoded(image, transparency=b"\x00\xff"), "it")
    assert read.getpixel((1, 1)) == (0, 0, 255)


def noise(seed: int, width: int = 24, height: int = 20) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small ImageNet: three classes of 9, 6 and 4 training images and one of validation each, one of them grey."""
    monkeypatch.setenv("HEAVYTAIL_WORKERS", "0")
    for part, counts in (("train", (9, 6, 4)), ("val", (1, 1, 1))):
        for k, count in enumerate(counts):
            (tmp_path / "set" / part / f"n{k}").mkdir(parents=True)
            for i in range(count):
                image = noise(100 * k + i)
                image = image.convert("L") if (k, i) == (1, 0) else image
                image.save(tmp_path / "set" / part / f"n{k}" / f"{i}.JPEG", quality=95)
    return tmp_path


def change_image(root: Path) -> None:
    noise(7).save(root / "train" / "n0" / "3.JPEG", quality=95)


def swap_images(root: Path) -> None:
    """Two images of one size and with their old times in each other's places."""
    one, two = root / "train" / "n0" / "1.JPEG", root / "train" / "n0" / "2.JPEG"
    times, contents = [file.stat().st_mtime_ns for file in (one, two)], [file.read_bytes() for file in (one, two)]
    size = max(map(len, contents))
    for file, data, at in zip((two, one), contents, times, strict=True):
        file.write_bytes(data.ljust(size, b"\0"))
        os.utime(file, ns=(at, at))


def touch_images(root: Path) -> None:
    for file in root.rglob("*.JPEG"):
        os.utime(file, (0, 0))


CHANGES: dict[str, tuple[Callable[[Path], object], bool]] = {
    "changed": (change_image, True),
    "swapped": (swap_images, True),
    "added": (lambda root: noise(8).save(root / "val" / "n1" / "new.png"), True),
    "removed": (lambda root: (root / "train" / "n2" / "0.JPEG").unlink(), True),
    "renamed": (lambda root: (root / "train" / "n1" / "0.JPEG").rename(root / "train" / "n1" / "9.JPEG"), True),
    "moved": (lambda root: (root / "train" / "n1" / "5.JPEG").rename(root / "train" / "n2" / "5.JPEG"), True),
    "class renamed": (lambda root: (root / "val" / "n2").rename(root / "val" / "n1b"), True),
    "touched": (touch_images, False),
    "added to a subfolder": (lambda root: shutil.copytree(root / "val" / "n1", root / "train" / "n1" / "more"), True),
    "broken link added": (lambda root: (root / "train" / "n1" / "x.png").symlink_to("nowhere"), True),
    "text file added": (lambda root: (root / "train" / "n0" / "notes.txt").write_text("x"), False),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("relative", [False, True])
def test_the_key_follows_the_images(
    change: str, relative: bool, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Images that change, come, go or move make another run; times and other files do not. Changes are named."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(content, "YOUNG", 0.0)
    images = Component("image-folder", {"path": "set" if relative else str(folder / "set"), "size": 8})

    def key() -> tuple[str, Component]:
        data = registry("data").pin(images, folder) if relative else images
        table = {"data": data, "model": "resnet18", "optim": "gd", "lr": 0.1, "steps": 1}
        return RunSpec.from_dict(table).key, registry("data").resolve(data)

    edit, another = CHANGES[change]
    before, pinned = key()
    assert key()[0] == before
    edit(folder / "set")
    assert (key()[0] != before) == another
    recipe = registry("data").make(pinned)
    if another:
        with pytest.raises(DataError, match=r"^data.path: .*set has changed: expected sha256 [0-9a-f]{64}, got "):
            recipe.load(seed=0, data_dir=folder)
    else:
        assert len(recipe.load(seed=0, data_dir=folder).train) == 19


def test_unchanged_images_are_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The digest of an unchanged folder reads no image again; a damaged or read-only cache is as good as none."""
    read: list[Path] = []
    original = content.sha256
    monkeypatch.setattr(content, "sha256", lambda path: read.append(path) or original(path))  # type: ignore[func-returns-value]
    images = Component("image-folder", {"path": "set"})
    first = registry("data").pin(images, folder).params["sha256"]
    assert len(read) == 22
    assert registry("data").pin(images, folder).params["sha256"] == first
    assert len(read) == 44  # so young that they may change within one tick of the clock
    monkeypatch.setattr(content, "YOUNG", 0.0)
    for _ in range(3):
        assert registry("data").pin(images, folder).params["sha256"] == first
    assert len(read) == 66
    os.utime(folder / "set" / "val" / "n1" / "0.JPEG", (1, 1))
    assert registry("data").pin(images, folder).params["sha256"] == first
    assert len(read) == 67  # its class alone
    (cached,) = (folder / "digests").iterdir()
    for damage in (b"", b"[]", b'{"train/n0": 3}', b'{"train/n0": ["a"]}', b"\xff"):
        cached.write_bytes(damage)
        assert registry("data").pin(images, folder).params["sha256"] == first


def test_the_key_follows_the_images_beside_one_that_cannot_be_read(folder: Path) -> None:
    """With skip_corrupt a broken link is in no batch, and the others are still part of the key."""
    (folder / "set" / "train" / "n1" / "x.png").symlink_to("nowhere")
    images = Component("image-folder", {"path": "set", "size": 8, "skip_corrupt": True})
    before = registry("data").pin(images, folder)
    assert registry("data").make(before).load(seed=0, data_dir=folder).info["skipped"] == 1
    change_image(folder / "set")
    assert registry("data").pin(images, folder) != before


def test_a_failure_to_read_is_not_remembered(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An image that could not be read for a moment is hashed again, though its times are the same."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(content, "YOUNG", 0.0)
    images = Component("image-folder", {"path": "set", "size": 8})
    with monkeypatch.context() as patch:

        def failing(path: Path) -> str:
            raise DataError(f"cannot read {path}: Input/output error")

        patch.setattr(content, "sha256", failing)
        failed = registry("data").pin(images, folder)
    assert registry("data").pin(images, folder) != failed


def test_a_missing_folder_has_a_key(tmp_path: Path) -> None:
    """Plans of runs on images that are not here, or damaged, name no content; loading them names the problem."""
    images = Component("image-folder", {"path": "set"})
    assert registry("data").pin(images, tmp_path) == images
    (tmp_path / "set").mkdir()
    assert registry("data").pin(images, tmp_path) == images


def test_a_folder_gives_classes_splits_and_normalised_images(folder: Path) -> None:
    """Folders are classes in order of name; an evaluation image is its centre crop, scaled and normalised."""
    data = load("image-folder", folder, path="set", size=8)
    assert data.num_classes == 3
    assert data.counts.tolist() == [9, 6, 4]
    assert data.test is not None
    assert data.train.inputs.shape == (19, 3, 8, 8)
    (batch,) = data.test.batches([slice(0, 3)])
    assert batch.targets.tolist() == [0, 1, 2]
    side = 20 * 224 / 256
    box = ((24 - side) / 2, (20 - side) / 2, (24 + side) / 2, (20 + side) / 2)
    for k in range(3):
        with Image.open(folder / "set" / "val" / f"n{k}" / "0.JPEG") as image:
            pixels = np.asarray(image.convert("RGB").resize((8, 8), Image.Resampling.BILINEAR, box), float)
        expected = (pixels / 255 - IMAGENET_MEAN) / IMAGENET_STD
        np.testing.assert_allclose(batch.inputs[k].permute(1, 2, 0).numpy(), expected, rtol=1e-5, atol=1e-5)


def test_batches_do_not_depend_on_the_number_of_workers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zero, one and two decoding processes, and other chunks, give bit-identical crops; the pass changes them."""
    found = []
    for workers in (0, 1, 2):
        monkeypatch.setenv("HEAVYTAIL_WORKERS", str(workers))
        data = load("image-folder", folder, path="set", size=8)
        found += [everything(data, seed=4, chunk=chunk) for chunk in (5, 19)]
        shuffled = torch.randperm(19, generator=torch.Generator().manual_seed(0))
        batches = list(data.train.batches(shuffled.split(7), seeds=[4] * 3))
        assert torch.equal(torch.cat([b.targets for b in batches]), data.train.targets[shuffled])
        found.append(torch.cat([b.inputs for b in batches])[shuffled.argsort()])
    assert all(torch.equal(one, found[0]) for one in found)
    assert not torch.equal(everything(data, seed=5), found[0])


def test_large_chunks_are_put_together_from_pieces(folder: Path) -> None:
    """A chunk of more images than one worker takes at a time arrives whole and in order."""
    split = load("image-folder", folder, path="set", size=8).train
    index = torch.arange(95) % 19
    first, second = split.batches([index, index[:64]], seeds=[1, 1])
    single = everything(load("image-folder", folder, path="set", size=8), seed=1)
    assert torch.equal(first.inputs, single[index])
    assert torch.equal(second.inputs, single[index[:64]])


def test_a_pass_left_early_does_not_disturb_the_next(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What workers had decoded ahead for an abandoned pass is not taken for the next one's."""
    monkeypatch.setenv("HEAVYTAIL_WORKERS", "2")
    data = load("image-folder", folder, path="set", size=8)
    expected = everything(data, seed=1)
    next(data.train.batches([slice(i, i + 2) for i in range(0, 18, 2)], seeds=[2] * 9))
    assert torch.equal(everything(data, seed=1), expected)


def test_a_run_that_is_stopped_leaves_no_decoding_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes that decode ahead end with the run, whether it was stopped, diverged or finished."""
    monkeypatch.setenv("HEAVYTAIL_WORKERS", "2")
    cnn = {"model": "cnn", "data": {"name": "image-folder", "path": str(folder / "set"), "size": 28}}
    before = set(multiprocessing.active_children())
    for lr, stop, status in ((0.01, 3, "interrupted"), (1e30, 99, "diverged"), (0.01, 99, "done")):
        spec = problems.tiny(**cnn, lr=lr, batch_size=6, steps=12, eval_every=6, test_every=0)
        asked = itertools.count()
        history = train(spec, RunStore(folder), data_dir=folder, should_stop=lambda s=stop, a=asked: next(a) == s)
        assert history.status == status
        assert set(multiprocessing.active_children()) == before


def test_every_chunk_needs_its_seed(folder: Path) -> None:
    """Fewer seeds than chunks are an error, not fewer batches."""
    split = load("image-folder", folder, path="set", size=8).train
    with pytest.raises(ValueError, match="shorter"):
        list(split.batches([slice(0, 2), slice(2, 4)], seeds=[1]))


def test_decoding_leaves_the_global_generator_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading batches, with worker processes or without, draws nothing from torch's generator."""
    for workers in "02":
        monkeypatch.setenv("HEAVYTAIL_WORKERS", workers)
        torch.manual_seed(0)
        before = torch.get_rng_state()
        everything(load("image-folder", folder, path="set", size=8))
        assert torch.equal(torch.get_rng_state(), before)


def test_augmenting_changes_the_training_images_only(folder: Path) -> None:
    """Without augmentation a training image is its centre crop, the same in every pass, as validation always is."""
    plain = load("image-folder", folder, path="set", size=8, augment=False)
    augmented = load("image-folder", folder, path="set", size=8)
    assert torch.equal(everything(plain, seed=1), everything(plain, seed=2))
    assert not torch.equal(everything(augmented, seed=1), everything(plain, seed=1))
    assert plain.test is not None
    assert augmented.test is not None
    whole = [slice(0, 3)]
    assert torch.equal(next(plain.test.batches(whole)).inputs, next(augmented.test.batches(whole, seeds=[9])).inputs)


def test_a_subset_is_chosen_by_the_seed_and_told_apart_by_its_digest(folder: Path) -> None:
    """Heavy-tailed: 9, ceil(9/2), ceil(9/3) images; another seed chooses other files, which the digest shows."""
    settings = {"path": "set", "size": 8, "subset": "heavy-tailed"}
    first, again, other = (load("image-folder", folder, seed, **settings) for seed in (0, 0, 1))
    assert first.counts.tolist() == [9, 5, 3]
    assert isinstance(first.train, FileSplit)
    assert len(set(first.train.files.tolist())) == 17
    assert first.info["digest"] == again.info["digest"] != other.info["digest"]


def test_plain_class_folders_have_no_validation_split(folder: Path) -> None:
    """A folder without `train` is the training split itself; an absolute path needs no data directory."""
    data = load("image-folder", Path("/nowhere"), path=str(folder / "set" / "train"), size=8)
    assert data.counts.tolist() == [9, 6, 4]
    assert data.test is None


def test_splits_beside_classes_are_no_classes(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without `train`, a folder `val` of class folders is the test split, and `test` and `validation` are not read."""
    for k in range(3):
        (folder / "set" / "train" / f"n{k}").rename(folder / "set" / f"n{k}")
    (folder / "set" / "train").rmdir()
    for name in ("test", "validation"):
        shutil.copytree(folder / "set" / "val", folder / "set" / name)
    data = load("image-folder", folder, path="set", size=8)
    assert data.counts.tolist() == [9, 6, 4]
    assert data.test is not None
    assert len(data.test) == 3
    assert [record.args[0] for record in caplog.records if record.args] == [
        folder / "set" / "test", folder / "set" / "validation",
    ]  # fmt: skip
    (folder / "set" / "n3").mkdir()
    noise(1).save(folder / "set" / "n3" / "0.png")
    (folder / "set" / "n3").rename(folder / "set" / "valid")
    assert load("image-folder", folder, path="set", size=8).counts.tolist() == [9, 6, 4, 1]


def test_images_in_subfolders_belong_to_the_class(folder: Path) -> None:
    """As in Tiny ImageNet's own layout; hidden subfolders are left out, and a link back is followed once."""
    root = folder / "set" / "train" / "n2"
    (root / "images" / "more").mkdir(parents=True)
    (root / ".cache").mkdir()
    for place in ("images", "images/more", ".cache"):
        noise(1).save(root / place / "9.png")
    (root / "images" / "notes.txt").write_text("x")
    (root / "images" / "back").symlink_to(root)
    (root / "same").symlink_to(root / "images")
    (root / "up").symlink_to(folder / "set")
    data = load("image-folder", folder, path="set", size=8)
    assert data.counts.tolist() == [9, 6, 6]
    assert data.info["ignored"] == 1
    assert everything(data).isfinite().all()


@pytest.fixture
def corrupt(folder: Path) -> Path:
    """The same with one JPEG file cut short and one that is text."""
    cut, text = (folder / "set" / "train" / name for name in ("n0/3.JPEG", "n2/1.JPEG"))
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    text.write_text("not an image")
    return folder


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_corrupt_image_is_named(corrupt: Path, monkeypatch: pytest.MonkeyPatch, workers: str) -> None:
    """Reading a damaged file is a one-line DataError with its path, from a worker process too."""
    monkeypatch.setenv("HEAVYTAIL_WORKERS", workers)
    data = load("image-folder", corrupt, path="set", size=8)
    with pytest.raises(DataError, match=r"train/n0/3\.JPEG: not a readable image \(image file is truncated") as caught:
        everything(data)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"train/n2/1\.JPEG: not an image of a known format"):
        next(data.train.batches([slice(15, 19)]))


def test_corrupt_images_can_be_skipped_and_counted(corrupt: Path) -> None:
    """With skip_corrupt they are in no split and no count, and a subset takes other images in their place."""
    data = load("image-folder", corrupt, path="set", size=8, skip_corrupt=True)
    assert data.counts.tolist() == [8, 6, 3]
    assert data.info["skipped"] == 2
    assert everything(data).isfinite().all()
    balanced = load("image-folder", corrupt, path="set", size=8, skip_corrupt=True, subset="balanced", per_class=3)
    assert balanced.counts.tolist() == [3, 3, 3]
    with pytest.raises(DataError, match="n2: needs 4 readable images, got 3"):
        load("image-folder", corrupt, path="set", size=8, skip_corrupt=True, subset="balanced", per_class=4)


def test_a_folder_without_images_or_with_unknown_classes_is_an_error(folder: Path) -> None:
    """A missing folder, one without class folders, and a validation class that training has not: each says so."""
    with pytest.raises(DataError, match="no such folder"):
        load("image-folder", folder, path="sett")
    with pytest.raises(DataError, match="expected one folder of images"):
        load("image-folder", folder, path="set/train/n0")
    (folder / "set" / "val" / "n9").mkdir()
    noise(0).save(folder / "set" / "val" / "n9" / "0.JPEG")
    with pytest.raises(DataError, match="n9: no class of this name"):
        load("image-folder", folder, path="set")


@pytest.mark.parametrize("dropping", [".ipynb_checkpoints/0.JPEG", "__MACOSX/n0/0.JPEG", "n0/._0.JPEG", "n1/.DS_Store"])
def test_hidden_files_and_folders_are_in_no_class(dropping: str, folder: Path) -> None:
    """What notebooks, macOS and Windows leave behind is no class and no image, in both splits."""
    for part in ("train", "val"):
        path = folder / "set" / part / dropping
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\0\5\x16\7")
    data = load("image-folder", folder, path="set", size=8)
    assert data.counts.tolist() == [9, 6, 4]
    assert data.test is not None
    assert len(data.test) == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: (root / "n3").mkdir(), r"n3: expected images .* in the class, got none"),
        (lambda root: (root / "n0" / "a.heic").write_bytes(b""), r"a\.heic: expected images"),
        (lambda root: (root / "n3").symlink_to(root / "n3"), "n3"),
        (lambda root: (root / "n3").symlink_to(root, target_is_directory=True), "n3: expected images"),
    ],
)
def test_odd_class_folders_are_named(make: Any, message: str, folder: Path) -> None:
    """An empty class folder, a format that is not read and a looping link are errors of one line."""
    make(folder / "set" / "train")
    with pytest.raises(DataError, match=message):
        load("image-folder", folder, path="set", size=8)


def test_an_unreadable_class_folder_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class folder that may not be listed is an error with its path."""
    scandir = os.scandir

    def denied(path: Any) -> Any:
        if Path(path).name == "n0":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(DataError, match="n0: cannot be read: Permission denied"):
        load("image-folder", folder, path="set", size=8)


def test_other_files_are_counted_and_other_images_read(folder: Path) -> None:
    """A .gif and a .tiff are images as a .png is; annotations beside them are counted in `info`."""
    noise(1).save(folder / "set" / "train" / "n0" / "a.gif")
    noise(1).save(folder / "set" / "train" / "n0" / "a.TIFF")
    (folder / "set" / "train" / "n0" / "a.xml").write_text("<annotation/>")
    data = load("image-folder", folder, path="set", size=8)
    assert data.counts.tolist() == [11, 6, 4]
    assert data.info["ignored"] == 1
    assert len(list(data.train.batches([slice(0, 11)]))) == 1


@pytest.mark.parametrize("validation", [True, False])
def test_a_test_folder_is_reported_as_not_read(
    folder: Path, validation: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder `test` beside `train` is named in a warning, with the split that is read; a class `test` is a class."""
    load("image-folder", folder, path="set", size=8)
    assert not caplog.records
    (folder / "set" / "test").mkdir()
    if not validation:
        shutil.rmtree(folder / "set" / "val")
    data = load("image-folder", folder, path="set", size=8)
    assert (data.test is not None) == validation
    (record,) = caplog.records
    split = f"the test split is {folder / 'set' / 'val'}" if validation else "there is no test split"
    assert record.getMessage() == f"{folder / 'set' / 'test'}: not read; {split}"
    caplog.clear()
    (folder / "set" / "train" / "n0").rename(folder / "set" / "train" / "test")
    assert load("image-folder", folder, path="set/train", size=8).num_classes == 3
    assert not caplog.records


def test_file_names_need_not_be_utf8(folder: Path) -> None:
    """An image whose name is not UTF-8 is read, and joins the digest of the selection."""
    import os

    noise(1).save(os.fsencode(folder) + b"/set/train/n0/\xff.JPEG", "JPEG")
    data = load("image-folder", folder, path="set", size=8)
    assert data.counts.tolist() == [10, 6, 4]
    assert len(data.info["digest"]) == 64
    list(data.train.batches([slice(0, 19)]))


def test_16_bit_grey_keeps_its_shades() -> None:
    """A 16-bit ramp keeps 256 shades, where Pillow's conversion clips all but one in 256 to white."""
    ramp = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    read = np.asarray(read_rgb(encoded(Image.fromarray(ramp)), "it"))
    assert (read == (ramp >> 8)[..., None]).all()
    with pytest.raises(DataError, match="floating-point"):
        read_rgb(encoded(Image.new("F", (4, 4)), "TIFF"), "it")
    with pytest.raises(DataError, match="8 or 16 bits"):
        read_rgb(encoded(Image.new("I", (4, 4), 70_000), "TIFF"), "it")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("mnist", {"samples": 0}, r"data\.samples: expected 1\.\.50000, got 0"),
        ("mnist", {"samples": 50_001}, r"data\.samples: expected 1\.\.50000, got 50001"),
        ("barcoded-mnist", {"bits": 0}, r"data\.bits: expected 1\.\.16, got 0"),
        ("barcoded-mnist", {"per_class": 0}, r"data\.per_class: expected at least 1, got 0"),
        ("digits", {"bits": 9}, r"data\.bits: expected 1\.\.8, got 9"),
        ("digits", {"bits": -1}, r"data\.bits: expected 1\.\.8, got -1"),
        ("image-folder", {}, r"needs data\.path"),
        ("image-folder", {"path": "x", "subset": "heavytailed"}, "did you mean 'heavy-tailed'"),
        ("image-folder", {"path": "x", "size": 0}, r"data\.size: expected at least 1, got 0"),
        ("image-folder", {"path": "x", "mean": [0.5]}, r"data\.mean: expected three numbers"),
        ("image-folder", {"path": "x", "std": [0.2, 0.0, 0.2]}, r"data\.std: expected positive numbers"),
        ("tiny-imagenet", {"pool": 501}, r"data\.pool: expected 1\.\.500, got 501"),
        ("tiny-imagenet", {"validation": 51}, r"data\.validation: expected 0\.\.50, got 51"),
        ("tiny-imagenet", {"largest": 0}, r"data\.largest: expected at least 1, got 0"),
    ],
)
def test_bad_settings_are_one_line_errors(name: str, settings: dict[str, Any], message: str) -> None:
    """A setting that cannot be is named with what is allowed, before any file is looked for."""
    with pytest.raises(SpecError, match=message) as caught:
        REGISTRY.make(Component(name, settings))
    assert "\n" not in str(caught.value)


def test_a_bad_number_of_workers_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HEAVYTAIL_WORKERS must be a number of processes."""
    monkeypatch.setenv("HEAVYTAIL_WORKERS", "many")
    with pytest.raises(SpecError, match="HEAVYTAIL_WORKERS: expected a number of processes, 0 or more, got 'many'"):
        load("image-folder", folder, path="set")


@pytest.mark.parametrize("name", ["mnist", "barcoded-mnist", "tiny-imagenet"])
def test_missing_files_name_the_command_that_fetches_them(name: str, tmp_path: Path) -> None:
    """An empty data directory is a one-line error with the remedy."""
    with pytest.raises(DataError, match="run: heavytail data fetch") as caught:
        load(name, tmp_path)
    assert "\n" not in str(caught.value)


# -- archives -------------------------------------------------------------------------------------------------------


def tar_of(path: Path, name: str, **attributes: Any) -> Path:
    """A tar file with a harmless member and another one."""
    with tarfile.open(path, "w:gz") as archive:
        for member, extra in (("fine.txt", {}), (name, attributes)):
            info = tarfile.TarInfo(member)
            info.size = 2
            for key, value in extra.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(b"ok") if info.isfile() else None)
    return path


@pytest.mark.parametrize("name", ["../out.txt", "a/../../out.txt", "/out.txt", "C:/out.txt", "..\\out.txt"])
def test_a_path_outside_the_archive_is_refused(name: str, tmp_path: Path) -> None:
    """Absolute paths and paths that climb out are a DataError, in tar and zip files."""
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr(name, "ok")
    for path in (tmp_path / "bad.zip", tar_of(tmp_path / "bad.tar.gz", name)):
        with pytest.raises(DataError, match=r"refused, member '.*out\.txt' has a path outside the archive"):
            list(read_members(path, lambda _: True))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(kind: bytes, tmp_path: Path) -> None:
    """A tar member that is neither a file nor a folder is a DataError."""
    path = tar_of(tmp_path / "bad.tar.gz", "innocent", type=kind, linkname="/etc/passwd", size=0)
    with pytest.raises(DataError, match="refused, member 'innocent' is neither a file nor a folder"):
        list(read_members(path, lambda _: True))


def test_a_link_in_a_zip_file_is_refused(tmp_path: Path) -> None:
    """A zip member with the mode of a symbolic link is a DataError."""
    info = zipfile.ZipInfo("innocent")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match="refused, member 'innocent' is neither"):
        list(read_members(tmp_path / "bad.zip", lambda _: True))


def test_a_member_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    """A few kilobytes that promise more than the limit are a DataError before they are unpacked."""
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", bytes(LARGEST + 1))
    with pytest.raises(DataError, match=f"has {LARGEST + 1} bytes, expected at most {LARGEST}"):
        list(read_members(path, lambda _: True))


def test_members_that_are_too_much_together_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum over members is bounded, not each member alone."""
    monkeypatch.setattr("heavytail.data.archive.TOTAL", 2500)
    path = tmp_path / "many.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(3):
            archive.writestr(str(i), bytes(1000))
    with pytest.raises(DataError, match="refused, its members have more than 2500 bytes together"):
        list(read_members(path, lambda _: True))
    assert len(list(read_members(path, lambda name: name != "2"))) == 2


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_extended_headers_are_bounded(format: int, tmp_path: Path) -> None:
    """A comment or name of megabytes, which tarfile would read whole, is a DataError."""
    path = tmp_path / "comment.tar.gz"
    with tarfile.open(path, "w:gz", format=format) as archive:
        info = tarfile.TarInfo("x" * 2**21 if format == tarfile.GNU_FORMAT else "x")
        info.pax_headers = {"comment": "c" * 2**21}
        archive.addfile(info)
    with pytest.raises(DataError, match=r"a member's extended headers have 2097[0-9]+ bytes"):
        list(read_members(path, lambda _: True))


def test_a_damaged_archive_is_a_one_line_error(tmp_path: Path) -> None:
    """Bytes that are no archive, and one cut short, are named."""
    (tmp_path / "text.tar.gz").write_text("not an archive")
    whole = tar_of(tmp_path / "whole.tar.gz", "x").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    for name in ("text", "cut"):
        with pytest.raises(DataError, match=rf"{name}\.tar\.gz: not a readable archive") as caught:
            list(read_members(tmp_path / f"{name}.tar.gz", lambda _: True))
        assert "\n" not in str(caught.value)


def test_only_wanted_members_are_read(tmp_path: Path) -> None:
    """Names that are not wanted are passed over, in tar and zip files alike."""
    with zipfile.ZipFile(tmp_path / "good.zip", "w") as archive:
        archive.writestr("a/fine.txt", "ok")
        archive.writestr("other.txt", "no")
    tar = tar_of(tmp_path / "good.tar.gz", "other.txt")
    assert list(read_members(tmp_path / "good.zip", lambda name: "fine" in name)) == [("a/fine.txt", b"ok")]
    assert list(read_members(tar, lambda name: "fine" in name)) == [("fine.txt", b"ok")]


# -- Tiny ImageNet --------------------------------------------------------------------------------------------------

WNIDS = [f"n{k:08}" for k in range(200)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The extracted layout with two training images and one validation image of each class, each one colour."""
    data_dir = tmp_path_factory.mktemp("data")
    root = data_dir / "tiny-imagenet-200"
    (root / "val" / "images").mkdir(parents=True)
    (root / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    lines = []
    for k, wnid in enumerate(WNIDS):
        (root / "train" / wnid / "images").mkdir(parents=True)
        for number in range(2):
            image = Image.new("RGB", (64, 64), (k, 100 * number, 0))
            image.save(root / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", quality=100)
        Image.new("L", (64, 64), k).save(root / "val" / "images" / f"val_{k}.JPEG", quality=100)
        lines.append(f"val_{k}.JPEG\t{wnid}\t0\t0\t62\t62")
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    return data_dir


def test_tiny_imagenet_from_the_extracted_folder(tiny: Path) -> None:
    """Classes follow wnids.txt, validation labels the annotations, and pixels are normalised."""
    settings: dict[str, Any] = {"subset": "all", "pool": 2, "validation": 1, "size": 16, "augment": False}
    data = load("tiny-imagenet", tiny, **settings)
    assert data.num_classes == 200
    assert data.counts.tolist() == [2] * 200
    assert data.test is not None
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    pixels = 255 * (everything(data, chunk=100) * std + mean)
    red, green = pixels[:, 0].mean((1, 2)), pixels[:, 1].mean((1, 2))
    assert (red - data.train.targets).abs().max() < 4  # JPEG
    assert (green - 100 * (torch.arange(400) % 2)).abs().max() < 4
    (batch,) = data.test.batches([slice(0, 200)])
    grey = (255 * (batch.inputs * std + mean)).mean((1, 2, 3))
    assert (grey - batch.targets).abs().max() < 2


def test_tiny_imagenet_augments_reproducibly(tiny: Path) -> None:
    """Crops depend on the pass and the image, not on the chunks; no augmentation, no change."""
    data = load("tiny-imagenet", tiny, subset="balanced", per_class=1, pool=2, validation=0, size=64)
    assert data.test is None
    assert torch.equal(everything(data, seed=1, chunk=7), everything(data, seed=1, chunk=200))


def test_an_extracted_folder_is_read_anew(tiny: Path, tmp_path: Path) -> None:
    """Images that change between two runs of a process are seen; tables may have blank lines."""
    shutil.copytree(tiny, tmp_path, dirs_exist_ok=True)
    root = tmp_path / "tiny-imagenet-200"
    settings: dict[str, Any] = {"subset": "balanced", "per_class": 1, "pool": 2, "validation": 1, "size": 8}
    before = everything(load("tiny-imagenet", tmp_path, **settings), chunk=200)
    for file in (root / "train").rglob("*.JPEG"):
        Image.new("L", (64, 64), 200).save(file)
    table = root / "val" / "val_annotations.txt"
    table.write_text("\n" + table.read_text() + "\n")
    assert not torch.equal(everything(load("tiny-imagenet", tmp_path, **settings), chunk=200), before)
    table.write_bytes(b"val_0.JPEG\xff\tn0\n")
    with pytest.raises(DataError, match="tables of classes are damaged"):
        load("tiny-imagenet", tmp_path, **settings)


def test_missing_images_are_named(tiny: Path) -> None:
    """A pool larger than what is there is an error that names the first missing image."""
    with pytest.raises(DataError, match=r"200 images are missing, the first is n00000000_2\.JPEG"):
        load("tiny-imagenet", tiny, pool=3)


# -- the public files, where they are -------------------------------------------------------------------------------


def test_mnist_itself(data_dir: Path) -> None:
    """50 000 + 10 000 different images of ten digits, standardised; the barcode's corner is blank in every one."""
    data = load("mnist", data_dir)
    assert data.train.inputs.shape == (50_000, 1, 28, 28)
    assert data.test is not None
    assert len(data.test) == 10_000
    labels = torch.bincount(data.train.targets) + torch.bincount(data.test.targets)
    assert labels.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert data.train.inputs.mean((0, 1)).abs().max() < 1e-4
    assert data.train.inputs[:, 0, 0, :10].eq(0).all()


@pytest.mark.slow
def test_barcoded_mnist_has_the_papers_size(data_dir: Path) -> None:
    """101 200 images in 10 250 classes, 51 200 of them in 10 240 classes of five."""
    data = load("barcoded-mnist", data_dir)
    assert (len(data.train), data.num_classes) == (101_200, 10_250)
    assert data.counts[10:].eq(5).all()
    assert data.counts[:10].sum() == 50_000
    reduced = load("barcoded-mnist", data_dir, only=True, bits=6, samples=3_200)
    assert (len(reduced.train), reduced.num_classes) == (3_200, 640)


@pytest.mark.parametrize(("subset", "size"), [("balanced", 2_000), ("heavy-tailed", 673)])
def test_tiny_imagenet_itself(data_dir: Path, subset: str, size: int) -> None:
    """Of 100 images a class: 10 of each, or ceil(100 / k) of the k-th; in the range of normalised pixels."""
    data = load("tiny-imagenet", data_dir, subset=subset, pool=100, validation=2)
    assert len(data.train) == size == int(data.counts.sum())
    assert len(data.test or ()) == 400
    assert data.counts.argmax() == 0
    low, high = -max(m / s for m, s in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)), 2.65
    inputs = everything(data, chunk=100)
    assert low - 1e-4 <= inputs.min() < inputs.max() <= high
