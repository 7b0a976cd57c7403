"""The analysis of the head and of whole networks, against dense Hessians, loops and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from heavytail.analysis.correlation import frequency_halves, loglog
from heavytail.analysis.curvature import (
    block_trace_matrix,
    class_features,
    dominance,
    head_blocks,
    hessian_entries,
    sample_classes,
)
from heavytail.data import Data, Split
from heavytail.errors import DataError, SpecError
from heavytail.experiment.registry import Component, registry
from tests.problems import output
from tests.reference import hessian as reference
from tests.reference.hutchinson import sample_traces

C = 6


def model_and_data(kind: str, *, samples: int = 14) -> tuple[nn.Module, Tensor, Tensor]:
    """A small model of one kind in float64, with its inputs and targets; class 5 has no sample."""
    torch.manual_seed(0)
    if kind == "linear":
        inputs, component = torch.rand(samples, 7), Component("linear")
    elif kind == "cnn":
        inputs, component = torch.rand(samples, 1, 8, 8), Component("cnn", {"channels": (2, 3)})
    else:
        inputs = torch.randint(0, C, (samples // 2, 4))
        component = Component("transformer", {"width": 8, "mlp": 8, "depth": 1, "heads": 2})
    shape = (len(inputs),) if inputs.is_floating_point() else inputs.shape
    targets = torch.randint(0, C - 1, shape)
    if inputs.is_floating_point():
        inputs = inputs.double()
    model = registry("model").make(component).build(Data(Split(inputs, targets), None, C)).double()
    with torch.no_grad():
        model.head.weight.normal_(0.0, 0.5)  # far enough from zero for the probabilities to differ
        model.head.bias.normal_(0.0, 0.5)
    return model.eval(), inputs, targets


def head_of(kind: str) -> tuple[Tensor, Tensor, nn.Linear]:
    model, inputs, targets = model_and_data(kind)
    with torch.no_grad():
        features = model.features(inputs)  # type: ignore[operator]
    return features, targets.flatten(), model.head  # type: ignore[return-value]


@pytest.mark.parametrize("kind", ["linear", "cnn", "transformer"])
@pytest.mark.parametrize("include_bias", [False, True])
def test_head_blocks_are_those_of_the_dense_hessian(kind: str, include_bias: bool) -> None:
    """Gradient norms and traces of every class, in pieces, equal automatic differentiation to 1e-10."""
    features, targets, head = head_of(kind)
    pairs = zip(features.split(5), targets.split(5), strict=True)
    blocks = head_blocks(pairs, head.weight, head.bias, include_bias=include_bias)
    gradient, hessian, bias_gradient, bias_hessian = reference.head_derivatives(
        features, targets, head.weight, head.bias
    )
    norm, trace = gradient.square().sum(1), torch.einsum("kdkd->k", hessian)
    if include_bias:
        norm, trace = norm + bias_gradient.square(), trace + bias_hessian.diagonal()
    torch.testing.assert_close(blocks.grad_norm, norm.sqrt(), rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(blocks.trace, trace, rtol=1e-10, atol=1e-14)


def test_head_blocks_average_the_probabilities() -> None:
    """p_correct, p_spread and p_mean are the moments of softmax's output, class by class."""
    features, targets, head = head_of("linear")
    blocks = head_blocks([(features, targets)], head.weight, head.bias)
    p = head(features).softmax(1).detach()
    for k in range(C - 1):
        own = p[targets == k, k]
        assert blocks.p_correct[k].item() == pytest.approx(own.mean().item(), rel=1e-12)
        assert blocks.p_spread[k].item() == pytest.approx(own.std(correction=0).item(), abs=1e-8)
    assert blocks.p_correct[C - 1].isnan()
    torch.testing.assert_close(blocks.p_mean, p.mean(0))


def test_head_blocks_without_bias_are_those_of_a_zero_bias() -> None:
    """A head without bias has the blocks of the same head with b = 0."""
    features, targets, head = head_of("linear")
    without = head_blocks([(features, targets)], head.weight)
    zero = head_blocks([(features, targets)], head.weight, torch.zeros(C, dtype=torch.float64))
    torch.testing.assert_close(without.trace, zero.trace, rtol=0, atol=0)
    torch.testing.assert_close(without.grad_norm, zero.grad_norm, rtol=0, atol=0)


