"""The report: strict JSON, one self-contained page with every figure and claim, and nothing stale beside it."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import json
import multiprocessing
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from heavytail import report
from heavytail.errors import DamagedError
from heavytail.experiment.store import RunStore
from heavytail.files import plain
from heavytail.report.files import VERDICTS, add_timing, write_claims, write_figure
from heavytail.report.page import POINTS, SCRIPTS, charted, write_report
from heavytail.results.claims import Claim
from heavytail.results.figure import figure
from heavytail.results.results import Results
from tests.reference.figures import decay, fill, write_presets

STEPS = 10
HOSTILE = "<script>alert('x')</script> & \"more\""


def losses(preset, variant, label, lr, seed):
    """GD diverges at step size 10; Adam is ahead everywhere."""
    if label.startswith("gd") and lr == 10.0:
        return None
    return decay(5, [1, 2, 3, 5] if "gd" in label else [0.5, 1, 1, 1], STEPS)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Finished runs of the presets "linear" (figure 4); those of "linear-long" (figure 16) are missing."""
    folder = tmp_path_factory.mktemp("runs")
    write_presets(folder, [("linear", ""), ("linear-long", "")], steps=STEPS, seeds=1)
    fill(RunStore(folder), folder, [("linear", "")], losses, labels=["gd+m", "adam+m"])
    return Results(RunStore(folder), "quick", presets=folder)


@pytest.fixture(scope="module")
def out(results, tmp_path_factory):
    """A reproduction of figures 4 (made), 16 (not run), and 4 again under a hostile title."""
    out = tmp_path_factory.mktemp("out")
    hostile = dataclasses.replace(figure("fig04"), id="fig98", title=HOSTILE, about=HOSTILE)
    made = (figure("fig04"), figure("fig16"), hostile)
    write_claims(out, [claim for one in made for claim in write_figure(one, results, out)])
    write_report(out)
    return out


def strict(file):
    """Read JSON that may hold no NaN and no infinity."""

    def refuse(name):
        raise AssertionError(f"{name} in {file}")

    return json.loads(file.read_text(), parse_constant=refuse)


class Page(HTMLParser):
    """Collects what a page loads and shows, and checks that its elements are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.loads, self.words, self.tags, self.scripts = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [v for k, v in attrs if k in ("src", "href")]
        assert not [k for k, _ in attrs if k.startswith("on")]
        if tag == "script":
            self.scripts.append((dict(attrs).get("type", "text/javascript"), ""))
        if tag not in ("meta", "img", "br", "link", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            kind, text = self.scripts[-1]
            self.scripts[-1] = (kind, text + data)
        else:
            self.words.append(data)


def programs(page):
    """The scripts of a page that run."""
    return [text for kind, text in page.scripts if kind != "application/json"]


OURS = [(Path(report.__file__).parent / name).read_text("utf-8") for name in SCRIPTS]


def test_files_of_a_figure(out):
    """A figure that could be made has its picture as PNG and PDF, its searches, and its numbers."""
    assert {f.name for f in (out / "figures").glob("fig04*")} == {
        "fig04.png",
        "fig04.pdf",
        "fig04.json",
        "fig04-search.png",
    }


def test_numbers_of_a_figure(out):
    """The JSON beside a picture is strict, and holds what is plotted, the searches, the caption and the scale."""
    table = strict(out / "figures" / "fig04.json")
    overall = next(p for p in table["panels"] if p["title"] == "overall")
    gd = next(s for s in overall["series"] if s["label"] == "GD" and s["kind"] == "line")
    np.testing.assert_allclose(gd["y"], losses("", "", "gd+m", 1.0, 0).mean(axis=1), rtol=1e-6)
    search = {t["optimizer"]: t for t in table["search"]}
    assert search["gd+m"]["candidates"][2]["loss"] is None
    assert "diverged" in search["gd+m"]["candidates"][2]["reason"]
    assert table["scale"] == "quick"
    assert "not the paper's" in table["caption"]
    assert table["environments"] == [{"device": "made up", "threads": 1}]


def test_a_figure_without_its_runs(out):
    """A figure whose runs are missing has no picture, says so, and its claims are not run."""
    assert not (out / "figures" / "fig16.png").exists()
    assert "heavytail reproduce fig16 --scale quick" in strict(out / "figures" / "fig16.json")["missing"]
    rows = [row for row in strict(out / "claims.json") if row["figure"] == "fig16"]
    assert [row["verdict"] for row in rows] == ["not run"] * len(figure("fig16").rules)


def test_an_old_picture_does_not_stay(results, tmp_path):
    """A figure that cannot be made any more leaves no picture of an earlier run beside its new numbers."""
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "fig16.png").write_bytes(b"old")
    write_figure(figure("fig16"), results, tmp_path)
    assert not (tmp_path / "figures" / "fig16.png").exists()


def test_claims_of_other_figures_stay(tmp_path):
    """Writing the claims of one figure replaces its own rows and keeps the others', sorted by figure."""

    def claim(name, measured):
        return Claim(name, "c", "s", measured, "<=", 1.0, "quick")

    write_claims(tmp_path, [claim("fig04", 0.5), claim("fig02", 2.0)])
    rows = write_claims(tmp_path, [claim("fig04", 3.0)])
    assert rows == strict(tmp_path / "claims.json")
    assert [(row["figure"], row["verdict"]) for row in rows] == [
        ("fig02", "not reproduced"),
        ("fig04", "not reproduced"),
    ]


