"""The pages of `reproduce` and of the monitor in a real browser (make test-browser)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heavytail.report.difference import Difference, Side, write_difference
from heavytail.report.page import write_report
from tests.browser.conftest import DESKTOP, PHONE, Tab, pixels
from tests.problems import ROOT

pytestmark = pytest.mark.browser
HOSTILE = "<img src=x onerror=\"document.title='run'\"></script><script>document.title='run'</script>"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the published reproduction at small scale: every figure and every claim."""
    out = tmp_path_factory.mktemp("small")
    shutil.copytree(ROOT / "docs" / "results" / "small", out, dirs_exist_ok=True)
    return write_report(out)


@pytest.fixture(scope="module")
def difference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the difference between the published reproductions at small and quick scale."""
    file = tmp_path_factory.mktemp("difference") / "comparison.html"
    published = ROOT / "docs" / "results"
    write_difference(Difference(Side.read(published / "small"), Side.read(published / "quick")), file)
    return file


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a figure with markup in every text, and log-log axes with zeros."""
    out = tmp_path_factory.mktemp("hostile")
    (out / "figures").mkdir()
    series = [
        {"kind": "line", "label": HOSTILE, "x": [0, 1, 2], "y": [0.0, 1.0, None], "colour": HOSTILE},
        {"kind": "band", "label": HOSTILE, "x": [0, 1, 2], "low": [0.0, 0.5, 1.0], "high": [1.0, 2.0, 3.0]},
        {"kind": "points", "label": "same x", "x": [1, 1, 1], "y": [1.0, 2.0, 3.0]},
        {"kind": "steps", "label": "steps", "edges": [0, 1, 2], "y": [1.0, 2.0]},
        {"kind": "level", "label": "level", "y": 2.0},
        {"kind": "line", "label": "empty", "x": [], "y": []},
    ]
    panel = {"title": HOSTILE, "xlabel": HOSTILE, "ylabel": HOSTILE, "notes": [HOSTILE], "series": series}
    panels = [panel, panel | {"xscale": "log", "yscale": "log", "ylim": [0.1, 10.0]}]
    texts = dict.fromkeys(("title", "paper", "scale", "caption"), HOSTILE)
    record = {"figure": "fig04", **texts, "missing": None, "search": [], "environments": [{HOSTILE: HOSTILE}]}
    (out / "figures" / "fig04.json").write_text(json.dumps(record | {"panels": panels}))
    shutil.copy(ROOT / "docs" / "results" / "small" / "figures" / "fig04.png", out / "figures")
    texts = dict.fromkeys(("claim", "statement", "reason", "scale"), HOSTILE)
    claim = {"figure": "fig04", **texts, "verdict": "not run", "measured": None, "comparison": "<=", "threshold": 1.0}
    (out / "claims.json").write_text(json.dumps([claim]))
    return write_report(out, title=HOSTILE)


