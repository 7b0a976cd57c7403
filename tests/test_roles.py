"""Roles: every trainable parameter of every model has one, and it is the right one."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from heavytail.errors import SpecError
from heavytail.models import REGISTRY
from heavytail.optim.by_role import Joined
from heavytail.optim.roles import ROLES, roles
from tests.test_model_contract import small_model


@pytest.mark.parametrize("name", REGISTRY.names())
def test_every_parameter_has_one_role(name: str) -> None:
    """The roles of a model divide its trainable parameters; the head's are the head's."""
    model, _ = small_model(name)
    groups = roles(model)
    assert tuple(groups) == ROLES
    times = Counter(id(p) for group in groups.values() for p in group)
    assert times == Counter(id(p) for p in model.parameters() if p.requires_grad)
    assert {id(p) for p in groups["head"]} == {id(p) for p in model.head.parameters()}
    assert all("norm" in type(m).__name__.lower() for m in _owners(model, groups["norm"]))
    assert all(isinstance(m, nn.Embedding) for m in _owners(model, groups["embedding"]))
    assert not any(isinstance(m, nn.Embedding) for m in _owners(model, groups["hidden"]))
    assert not any("norm" in type(m).__name__.lower() for m in _owners(model, groups["hidden"]))


def _owners(model: nn.Module, parameters: list[nn.Parameter]) -> list[nn.Module]:
    """The layers that the parameters belong to."""
    wanted = {id(p) for p in parameters}
    return [m for m in model.modules() if any(id(p) in wanted for p in m.parameters(recurse=False))]


def test_tied_and_frozen_parameters() -> None:
    """A table shared by embedding and head belongs to the head, once; frozen parameters have no role."""
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    model.head = nn.Linear(3, 5, bias=False)
    model.head.weight = model[0].weight
    model[1].bias.requires_grad_(False)
    sizes = {role: [tuple(p.shape) for p in group] for role, group in roles(model).items()}
    assert sizes == {"head": [(5, 3)], "embedding": [], "norm": [(3,), (3,)], "hidden": [(3, 3)]}


def test_a_model_without_a_head_is_refused() -> None:
    """The message names what is missing."""
    with pytest.raises(SpecError, match="expected an attribute head, got Linear"):
        roles(nn.Linear(2, 2))


def test_a_joined_optimizer_refuses_a_new_group() -> None:
    """No part would train it."""
    weights = [nn.Parameter(torch.ones(2)) for _ in range(3)]
    joined = Joined([torch.optim.SGD([weights[0]], lr=0.1), torch.optim.Adam([weights[1]], lr=0.1)])
    with pytest.raises(SpecError, match="add it to one of the parts"):
        joined.add_param_group({"params": [weights[2]]})
    assert len(joined.param_groups) == 2