def test_page_has_every_figure_and_claim(out):
    """The page shows every title, claim, verdict, measured number and reason, and embeds every picture."""
    page = Page((out / "report.html").read_text())
    text = " ".join(page.words)
    for name in ("fig04", "fig16"):
        assert figure(name).title in text
    for row in strict(out / "claims.json"):
        assert row["claim"] in text
        assert row["statement"] in text
        assert row["verdict"] in text
        if row["measured"] is not None:
            assert f"{row['measured']:.4g}" in text
    assert "heavytail reproduce fig16 --scale quick" in text
    assert "smallest worst-seed final loss" in text
    assert page.tags.count("img") == 4  # figures 4 and 98, each with its searches
    assert "made up" in text


def test_page_is_self_contained(out):
    """Nothing is loaded from elsewhere: pictures are embedded, links stay on the page or name its figures' files."""
    text = (out / "report.html").read_text()
    page = Page(text)
    files = [link for link in page.loads if link.startswith("figures/")]
    assert all((out / link).exists() for link in files)
    assert "figures/fig04.pdf" in files
    rest = [link for link in page.loads if link not in files]
    assert all(link.startswith(("data:image/png;base64,", "data:,", "#")) for link in rest)
    for script in OURS:
        text = text.replace(script, "")
    assert "://" not in text


def test_the_policy_admits_the_scripts_and_styles_of_the_page_only(out):
    """The content security policy names the hash of every script and style in the page, and no other source."""
    text = (out / "report.html").read_text()
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1])
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    styles = re.findall(r"<style>(.*?)</style>", text, re.S)

    def hashes(texts):
        return {f"'sha256-{base64.b64encode(hashlib.sha256(t.encode()).digest()).decode()}'" for t in texts}

    assert set(rules["script-src"].split()) == hashes(programs(Page(text)))
    assert set(rules["style-src"].split()) == hashes(styles)
    assert {rules[key] for key in ("default-src", "base-uri", "form-action")} == {"'none'"}
    assert rules["img-src"] == "data:"


def test_charts_have_the_numbers_of_the_figure(out):
    """The page has the series, colours and scales of every panel, as plotted."""
    page = Page((out / "report.html").read_text())
    panels = json.loads(next(text for kind, text in page.scripts if kind == "application/json"))
    overall = next(panel for panel in panels if panel["title"] == "overall")
    gd = next(s for s in overall["series"] if s["label"] == "GD" and s["kind"] == "line")
    np.testing.assert_allclose(gd["y"], losses("", "", "gd+m", 1.0, 0).mean(axis=1), rtol=1e-4)
    assert gd["colour"] == "#0072b2"
    assert panels[0]["xscale"] == "log"


@pytest.mark.parametrize("number", [1, POINTS, POINTS + 1, 10 * POINTS, 100_000])
@pytest.mark.parametrize("kind", ["line", "steps"])
def test_charts_have_a_bounded_number_of_points(number, kind):
    """A long series has at most POINTS of its points, its ends among them, in order and with their own values."""
    x = list(range(number + (kind == "steps")))
    arrays = {"edges": x} if kind == "steps" else {"x": x}
    series = {"kind": kind, "label": "a", **arrays, "y": [2 * v for v in range(number)]}
    panel = {"title": "t", "xlabel": "x", "ylabel": "y", "notes": [], "series": [series]}
    (shown,) = charted([panel])[0]["series"]
    kept = shown["edges"][:-1] if kind == "steps" else shown["x"]
    assert shown["y"] == [2 * v for v in kept]
    assert kept == sorted(set(kept))
    assert (kept[0], kept[-1]) == (0, number - 1)
    assert len(kept) <= POINTS


