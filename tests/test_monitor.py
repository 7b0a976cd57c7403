"""The monitor: its sums against a loop over rows, its groups, bad input, and what it must not change."""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import math
import textwrap
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from heavytail.cli._command import LAB
from heavytail.errors import SpecError
from heavytail.experiment.spec import RunSpec
from heavytail.experiment.store import RunStore
from heavytail.head import linear_cross_entropy
from heavytail.metrics import FrequencyGroups
from heavytail.monitor.monitor import Monitor
from heavytail.train import engine
from tests.problems import output
from tests.reference import monitor as reference

COUNTS = [50, 20, 10, 9, 5, 3, 2, 1]
SUMS = {"count": "count", "loss": "loss_sum", "correct": "correct", "p_correct": "p_correct_sum"}


def rows(shape: tuple[int, ...], classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits [..., C] float64 and heavy-tailed targets [...]."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(*shape, classes, generator=generator, dtype=torch.float64)
    return logits, (torch.rand(shape, generator=generator) ** 3 * classes).long()


def check_sums(monitor: Monitor, expected: dict[str, list[float]], tolerance: float = 1e-12) -> None:
    for name, field in SUMS.items():
        found = getattr(monitor.stats, field)
        np.testing.assert_allclose(found, expected[name], rtol=tolerance, atol=tolerance, err_msg=name)


def watching(
    monitor: Monitor, head: nn.Linear, watched: bool, optimizer: torch.optim.Optimizer | None = None
) -> contextlib.AbstractContextManager[object]:
    return monitor.watch(head, optimizer) if watched else contextlib.nullcontext()


# -- sums ------------------------------------------------------------------------------------------------------------


@given(
    shape=st.lists(st.integers(0, 4), max_size=3).map(tuple),
    classes=st.integers(2, 7),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    ignore_index=st.sampled_from([-100, -1, 0, 1, None]),
    integers=st.sampled_from([torch.int64, torch.int32]),
    shifted=st.booleans(),
)
def test_sums_equal_a_loop(
    shape: tuple[int, ...],
    classes: int,
    dtype: torch.dtype,
    ignore_index: int | None,
    integers: torch.dtype,
    shifted: bool,
) -> None:
    """Whatever the shape, layout, type and ignored target, the sums per class are those of a loop over the rows."""
    shifted = shifted and len(shape) > 1
    wide = (*shape[:-1], shape[-1] + 1) if shifted else shape
    logits, targets = rows(wide, classes)
    logits = logits.to(dtype)
    if ignore_index is not None and targets.numel():
        targets.view(-1)[::3] = ignore_index
    targets = targets.to(integers)
    if shifted:
        logits, targets = logits[..., :-1, :], targets[..., 1:]
    monitor = Monitor(classes, ignore_index=ignore_index)
    if targets.ndim > 1 and logits.shape == (len(targets), classes, *targets.shape[1:]) and targets.numel():
        with pytest.raises(SpecError, match=r"could be \[B, L, C\] or \[B, C, L\]"):
            monitor.update(logits, targets)
        logits, targets = logits.reshape(-1, classes), targets.reshape(-1)
    monitor.update(logits, targets)
    flat = logits.double().reshape(-1, classes).tolist()
    expected = reference.class_sums(flat, targets.flatten().tolist(), classes, ignore_index)
    check_sums(monitor, expected, 1e-12 if dtype == torch.float64 else 1e-5)  # a loss is a difference of logits near 10


@pytest.mark.parametrize("route", ["logits", "losses", "cross_entropy", "head"])
def test_all_routes_give_the_same(route: str) -> None:
    """Logits, losses, the drop-in loss and the fused head end in the same sums."""
    logits, targets = rows((5, 6), 8)
    monitor = Monitor(8)
    targets[0, :3] = -100
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(5, 6)
    if route == "logits":
        monitor.update(logits, targets)
    elif route == "losses":
        monitor.update(losses, targets, correct=logits.argmax(-1) == targets)
    elif route == "cross_entropy":
        monitor.cross_entropy(logits, targets)
    else:
        flat = targets.flatten()
        eye = torch.eye(8, dtype=torch.float64)
        monitor.update(linear_cross_entropy(logits.flatten(0, 1), eye, None, flat, ignore_index=-100), flat)
    expected = reference.class_sums(logits.flatten(0, 1).tolist(), targets.flatten().tolist(), 8, -100)
    check_sums(monitor, expected)


@pytest.mark.parametrize("ignore_index", [None, -100, -1, 0, 39, 40, 255, 10**6])
@pytest.mark.parametrize("top_k", [None, 3])
@pytest.mark.parametrize("M", [20, 1000])  # few rows are kept and judged together; many are judged at once
def test_any_integer_may_be_ignored(ignore_index: int | None, top_k: int | None, M: int) -> None:
    """Whichever target is ignored, a class or above all of them, every route has the sums of a loop over the rows."""
    C = 40
    logits, targets = rows((M,), C)
    if ignore_index is not None:
        targets[::4] = ignore_index
    expected = reference.class_sums(logits.tolist(), targets.tolist(), C, ignore_index)
    counted = torch.ones(M, dtype=torch.bool) if ignore_index is None else targets != ignore_index
    order = logits[counted].argsort(dim=1, descending=True)
    top = int((order[:, :3] == targets[counted, None]).sum())
    losses = F.cross_entropy(logits, targets.masked_fill(~counted, 0), reduction="none")
    head = linear_cross_entropy(logits, torch.eye(C).double(), None, targets, ignore_index=ignore_index)
    routes: dict[str, Callable[[Monitor], object]] = {
        "logits": lambda monitor: monitor.update(logits, targets),
        "losses": lambda monitor: monitor.update(losses, targets, correct=logits.argmax(1) == targets, plain=True),
        "head": lambda monitor: monitor.update(head, targets),
        "cross_entropy": lambda monitor: monitor.cross_entropy(logits, targets),
    }
    for name, route in routes.items():
        monitor = Monitor(C, ignore_index=ignore_index, top_k=top_k, num_groups=1)
        loss = route(monitor)
        check_sums(monitor, expected, 1e-10)
        reading = monitor.compute()
        assert reading.class_count.sum() == counted.sum()
        if top_k and name in ("logits", "cross_entropy"):
            assert (reading.extra["top_3"] * reading.count).round().tolist() == [top]
        if isinstance(loss, Tensor):
            assert loss == F.cross_entropy(logits, targets, ignore_index=-100 if ignore_index is None else ignore_index)


def test_large_logits_are_walked_in_chunks() -> None:
    """A batch of many chunks gives the sums of its rows, wherever the cuts fall."""
    logits, targets = rows((37,), 30_000)
    monitor = Monitor(30_000)
    monitor.update(logits.float(), targets)
    losses = F.cross_entropy(logits, targets, reduction="none")
    expected = torch.zeros(30_000, dtype=torch.float64).index_add_(0, targets, losses)
    torch.testing.assert_close(monitor.stats.loss_sum, expected, rtol=1e-6, atol=0)


def test_updates_add_up() -> None:
    """Many updates are one, and `reset` starts again."""
    logits, targets = rows((40,), 8)
    whole, parts = Monitor(counts=COUNTS), Monitor(counts=COUNTS)
    whole.update(logits, targets)
    for part in range(0, 40, 7):
        parts.update(logits[part : part + 7], targets[part : part + 7])
    np.testing.assert_allclose(parts.compute().loss, whole.compute().loss, rtol=1e-14)
    parts.reset()
    assert parts.compute().count.sum() == 0
    parts.update(logits, targets)
    np.testing.assert_array_equal(parts.compute().loss, whole.compute().loss)


def test_reading_by_hand() -> None:
    """Four classes in two groups: means, shares, counts and the keys for trackers, by hand."""
    monitor = Monitor(counts=[6, 2, 1, 1], num_groups=2)
    monitor.update(torch.tensor([0.5, 1.5, 2.0, 4.0]), torch.tensor([0, 0, 1, 3]), plain=True)
    reading = monitor.compute()
    assert reading.groups.index.tolist() == [0, 1, 1, 1]
    assert reading.loss.tolist() == [1.0, 3.0]
    assert reading.share.tolist() == [0.5, 0.5]
    assert reading.count.tolist() == [2, 2]
    assert reading.overall["loss"] == 2.0
    assert np.isnan(reading.accuracy).all()
    p_correct = [(math.exp(-0.5) + math.exp(-1.5)) / 2, (math.exp(-2) + math.exp(-4)) / 2]
    np.testing.assert_allclose(reading.p_correct, p_correct)
    table = reading.to_dict("train/")
    assert table["train/loss"] == 2.0
    assert table["train/loss/group_02"] == 3.0
    assert not any("accuracy" in name for name in table)
    assert "    2         3   50.0%           3" in str(reading)


def test_equals_the_engines_history(tmp_path: Path) -> None:
    """Around a loop of one's own, the monitor measures what the engine stores of the same run."""
    spec = RunSpec.from_dict(
        {
            "data": {"name": "random-heavy-tail", "groups": 4},
            "model": {"name": "linear"},
            "optim": {"name": "gd", "momentum": 0.9},
            "lr": 0.01,
            "steps": 5,
        }
    )
    history = engine.train(spec, RunStore(tmp_path), data_dir=tmp_path)
    data = engine.load_data(spec, tmp_path)
    model = engine.build_model(spec, data)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    monitor = Monitor(groups=data.groups())
    for step in range(6):
        loss = monitor.cross_entropy(model.head(data.train.inputs), data.train.targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        np.testing.assert_allclose(monitor.stats.mean_loss(), history.arrays["train/class_loss"][step], rtol=2e-5)
        np.testing.assert_array_equal(monitor.stats.correct, history.arrays["train/correct"][step])
        np.testing.assert_allclose(monitor.compute().loss, history.group_loss()[step], rtol=2e-5)
        monitor.reset()


# -- groups ----------------------------------------------------------------------------------------------------------


def test_groups_are_cut_from_what_was_seen() -> None:
    """Without counts the groups are those of all targets so far, over resets, and the reading says so."""
    monitor = Monitor(num_classes=8, num_groups=3)
    seen: list[int] = []
    for seed in range(3):
        logits, targets = rows((30,), 8, seed)
        monitor.update(logits, targets)
        seen += targets.tolist()
        reading = monitor.compute()
        counts = np.bincount(seen, minlength=8)
        np.testing.assert_array_equal(reading.groups.index, FrequencyGroups.from_counts(counts, 3).index)
        np.testing.assert_array_equal(reading.class_count, counts)
        assert reading.cut == f"{len(seen)} targets seen"
        monitor.reset()


def test_a_validation_monitor_takes_the_groups_of_training() -> None:
    """`groups=monitor` follows that monitor; before it has seen anything, the groups are one's own."""
    train = Monitor(num_classes=4, num_groups=2)
    test = Monitor(groups=train)
    test.update(torch.ones(4), torch.tensor([3, 3, 3, 0]))
    assert test.compute().groups.index.tolist() == [1, 1, 1, 0]
    train.update(torch.ones(4), torch.tensor([0, 0, 0, 3]))
    assert test.compute().groups.index.tolist() == [0, 1, 1, 1]


def test_state_goes_on() -> None:
    """A new monitor that loads the state of another reads the same, and copies rather than shares."""
    logits, targets = rows((30,), 8)
    first, second = Monitor(8), Monitor(8)
    first.update(logits, targets)
    first.reset()
    first.update(logits * 2, targets)
    second.load_state_dict(first.state_dict())
    expected = first.compute().loss
    first.update(logits, targets)
    np.testing.assert_array_equal(second.compute().loss, expected)
    with pytest.raises(SpecError, match="expected 9 classes, got 8"):
        Monitor(9).load_state_dict(first.state_dict())
    with pytest.raises(SpecError, match="differs in"):
        first.load_state_dict({"count": torch.zeros(8)})


# -- bad input -------------------------------------------------------------------------------------------------------


def test_losses_that_are_not_finite_are_counted_and_in_no_mean() -> None:
    """NaN and infinity are counted per group; every mean is that of the other rows."""
    monitor = Monitor(counts=[6, 2, 1, 1], num_groups=2)
    losses = torch.tensor([1.0, math.nan, 2.0, math.inf, 4.0])
    monitor.update(losses, torch.tensor([0, 0, 1, 2, 3]))
    reading = monitor.compute()
    assert reading.loss.tolist() == [1.0, 3.0]
    assert reading.count.tolist() == [1, 2]
    assert reading.nonfinite.tolist() == [1, 1]
    assert reading.to_dict()["nonfinite"] == 2
    assert "2 rows with a loss that is not finite" in str(reading)
    logits = torch.zeros(2, 4)
    logits[1, 3] = math.nan
    monitor.reset()
    monitor.update(logits, torch.tensor([0, 0]))
    assert monitor.compute().nonfinite.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "num_classes: expected at least 1, or counts or groups, got None"),
        ({"num_classes": 0}, "num_classes: expected"),
        ({"num_classes": 1, "counts": [1, 2]}, "num_classes: expected 2, got 1"),
        ({"num_classes": True}, "num_classes: expected at least 1, or counts or groups, got True"),
        ({"num_classes": 3, "num_groups": 2.5}, "num_groups: expected at least 1, got 2.5"),
        ({"num_classes": 3, "top_k": 0}, "top_k: expected at least 1, got 0"),
        ({"num_classes": 3, "groups": {"a": [0, 3]}}, "groups: expected classes 0 to 2 in 'a', got 3"),
        ({"num_classes": 3, "groups": {"a": [0, 1], "b": [1]}}, "groups: expected each class once, got 1 in 'b'"),
        ({"num_classes": 3, "groups": {"a": []}}, "groups: expected class numbers for 'a'"),
        ({"groups": {"a": [0]}}, "num_classes: expected it beside groups by name"),
        ({"num_classes": 3, "groups": "shots"}, "counts: expected some for groups='shots'"),
        ({"num_classes": 3, "groups": "deciles"}, "groups: expected 'shots'"),
        ({"groups": [0.5, 1.0]}, "groups: expected the group of each class"),
        ({"counts": [1, 2], "groups": FrequencyGroups.from_counts([1, 2])}, "expected none beside counts"),
        ({"num_classes": 3, "num_groups": 0}, "num_groups: expected at least 1, got 0"),
        ({"counts": [0, 0]}, "counts: expected at least one sample"),
        ({"counts": torch.tensor([0.5, 1.0])}, "counts: expected integers"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(arguments: dict[str, object], message: str) -> None:
    """A monitor that could not know its groups or classes is not made."""
    with pytest.raises(SpecError, match=message):
        Monitor(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "targets", "message"),
    [
        (torch.zeros(2, 4), torch.tensor([0, 4]), "targets: expected 0 to 3, got 4"),
        (torch.zeros(2), torch.tensor([0, -1]), "targets: expected 0 to 3, got -1"),
        (torch.zeros(2, 5), torch.tensor([0, 4]), r"logits \[2, 4\], got \[2, 5\]"),
        (torch.zeros(3), torch.tensor([0, 1]), r"losses \[2\] or logits \[2, 4\], got \[3\]"),
        (torch.zeros(2, 4, 3), torch.zeros(2, 3, dtype=torch.int64), r"got \[2, 4, 3\]"),
        (torch.zeros(2), torch.tensor([0.0, 1.0]), "targets: expected integers, got torch.float32"),
        (torch.zeros(2, dtype=torch.int64), torch.tensor([0, 1]), "values: expected floating point"),
    ],
)
def test_rows_that_do_not_fit_are_refused(values: Tensor, targets: Tensor, message: str) -> None:
    """Wrong shapes, types and classes are errors that say what was expected, and nothing is counted."""
    monitor = Monitor(4)
    with pytest.raises(SpecError, match=message):
        monitor.update(values, targets)
    assert monitor.stats.count.sum() == 0


def test_nothing_seen() -> None:
    """Without rows means are NaN and counts 0; without counts as well there is nothing to cut, which is an error."""
    reading = Monitor(counts=COUNTS).compute()
    assert np.isnan(reading.loss).all()
    assert reading.count.sum() == 0
    assert reading.to_dict() == {f"share/group_{g:02d}": 0.0 for g in range(1, len(reading.loss) + 1)}
    assert "0 rows" in str(reading)
    with pytest.raises(SpecError, match="targets seen before"):
        Monitor(num_classes=4).compute()


# -- what it must not change -----------------------------------------------------------------------------------------


def test_cross_entropy_is_torchs() -> None:
    """The drop-in loss and its gradient are those of F.cross_entropy, also with a normalizer for micro-batches."""
    logits, targets = rows((6, 5), 8)
    targets[1, 2:] = -100
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = Monitor(8).cross_entropy(ours, targets)
    expected = F.cross_entropy(theirs.flatten(0, 1), targets.flatten())
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-16)
    monitor, total = Monitor(8), (targets != -100).sum()
    halves = [monitor.cross_entropy(logits[part], targets[part], normalizer=total) for part in (slice(3), slice(3, 6))]
    torch.testing.assert_close(sum(halves), expected.detach(), rtol=1e-13, atol=0)


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("normalizer", [None, 8.0])
@pytest.mark.parametrize(("shape", "C"), [((0,), 5), ((2, 0), 5), ((0, 5), 5), ((0,), 1), ((3,), 1), ((2, 3), 1)])
def test_no_rows_and_one_class_are_as_torch_has_them(
    shape: tuple[int, ...], C: int, normalizer: float | None, watched: bool
) -> None:
    """Of a batch without rows, or of one class, loss and gradient are torch's, and later rows are measured."""
    logits, targets = torch.ones(*shape, C), torch.zeros(shape, dtype=torch.int64)
    monitor, head = Monitor(C), nn.Linear(3, C)
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    expected = F.cross_entropy(
        theirs.reshape(-1, C), targets.reshape(-1), reduction="mean" if normalizer is None else "sum"
    )
    expected = expected if normalizer is None else expected / normalizer
    with watching(monitor, head, watched):
        head(torch.ones(*shape, 3))
        loss = monitor.cross_entropy(ours, targets, normalizer=normalizer)
        head(torch.ones(*shape, 3))
        monitor.update(logits, targets)
        head(torch.ones(4, 3))
        monitor.update(torch.zeros(4, C), torch.zeros(4, dtype=torch.int64))
    loss.backward()
    expected.backward()
    assert torch.equal(loss.isnan(), expected.isnan())
    assert torch.equal(loss.nan_to_num(), expected.nan_to_num())
    assert torch.equal(ours.grad, theirs.grad)  # type: ignore[arg-type]
    reading = monitor.compute()
    assert reading.count.sum() == 2 * targets.numel() + 4
    assert reading.head.keys() == ({"grad_norm", "trace"} if watched else set())
    assert all(np.isfinite(values).all() for values in reading.head.values())
    assert reading.overall["accuracy"] == 1.0


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo's own, where it breaks the graph at `update`
@pytest.mark.parametrize("compiled", [False, True])
def test_training_is_the_same_with_it(compiled: bool) -> None:
    """A training with `update` in it takes the same steps, bit for bit, plain or under torch.compile."""
    inputs = torch.randn(20, 5, generator=torch.Generator().manual_seed(1))
    targets = torch.arange(20) % 8

    def train(monitor: Monitor | None) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 8))
        optimizer = torch.optim.AdamW(model.parameters())

        def objective() -> Tensor:
            logits = model(inputs)
            if monitor is not None:
                monitor.update(logits, targets)
            return F.cross_entropy(logits, targets)

        run = torch.compile(objective, backend="eager") if compiled else objective
        for _ in range(4):
            run().backward()
            optimizer.step()
            optimizer.zero_grad()
        return [p.detach() for p in model.parameters()]

    monitor = Monitor(8)
    for with_it, without in zip(train(monitor), train(None), strict=True):
        torch.testing.assert_close(with_it, without, rtol=0, atol=0)
    assert monitor.stats.count.sum() == 80


