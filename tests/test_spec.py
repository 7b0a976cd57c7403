"""RunSpec: reading, refusing, and the key that a run is stored under."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from heavytail.errors import SpecError
from heavytail.experiment.registry import Component
from heavytail.experiment.spec import OBSERVATION, UNSTORED, RunSpec, derive_seed
from tests.problems import BASE, output, tiny

# Another value for every field; a field that is added without one fails the test below.
OTHER: dict[str, Any] = {
    "data": {"name": "random-heavy-tail", "groups": 4},
    "model": {"name": "linear", "init": "zero"},
    "optim": {"name": "gd", "momentum": 0.9},
    "loss": {"weights": "inverse"},
    "lr": 0.2,
    "batch_size": 8,
    "microbatch": 8,
    "precision": "float64",
    "seed": 1,
    "data_seed": 1,
    "steps": 20,
    "eval_every": 2,
    "test_every": 5,
    "train_stats": "running",
    "probes": ["whatever"],
}


def test_reads_its_own_table() -> None:
    """from_dict and to_dict are inverse to each other."""
    spec = tiny(loss={"weights": "inverse-sqrt"}, probes=["a", {"name": "b", "x": 1}], batch_size=4)
    assert RunSpec.from_dict(spec.to_dict()) == spec
    assert spec.loss == Component("cross-entropy", {"weights": "inverse-sqrt"})
    assert spec.probes == (Component("a"), Component("b", {"x": 1}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": 3}, r"unknown run setting 'step'; did you mean 'steps'\?"),
        ({"steps": 2.5}, r"steps: expected int, got 2\.5"),
        ({"steps": 0}, r"steps: expected an integer >= 1, got 0"),
        ({"eval_every": 0}, r"eval_every: expected an integer >= 1, got 0"),
        ({"test_every": -1}, r"test_every: expected an integer >= 0, got -1"),
        ({"batch_size": 0}, r"batch_size: expected an integer >= 1, got 0"),
        ({"batch_size": "full"}, r"batch_size: expected int \| None, got 'full'"),
        ({"microbatch": 0}, r"microbatch: expected an integer >= 1, got 0"),
        ({"precision": "fp16"}, r"unknown precision 'fp16'.*known: bf16, float32, float64, tf32"),
        ({"lr": 0.0}, r"lr: expected a positive finite number, got 0\.0"),
        ({"lr": float("nan")}, r"lr: expected a positive finite number, got nan"),
        ({"lr": float("inf")}, r"lr: expected a positive finite number, got inf"),
        ({"train_stats": "running"}, r"train_stats: 'running' needs a batch_size"),
        ({"probes": "norms"}, r"probes: expected a list, got 'norms'"),
        ({"probes": 3}, r"probes: expected a list, got 3"),
        ({"seed": "one"}, r"seed: expected int, got 'one'"),
        ({"model": 3}, r"model: expected a name or a table with a name, got 3"),
    ],
)
def test_a_wrong_field_is_named(changes: dict[str, Any], message: str) -> None:
    """The message names the field, what was given and what is allowed, on one line."""
    with pytest.raises(SpecError, match=message) as caught:
        tiny(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["data", "model", "optim", "lr", "steps"])
def test_a_missing_field_is_named(field: str) -> None:
    """The five fields without a default are asked for."""
    with pytest.raises(SpecError, match=f"{field}: expected a value, got none"):
        RunSpec.from_dict({k: v for k, v in BASE.items() if k != field})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim": "adm"}, r"unknown optimizer 'adm'; did you mean 'adam'\?"),
        (
            {"data": {"name": "random-heavy-tail", "group": 3}},
            r"setting of data set random-heavy-tail: 'group'.*'groups'",
        ),
        ({"model": {"name": "linear", "init": 0}}, r"model\.init: expected one of"),
        ({"probes": ["no-such-probe"]}, r"unknown probe 'no-such-probe'"),
    ],
)
def test_a_wrong_component_is_named_when_it_is_resolved(changes: dict[str, Any], message: str) -> None:
    """Reading a table needs no torch; resolving it finds what does not exist."""
    with pytest.raises(SpecError, match=message):
        _ = tiny(**changes).resolved


def test_defaults_are_in_the_key() -> None:
    """Saying what is the case anyway, in whatever number type, does not change the key."""
    spelt_out = tiny(
        data={"groups": 3, "name": "random-heavy-tail", "inputs": "uniform"},
        model={"name": "linear", "init": "default"},
        optim={"name": "gd", "momentum": 0},
        loss="cross-entropy",
        data_seed=0,
    )
    assert spelt_out.key == tiny().key
    assert tiny().resolved.key == tiny().key
    assert tiny(lr=1).key == tiny(lr=1.0).key
    assert dataclasses.replace(tiny(), lr=1).key == tiny(lr=1.0).key


def test_every_field_of_the_trajectory_is_in_the_key_and_no_other() -> None:
    """Each field that decides the parameters changes the key; fields that only observe them do not."""
    assert {*OTHER, *UNSTORED} == {f.name for f in dataclasses.fields(RunSpec)}
    assert dataclasses.replace(tiny(), may_end=True).key == tiny().key
    keys = {tiny().key}
    for field, value in OTHER.items():
        if field in OBSERVATION:
            if field != "probes":
                assert tiny(**{field: value}).key == tiny().key, field
        elif field == "train_stats":
            keys.add(tiny(batch_size=4, train_stats=value).key)
            assert tiny(batch_size=4, train_stats=value).key != tiny(batch_size=4).key
            every = [tiny(batch_size=4, train_stats=value, eval_every=k).key for k in (1, 2)]
            assert every[0] != every[1]  # running sums are those of one eval_every
        else:
            keys.add(tiny(**{field: value}).key)
    assert len(keys) == 1 + len(OTHER) - len(OBSERVATION)


def test_a_component_version_is_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """A component that computes something new under its old name gets new runs."""
    from heavytail.optim import REGISTRY

    before = tiny().key
    monkeypatch.setitem(REGISTRY._versions, "gd", REGISTRY.version(Component("gd")) + 1)
    assert tiny().key != before


def test_the_key_is_the_same_in_every_process() -> None:
    """Two fresh interpreters with different hash seeds give the same key, and so does this one."""
    code = "from tests.problems import tiny; print(tiny(optim={'name': 'adam', 'beta1': 0.9, 'eps': 1e-9}).key)"
    keys = {output(code, env={"PYTHONHASHSEED": seed}) for seed in ("1", "2")}
    assert keys == {tiny(optim={"name": "adam", "eps": 1e-9, "beta1": 0.9}).key}


def test_recorded_steps() -> None:
    """Rows are the multiples of `every` and the last step; 0 asks for none."""
    assert tiny(steps=10, eval_every=4).recorded_steps() == [0, 4, 8, 10]
    assert tiny(steps=8, eval_every=4).recorded_steps() == [0, 4, 8]
    assert tiny(steps=3, eval_every=4).recorded_steps() == [0, 3]
    assert tiny(steps=8).recorded_steps(0) == []


def test_data_and_initialisation_have_generators_of_their_own() -> None:
    """data_seed follows the seed unless it is given, and every purpose has another seed (erratum 10)."""
    assert tiny(seed=3).resolved.data_seed == 3
    assert tiny(seed=3, data_seed=0).resolved.data_seed == 0
    purposes = ["data", "init", "dropout", "order/0", "order/1"]
    assert len({derive_seed(seed, purpose) for seed in range(20) for purpose in purposes}) == 100
    assert all(0 <= derive_seed(seed, "data") < 2**63 for seed in range(20))
