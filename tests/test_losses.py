"""Class weights of the training loss."""

from __future__ import annotations

import math

import pytest
import torch

from heavytail.errors import DataError, SpecError
from heavytail.experiment.registry import Component, registry
from heavytail.losses import REGISTRY, CrossEntropy

COUNTS = torch.tensor([900, 80, 19, 1])


@pytest.mark.parametrize("weights", ["inverse", "inverse-sqrt"])
def test_weights_invert_the_class_frequencies(weights: str) -> None:
    """w_k is 1/pi_k or 1/sqrt(pi_k) with pi_k = count_k / total."""
    found = REGISTRY.make(Component("cross-entropy", {"weights": weights})).class_weights(COUNTS)
    assert found is not None
    for w, count in zip(found.tolist(), [900, 80, 19, 1], strict=True):
        pi = count / 1000
        assert w == pytest.approx(1 / pi if weights == "inverse" else 1 / math.sqrt(pi), rel=1e-15)


def test_inverse_weights_give_every_class_the_same_total() -> None:
    """With w = 1/pi the weights of a class's samples add up to the same number for every class."""
    w = CrossEntropy("inverse").class_weights(COUNTS)
    assert w is not None
    torch.testing.assert_close(w * COUNTS, torch.full((4,), 1000.0, dtype=torch.float64), rtol=1e-15, atol=0)


@pytest.mark.parametrize("weights", ["inverse", "inverse-sqrt"])
def test_absent_classes_weigh_nothing(weights: str) -> None:
    """A class without training samples has weight 0, and the other weights are those without that class."""
    found = REGISTRY.make(Component("cross-entropy", {"weights": weights})).class_weights(torch.tensor([3, 0, 1, 0]))
    alone = REGISTRY.make(Component("cross-entropy", {"weights": weights})).class_weights(torch.tensor([3, 1]))
    assert found is not None
    assert alone is not None
    assert found[[1, 3]].tolist() == [0.0, 0.0]
    assert torch.equal(found[[0, 2]], alone)


def test_plain_loss_has_no_weights() -> None:
    """Without weighting there are no weights, rather than weights of 1."""
    assert CrossEntropy().class_weights(COUNTS) is None
    assert registry("loss").resolve(Component("cross-entropy")) == Component("cross-entropy", {"weights": "none"})


@pytest.mark.parametrize("counts", [[0, 0], [1, -1], [[1, 2]]])
def test_impossible_counts_are_refused(counts: list[int]) -> None:
    """Counts that cannot be counts raise DataError instead of giving weights."""
    with pytest.raises(DataError, match="counts"):
        CrossEntropy("inverse").class_weights(torch.tensor(counts))


def test_unknown_weighting_names_the_nearest() -> None:
    """A misspelt weighting is refused with the one that was meant."""
    with pytest.raises(SpecError, match="inverse-sqrt"):
        REGISTRY.make(Component("cross-entropy", {"weights": "inverse_sqrt"}))
