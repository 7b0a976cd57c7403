"""Interrupted and resumed equals uninterrupted, bit for bit: every model, optimizer and step, through `train`."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch

from heavytail.data import REGISTRY as DATA
from heavytail.data import Data, Split
from heavytail.data.images.base import ImageRecipe, MemorySplit
from heavytail.errors import StoreError
from heavytail.experiment.registry import Component
from heavytail.experiment.spec import RunSpec
from heavytail.experiment.store import History, RunStore
from heavytail.models import REGISTRY as MODELS
from heavytail.optim import REGISTRY as OPTIMIZERS
from heavytail.train import checkpoint, engine
from heavytail.train.engine import train

C, N, STEPS = 7, 12, 5


@DATA.register("test-small")
@dataclass(frozen=True)
class Small:
    """Random vectors, images or tokens."""

    kind: Literal["vectors", "images", "tokens"] = "vectors"

    def load(self, *, seed: int, data_dir: Path) -> Data:
        generator = torch.Generator().manual_seed(seed)
        shape = {"vectors": (N, 6), "images": (N, 3, 8, 8), "tokens": (N, 5)}[self.kind]
        tokens = self.kind == "tokens"
        inputs = torch.randint(C, shape, generator=generator) if tokens else torch.rand(shape, generator=generator)
        targets = torch.randint(C, shape if tokens else shape[:1], generator=generator)
        return Data(Split(inputs, targets), Split(inputs[:4], targets[:4]), C)


@DATA.register("test-augmented")
@dataclass(frozen=True, kw_only=True)
class Augmented(ImageRecipe):
    """Random images that are cropped and mirrored at random in training."""

    size: int = 8
    title: ClassVar[str] = "Augmented"

    def load(self, *, seed: int, data_dir: Path) -> Data:
        generator = torch.Generator().manual_seed(seed)
        images = torch.randint(256, (N, 3, 8, 8), dtype=torch.uint8, generator=generator)
        targets = torch.randint(C, (N,), generator=generator)
        return Data(MemorySplit(images=images, targets=targets, settings=self, seed=seed), None, C)


def spec(kind: str, optimizer: str, **changes: Any) -> RunSpec:
    recipe: Any = MODELS.recipe(kind)
    table = {
        "data": {"name": "test-small", "kind": recipe.inputs},
        "model": {"name": kind, **getattr(recipe, "small", {})},
        "optim": {"name": optimizer, **getattr(OPTIMIZERS.recipe(optimizer), "small", {})},
        "lr": 0.01,
        "steps": STEPS,
    }
    return RunSpec.from_dict(table | changes)


def stopped_everywhere(run: RunSpec, store: RunStore) -> History:
    """Train with an interruption before every step, each resumed by a new call."""
    for step in range(STEPS + 1):
        asked = itertools.count(max(step - 1, 0))
        history = train(run, store, data_dir=store.root, should_stop=lambda a=asked, s=step: next(a) == s)  # type: ignore[misc]
        assert history.status == "interrupted"
    return train(run, store, data_dir=store.root)


def assert_equal(a: History, b: History) -> None:
    assert a.arrays.keys() == b.arrays.keys()
    for name, value in a.arrays.items():
        np.testing.assert_array_equal(value, b.arrays[name], err_msg=name, strict=True)


@pytest.mark.parametrize("optim", OPTIMIZERS.names())
@pytest.mark.parametrize("model", MODELS.names())
def test_every_model_and_optimizer_at_every_step(model: str, optim: str, tmp_path: Path) -> None:
    """A run stopped before every step, and one asked for one step more each time, have the uninterrupted run's bits."""
    whole = train(spec(model, optim), RunStore(tmp_path / "whole"), data_dir=tmp_path)
    assert whole.status == "done"
    assert_equal(stopped_everywhere(spec(model, optim), RunStore(tmp_path / "stopped")), whole)
    store = RunStore(tmp_path / "extended")
    for steps in range(1, STEPS + 1):
        extended = train(spec(model, optim, steps=steps), store, data_dir=tmp_path)
    assert_equal(extended, whole)


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "mini-batches": ("cnn", {"batch_size": 5, "test_every": 2}),
    "micro-batches": ("cnn", {"microbatch": 5}),
    "batch norm, mini-batches": ("resnet18", {"batch_size": 6}),
    "layer norm": ("resnet18", {"model": {"name": "resnet18", "norm": "layer", "width": 8, "small_stem": True}}),
    "running sums": ("simple-vit", {"batch_size": 5, "train_stats": "running", "eval_every": 2}),
    "dropout": ("transformer", {"model": {"name": "transformer", "width": 8, "mlp": 6, "dropout": 0.4}}),
    "dropout, mini-batches": ("gpt2", {"batch_size": 5}),
    "augmented": ("cnn", {"data": "test-augmented"}),
    "augmented linear": ("linear", {"data": "test-augmented"}),
    "augmented, mini-batches": ("resnet18", {"data": "test-augmented", "batch_size": 5}),
    "frozen body": ("transformer", {"model": {"name": "transformer", "width": 8, "mlp": 6, "train": "head"}}),
    "bf16": ("cnn", {"precision": "bf16"}),
    "float64, weighted": ("cnn", {"precision": "float64", "loss": {"weights": "inverse"}}),
    "probe": ("cnn", {"probes": [{"name": "head-blocks", "at": [0, 2, 5]}]}),
    "few channels": ("cnn", {"model": {"name": "cnn", "channels": [3, 4]}}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_way_of_training_at_every_step(variant: str, tmp_path: Path) -> None:
    """Batches, precisions, dropout, random crops and running sums resume with Adam to the last bit."""
    model, changes = VARIANTS[variant]
    run = spec(model, "adam", **changes)
    whole = train(run, RunStore(tmp_path / "whole"), data_dir=tmp_path)
    resumed = stopped_everywhere(run, RunStore(tmp_path / "stopped"))
    assert_equal(resumed, whole)
    assert whole.resumed == []
    assert [r["step"] for r in resumed.resumed] == [0, 1, 2, 3, 4, 5]
    assert all(r["at"].endswith("+00:00") for r in resumed.resumed)


def test_steps_before_a_commit_are_judged_after_it(tmp_path: Path) -> None:
    """A loss that was not read before the interruption, as on a GPU, makes the resumed run diverge."""
    run, asked = spec("linear", "gd"), itertools.count()
    train(run, RunStore(tmp_path), data_dir=tmp_path, should_stop=lambda: next(asked) == 4)
    found = RunStore(tmp_path).load_partial(run)
    assert found is not None
    history, step, state = found
    history.arrays["objective"][2] = 1e9
    RunStore(tmp_path).save(history, step=step, checkpoint=state)
    assert train(run, RunStore(tmp_path), data_dir=tmp_path).status == "diverged"
    found = RunStore(tmp_path).read(run.key)
    assert found[1]["step"] == 2


@pytest.mark.parametrize(("seconds", "pause"), [(1.0, 30), (10.0, 200), (300.0, 600)])
def test_commits_of_a_large_state_are_farther_apart(
    seconds: float, pause: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing takes at most a twentieth of the time, unless that were less than one commit in ten minutes."""
    clock, commits = [0.0], []
    monkeypatch.setattr(engine, "time", SimpleNamespace(monotonic=lambda: clock[0], perf_counter=time.perf_counter))
    save = RunStore.save

    def slow(self: RunStore, *args: Any, **kwargs: Any) -> None:
        begun, clock[0] = clock[0], clock[0] + seconds
        commits.append((begun, clock[0]))
        save(self, *args, **kwargs)

    def tick() -> bool:
        clock[0] += 10.0  # a step
        return False

    monkeypatch.setattr(RunStore, "save", slow)
    train(spec("linear", "gd", steps=200), RunStore(tmp_path), data_dir=tmp_path, should_stop=tick)
    gaps = [begun - ended for (_, ended), (begun, _) in itertools.pairwise(commits[:-1])]
    assert gaps
    assert {pause < gap <= pause + 10 for gap in gaps} == {True}


@pytest.mark.parametrize("model", ["linear", "cnn"])
def test_random_crops_differ_between_passes_and_not_in_evaluation(model: str, tmp_path: Path) -> None:
    """At a standstill every pass trains on other crops, and every recorded row is that of the whole images."""
    run = spec(model, "gd", data="test-augmented", lr=1e-12)
    history = train(run, RunStore(tmp_path), data_dir=tmp_path)
    assert len(set(history.arrays["objective"].tolist())) == STEPS
    assert np.ptp(history.loss) < 1e-6
    plain = train(
        spec(model, "gd", data={"name": "test-augmented", "augment": False}, lr=1e-12),
        RunStore(tmp_path / "plain"),
        data_dir=tmp_path,
    )
    np.testing.assert_allclose(history.loss, plain.loss, rtol=1e-5)


def test_only_augmented_runs_have_a_new_version() -> None:
    """Runs without random transforms keep the version of their data, and so their key."""
    settings: tuple[dict[str, Any], ...] = ({"augment": False}, {"augment": True})
    assert [DATA.version(Component("tiny-imagenet", table)) for table in settings] == [1, 2]


def test_a_checkpoint_of_another_step_is_refused() -> None:
    """A record that names another step than its checkpoint holds is an error, not another trajectory."""
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    arrays = checkpoint.pack(60, model, optimizer, None)
    checkpoint.unpack(60, arrays, model, optimizer, None)
    with pytest.raises(StoreError, match="names step 40, but its checkpoint is of step 60"):
        checkpoint.unpack(40, arrays, model, optimizer, None)


# -- the verdict on divergence ---------------------------------------------------------------------------------------


def arrays_spec(folder: Path, **changes: Any) -> RunSpec:
    """Softmax regression on features of size 30, of 6 classes of different frequency."""
    rng = np.random.default_rng(0)
    if not (folder / "big.npz").exists():
        targets = np.repeat(np.arange(6), [40, 20, 10, 6, 3, 1])
        np.savez(folder / "big.npz", X=(rng.normal(size=(80, 5)) * 30).astype(np.float32), y=targets)
    table = {"data": {"name": "arrays", "path": str(folder / "big.npz")}, "model": "linear", "optim": "gd"}
    return RunSpec.from_dict({**table, "lr": 1e-6, "steps": 40, "batch_size": 1, **changes})


@pytest.mark.parametrize("seed", range(8))
def test_an_easy_first_mini_batch_is_no_divergence(seed: int, tmp_path: Path) -> None:
    """At a step size that changes nothing, mini-batches of one sample of very different losses are not divergence."""
    assert train(arrays_spec(tmp_path, seed=seed), RunStore(tmp_path), data_dir=tmp_path).status == "done"


@pytest.mark.parametrize(
    "changes", [{"batch_size": 7}, {"batch_size": None}, {"loss": {"weights": "inverse"}}], ids=str
)
@pytest.mark.parametrize("lr", [0.3, 3.0, 1e6])
def test_the_verdict_does_not_depend_on_what_was_asked_before(
    lr: float, changes: dict[str, Any], tmp_path: Path
) -> None:
    """Asked for T steps alone, after fewer and after more, a run has the same status for every T."""
    runs = [
        arrays_spec(tmp_path, **{"optim": {"name": "gd", "momentum": 0.99}, "lr": lr, "steps": t, **changes})
        for t in (1, 2, 3, 5, 8, 13)
    ]
    alone = [train(run, RunStore(tmp_path / str(run.steps)), data_dir=tmp_path).status for run in runs]
    for name, order in (("up", runs), ("down", runs[::-1])):
        store = RunStore(tmp_path / name)
        for run in order:
            train(run, store, data_dir=tmp_path)
        assert [store.status(run) for run in runs] == alone
