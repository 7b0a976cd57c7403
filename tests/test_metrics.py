"""Frequency groups and class statistics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from heavytail.errors import SpecError
from heavytail.metrics import ClassStats, FrequencyGroups
from tests.reference import metrics as reference

counts_lists = st.lists(st.integers(0, 50), min_size=1, max_size=30).filter(any)


def test_groups_by_hand() -> None:
    """20 samples in 4 groups of 5: the class of 11 spans groups 0 to 2, so that no class starts in 1."""
    groups = FrequencyGroups.from_counts([1, 11, 0, 3, 3, 2], num_groups=4)
    # ranked: class 1 (0 samples before it), 3 (11), 4 (14), 5 (17), 0 (19); class 2 has none
    # start quarter:      0                  2       2       3       3
    assert groups.index.tolist() == [2, 0, 2, 1, 1, 2]
    assert groups.share.tolist() == [11 / 20, 6 / 20, 3 / 20]
    assert (groups.num_groups, groups.num_classes) == (3, 6)


def test_a_class_on_a_cut_starts_the_next_group() -> None:
    """Ten equal classes fill ten groups exactly: no rounding moves one across a cut."""
    assert FrequencyGroups.from_counts([7] * 10).index.tolist() == list(range(10))
    assert FrequencyGroups.from_counts([3] * 49, num_groups=49).index.tolist() == list(range(49))


@given(counts_lists, st.integers(1, 12))
def test_groups_are_the_reference(counts: list[int], num_groups: int) -> None:
    """Groups agree with exact fractions for any counts, zeros and ties included."""
    groups = FrequencyGroups.from_counts(counts, num_groups)
    assert groups.index.tolist() == reference.frequency_groups(counts, num_groups)
    assert groups.share.sum() == pytest.approx(1.0)
    assert (groups.share > 0).all()


def test_natural_groups_keep_their_order() -> None:
    """Given groups are used as they are, gaps in their numbers closed."""
    groups = FrequencyGroups.from_index([4, 1, 4, 0], counts=[1, 2, 3, 4])
    assert groups.index.tolist() == [2, 1, 2, 0]
    assert groups.share.tolist() == [0.4, 0.2, 0.4]


@pytest.mark.parametrize(
    ("counts", "num_groups", "message"),
    [
        ([1, -1], 2, "counts: expected at least 0, got -1"),
        ([1.0, 2.0], 2, "counts: expected integers"),
        ([1.0, math.nan], 2, "counts: expected integers"),
        ([[1, 2]], 2, "counts: expected integers"),
        ([0, 0], 2, "counts: expected at least one sample"),
        ([1, 2], 0, "num_groups: expected at least 1, got 0"),
    ],
)
def test_bad_counts_are_named(counts: list[int], num_groups: int, message: str) -> None:
    """Counts that are no counts are refused with the reason."""
    with pytest.raises(SpecError, match=message):
        FrequencyGroups.from_counts(counts, num_groups)


def test_lengths_must_agree() -> None:
    """Anything per class has one entry per class."""
    groups = FrequencyGroups.from_counts([3, 2, 1], 2)
    with pytest.raises(SpecError, match="index: expected one group for each of 3 classes"):
        FrequencyGroups.from_index([0, 1], [3, 2, 1])
    with pytest.raises(SpecError, match=r"values: expected \[..., 3\], got \[2\]"):
        groups.sum([1.0, 2.0])
    with pytest.raises(SpecError, match="num_classes: expected 2 to add, got 3"):
        ClassStats.zeros(2) + ClassStats.zeros(3)
    with pytest.raises(SpecError, match=r"losses: expected \[4\] like targets, got \[3\]"):
        ClassStats.zeros(2).update(*(torch.zeros(n, dtype=torch.int64) for n in (4, 3, 4, 4)))


def _rows(generator: torch.Generator, *shape: int, num_classes: int) -> tuple[torch.Tensor, ...]:
    targets = torch.randint(num_classes, shape, generator=generator)
    losses = torch.randn(shape, generator=generator).exp()
    return targets, losses, torch.rand(shape, generator=generator) < 0.5, torch.exp(-losses)


def _assert_same(one: ClassStats, other: ClassStats) -> None:
    assert torch.equal(one.count, other.count)
    assert torch.equal(one.correct, other.correct)
    torch.testing.assert_close(one.loss_sum, other.loss_sum, rtol=1e-14, atol=0.0)
    torch.testing.assert_close(one.p_correct_sum, other.p_correct_sum, rtol=1e-14, atol=0.0)


def test_sums_are_the_reference() -> None:
    """Sums and counts of each class agree with loops, whatever the leading shape."""
    C = 7
    targets, losses, correct, p_correct = _rows(torch.Generator().manual_seed(0), 6, 11, num_classes=C)
    stats = ClassStats.zeros(C + 1)  # the last class never occurs
    stats.update(targets, losses, correct, p_correct)
    y = targets.flatten().tolist()
    for got, values in (
        (stats.count, torch.ones_like(targets)),
        (stats.loss_sum, losses),
        (stats.correct, correct),
        (stats.p_correct_sum, p_correct),
    ):
        expected = reference.class_sums(y, values.double().flatten().tolist(), C + 1)
        np.testing.assert_allclose(got, expected, rtol=1e-14)
    assert torch.isnan(torch.stack([stats.mean_loss(), stats.accuracy(), stats.mean_p_correct()])[:, C]).all()
    assert stats.overall_loss() == pytest.approx(losses.double().mean().item(), rel=1e-14)


def test_updates_and_sums_commute() -> None:
    """Two batches into one are the sum of two, and the operands of a sum stay as they were."""
    generator = torch.Generator().manual_seed(1)
    both, parts = ClassStats.zeros(5), [ClassStats.zeros(5), ClassStats.zeros(5)]
    for part in parts:
        rows = _rows(generator, 40, num_classes=5)
        part.update(*rows)
        both.update(*rows)
    before = parts[0].count.clone()
    _assert_same(parts[0] + parts[1], both)
    assert torch.equal(parts[0].count, before)


def test_ignored_rows_count_nowhere() -> None:
    """Rows with the ignored target change nothing, not even when their loss is NaN."""
    targets, losses, correct, p_correct = _rows(torch.Generator().manual_seed(2), 30, num_classes=4)
    keep = torch.arange(30) % 3 > 0
    expected, got = ClassStats.zeros(4), ClassStats.zeros(4)
    expected.update(targets[keep], losses[keep], correct[keep], p_correct[keep])
    losses[~keep] = math.nan
    got.update(torch.where(keep, targets, -100), losses, correct, p_correct, ignore_index=-100)
    _assert_same(got, expected)


def test_long_sums_keep_their_digits() -> None:
    """A million equal float32 losses have exactly that mean: sums are float64."""
    losses = torch.full((1_000_000,), 0.1)
    stats = ClassStats.zeros(1)
    stats.update(torch.zeros(1_000_000, dtype=torch.int64), losses, losses > 0, losses)
    assert stats.overall_loss() == pytest.approx(losses[0].item(), rel=1e-9)


def test_no_rows_have_no_mean() -> None:
    """The mean over nothing is NaN, not 0."""
    assert math.isnan(ClassStats.zeros(3).overall_loss())


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_counts_of_any_size_do_not_wrap(dtype: type) -> None:
    """Groups of huge counts are those of the same counts divided by 2^55."""
    counts = np.array([17, 9, 4, 2, 1, 1], dtype)
    small, large = (FrequencyGroups.from_counts(c, 10) for c in (counts, counts * dtype(2**55)))
    np.testing.assert_array_equal(small.index, large.index)
    np.testing.assert_allclose(small.share, large.share)
    assert FrequencyGroups.from_counts([2**60, 2**60], 10).index.tolist() == [0, 1]
    with pytest.raises(SpecError, match=r"counts: expected numbers below 2\^63"):
        FrequencyGroups.from_counts(np.array([2**63], np.uint64))
    with pytest.raises(SpecError, match="num_groups: expected an integer"):
        FrequencyGroups.from_counts([1, 2], 2.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_targets_of_any_integer_type_are_counted(dtype: torch.dtype) -> None:
    """Targets are class numbers, whatever integers they are held in."""
    stats, rows = ClassStats.zeros(3), torch.ones(4)
    stats.update(torch.tensor([0, 2, 2, 1], dtype=dtype), rows, rows > 0, rows)
    assert stats.count.tolist() == [1, 1, 2]


@pytest.mark.parametrize("wrong", [-1, 3])
def test_a_refused_batch_adds_nothing(wrong: int) -> None:
    """A class out of range is named, and no sum has changed."""
    stats, rows = ClassStats.zeros(3), torch.ones(3)
    with pytest.raises(SpecError, match=f"targets: expected classes 0 to 2, got {wrong}"):
        stats.update(torch.tensor([0, 1, wrong]), rows, rows > 0, rows)
    assert not any(t.any() for t in stats.tensors())
