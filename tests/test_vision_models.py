"""ResNet18 and SimpleViT against loops in float64 on their own weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from heavytail.data import Data, Split
from heavytail.errors import SpecError
from heavytail.experiment.registry import Component
from heavytail.models import REGISTRY
from tests.reference import vision as reference


def images(*shape: int, num_classes: int = 3) -> Data:
    """Images of noise with classes 0, 1, 2, 0, ..."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(shape, generator=generator, dtype=torch.float64)
    return Data(Split(inputs, torch.arange(shape[0]) % 3), None, num_classes)


def shape_only(*shape: int, num_classes: int) -> Data:
    """Data that are nothing but a shape."""
    return Data(Split(torch.empty(shape, device="meta"), torch.zeros(shape[0], dtype=torch.int64)), None, num_classes)


def build(name: str, data: Data, **settings: Any) -> Any:
    torch.manual_seed(0)
    return REGISTRY.make(Component(name, settings)).build(data)


def parameters(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """Randomise what initialises to constants (scales, shifts, biases) and return everything by name."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return {name: value.detach().numpy() for name, value in model.named_parameters()}


@pytest.mark.parametrize(
    ("name", "settings", "count"),
    [
        ("resnet18", {}, 11_689_512),
        ("resnet18", {"norm": "layer"}, 11_689_512),
        ("simple-vit", {}, 21_974_632),
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, settings: dict[str, Any], count: int) -> None:
    """With 1 000 classes at 224 pixels: ResNet18 has 11 689 512 parameters with either norm, ViT-S/16 22.0 million."""
    data = shape_only(1, 3, 224, 224, num_classes=1_000)
    with torch.device("meta"):
        model = build(name, data, **settings)
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize("small_stem", [False, True])
def test_resnet18_features_match_loops(norm: str, small_stem: bool) -> None:
    """Every convolution, normalisation and shortcut: features equal the reference's to 1e-10, on an odd-sized image."""
    data = images(3, 2, 19, 16)
    model = build("resnet18", data, width=2, norm=norm, small_stem=small_stem).double().train()
    expected = reference.resnet18_features(data.train.inputs.numpy(), parameters(model), norm, small_stem)
    features = model.features(data.train.inputs)
    assert features.shape == (3, 16)
    np.testing.assert_allclose(features.detach().numpy(), expected, rtol=1e-10, atol=1e-10)


@pytest.fixture
def _double() -> Iterator[None]:
    """Build in float64 from the start, positions included."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_double")
def test_vit_features_match_loops() -> None:
    """Patches, positions, blocks and pooling: features equal the reference's to 1e-10, on an oblong image."""
    data = images(2, 3, 8, 12)
    settings = {"patch": 4, "width": 16, "depth": 2, "heads": 2, "mlp": 24}
    model = build("simple-vit", data, **settings)
    expected = reference.vit_features(data.train.inputs.numpy(), parameters(model), patch=4, depth=2, heads=2)
    features = model.features(data.train.inputs)
    assert features.shape == (2, 16)
    np.testing.assert_allclose(features.detach().numpy(), expected, rtol=1e-10, atol=1e-10)


def test_layer_norm_treats_images_alone_in_training() -> None:
    """The LayerNorm variant has no batch statistics: an image's features do not depend on the others, in train mode."""
    data = images(4, 3, 16, 16)
    model = build("resnet18", data, width=2, norm="layer").double().train()
    whole = model.features(data.train.inputs)
    torch.testing.assert_close(model.features(data.train.inputs[:1]), whole[:1], rtol=1e-12, atol=1e-12)


CONVOLUTIONAL: dict[str, Callable[[int], dict[str, Any]]] = {
    "cnn": lambda width: {"channels": [width, width + 1]},
    "resnet18": lambda width: {"width": width, "small_stem": True},
    "simple-vit": lambda width: {"patch": 2, "width": 4 * width, "depth": 1, "heads": 1, "mlp": 4},
}


def gradients(model: Any, data: Data, dtype: torch.dtype) -> list[torch.Tensor]:
    model.to(dtype).zero_grad()
    logits = model.head(model.features(data.train.inputs.to(dtype)))
    torch.nn.functional.cross_entropy(logits, data.train.targets).backward()
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("width", [1, 2, 4, 6, 7, 8, 9, 12, 16])
@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_convolution_gradients_are_right_at_any_width(name: str, width: int) -> None:
    """Single-precision gradients equal double-precision ones to 1e-4 of the largest entry, and the heap survives.

    With fewer than 8 channels in channels_last, oneDNN's AVX2 kernels write past the end of a buffer.
    """
    data = images(6, 1 + width % 3, 8, 8)
    model = build(name, data, **CONVOLUTIONAL[name](width)).eval()
    for _ in range(3):
        single, double = gradients(model, data, torch.float32), gradients(model, data, torch.float64)
        for s, d in zip(single, double, strict=True):
            assert (s - d).abs().max() <= 1e-4 * d.abs().max() + 1e-7


def test_channels_last_needs_eight_channels() -> None:
    """A body with a layer of fewer than 8 channels stays contiguous; from 8 on it is in channels_last."""
    for width, layout in ((7, torch.contiguous_format), (8, torch.channels_last)):
        for name in ("cnn", "resnet18"):
            model = build(name, images(2, 3, 8, 8), **CONVOLUTIONAL[name](width))
            kernels = [m.weight for m in model.modules() if isinstance(m, torch.nn.Conv2d) and m.in_channels >= 7]
            assert all(w.is_contiguous(memory_format=layout) for w in kernels)


@pytest.mark.parametrize(
    ("name", "settings", "shape", "message"),
    [
        ("resnet18", {}, (2, 12), "needs images"),
        ("resnet18", {"width": 0}, (2, 3, 8, 8), r"model\.width: expected at least 1, got 0"),
        ("resnet18", {"norm": "bach"}, (2, 3, 8, 8), "did you mean 'batch'"),
        ("simple-vit", {}, (2, 12), "needs images"),
        ("simple-vit", {"patch": 5}, (2, 3, 8, 8), r"model\.patch: expected a divisor of 8 x 8 pixels, got 5"),
        ("simple-vit", {"width": 10, "heads": 2}, (2, 3, 16, 16), r"model\.width: expected a multiple of 4"),
        ("simple-vit", {"width": 12, "heads": 5}, (2, 3, 16, 16), "and of 5 heads, got 12"),
        ("simple-vit", {"depth": 0}, (2, 3, 16, 16), r"model\.depth: expected at least 1, got 0"),
    ],
)
def test_bad_settings_are_one_line_errors(
    name: str, settings: dict[str, Any], shape: tuple[int, ...], message: str
) -> None:
    """A setting that cannot be is named, with what is allowed, before anything is built."""
    with pytest.raises(SpecError, match=message) as caught:
        build(name, shape_only(*shape, num_classes=3), **settings)
    assert "\n" not in str(caught.value)
