"""Optimizers by import path and by role: settings, keys, errors, state, processes, sweeps and the command line."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import Parameter

from heavytail import cli
from heavytail.errors import SpecError
from heavytail.experiment.spec import RunSpec
from heavytail.experiment.store import RunStore
from heavytail.experiment.sweep import Sweep
from heavytail.optim import REGISTRY
from heavytail.optim.by_role import Joined
from heavytail.optim.imported import recipe
from heavytail.train import engine
from heavytail.train.engine import build_optimizer, train
from tests import outside
from tests.problems import output, tiny, tiny_preset
from tests.test_engine import TwoRanks
from tests.test_model_contract import small_model
from tests.test_resume import assert_equal, spec, stopped_everywhere

MUON = "torch.optim.Muon"
MIXED = {"name": "by-role", "hidden": MUON, "norm": "sign", "rest": {"name": "adam", "lr_scale": 0.1}}
OPTIMIZERS: dict[str, Any] = {
    "torch": "torch.optim.RMSprop",
    "one written in ten lines": "tests.outside.TenLines",
    "state of every kind": "tests.outside:Nested",
    "sums in its groups": "tests.outside:Sums",
    "prodigy": "pytorch_optimizer:Prodigy",
    "settings passed on": "tests.outside:Kwargs",
    "matrices only": MUON,
    "by role": MIXED,
    "attributes of a part": {"name": "by-role", "head": "tests.outside:TenLines", "rest": "tests.outside:Nested"},
}
ON_A_HEAD_ALONE = {
    "by role": {"name": "by-role", "head": MUON, "rest": "adam"},
    "attributes of a part": {"name": "by-role", "head": "tests.outside:Nested"},
}


def key(optim: object) -> str:
    return tiny(optim=optim).key


def message(optim: object) -> str:
    with pytest.raises(SpecError) as error:
        tiny(optim=optim).resolved  # noqa: B018
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_key_covers_the_path_and_every_setting() -> None:
    """One optimizer has one key however its path and defaults are spelled; another setting or path has another."""
    assert key("torch.optim.SGD") == key("torch.optim:SGD") == key("torch.optim.sgd.SGD")
    assert key({"name": "torch.optim.SGD", "momentum": 0.0}) != key({"name": "torch.optim.SGD", "momentum": 0.5})
    betas = {"name": "torch.optim.Adam", "betas": [0.9, 0.999]}
    assert key(betas) == key("torch.optim.Adam") != key("torch.optim.AdamW")
    run = tiny(optim=betas)
    assert RunSpec.from_dict(run.resolved.to_dict()).key == run.key


def test_the_key_covers_the_settings_of_every_part() -> None:
    """The parts of an optimizer by role count with their defaults, their scale and their path."""
    assert key({"name": "by-role", "head": "adam"}) == key({"name": "by-role", "head": {"name": "adam", "beta1": 0.9}})
    keys = {key({"name": "by-role", "head": head}) for head in ("adam", "gd", {"name": "adam", "lr_scale": 0.5}, MUON)}
    assert len(keys) == 4
    run = tiny(optim=MIXED)
    assert RunSpec.from_dict(run.resolved.to_dict()).key == run.key


@pytest.mark.parametrize(
    ("optim", "expected"),
    [
        ("torch.optim.Adamm", r"unknown optimizer of module torch.optim 'Adamm'; did you mean 'Adam'\?"),
        (
            "nowhere.Adam",
            r"cannot import 'nowhere.Adam': no module named 'nowhere'; install it, or start in its folder",
        ),
        ("torch.nowhere:Adam", r"no module named 'torch.nowhere'"),
        ("tests..Adam", r"expected package.module:Class, got 'tests..Adam'"),
        (
            "torch.nn.Linear",
            r"expected a subclass of torch.optim.Optimizer, got 'torch.nn.Linear', a subclass of Module",
        ),
        ("os.path.join", r"expected a subclass of torch.optim.Optimizer, got 'os.path.join', a function"),
        ({"name": "torch.optim.SGD", "momentun": 0.9}, r"'momentun'; did you mean 'momentum'\?"),
        ({"name": "torch.optim.SGD", "lr": 0.9}, r"unknown setting of optimizer torch.optim.SGD: 'lr'"),
        ({"name": "torch.optim.SGD", "nesterov": 1}, r"optim.nesterov: expected bool, got 1"),
        ({"name": "torch.optim.Adam", "betas": [2, 0.9]}, r"torch.optim:Adam cannot train .*Invalid beta parameter"),
        ({"name": "torch.optim.Adam", "betas": 0.9}, r"optim.betas: expected tuple.*, got 0.9"),
        ("tests.outside.NoStepSize", r"expected an optimizer with the setting lr, got tests.outside:NoStepSize .* eta"),
        ("tests.outside.Needs", r"optim 'tests.outside.Needs' needs optim.horizon"),
        ("torch.optim.LBFGS", r"torch.optim:LBFGS cannot train .*closure"),
        ({"name": "by-role", "head": "admm"}, r"unknown optimizer 'admm'; did you mean 'adam'"),
        ({"name": "by-role", "head": {"name": "adam", "lr_scale": 0}}, r"optim.head.lr_scale: expected a positive"),
        ({"name": "by-role", "head": {"name": "by-role"}}, r"optim.head: expected one optimizer, got by-role"),
    ],
    ids=str,
)
def test_errors_are_one_line(optim: object, expected: str) -> None:
    """Every mistake in a path or a setting is reported before training, with what is expected."""
    assert re.search(expected, message(optim)), message(optim)


def test_a_module_that_fails_to_import_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error inside a user's module is named, and a module in the working directory is found."""
    (tmp_path / "broken_optimizer.py").write_text("def x(:\n")
    (tmp_path / "good_optimizer.py").write_text("import torch\nclass Mine(torch.optim.SGD):\n    pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("elsewhere")  # so that sys.path is restored
    assert "SyntaxError" in message("broken_optimizer:X")
    assert tiny(optim="good_optimizer:Mine").resolved.optim.name == "good_optimizer:Mine"


@pytest.mark.parametrize("optim", OPTIMIZERS)
@pytest.mark.parametrize("model", ["linear", "transformer", "simple-vit"])
def test_interrupted_and_resumed_is_uninterrupted(model: str, optim: str, tmp_path: Path) -> None:
    """A run stopped before every step has the uninterrupted run's bits."""
    tables = OPTIMIZERS | (ON_A_HEAD_ALONE if model == "linear" else {})
    run = spec(model, "gd", optim=tables[optim])
    whole = train(run, RunStore(tmp_path / "whole"), data_dir=tmp_path)
    assert whole.status == "done"
    assert_equal(stopped_everywhere(run, RunStore(tmp_path / "stopped")), whole)


UNKEPT = ("parameter", "id", "named", "id of state", "deque", "counter", "generator", "inner", "views")


@pytest.mark.parametrize("kind", UNKEPT)
def test_a_run_that_cannot_be_continued_starts_anew(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """State that a checkpoint cannot hold costs the steps before an interruption, with a warning, and no number."""
    run = spec("linear", "gd", optim={"name": "tests.outside:Unkept", "kind": kind})
    whole = train(run, RunStore(tmp_path / "whole"), data_dir=tmp_path)
    assert whole.status == "done"
    assert float(whole.loss[-1]) != float(whole.loss[0])
    stopped = stopped_everywhere(run, RunStore(tmp_path / "stopped"))
    assert_equal(stopped, whole)
    assert not stopped.resumed
    assert "it will start anew if it is interrupted: Unkept: expected state of" in caplog.text


def test_an_edited_optimizer_is_another_run(tmp_path: Path) -> None:
    """The key covers the source of a class and of its base classes that are not installed, and of nothing else."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from tests.problems import tiny;"
        "print(tiny(optim='edited:Mine').key, tiny(optim={'name': 'by-role', 'head': 'edited:Mine'}).key)"
    )
    (tmp_path / "base.py").write_text("import torch\nclass Base(torch.optim.SGD):\n    pass\n")
    text = "import base\nclass Mine(base.Base):\n    pass\n"
    (tmp_path / "edited.py").write_text(text)
    keys = [output(code, tmp_path), output(code, tmp_path)]
    assert keys[0] == keys[1]
    (tmp_path / "edited.py").write_text(f"{text}# edited\n")
    keys.append(output(code, tmp_path))
    (tmp_path / "base.py").write_text("import torch\nclass Base(torch.optim.Adam):\n    pass\n")
    keys.append(output(code, tmp_path))
    assert len({k for pair in keys for k in pair.split()}) == 2 * 3
    assert recipe("torch.optim.SGD").revision == recipe("pytorch_optimizer:Prodigy").revision == 0


@pytest.mark.parametrize("name", ["Heavy", "Light"])
def test_a_class_without_a_path_of_its_own_keeps_the_one_given(name: str) -> None:
    """A class that a function makes is found by the name that its module gives it."""
    run = tiny(optim=f"tests.outside.{name}")
    stored = RunSpec.from_dict(run.resolved.to_dict())
    assert stored.optim.name == f"tests.outside:{name}"
    assert recipe(stored.optim.name).optimizer_class is getattr(outside, name)
    assert key("tests.outside:Heavy") != key("tests.outside:Light")


def test_settings_by_names_that_are_taken_stay_at_their_defaults(tmp_path: Path) -> None:
    """They would hide the path of the class, its version or its methods."""
    run = tiny(optim="tests.outside:Names")
    assert run.resolved.to_dict()["optim"]["name"] == "tests.outside:Names"
    assert train(run, RunStore(tmp_path), data_dir=tmp_path).status == "done"
    assert "unknown setting of optimizer" in message({"name": "tests.outside:Names", "version": 4})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("import argparse; argparse.ArgumentParser().parse_args(['--x'])", "SystemExit: 2"),
        ("def __getattr__(name): raise ImportError('not built')", "ImportError: not built"),
    ],
)
def test_a_module_that_ends_or_fails_late_is_one_line(
    text: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training script that parses its command line does not end the command."""
    name = f"late_{len(text)}"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert expected in message(f"{name}:Mine")


@pytest.mark.parametrize("overflow", [False, True])
def test_an_average_is_read_in_the_mode_of_evaluation(overflow: bool, tmp_path: Path) -> None:
    """One that starts in that mode, or has no state before its first step, trains; one that overflows has diverged."""
    run = spec("linear", "gd", optim={"name": "tests.outside:Averages", "overflow": overflow})
    made = train(run, RunStore(tmp_path / "whole"), data_dir=tmp_path)
    assert made.status == ("diverged" if overflow else "done")
    if not overflow:
        assert_equal(stopped_everywhere(run, RunStore(tmp_path / "stopped")), made)
    seconds, _ = engine.price(run, tmp_path, steps=2)
    assert seconds > 0


def test_what_rest_refuses_is_adams() -> None:
    """An optimizer for matrices trains the other matrices; the vectors of those layers are Adam's."""
    model, _ = small_model("transformer")
    made = parts({"name": "by-role", "head": "gd", "rest": MUON}, model)
    assert {kind for kind, _ in made.values()} == {"HeavyBall", "Muon", "Adam"}
    assert made["head.bias"][0] == "HeavyBall"


@pytest.mark.parametrize("optim", [*OPTIMIZERS.values(), *REGISTRY.names()], ids=[*OPTIMIZERS, *REGISTRY.names()])
def test_two_ranks_sum_the_gradients_of_every_part(optim: Any, tmp_path: Path) -> None:
    """The exchange between processes reaches the parameters of every part and group."""
    run = engine._Run(
        spec("transformer", "gd", optim=optim), RunStore(tmp_path), tmp_path, torch.device("cpu"), TwoRanks(0, 2)
    )
    run._gradient(0, None)
    summed = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    assert summed == {id(p) for p in run.model.parameters() if p.requires_grad}


def parts(optim: Any, model: nn.Module, lr: float = 0.5) -> dict[str, tuple[str, float]]:
    """The optimizer and the step size of every parameter."""
    run = RunSpec.from_dict({"data": "x", "model": "linear", "optim": optim, "lr": lr, "steps": 1})
    built = build_optimizer(run, model)
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        names[id(p)]: (type(part).__name__, group["lr"])
        for part in getattr(built, "optimizers", [built])
        for group in part.param_groups
        for p in group["params"]
    }


def test_every_role_has_its_optimizer() -> None:
    """Muon trains the hidden matrices, sign descent the norms, Adam the rest at a tenth of the step size."""
    model, _ = small_model("transformer")
    trained = parts(MIXED, model)
    assert trained.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    for name, p in model.named_parameters():
        if name in trained:
            expected = ("Adam", 0.05)
            if "norm" in name:
                expected = ("HeavyBall", 0.5)
            elif p.ndim == 2 and "head" not in name and "emb" not in name and "position" not in name:
                expected = ("Muon", 0.5)
            assert trained[name] == expected, name


def test_muon_trains_the_hidden_matrices_by_default() -> None:
    """An optimizer for matrices trains those of the hidden layers, or else of the head; Adam trains the rest."""
    model, _ = small_model("transformer")
    assert parts(MUON, model) == parts({"name": "by-role", "hidden": MUON, "rest": "adam"}, model)
    linear, _ = small_model("linear")
    assert parts(MUON, linear) == {"head.weight": ("Muon", 0.5), "head.bias": ("Adam", 0.5)}


@pytest.mark.parametrize(
    ("optim", "expected"),
    [
        ({"hidden": MUON}, r"optim.hidden: the model has no parameters with this role that the"),
        ({"head": "adam", "rest": "lion"}, r"optim.rest: the other roles leave no parameters of the model that the"),
        ({"head": "adam", "rest": MUON}, r"optim.rest: the other roles leave"),
    ],
)
def test_a_part_without_parameters_is_refused(optim: Any, expected: str) -> None:
    """`hidden=Muon` or `head=adam, rest=lion` on softmax regression would train with Adam alone."""
    linear, _ = small_model("linear")
    with pytest.raises(SpecError, match=expected):
        parts({"name": "by-role", **optim}, linear)


def test_adam_may_be_left_without_parameters() -> None:
    """It is the default of `rest`."""
    linear, _ = small_model("linear")
    assert {kind for kind, _ in parts({"name": "by-role", "head": "gd"}, linear).values()} == {"HeavyBall"}


def test_a_joined_optimizer_is_its_parts() -> None:
    """Steps of two joined optimizers are those of the two alone; copies and restored states step alike."""

    def build(*params: Parameter) -> list[torch.optim.Optimizer]:
        return [torch.optim.Adam([params[0]], lr=0.1), torch.optim.SGD([params[1]], lr=0.2, momentum=0.9)]

    alone, joined = [[Parameter(torch.ones(3)), Parameter(torch.ones(2))] for _ in range(2)]
    separate, together = build(*alone), Joined(build(*joined))
    for step in range(4):
        for params in (alone, joined):
            for p in params:
                p.grad = torch.arange(float(len(p))) - step
        for optimizer in (*separate, together):
            optimizer.step()
        if step == 1:
            twin = copy.deepcopy(together)
            saved = copy.deepcopy(together.state_dict())
            assert twin.param_groups[0] is twin.optimizers[0].param_groups[0]
            together.load_state_dict(saved)
    for a, b in zip(alone, joined, strict=True):
        assert torch.equal(a, b)
    others = [p for group in twin.param_groups for p in group["params"]]
    for step in (2, 3):
        for p in others:
            p.grad = torch.arange(float(len(p))) - step
        twin.step()
    assert all(torch.equal(a, b) for a, b in zip(alone, others, strict=True))


def test_the_record_names_the_distribution(tmp_path: Path) -> None:
    """A run's environment has the version of the distribution that its optimizer comes from."""
    history = train(tiny(optim="torch.optim.SGD"), RunStore(tmp_path), data_dir=tmp_path)
    assert history.environment["optim"] == {"torch": torch.__version__}


def test_sweeps_have_a_grid_for_imported_optimizers(tmp_path: Path) -> None:
    """Without `lr`, the step sizes are the decades -5 to 1, refined; `betas` is one value, a list of lists two."""
    file = tmp_path / "mine.toml"
    one = 'name = "torch.optim.Adam"\nbetas = [0.9, 0.95]'
    listed = 'name = "torch.optim.AdamW"\nlabel = "x"\nbetas = [[0.9, 0.95]]'
    file.write_text(tiny_preset(5, "", one, listed))
    arms = Sweep.load(file).arms
    assert [arm.label for arm in arms] == ["Adam", "x"]
    assert arms[0].grid.exponents == (-5, -4, -3, -2, -1, 0, 1)
    assert arms[0].grid.refine == 1
    assert [arm.optim.params["betas"] for arm in arms] == [[0.9, 0.95], [0.9, 0.95]]


def test_the_command_line_takes_paths_and_roles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`run` trains an imported optimizer with settings from --set, and one for each role from --on."""
    common = ["run", "--data", "random-heavy-tail", "--set", "data.groups=3", "--model", "linear", "--lr", "0.1"]
    common += ["--steps", "3", "--root", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert cli.main([*common, "--optim", "torch.optim.Adam", "--set", "optim.betas=[0.9, 0.95]"]) == 0
    assert cli.main([*common, "--on", f"head={MUON}", "--on", "rest=adam", "--set", "optim.head.weight_decay=0.0"]) == 0
    assert cli.main([*common, "--optim", "adam", "--on", "tail=gd"]) == 2
    assert "--on: expected ROLE=OPT with ROLE head, embedding, norm, hidden or rest" in capsys.readouterr().err
    assert cli.main(common) == 2
    assert "--optim: expected the name of an optimizer" in capsys.readouterr().err


@pytest.mark.parametrize("name", REGISTRY.names())
def test_every_recipe_can_be_a_part(name: str) -> None:
    """Every shipped optimizer trains a role, with its own small settings."""
    if name == "by-role":
        return
    model, _ = small_model("transformer")
    small = getattr(REGISTRY.recipe(name), "small", {})
    trained = parts({"name": "by-role", "hidden": {"name": name, **small}, "rest": "adam"}, model)
    assert trained.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
