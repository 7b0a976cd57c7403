"""Recipes of PyTorch's optimizers against the updates of their papers, and their settings."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import Parameter

from heavytail.errors import SpecError
from heavytail.experiment.registry import Component
from heavytail.experiment.store import RunStore
from heavytail.optim import REGISTRY
from heavytail.train.engine import train
from tests.problems import tiny
from tests.reference import torch_optim as naive
from tests.test_optim import beside_reference

CASES: list[tuple[str, dict[str, Any], type, dict[str, Any], float]] = [
    ("adamw", {}, naive.AdamW, {}, 0.02),
    ("adamw", {"beta1": 0.5, "beta2": 0.9, "eps": 1e-3}, naive.AdamW, {"beta1": 0.5, "beta2": 0.9, "eps": 1e-3}, 0.02),
    ("nadam", {}, naive.NAdam, {}, 0.02),
    ("radam", {}, naive.RAdam, {}, 0.05),
    ("radam", {"beta2": 0.9}, naive.RAdam, {"beta2": 0.9}, 0.05),
    ("adagrad", {}, naive.Adagrad, {}, 0.1),
    ("rmsprop", {}, naive.RMSprop, {}, 0.01),
    ("rmsprop", {"alpha": 0.9, "momentum": 0.8}, naive.RMSprop, {"alpha": 0.9, "momentum": 0.8}, 0.003),
    ("adafactor", {}, naive.Adafactor, {}, 0.05),
    ("adafactor", {"clip": 2.0}, naive.Adafactor, {"clip": 2.0}, 0.5),
]
NAMES = sorted({case[0] for case in CASES})


@pytest.mark.parametrize(("name", "settings", "reference", "its", "lr"), CASES)
def test_updates_are_those_of_the_paper(
    name: str, settings: dict[str, Any], reference: type, its: dict[str, Any], lr: float
) -> None:
    """Over 40 steps on softmax regression, W and b follow the paper's update to 1e-11.

    Adafactor's path becomes unstable after that: it magnifies a change of W_0 by 1e-13 to 1e-10 from step 40 to 50.
    """
    _, params, _, expected = beside_reference(Component(name, settings), lambda lr: reference(lr, **its), lr, 40)
    for param, value in zip(params, expected, strict=True):
        np.testing.assert_allclose(param.detach().numpy(), value, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_interrupted_and_resumed_is_uninterrupted(name: str, tmp_path: Any) -> None:
    """A run continued from its checkpoint ends at the same losses, bit for bit, as one that was never stopped."""
    whole = train(tiny(optim=name, steps=8), RunStore(tmp_path / "whole"), data_dir=tmp_path)
    store = RunStore(tmp_path / "parts")
    train(tiny(optim=name, steps=3), store, data_dir=tmp_path)
    resumed = train(tiny(optim=name, steps=8), store, data_dir=tmp_path)
    assert np.array_equal(whole.loss, resumed.loss)


@pytest.mark.parametrize("name", NAMES)
def test_groups_have_their_own_step_sizes(name: str) -> None:
    """Each parameter group steps with its own step size, and a deep copy of the optimizer as the original."""
    moved = []
    for groups in ([0.01, 0.02], [0.02, 0.01]):
        params = [Parameter(torch.ones(3, 2)) for _ in groups]
        optimizer = REGISTRY.make(Component(name)).build(
            [{"params": [p], "lr": lr} for p, lr in zip(params, groups, strict=True)],  # type: ignore[misc]
            0.5,
        )
        twin = copy.deepcopy(optimizer)
        for one in (optimizer, twin):
            for group in one.param_groups:
                group["params"][0].grad = torch.full((3, 2), 0.3)
            one.step()
        assert torch.equal(twin.param_groups[0]["params"][0], params[0])
        moved.append([p[0, 0].item() for p in params])
    assert moved[0] == moved[1][::-1]
    assert moved[0][0] > moved[0][1]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("adamw", {"beta1": 1.0}),
        ("adamw", {"weight_decay": -0.1}),
        ("nadam", {"momentum_decay": math.nan}),
        ("radam", {"eps": -1.0}),
        ("adagrad", {"eps": math.inf}),
        ("rmsprop", {"alpha": 1.0}),
        ("rmsprop", {"momentum": -0.1}),
        ("adafactor", {"beta2_decay": 0.5}),
        ("adafactor", {"clip": 0.5}),
    ],
)
def test_settings_out_of_range_are_refused(name: str, settings: dict[str, float]) -> None:
    """An impossible setting is one line that names it and what is allowed."""
    with pytest.raises(SpecError, match=rf"optim\.{next(iter(settings))}: expected"):
        REGISTRY.make(Component(name, settings))