def test_head_blocks_leave_the_head_alone() -> None:
    """Neither the parameters nor their gradients change, and no_grad around the call is fine."""
    features, targets, head = head_of("linear")
    head.weight.grad = torch.ones_like(head.weight)
    before = head.weight.detach().clone(), head.bias.detach().clone()
    with torch.no_grad():
        head_blocks([(features, targets)], head.weight, head.bias)
    assert torch.equal(head.weight, before[0])
    assert torch.equal(head.bias, before[1])
    assert torch.equal(head.weight.grad, torch.ones_like(head.weight))
    assert head.bias.grad is None


def test_nothing_to_measure_is_a_data_error() -> None:
    """An empty iterable of pairs is refused, not divided by."""
    with pytest.raises(DataError, match="got none"):
        head_blocks([], torch.zeros(3, 2))
    with pytest.raises(DataError, match="got none"):
        class_features([], 3)


@pytest.mark.parametrize("kind", ["linear", "cnn", "transformer"])
def test_entries_are_those_of_the_dense_hessian(kind: str) -> None:
    """Chosen entries, diagonal blocks and others, equal automatic differentiation to 1e-10."""
    features, targets, head = head_of(kind)
    classes, inputs = [4, 0, 5], [1, 3]
    pairs = zip(features.split(5), targets.split(5), strict=True)
    entries = hessian_entries(pairs, head.weight, head.bias, classes, inputs)
    hessian = reference.head_derivatives(features, targets, head.weight, head.bias)[1]
    expected = hessian[classes][:, inputs][:, :, classes][..., inputs].reshape(6, 6)
    torch.testing.assert_close(entries, expected, rtol=1e-10, atol=1e-15)


def test_block_traces_equal_loops() -> None:
    """The matrix of block traces, in pieces, equals loops over samples and pairs of classes."""
    features, targets, head = head_of("transformer")
    pairs = zip(features.split(9), targets.split(9), strict=True)
    matrix = block_trace_matrix(pairs, head.weight, head.bias)
    expected = reference.block_trace_matrix(features, head.weight, head.bias)
    np.testing.assert_allclose(matrix.numpy(), expected, rtol=1e-12, atol=1e-15)


def test_block_traces_are_only_just_dominant() -> None:
    """Tr H_kk = sum_{j != k} |Tr H_kj| whatever the weights (section H.1 holds with equality)."""
    features, targets, head = head_of("linear")
    share, largest = dominance(block_trace_matrix([(features, targets)], 3.0 * head.weight))
    torch.testing.assert_close(share, torch.ones(C, dtype=torch.float64), rtol=1e-12, atol=0)
    assert (largest > 1 / (C - 1)).all()
    assert (largest <= 1 + 1e-12).all()


def test_dominance_sees_a_row_that_is_not() -> None:
    """A row whose other entries sum to more than its diagonal has a share below 1."""
    share, largest = dominance(torch.tensor([[2.0, -3.0, 1.0], [0.0, 5.0, 1.0], [1.0, 1.0, 2.0]]))
    assert share.tolist() == [0.5, 5.0, 1.0]
    assert largest.tolist() == pytest.approx([1.5, 0.2, 0.5])


@pytest.mark.parametrize("num", [1, 2, 7, 40, 99, 100, 500])
@pytest.mark.parametrize("sampling", ["uniform", "log-uniform"])
def test_sampled_classes_are_different_and_ordered(num: int, sampling: str) -> None:
    """min(num, C) different classes, most frequent first, from the first to the last rank."""
    counts = np.random.default_rng(0).permutation(np.arange(1, 101))
    classes = sample_classes(counts, num, sampling)  # type: ignore[arg-type]
    assert len(set(classes.tolist())) == min(num, 100)
    assert (np.diff(counts[classes]) < 0).all()
    assert counts[classes[0]] == 100
    assert num == 1 or counts[classes[-1]] == 1


