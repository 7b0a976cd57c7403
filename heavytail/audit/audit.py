"""Measure class imbalance in a corpus and predict its effect on gradient descent, before training.

Classes (tokens, or labels) are counted. The audit reports Zipf's exponent and its goodness of fit, the entropy, the
share of the data in rare classes, the frequency groups of the paper's loss plots, and the training time of each group
by Theorem 3: in the simple imbalanced setting the loss of class k after time t of gradient flow is Theta(1/(pi_k t)),
so that rarer groups take longer. Sign descent takes equally long on all groups.

Shapes: C classes that occur, G groups.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heavytail.analysis import zipf
from heavytail.audit.counting import count
from heavytail.errors import DataError, SpecError
from heavytail.files import expanded
from heavytail.metrics import FrequencyGroups

__all__ = ["Audit", "audit", "audit_counts", "group_times"]

Array = NDArray[np.float64]
TARGET_LOSS = 0.1  # nats, the loss whose time Theorem 3 gives
MANY, FEW = 100, 20  # samples per class; limits of the literature on long-tailed recognition
MOST_GROUPS = 1_000
EXAMPLES = 5  # classes printed for each group


@dataclass(frozen=True, eq=False)
class Audit:
    """Class counts and the statistics derived from them.

    Attributes:
        source: description of the corpus and its classes.
        names: the classes that occur, most frequent first [C]; ties by name.
        counts: samples of each class [C].
        zipf: fit of Zipf's law, over the ranks with enough samples.
        slope: of log frequency on log rank over ranks 10 to 1 000, as in figure 9; NaN for fewer than 12 classes.
        entropy: of the class frequencies (bits): the loss of a unigram model, in bits per token.
        rare_share: share of the data in classes rarer than 1/C.
        assigned_share: share of the data in the first C / log(C)^2 classes, to which Proposition 2's argument applies.
        groups: frequency groups of the classes.
        slowdown: gradient descent's time on each group relative to the first [G], by Theorem 3.
        left_out: number of labels below 0, which are ignored.
        missing: number of empty cells.
        notes: caveats about the counts.
    """

    source: str
    names: tuple[str, ...]
    counts: NDArray[np.int64]
    zipf: zipf.Law
    slope: float
    entropy: float
    rare_share: float
    assigned_share: float
    groups: FrequencyGroups
    slowdown: Array
    left_out: int = 0
    missing: int = 0
    notes: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.counts)

    def rows(self) -> list[dict[str, Any]]:
        """Return a table of the frequency groups, most frequent first."""
        rows = []
        for g, (share, slowdown) in enumerate(zip(self.groups.share, self.slowdown, strict=True)):
            members = np.flatnonzero(self.groups.index == g)
            rows.append({"group": g + 1, **self._row(members), "share": float(share), "slowdown": _plain(slowdown)})
        return rows

    def shots(self) -> list[dict[str, Any]]:
        """Return a table of the classes with many (> 100), a medium number of (20 to 100) and few (< 20) samples."""
        limits = {"many": self.counts > MANY, "few": self.counts < FEW}
        limits["medium"] = ~(limits["many"] | limits["few"])
        return [{"group": name, **self._row(np.flatnonzero(limits[name]))} for name in ("many", "medium", "few")]

    def _row(self, members: NDArray[np.int64]) -> dict[str, Any]:
        counts = self.counts[members]
        return {
            "classes": len(counts),
            "share": float(counts.sum() / self.counts.sum()),
            "most": int(counts.max(initial=0)),
            "least": int(counts.min()) if len(counts) else 0,
            "examples": [self.names[k] for k in members[:EXAMPLES]],
        }

    def to_dict(self) -> dict[str, Any]:
        """Return everything except the counts of each class as JSON values; null if undefined."""
        law = self.zipf
        return {
            "source": self.source,
            "samples": int(self.counts.sum()),
            "classes": self.num_classes,
            "left_out": self.left_out,
            "missing": self.missing,
            "notes": list(self.notes),
            "zipf_exponent": _plain(law.exponent),
            "zipf_interval": [_plain(law.low), _plain(law.high)],
            "zipf_fits": law.fits,
            "zipf_ranks": [law.first, law.last],
            "zipf_share": _plain(law.share),
            "zipf_misfit": dict(zip(("zipf", "zipf-mandelbrot", "log-normal"), map(_plain, law.misfit), strict=True)),
            "zipf_mandelbrot": dict(zip(("s", "q"), map(_plain, law.mandelbrot), strict=True)),
            "least_squares_slope": _plain(self.slope),
            "entropy_bits": self.entropy,
            "rare_share": self.rare_share,
            "assigned_share": _plain(self.assigned_share),
            "target_loss": TARGET_LOSS,
            "most_frequent": [[name, int(n)] for name, n in zip(self.names[:10], self.counts, strict=False)],
            "groups": self.rows(),
            "shots": self.shots(),
        }

    def __str__(self) -> str:
        """Return a summary of about thirty lines."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        n, C = int(self.counts.sum()), self.num_classes
        extra = f"; {_number(self.left_out, 'label')} below 0 left out" if self.left_out else ""
        extra += f"; {_number(self.missing, 'empty cell')}" if self.missing else ""
        yield _printable(self.source)
        yield f"  {_number(n, 'sample')} of {_number(C, 'class', 'classes')}{extra}"
        yield from (f"  note           {_printable(note)}" for note in self.notes)
        yield from self._zipf_lines()
        yield f"  unigram loss   {self.entropy:.4f} bits per sample (entropy); balanced classes: {math.log2(C):.2f}"
        yield f"  rare classes   hold {self.rare_share:.1%} of the samples (classes rarer than 1/C)"
        if math.isfinite(self.assigned_share):
            yield f"  Proposition 2  applies to {self.assigned_share:.1%} of the samples (the first C/log(C)^2 classes)"
        yield ""
        yield "group   classes   share  samples of a class  gradient descent takes (Theorem 3)  for example"
        for row in self.rows():
            takes = "-" if row["slowdown"] is None else f"{row['slowdown']:.1f} x"
            yield f"{row['group']:>5} {_columns(row)} {takes:>34}  {_examples(row)}"
        yield ""
        yield "samples of a class"
        for row, limits in zip(self.shots(), (f"> {MANY}", f"{FEW} to {MANY}", f"< {FEW}"), strict=True):
            yield f"{limits:>9} {row['classes']:>9} classes {row['share']:>7.1%}  {_examples(row)}".rstrip()

    def _zipf_lines(self) -> Iterator[str]:
        law = self.zipf
        if not law.last:
            yield f"  Zipf exponent  not estimated: fewer than {zipf.FEWEST} classes have {law.least:.0f} samples"
        else:
            ranks = f"ranks {law.first} to {law.last}, {law.share:.0%} of the samples"
            if law.fits:
                yield f"  Zipf exponent  {law.exponent:.3f} (95 % interval {law.low:.3f} to {law.high:.3f}; {ranks})"
            else:
                yield f"  Zipf exponent  {law.exponent:.3f} ({ranks}); no power law fits, so it has no interval"
            laws = zip(("Zipf", "Zipf-Mandelbrot", "log-normal"), law.misfit, strict=True)
            misfit = ", ".join(f"{name} {value:.1f}" for name, value in laws)
            yield f"  misfit         {misfit} (chi-square per rank; 1 is noise alone)"
        if math.isfinite(self.slope):
            last = min(zipf.HIGH, self.num_classes)
            yield f"  log-log slope  {self.slope:.3f} (least squares, ranks {zipf.LOW} to {last})"


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _number(n: int, one: str, many: str = "") -> str:
    return f"{n} {one if n == 1 else many or one + 's'}"


