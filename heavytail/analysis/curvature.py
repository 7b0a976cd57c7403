"""Curvature of the head from one pass over its inputs (section 3, appendix H.1).

blocks     gradient norm and Hessian trace of every class's row (figures 7 and 23 to 27)
entries    the Hessian beyond its traces: chosen entries (figures 8, 28) and the matrix of block traces
features   class means and second moments of the inputs, the terms of proposition 2

Blocks. With features h_i, probabilities p_i and targets y_i of n samples, row k of the head has

    grad_k = (1/n) sum_i (p_ik - 1[y_i = k]) h_i,        Tr H_kk = (1/n) sum_i p_ik (1 - p_ik) ||h_i||^2,

With its bias, whose input is 1, the gradient has one more entry, and ||h_i||^2 + 1 replaces ||h_i||^2. The kernel that
trains the head computes both chunk by chunk, so memory is one gradient [C, D] and sums over classes, for any n.

Entries. Between input a of row k and input b of row j the Hessian of the mean loss is

    H_(k,a),(j,b) = (1/n) sum_i p_ik (1[j = k] - p_ij) h_ia h_ib.

Because the probabilities of a sample sum to 1, sum_j H_kj = 0, and every block off the diagonal has a trace <= 0:
Tr H_kk *equals* sum_{j != k} |Tr H_kj|. The matrix of block traces is weakly diagonally dominant for any weights and
data, and never strictly. The ratio of a diagonal block to any single other block does depend on the problem.

Shapes: C classes, D features, M rows of one pair, R rows of a chunk, K chosen classes, J chosen inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from heavytail.errors import DataError, SpecError
from heavytail.head import linear_cross_entropy

Pairs = Iterable[tuple[Tensor, Tensor]]
"""Head inputs [M, D] and targets [M], piece by piece."""


@dataclass(frozen=True)
class HeadBlocks:
    """Gradient norm, Hessian trace and probabilities of each class; all [C] float64, on the device of the head.

    Attributes:
        count: samples of the class.
        grad_norm: norm of the gradient of the mean loss in the class's row.
        trace: trace of the Hessian of the mean loss in that row.
        p_correct: mean probability of the class over its own samples, NaN without any.
        p_spread: standard deviation of that probability.
        p_mean: mean probability of the class over all samples.
    """

    count: Tensor
    grad_norm: Tensor
    trace: Tensor
    p_correct: Tensor
    p_spread: Tensor
    p_mean: Tensor


def head_blocks(pairs: Pairs, weight: Tensor, bias: Tensor | None = None, *, include_bias: bool = False) -> HeadBlocks:
    """Measure gradient norm, Hessian trace and probabilities of every class.

    Args:
        pairs: (features [M, D], targets [M] int64), each batch once; the pass runs in the dtype of the features.
        weight: W [C, D], not changed.
        bias: b [C], or None.
        include_bias: whether a class's block is (W_k, b_k) rather than W_k.

    Raises:
        DataError: there are no pairs.

    >>> inputs, targets = torch.eye(2), torch.tensor([0, 1])
    >>> blocks = head_blocks([(inputs, targets)], torch.zeros(2, 2))
    >>> blocks.trace.tolist()  # eq. 1: (1/c) (1 - 1/c) times the mean of ||x||^2
    [0.25, 0.25]
    """
    num_classes = len(weight)
    # b has a gradient even if the head has no bias: plus pi_k it is the mean probability of class k.
    shift = weight.new_zeros(num_classes) if bias is None else bias.detach().clone()
    W, b = weight.detach().requires_grad_(), shift.requires_grad_()
    sums = torch.zeros(4, num_classes, dtype=torch.float64, device=weight.device)
    count, p_sum, p_square, trace = sums
    for features, targets in pairs:
        with torch.enable_grad():
            out = linear_cross_entropy(features.detach(), W, b, targets, normalizer=1.0, curvature=True)
            out.loss.backward()  # type: ignore[no-untyped-call]
        p = out.p_correct.double()
        count.index_add_(0, targets, torch.ones_like(p))
        p_sum.index_add_(0, targets, p)
        p_square.index_add_(0, targets, p.square())
        assert out.curvature is not None
        assert out.curvature.bias is not None
        trace += out.curvature.weight
        if include_bias:
            trace += out.curvature.bias
    if W.grad is None or b.grad is None:
        raise DataError("pairs: expected features and targets, got none")
    n = count.sum()
    shift_grad = b.grad.double()
    grad_norm = torch.linalg.vector_norm(W.grad, dim=1).double()
    if include_bias:
        grad_norm = torch.hypot(grad_norm, shift_grad)
    p_correct = p_sum / count
    variance = (p_square / count - p_correct.square()).clamp(min=0.0)
    return HeadBlocks(
        count=count,
        grad_norm=grad_norm / n,
        trace=trace.clamp(min=0.0) / n,
        p_correct=p_correct,
        p_spread=variance.sqrt(),
        p_mean=((shift_grad + count) / n).clamp(min=0.0),
    )


Sampling: TypeAlias = Literal["log-uniform", "uniform"]

_CHUNK_NUMBERS = 2**22  # probabilities held at once, in float64: 32 MiB


def sample_classes(counts: ArrayLike, num: int, sampling: Sampling = "log-uniform") -> NDArray[np.int64]:
    """Return classes evenly spaced in frequency rank, or in its logarithm, from the most frequent to the rarest.

    Args:
        counts: samples of each class [C].
        num: K; all classes if there are fewer.
        sampling: "log-uniform" takes as many of the ten most frequent classes as of the next ninety, "uniform" almost
            none of them.

    Returns:
        K distinct classes, most frequent first [K].

    >>> sample_classes([1, 9, 5, 3, 2, 7], 3, "uniform").tolist()
    [1, 2, 0]
    """
    counts = np.asarray(counts)
    if num < 1:
        raise SpecError(f"num: expected at least 1 class, got {num}")
    num, C = min(num, len(counts)), len(counts)
    places = np.geomspace(1, C, num) - 1 if sampling == "log-uniform" else np.linspace(0, C - 1, num)
    ranks = np.rint(places).astype(np.int64)
    for i in range(1, num):  # of ranks that round to the same number, move the second to the next free one
        ranks[i] = max(ranks[i], ranks[i - 1] + 1)
    for i in range(num - 1, -1, -1):
        ranks[i] = min(ranks[i], C - num + i)
    return np.argsort(-counts, kind="stable")[ranks]


def hessian_entries(pairs: Pairs, weight: Tensor, bias: Tensor | None, classes: ArrayLike, inputs: ArrayLike) -> Tensor:
    """Return the Hessian of the mean loss between chosen inputs of chosen rows, off-diagonal blocks included.

    Args:
        pairs: (features [M, D], targets [M]); the targets are not used.
        weight: W [C, D].
        bias: b [C], or None.
        classes: [K].
        inputs: indices of features [J].

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
        pairs: (features [M, D], targets [M]); the targets are not used.
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
    """Return the ratio of each diagonal entry of a square matrix to the others of its row.

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


def median_other(matrix: NDArray[Any]) -> NDArray[np.float64]:
    """Return the median over j != k of |H_kj| / |H_kk| for each row of a square matrix [C, C] -> [C].

    >>> median_other(np.array([[4.0, -1.0, 3.0], [1.0, 2.0, 1.0], [2.0, 6.0, 4.0]])).tolist()
    [0.5, 0.5, 1.0]
    """
    size = np.abs(matrix)
    C = len(size)
    others = size[~np.eye(C, dtype=bool)].reshape(C, C - 1)
    median: NDArray[np.float64] = np.median(others, axis=1) / size.diagonal()
    return median


def _probabilities(pairs: Pairs, weight: Tensor, bias: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Features [R, D] and probabilities [R, C] in float64, a chunk at a time."""
    rows = max(64, _CHUNK_NUMBERS // len(weight))
    with torch.no_grad():
        for features, _ in pairs:
            for h in torch.split(features, rows):
                yield h, F.linear(h, weight, bias).double().softmax(1)


@dataclass(frozen=True)
class ClassFeatures:
    """Moments of the head's inputs, in float64.

    Attributes:
        count: samples of each class [C].
        mean: mean input xbar^k of each class [C, D], NaN for classes without samples.
        sq_norm: mean of ||x||^2 over each class [C], NaN for classes without samples.
        radius: largest ||x||.
    """

    count: Tensor
    mean: Tensor
    sq_norm: Tensor
    radius: float

    @property
    def mean_sq_norm(self) -> float:
        """Mean of ||x||^2 over all samples: the trace of their second moment Hbar."""
        seen = self.count > 0
        return float((self.count * self.sq_norm)[seen].sum() / self.count.sum())


def class_features(pairs: Pairs, num_classes: int) -> ClassFeatures:
    """Measure the moments of (features [M, D], targets [M]) in one pass; DataError if there are no pairs.

    >>> moments = class_features([(torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0, 1]))], 2)
    >>> moments.mean.tolist(), moments.sq_norm.tolist(), moments.radius
    ([[2.0, 0.0], [0.0, 2.0]], [5.0, 4.0], 3.0)
    """
    total: Tensor | None = None
    radius = 0.0
    for features, targets in pairs:
        x = features.detach().double()
        if total is None:
            total = x.new_zeros(num_classes, x.shape[1])
            count, square = x.new_zeros(num_classes), x.new_zeros(num_classes)
        norms = x.square().sum(1)
        total.index_add_(0, targets, x)
        square.index_add_(0, targets, norms)
        count.index_add_(0, targets, torch.ones_like(norms))
        radius = max(radius, float(norms.max().sqrt()))
    if total is None:
        raise DataError("pairs: expected features and targets, got none")
    return ClassFeatures(count, total / count[:, None], square / count, radius)
