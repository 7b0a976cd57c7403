"""The Hessian of the head beyond its traces: chosen entries (figs 8, 28) and the matrix of block traces (section H.1).

Between input a of row k and input b of row j the Hessian of the mean loss is

    H_(k,a),(j,b) = (1/n) sum_i p_ik (1[j = k] - p_ij) h_ia h_ib.

Because the probabilities of a sample sum to 1, sum_j H_kj = 0, and every block off the diagonal has a trace <= 0:
Tr H_kk *equals* sum_{j != k} |Tr H_kj|. The matrix of block traces is diagonally dominant whatever the weights and
the data are, and only just. What depends on the problem is how a diagonal block compares with one other block.

Shapes: C classes, D features, R rows of a chunk, K chosen classes, J chosen inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from heavytail.analysis.blocks import Pairs
from heavytail.errors import SpecError

Sampling: TypeAlias = Literal["log-uniform", "uniform"]

_CHUNK_NUMBERS = 2**22  # probabilities held at once, in float64: 32 MiB


def sample_classes(counts: ArrayLike, num: int, sampling: Sampling = "log-uniform") -> NDArray[np.int64]:
    """Return classes evenly spaced in frequency rank, or in its logarithm, from the most frequent to the rarest.

    Args:
        counts: samples of each class [C].
        num: K; all classes if there are fewer.
        sampling: "log-uniform" shows as many of the ten most frequent as of the next ninety, "uniform" hardly any.

    Returns:
        K different classes, most frequent first [K].

    >>> sample_classes([1, 9, 5, 3, 2, 7], 3, "uniform").tolist()
    [1, 2, 0]
    """
    counts = np.asarray(counts)
    if num < 1:
        raise SpecError(f"num: expected at least 1 class, got {num}")
    num, C = min(num, len(counts)), len(counts)
    places = np.geomspace(1, C, num) - 1 if sampling == "log-uniform" else np.linspace(0, C - 1, num)
    ranks = np.rint(places).astype(np.int64)
    for i in range(1, num):  # ranks that round to the same: take the next free one
        ranks[i] = max(ranks[i], ranks[i - 1] + 1)
    for i in range(num - 1, -1, -1):
        ranks[i] = min(ranks[i], C - num + i)
    return np.argsort(-counts, kind="stable")[ranks]


def hessian_entries(pairs: Pairs, weight: Tensor, bias: Tensor | None, classes: ArrayLike, inputs: ArrayLike) -> Tensor:
    """Return the Hessian of the mean loss between chosen inputs of chosen rows, off-diagonal blocks included.

    Args:
        pairs: (features [M, D], targets [M]); the targets do not matter.
        weight: W [C, D].
        bias: b [C], or None.
        classes: [K].
        inputs: [J], numbers of features.

    Returns:
        [K J, K J] float64; entry (k J + a, j J + b) is between input a of class k and input b of class j.
    """
    rows = torch.as_tensor(np.asarray(classes), device=weight.device)
    columns = torch.as_tensor(np.asarray(inputs), device=weight.device)
    K, J = len(rows), len(columns)
    total = torch.zeros(K, J, K, J, dtype=torch.float64, device=weight.device)
    own = torch.zeros(K, J, J, dtype=torch.float64, device=weight.device)
    n = 0
    for h, p in _probabilities(pairs, weight, bias):
        q, x = p[:, rows], h[:, columns].double()
        weighted = (q[:, :, None] * x[:, None, :]).flatten(1)  # p_ik h_ia [R, K J]
        own += (weighted.t() @ x).view(K, J, J)
        total -= (weighted.t() @ weighted).view(K, J, K, J)
        n += len(h)
    total.diagonal(dim1=0, dim2=2).add_(own.permute(1, 2, 0))
    return total.view(K * J, K * J) / n


def block_trace_matrix(pairs: Pairs, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return Tr H_kj for every pair of classes, [C, C] float64: 32 MiB for the 2 047 classes of m = 11.

    Args:
        pairs: (features [M, D], targets [M]); the targets do not matter.
        weight: W [C, D].
        bias: b [C], or None.

    >>> block_trace_matrix([(torch.eye(2), torch.tensor([0, 1]))], torch.zeros(2, 2)).tolist()
    [[0.25, -0.25], [-0.25, 0.25]]
    """
    C = len(weight)
    matrix = torch.zeros(C, C, dtype=torch.float64, device=weight.device)
    diagonal = torch.zeros(C, dtype=torch.float64, device=weight.device)
    n = 0
    for h, p in _probabilities(pairs, weight, bias):
        scaled = p * h.double().square().sum(1, keepdim=True)
        diagonal += scaled.sum(0)
        matrix.addmm_(p.t(), scaled, alpha=-1.0)
        n += len(h)
    matrix.diagonal().add_(diagonal)
    return matrix / n


def dominance(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return how each diagonal entry of a square matrix compares with the others of its row.

    Returns:
        |H_kk| / sum_{j != k} |H_kj| [C], at least 1 where the row is diagonally dominant, and
        max_{j != k} |H_kj| / |H_kk| [C].

    >>> [d.tolist() for d in dominance(torch.tensor([[4.0, -1.0, 1.0], [0.0, 2.0, 2.0], [1.0, 1.0, 4.0]]))]
    [[2.0, 1.0, 2.0], [0.25, 1.0, 0.25]]
    """
    size = matrix.abs()
    diagonal = size.diagonal().clone()
    size.fill_diagonal_(0.0)
    return diagonal / size.sum(1), size.amax(1) / diagonal


def _probabilities(pairs: Pairs, weight: Tensor, bias: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Features [R, D] and probabilities [R, C] in float64, a chunk at a time."""
    rows = max(64, _CHUNK_NUMBERS // len(weight))
    with torch.no_grad():
        for features, _ in pairs:
            for h in torch.split(features, rows):
                yield h, F.linear(h, weight, bias).double().softmax(1)