def test_a_compiled_model_is_measured_the_same() -> None:
    """The monitor around a compiled model reads what it reads around the plain one."""
    torch.manual_seed(0)
    model, x, y = nn.Linear(5, 8), torch.randn(20, 5), torch.arange(20) % 8
    plain, compiled = Monitor(8), Monitor(8)
    with plain.watch(model):
        plain.update(model(x), y)
    run = torch.compile(model, backend="eager")
    with compiled.watch(model):
        compiled.update(run(x), y)
    first, second = plain.compute(), compiled.compute()
    np.testing.assert_allclose(second.loss, first.loss, rtol=1e-6)
    np.testing.assert_allclose(second.head["trace"], first.head["trace"], rtol=1e-6)


def test_made_in_inference_mode_and_used_in_training() -> None:
    """Sums that an evaluation under inference mode made or reset go on in training, and the other way round."""
    logits, targets = rows((10,), 8)
    with torch.inference_mode():
        monitor = Monitor(8)
        monitor.update(logits * 1.0, targets)
        monitor.reset()
    monitor.cross_entropy(logits.requires_grad_(), targets).backward()
    with torch.inference_mode():
        monitor.update(logits * 1.0, targets)
    assert monitor.compute().count.sum() == 20


@pytest.mark.parametrize("updates", [2_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_memory_does_not_grow(updates: int) -> None:
    """However many updates follow, the monitor holds what it held before, and has counted every row."""
    monitor, losses, targets = Monitor(8), torch.ones(2), torch.tensor([0, 5])

    def update(times: int) -> int:
        for _ in range(times):
            monitor.update(losses, targets)
        assert monitor.stats.num_classes == 8  # sums up the small batches that wait
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    update(1_000)
    tracemalloc.start()
    try:
        update(2_000)  # fills the interpreter's free lists, some kB, once
        before = update(1_000)
        after = update(updates)
    finally:
        tracemalloc.stop()
    assert after - before < 8_000  # the interpreter's own lists grow by some kB, depending on earlier tests
    assert sum(t.nbytes for t in monitor.state_dict().values()) < 1_000
    assert monitor.compute().count.sum() == 2 * (updates + 4_000)


# -- the head --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_head_statistics_equal_autograd(bias: bool) -> None:
    """Gradient norms are autograd's, traces those of its full Hessian, updates the difference of the weights."""
    torch.manual_seed(0)
    head = nn.Linear(3, 4, bias=bias).double()
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
    features, targets = torch.randn(2, 5, 3, dtype=torch.float64), torch.randint(4, (2, 5))
    targets[0, 0] = -100
    monitor = Monitor(counts=[5, 3, 2, 1], num_groups=2)

    def loss_of(weight: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(features, weight, head.bias).flatten(0, 1), targets.flatten())

    before = head.weight.detach().clone()
    gradient = torch.autograd.functional.jacobian(loss_of, before)
    hessian = torch.autograd.functional.hessian(loss_of, before)
    with monitor.watch(head, optimizer) as watch:
        for half in (slice(0, 1), slice(1, 2)):  # two micro-batches, one step
            monitor.cross_entropy(head(features[half]), targets[half], normalizer=9.0).backward()
        optimizer.step()
    found = watch.per_class()
    np.testing.assert_allclose(found["grad_norm"], gradient.norm(dim=1), rtol=1e-12)
    traces = torch.einsum("kdkd->k", hessian).detach().numpy()
    np.testing.assert_allclose(found["trace"], traces, rtol=1e-10)
    moved = (head.weight.detach() - before).norm(dim=1).numpy()
    np.testing.assert_allclose(found["update_norm"], moved, rtol=1e-12)
    reading = monitor.compute()
    index = reading.groups.index
    for g in range(2):
        np.testing.assert_allclose(reading.head["grad_norm"][g], gradient[index == g].norm(), rtol=1e-12)
        np.testing.assert_allclose(reading.head["trace"][g], traces[index == g].sum(), rtol=1e-10)
    monitor.reset()
    assert monitor.compute().head == {}


def test_watching_does_not_change_training_and_ends() -> None:
    """Steps taken while watched are the same bit for bit, and afterwards no hook is left."""

    def train(watched: bool) -> tuple[Tensor, nn.Linear]:
        torch.manual_seed(0)
        head, monitor = nn.Linear(3, 4), Monitor(4)
        optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
        x, y = torch.randn(6, 3), torch.arange(6) % 4
        for _ in range(2):
            if watched:
                watch = monitor.watch(head, optimizer)
            monitor.cross_entropy(head(x), y).backward()
            optimizer.step()
            if watched:
                watch.detach()
        assert not head._forward_hooks
        assert not optimizer._optimizer_step_pre_hooks
        return head.weight.detach(), head

    torch.testing.assert_close(train(True)[0], train(False)[0], rtol=0, atol=0)


def test_copies_of_a_watched_model_are_not_watched() -> None:
    """A copy and a pickle have hooks that do nothing; neither reports to the monitor, and both compute the same."""
    model, monitor = nn.Sequential(nn.Linear(3, 4)), Monitor(4)
    x = torch.randn(5, 3)
    with monitor.watch(model[0]) as watch:
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        for other in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
            torch.testing.assert_close(other(x), model(x), rtol=0, atol=0)
            watch._inputs = None
            other(x)
            assert watch._inputs is None


def test_a_head_may_be_called_by_keyword() -> None:
    """`head(input=x)` is the same forward pass watched or not; its input is not seen, and `update` says what to do."""
    head, monitor, x, y = nn.Linear(3, 4), Monitor(4), torch.randn(6, 3), torch.arange(6) % 4
    before = head(input=x)
    with monitor.watch(head):
        torch.testing.assert_close(head(input=x), before, rtol=0, atol=0)
        with pytest.raises(SpecError, match=r"call it as head\(x\), not by keyword"):
            monitor.update(before, y)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_head_statistics_of_many_rows_in_half_precision(dtype: torch.dtype) -> None:
    """Sums over 16 384 rows with an outlier feature leave the range of float16: they are those of single precision."""
    torch.manual_seed(0)
    x, y = torch.randn(16_384, 8), torch.arange(16_384) % 5 % 3
    x[:, 3] = 60
    read = {}
    for kind in (torch.float32, dtype):
        head, monitor = nn.Linear(8, 5).to(kind), Monitor(5)
        with torch.no_grad():
            head.weight.copy_(torch.linspace(-0.1, 0.1, 40).view(5, 8))
            head.bias.zero_()
        with monitor.watch(head):
            monitor.update(head(x.to(kind)), y)
        read[kind] = monitor.compute().head
    for name in ("grad_norm", "trace"):
        np.testing.assert_allclose(read[dtype][name], read[torch.float32][name], rtol=0.03)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("call", ["update", "cross_entropy", "watch.add"])
def test_head_statistics_do_not_depend_on_autocast(call: str, dtype: torch.dtype) -> None:
    """Measured inside autocast, head statistics are those measured outside: products of float32 stay in float32."""
    torch.manual_seed(0)
    x, y = torch.randn(512, 16), torch.arange(512) % 20 % 13 % 7
    x[:, 0] = 8.0  # the gradient is a small difference of large sums, which half precision loses
    head = nn.Linear(16, 7)
    found: dict[bool, dict[str, Any]] = {}
    for inside in (False, True):
        monitor = Monitor(7)
        with monitor.watch(head) as watch:
            with torch.autocast("cpu", dtype):
                logits = head(x)
            with torch.autocast("cpu", dtype, enabled=inside):
                if call == "watch.add":
                    watch.add(y)
                else:
                    getattr(monitor, call)(logits, y)
                found[inside] = watch.per_class()
    weight = head.weight.detach().double().requires_grad_()
    F.cross_entropy(F.linear(x.double(), weight, head.bias.detach().double()), y).backward()
    assert weight.grad is not None
    np.testing.assert_allclose(found[True]["grad_norm"], weight.grad.norm(dim=1), rtol=1e-5)
    for name in ("grad_norm", "trace"):
        np.testing.assert_allclose(found[True][name], found[False][name], rtol=1e-6)


class Wrapper(torch.optim.Optimizer):
    """As Accelerate's: by its class an optimizer, with nothing in it but another."""

    def __init__(self, optimizer: object) -> None:
        self.optimizer = optimizer

    def step(self, closure: Any = None) -> Any:
        """Step the other."""
        return self.optimizer.step(closure)  # type: ignore[attr-defined]


class Partitioned:
    """As DeepSpeed's: it steps an optimizer of other tensors, and the weights are set from them afterwards."""

    def __init__(self, optimizer: object) -> None:
        self.optimizer = optimizer


class HalfHooked:
    """It has the first hook, and not the second."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.register_step_pre_hook = optimizer.register_step_pre_hook


def accelerated(optimizer: torch.optim.Optimizer) -> Any:
    """Return the wrapper of a real Accelerator."""
    accelerate = pytest.importorskip("accelerate", reason="pip install accelerate")
    return accelerate.Accelerator(cpu=True).prepare_optimizer(optimizer)


@pytest.mark.parametrize("wrap", [lambda optimizer: optimizer, Wrapper, accelerated])
def test_updates_of_wrapped_optimizers_are_measured(wrap: Callable[[torch.optim.Optimizer], Any]) -> None:
    """The update norm is the difference of the weights, whatever is wrapped around the optimizer."""
    torch.manual_seed(0)
    head, monitor = nn.Linear(3, 4), Monitor(4)
    optimizer = wrap(torch.optim.Adam(head.parameters(), lr=0.1))
    before = head.weight.detach().clone()
    with monitor.watch(head, optimizer) as watch:
        monitor.cross_entropy(head(torch.randn(6, 3)), torch.arange(6) % 4).backward()
        optimizer.step()
    np.testing.assert_allclose(watch.per_class()["update_norm"], (head.weight.detach() - before).norm(dim=1), rtol=1e-6)


@pytest.mark.parametrize(
    "wrap", [lambda _: object(), Partitioned, HalfHooked, lambda optimizer: Wrapper(Partitioned(optimizer))]
)
def test_optimizers_without_hooks_are_refused(wrap: Callable[[torch.optim.Optimizer], Any]) -> None:
    """An optimizer whose steps cannot be seen is an error in one line; no hook is left and the head may be watched."""
    head, monitor = nn.Linear(3, 4), Monitor(4)
    optimizer = torch.optim.Adam(head.parameters())
    for _ in range(2):
        with pytest.raises(SpecError, match=r"^optimizer: expected one of torch.optim, or a wrapper of one, got \w+$"):
            monitor.watch(head, wrap(optimizer))
        assert not head._forward_hooks
        assert not optimizer._optimizer_step_pre_hooks
        with monitor.watch(head):  # which is then attached again
            monitor.update(head(torch.ones(2, 3)), torch.tensor([0, 1]))


@pytest.mark.parametrize("mode", [contextlib.nullcontext, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("steps", [2, 3])
def test_watches_of_a_head_add_up(steps: int, mode: Callable[[], Any]) -> None:
    """Watching for a step at a time gives what one watch of all steps gives, until a reset or another head."""

    def train(once: bool) -> list[dict[str, np.ndarray[Any, Any]]]:
        torch.manual_seed(0)
        head, monitor = nn.Linear(3, 4), Monitor(counts=[4, 3, 2, 1], num_groups=2)
        optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
        found = []
        for _ in range(2):
            with contextlib.ExitStack() as stack:
                if once:
                    stack.enter_context(monitor.watch(head, optimizer))
                for _ in range(steps):
                    x, y = torch.randn(6, 3), torch.arange(6) % 4
                    with watching(monitor, head, not once, optimizer):
                        logits = head(x)
                        F.cross_entropy(logits, y).backward()
                        with mode():
                            monitor.update(logits.detach(), y)
                        optimizer.step()
                    if not once:  # unwatched: in no statistic of the head
                        monitor.update(head(x), y)
                found.append(dict(monitor.compute().head))
                with mode():
                    monitor.reset()
        other = nn.Linear(3, 4)
        with monitor.watch(head):
            monitor.update(head(x), y)
        with monitor.watch(other):
            monitor.update(other(x), y)
        found.append(dict(monitor.compute().head))
        monitor.reset()
        with monitor.watch(other):
            monitor.update(other(x), y)
        found.append(dict(monitor.compute().head))
        return found

    one, many = train(True), train(False)
    for first, second in zip(one, many, strict=True):
        assert first.keys() == second.keys()
        for name, values in first.items():
            np.testing.assert_allclose(second[name], values, rtol=1e-6)
    assert one[0].keys() == {"grad_norm", "trace", "update_norm"}
    np.testing.assert_array_equal(one[2]["trace"], one[3]["trace"])


@pytest.mark.parametrize("call", ["update", "cross_entropy"])
@pytest.mark.parametrize("way", ["hooks", "checkpoint", "reentrant", "save_on_cpu"])
def test_a_watched_head_may_be_checkpointed_and_offloaded(way: str, call: str) -> None:
    """In a checkpointed region, or beside hooks on saved tensors, watching changes no gradient and no saved tensor."""
    torch.manual_seed(0)
    body, head, x, y = nn.Linear(5, 6), nn.Linear(6, 8), torch.randn(9, 5), torch.arange(9) % 8

    def run(way: str, watched: bool) -> tuple[list[Tensor | None], dict[str, Any], list[tuple[int, ...]]]:
        monitor = Monitor(counts=[8, 7, 6, 5, 4, 3, 2, 1], num_groups=3)
        saved: list[tuple[int, ...]] = []

        def pack(tensor: Tensor) -> Tensor:
            saved.append(tuple(tensor.shape))
            return tensor

        def region(h: Tensor) -> Tensor:
            logits = head(body(h))
            if call == "cross_entropy":
                return monitor.cross_entropy(logits, y)
            monitor.update(logits, y)
            return F.cross_entropy(logits, y)

        contexts: dict[str, Any] = {
            "hooks": lambda: torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
            "save_on_cpu": torch.autograd.graph.save_on_cpu,
        }
        checkpointed = way in ("checkpoint", "reentrant")
        h = x.clone().requires_grad_()
        for p in (*body.parameters(), *head.parameters()):
            p.grad = None
        with watching(monitor, head, watched):
            with contexts.get(way, contextlib.nullcontext)():
                loss = checkpoint(region, h, use_reentrant=way == "reentrant") if checkpointed else region(h)
            loss.backward()
        assert monitor.stats.count.sum() == 9
        gradients = [p.grad for p in (h, *body.parameters(), *head.parameters())]
        return gradients, dict(monitor.compute().head), saved

    expected, plain, _ = run("plain", True)
    without, _, saved = run(way, False)
    gradients, found, kept = run(way, True)
    assert kept == saved
    for value, other, truth in zip(gradients, without, expected, strict=True):
        assert value is not None
        assert torch.equal(value, other)
        assert torch.equal(value, truth)
    for name in ("grad_norm", "trace"):
        np.testing.assert_array_equal(found[name], plain[name])


def test_a_watched_head_must_fit_its_targets() -> None:
    """Targets without a forward pass, or of another size, and a head of other classes are refused."""
    head, monitor = nn.Linear(3, 4), Monitor(4)
    with pytest.raises(SpecError, match="expected 4 outputs, got 5"):
        monitor.watch(nn.Linear(3, 5))
    with monitor.watch(head):
        with pytest.raises(SpecError, match="one watched head at a time"):
            monitor.watch(head)
        with pytest.raises(SpecError, match="no forward pass"):
            monitor.update(torch.ones(2), torch.tensor([0, 1]))
        logits = head(torch.zeros(1, 4, 3))
        with pytest.raises(SpecError, match="got 3 for 4 inputs"):
            monitor.update(logits[:, :-1], torch.zeros(1, 3, dtype=torch.int64))


def test_needs_torch_and_numpy_only(tmp_path: Path) -> None:
    """Without any package of the lab, and without scipy, the monitor measures and the journal writes."""
    code = f"""
        import sys
        sys.modules |= dict.fromkeys({LAB!r})
        import torch, heavytail
        head, monitor = torch.nn.Linear(3, 4), heavytail.Monitor(counts=[4, 3, 2, 1])
        with monitor.watch(head):
            monitor.cross_entropy(head(torch.ones(2, 3)), torch.tensor([0, 1])).backward()
        heavytail.Journal({str(tmp_path)!r}).write(0, monitor.compute())
        print(len(heavytail.monitor.journal.read_journal({str(tmp_path)!r})[0]["train"].step))
    """
    assert output(textwrap.dedent(code)) == "1"


# -- groups by name, further columns ---------------------------------------------------------------------------------


def test_groups_by_name_shots_and_index() -> None:
    """Groups are named, the classes in none form "other"; shots cut at 100 and 20; an array groups each class."""
    losses, targets = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.arange(4)
    monitor = Monitor(4, groups={"digits": [1, 3], "b": np.array([0])})
    monitor.update(losses, targets)
    reading = monitor.compute()
    assert reading.names == ("digits", "b", "other")
    assert reading.loss.tolist() == [3.0, 1.0, 3.0]
    assert reading.to_dict()["loss/digits"] == 3.0
    assert "digits" in str(reading)
    shots = Monitor(counts=[101, 100, 20, 19], groups="shots")
    shots.update(losses, targets)
    assert shots.compute().names == ("many", "medium", "few")
    assert shots.compute().loss.tolist() == [1.0, 2.5, 4.0]
    by_class = Monitor(groups=np.array([1, 0, 0, 1]))
    by_class.update(losses, targets)
    assert by_class.compute().loss.tolist() == [2.5, 2.5]


@pytest.mark.parametrize(
    "counts", [{0: 6, 3: 2}, np.array([6.0, 0, 0, 2]), torch.tensor([6, 0, 0, 2], dtype=torch.int32)]
)
def test_counts_of_any_kind_are_padded(counts: object) -> None:
    """A Counter, whole numbers as floats, and tensors give the same groups, padded to a larger head."""
    monitor = Monitor(6, counts=counts, num_groups=2)
    monitor.update(torch.ones(6), torch.arange(6))
    assert monitor.compute().groups.index.tolist() == [0, 1, 1, 1, 1, 1]


@given(seed=st.integers(0, 50), ties=st.booleans(), large=st.booleans())
def test_accuracy_and_top_k_break_ties_as_argmax(seed: int, ties: bool, large: bool) -> None:
    """Of equal logits the lowest class wins, in small batches and large ones, and top-k counts a stable sort."""
    generator = torch.Generator().manual_seed(seed)
    M, C = (3000, 9) if large else (20, 9)
    logits = torch.randint(0, 3 if ties else 10**6, (M, C), generator=generator).float()
    targets = torch.randint(0, C, (M,), generator=generator)
    monitor = Monitor(C, top_k=3)
    monitor.cross_entropy(logits, targets)
    monitor.update(logits, targets)
    order = np.argsort(-logits.numpy(), axis=1, kind="stable")
    first = order[:, 0] == targets.numpy()
    top = (order[:, :3] == targets.numpy()[:, None]).any(1)
    reading = monitor.compute()
    assert reading.overall["accuracy"] == first.mean()
    np.testing.assert_allclose((reading.extra["top_3"] * reading.count).sum(), 2 * top.sum())


def test_a_zero_head_is_not_always_right() -> None:
    """Equal logits everywhere are as accurate as argmax, which answers class 0."""
    monitor = Monitor(50)
    monitor.update(torch.zeros(100, 50), torch.arange(100) % 50)
    assert monitor.compute().overall["accuracy"] == 0.02


def test_losses_of_unknown_kind_give_no_probability() -> None:
    """exp(-loss) of weighted or smoothed losses is no probability: p(correct) is left out unless they are plain."""
    monitor = Monitor(3)
    monitor.update(torch.ones(4), torch.tensor([0, 1, 2, 0]))
    assert math.isnan(monitor.compute().overall["p_correct"])
    monitor.reset()
    monitor.update(torch.ones(4), torch.tensor([0, 1, 2, 0]), plain=True)
    assert monitor.compute().overall["p_correct"] == pytest.approx(math.exp(-1))


def test_classes_and_macro_averages() -> None:
    """The table of classes has each class's own mean, and macro averages weight the classes that have rows equally."""
    monitor = Monitor(counts=[4, 2, 1, 0], num_groups=2)
    monitor.update(torch.tensor([1.0, 3.0, 5.0, 7.0]), torch.tensor([0, 0, 1, 2]), plain=True)
    reading = monitor.compute()
    table = reading.per_class()
    np.testing.assert_allclose(table["loss"], [2.0, 5.0, 7.0, math.nan])
    assert table["count"].tolist() == [2, 1, 1, 0]
    np.testing.assert_allclose(reading.macro()["loss"], [2.0, 6.0])


def test_tokenizers_give_examples_and_bits_per_byte() -> None:
    """Groups show their most frequent tokens; bits per byte are nats over the bytes of the targets."""
    words = ["the", "é", "zebra", ""]
    monitor = Monitor(counts=[5, 3, 2, 0], num_groups=2, tokenizer=words)
    monitor.update(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 1, 2]))
    reading = monitor.compute()
    assert reading.examples() == [["the"], ["é", "zebra", ""]]
    assert "'zebra'" in str(reading)
    np.testing.assert_allclose(reading.extra["bits_per_byte"], [1 / 3 / math.log(2), 5 / 7 / math.log(2)])
    with pytest.raises(SpecError, match="tokenizer: expected one"):
        Monitor(counts=[1, 2]).compute().examples()


