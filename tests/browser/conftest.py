"""A headless Chromium for the tests of pages (make test-browser)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from heavytail.cli import main

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}


@dataclass
class Tab:
    """A page in the browser, what it requested and what went wrong."""

    page: Any
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-browser")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS, headless=True)
        yield started
        started.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Tab]]:
    """Open a file; at the end of the test no error was logged, and only the file itself was requested."""
    tabs: list[tuple[Tab, Path]] = []

    def visit(file: Path, viewport: dict[str, int] = DESKTOP, **options: Any) -> Tab:
        context = browser.new_context(viewport=viewport, **options)
        tab = Tab(context.new_page())
        tab.page.on("request", lambda request: tab.requests.append(request.url))
        tab.page.on("pageerror", lambda error: tab.errors.append(str(error)))
        tab.page.on("console", lambda line: tab.errors.append(line.text) if line.type in ("error", "warning") else None)
        tab.page.goto(file.as_uri())
        tabs.append((tab, file))
        return tab

    yield visit
    for tab, file in tabs:
        assert tab.errors == []
        assert {url for url in tab.requests if not url.startswith("data:")} == {file.as_uri()}
        tab.page.context.close()


@pytest.fixture(scope="session")
def theory_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of theorem 3, as the command writes it."""
    file = tmp_path_factory.mktemp("theory") / "theory.html"
    assert main(["theory", "--out", str(file)]) == 0
    return file


def pixels(chart: Any) -> str:
    """What a chart shows."""
    content: str = chart.locator("canvas").evaluate("canvas => canvas.toDataURL()")
    return content