def test_a_table_of_a_figure_is_a_table_of_the_page(tmp_path):
    """A figure that is a table is text, not a picture of text."""
    table = {"kind": "table", "label": "", "header": ["model"], "rows": [["CNN"]]}
    panel = {"title": "problems", "xlabel": "", "ylabel": "", "notes": [], "series": [table]}
    write_tables(tmp_path, figure_record(panels=[panel], missing=None), [])
    page = Page(write_report(tmp_path).read_text())
    assert {"problems", "model", "CNN"} <= set(page.words)


def test_hostile_text_is_escaped(out):
    """A title that is markup is shown as text and never becomes an element."""
    page = Page((out / "report.html").read_text())
    assert HOSTILE in " ".join(page.words)
    assert programs(page) == OURS


def figure_record(**changes):
    """A record of a figure with text in every field."""
    search = {"preset": "p", "variant": "v", "optimizer": "o", "selected": 1.0, "warning": "w"}
    search["candidates"] = [{"lr": 1.0, "loss": None, "reason": "r"}]
    series = {"kind": "line", "label": "series", "x": [1.0], "y": [2.0]}
    panel = {"title": "panel", "xlabel": "x", "ylabel": "y", "series": [series], "notes": ["n"]}
    texts = {key: key for key in ("title", "paper", "scale", "caption", "missing")}
    return {"figure": "fig04", **texts, "search": [search], "environments": [{"k": "e"}], "panels": [panel], **changes}


def claim_row(**changes):
    """A row of claims.json with text in every field."""
    texts = {key: key for key in ("figure", "claim", "scale", "statement", "reason")}
    return {**texts, "verdict": "not run", "measured": None, "comparison": "<=", "threshold": 1.0, **changes}


def write_tables(out, record, rows):
    """Write these as the files of a reproduction."""
    (out / "figures").mkdir()
    (out / "figures" / "fig04.json").write_text(json.dumps(record))
    (out / "claims.json").write_text(json.dumps(rows))


def poisoned(value):
    """Every text in a table, and every key of an environment, with markup in front; names and verdicts as they are."""
    if isinstance(value, dict):
        return {HOSTILE + k if k == "k" else k: poisoned(v) if k != "verdict" else v for k, v in value.items()}
    if isinstance(value, list):
        return [poisoned(v) for v in value]
    return HOSTILE + value if isinstance(value, str) and value not in ("fig04", "<=", "line") else value


def test_markup_in_any_field_is_text(tmp_path):
    """Every string of every file, and the page's title, is shown as text: the page has no element of theirs."""
    record, row = poisoned(figure_record()), poisoned(claim_row())
    write_tables(tmp_path, record, [row])
    (tmp_path / "figures" / "fig04.png").write_bytes(b"<script>")
    page = Page(write_report(tmp_path, title=HOSTILE + "page").read_text())
    assert programs(page) == OURS
    words = " ".join(page.words)
    for name in ("page", "title", "paper", "scale", "caption", "p", "v", "o", "w", "r", "k", "e", "claim", "statement"):
        assert HOSTILE + name in words
    links = [link for link in page.loads if not link.startswith(("data:", "figures/fig04."))]
    assert set(links) == {"#content", "#fig04", f"#{HOSTILE}figure"}
    (data,) = [json.loads(text) for kind, text in page.scripts if kind == "application/json"]
    assert data[0]["series"][0]["label"] == HOSTILE + "series"


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "fig05", "fig04.png", "Fig04", ""])
def test_a_figure_reads_its_own_files_only(tmp_path, name):
    """A record that names files elsewhere is damaged; nothing of them is in the page."""
    (tmp_path / "secret.png").write_bytes(b"secret")
    out = tmp_path / "a" / "b"
    out.mkdir(parents=True)
    write_tables(out, figure_record(figure=name), [])
    with pytest.raises(
        DamagedError, match=r"fig04\.json is damaged: content\.figure: expected the file's own name.*delete it"
    ):
        write_report(out)


