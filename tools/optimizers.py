"""What is published of `heavytail compare`: its rows and picture, and the page made from them.

TO/optimizers/SCALE.json    the rows of compare.json
TO/optimizers/SCALE.png     the picture, small
TO/optimizers/README.md     a table for each scale (see tools.scoreboard)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from heavytail.compare.comparison import ADAM, BASELINES, BETTER, NOT_JUDGED, SAME, UNSTABLE, WORSE, tests
from heavytail.errors import StoreError, unknown
from heavytail.files import Row, read_json, strict_json, write_atomic
from tools.publish import SCALES, public, small_picture

SIGNS = {BETTER: "▲", WORSE: "▼", SAME: "=", UNSTABLE: "unstable", NOT_JUDGED: "—"}


def is_comparison(folder: Path) -> bool:
    """Whether a folder has the results of a comparison."""
    return (folder / "compare.json").is_file()


def publish(folder: Path, to: Path) -> list[Path]:
    """Write the published rows and picture of a comparison; return the files.

    Raises:
        StoreError: the folder has no rows, or rows of several scales.
    """
    rows: list[Row] = read_json(folder / "compare.json", [])
    scales = sorted({str(row.get("scale")) for row in rows})
    if len(scales) != 1:
        raise StoreError(f"{folder}/compare.json: expected rows of one scale, got {', '.join(scales) or 'none'}")
    if scales[0] not in SCALES:
        raise unknown(f"scale of {folder}:", scales[0], SCALES)
    files = {f"{scales[0]}.json": strict_json(public(rows))}
    if (folder / "compare.png").is_file():
        files[f"{scales[0]}.png"] = small_picture(folder / "compare.png")
    for name, content in files.items():
        (to / "optimizers").mkdir(parents=True, exist_ok=True)
        write_atomic(to / "optimizers" / name, content)
    return [to / "optimizers" / name for name in files]


def read(published: Path) -> dict[str, list[Row]]:
    """Return the published rows by scale; nothing for a scale without any."""
    rows = {scale: read_json(published / "optimizers" / f"{scale}.json", []) for scale in SCALES}
    return {scale: made for scale, made in rows.items() if made}


def page(published: Path) -> list[str]:
    """Return the lines of the page: for each scale the number of tests, a table, the machine and the picture."""
    lines = [
        "# Optimizers",
        "",
        "Does an optimizer help the tail? By the rule of [compare.md](../../compare.md), fixed before this comparison.",
        "A cell has the share of the gap between GD and Adam in the final loss of the rarest group that the optimizer",
        f"closes, 0 for GD and 100 % for Adam, and the verdict on that group: {SIGNS[BETTER]} better than Adam,",
        f"{SIGNS[WORSE]} worse, {SIGNS[SAME]} no difference found. Where Adam is not ahead of GD, there is no share.",
        "Time and state are relative to Adam's: geometric means over the problems.",
        "",
        "A small difference can be a sure one: the verdict is about its sign, the share about its size. On `memory`",
        "all optimizers but Adafactor end at a loss near 0, so that it hardly separates them. Where the gradients",
        "never reach the bound of a clipped one, it is gradient descent. Shampoo keeps the diagonal for axes longer",
        "than 768, which decides its verdict on `linear` and `cnn` at small scale ([why](../../thesis.md)). `bigram`",
        "is the same problem at every scale. Pictures show losses below 1e-4 nats at 1e-4.",
    ]
    for scale, rows in read(published).items():
        problems = list(dict.fromkeys(row["problem"] for row in rows))
        lines += ["", f"## {scale}", "", f"{tests(rows)}.", ""]
        lines += [f"| optimizer | {' | '.join(problems)} | time a step | state |"]
        lines += ["|---|" + "---|" * (len(problems) + 2)]
        optimizers = _by_optimizer(rows)
        adam = {row["problem"]: row for row in optimizers[BASELINES[ADAM]]}
        for name, mine in optimizers.items():
            if name not in BASELINES.values():
                cells = {row["problem"]: _cell(row) for row in mine}
                prices = [_relative(mine, adam, key) for key in ("seconds_per_step", "state_bytes")]
                lines.append(f"| {name} | {' | '.join([*(cells[problem] for problem in problems), *prices])} |")
        machines = ", ".join(dict.fromkeys(str(row["machine"]) for row in rows if row["machine"]))
        lines += ["", f"{len(rows[0]['seeds'])} seeds; timed on {machines}." if machines else "", ""]
        if (published / "optimizers" / f"{scale}.png").is_file():
            lines += [f"![final loss by frequency group, and share of the gap closed]({scale}.png)"]
    return lines


def _by_optimizer(rows: Sequence[Row]) -> dict[str, list[Row]]:
    return {name: [r for r in rows if r["optimizer"] == name] for name in dict.fromkeys(r["optimizer"] for r in rows)}


def _cell(row: Row) -> str:
    share = "" if row["closed_rarest"] is None else f"{100 * row['closed_rarest']:.0f} % "
    return share + SIGNS[row["verdict"]]


def _relative(rows: Sequence[Row], adam: Mapping[str, Row], key: str) -> str:
    """The geometric mean over problems of a price relative to Adam's."""
    pairs = [(row[key], adam[row["problem"]][key]) for row in rows if row[key] is not None]
    if not all(b for _, b in pairs) or not pairs:
        return "—"
    if any(a == 0 for a, _ in pairs):
        return "0"
    return f"{math.exp(sum(math.log(a / b) for a, b in pairs) / len(pairs)):.2f}"


def summary(published: Path, link: str) -> Iterator[str]:
    """Yield a line for each scale: the optimizers that are better than Adam on the rarest group of some problem."""
    for scale, rows in read(published).items():
        problems = len({row["problem"] for row in rows})
        wins = {name: sum(row["verdict"] == BETTER for row in mine) for name, mine in _by_optimizer(rows).items()}
        ranked = sorted((name for name in wins if wins[name]), key=lambda name: -wins[name])
        better = ", ".join(f"{name} ({wins[name]})" for name in ranked) or "none"
        yield (
            f"- [optimizers compared with Adam]({link}/optimizers/README.md) on {problems} problems at {scale} scale: "
            f"better on the rarest group on some of them: {better}; {tests(rows)}"
        )