def _columns(row: Mapping[str, Any]) -> str:
    span = f"{row['most']} to {row['least']}" if row["most"] > row["least"] else f"{row['most']}"
    return f"{row['classes']:>9} {row['share']:>7.1%}  {span:>18}"


def _examples(row: Mapping[str, Any]) -> str:
    return " ".join(repr(name if len(name) <= 20 else name[:19] + "…") for name in row["examples"])


def _printable(text: str) -> str:
    """A text with control characters and undecodable bytes of file names escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def audit(
    path: str | Path,
    *,
    tokenizer: str = "words",
    vocab: int | None = None,
    column: str | None = None,
    labels: bool = False,
    dtype: str | None = None,
    num_groups: int = 10,
    jobs: int = 1,
) -> Audit:
    """Count the classes in a file, or in all files of a folder, and return the statistics of the counts.

    Args:
        path: text of any suffix, .jsonl, .json, .csv or .tsv, each also compressed (gz, bz2, xz, zst); .parquet;
            .arrow; .npy or .npz arrays.
        tokenizer: "words" (`basic_english`), "bpe" or "unigram" (learned from the text itself), or a tokenizer's JSON
            file. A column of integers, and an array, are labels already.
        vocab: number of types, "<unk>" included; 4 000 by default for learned tokenizers.
        column: name of the column, or the path to a field in its cells ("messages.content"); by default "text".
        labels: each cell of the column is one class, text included.
        dtype: type of raw token ids without a header ("uint16").
        num_groups: number of frequency groups.
        jobs: processes that count the words of large texts; a script that asks for several needs the usual
            `if __name__ == "__main__"`.

    Raises:
        DataError: a file cannot be read in the format of its name and first bytes, or has no samples.
        SpecError: a setting is unknown or out of range.
    """
    _check_groups(num_groups)
    place = expanded(path)
    found = count(place, tokenizer=tokenizer, vocab=vocab, column=column, labels=labels, dtype=dtype, jobs=jobs)
    if not found.by_name:
        empty = f", only {found.missing} empty cells" if found.missing else ""
        raise DataError(f"{path}: expected at least one class, got none{empty}")
    return audit_counts(
        found.by_name,
        source=f"{path}: {found.what}",
        num_groups=num_groups,
        left_out=found.left_out,
        missing=found.missing,
        notes=found.notes,
    )


def audit_counts(
    counts: Mapping[str, int],
    *,
    source: str = "",
    num_groups: int = 10,
    left_out: int = 0,
    missing: int = 0,
    notes: tuple[str, ...] = (),
) -> Audit:
    """Return the audit of counts by class name; SpecError if there are none.

    >>> found = audit_counts({str(k): 504000 // k for k in range(1, 11)}, num_groups=2)
    >>> round(found.zipf.exponent, 3), found.slowdown.round(1).tolist()
    (1.0, [1.0, 4.2])
    """
    _check_groups(num_groups)
    ranked = sorted(((name, n) for name, n in counts.items() if n), key=lambda item: (-item[1], item[0]))
    n_k = np.array([n for _, n in ranked], np.int64)
    groups = FrequencyGroups.from_counts(n_k, num_groups)
    pi, C = n_k / n_k.sum(), len(n_k)
    times = group_times(pi, groups.index)
    return Audit(
        source=source,
        names=tuple(name for name, _ in ranked),
        counts=n_k,
        zipf=zipf.estimate(n_k),
        slope=zipf.fit(n_k, zipf.LOW, min(zipf.HIGH, C)).slope if C > zipf.LOW + 1 else math.nan,
        entropy=max(0.0, float(-(pi * np.log2(pi)).sum())),
        rare_share=float(pi[n_k * C < n_k.sum()].sum()),
        assigned_share=float(pi[: int(C / math.log(C) ** 2)].sum()) if C > 2 else math.nan,
        groups=groups,
        slowdown=times / times[0],
        left_out=left_out,
        missing=missing,
        notes=notes,
    )


def _check_groups(num_groups: int) -> None:
    if not 1 <= num_groups <= MOST_GROUPS:
        raise SpecError(f"--groups: expected 1 to {MOST_GROUPS}, got {num_groups}")


def group_times(pi: ArrayLike, index: ArrayLike, loss: float = TARGET_LOSS) -> Array:
    """Return the time of gradient flow from zero until each group reaches a mean loss [G] (Theorem 3).

    Args:
        pi: frequencies of the classes [C], summing to 1.
        index: group of each class [C].
        loss: the mean loss to reach (nats), below log C.
    """
    from heavytail.analysis.theory import gradient_flow_loss, gradient_flow_time

    pi, index = np.asarray(pi, np.float64), np.asarray(index)
    C = len(pi)
    if C < 2 or loss >= math.log(C):
        return np.full(index.max() + 1, np.nan)
    times = []
    for g in range(index.max() + 1):
        values, number = np.unique(pi[index == g], return_counts=True)
        weight = values * number / (values @ number)
        ends = gradient_flow_time(loss, values[[-1, 0]], C)  # the group's mean crosses between its extreme classes
        low, high = np.log(ends[0]), np.log(ends[1])
        for _ in range(60):
            middle = (low + high) / 2
            above = weight @ gradient_flow_loss(np.exp(middle), values, C) > loss
            low, high = (middle, high) if above else (low, middle)
        times.append(math.exp(high))
    return np.array(times)
