"""The page of theorem 3: its numbers are those of heavytail.analysis.theory at every position of the sliders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heavytail.analysis import theory
from tests.browser.conftest import PHONE, Tab, pixels

pytestmark = pytest.mark.browser

SLIDERS = ("c", "exponent", "gd", "sign")


def shown(tab: Tab) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The settings of the sliders, and the panels that are drawn."""
    tab.page.wait_for_timeout(60)  # drawn in the next frame
    state = tab.page.evaluate("theory.shown()")
    return state["settings"], state["panels"]


def move(tab: Tab, slider: str, share: float) -> None:
    """Move a slider to a share of its way."""
    tab.page.locator(f"#{slider}").evaluate(
        "(range, share) => { range.value = Math.round(share * range.max); range.dispatchEvent(new Event('input')); }",
        share,
    )


@pytest.mark.parametrize(
    "positions", [(0.0, 0.5, 0.3, 0.5), (0.5, 0.0, 0.0, 0.0), (0.7, 0.35, 0.6, 1.0), (1, 1, 1, 0.2)]
)
@pytest.mark.parametrize("groups", [False, True])
def test_the_numbers_are_the_theorys(
    theory_page: Path, visit: Callable[..., Tab], positions: tuple[float, ...], groups: bool
) -> None:
    """Lines of both flows, by class and by group, and steps to a loss of 0.1: as in the package to 1e-9."""
    tab = visit(theory_page)
    for slider, share in zip(SLIDERS, positions, strict=True):
        move(tab, slider, share)
    tab.page.set_checked("#groups", groups)
    settings, (gradient, sign, reach) = shown(tab)
    c, pi = settings["c"], theory.zipf(settings["c"], settings["exponent"])
    member = np.floor(5 * (np.cumsum(pi) - pi) + 1e-9).astype(int)

    def mean(t: np.ndarray, share: np.ndarray) -> np.ndarray:
        return theory.gradient_flow_loss(t[:, None], share, c) @ share / share.sum()

    for panel, rate in ((gradient, settings["gd"]), (sign, settings["sign"])):
        lines = [one for one in panel["series"] if one["kind"] == "line"]
        assert [one["label"] for one in lines][-1] == "all"
        for one in lines:
            t = rate * np.array(one["x"])
            name, _, number = one["label"].partition(" ")
            if panel is sign:
                expected = theory.sign_flow_loss(t, c)
            elif name == "class":
                expected = theory.gradient_flow_loss(t, pi[int(number) - 1], c)
            else:
                expected = mean(t, pi if name == "all" else pi[member == int(number) - 1])
            drawn = np.array([np.nan if y is None else y for y in one["y"]])
            assert np.array_equal(np.isnan(drawn), expected <= 1e-12)
            np.testing.assert_allclose(drawn[expected > 1e-12], expected[expected > 1e-12], rtol=1e-9)
    share = np.array(reach["series"][0]["x"])
    assert np.isclose(share[:, None], pi, rtol=1e-12).any(axis=1).all()
    steps = [one["y"] for one in reach["series"]]
    loss = min(0.1, np.log(c))
    np.testing.assert_allclose(steps[0], theory.gradient_flow_time(loss, share, c) / settings["gd"], rtol=1e-9)
    np.testing.assert_allclose(steps[1], theory.sign_flow_time(loss, c) / settings["sign"], rtol=1e-9)


def test_points_are_gradient_descent(theory_page: Path, visit: Callable[..., Tab]) -> None:
    """The points are gradient descent on the whole weight matrix, computed here by its gradient, to 1e-9."""
    tab = visit(theory_page)
    for slider, share in zip(SLIDERS, (0.22, 0.5, 0.6, 0.5), strict=True):
        move(tab, slider, share)
    settings, (gradient, *_) = shown(tab)
    c = settings["c"]
    pi, weights = theory.zipf(c, settings["exponent"]), np.zeros((c, c))
    losses = {}
    for step in range(1, 1001):
        logits = np.exp(weights - weights.max(axis=0))
        weights -= settings["gd"] * pi * (logits / logits.sum(axis=0) - np.eye(c))
        losses[step] = np.log(np.exp(weights - np.diag(weights)).sum(axis=0))
    compared = 0
    for one in gradient["series"]:
        if one["kind"] == "points":
            for step, loss in zip(one["x"], one["y"], strict=True):
                if step in losses and loss is not None:
                    assert loss == pytest.approx(losses[step][int(one["label"].split()[1]) - 1], rel=1e-9)
                    compared += 1
    assert compared > 20


def test_sliders_by_keyboard(theory_page: Path, visit: Callable[..., Tab]) -> None:
    """Arrow keys move each slider, its value is announced, and the charts change; the sentence follows."""
    tab = visit(theory_page)
    charts, said = tab.page.locator(".chart"), tab.page.locator(".said")
    for slider, chart in (("c", 0), ("exponent", 0), ("gd", 0), ("sign", 1)):
        control = tab.page.locator(f"#{slider}")
        control.focus()
        before, value, said = (
            pixels(charts.nth(chart)),
            control.get_attribute("aria-valuetext"),
            tab.page.locator(".said"),
        )
        words = said.inner_text()
        tab.page.keyboard.press("ArrowLeft")
        tab.page.wait_for_timeout(100)
        assert control.get_attribute("aria-valuetext") != value
        assert pixels(charts.nth(chart)) != before
        assert said.inner_text() != words


def test_it_fits_a_phone(theory_page: Path, visit: Callable[..., Tab]) -> None:
    """At 360 pixels no part is wider than the page, at either end of every slider."""
    tab = visit(theory_page, PHONE)
    for share in (0.0, 1.0):
        for slider in SLIDERS:
            move(tab, slider, share)
        tab.page.wait_for_timeout(150)
        assert tab.page.evaluate("document.documentElement.scrollWidth") == 360
        assert tab.page.locator(".chart canvas").count() == 3


def test_without_scripts(theory_page: Path, visit: Callable[..., Tab]) -> None:
    """Without JavaScript the page says what is missing, and shows the formulas."""
    tab = visit(theory_page, java_script_enabled=False)
    assert tab.page.get_by_text("need JavaScript").is_visible()
    assert tab.page.get_by_text("(c − 1)/(c π t)").first.is_visible()
