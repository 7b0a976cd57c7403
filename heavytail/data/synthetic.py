"""Synthetic data: random inputs with heavy-tailed labels, and the simple imbalanced setting of the theory.

N samples, C classes, D inputs. Classes are numbered from the most frequent to the rarest and samples are stored in the
order of their class. The inputs of `random-heavy-tail` do not depend on the labels, so that all differences between
classes are due to their frequencies.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from heavytail.data import REGISTRY, Data, Split
from heavytail.errors import SpecError

Inputs = Literal["uniform", "aligned", "orthogonal"]


@REGISTRY.register("random-heavy-tail")
@dataclass(frozen=True)
class RandomHeavyTail:
    """Noise inputs and labels whose frequencies are powers of two (section 2.2, appendix A.1).

    Group g of the m groups has 2^g classes of 2^(m-g) samples, so every group has 2^m samples: N = m 2^m,
    D = (m + 1) 2^m and C = 2^m - 1 (the paper prints 2^(m+1) - 1, which is not the sum of these groups).

    Attributes:
        groups: m; the paper uses 11 and, in appendix C, 7. The inputs take 4 m (m + 1) 4^m bytes: 2.2 GB at 11.
        inputs: U[0, 1] ("uniform"), N(1, 1) ("aligned") or N(0, 1) ("orthogonal": nearly so, as D > N).
        balanced: a control with the same inputs and number of classes, and m or m + 1 samples in each.
    """

    groups: int = 11
    inputs: Inputs = "uniform"
    balanced: bool = False

    small: ClassVar[dict[str, Any]] = {"groups": 4}

    def __post_init__(self) -> None:
        if not 2 <= self.groups <= 14:
            raise SpecError(f"data.groups: expected 2 to 14 (14 takes 225 GB), got {self.groups}")

    @property
    def title(self) -> str:
        """Name of the data set in figures."""
        return "random balanced labels" if self.balanced else "random heavy-tailed labels"

    def load(self, *, seed: int, data_dir: Path) -> Data:
        """Return the data; only the inputs depend on the seed. There is no test split."""
        m = self.groups
        num_classes = 2**m - 1
        group = torch.repeat_interleave(torch.arange(m), 2 ** torch.arange(m))  # [C]
        counts = 2 ** (m - group)
        if self.balanced:
            counts = _share_out(m * 2**m, num_classes)
        targets = torch.repeat_interleave(torch.arange(num_classes), counts)
        inputs = _draw(self.inputs, len(targets), (m + 1) * 2**m, seed)
        info = {"source": "random inputs", "groups": m, "inputs": self.inputs, "balanced": self.balanced}
        return Data(Split(inputs, targets), None, num_classes, None if self.balanced else group, info)


@REGISTRY.register("simple-imbalanced")
@dataclass(frozen=True)
class SimpleImbalanced:
    """Every sample of class k is the basis vector e_k: the setting of theorem 3, as a data set.

    Class k has max(1, round(samples pi_k)) samples with pi_k ~ 1 / k^exponent, so N is near `samples`, or above it when
    many classes are rarer than one sample. `Data.counts` / N are the exact frequencies.

    Attributes:
        num_classes: C, also the number of inputs.
        exponent: of the power law; 0 gives balanced classes.
        samples: approximate N. The inputs take 4 N C bytes.
    """

    num_classes: int = 100
    exponent: float = 1.0
    samples: int = 10_000

    title: ClassVar[str] = "simple imbalanced setting"
    small: ClassVar[dict[str, Any]] = {"num_classes": 20, "samples": 100}

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise SpecError(f"data.num_classes: expected at least 2, got {self.num_classes}")
        if not 0 <= self.exponent < 100:
            raise SpecError(f"data.exponent: expected 0 or more, below 100, got {self.exponent}")
        if self.samples < self.num_classes:
            raise SpecError(
                f"data.samples: expected at least data.num_classes = {self.num_classes}, got {self.samples}"
            )

    def load(self, *, seed: int, data_dir: Path) -> Data:
        """Return the data; deterministic. There is no test split."""
        rank = torch.arange(1, self.num_classes + 1, dtype=torch.float64)
        pi = rank**-self.exponent
        counts = (self.samples * pi / pi.sum()).round().clamp(min=1).long()
        targets = torch.repeat_interleave(torch.arange(self.num_classes), counts)
        inputs = torch.zeros(len(targets), self.num_classes)
        inputs[torch.arange(len(targets)), targets] = 1.0
        info = {"source": "basis vectors", "exponent": self.exponent}
        return Data(Split(inputs, targets), None, self.num_classes, info=info)


def _share_out(total: int, parts: int) -> Tensor:
    """Return counts [parts] that differ by at most one and sum to the total, the larger first."""
    counts = torch.full((parts,), total // parts)
    counts[: total % parts] += 1
    return counts


def _draw(kind: Inputs, n: int, d: int, seed: int) -> Tensor:
    """Return random inputs [n, d], filled in place: at full size two copies do not fit in memory."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.empty(n, d)
    if kind == "uniform":
        return inputs.uniform_(generator=generator)
    return inputs.normal_(mean=1.0 if kind == "aligned" else 0.0, generator=generator)