def test_flat_losses_and_short_representations() -> None:
    """Losses and logits may be flattened where the targets are not; repr is a line."""
    monitor = Monitor(4)
    monitor.update(torch.ones(6), torch.zeros(2, 3, dtype=torch.int64))
    monitor.update(torch.ones(6, 4), torch.zeros(2, 3, dtype=torch.int64))
    assert repr(monitor) == "Monitor(4 classes, groups cut from targets seen, 12 rows)"
    assert repr(monitor.compute()).startswith("Reading(1 groups, 12 rows, loss 1.")


# -- frameworks' ways of running a step ------------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_rows_count_once(reentrant: bool) -> None:
    """Rows in a region that activation checkpointing computes twice are counted once."""
    monitor, head = Monitor(8), nn.Linear(4, 8)

    def region(x: Tensor) -> Tensor:
        logits = head(x)
        monitor.update(logits, torch.arange(6))
        return logits + monitor.cross_entropy(logits, torch.arange(6))

    checkpoint(region, torch.randn(6, 4, requires_grad=True), use_reentrant=reentrant).sum().backward()
    assert monitor.compute().count.sum() == 12


def test_no_graph_break_under_compile() -> None:
    """A step with the monitor in it compiles into one graph, and measures the same."""
    torch.compiler.reset()
    logits, targets = rows((40,), 8)
    eager, compiled = Monitor(8), Monitor(8)
    step = torch.compile(lambda z: compiled.update(z, targets), backend="eager", fullgraph=True)
    for _ in range(2):
        eager.update(logits, targets)
        step(logits)
    np.testing.assert_allclose(compiled.compute().loss, eager.compute().loss, rtol=1e-12)


