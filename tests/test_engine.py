"""The engine: what a row means, and that nothing but the spec decides a trajectory.

The shapes of the docstrings below: N samples, C classes, E recorded steps, T steps.
"""

from __future__ import annotations

import gc
import itertools
import json
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from heavytail.data import REGISTRY as DATA
from heavytail.data import Batch, Data, Split
from heavytail.errors import SpecError
from heavytail.experiment.spec import RunSpec, derive_seed
from heavytail.experiment.store import History, RunStore
from heavytail.losses import CrossEntropy
from heavytail.optim import REGISTRY as OPTIMIZERS
from heavytail.optim.directions import HeavyBall
from heavytail.probes import REGISTRY as PROBES
from heavytail.probes import StepView
from heavytail.train import engine
from heavytail.train.engine import build_model, load_data, train
from heavytail.train.group import Group
from tests.problems import missing_steps, tiny
from tests.reference import engine as reference


@DATA.register("test-sentences")
@dataclass(frozen=True)
class Sentences:
    """20 random sequences of 5 of 9 tokens to train on, 6 to test."""

    def load(self, *, seed: int, data_dir: Path) -> Data:
        tokens = torch.randint(9, (26, 6), generator=torch.Generator().manual_seed(seed)) ** 2 // 9
        inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        return Data(Split(inputs[:20], targets[:20]), Split(inputs[20:], targets[20:]), 9)


@dataclass
class Eager(Split):
    """Takes chunks before they are due, as a decoding split does, in one pass at a time; shifts tokens by the seed."""

    ahead: int = 0
    most: int = 0
    reading: bool = False

    @property
    def augmented(self) -> bool:
        return True

    def batches(self, chunks: Iterable[slice | Tensor], *, seeds: Iterable[int] | None = None) -> Iterator[Batch]:
        assert not self.reading
        self.reading = True
        taken: deque[tuple[slice | Tensor, int]] = deque()
        todo = zip(chunks, itertools.repeat(0) if seeds is None else seeds, strict=False)
        while True:
            taken.extend(itertools.islice(todo, self.ahead + 1 - len(taken)))
            if not taken:
                break
            chunk, seed = taken.popleft()
            yield Batch((self.inputs[chunk] + seed) % 9, self.targets[chunk])
            if seeds is not None:  # in training
                self.most = max(self.most, len(taken))
        self.reading = False

    def to(self, device: torch.device, dtype: torch.dtype) -> Eager:
        EAGER.append(replace(self))
        return EAGER[-1]


@DATA.register("test-eager")
@dataclass(frozen=True)
class EagerSentences:
    """The same sequences, read this many chunks ahead."""

    ahead: int

    def load(self, *, seed: int, data_dir: Path) -> Data:
        data = Sentences().load(seed=seed, data_dir=data_dir)
        return Data(Eager(data.train.inputs, data.train.targets, self.ahead), data.test, 9)


EAGER: list[Eager] = []


@PROBES.register("test-noise")
@dataclass(frozen=True)
class Noise:
    """Draws random numbers, trains nothing, and writes down what it saw."""

    every: int = 3

    def steps(self, total: int) -> Iterable[int]:
        return range(0, total + 1, self.every)

    def measure(self, view: StepView) -> dict[str, Any]:
        torch.rand(7)
        torch.manual_seed(view.step)
        assert not view.model.training
        assert not torch.is_grad_enabled()
        features = torch.cat([h for h, _ in view.pairs()])
        logits = view.head(features)
        targets = torch.cat([y for _, y in view.pairs()])
        return {"loss": np.float64(torch.nn.functional.cross_entropy(logits, targets)), "count": np.int64(len(targets))}


SENTENCES: dict[str, Any] = {
    "data": "test-sentences",
    "model": {"name": "transformer", "width": 8, "mlp": 8, "dropout": 0.2},
    "optim": "adam",
    "lr": 0.01,
    "test_every": 4,
}
MINI = SENTENCES | {"batch_size": 6, "microbatch": 4}  # 3 updates an epoch, of 4 and 2 sequences, 2 left out


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path)


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[[], RunStore]:
    """Makes a store of its own at every call."""
    numbers = itertools.count()
    return lambda: RunStore(tmp_path / str(next(numbers)))