@pytest.fixture(scope="module")
def monitored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a monitored training."""
    import torch

    from heavytail import Journal, Monitor
    from heavytail.monitor.page import write_monitored

    folder = tmp_path_factory.mktemp("monitored")
    monitor, journal = Monitor(counts=[60, 30, 6, 3, 1, 0], num_groups=3), Journal(folder)
    for step in range(4):
        monitor.update(step * torch.eye(6), torch.arange(6))
        journal.write(step, monitor.compute())
        monitor.reset()
    return write_monitored(folder)


@pytest.fixture(params=["report", "hostile", "monitored", "difference", "theory_page"])
def any_page(request: pytest.FixtureRequest) -> Path:
    """Every kind of page."""
    page: Path = request.getfixturevalue(request.param)
    return page


def drawn(tab: Tab, figure: str) -> Any:
    """The section of a figure, its charts drawn."""
    section = tab.page.locator(f"#{figure}")
    section.scroll_into_view_if_needed()
    section.locator(".chart canvas").first.wait_for()
    return section


@pytest.mark.parametrize(  # contrast depends on the scheme alone, layout on the window alone
    ("viewport", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")], ids=["desktop-light", "phone-dark"]
)
def test_no_serious_fault_of_accessibility(
    any_page: Path, visit: Callable[..., Tab], viewport: dict[str, int], scheme: str
) -> None:
    """axe-core finds no serious or critical fault in any page; none is wider than the window."""
    from axe_playwright_python.sync_playwright import Axe

    tab = visit(any_page, viewport, color_scheme=scheme)
    if any_page.name == "comparison.html" or any_page.parent.name.startswith("small"):
        drawn(tab, "fig05")
    faults = Axe().run(tab.page).response["violations"]
    serious = [(f["id"], f["nodes"][0]["html"][:300]) for f in faults if f["impact"] in ("serious", "critical")]
    assert serious == []
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]


def test_the_whole_page_fits_a_phone(report: Path, visit: Callable[..., Tab]) -> None:
    """With every chart drawn and every part opened, the page has no horizontal scroll bar at 360 pixels."""
    tab = visit(report, PHONE)
    tab.page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    for name in ("fig01", "fig08", "fig22", "fig23", "prop2", "table1", "thm3"):
        tab.page.locator(f"#{name}").scroll_into_view_if_needed()
        tab.page.wait_for_timeout(100)
        assert tab.page.evaluate("document.documentElement.scrollWidth") == 360, name
    assert tab.page.locator(".chart").count() > 10


def test_all_figures_are_small_enough(report: Path) -> None:
    """The page of all figures has at most 8 MB."""
    assert report.stat().st_size < 8e6


def test_markup_does_not_run(hostile: Path, visit: Callable[..., Tab]) -> None:
    """Markup in any text is shown as text, in charts and in their controls, too."""
    tab = visit(hostile)
    section = drawn(tab, "fig04")
    section.locator(".plot").first.hover()
    assert tab.page.title() == HOSTILE
    assert tab.page.locator("img[src=x]").count() == 0
    assert section.locator(".keys button").first.inner_text().startswith("<img")


def test_search(report: Path, visit: Callable[..., Tab]) -> None:
    """Search shows the figures and claims that have every word; Escape shows all."""
    tab = visit(report)
    sections = tab.page.locator("section[data-figure]:visible")
    every = sections.count()
    tab.page.keyboard.press("/")
    tab.page.keyboard.type("hessian mirrored")
    assert sections.evaluate_all("all => all.map(one => one.id)") == ["fig27"]
    assert tab.page.locator(".index li:visible").count() == 1
    assert tab.page.locator("#count").inner_text() == f"1 of {every} figures"
    tab.page.keyboard.press("Escape")
    assert sections.count() == every
    tab.page.fill("#find", "rare-gap")
    rows = tab.page.locator("section[data-figure] .claims tbody tr:visible")
    assert rows.count() > 0
    assert all("rare-gap" in text for text in rows.all_inner_texts())


@pytest.mark.parametrize("verdict", ["reproduced", "not reproduced", "not run"])
def test_verdicts_are_filters(report: Path, visit: Callable[..., Tab], verdict: str) -> None:
    """The total of a verdict is a button that shows its claims, as many as it counts."""
    tab = visit(report)
    button = tab.page.locator(f".tally button[data-verdict='{verdict}']")
    button.click()
    rows = tab.page.locator("section[data-figure] .claims tbody tr:visible")
    assert rows.count() == int(button.locator("b").inner_text())
    assert set(rows.evaluate_all("all => all.map(row => row.dataset.verdict)")) <= {verdict}


def test_keyboard(report: Path, visit: Callable[..., Tab]) -> None:
    """j and k go to the next and previous figure; in the search box they are letters."""
    page = visit(report).page
    first, second, third = sorted(file.stem for file in (report.parent / "figures").glob("*.json"))[:3]
    for key, figure in (("j", first), ("j", second), ("j", third), ("k", second)):
        page.keyboard.press(key)
        assert page.evaluate("document.activeElement.id") == figure
    page.keyboard.press("/")
    page.keyboard.type("jk")
    assert page.input_value("#find") == "jk"
    page.keyboard.press("Escape")
    page.evaluate("document.activeElement.blur()")


def test_controls_change_the_chart(report: Path, visit: Callable[..., Tab]) -> None:
    """Each control of a chart changes what it shows, and a second click takes it back."""
    chart = drawn(visit(report), "fig04").locator(".chart").nth(1)
    for control in (chart.get_by_text("log x"), chart.get_by_text("log y"), chart.locator(".keys button").first):
        before, state = pixels(chart), control.get_attribute("aria-pressed")
        control.click()
        chart.page.wait_for_timeout(50)
        assert pixels(chart) != before
        assert control.get_attribute("aria-pressed") != state
        control.click()
        chart.page.wait_for_timeout(50)
        assert pixels(chart) == before


def test_zoom_and_values(report: Path, visit: Callable[..., Tab]) -> None:
    """The legend shows the values at the pointer; dragging zooms, and the button takes it back."""
    tab = visit(report)
    chart = drawn(tab, "fig04").locator(".chart").nth(1)
    box = chart.locator(".u-over").bounding_box()
    before = pixels(chart)
    tab.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    record = json.loads((report.parent / "figures" / "fig04.json").read_text())
    overall = next(panel for panel in record["panels"] if panel["title"] == "overall")
    gd = next(one for one in overall["series"] if one["label"] == "GD" and one["kind"] == "line")
    shown = chart.locator(".keys button", has_text="GD").locator("output").inner_text()
    assert np.isclose(float(shown), gd["y"][50], rtol=0.02)
    tab.page.mouse.down()
    tab.page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + box["height"] * 0.9, steps=4)
    tab.page.mouse.up()
    tab.page.mouse.move(0, 0)
    tab.page.wait_for_timeout(50)
    assert pixels(chart) != before
    chart.get_by_text("reset zoom").click()
    tab.page.wait_for_timeout(50)
    assert pixels(chart) == before


@pytest.mark.parametrize("figure", ["fig07", "fig23", "fig24", "fig25", "fig26", "fig27"])
def test_steps_have_a_slider(report: Path, visit: Callable[..., Tab], figure: str) -> None:
    """The panels of one quantity at several steps are one chart with a slider over the steps."""
    chart = drawn(visit(report), figure).locator(".chart:has(input[type=range])").first
    slider, shown = chart.locator("input[type=range]"), chart.locator(".frame output")
    last, before = shown.inner_text(), pixels(chart)
    slider.focus()
    slider.press("Home")
    chart.page.wait_for_timeout(50)
    assert shown.inner_text() == "t = 0" != last
    assert pixels(chart) != before


def test_the_picture_can_be_chosen(report: Path, visit: Callable[..., Tab]) -> None:
    """A button shows the picture in place of the charts."""
    section = drawn(visit(report), "fig04")
    assert not section.locator(".picture img").is_visible()
    section.get_by_text("picture", exact=True).click()
    assert section.locator(".picture img").is_visible()
    assert not section.locator(".chart").first.is_visible()


def test_without_scripts(report: Path, visit: Callable[..., Tab]) -> None:
    """Without JavaScript every picture is there, and no control that does nothing."""
    tab = visit(report, java_script_enabled=False)
    assert tab.page.locator("#fig04 .picture img").is_visible()
    assert not tab.page.locator("#find").is_visible()


def test_print(report: Path, visit: Callable[..., Tab]) -> None:
    """Print has pictures, not charts, and no controls."""
    tab = visit(report)
    section = drawn(tab, "fig04")
    tab.page.emulate_media(media="print")
    assert section.locator(".picture img").is_visible()
    assert not section.locator(".chart").first.is_visible()
    assert not tab.page.locator("#find").is_visible()


def test_a_page_in_the_making_reloads(tmp_path: Path, visit: Callable[..., Tab]) -> None:
    """While runs are trained the page reads itself again, keeps the search, and stops when it is told to."""
    page = visit(write_report(tmp_path, reload=1)).page
    with page.expect_navigation(timeout=5000):
        pass
    page.uncheck("#reload")
    page.evaluate("window.mine = true")
    page.wait_for_timeout(1500)
    assert page.evaluate("window.mine")


def test_the_monitor_has_charts(monitored: Path, visit: Callable[..., Tab]) -> None:
    """The picture of a monitored training is interactive, too."""
    page = visit(monitored).page
    page.locator(".chart canvas").first.wait_for()
    assert page.locator(".chart h3").count() > 1


def test_two_results_are_side_by_side(difference: Path, visit: Callable[..., Tab]) -> None:
    """The page of two results has both pictures of a figure beside each other, both interactive, and fits a phone."""
    tab = visit(difference)
    drawn(tab, "fig04")
    pictures = tab.page.locator("#fig04 .picture")
    assert [text.split(":")[0] for text in pictures.locator("> h3").all_inner_texts()] == ["A", "B"]
    left, right = (pictures.nth(i).bounding_box() for i in range(2))
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]
    pictures.nth(1).locator(".chart canvas").first.wait_for()
    phone = visit(difference, PHONE).page
    for name in ("fig01", "fig04", "fig22", "fig28"):
        phone.locator(f"#{name}").scroll_into_view_if_needed()
        phone.wait_for_timeout(100)
        assert phone.evaluate("document.documentElement.scrollWidth") == 360, name


def test_changes_are_filtered(difference: Path, visit: Callable[..., Tab]) -> None:
    """The total of a kind of change is a button that shows the changes of this kind, as many as it counts."""
    tab = visit(difference)
    button = tab.page.locator(".tally button[data-verdict='no longer reproduced']")
    button.click()
    for rows in (tab.page.locator("#all tbody tr:visible"), tab.page.locator("section[data-figure] tbody tr:visible")):
        assert rows.count() == int(button.locator("b").inner_text()) > 0
        assert set(rows.evaluate_all("all => all.map(row => row.dataset.verdict)")) == {"no longer reproduced"}
