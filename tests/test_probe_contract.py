"""What every registered probe must do, whoever writes it, in its small configuration, on the smallest run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from heavytail.experiment.registry import Component
from heavytail.experiment.store import History, RunStore
from heavytail.probes import REGISTRY
from heavytail.train.engine import train
from tests.problems import tiny


def small(name: str) -> Component:
    """A probe's small configuration."""
    return Component(name, getattr(REGISTRY.recipe(name), "small", {}))


def run(folder: Path, *probes: Component) -> History:
    """Train the smallest run with some probes."""
    return train(tiny(probes=[probe.to_dict() for probe in probes]), RunStore(folder), data_dir=folder)


@pytest.mark.parametrize("name", REGISTRY.names())
def test_probe_measures_and_changes_nothing(name: str, tmp_path: Path) -> None:
    """A run with the probe equals the run without it, bit for bit; every array has one row per measured step."""
    plain, probed = run(tmp_path / "plain"), run(tmp_path / "probed", small(name))
    for key, value in plain.arrays.items():
        np.testing.assert_array_equal(probed.arrays[key], value)
    arrays = {key: value for key, value in probed.arrays.items() if key.startswith(f"probe/{name}/")}
    steps = arrays.pop(f"probe/{name}/step")
    assert steps.tolist() == list(REGISTRY.make(small(name)).steps(probed.spec.steps))
    assert arrays
    for value in arrays.values():
        assert len(value) == len(steps)
        assert np.isfinite(value).all()


@pytest.mark.parametrize("name", REGISTRY.names())
def test_probe_steps_do_not_depend_on_the_length_of_the_run(name: str) -> None:
    """The steps are ascending, within the run, and those of a longer run begin with them."""
    probe = REGISTRY.make(small(name))
    longest = list(probe.steps(500))
    for total in (0, 1, 7, 100):
        steps = list(probe.steps(total))
        assert steps == [step for step in longest if step <= total]
    assert longest == sorted(set(longest))
    assert longest[0] >= 0