def test_log_uniform_sampling_favours_frequent_classes() -> None:
    """Of 1 000 classes, a third of log-uniform samples are among the ten most frequent; of uniform ones hardly any."""
    counts = np.arange(1000, 0, -1)
    assert (sample_classes(counts, 30, "log-uniform") < 10).sum() >= 10
    assert (sample_classes(counts, 30, "uniform") < 10).sum() == 1


def test_class_features_equal_loops() -> None:
    """Means, second moments and radius in pieces equal those of each class's samples; an empty class is NaN."""
    features, targets, _ = head_of("linear")
    moments = class_features(zip(features.split(4), targets.split(4), strict=True), C)
    for k in range(C - 1):
        own = features[targets == k]
        torch.testing.assert_close(moments.mean[k], own.mean(0))
        torch.testing.assert_close(moments.sq_norm[k], own.square().sum(1).mean())
    assert moments.mean[C - 1].isnan().all()
    assert moments.mean_sq_norm == pytest.approx(features.square().sum(1).mean().item())
    assert moments.radius == pytest.approx(features.norm(dim=1).max().item())


@pytest.mark.parametrize("kind", ["linear", "cnn", "transformer"])
def test_hutchinson_lies_within_its_own_error_bars(kind: str) -> None:
    """The trace of every parameter, and of all, is within 4 standard errors of that of the exact diagonal."""
    model, inputs, targets = model_and_data(kind, samples=8)

    def batches() -> list[tuple[Tensor, Tensor]]:
        return [(inputs[:3], targets[:3]), (inputs[3:], targets[3:])]

    samples = sample_traces(model, batches, num_vectors=200)
    exact = reference.network_traces(model, inputs, targets)
    assert set(samples.rows) == set(exact)
    for name, diagonal in exact.items():
        value, error = samples.trace(name)
        assert abs(value - diagonal.sum()) <= 4 * error + 1e-12, name
    value, error = samples.trace()
    assert abs(value - sum(d.sum() for d in exact.values())) <= 4 * error


@pytest.mark.parametrize("kind", ["linear", "cnn", "transformer"])
def test_hutchinson_agrees_with_the_closed_form_of_the_head(kind: str) -> None:
    """With the body frozen, the rows of the head are within 4 standard errors of the closed form, of 20 % at most."""
    model, inputs, targets = model_and_data(kind)
    model.requires_grad_(False)
    model.head.weight.requires_grad_()
    rows = sample_traces(model, lambda: [(inputs, targets)], num_vectors=300).row_traces("head.weight")
    blocks = head_blocks([(model.features(inputs), targets.flatten())], model.head.weight, model.head.bias)
    assert ((rows.value - blocks.trace).abs() <= 4 * rows.error).all()
    assert (rows.error <= 0.2 * blocks.trace).all()


def test_hutchinson_errors_are_the_right_size() -> None:
    """Over 60 independent estimates, about 95 % of the true values lie within 1.96 standard errors."""
    model, inputs, targets = model_and_data("linear")
    exact = head_blocks([(inputs, targets)], model.head.weight, model.head.bias).trace
    inside = []
    for seed in range(10):
        rows = sample_traces(model, lambda: [(inputs, targets)], num_vectors=64, seed=seed).row_traces("head.weight")
        inside += ((rows.value - exact).abs() <= 1.96 * rows.error).tolist()
    assert 0.88 <= np.mean(inside) <= 1.0


def test_hutchinson_leaves_mode_and_generator_alone() -> None:
    """A model in training mode stays in it, and torch's global generator does not move."""
    model, inputs, targets = model_and_data("linear")
    model.train()
    state = torch.get_rng_state()
    sample_traces(model, lambda: [(inputs, targets)], num_vectors=2)
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(SpecError, match="num_vectors"):
        sample_traces(model, lambda: [(inputs, targets)], num_vectors=1)


