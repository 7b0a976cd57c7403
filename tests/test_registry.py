"""Parts, recipes and the checking of their settings."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heavytail.errors import SpecError
from heavytail.experiment.registry import Component, Registry, check_type

THINGS: Registry[Any] = Registry("thing", __name__)


@THINGS.register("tower", version=3)
@dataclass(frozen=True)
class Tower:
    height: float
    floors: int = 2
    roof: Literal["flat", "gabled"] = "flat"
    lift: bool = False
    colours: tuple[str, ...] = ()
    architect: str | None = None


@THINGS.register("tent")
@dataclass(frozen=True)
class Tent:
    edition: str = ""

    def pinned(self) -> Tent:
        return dataclasses.replace(self, edition=self.edition or "2024")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("adam", Component("adam")),
        ({"name": "adam", "beta2": 0.99}, Component("adam", {"beta2": 0.99})),
        (Component("gd"), Component("gd")),
        ({"weights": "inverse"}, Component("cross-entropy", {"weights": "inverse"})),
    ],
)
def test_a_part_is_a_name_a_table_or_itself(value: object, expected: Component) -> None:
    """The three spellings parse, and a table without a name takes the default one."""
    assert Component.parse(value, "loss", default="cross-entropy") == expected
    assert Component.parse(expected.to_dict(), "loss") == expected


@pytest.mark.parametrize("value", [3, None, ["adam"], {"beta2": 0.99}, {"name": 3}])
def test_what_is_no_part_is_refused_by_its_kind(value: object) -> None:
    """Anything else names the kind and what was given."""
    with pytest.raises(SpecError, match=r"optim: expected a name or a table with a name, got"):
        Component.parse(value, "optim")


def test_parsing_leaves_the_table_alone() -> None:
    """A preset's table is read many times."""
    table = {"name": "adam", "beta2": 0.99}
    Component.parse(table, "optim")
    assert table == {"name": "adam", "beta2": 0.99}


def test_make_checks_and_converts() -> None:
    """An int is a valid float, a list a valid tuple, and defaults stand for what is left out."""
    component = Component("tower", {"height": 3, "colours": ["red", "blue"], "architect": None})
    made = THINGS.make(component)
    assert made == Tower(3.0, colours=("red", "blue"))
    assert isinstance(made.height, float)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, r"thing 'tower' needs thing\.height \(float\)"),
        ({"height": "3"}, r"thing\.height: expected float, got '3'"),
        ({"height": True}, r"thing\.height: expected float, got True"),
        ({"height": 3, "floors": 2.0}, r"thing\.floors: expected int, got 2\.0"),
        ({"height": 3, "floors": True}, r"thing\.floors: expected int, got True"),
        ({"height": 3, "lift": 1}, r"thing\.lift: expected bool, got 1"),
        (
            {"height": 3, "roof": "gable"},
            r"unknown thing\.roof 'gable'; did you mean 'gabled'\? \(known: flat, gabled\)",
        ),
        ({"height": 3, "roof": 1}, r"thing\.roof: expected one of flat, gabled, got 1"),
        ({"height": 3, "colours": "red"}, r"thing\.colours: expected tuple\[str, \.\.\.\], got 'red'"),
        ({"height": 3, "colours": ["red", 1]}, r"thing\.colours: expected str, got 1"),
        ({"height": 3, "architect": 4}, r"thing\.architect: expected str \| None, got 4"),
        ({"hight": 3}, r"unknown setting of thing tower: 'hight'; did you mean 'height'\?"),
    ],
)
def test_a_wrong_setting_is_named(params: dict[str, Any], message: str) -> None:
    """The message names the field, what was given and what is allowed, on one line."""
    with pytest.raises(SpecError, match=message) as caught:
        THINGS.make(Component("tower", params))
    assert "\n" not in str(caught.value)


def test_a_wrong_name_finds_the_nearest() -> None:
    """A misspelt component names the one that was probably meant, and all there are."""
    with pytest.raises(SpecError, match=r"unknown thing 'towr'; did you mean 'tower'\? \(known: tent, tower\)"):
        THINGS.recipe("towr")
    with pytest.raises(SpecError, match=r"unknown thing 'xyz' \(known: tent, tower\)"):
        THINGS.version(Component("xyz"))


def test_resolve_fills_in_every_default() -> None:
    """Two spellings of the same settings resolve to the same part."""
    short, long = Component("tower", {"height": 3}), Component("tower", {"floors": 2, "height": 3.0, "roof": "flat"})
    assert THINGS.resolve(short) == THINGS.resolve(long)
    assert set(THINGS.resolve(short).params) == {f.name for f in dataclasses.fields(Tower)}
    assert THINGS.resolve(THINGS.resolve(short)) == THINGS.resolve(short)


def test_resolve_pins_content_that_settings_do_not_name() -> None:
    """A recipe with pinned() resolves to the content it stands for today; a content named already stays."""
    assert THINGS.resolve(Component("tent")) == Component("tent", {"edition": "2024"})
    assert THINGS.resolve(Component("tent", {"edition": "1999"})) == Component("tent", {"edition": "1999"})


def test_names_and_versions() -> None:
    """Names are sorted, versions are those registered, and no name is registered twice."""
    assert THINGS.names() == ["tent", "tower"]
    assert (THINGS.version(Component("tower", {"height": 1.0})), THINGS.version(Component("tent"))) == (3, 1)
    with pytest.raises(AssertionError, match="thing tent is registered twice"):
        THINGS.register("tent")(Tent)


@given(st.one_of(st.integers(), st.floats(), st.booleans(), st.text(), st.none(), st.lists(st.integers())))
def test_check_type_returns_the_type_or_an_error(value: object) -> None:
    """Whatever is given, what comes back has the type that was asked for."""
    for hint, accepted in ((int, int), (float, float), (str, str), (bool, bool)):
        try:
            checked = check_type(value, hint, "field")
        except SpecError:
            assert type(value) is not accepted
        else:
            assert type(checked) is accepted
            assert checked == value or value != value
