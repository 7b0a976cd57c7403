"""Published results: small, the same bytes for the same input, nothing of the machine, and the README agrees."""

from __future__ import annotations

import json
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from heavytail.compare.comparison import BASELINE, BETTER, NOT_JUDGED, SAME, WORSE
from heavytail.errors import StoreError
from heavytail.files import strict_json
from heavytail.results.figure import all_figures
from tests.problems import output
from tools import publish as publishing
from tools import scoreboard, times
from tools.__main__ import main
from tools.publish import CELLS, POINTS, Reproduction, publish, short, small_picture, thinned

ROOT = Path(__file__).parent.parent
HOST = {"torch": "2.11", "platform": "Linux-6.1.9-mine-x86_64-with-glibc2.36", "device": "cpu", "processor": "A CPU"}


def claim(figure: str, verdict: str, scale: str = "quick", reason: str = "") -> dict[str, Any]:
    measured = None if verdict == "not run" else 0.123456789
    row = {"figure": figure, "claim": f"c{verdict}", "verdict": verdict, "measured": measured, "threshold": 0.9}
    return {**row, "scale": scale, "kind": "measured", "comparison": "<=", "statement": "a ratio", "reason": reason}


def write(folder: Path, figures: dict[str, list[str]], scale: str = "quick", *, steps: int = 1_000) -> Path:
    """Write a reproduction by hand: a figure is drawn unless all of its verdicts are "not run"."""
    (folder / "figures").mkdir(parents=True)
    rows = [claim(name, v, scale, "no /home/me/data/x.txt") for name, all_of in figures.items() for v in all_of]
    (folder / "claims.json").write_bytes(strict_json(rows))
    time = {"started": "2026-01-02T03:04:05Z", "seconds": 600.0, "scale": scale, "figures": sorted(figures)}
    (folder / "timing.json").write_bytes(strict_json([{**time, "trained": 7, "reused": 3, "finished": True}]))
    curve = {"kind": "line", "label": "GD", "x": list(range(steps)), "y": [1 / (1 + t) for t in range(steps)]}
    for name, verdicts in figures.items():
        drawn = set(verdicts) != {"not run"}
        record = {"figure": name, "title": name, "scale": scale, "caption": "", "environments": [HOST], "search": []}
        record |= {"missing": None if drawn else "no file in /home/me/data", "panels": []}
        if drawn:
            record["panels"] = [{"title": "overall", "series": [curve], "notes": []}]
            picture = np.random.default_rng(0).integers(0, 255, (60, 2000, 3), dtype=np.uint8)
            Image.fromarray(picture).save(folder / "figures" / f"{name}.png")
        (folder / "figures" / f"{name}.json").write_bytes(strict_json(record))
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Figure 4 in part, figure 16 not run, and the images, which have no claims."""
    return write(tmp_path / "out", {"fig04": ["reproduced", "not reproduced"], "fig16": ["not run"], "images": []})


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    """A README with a place for the table."""
    (tmp_path / "README.md").write_text(f"before\n\n{scoreboard.BEGIN}\nstale\n{scoreboard.END}\n\nafter\n")
    return tmp_path / "README.md"


def content(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_what_is_published(out: Path, tmp_path: Path) -> None:
    """Claims, environment, timing, and of every figure its numbers and, if it was drawn, its picture."""
    assert publish([out], tmp_path / "to") == [tmp_path / "to" / "quick"]
    assert set(content(tmp_path / "to" / "quick")) == {
        *("claims.json", "environment.json", "timing.json", "figures/fig04.json", "figures/fig04.png"),
        *("figures/fig16.json", "figures/images.json", "figures/images.png"),
    }
    claims = json.loads((tmp_path / "to/quick/claims.json").read_text())
    assert [row["verdict"] for row in claims] == ["reproduced", "not reproduced", "not run"]
    assert {"measured", "threshold", "comparison"} <= set(claims[0])
    (machine,) = json.loads((tmp_path / "to/quick/environment.json").read_text())
    assert machine["figures"] == ["fig04", "fig16", "images"]


def test_the_same_input_gives_the_same_bytes(out: Path, tmp_path: Path) -> None:
    """Publishing twice, and from a copy elsewhere, writes the same bytes."""
    shutil.copytree(out, tmp_path / "elsewhere")
    for source, to in ((out, "a"), (out, "a"), (tmp_path / "elsewhere", "b")):
        publish([source], tmp_path / to)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_nothing_of_the_machine_is_published(out: Path, tmp_path: Path) -> None:
    """Absolute paths are cut to their last part, and the local name of a kernel is left out."""
    publish([out], tmp_path / "to")
    text = b" ".join(v for k, v in content(tmp_path / "to").items() if k.endswith("json")).decode()
    assert "/home" not in text
    assert str(tmp_path) not in text
    assert "no .../x.txt" in text
    assert "Linux-6.1.9-x86_64-with-glibc2.36" in text


def test_ratios_and_fractions_are_no_paths() -> None:
    """A slash inside a word or alone is left as it is."""
    text = "|L(SGD)/L(Adam) - 1| on 1/sqrt(pi), measured / predicted, and/or https://a.org/b"
    assert publishing.public(text) == text


def test_numbers_are_short_and_thinned(out: Path, tmp_path: Path) -> None:
    """Floats have five digits; a long series keeps its ends, is told how long it was, and the file says so."""
    publish([out], tmp_path / "to")
    record = json.loads((tmp_path / "to/quick/figures/fig04.json").read_text())
    (series,) = record["panels"][0]["series"]
    assert len(series["x"]) == len(series["y"]) == POINTS
    assert (series["x"][0], series["x"][-1], series["of"]) == (0, 999, 1_000)
    assert series["y"][1] == float(f"{1 / (1 + series['x'][1]):.5g}")
    assert "'of'" in record["note"]
    assert (tmp_path / "to/quick/figures/fig04.json").read_bytes().count(b"\n") == 1


def test_short_series_stay_whole() -> None:
    """Nothing is left out where nothing is long, and a level is a number."""
    line = {"kind": "line", "label": "", "x": list(range(POINTS)), "y": [0.5] * POINTS}
    level = {"kind": "level", "label": "initial", "y": 5.0}
    assert short({"panels": [{"series": [line, level]}]})["panels"][0]["series"] == [line, level]


def test_a_histogram_is_thinned_on_its_logarithmic_axis() -> None:
    """The first ranks all stay, with the edges of their bars, and the last edge closes the last bar."""
    made = thinned({"kind": "steps", "label": "", "edges": [k + 0.5 for k in range(5_001)], "y": [9] * 5_000})
    assert made["edges"][:5] == [0.5, 1.5, 2.5, 3.5, 4.5]
    assert made["edges"][-1] == 5_000.5
    assert len(made["edges"]) == len(made["y"]) + 1 <= POINTS + 1


def test_large_matrices_are_left_to_the_picture() -> None:
    """An image of many numbers has its shape alone; a small one stays."""
    large = thinned({"kind": "image", "label": "", "values": [[0.0] * (CELLS + 1)]})
    assert (large["values"], large["of"]) == (None, [1, CELLS + 1])
    small = {"kind": "image", "label": "", "values": [[0.0, 1.0]]}
    assert thinned(small) == small


def test_pictures_are_small(out: Path) -> None:
    """A picture is at most 1 500 pixels wide, keeps its shape, and has a palette."""
    made = Image.open(BytesIO(small_picture(out / "figures" / "fig04.png")))
    assert made.size == (1500, 45)
    assert made.mode == "P"


def test_the_colours_of_lines_survive(tmp_path: Path) -> None:
    """A thin orange line stays orange on a picture that is mostly white and green."""
    picture = np.full((200, 400, 3), 255, np.uint8)
    picture[:, :150] = np.linspace(0, 255, 200)[:, None, None] * np.array([0, 1, 0.3])
    picture[100, 200:] = (213, 94, 0)
    Image.fromarray(picture).save(tmp_path / "x.png")
    made = np.asarray(Image.open(BytesIO(small_picture(tmp_path / "x.png"))).convert("RGB")).astype(int)
    assert np.abs(made[100, 300] - (213, 94, 0)).max() <= 12


def test_publishing_again_leaves_nothing_stale(out: Path, tmp_path: Path) -> None:
    """A figure that is not in the reproduction any more is not in the published results either; other scales stay."""
    publish([out, write(tmp_path / "small", {"fig01": ["reproduced"]}, "small")], tmp_path / "to")
    for kind in ("json", "png"):
        (out / "figures" / f"images.{kind}").unlink()
    publish([out], tmp_path / "to")
    names = set(content(tmp_path / "to"))
    assert not any("images" in name for name in names)
    assert "small/figures/fig01.png" in names


def test_what_somebody_else_put_there_stays(out: Path, tmp_path: Path) -> None:
    """Only files that publish wrote are removed: those of others stay, pictures and JSON in its folders included."""
    to = tmp_path / "to"
    (folder,) = publish([out], to)
    others = [folder / "mine.json", folder / "figures" / "holiday.png", folder / "figures" / "notes.json"]
    for file in others:
        file.write_text("{}")
    publish([out], to)
    assert all(file.read_text() == "{}" for file in others)


def test_the_source_is_never_overwritten(out: Path, tmp_path: Path) -> None:
    """A target that is the source, is inside it or holds it is refused before anything is written."""
    source = tmp_path / "results" / json.loads((out / "claims.json").read_text())[0]["scale"]
    shutil.copytree(out, source)
    before = {file: file.read_bytes() for file in source.rglob("*") if file.is_file()}
    for to in (source.parent, source, source.parent / "." / source.name / ".."):
        with pytest.raises(StoreError, match=r"^--to: .* would overwrite [^\n]*$"):
            publish([source], to)
    assert {file: file.read_bytes() for file in source.rglob("*") if file.is_file()} == before


def test_parts_of_a_scale_are_put_together(out: Path, tmp_path: Path) -> None:
    """Two folders of one scale with different figures make one; with the same figure they are refused."""
    other = write(tmp_path / "other", {"fig01": ["reproduced"]})
    publish([out, other], tmp_path / "to")
    claims = json.loads((tmp_path / "to/quick/claims.json").read_text())
    assert [row["figure"] for row in claims] == ["fig01", "fig04", "fig04", "fig16"]
    assert len(json.loads((tmp_path / "to/quick/timing.json").read_text())) == 2
    again = write(tmp_path / "again", {"fig04": ["reproduced"]})
    with pytest.raises(StoreError, match="fig04 is in two folders of quick scale"):
        publish([out, again], tmp_path / "to")


def test_a_scale_is_published_in_parts(out: Path, tmp_path: Path, readme: Path) -> None:
    """--keep replaces the figures that the folder has, with their claims, and keeps the others byte for byte."""
    first = write(tmp_path / "first", {"fig01": ["reproduced"], "fig04": ["reproduced"]}, steps=50)
    to = ["--to", str(tmp_path / "to"), "--readme", str(readme)]
    assert main([str(first), *to]) == 0
    before = content(tmp_path / "to/quick")
    assert main([str(out), "--keep", *to]) == 0
    after = content(tmp_path / "to/quick")
    assert {name for name in after if name in before and after[name] == before[name]} == {
        "figures/fig01.json",
        "figures/fig01.png",
        "figures/fig04.png",  # the same random picture
    }
    claims = json.loads(after["claims.json"])
    assert [(row["figure"], row["verdict"]) for row in claims] == [
        ("fig01", "reproduced"),
        ("fig04", "reproduced"),
        ("fig04", "not reproduced"),
        ("fig16", "not run"),
    ]
    assert [row["figures"] for row in json.loads(after["environment.json"])] == [
        ["fig01"],
        ["fig04", "fig16", "images"],
    ]
    assert sorted(row["figures"] for row in json.loads(after["timing.json"])) == [
        ["fig01"],
        ["fig04", "fig16", "images"],
    ]
    assert main([str(out), *to]) == 0
    assert content(tmp_path / "to/quick").keys() == {name for name in after if "fig01" not in name}


def test_too_much_is_refused_before_anything_is_written(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than the limit over all scales is refused with the largest file, and the folder stays as it was."""
    publish([write(tmp_path / "small", {"fig01": ["reproduced"]}, "small")], tmp_path / "to")
    before = content(tmp_path / "to")
    monkeypatch.setattr(publishing, "LIMIT", sum(map(len, before.values())) + 100)
    with pytest.raises(StoreError, match=r"more than .* MB; the largest file is quick/figures/"):
        publish([out], tmp_path / "to")
    assert content(tmp_path / "to") == before