@pytest.mark.parametrize("normalizer", [None, 7.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cross_entropy_is_torchs_bit_for_bit(dtype: torch.dtype, normalizer: float | None) -> None:
    """Loss and gradient are those of F.cross_entropy to the last bit."""
    logits, targets = rows((30,), 12)
    targets[::4] = -100
    ours, theirs = (logits.to(dtype).requires_grad_() for _ in range(2))
    loss = Monitor(12).cross_entropy(ours, targets, normalizer=normalizer)
    other = F.cross_entropy(theirs, targets, reduction="mean" if normalizer is None else "sum")
    other = other if normalizer is None else other / normalizer
    loss.backward()
    other.backward()
    assert loss == other
    assert torch.equal(ours.grad, theirs.grad)  # type: ignore[arg-type]


# -- alarms ----------------------------------------------------------------------------------------------------------


def test_alarms_begin_once() -> None:
    """A group above log C, one that stalls while the total falls, one that rises: each is reported as it begins."""
    from heavytail.monitor.alarms import Alarm, Alarms

    raised: list[Alarm] = []
    alarms = Alarms(raised.append, patience=3)
    for step, (frequent, rare) in enumerate([(2.0, 2.0), (1.5, 2.0), (1.2, 2.0), (1.0, 2.0), (0.9, 2.5), (0.8, 2.9)]):
        monitor = Monitor(counts=[6, 1, 1, 1, 1, 1, 1, 1], num_groups=2)
        monitor.update(torch.tensor([frequent, rare]), torch.tensor([0, 5]))
        alarms.check(step, monitor.compute())
    rare_ones = [(alarm.kind, alarm.step) for alarm in raised]
    assert ("stalled", 3) in rare_ones
    assert ("uniform", 4) in rare_ones
    assert ("rising", 4) in rare_ones
    assert len(raised) == len({alarm.kind for alarm in raised})
    assert "group_02" in raised[0].message


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ignored", [False, True])
def test_small_batches_add_up(dtype: torch.dtype, ignored: bool) -> None:
    """Small batches, judged together, have the sums that each has alone, whatever their tensors hold afterwards."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(150, 9, 7, generator=generator).to(dtype)
    logits[::5] = logits[::5].round()  # ties
    targets = torch.randint(7, (150, 9), generator=generator)
    if ignored:
        targets[::7, 0] = -100
        logits[::7, 0] = math.nan
    monitor = Monitor(7)
    for step in range(150):
        batch, y = logits[step].clone(), targets[step].clone()
        monitor.cross_entropy(batch.requires_grad_(), y)
        y.zero_()
        batch.data.zero_()
    counted = targets != -100
    losses = F.cross_entropy(logits[counted].double(), targets[counted], reduction="none")
    right = logits[counted].argmax(1) == targets[counted]
    stats = monitor.stats
    y = targets[counted]
    for sums, rows in ((stats.count, torch.ones_like(y)), (stats.correct, right.long())):
        assert torch.equal(sums, torch.zeros(7, dtype=torch.int64).index_add_(0, y, rows))
    for sums, values in ((stats.loss_sum, losses), (stats.p_correct_sum, torch.exp(-losses))):
        expected = torch.zeros(7, dtype=torch.float64).index_add_(0, y, values)
        torch.testing.assert_close(sums, expected, rtol=1e-6 if dtype == torch.float32 else 1e-12, atol=0.0)
    assert not monitor._nonfinite.any()


def test_losses_of_the_caller_are_left_alone() -> None:
    """A large batch of float64 losses, which is summed at once, keeps its numbers."""
    losses = torch.rand(5000, dtype=torch.float64)
    before = losses.clone()
    Monitor(4).update(losses, torch.randint(4, (5000,)), plain=True)
    assert torch.equal(losses, before)
