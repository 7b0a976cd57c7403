"""Select and shrink the results that are committed: deterministic, without absolute paths or host names.

    TO/SCALE/claims.json            every claim with its measured number, threshold and verdict
    TO/SCALE/environment.json       versions and devices of the runs, each with its figures
    TO/SCALE/timing.json            start, duration and number of trained runs of each reproduction
    TO/SCALE/figures/figNN.json     the plotted numbers and the step-size searches, to five digits; long series thinned
    TO/SCALE/figures/figNN.png      the picture, small

Files are written atomically, and only after all have been checked against the size limit.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from heavytail.errors import StoreError, unknown
from heavytail.files import Row, read_json, strict_json, write_atomic
from heavytail.report.files import check_folder

SCALES = ("quick", "small", "paper")
LIMIT = 10_000_000  # total bytes of all scales
WIDTH, COLOURS = 1_500, 128  # limits of a picture
POINTS = 101  # limit of a series
CELLS = 4_096  # limit of a matrix
ORDER: dict[str, Callable[[Row], Any]] = {  # of the rows of each table
    "claims.json": lambda row: str(row["figure"]),
    "environment.json": lambda row: row["figures"],
    "timing.json": lambda row: str(row.get("started")),
}
NOTE = (
    f"floats to five digits; a series of more than {POINTS} points keeps at most {POINTS}, its first and last among "
    f"them, and says under 'of' how many it had; a matrix of more than {CELLS} numbers is left to the picture"
)


@dataclass(frozen=True)
class Reproduction:
    """The results of `heavytail reproduce` in a folder.

    Attributes:
        folder: where.
        scale: the one that all of it was made at.
        claims: the rows of claims.json.
        figures: the records of figures/*.json, by figure.
        timing: the rows of timing.json.
    """

    folder: Path
    scale: str
    claims: list[Row]
    figures: dict[str, Row]
    timing: list[Row]

    @classmethod
    def read(cls, folder: Path) -> Reproduction:
        """Read a folder; StoreError if it is none of `reproduce`, empty, damaged, or of several scales."""
        check_folder(folder)
        claims, timing = (_rows(folder / f"{name}.json") for name in ("claims", "timing"))
        figures = {file.stem: read_json(file, {}, {}) for file in sorted((folder / "figures").glob("*.json"))}
        if not figures:
            raise StoreError(f"{folder} has no figures; run `heavytail reproduce --out {folder}`")
        for name, record in figures.items():
            if record.get("figure") != name:
                raise StoreError(f"{folder / 'figures' / name}.json: expected the numbers of figure {name}")
        try:
            scales = sorted({str(row["scale"]) for row in (*figures.values(), *claims, *timing)})
        except KeyError:
            raise StoreError(f"{folder} is not the folder of a reproduction: a scale is not named") from None
        if len(scales) > 1:
            raise StoreError(f"{folder} mixes the scales {', '.join(scales)}; reproduce each into a separate folder")
        if scales[0] not in SCALES:
            raise unknown(f"scale of {folder}:", scales[0], SCALES)
        return cls(folder, scales[0], claims, figures, timing)


def publish(folders: Sequence[Path], to: Path, *, keep: bool = False) -> list[Path]:
    """Write the published results of reproductions, and return the folders of their scales under `to`.

    Folders of one scale are merged and replace the published results of that scale; with `keep`, only those of their
    figures, so that a long scale can be published in parts.

    Raises:
        StoreError: a folder is not that of a reproduction, two have the same figure, the result is too large, or it
            would overwrite one of the folders.
    """
    found = [Reproduction.read(folder) for folder in folders]
    content: dict[Path, bytes] = {}
    for scale in dict.fromkeys(one.scale for one in found):
        files = _files([one for one in found if one.scale == scale])
        for name, made in (_kept(to / scale, files) if keep else files).items():
            content[to / scale / name] = made
    made_at = [to / scale for scale in dict.fromkeys(one.scale for one in found)]
    for folder in made_at:
        for one in found:
            if _overlap(folder, one.folder):
                raise StoreError(f"--to: {folder} would overwrite {one.folder}; give a folder apart from the results")
    old = {file for folder in made_at for file in _published(folder)}
    others = [f for kind in ("json", "png") for f in to.rglob(f"*.{kind}") if f not in old and f not in content]
    size = sum(map(len, content.values())) + sum(file.stat().st_size for file in others)
    if size > LIMIT:
        largest = max(content, key=lambda file: len(content[file]))
        raise StoreError(
            f"{to} would have {size / 1e6:.1f} MB, more than {LIMIT / 1e6:.0f} MB; "
            f"the largest file is {largest.relative_to(to)} with {len(content[largest]) / 1e6:.2f} MB"
        )
    try:
        for file, made in sorted(content.items()):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, made)
        for file in old - set(content):
            file.unlink()
    except OSError as error:
        raise StoreError(f"cannot write {to}: {error.strerror}") from error
    return made_at


def _files(parts: Sequence[Reproduction]) -> dict[str, bytes]:
    """The files of one scale."""
    files: dict[str, bytes] = {}
    claims: list[Row] = []
    timing: list[Row] = []
    environments: dict[str, tuple[Any, list[str]]] = {}
    for part in parts:
        for name, record in part.figures.items():
            if f"figures/{name}.json" in files:
                raise StoreError(
                    f"{name} is in two folders of {part.scale} scale, also in {part.folder}; leave one out"
                )
            files[f"figures/{name}.json"] = compact_json(short(record))
            picture = part.folder / "figures" / f"{name}.png"
            if picture.is_file():
                files[f"figures/{name}.png"] = small_picture(picture)
            for table in map(public, record.get("environments", ())):
                environments.setdefault(json.dumps(table, sort_keys=True), (table, []))[1].append(name)
        claims += part.claims
        timing += part.timing
    made_with = [{**table, "figures": sorted(names)} for table, names in environments.values()]
    files["claims.json"] = _in_order("claims.json", public(claims))
    files["environment.json"] = _in_order("environment.json", made_with)
    if timing:
        files["timing.json"] = _in_order("timing.json", public(timing))
    return files


def _kept(folder: Path, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The new files of a scale, and what is published of its other figures."""
    result = dict(files)
    old = {file.stem for file in _published(folder) if file.parent.name == "figures"}
    old -= {Path(name).stem for name in files if name.startswith("figures/")}
    for file in sorted((folder / "figures").iterdir()) if old else ():
        if file.stem in old:
            result[f"figures/{file.name}"] = file.read_bytes()

    def of_old(name: str) -> Iterator[Row]:
        for row in _rows(folder / name):
            if "figure" in row:
                if row["figure"] in old:
                    yield row
            elif left := sorted(old & {*row["figures"]}):
                seconds = {name: v for name, v in row.get("figure_seconds", {}).items() if name in old}
                yield {**row, "figures": left, **({"figure_seconds": seconds} if seconds else {})}

    for name in ORDER:
        if rows := [*json.loads(files.get(name, b"[]")), *of_old(name)]:
            result[name] = _in_order(name, rows)
    return result


def _in_order(name: str, rows: Sequence[Row]) -> bytes:
    """The content of one of the tables."""
    return strict_json(sorted(rows, key=ORDER[name]))


def _rows(file: Path) -> list[Row]:
    rows: list[Row] = read_json(file, [], [{}])
    return rows


def _published(folder: Path) -> list[Path]:
    """The files written by `publish`, which it may remove; those of figures have its note."""
    figures = folder / "figures"
    files = [folder / f"{name}.json" for name in ("claims", "environment", "timing")]
    for file in figures.glob("*.json"):
        with contextlib.suppress(StoreError):
            record = read_json(file, {}, {})
            if record.get("figure") == file.stem and "note" in record:
                files += [file, file.with_suffix(".png")]
    return [file for file in files if file.is_file()]


def _overlap(one: Path, two: Path) -> bool:
    """Whether a folder is the other, or is inside it."""
    one, two = one.resolve(), two.resolve()
    return one == two or one in two.parents or two in one.parents


# -- making small ----------------------------------------------------------------------------------------------------


def short(record: Row) -> dict[str, Any]:
    """Return a figure's record in its published form; the environments of its runs go to a separate file."""
    kept = {key: value for key, value in record.items() if key != "environments"}
    panels = [{**panel, "series": [*map(thinned, panel["series"])]} for panel in record.get("panels", ())]
    rounded: dict[str, Any] = _walk({"note": NOTE, **kept, "panels": panels}, _five_digits)
    return {**public(rounded), "note": NOTE}


def thinned(series: Row) -> dict[str, Any]:
    """Return a plotted series with at most POINTS of its points, and how many there were under `of`.

    Points are kept evenly; those of a histogram over ranks evenly on its logarithmic axis.

    >>> thinned({"kind": "line", "label": "GD", "y": list(range(201))})["y"][:3]
    [0, 2, 4]
    """
    arrays = {key: value for key, value in series.items() if isinstance(value, list)}
    if series.get("kind") == "image":
        rows, columns = len(arrays["values"]), len(arrays["values"][0])
        return {**series, **({"values": None, "of": [rows, columns]} if rows * columns > CELLS else {})}
    number = min(map(len, arrays.values()), default=0)  # steps have one more edge
    if number <= POINTS or series.get("kind") == "table":
        return dict(series)
    if series.get("kind") == "steps":
        kept = sorted({round(number ** (i / (POINTS - 1))) - 1 for i in range(POINTS)})
    else:
        kept = [round(i * (number - 1) / (POINTS - 1)) for i in range(POINTS)]
    fewer = {key: [value[i] for i in kept] + value[number:] for key, value in arrays.items()}
    return {**series, **fewer, "of": number}


def small_picture(file: Path) -> bytes:
    """Return a picture at most WIDTH pixels wide and with COLOURS colours, as PNG."""
    from PIL import Image

    try:
        with Image.open(file) as opened:
            picture = opened.convert("RGB")
    except OSError as error:
        raise StoreError(f"cannot read {file}: {error}; delete it and make the figure again") from error
    if picture.width > WIDTH:
        picture = picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS)
    content = BytesIO()
    # Median cut would mix the colours of thin lines: Adam's would become brown.
    few = picture.quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(content, "PNG", optimize=True)
    return content.getvalue()


def compact_json(value: Any) -> bytes:
    """Return a value as JSON without white space."""
    return (json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False) + "\n").encode()


# -- leaving the machine out -----------------------------------------------------------------------------------------

_PATH = re.compile(r"""(?:(?<=[\s'"(=:,;])|^)~?/(?:[^\s/'",;:()]+/)*([^\s/'",;:()]+)/?""")
_KERNEL = re.compile(r"^(Linux-\d+(?:\.\d+)*)\S*?(-(?:x86_64|aarch64|arm64)\S*)$")


def public(value: Any) -> Any:
    """Return a value with absolute paths cut to their last part, and without custom kernel names.

    >>> public({"reason": "no file in /home/me/data; fetch it", "platform": "Linux-6.1.9-mine-x86_64-with-glibc2.36"})
    {'reason': 'no file in .../data; fetch it', 'platform': 'Linux-6.1.9-x86_64-with-glibc2.36'}
    """
    return _walk(value, lambda x: _KERNEL.sub(r"\1\2", _PATH.sub(r".../\1", x)) if isinstance(x, str) else x)


def _five_digits(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    value = float(f"{value:.5g}")
    return int(value) if value.is_integer() and abs(value) < 1e15 else value


def _walk(value: Any, change: Callable[[Any], Any]) -> Any:
    """The value with a function applied to every leaf."""
    if isinstance(value, Mapping):
        return {key: _walk(inner, change) for key, inner in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_walk(inner, change) for inner in value]
    return change(value)
