"""Parameters of a model by their role: head, embedding, norm, hidden.

Optimizers for hidden matrices only (Muon), and experiments on which layers need an adaptive method, train each role
with a different optimizer.
"""

from __future__ import annotations

from typing import Literal

from torch import nn
from torch.nn import Parameter
from torch.nn.modules.batchnorm import _NormBase

from heavytail.errors import SpecError

Role = Literal["head", "embedding", "norm", "hidden"]
ROLES: tuple[Role, ...] = ("head", "embedding", "norm", "hidden")
_KINDS: tuple[tuple[Role, tuple[type[nn.Module], ...]], ...] = (
    ("embedding", (nn.Embedding, nn.EmbeddingBag)),
    ("norm", (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, _NormBase)),
)


def roles(model: nn.Module) -> dict[Role, list[Parameter]]:
    """Return the trainable parameters of every role, each parameter once, in the model's order.

    The head is `model.head`, biases included; embeddings are look-up tables; norms are scales and shifts of
    normalisation layers. Everything else is hidden, biases included. A parameter that two layers share (tied
    embeddings) has the first of their roles in ROLES.

    Raises:
        SpecError: the model has no head.

    >>> model = nn.Sequential(nn.Embedding(3, 2), nn.LayerNorm(2), nn.Linear(2, 2))
    >>> model.head = nn.Linear(2, 3)
    >>> {role: len(parameters) for role, parameters in roles(model).items()}
    {'head': 2, 'embedding': 1, 'norm': 2, 'hidden': 2}
    """
    head = getattr(model, "head", None)
    if not isinstance(head, nn.Module):
        raise SpecError(f"model: expected an attribute head, got {type(model).__name__} without one")
    found: dict[int, Role] = {id(p): "head" for p in head.parameters()}
    for role, kinds in _KINDS:
        for module in model.modules():
            if isinstance(module, kinds):
                for p in module.parameters(recurse=False):
                    found.setdefault(id(p), role)
    groups: dict[Role, list[Parameter]] = {role: [] for role in ROLES}
    for p in model.parameters():
        if p.requires_grad:
            groups[found.get(id(p), "hidden")].append(p)
    return groups
