"""Bigrams of Zipf-distributed tokens: the input is the previous token, one-hot, the class the next (arXiv 2505.19227).

N samples, d tokens, which are both the inputs and the classes, numbered from the most frequent to the rarest.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from heavytail.data import REGISTRY, Data, Split
from heavytail.errors import DataError, SpecError

_ITERATIONS, _TOLERANCE = 2_000, 1e-9


@REGISTRY.register("bigram")
@dataclass(frozen=True)
class Bigram:
    """Pairs of tokens with power-law frequencies; the next token given the previous one follows a permuted power law.

    The joint frequencies are diag(u) Q diag(v), with every row of Q a random reordering of 1/j^a, and u and v such that
    the first and the second token both have frequency 1/k^a. Unlike `memory` the classes cannot be predicted with
    certainty: the best possible loss is the conditional entropy.

    The counts of the classes are max(1, round(samples pi_k)) for every seed; the seed draws Q and the inputs of
    each class.

    Attributes:
        tokens: d.
        exponent: a; 1 is Zipf's law.
        samples: approximate N. The inputs take 4 N d bytes.
    """

    tokens: int = 200
    exponent: float = 1.0
    samples: int = 10_000

    title: ClassVar[str] = "synthetic bigrams"

    def __post_init__(self) -> None:
        if self.tokens < 2:
            raise SpecError(f"data.tokens: expected at least 2, got {self.tokens}")
        if not 0 <= self.exponent <= 2:
            raise SpecError(f"data.exponent: expected a number in [0, 2], got {self.exponent}")
        if self.samples < self.tokens:
            raise SpecError(f"data.samples: expected at least data.tokens = {self.tokens}, got {self.samples}")

    def load(self, *, seed: int, data_dir: Path) -> Data:
        """Return the data; only the inputs depend on the seed. There is no test split."""
        rng = np.random.default_rng(seed)
        pi: NDArray[np.float64] = np.arange(1, self.tokens + 1, dtype=np.float64) ** -self.exponent
        pi /= pi.sum()
        joint = coupling(pi, rng)
        counts = np.maximum(np.rint(self.samples * pi), 1).astype(np.int64)
        before = [
            rng.choice(self.tokens, n, p=column / column.sum()) for n, column in zip(counts, joint.T, strict=True)
        ]
        tokens = torch.from_numpy(np.concatenate(before))
        inputs = torch.zeros(len(tokens), self.tokens)
        inputs[torch.arange(len(tokens)), tokens] = 1.0
        targets = torch.repeat_interleave(torch.arange(self.tokens), torch.from_numpy(counts))
        info = {"source": "synthetic bigrams", "exponent": self.exponent}
        return Data(Split(inputs, targets), None, self.tokens, info=info)


def coupling(pi: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return joint frequencies [d, d] with marginals pi, whose rows are scaled random permutations of pi.

    Sinkhorn's iteration: scale columns and rows in turn until both marginals are pi.

    Raises:
        DataError: it does not converge.
    """
    joint: NDArray[np.float64] = pi[:, None] * rng.permuted(np.tile(pi, (len(pi), 1)), axis=1)
    for _ in range(_ITERATIONS):
        joint *= pi / joint.sum(axis=0)
        rows = pi / joint.sum(axis=1)
        joint *= rows[:, None]
        if np.abs(rows - 1).max() < _TOLERANCE:
            return joint
    raise DataError(f"data: the marginals of {len(pi)} tokens did not converge in {_ITERATIONS} iterations")
