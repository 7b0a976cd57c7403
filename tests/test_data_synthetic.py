"""The synthetic data sets have the classes, counts and inputs the paper defines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from heavytail.data import Data
from heavytail.data.synthetic import Inputs, RandomHeavyTail, SimpleImbalanced
from heavytail.errors import SpecError
from tests.reference import data as naive

NOWHERE = Path("no-such-folder")


def load(recipe: RandomHeavyTail | SimpleImbalanced, seed: int = 0) -> Data:
    return recipe.load(seed=seed, data_dir=NOWHERE)


@pytest.mark.parametrize("m", [2, 3, 5, 7])
def test_heavy_tailed_labels_follow_the_definition(m: int) -> None:
    """Labels, class counts and natural groups are those of the groups written out one sample at a time."""
    data = load(RandomHeavyTail(groups=m))
    labels, groups = naive.heavy_tailed_labels(m)
    assert data.train.targets.tolist() == labels
    assert data.natural_groups is not None
    assert data.natural_groups.tolist() == groups
    assert data.counts.tolist() == [labels.count(k) for k in range(len(groups))]
    assert data.num_classes == 2**m - 1
    assert data.test is None


@pytest.mark.parametrize(("m", "n", "d"), [(7, 896, 1_024), (8, 2_048, 2_304)])
def test_sizes_are_the_printed_ones(m: int, n: int, d: int) -> None:
    """N and D at m = 7 and 8 are the numbers of the paper, in float32."""
    inputs = load(RandomHeavyTail(groups=m)).train.inputs
    assert inputs.shape == (n, d)
    assert inputs.dtype == torch.float32


@pytest.mark.parametrize(
    ("inputs", "mean", "variance"), [("uniform", 0.5, 1 / 12), ("aligned", 1.0, 1.0), ("orthogonal", 0.0, 1.0)]
)
def test_inputs_have_the_distribution_of_their_name(inputs: Inputs, mean: float, variance: float) -> None:
    """Mean and variance over the 900 000 inputs are within 6 standard errors of those of the distribution."""
    x = load(RandomHeavyTail(groups=7, inputs=inputs)).train.inputs.double()
    kurtosis = 9 / 5 if inputs == "uniform" else 3
    assert abs(x.mean().item() - mean) < 6 * (variance / x.numel()) ** 0.5
    assert abs(x.var().item() - variance) < 6 * variance * ((kurtosis - 1) / x.numel()) ** 0.5
    if inputs == "uniform":
        assert x.min() >= 0
        assert x.max() <= 1


def test_balanced_control_differs_in_the_labels_only() -> None:
    """The balanced control has the same inputs and classes, and class counts m or m + 1."""
    heavy, balanced = load(RandomHeavyTail(groups=5)), load(RandomHeavyTail(groups=5, balanced=True))
    assert torch.equal(heavy.train.inputs, balanced.train.inputs)
    assert heavy.num_classes == balanced.num_classes
    assert set(balanced.counts.tolist()) == {5, 6}
    assert len(balanced.train) == len(heavy.train)
    assert balanced.natural_groups is None


def test_the_seed_decides_the_inputs() -> None:
    """One seed gives the same inputs twice, another seed other inputs and the same labels."""
    first, again, other = (load(RandomHeavyTail(groups=4), seed) for seed in (3, 3, 4))
    assert torch.equal(first.train.inputs, again.train.inputs)
    assert not torch.equal(first.train.inputs, other.train.inputs)
    assert torch.equal(first.train.targets, other.train.targets)


@pytest.mark.parametrize(("num_classes", "exponent", "samples"), [(2, 1.0, 10), (30, 1.0, 500), (50, 2.0, 200)])
def test_simple_setting_realises_the_power_law(num_classes: int, exponent: float, samples: int) -> None:
    """Counts are the rounded power law, at least one, and the sample of class k is e_k."""
    data = load(SimpleImbalanced(num_classes, exponent, samples))
    assert data.counts.tolist() == naive.power_law_counts(num_classes, exponent, samples)
    assert data.train.inputs.shape == (sum(data.counts), num_classes)
    for x, y in zip(data.train.inputs.tolist(), data.train.targets.tolist(), strict=True):
        assert x == [1.0 if k == y else 0.0 for k in range(num_classes)]


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: RandomHeavyTail(groups=1), "data.groups"),
        (lambda: RandomHeavyTail(groups=15), "data.groups"),
        (lambda: SimpleImbalanced(num_classes=1), "data.num_classes"),
        (lambda: SimpleImbalanced(exponent=-1.0), "data.exponent"),
        (lambda: SimpleImbalanced(exponent=float("nan")), "data.exponent"),
        (lambda: SimpleImbalanced(num_classes=10, samples=9), "data.samples"),
    ],
)
def test_bad_settings_are_named(make: Callable[[], object], field: str) -> None:
    """A setting out of range is a SpecError of one line that names the field."""
    with pytest.raises(SpecError, match=field) as caught:
        make()
    assert "\n" not in str(caught.value)
