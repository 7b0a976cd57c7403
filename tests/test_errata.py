"""Points of docs/errata.md that no other test holds: what the release or the text says, and what is so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from heavytail.analysis.curvature import head_blocks
from heavytail.experiment.registry import Component, registry
from heavytail.experiment.store import RunStore
from heavytail.experiment.sweep import Sweep
from heavytail.probes.head import HessianEntriesProbe
from heavytail.train.engine import build_model, load_data, train
from tests.problems import tiny
from tests.reference import hessian as reference


def test_appendix_c_has_seven_groups() -> None:
    """Figures 15 and 16 run on m = 7: 896 samples, 1 024 inputs (erratum 2)."""
    for preset in ("linear-inputs", "linear-long"):
        sweep = Sweep.load(preset, scale="paper")
        assert sweep.run["data"]["groups"] == 7
    data = registry("data").make(Component("random-heavy-tail", {"groups": 7})).load(seed=0, data_dir=Path())
    assert data.train.inputs.shape == (896, 1024)


@pytest.mark.parametrize(("inputs", "factor"), [("uniform", 1.5), ("orthogonal", 0.0)])
def test_the_releases_trace_is_not_the_trace(inputs: str, factor: float) -> None:
    """Weighting x and averaging over d gives factor / d times the trace: a constant 1.5, or nothing (erratum 5)."""
    data = (
        registry("data")
        .make(Component("random-heavy-tail", {"groups": 7, "inputs": inputs}))
        .load(seed=0, data_dir=Path())
    )
    X, y = data.train.inputs.double(), data.train.targets
    W = 0.01 * torch.randn(
        data.num_classes, X.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    p = (X @ W.t()).softmax(1)
    release = ((p * (1 - p)).t() @ X).mean(1) / len(X)
    relative = release * X.shape[1] / head_blocks([(X, y)], W).trace
    np.testing.assert_allclose(relative, factor, atol=0.03 if factor else 0.01)


def test_dropout_does_not_enter_what_is_recorded(tmp_path: Path) -> None:
    """Recorded losses are those in eval mode; in training mode two passes over the same weights differ (erratum 6)."""
    spec = tiny(
        data={"name": "stdlib-text", "max_tokens": 400, "max_vocab": 20},
        model={"name": "transformer", "width": 8, "mlp": 8, "dropout": 0.2},
    )
    data, recorded = load_data(spec, tmp_path), train(spec, RunStore(tmp_path), data_dir=tmp_path).loss[0]
    model = build_model(spec, data)

    @torch.no_grad()
    def loss() -> float:
        logits = model.head(model.features(data.train.inputs))  # type: ignore[operator]
        return float(torch.nn.functional.cross_entropy(logits, data.train.targets.flatten()))

    assert model.train() is model
    assert loss() != loss()
    model.eval()
    assert recorded == pytest.approx(loss(), rel=1e-6)


def test_figures_8_and_28_show_forty_classes_and_four_inputs() -> None:
    """160 x 160 entries are 40 classes times 4 inputs, of two samplings (erratum 7)."""
    for preset in (Sweep.load("linear-path", scale=scale) for scale in ("paper", "small", "quick")):
        component = next(p for p in preset.probes if p.name == "hessian-entries")
        probe = registry("probe").make(component)
        assert isinstance(probe, HessianEntriesProbe)
        assert (probe.classes, probe.inputs, probe.traced) == (40, 4, 160)


def test_block_traces_cannot_fail_to_be_dominant() -> None:
    """Tr H_kk = sum |Tr H_kj| for random weights, labels and inputs of any size: H.1 is an identity (erratum 12)."""
    generator = torch.Generator().manual_seed(0)
    for scale in (0.0, 0.1, 3.0):
        X, W = torch.randn(20, 4, generator=generator), scale * torch.randn(5, 4, generator=generator)
        matrix = reference.block_trace_matrix(X, W, None)
        np.testing.assert_allclose(matrix.diagonal(), np.abs(matrix).sum(1) - matrix.diagonal(), rtol=1e-12)


def test_default_weights_spread_the_initial_traces(tmp_path: Path) -> None:
    """With PyTorch's initial weights the largest trace is several times the smallest, with W = 0 equal (erratum 13)."""
    spread = {}
    for init in ("default", "zero"):
        spec = tiny(model={"name": "linear", "init": init}, data={"name": "random-heavy-tail", "groups": 7})
        data = load_data(spec, tmp_path)
        head = build_model(spec, data).get_submodule("head")
        trace = head_blocks([(data.train.inputs, data.train.targets)], head.weight, head.bias).trace  # type: ignore[arg-type]
        spread[init] = float(trace.max() / trace.min())
    assert spread["default"] > 2.5
    assert spread["zero"] == pytest.approx(1.0, abs=1e-5)


def test_a_calibrated_class_gets_as_much_from_others_as_it_lacks() -> None:
    """Where the gradient in b_k is 0, others give class k just pi_k (1 - p_k), in eq. 2 nothing (erratum 14)."""
    generator = torch.Generator().manual_seed(0)
    X, y = torch.rand(40, 6, dtype=torch.float64, generator=generator), torch.arange(40) % 4
    W, b = torch.randn(4, 6, dtype=torch.float64, generator=generator), torch.zeros(4, dtype=torch.float64)
    for _ in range(200):  # fit the bias alone
        p = (X @ W.t() + b).softmax(1)
        b += torch.log(torch.bincount(y) / len(y)) - torch.log(p.mean(0))
    blocks = head_blocks([(X, y)], W, b)
    pi = blocks.count / blocks.count.sum()
    torch.testing.assert_close(blocks.p_mean - pi * blocks.p_correct, pi * (1 - blocks.p_correct), rtol=1e-8, atol=0)


@pytest.mark.parametrize("c", [10, 1_000, 10_250])
def test_lemma_6_needs_a_later_time(c: int) -> None:
    """W's argument is e^(1/z) at the printed time, and the e that the bound needs at z (log z + 1) (erratum 15)."""
    z = c - 1
    printed, needed = z * np.log(z) + 1, z * (np.log(z) + 1)
    assert np.exp(printed / z - np.log(z)) == pytest.approx(np.exp(1 / z), rel=1e-9)
    assert np.exp(printed / z - np.log(z)) < np.e
    assert np.exp(needed / z - np.log(z)) == pytest.approx(np.e, rel=1e-9)


@pytest.mark.parametrize(("c", "share"), [(10**4, 0.55), (10**6, 0.64)])
def test_zipf_data_that_proposition_2_covers(c: int, share: float) -> None:
    """The first c / log^2 c classes hold about half of the data; the last of them has c pi_k < log c (erratum 17)."""
    frequencies = 1 / np.arange(1, c + 1)
    frequencies /= frequencies.sum()
    last = int(c / np.log(c) ** 2)
    assert frequencies[:last].sum() == pytest.approx(share, abs=0.005)
    assert c * frequencies[last - 1] < np.log(c)


def test_the_synthetic_data_have_nearly_as_many_samples_as_inputs() -> None:
    """At m = 11 n/d is 0.92, not much less than 1 (erratum 19)."""
    data = registry("data").make(Component("random-heavy-tail", {"groups": 11})).load(seed=0, data_dir=Path())
    samples, inputs = data.train.inputs.shape
    assert samples / inputs == pytest.approx(0.92, abs=0.005)
