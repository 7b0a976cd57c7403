"""Linear associative memory: one orthonormal input for each class (arXiv 2509.26030).

N samples, K items, which are both the inputs and the classes, numbered from the most frequent to the rarest.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from heavytail.data import REGISTRY, Data, Split
from heavytail.errors import SpecError


@REGISTRY.register("memory")
@dataclass(frozen=True)
class Memory:
    """K associations between orthonormal inputs and classes, in frequency groups as in `random-heavy-tail`.

    Group g of the m groups has 2^g items of 2^(m-g) samples: N = m 2^m and K = D = 2^m - 1. Every sample of item k has
    the same input. A linear model can learn all items without interference, so that the losses of groups differ only
    because of their frequencies. GD and Muon do not depend on the basis of the inputs; sign descent and Adam do.

    Attributes:
        groups: m. The inputs take 4 m 4^m bytes: 2 MB at 8.
        rotated: whether the inputs are a random rotation of the basis vectors, drawn from the seed.
    """

    groups: int = 8
    rotated: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.groups <= 13:
            raise SpecError(f"data.groups: expected 2 to 13 (13 takes 3.5 GB), got {self.groups}")

    @property
    def title(self) -> str:
        """Name of the data set in figures."""
        return "associative memory, rotated" if self.rotated else "associative memory"

    def load(self, *, seed: int, data_dir: Path) -> Data:
        """Return the data; only the rotation depends on the seed. There is no test split."""
        m = self.groups
        num_items = 2**m - 1
        group = torch.repeat_interleave(torch.arange(m), 2 ** torch.arange(m))  # [K]
        targets = torch.repeat_interleave(torch.arange(num_items), 2 ** (m - group))
        embeddings = torch.eye(num_items, dtype=torch.float64)
        if self.rotated:
            generator = torch.Generator().manual_seed(seed)
            normal = torch.randn(num_items, num_items, generator=generator, dtype=torch.float64)
            q, r = torch.linalg.qr(normal)
            embeddings = q * r.diagonal().sign()  # uniformly distributed
        info = {"source": "orthonormal inputs", "groups": m, "rotated": self.rotated}
        return Data(Split(embeddings.float()[targets], targets), None, num_items, group, info)