@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_loglog_agrees_with_scipy(confidence: float) -> None:
    """Pearson and its interval, Spearman, slope and its standard error are scipy's."""
    rng = np.random.default_rng(1)
    x = rng.lognormal(size=40)
    y = x**1.5 * rng.lognormal(sigma=0.7, size=40)
    fit = loglog(x, y, confidence=confidence)
    pearson = stats.pearsonr(np.log(x), np.log(y))
    assert fit.pearson.value == pytest.approx(pearson.statistic, rel=1e-12)
    assert fit.pearson[1:] == pytest.approx(tuple(pearson.confidence_interval(confidence)), rel=1e-10)
    assert fit.spearman.value == pytest.approx(stats.spearmanr(x, y).statistic, rel=1e-12)
    line = stats.linregress(np.log(x), np.log(y))
    assert fit.slope.value == pytest.approx(line.slope, rel=1e-12)
    assert fit.slope.high - line.slope == pytest.approx(line.stderr * stats.t.ppf(0.5 + confidence / 2, 38), rel=1e-9)


def test_loglog_worked_by_hand() -> None:
    """(1, 1), (10, 10), (100, 10): r = sqrt(3)/2, slope 1/2; ties share rank 2.5, so rho = sqrt(3)/2 as well."""
    fit = loglog([1, 10, 100], [1, 10, 10])
    assert fit.pearson.value == pytest.approx(math.sqrt(3) / 2)
    assert fit.spearman.value == pytest.approx(math.sqrt(3) / 2)
    assert fit.slope.value == pytest.approx(0.5)
    assert fit.pearson[1:] == (-1.0, 1.0)  # three points say nothing about the correlation


def test_loglog_intervals_cover() -> None:
    """The 90 % intervals of all three hold the true value in 86 to 94 % of 1 000 samples of 30 from a known law."""
    rng = np.random.default_rng(2)
    rho = 0.6
    truth = {"pearson": rho, "spearman": 6 / math.pi * math.asin(rho / 2), "slope": rho}
    hits = dict.fromkeys(truth, 0)
    for _ in range(1000):
        u = rng.normal(size=30)
        fit = loglog(np.exp(u), np.exp(rho * u + math.sqrt(1 - rho**2) * rng.normal(size=30)), confidence=0.9)
        for name, value in truth.items():
            hits[name] += getattr(fit, name).low <= value <= getattr(fit, name).high
    assert all(860 <= count <= 940 for count in hits.values()), hits


def test_loglog_leaves_out_what_has_no_logarithm() -> None:
    """Zeros, infinities and NaN are dropped; a constant or fewer than three points give NaN."""
    fit = loglog([1, 2, 4, 0, 8, math.inf], [3, 6, 12, 5, math.nan, 1])
    assert fit.num == 3
    assert fit.slope.value == pytest.approx(1.0)
    assert math.isnan(loglog([1, 2, 3], [4, 4, 4]).pearson.value)
    assert math.isnan(loglog([1, 2], [4, 5]).slope.value)
    assert loglog([1, 2, 4, 9], [1, 2, 4, 1], where=[True, True, True, False]).pearson.value == pytest.approx(1.0)
    with pytest.raises(SpecError, match="confidence"):
        loglog([1], [1], confidence=1.0)
    with pytest.raises(SpecError, match="shapes"):
        loglog([1, 2], [1])


def test_halves_cut_the_classes_that_occur() -> None:
    """Classes without samples are in neither half; the middle one of an odd number neither."""
    frequent, rare = frequency_halves([0, 3, 9, 1, 4, 7])
    assert np.flatnonzero(frequent).tolist() == [2, 5]
    assert np.flatnonzero(rare).tolist() == [1, 3]


@pytest.mark.slow
def test_block_trace_matrix_of_2047_classes_fits_in_half_a_gigabyte() -> None:
    """The peak grows by less than 0.5 GB at C = 2 047, whatever the number of samples."""
    grown = output(
        "import torch\n"
        "from benchmarks.memory import peak\n"
        "from heavytail.analysis.curvature import block_trace_matrix\n"
        "X, W = torch.rand(6000, 64), torch.randn(2047, 64)\n"
        "before = peak()\n"
        "block_trace_matrix([(X, torch.zeros(6000, dtype=torch.int64))], W)\n"
        "print(peak() - before)"
    )
    assert float(grown) < 0.5e9


def test_values_equal_up_to_rounding_are_constant() -> None:
    """A correlation with values that differ in their last bit is undefined, as with equal ones."""
    y = 3.0 * (1 + np.finfo(np.float64).eps * (np.arange(50) % 3))
    assert math.isnan(loglog(np.arange(1, 51), y).pearson.value)