@pytest.mark.parametrize("field", sorted(figure_record()))
@pytest.mark.parametrize("value", [..., 7, ["x"], {"x": 1}, [[]]])
def test_a_damaged_record_is_named(tmp_path, field, value):
    """A record without a field, or with another type in it, is one line: the file, the field and the remedy."""
    record = figure_record(**({} if value is ... else {field: value}))
    if value is ...:
        del record[field]
    write_tables(tmp_path, record, [])
    if value is ... and field == "panels":  # the only optional one
        assert write_report(tmp_path).exists()
        return
    with pytest.raises(DamagedError, match=rf"fig04\.json is damaged: .*{field}.*delete it"):
        write_report(tmp_path)


@pytest.mark.parametrize("field", sorted(claim_row()))
@pytest.mark.parametrize("value", [..., ["x"], {"x": 1}, "other"])
def test_a_damaged_claim_is_named(tmp_path, field, value):
    """The same for a row of claims.json, read by the report and by the next reproduction."""
    row = claim_row(**({} if value is ... else {field: value}))
    if value is ...:
        del row[field]
    write_tables(tmp_path, figure_record(), [row])
    if value == "other" and field not in ("measured", "threshold"):
        assert write_report(tmp_path).exists()
        return
    for read in (write_report, lambda out: write_claims(out, [])):
        with pytest.raises(DamagedError, match=rf"claims\.json is damaged: content\[0\].*{field}.*delete it"):
            read(tmp_path)


@pytest.mark.parametrize("content", ["7", "{}", '"x"', "[1]", "[[]]"])
def test_tables_of_another_shape_are_named(tmp_path, content):
    """JSON that is no list of tables is damage, too."""
    (tmp_path / "claims.json").write_text(content)
    with pytest.raises(DamagedError, match=r"claims\.json is damaged: .*delete it"):
        write_report(tmp_path)


def test_an_empty_reproduction_has_a_page(tmp_path):
    """A report of nothing is a page that counts nothing."""
    page = Page(write_report(tmp_path).read_text())
    assert page.words.count("0") == len(VERDICTS)


def test_a_damaged_file_is_named(tmp_path):
    """A file under OUT that is not JSON is named, with the remedy."""
    (tmp_path / "claims.json").write_text("{")
    with pytest.raises(DamagedError, match=r"claims\.json.*delete it"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.1), 0.1),
        (float("inf"), None),
        (np.array([[1, 2]]), [[1, 2]]),
        ({"a": (np.nan, True, None)}, {"a": [None, True, None]}),
        (10.0**-2.5, 0.003162278),
    ],
)
def test_plain(value, expected):
    """Numbers become what JSON can hold, to seven digits; what is not finite becomes null."""
    assert plain(value) == expected


def add_rows(out: Path, number: int) -> None:
    for i in range(20):
        add_timing(out, {"number": number, "row": i})


def test_two_processes_writing_into_one_folder_lose_nothing(tmp_path: Path) -> None:
    """Rows that four processes add to timing.json at the same time are all there, each process's in order."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=add_rows, args=(tmp_path, number)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    rows = json.loads((tmp_path / "timing.json").read_text())
    assert len(rows) == 80
    for number in range(4):
        assert [row["row"] for row in rows if row["number"] == number] == list(range(20))


def test_exact_claims_are_counted_apart_in_the_page(tmp_path):
    """The totals of the page have a button of their own for identities; old rows without a kind are measurements."""
    new = Claim("fig99", "c", "s", 1.0, "<=", 2.0, "quick", per_seed=(0.5, 1.0, 1.5), kind="exact", quote="section 9")
    rows = [
        {**new.to_dict(), "claim": "one"},
        {k: v for k, v in new.to_dict().items() if k not in ("per_seed", "margin", "kind", "quote")},
    ]
    (tmp_path / "claims.json").write_text(json.dumps(rows))
    page = write_report(tmp_path).read_text()
    tally = dict(re.findall(r'data-verdict="([^"]*)" class="[^"]*"><b>(\d+)</b>', page))
    assert tally == {**dict.fromkeys(VERDICTS, "0"), "reproduced": "1", "exact, reproduced": "1"}
    assert "0.5, 1, 1.5" in page
    assert "section 9" in page
    assert page.count('data-verdict="exact, reproduced"') == 3  # the button, and a row in both tables
