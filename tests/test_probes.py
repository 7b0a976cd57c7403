"""Probes: they measure what they say, at the steps they say, along the selected runs only, and change nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from heavytail.analysis.curvature import sample_classes
from heavytail.errors import SpecError
from heavytail.experiment.preset import SCALES
from heavytail.experiment.registry import Component, registry
from heavytail.experiment.spec import RunSpec
from heavytail.experiment.store import Array, RunStore
from heavytail.experiment.sweep import Sweep
from heavytail.results.figure import all_figures
from heavytail.results.results import MissingRuns, Results, SweepRef
from heavytail.train.engine import build_model, load_data, train
from heavytail.train.options import Options
from heavytail.train.runner import search
from tests.problems import missing_steps, tiny, tiny_preset
from tests.reference import hessian as reference

PROBES = tuple(
    Component(name, {"at": (0, 2, 5)})
    for name in ("head-blocks", "mirrored-head-blocks", "hessian-entries", "proposition-2")
)
SWEEP = """
seeds = [0, 1]
lr = { decades = [-3, -1], refine = 1 }
probes = [{ name = "head-blocks", at = [0, 4] }]
"""
PRESET = tiny_preset(4, SWEEP, 'name = "gd"\nmomentum = 0.9', 'name = "adam"\nbeta1 = 0.9')


class Quiet:
    """A display that shows nothing and remembers what was started."""

    def __init__(self) -> None:
        self.specs: list[RunSpec] = []

    def started(self, spec: RunSpec) -> None:
        self.specs.append(spec)

    def progressed(self, spec: RunSpec, step: int, loss: float) -> None:
        """Nothing to see."""

    def finished(self, spec: RunSpec, status: str) -> None:
        """Nothing to see."""


def arrays_of(spec: RunSpec, folder: Path) -> tuple[dict[str, Array], dict[str, Array]]:
    """What a run recorded, and its checkpoint."""
    store = RunStore(folder)
    history = train(spec, store, data_dir=folder)
    partial = store.load_partial(replace(spec, steps=spec.steps + 1))
    assert partial is not None
    return history.arrays, partial[2]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batch_size": 6, "microbatch": 4},
        {
            "data": {"name": "stdlib-text", "max_tokens": 400, "max_vocab": 20},
            "model": {"name": "transformer", "width": 8, "mlp": 8, "dropout": 0.3},
            "optim": "adam",
        },
    ],
    ids=["full batch", "mini-batches", "dropout"],
)
def test_probes_change_nothing(changes: dict[str, object], tmp_path: Path) -> None:
    """With every probe, losses and the last checkpoint (parameters, optimizer, generators) are the same bits."""
    spec = tiny(**changes)
    plain, checkpoint = arrays_of(spec, tmp_path / "plain")
    probed, probed_checkpoint = arrays_of(replace(spec, probes=PROBES), tmp_path / "probed")
    assert any(name.startswith("probe/") for name in probed)
    probed = {name: value for name, value in probed.items() if not name.startswith("probe/")}
    for before, after in ((plain, probed), (checkpoint, probed_checkpoint)):
        assert before.keys() == after.keys()
        for name in before:
            assert before[name].tobytes() == after[name].tobytes(), name


def test_a_probed_run_is_found_finished(tmp_path: Path) -> None:
    """The store has a run with probes, and does not train it again."""
    spec, store = tiny(probes=[p.to_dict() for p in PROBES]), RunStore(tmp_path)
    train(spec, store, data_dir=tmp_path)
    assert missing_steps(store, spec) == []
    assert store.outcome(spec) is not None
    assert missing_steps(store, replace(spec, probes=(Component("head-blocks", {"at": (1,)}),))) != []


def test_probes_measure_the_head(tmp_path: Path) -> None:
    """At step 0 the probes hold what automatic differentiation says of the initial head, its mirror image and zero."""
    spec = tiny(precision="float64", probes=[p.to_dict() for p in PROBES])
    arrays = train(spec, RunStore(tmp_path), data_dir=tmp_path).arrays
    data = load_data(spec, tmp_path)
    head = build_model(spec, data).double().head
    X, y = data.train.inputs.double(), data.train.targets
    for name, sign in (("head-blocks", 1.0), ("mirrored-head-blocks", -1.0)):
        gradient, hessian, _, _ = reference.head_derivatives(X, y, sign * head.weight, sign * head.bias)
        assert arrays[f"probe/{name}/step"].tolist() == [0, 2, 5]
        np.testing.assert_allclose(arrays[f"probe/{name}/grad_norm"][0], gradient.norm(dim=1), rtol=1e-10)
        np.testing.assert_allclose(arrays[f"probe/{name}/trace"][0], torch.einsum("kdkd->k", hessian), rtol=1e-10)
    hessian = reference.head_derivatives(X, y, head.weight, head.bias)[1]
    inputs = np.linspace(0, 31, 4).astype(int)
    for name in ("uniform", "log-uniform"):
        classes = sample_classes(data.counts.numpy(), 40, name)  # type: ignore[arg-type]
        expected = hessian[classes][:, inputs][:, :, classes][..., inputs].reshape(28, 28)
        measured = arrays[f"probe/hessian-entries/{name.replace('-', '_')}"][0]
        traces = arrays[f"probe/hessian-entries/{name.replace('-', '_')}_traces"][0]
        np.testing.assert_allclose(measured, expected, rtol=1e-6)
        np.testing.assert_allclose(traces, torch.einsum("kdjd->kj", hessian)[classes][:, classes], rtol=1e-6)
    gradient, hessian, _, _ = reference.head_derivatives(X, y, 0 * head.weight, 0 * head.bias)
    for kind, value in (("grad_norm", gradient.norm(dim=1)), ("trace", torch.einsum("kdkd->k", hessian))):
        np.testing.assert_allclose(arrays[f"probe/proposition-2/zero_{kind}"][0], value, rtol=1e-10)
        np.testing.assert_allclose(arrays[f"probe/proposition-2/predicted_{kind}"][0], value, rtol=1e-10)


def test_steps_do_not_depend_on_the_length_of_the_run() -> None:
    """A longer run measures the same steps and more; `at` and `every` add up."""
    probe = registry("probe").make(Component("head-blocks", {"at": [0, 7, 50], "every": 5}))
    assert probe.steps(12) == [0, 5, 7, 10]
    assert probe.steps(50)[:4] == probe.steps(12)
    for settings in ({"at": [-1]}, {"every": -1}, {"at": []}):
        with pytest.raises(SpecError, match=r"probe\.at"):
            registry("probe").make(Component("head-blocks", settings))
    with pytest.raises(SpecError, match=r"probe\.classes"):
        registry("probe").make(Component("hessian-entries", {"classes": 0}))


def test_two_probes_of_one_name_are_refused() -> None:
    """Their arrays would overwrite each other."""
    with pytest.raises(SpecError, match="each name once"):
        tiny(probes=[{"name": "head-blocks"}, {"name": "head-blocks", "scale": -1.0}])


def test_only_the_selected_runs_are_probed(tmp_path: Path) -> None:
    """A search trains its grid without probes, then the runs of the verdict seeds of each optimizer with them."""
    (tmp_path / "mine.toml").write_text(PRESET)
    ref = SweepRef("mine", ("gd+m", "adam+m"), probed=True)
    results = Results(RunStore(tmp_path), "quick", presets=tmp_path)
    sweep = results.sweep(ref)
    options, shown = Options(tmp_path, workers=1), Quiet()
    search([sweep.unprobed()], results.store, options, shown)
    assert not any(spec.probes for spec in shown.specs)
    grid = len(shown.specs)
    with pytest.raises(MissingRuns, match="not measured"):
        results.probed(ref, "adam+m")
    search([sweep], results.store, options, shown)
    probed = shown.specs[grid:]
    assert len(probed) == 4
    for place, label in enumerate(ref.optim):
        best = sweep.best(label, results.store.outcome)
        assert best is not None
        assert best.chosen is not None
        assert sweep.verdict(best) == tuple(probed[2 * place : 2 * place + 2])
        assert [spec.key for spec in sweep.verdict(best)] == [spec.key for spec in best.chosen.specs]
        for seed in (0, 1):
            history = results.for_seed(seed).probed(ref, label)
            assert (history.spec.seed, history.arrays["probe/head-blocks/step"].tolist()) == (seed, [0, 4])
    assert sweep.propose(results.store.outcome) == []
    search([sweep, sweep.unprobed()], results.store, options, shown)
    assert len(shown.specs) == grid + 4


def test_a_need_without_probes_does_not_pay_for_them() -> None:
    """A figure that only needs the losses does not make the search measure anything."""
    assert SweepRef("cnn", probed=True).load("quick").probes
    assert SweepRef("cnn").load("quick").probes == ()


def test_a_fixed_step_size_is_measured_in_its_only_run() -> None:
    """Without a search the runs of the verdict seeds carry the probes from the start."""
    sweep = Sweep.load("linear-path", scale="small")
    assert [(s.seed, s.probes) for s in sweep.propose(lambda _: None)] == [(k, sweep.probes) for k in (11, 12, 13)] * 2
    assert all(s.probes == () for s in sweep.unprobed().propose(lambda _: None))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("ref", sorted({n for f in all_figures() for n in f.sweeps if n.probed}, key=repr), ids=repr)
def test_figures_see_the_end_of_their_runs(ref: SweepRef, scale: str) -> None:
    """What a figure calls the end is the last step at every scale, and every probe and its settings exist."""
    sweep = ref.load(scale)
    spec = replace(sweep.spec(sweep.arms[0], 0.0, 0), probes=sweep.probes)
    assert spec.probes
    for component in spec.resolved.probes:
        if component.name.endswith("head-blocks"):
            assert registry("probe").make(component).steps(spec.steps)[-1] == spec.steps
