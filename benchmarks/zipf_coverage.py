"""Coverage of the intervals for Zipf's exponent, the table of docs/zipf.md: `python -m benchmarks.zipf_coverage [N]`.

Exact Zipf samples are drawn, N of C classes with exponent s. Four estimators get only the counts:

    all ranks   every class that occurs (what the audit did before)
    >= 100      ranks of classes with at least 100 samples
    halves      ranks from one half of the samples (a binomial split), of classes with at least 100 there; fit to the
                other half
    estimate    `zipf.estimate`: ranks of classes with at least max(30, sqrt(N)/4) samples

A row has the bias of the exponent, the share of the 95 % intervals that hold it, and for `estimate` the ranks fitted,
half the interval and how often it is withheld because the law is rejected.
"""

from __future__ import annotations

import sys
from itertools import product

import numpy as np
from numpy.typing import NDArray

from heavytail.analysis import zipf

EXPONENTS = (0.8, 1.0, 1.1, 1.3)
CLASSES = (10**3, 10**4, 10**5, 10**6)
SAMPLES = (10**4, 10**5, 10**6, 10**7)
REPETITIONS = 100
NAMES = ("all ranks", ">= 100", "halves", "estimate")


def main(repetitions: int) -> None:
    """Print one row of the table as soon as it is measured."""
    print(f"{repetitions} repetitions; bias (coverage)\n")
    print(f"| s | C | N | {' | '.join(NAMES)} | ranks | half width | withheld |")
    print("|--:" * (len(NAMES) + 6) + "|")
    generator = np.random.default_rng(0)
    for s, classes, samples in product(EXPONENTS, CLASSES, SAMPLES):
        print(row(s, classes, samples, repetitions, generator), flush=True)


def row(s: float, classes: int, samples: int, repetitions: int, generator: np.random.Generator) -> str:
    """Return the bias and the coverage of every estimator as a row of the table."""
    pi = np.arange(1, classes + 1) ** -s
    pi /= pi.sum()
    errors: dict[str, list[tuple[float, bool]]] = {name: [] for name in NAMES}
    laws = []
    for _ in range(repetitions):
        n_k = generator.multinomial(samples, pi)
        ranked = -np.sort(-n_k[n_k > 0])
        half = generator.binomial(n_k, 0.5)
        order = np.argsort(-half, kind="stable")[: int((half >= 100).sum())]
        given = {NAMES[0]: ranked, NAMES[1]: ranked[ranked >= 100], NAMES[2]: (n_k - half)[order]}
        for name, counts in given.items():
            if len(counts) >= zipf.FEWEST:
                law = zipf.fit(counts, 1, len(counts))
                errors[name].append((law.exponent - s, law.low <= s <= law.high))
        laws.append(estimated := zipf.estimate(ranked))
        if estimated.fits:
            errors[NAMES[3]].append((estimated.exponent - s, estimated.low <= s <= estimated.high))
    fitted = [law for law in laws if law.last]
    cells = [_cell(np.array(errors[name])) for name in NAMES]
    ranks = np.mean([law.last for law in fitted]) if fitted else 0
    width = np.mean([law.high - law.exponent for law in fitted if law.fits]) if fitted else np.nan
    withheld = 1 - sum(law.fits for law in fitted) / len(fitted) if fitted else 0
    shape = f"1e{round(np.log10(classes))} | 1e{round(np.log10(samples))}"
    return f"| {s} | {shape} | {' | '.join(cells)} | {ranks:.0f} | {width:.4f} | {withheld:.0%} |"


def _cell(found: NDArray[np.float64]) -> str:
    return "-" if not len(found) else f"{found[:, 0].mean():+.4f} ({found[:, 1].mean():.0%})"


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else REPETITIONS)