def run(spec: RunSpec, store: RunStore, *, stop_at: Iterable[int] = (), **options: Any) -> History:
    """Train, being stopped before each of these steps once and continuing in a new call."""
    for stop in stop_at:
        asked = itertools.count(_start(spec, store))
        stopped = train(spec, store, data_dir=store.root, should_stop=lambda a=asked, s=stop: next(a) == s)  # type: ignore[misc]
        assert (stopped.status, _start(spec, store)) == ("interrupted", stop)
        assert store.status(spec) == "interrupted"
    return train(spec, store, data_dir=store.root, **options)


def _start(spec: RunSpec, store: RunStore) -> int:
    found = store.load_partial(spec)
    return found[1] if found else 0


def parameters(spec: RunSpec, store: RunStore) -> dict[str, Any]:
    """Everything in the last checkpoint: parameters, optimizer state, generators."""
    longer = RunSpec.from_dict({**spec.to_dict(), "steps": spec.steps + spec.eval_every})
    found = store.load_partial(longer)
    assert found is not None
    return found[2]


def assert_equal(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Same names, shapes, types and bits."""
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name], err_msg=name, strict=True)


# -- against loops in float64 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optim", [{"name": "gd"}, {"name": "gd", "momentum": 0.9}, {"name": "adam"}], ids=str)
@pytest.mark.parametrize("batch_size", [None, 7])
@pytest.mark.parametrize("weights", ["none", "inverse-sqrt"])
def test_training_is_what_loops_in_float64_do(
    store: RunStore, optim: dict[str, Any], batch_size: int | None, weights: str
) -> None:
    """20 steps of softmax regression: row t holds the losses at W_t, and W_20 is the one of naive loops, to 1e-10."""
    spec = tiny(optim=optim, lr=0.05, steps=20, precision="float64", batch_size=batch_size, loss={"weights": weights})
    history = run(spec, store)
    data = load_data(spec, store.root)
    model = build_model(spec, data)
    W, b = (p.detach().double().numpy() for p in (model.head.weight, model.head.bias))  # type: ignore[union-attr, operator]
    batches = None
    if batch_size is not None:  # order of epoch e from the seed of ("order/e"), the incomplete batch left out
        orders = [
            torch.randperm(24, generator=torch.Generator().manual_seed(derive_seed(0, f"order/{epoch}"))).tolist()
            for epoch in range(7)
        ]
        batches = [order[i : i + 7] for order in orders for i in (0, 7, 14)]
    class_weights = CrossEntropy(weights).class_weights(data.counts)  # type: ignore[arg-type]
    expected = reference.train(
        data.train.inputs.double().numpy(),
        data.train.targets.tolist(),
        W,
        b,
        optimizer=optim["name"],
        momentum=optim.get("momentum", 0.0),
        lr=0.05,
        steps=20,
        weights=None if class_weights is None else class_weights.tolist(),
        batches=batches,
    )
    np.testing.assert_array_equal(history.step, np.arange(21))
    np.testing.assert_allclose(history.loss, expected.loss, rtol=1e-10)
    np.testing.assert_allclose(history.arrays["train/class_loss"], expected.class_loss, rtol=1e-6)  # kept in float32
    state = parameters(spec, store)
    np.testing.assert_allclose(state["model/head.weight"], expected.W, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(state["model/head.bias"], expected.b, rtol=1e-10, atol=1e-13)
    if weights == "none" and batch_size is None:
        np.testing.assert_allclose(history.arrays["objective"], expected.loss[:-1], rtol=1e-10)


def test_the_other_arrays_of_a_row(store: RunStore) -> None:
    """Counts, correct predictions and probabilities per class at W_T are those of the final parameters."""
    spec = tiny(precision="float64", steps=5)
    arrays, state = run(spec, store).arrays, parameters(spec, store)
    data = load_data(spec, store.root)
    logits = data.train.inputs.double().numpy() @ state["model/head.weight"].T + state["model/head.bias"]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    y = data.train.targets.numpy()
    for k in range(7):
        mine = y == k
        assert arrays["train/count"][k] == mine.sum()
        assert arrays["train/correct"][-1, k] == (logits[mine].argmax(1) == k).sum()
        np.testing.assert_allclose(arrays["train/p_correct"][-1, k], p[mine, k].mean(), rtol=1e-6)
    np.testing.assert_array_equal(arrays["group"], [0, 1, 1, 2, 2, 2, 2])


def test_recorded_rows_are_the_same_however_few(fresh: Callable[[], RunStore]) -> None:
    """Recording every third step gives every third row, and the last; the trajectory stays."""
    stores = fresh(), fresh()
    every, third = (run(tiny(eval_every=n), s) for n, s in zip((1, 3), stores, strict=True))
    np.testing.assert_array_equal(third.step, [0, 3, 6, 9, 10])
    np.testing.assert_array_equal(third.arrays["train/class_loss"], every.arrays["train/class_loss"][third.step])
    assert_equal(*(parameters(tiny(eval_every=n), s) for n, s in zip((1, 3), stores, strict=True)))


def test_the_test_split_is_recorded(store: RunStore) -> None:
    """Rows of the test split hold the losses of its own samples at W_t, in eval mode."""
    spec = tiny(**MINI, steps=6, precision="float64")
    history = run(spec, store)
    np.testing.assert_array_equal(history.arrays["test/step"], [0, 4, 6])
    data = load_data(spec, store.root)
    assert data.test is not None
    model = build_model(spec, data).double()
    for row, state in ((0, model.state_dict()), (2, parameters(spec, store))):
        model.load_state_dict({k: torch.as_tensor(state.get(f"model/{k}", state.get(k))) for k in model.state_dict()})
        with torch.no_grad():
            logits = model.eval().head(model.features(data.test.inputs))  # type: ignore[operator]
        expected = torch.nn.functional.cross_entropy(logits, data.test.targets.flatten())
        np.testing.assert_allclose(history.arrays["test/loss"][row], expected, rtol=1e-12)
    np.testing.assert_array_equal(history.arrays["test/count"], np.bincount(data.test.targets.flatten(), minlength=9))


def test_a_test_split_that_does_not_exist_is_refused(store: RunStore) -> None:
    """Asking for test losses of data without a test split is an error, not a run that never ends."""
    with pytest.raises(
        SpecError, match=r"test_every: expected 0, as data 'random-heavy-tail' has no test split, got 2"
    ):
        run(tiny(test_every=2), store)


# -- micro-batches and mini-batches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["none", "inverse"])
@pytest.mark.parametrize("batch_size", [None, 12])
def test_microbatches_change_nothing_but_the_memory(
    fresh: Callable[[], RunStore], weights: str, batch_size: int | None
) -> None:
    """Gradients accumulated over micro-batches, of unequal sizes and weights, are the batch's, to 1e-12."""
    model = {**SENTENCES["model"], "dropout": 0.0}
    changes = SENTENCES | {"model": model, "precision": "float64", "loss": {"weights": weights}, "optim": "gd"}
    results = []
    for microbatch in (20, 7):
        spec, own = tiny(**changes, batch_size=batch_size, microbatch=microbatch), fresh()
        results.append((run(spec, own).arrays, parameters(spec, own)))
    (whole, after), (cut, after_cut) = results
    for name in ("objective", "train/loss", "test/loss"):
        np.testing.assert_allclose(cut[name], whole[name], rtol=1e-12)
    for name in after:
        if name.startswith("model/"):
            np.testing.assert_allclose(after_cut[name], after[name], rtol=1e-12, atol=1e-14, err_msg=name)


def test_the_same_spec_gives_the_same_bits(fresh: Callable[[], RunStore]) -> None:
    """Mini-batches, dropout and initialisation come from the seed alone, whatever torch's generator was at."""
    stores = fresh(), fresh()
    histories = []
    for seed, own in enumerate(stores):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        histories.append(run(tiny(**MINI), own))
        assert torch.equal(torch.get_rng_state(), before)  # and the caller's generator is put back
    assert_equal(histories[0].arrays, histories[1].arrays)
    assert_equal(*(parameters(tiny(**MINI), own) for own in stores))
    other = run(tiny(**MINI, seed=1, data_seed=0), fresh())
    assert not np.array_equal(other.arrays["objective"], histories[0].arrays["objective"])


def test_an_epoch_has_every_sample_once(store: RunStore) -> None:
    """The mini-batches of an epoch are disjoint, of full size, and in another order in the next epoch."""
    made = engine._Run(tiny(batch_size=5), store, store.root, torch.device("cpu"))
    batches = [torch.cat([torch.as_tensor(c) for c in made._chunks(step)]) for step in range(8)]
    for epoch in (batches[:4], batches[4:]):
        assert len(set(torch.cat(epoch).tolist())) == 20
        assert all(len(batch) == 5 for batch in epoch)
    assert not torch.equal(torch.cat(batches[:4]), torch.cat(batches[4:]))


def test_a_batch_larger_than_the_data_is_refused(store: RunStore) -> None:
    """The message names the field, what was given and how many samples there are."""
    with pytest.raises(SpecError, match="batch_size: expected at most 24 samples, got 25"):
        run(tiny(batch_size=25), store)


def test_running_sums_are_those_of_the_mini_batches(store: RunStore) -> None:
    """Row t sums the mini-batches since the row before, as they were trained on; row 0 has the first one's."""
    spec = tiny(**SENTENCES, batch_size=6, train_stats="running", steps=7, eval_every=3)
    arrays = run(spec, store).arrays
    np.testing.assert_array_equal(arrays["train/step"], [0, 3, 6, 7])
    objective = arrays["objective"]
    expected = [objective[0], objective[0:3].mean(), objective[3:6].mean(), objective[6]]
    np.testing.assert_allclose(arrays["train/loss"], expected, rtol=1e-6)
    np.testing.assert_array_equal(arrays["train/count"].sum(1), [30, 90, 90, 30])


# -- stopping, continuing, extending -----------------------------------------------------------------------------------

CASES: dict[str, dict[str, Any]] = {
    "full batch, momentum": {"optim": {"name": "gd", "momentum": 0.9}},
    "full batch, Adam": {"optim": "adam"},
    "full batch, dropout": SENTENCES,
    "mini-batches, dropout": MINI,
    "running sums": MINI | {"train_stats": "running", "eval_every": 4},
    "running sums, every step": MINI | {"train_stats": "running"},
    "probe": MINI | {"probes": ["test-noise"], "eval_every": 5},
    "float64": {"precision": "float64", "optim": {"name": "sign", "momentum": 0.9}},
}


@pytest.mark.parametrize("case", CASES)
def test_interrupted_and_resumed_equals_uninterrupted(fresh: Callable[[], RunStore], case: str) -> None:
    """Stopped twice, in the middle of epochs and between rows, and at the start and the end: the same bits."""
    spec, stores = tiny(**CASES[case]), (fresh(), fresh())
    whole = run(spec, stores[0])
    resumed = run(spec, stores[1], stop_at=(0, 4, 5, 10))
    assert whole.status == resumed.status == "done"
    assert_equal(resumed.arrays, whole.arrays)
    assert_equal(*(parameters(spec, own) for own in stores))


@pytest.mark.parametrize("case", CASES)
def test_extended_equals_trained_at_once(fresh: Callable[[], RunStore], case: str) -> None:
    """10 steps and then 20 are 20 at once, bit for bit, without training the first 10 again."""
    short, long = tiny(**CASES[case]), tiny(**CASES[case] | {"steps": 20})
    stores = fresh(), fresh()
    whole = run(long, stores[0])
    run(short, stores[1])
    assert _start(long, stores[1]) == 10
    extended = run(long, stores[1])
    assert_equal(extended.arrays, whole.arrays)
    assert_equal(*(parameters(long, own) for own in stores))


@pytest.mark.parametrize("case", ["full batch, dropout", "mini-batches, dropout", "running sums", "probe"])
def test_reading_ahead_changes_nothing(fresh: Callable[[], RunStore], case: str) -> None:
    """A split that takes chunks of later steps gives the same bits, and no measurement disturbs its pass."""
    stores, arrays = (fresh(), fresh(), fresh()), []
    for ahead, stop_at, own in zip((0, 3, 3), ((), (), (0, 4, 5)), stores, strict=True):
        EAGER.clear()
        spec = tiny(**CASES[case] | {"data": {"name": "test-eager", "ahead": ahead}, "eval_every": 4})
        arrays.append(run(spec, own, stop_at=stop_at).arrays)
        assert max(split.most for split in EAGER) == ahead
        assert not EAGER[-1].reading
    for other in arrays[1:]:
        assert_equal(other, arrays[0])


@pytest.mark.parametrize("batch_size", [None, 5])
@pytest.mark.parametrize("ahead", [0, 3])
def test_a_gradient_is_that_of_its_step_in_any_order(store: RunStore, batch_size: int | None, ahead: int) -> None:
    """Steps that are left out, repeated, taken backwards or beyond the last one have the batches of their number."""
    spec = tiny(data={"name": "test-eager", "ahead": ahead}, model=SENTENCES["model"] | {"dropout": 0.0}, steps=4)
    spec = replace(spec, batch_size=batch_size, microbatch=3)
    made = engine._Run(spec, store, store.root, torch.device("cpu"))
    expected = [made._gradient(step, None).item() for step in range(7)]
    order = (3, 0, 0, 1, 6, 1, 3, 5, 2, 1, 2)
    assert [made._gradient(step, None).item() for step in order] == [expected[step] for step in order]
    assert len(set(expected)) == 7  # each has random transforms of its own


@pytest.mark.parametrize("case", ["interrupted", "diverged", "done", "price"])
def test_a_run_is_freed_at_its_end(store: RunStore, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No reference cycle keeps its tensors until the garbage collector comes by."""
    made: list[weakref.ref[engine._Run]] = []
    init = engine._Run.__init__
    monkeypatch.setattr(engine._Run, "__init__", lambda self, *a: (made.append(weakref.ref(self)), init(self, *a))[1])
    spec = tiny(**MINI | {"lr": 1e30 if case == "diverged" else 0.01, "optim": "gd", "steps": 40, "eval_every": 20})
    gc.collect()
    gc.disable()
    try:
        if case == "price":
            assert engine.price(spec, store.root)[0] > 0
        else:
            asked = itertools.count()
            stop = 5 if case == "interrupted" else 99
            assert train(spec, store, data_dir=store.root, should_stop=lambda: next(asked) == stop).status == case
        assert [reference() for reference in made] == [None]
    finally:
        gc.enable()


def test_wall_time_is_recorded_over_all_parts(store: RunStore) -> None:
    """A run's record has its wall seconds, those before an interruption included, and its speed since then."""
    stopped = run(tiny(steps=8), store, stop_at=[3, 5])
    parts = sum(part["step"] > 0 for part in stopped.resumed)
    assert parts == 2
    record = json.loads((store.folder(tiny(steps=8)) / "status.json").read_text())
    assert record["timing"] == stopped.timing
    assert stopped.timing["steps_per_second"] > 0
    alone = json.loads((store.folder(tiny(steps=8)) / "status.json").read_text())["timing"]["seconds"]
    longer = run(tiny(steps=9), store)
    assert longer.timing["seconds"] > alone > 0
    assert longer.timing["steps_per_second"] > 0


def test_a_finished_run_is_not_trained_again(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is stored is returned, for shorter and coarser runs too, without loading data or model."""
    run(tiny(), store)

    def refuse(*args: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(engine, "load_data", refuse)
    assert run(tiny(), store).status == "done"
    assert run(tiny(steps=6, eval_every=2), store).step.tolist() == [0, 2, 4, 6]
    with pytest.raises(AssertionError, match="trained again"):
        run(tiny(steps=11), store)


def test_commits_on_the_way_are_where_a_killed_run_resumes(
    fresh: Callable[[], RunStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that dies continues from its last commit to the same end, and says until then that it failed."""
    spec, stores = tiny(**MINI), (fresh(), fresh())
    whole = run(spec, stores[0])
    monkeypatch.setattr(engine, "COMMIT_SECONDS", 0.0)
    monkeypatch.setattr(engine, "COMMIT_LIMIT", 0.0)
    steps = itertools.count()

    def die() -> bool:
        if next(steps) == 7:
            raise MemoryError("out of memory")
        return False

    with pytest.raises(MemoryError):
        train(spec, stores[1], data_dir=stores[1].root, should_stop=die)
    assert stores[1].status(spec) == "failed"
    assert _start(spec, stores[1]) == 7
    assert_equal(run(spec, stores[1]).arrays, whole.arrays)


def test_only_the_process_with_the_lock_writes_why_a_run_failed(store: RunStore) -> None:
    """An error in a process of another rank is raised there, and the record is left to rank 0."""

    def die() -> bool:
        raise MemoryError("out of memory")

    for rank, status in ((1, "missing"), (0, "failed")):
        with pytest.raises(MemoryError):
            train(tiny(), store, data_dir=store.root, should_stop=die, group=Group(rank))
        assert store.status(tiny()) == status


def test_large_checkpoints_are_not_kept(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished run above the limit keeps its history only; one that is interrupted keeps its checkpoint."""
    monkeypatch.setattr(engine, "KEEP_BYTES", 0)
    run(tiny(), store, stop_at=(5,))
    assert store.load_partial(tiny(steps=20)) is None
    assert not list(store.folder(tiny()).glob("checkpoint-*"))


def test_progress_is_reported(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The callback hears steps in order, with the loss of that step."""
    ticks = itertools.count()
    monkeypatch.setattr(engine.time, "monotonic", lambda: next(ticks))
    heard: list[engine.Progress] = []
    history = run(tiny(), store, on_progress=heard.append)
    assert [p.step for p in heard] == list(range(10))
    np.testing.assert_allclose([p.loss for p in heard], history.loss[:-1], rtol=1e-6)


# -- divergence --------------------------------------------------------------------------------------------------------


def test_a_hopeless_run_is_ended_and_stays_ended(store: RunStore) -> None:
    """A loss a hundred times the initial one ends the run as diverged; asking for more steps trains nothing."""
    spec = tiny(lr=1e6, steps=50)
    history = run(spec, store)
    assert (history.status, store.status(spec), history.final_loss) == ("diverged", "diverged", float("inf"))
    assert history.loss[-1] > 100 * history.loss[0]
    assert (history.loss[:-1] <= 100 * history.loss[0]).all()
    outcome = store.outcome(tiny(lr=1e6, steps=5000))
    assert outcome is not None
    assert (outcome.status, outcome.last_step) == ("diverged", history.step[-1])


def test_a_bounded_loss_is_not_hopeless(store: RunStore) -> None:
    """A step size that is too large but whose loss stays within a hundred times the initial one runs to its end."""
    history = run(tiny(lr=20.0), store)
    assert history.status == "done"
    assert history.loss.max() > history.loss[0]
    assert history.peak_ratio == history.loss.max() / history.loss[0]


@pytest.mark.parametrize("case", [MINI, MINI | {"train_stats": "running", "eval_every": 2}, SENTENCES])
def test_a_loss_that_is_not_a_number_diverges(store: RunStore, case: dict[str, Any]) -> None:
    """Step sizes that overflow the network end as diverged, whatever is recorded; later runs need nothing more."""
    spec = tiny(**case | {"optim": "gd", "lr": 1e30, "steps": 8})
    history = run(spec, store)
    assert history.status == "diverged"
    assert history.final_loss == history.peak_ratio == float("inf")
    assert missing_steps(store, spec) == []


def test_divergence_in_the_last_step_is_seen(store: RunStore) -> None:
    """A run whose very last update overflows is diverged, and does not end with a NaN as its final loss."""
    spec = tiny(**SENTENCES | {"optim": "gd", "lr": 1e30, "steps": 1})
    history = run(spec, store)
    assert (history.status, history.final_loss) == ("diverged", float("inf"))
    assert run(tiny(lr=1e6, steps=1), store).status == "diverged"


# -- observation never changes the trajectory --------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["full batch, Adam", "full batch, dropout", "mini-batches, dropout", "running sums"])
def test_probes_never_change_the_trajectory(fresh: Callable[[], RunStore], case: str) -> None:
    """A probe that draws random numbers and seeds torch leaves every bit of the run as it is, and the key."""
    plain, probed = tiny(**CASES[case]), tiny(**CASES[case] | {"probes": ["test-noise"]})
    assert plain.key == probed.key
    stores = fresh(), fresh()
    without, with_probe = run(plain, stores[0]).arrays, run(probed, stores[1]).arrays
    own = {name: value for name, value in with_probe.items() if name.startswith("probe/")}
    assert_equal({k: v for k, v in with_probe.items() if k not in own}, without)
    assert_equal(parameters(plain, stores[0]), parameters(probed, stores[1]))
    np.testing.assert_array_equal(own["probe/test-noise/step"], [0, 3, 6, 9])
    if "train_stats" not in CASES[case]:
        rows = np.isin(without["train/step"], own["probe/test-noise/step"])
        np.testing.assert_allclose(own["probe/test-noise/loss"], without["train/loss"][rows], rtol=1e-5)


@pytest.mark.parametrize("observation", [{"eval_every": 5}, {"test_every": 0}, {"test_every": 3}])
def test_observing_less_or_more_never_changes_the_trajectory(
    fresh: Callable[[], RunStore], observation: dict[str, Any]
) -> None:
    """Losses are recorded without drawing a random number or touching a parameter."""
    specs, stores = (tiny(**MINI), tiny(**MINI | observation)), (fresh(), fresh())
    objectives = [run(spec, own).arrays["objective"] for spec, own in zip(specs, stores, strict=True)]
    np.testing.assert_array_equal(*objectives, strict=True)
    assert_equal(*(parameters(spec, own) for spec, own in zip(specs, stores, strict=True)))


def test_a_fresh_attempt_for_a_probe_keeps_the_finished_run_until_its_end(store: RunStore) -> None:
    """A probe that is added later trains anew from step 0, interrupted or not, and ends in one run with both."""
    plain, probed = tiny(**MINI), tiny(**MINI | {"probes": ["test-noise"]})
    before = run(plain, store)
    after = run(probed, store, stop_at=(4,))
    assert "probe/test-noise/loss" in after.arrays
    assert_equal({k: v for k, v in after.arrays.items() if not k.startswith("probe/")}, before.arrays)
    loaded = store.load(plain)
    assert loaded is not None
    assert loaded.arrays.keys() == after.arrays.keys()


# -- frozen bodies, precisions -----------------------------------------------------------------------------------------


def test_cached_features_change_nothing(fresh: Callable[[], RunStore], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a frozen body, features kept from one pass train the head as features recomputed at every step do."""
    model = {"name": "simplified-transformer", "width": 8, "train": "head"}
    spec = tiny(**SENTENCES | {"model": model, "precision": "float64", "microbatch": 7, "probes": ["test-noise"]})
    cached = fresh()
    made = engine._Run(spec, cached, cached.root, torch.device("cpu"))
    assert made.train_split.inputs.shape == (100, 8)
    kept = run(spec, cached)
    monkeypatch.setattr(engine, "CACHED_FEATURES", 0)
    recomputed_store = fresh()
    recomputed = run(spec, recomputed_store)
    assert kept.arrays.keys() == recomputed.arrays.keys()
    for name, value in kept.arrays.items():
        np.testing.assert_allclose(
            value, recomputed.arrays[name], rtol=1e-6 if "class" in name else 1e-12, err_msg=name
        )
    states = parameters(spec, cached), parameters(spec, recomputed_store)
    np.testing.assert_allclose(states[0]["model/head.weight"], states[1]["model/head.weight"], rtol=1e-11, atol=1e-14)
    initial = build_model(spec, load_data(spec, cached.root)).double().state_dict()
    for name, value in initial.items():
        if not name.startswith("head."):
            np.testing.assert_array_equal(states[0][f"model/{name}"], value, err_msg=name)


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("tf32", 1e-2), ("bf16", 0.03)])
def test_precisions_agree_with_float64(fresh: Callable[[], RunStore], precision: str, tolerance: float) -> None:
    """Every precision trains the same problem from the same point, to its own accuracy; parameters have its type."""
    changes = SENTENCES | {"model": {**SENTENCES["model"], "dropout": 0.0}, "optim": "gd", "lr": 0.1}
    exact = run(tiny(**changes, precision="float64"), fresh())
    spec, own = tiny(**changes, precision=precision), fresh()
    rounded = run(spec, own)
    assert parameters(spec, own)["model/head.weight"].dtype == np.float32
    np.testing.assert_allclose(rounded.loss, exact.loss, rtol=tolerance)
    assert not np.array_equal(rounded.loss, exact.loss)


@pytest.fixture(autouse=True)
def global_state() -> Iterator[None]:
    """Whatever a run sets for all of torch is put back."""
    before = torch.get_float32_matmul_precision(), torch.get_default_dtype(), torch.is_grad_enabled()
    yield
    assert (torch.get_float32_matmul_precision(), torch.get_default_dtype(), torch.is_grad_enabled()) == before


@dataclass(frozen=True)
class Groups:
    """Gradient descent with a parameter group for each parameter, at step sizes of their own."""

    def build(self, params: Iterable[torch.nn.Parameter], lr: float) -> HeavyBall:
        return HeavyBall([{"params": [p], "lr": lr * (1 + i)} for i, p in enumerate(params)], lr, 0.5)


@dataclass(frozen=True)
class MatricesOnly:
    """An optimizer that refuses vectors."""

    def build(self, params: Iterable[torch.nn.Parameter], lr: float) -> torch.optim.Optimizer:
        return torch.optim.Muon(params, lr)


@pytest.fixture
def _optimizers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register two optimizers for one test, so that no contract test sees them."""
    OPTIMIZERS.names()
    for name, recipe in (("test-groups", Groups), ("test-muon", MatricesOnly)):
        monkeypatch.setitem(OPTIMIZERS._recipes, name, recipe)
        monkeypatch.setitem(OPTIMIZERS._versions, name, 1)


@pytest.mark.usefixtures("_optimizers")
def test_an_optimizer_that_refuses_a_parameter_is_named(store: RunStore) -> None:
    """PyTorch's error becomes one line with the optimizer and the first parameter that it refuses."""
    with pytest.raises(SpecError, match=r"optim 'test-muon' cannot train parameter 'head.bias' \[7\]: Muon only"):
        run(tiny(optim="test-muon"), store)


class TwoRanks(Group):
    """Rank 0 of two whose peer sends the same numbers: every sum is twice this rank's share."""

    def add(self, tensors: Iterable[torch.Tensor]) -> None:
        for tensor in tensors:
            tensor *= 2

    def any(self, flag: bool) -> bool:
        return flag

    def same(self, number: int) -> bool:
        return True


@pytest.mark.usefixtures("_optimizers")
def test_gradients_of_all_groups_are_summed(store: RunStore) -> None:
    """The exchange between processes reaches the gradients of every parameter group."""
    made = engine._Run(tiny(optim="test-groups"), store, store.root, torch.device("cpu"), TwoRanks(0, 2))
    made._gradient(0, None)
    both = [p.grad.clone() for p in made.model.parameters() if p.grad is not None]
    whole = engine._Run(tiny(optim="test-groups", microbatch=12), store, store.root, torch.device("cpu"))
    (batch,) = whole.train_split.batches(whole._chunks(0)[:1])
    whole._loss(batch, None, 24.0, None).backward()
    for got, p in zip(both, whole.model.parameters(), strict=True):
        assert p.grad is not None
        torch.testing.assert_close(got, 2 * p.grad)


@pytest.mark.parametrize("probe", [n for n in PROBES.names() if not n.startswith("test-")])
@pytest.mark.parametrize("precision", ["float32", "bf16", "float64"])
def test_every_probe_measures_at_every_precision(probe: str, precision: str, fresh: Callable[[], RunStore]) -> None:
    """A body in any precision gives finite measurements, bfloat16's within its accuracy of float64's."""
    changes = SENTENCES | {"model": {**SENTENCES["model"], "dropout": 0.0}, "test_every": 0, "steps": 1}
    arrays = []
    for p in (precision, "float64"):
        arrays.append(run(tiny(**changes, precision=p, probes=[{"name": probe, "at": [0]}]), fresh()).arrays)
    for name, value in arrays[0].items():
        if name.startswith("probe/") and np.issubdtype(value.dtype, np.floating):
            np.testing.assert_allclose(value, arrays[1][name], rtol=0.1, atol=0.02, err_msg=name)


@pytest.mark.parametrize("flush", [False, True])
def test_flushing_of_denormals_is_put_back(flush: bool, store: RunStore) -> None:
    """A run leaves torch's treatment of denormal numbers as it was."""
    torch.set_flush_denormal(flush)
    try:
        run(tiny(steps=1), store)
        assert engine._flushes_denormal() == flush
    finally:
        torch.set_flush_denormal(False)