def _nothing(folder: Path) -> None:
    folder.mkdir()


def _without_figures(folder: Path) -> None:
    (folder / "figures").mkdir(parents=True)
    (folder / "claims.json").write_text("[]")


def _two_scales(folder: Path) -> None:
    write(folder, {"fig04": ["reproduced"]})
    (folder / "claims.json").write_bytes(strict_json([claim("fig04", "reproduced", "small")]))


def _own_scale(folder: Path) -> None:
    write(folder, {"fig04": ["reproduced"]}, "../quick")


def _damaged(folder: Path) -> None:
    write(folder, {"fig04": ["reproduced"]})
    (folder / "figures" / "fig04.json").write_text("{")


def _misnamed(folder: Path) -> None:
    write(folder, {"fig04": ["reproduced"]})
    (folder / "figures" / "fig04.json").rename(folder / "figures" / "fig05.json")


def _no_picture(folder: Path) -> None:
    write(folder, {"fig04": ["reproduced"]})
    (folder / "figures" / "fig04.png").write_text("not a picture")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "no such folder"),
        (_nothing, "is not the folder of a reproduction: expected claims.json and figures/"),
        (_without_figures, "has no figures; run `heavytail reproduce --out"),
        (_two_scales, "mixes the scales quick, small; reproduce each into a separate folder"),
        (_own_scale, "scale of"),
        (_damaged, "fig04.json"),
        (_misnamed, "expected the numbers of figure fig05"),
        (_no_picture, "cannot read"),
    ],
)
def test_bad_folders_are_one_line(
    make: Any, message: str, tmp_path: Path, readme: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is not one reproduction at one scale is refused with 2 and a line that names it; nothing is written."""
    make(tmp_path / "bad")
    before = readme.read_text()
    assert main([str(tmp_path / "bad"), "--to", str(tmp_path / "to"), "--readme", str(readme)]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert message in printed
    assert not (tmp_path / "to").exists()
    assert readme.read_text() == before


def test_the_table_counts_and_links(out: Path, tmp_path: Path, readme: Path) -> None:
    """A cell says how many claims were reproduced and links the picture; what was not made is a dash, or no row."""
    assert main([str(out), "--to", str(tmp_path / "docs/results"), "--readme", str(readme)]) == 0
    text = (tmp_path / "docs/results/README.md").read_text()
    rows = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[2:] for line in text.splitlines()}
    assert rows["fig04"] == ["[1 of 2](quick/figures/fig04.png)", "—", "—"]
    assert rows["fig16"] == ["not run", "—", "—"]
    assert rows["images"] == ["[drawn](quick/figures/images.png)", "—", "—"]
    assert {figure.id for figure in all_figures()} & set(rows) == {"fig04", "fig16", "images"}
    assert "**1 of 3, 1 not run**" in text
    assert "- quick: 7 runs trained, 10 minutes in all; A CPU, torch 2.11" in text


def test_the_readme_has_totals_and_highlights(out: Path, tmp_path: Path, readme: Path) -> None:
    """The README has the number of claims of each verdict, exact ones apart, and measured numbers."""
    rows = [claim("fig04", "reproduced") | {"claim": "rare-gap"}, claim("fig04", "undecided")]
    rows += [claim("fig04", "reproduced") | {"kind": "exact"}, claim("fig16", "not run")]
    rows += [claim("decay", "not reproduced")]
    (out / "claims.json").write_bytes(strict_json(rows))
    assert main([str(out), "--to", str(tmp_path / "docs/results"), "--readme", str(readme)]) == 0
    text = readme.read_text()
    head = (
        "| scale | of | measured claims | reproduced | not reproduced | undecided | not run | exact claims reproduced |"
    )
    assert head in text
    assert "| `quick` | the paper | 3 | 1 | 0 | 1 | 1 | 1 of 1 |" in text
    assert "| `quick` | later work | 1 | 0 | 1 | 0 | 0 | — |" in text
    every = (tmp_path / "docs/results/claims.md").read_text()
    assert "| fig04 | rare-gap | a ratio | <= 0.9 | 0.123 ✓ |" in every
    assert "| fig16 | cnot run | a ratio | <= 0.9 | — not run |" in every
    (highlight,) = [line for line in text.splitlines() if line.startswith("| [fig")]
    assert highlight.startswith("| [fig04](docs/results/quick/figures/fig04.png) | softmax regression")
    assert highlight.endswith("a ratio | <= 0.9 | 0.123 ✓ |")
    assert "- quick: 7 runs trained, 10 minutes in all; A CPU, torch 2.11" in text
    assert text.startswith("before\n\n")
    assert text.endswith("\n\nafter\n")
    assert "stale" not in text


def compared(optimizer: str, problem: str, verdict: str, share: float | None, seconds: float) -> dict[str, Any]:
    """A row of compare.json."""
    row = {"optimizer": optimizer, "problem": problem, "scale": "quick", "verdict": verdict, "closed_rarest": share}
    judged = verdict not in (BASELINE, NOT_JUDGED)
    return {
        **row,
        "p_value": 0.001 if judged else None,
        "seeds": [100, 101, 102],
        "seconds_per_step": seconds,
        "state_bytes": 100 if optimizer == "Adam" else 0,
        "machine": "A CPU, cpu, 1 threads",
    }


def test_a_comparison_is_published(tmp_path: Path, readme: Path) -> None:
    """Rows and picture are copied small; the page has shares, verdicts and prices, the README who is better where."""
    folder = tmp_path / "comparison"
    folder.mkdir()
    rows = [compared(name, p, BASELINE, None, 0.002) for name in ("GD", "Adam") for p in ("linear", "cnn")]
    rows += [compared("x", "linear", BETTER, 1.234, 0.004), compared("x", "cnn", SAME, None, 0.001)]
    rows += [compared("y", "linear", WORSE, 0.5, 0.002), compared("y", "cnn", NOT_JUDGED, None, 0.002)]
    (folder / "compare.json").write_bytes(strict_json(rows))
    picture = np.random.default_rng(0).integers(0, 255, (60, 2000, 3), dtype=np.uint8)
    Image.fromarray(picture).save(folder / "compare.png")
    command = [str(folder), "--to", str(tmp_path / "docs/results"), "--readme", str(readme)]
    assert main(command) == 0
    made = tmp_path / "docs/results/optimizers"
    assert json.loads((made / "quick.json").read_text()) == rows
    with Image.open(made / "quick.png") as small:
        assert small.width <= publishing.WIDTH
    page = (made / "README.md").read_text()
    assert "| optimizer | linear | cnn | time a step | state |" in page
    assert "| x | 123 % ▲ | = | 1.00 | 0 |" in page
    assert "| y | 50 % ▼ | — | 1.00 | 0 |" in page
    assert "3 tests at p < 0.01: better than Adam in 1, worse in 1, no difference found in the others" in page
    line = "2 problems at quick scale: better on the rarest group on some of them: x (1);"
    assert line in readme.read_text()
    assert main(["--check", *command[1:]]) == 0
    (folder / "compare.json").write_bytes(strict_json([{k: v for k, v in row.items() if k != "scale"} for row in rows]))
    assert main(command) == 2


def test_check_tells_a_stale_table(out: Path, tmp_path: Path, readme: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--check writes nothing: 1 while the table is not that of the results, 0 once it is, 2 with a folder."""
    where = ["--to", str(tmp_path / "to"), "--readme", str(readme)]
    before = readme.read_text()
    assert main(["--check", *where]) == 1
    assert readme.read_text() == before
    assert main([str(out), *where]) == 0
    assert main(["--check", *where]) == 0
    (tmp_path / "to/quick/claims.json").write_bytes(strict_json([claim("fig04", "reproduced")]))
    assert main(["--check", *where]) == 1
    assert main(["--check", str(out), *where]) == 2
    assert "--check writes nothing" in capsys.readouterr().err


@pytest.mark.parametrize("text", [None, "no place\n", f"{scoreboard.END}\n{scoreboard.BEGIN}\n"])
def test_a_readme_without_a_place_is_refused_first(
    text: str | None, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A README that is missing or has no place for the table is one line, before anything is published."""
    if text is not None:
        (tmp_path / "README.md").write_text(text)
    command = [str(out), "--to", str(tmp_path / "to"), "--readme", str(tmp_path / "README.md")]
    assert main(command) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "README.md" in printed
    assert not (tmp_path / "to").exists()


def test_the_readme_agrees_with_what_is_published() -> None:
    """This project's README and docs/results/README.md have the numbers that its published results give."""
    assert scoreboard.stale(ROOT / "README.md", ROOT / "docs" / "results") == []


def test_published_times_do_not_depend_on_the_order_of_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order changes from one process to the next; sums whose rounding followed it made the file stale at random."""
    code = "import sys; from pathlib import Path; from tools import times; print(times.text(Path(sys.argv[1])))"
    made = set()
    for seed in range(3):
        monkeypatch.setenv("PYTHONHASHSEED", str(seed))
        made.add(output(code, ROOT / "docs" / "results"))
    assert len(made) == 1


def test_no_time_is_made_up_where_a_slower_machine_leaves_none(tmp_path: Path) -> None:
    """Where shared runs took longer on another machine than a figure has in all, the time of the others is unknown."""
    seconds = {"where-adaptive": {"runs": 1e6, "drawing": 1.0}, "clipping": {"runs": 1.0, "drawing": 1.0}}
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "timing.json").write_bytes(strict_json([{"figure_seconds": seconds}]))
    made = json.loads(times.text(tmp_path))["small"]
    assert made["seconds"] == seconds
    assert {name.partition("/")[0] for name in made["searches"]} == {"beyond-transformer", "where-adaptive"}
    assert min(made["searches"].values()) > 1e4


def test_what_is_committed_is_small_and_of_no_machine() -> None:
    """This project's published results stay below the limit, and name no folder of anybody's machine."""
    files = content(ROOT / "docs" / "results")
    assert sum(map(len, files.values())) <= publishing.LIMIT
    for name, made in files.items():
        if name.endswith(".json"):
            table = json.loads(made)
            assert publishing.public(table) == table


def test_a_folder_is_read_whole(out: Path) -> None:
    """What is read of a folder is its scale, claims, figures and timing."""
    made = Reproduction.read(out)
    assert (made.scale, len(made.claims), sorted(made.figures)) == ("quick", 3, ["fig04", "fig16", "images"])
    assert made.timing[0]["trained"] == 7
