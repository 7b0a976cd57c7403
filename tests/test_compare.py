"""`heavytail compare`: its statistics, its search, its verdicts, and the command on an optimizer from outside."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import integrate, stats

from heavytail import cli
from heavytail.cli import compare as command
from heavytail.compare import comparison
from heavytail.compare.comparison import (
    BASELINE,
    BETTER,
    NOT_JUDGED,
    PROBLEMS,
    SAME,
    SEARCH_SEEDS,
    UNSTABLE,
    WORSE,
    Comparison,
    Losses,
    judge,
)
from heavytail.compare.picture import draw
from heavytail.compare.search import FARTHEST, search
from heavytail.compare.statistics import closed, paired_p
from heavytail.errors import DataError
from heavytail.experiment.registry import Component, registry
from heavytail.experiment.search import Grid
from heavytail.experiment.spec import RunSpec
from heavytail.experiment.store import Outcome
from heavytail.experiment.sweep import Arm, Sweep
from heavytail.plotting.style import OTHERS
from heavytail.train import engine, progress
from heavytail.train.engine import price
from heavytail.train.options import Options
from tests import outside
from tests.problems import tiny, tiny_preset

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("n", [3, 5, 12])
def test_p_is_scipys_paired_test_and_the_integral_of_students_density(n: int) -> None:
    """p of the differences equals scipy's, and twice the tail of the density integrated numerically."""
    for _ in range(20):
        a, b = RNG.normal(1, 0.1, n), RNG.normal(1.1, 0.1, n)
        p = paired_p(a - b)
        assert p == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-9)
        t, nu = abs((a - b).mean()) / ((a - b).std(ddof=1) / math.sqrt(n)), n - 1
        scale = math.gamma((nu + 1) / 2) / (math.sqrt(nu * math.pi) * math.gamma(nu / 2))
        inside, _ = integrate.quad(lambda x: scale * (1 + x * x / nu) ** (-(nu + 1) / 2), -t, t)  # noqa: B023
        assert p == pytest.approx(1 - inside, abs=1e-7)


def test_equal_differences_need_no_test() -> None:
    """Differences that are all 0 have p = 1, and all equal to another number p = 0."""
    assert paired_p(np.zeros(3)) == 1
    assert paired_p(np.full(3, -0.25)) == 0


def test_the_critical_values_are_the_pages() -> None:
    """A difference needs |t| > 4.60 with 5 seeds and 9.92 with 3, as docs/compare.md has it."""
    for n, critical in ((5, 4.60), (3, 9.92)):
        assert stats.t.isf(0.005, n - 1) == pytest.approx(critical, abs=0.006)


@pytest.mark.parametrize("n", [3, 5, 9])
def test_the_share_of_the_gap_and_its_jackknife(n: int) -> None:
    """The share is a ratio of means; its interval agrees with leaving out one seed at a time in a loop."""
    gd, adam, other = (RNG.normal(mean, 0.02, n) for mean in (3.0, 1.0, 1.2))
    share = closed(gd, adam, other)
    assert share is not None
    assert share.value == pytest.approx((gd.mean() - other.mean()) / (gd.mean() - adam.mean()), rel=1e-12)
    left = []
    for i in range(n):
        rest = [k for k in range(n) if k != i]
        left.append(sum(gd[k] - other[k] for k in rest) / sum(gd[k] - adam[k] for k in rest))
    error = math.sqrt((n - 1) / n * sum((x - sum(left) / n) ** 2 for x in left))
    half = stats.t.ppf(0.975, n - 1) * error
    assert [share.low, share.high] == pytest.approx([share.value - half, share.value + half], rel=1e-9)


def test_there_is_no_share_without_a_gap() -> None:
    """Where GD is not worse than Adam by more than seeds explain, nothing can be closed."""
    noisy = np.array([1.0, 2.0, 0.5])
    assert closed(noisy, noisy[::-1].copy(), noisy) is None
    assert closed(np.full(3, 1.0), np.full(3, 2.0), np.full(3, 1.5)) is None
    assert closed(np.full(3, 1.0), np.full(3, 1.0), np.full(3, 1.5)) is None


def test_the_sentence_says_who_is_ahead() -> None:
    """Where Adam is behind GD, or no difference is found, there is no gap to close."""
    row = judge(losses([1.5, 1.6, 1.4]), gd=losses([1.0, 1.1, 0.9]), adam=losses([2.0, 2.1, 1.9]))
    assert row["sentence"].startswith("no gap from GD to Adam on the rarest group; better than Adam on it")
    assert row["closed_rarest"] is None


def losses(rarest: list[float], overall: list[list[float]] | None = None) -> Losses:
    """Made-up losses of the seeds after the last step."""
    curves = overall or [[5.0, value] for value in rarest]
    return Losses(np.arange(len(curves[0])), np.array(curves), np.array([[0.1, value] for value in rarest]))


def test_verdicts_follow_the_table() -> None:
    """Better, worse and no difference, by the sign and p of the paired differences on the rarest group."""
    gd, adam = losses([4.0, 4.1, 3.9]), losses([2.0, 2.1, 1.9])
    for shift, expected in ((-0.5, BETTER), (0.5, WORSE), (0.0, SAME)):
        other = losses([a + shift + e for a, e in zip((2.0, 2.1, 1.9), (0.0, 0.001, -0.001), strict=True)])
        row = judge(other, gd, adam)
        assert row["verdict"] == (expected if shift else SAME)
        assert row["closed_rarest"] == pytest.approx(1 - shift / 2, abs=1e-9)
        assert row["sentence"].endswith("3 seeds)")
    assert judge(adam, gd, adam)["p_value"] == 1


def test_differences_below_the_resolution_of_float32_are_none() -> None:
    """Losses that have all become 0 to rounding neither differ nor leave a gap, however many seeds agree."""
    for size, expected in ((1e-9, SAME), (1e-3, BETTER)):
        gd, adam, other = (losses([size * x for x in row]) for row in ([4, 4.1, 3.9], [2, 2.1, 1.9], [1, 1.1, 0.901]))
        row = judge(other, gd, adam)
        assert row["p_value"] < 0.01
        assert row["verdict"] == expected
        assert (row["closed_rarest"] is None) == (row["closed_overall"] is None) == (expected == SAME)


def test_steps_to_adam_is_the_first_record_at_its_final_loss() -> None:
    """The median over seeds of the overall loss reaches the median of Adam's final one at a recorded step."""
    adam = losses([1, 1, 1], [[5, 3, 1.0], [5, 3, 1.2], [5, 3, 1.4]])
    other = losses([1, 1, 1], [[5, 1.1, 1.0], [5, 1.2, 1.0], [5, 9, 1.0]])
    assert judge(other, losses([2, 2, 2]), adam)["steps_to_adam"] == 1
    assert judge(losses([2, 2, 2]), losses([2, 2, 2]), adam)["steps_to_adam"] is None


def searched(loss: Callable[[float, int], float], peak: Callable[[float, int], float] = lambda e, s: 1.0) -> Any:
    """Search with made-up outcomes by exponent and seed; return the exponent, and the runs by exponent and seed."""
    sweep, known = replace(Sweep.load("compare", variant="bigram"), seeds=SEARCH_SEEDS), {}

    def lookup(spec: RunSpec) -> Outcome | None:
        return known.get((round(2 * math.log10(spec.lr)) / 2, spec.seed))

    while True:
        chosen, todo = search(sweep, Arm("x", Component("gd"), Grid((0.0,))), lookup)
        if not todo:
            return (None if chosen is None else chosen.exponent), known
        for spec in todo:
            place = round(2 * math.log10(spec.lr)) / 2, spec.seed
            assert place not in known, "a finished run is not proposed again"
            known[place] = Outcome("done", loss(*place), peak(*place), 10)


def test_the_search_refines_and_grows() -> None:
    """Powers of ten with one seed, half powers with three; a best value at an end of the grid moves the end."""
    exponent, known = searched(lambda e, s: abs(e + 1.6))
    assert exponent == -1.5
    assert sorted({e for e, s in known if s == 0}) == [-5, -4, -3, -2.5, -2, -1.5, -1, 0, 1]
    assert sorted({e for e, s in known if s == 2}) == [-2.5, -2, -1.5, -1]
    assert searched(lambda e, s: abs(e - 4.4))[0] == 4.5
    assert searched(lambda e, s: abs(e + 7.1))[0] == -7
    assert abs(searched(lambda e, s: -e)[0]) == FARTHEST


def test_the_worst_seed_counts_and_unstable_step_sizes_do_not() -> None:
    """The largest loss over seeds is compared; a peak above 1.05 excludes a step size."""
    assert searched(lambda e, s: abs(e + 2) + (10.0 if (e, s) == (-2, 1) else 0))[0] in (-2.5, -1.5)
    assert searched(lambda e, s: -e, lambda e, s: 1.0 if e <= -1 else 1.06)[0] == -1
    assert searched(lambda e, s: -e, lambda e, s: 1.0 if e <= -3 or s == 0 else 2.0)[0] == -3
    assert searched(lambda e, s: -e, lambda e, s: 2.0)[0] is None
    assert searched(lambda e, s: math.inf, lambda e, s: math.inf)[0] is None
    # equal losses: the smaller step size
    assert searched(lambda e, s: max(0.0, -1 - e))[0] == -1


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Problems of a few milliseconds; arguments of the command."""
    file = tmp_path / "problems.toml"
    baselines = ('name = "gd"\nmomentum = 0.9\nlr = 0.1', 'name = "adam"\nbeta1 = 0.9\nlr = 0.1')
    variants = "".join(f"[variant.{name}]\n" for name in PROBLEMS)
    file.write_text(tiny_preset(10, "seeds = [0, 1, 2]", *baselines) + variants)
    monkeypatch.setattr(comparison, "PRESET", file)
    out = str(tmp_path / "out")
    common = ["--root", str(tmp_path / "root"), "--out", out, "--device", "cpu", "--workers", "1", "--seeds", "3"]
    return common


def rows(arguments: list[str]) -> list[dict[str, Any]]:
    out = Path(arguments[arguments.index("--out") + 1])
    table: list[dict[str, Any]] = json.loads((out / "compare.json").read_text())
    return table


TEN_LINES = "tests.outside:TenLines"


def test_an_optimizer_of_ten_lines_from_outside(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """It is compared beside both baselines, on fresh seeds, and every number can be recomputed from compare.json."""
    assert cli.main(["compare", TEN_LINES, "--problems", "linear", "cnn", *small, "--set", "beta=0.5"]) == 0
    table = rows(small)
    assert [(r["problem"], r["optimizer"]) for r in table] == [
        ("linear", "GD"),
        ("linear", "Adam"),
        ("cnn", "GD"),
        ("cnn", "Adam"),
        ("linear", TEN_LINES),
        ("cnn", TEN_LINES),
    ]
    gd, adam, _, _, mine, _ = table
    assert mine["settings"] == {"name": TEN_LINES, "beta": 0.5}
    assert mine["seeds"] == [100, 101, 102]
    assert mine["group_losses"][-1] == pytest.approx(np.mean(mine["loss_rarest"]))
    assert mine["p_value"] == pytest.approx(stats.ttest_rel(adam["loss_rarest"], mine["loss_rarest"]).pvalue, rel=1e-6)
    gap, gained = (np.subtract(gd["loss_rarest"], r["loss_rarest"]).mean() for r in (adam, mine))
    if mine["closed_rarest"] is not None:
        assert mine["closed_rarest"] == pytest.approx(gained / gap)
    assert mine["state_bytes"] == 32 * 7 * 4 + 7 * 4
    assert mine["seconds_per_step"] > 0
    printed = capsys.readouterr().out
    assert mine["sentence"] in printed
    assert "2 tests at p < 0.01" in printed
    out = Path(small[3])
    assert (out / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert mine["sentence"] in (out / "compare.html").read_text()


def test_repeating_trains_nothing(small: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished runs are read from the store, those of the baselines by another comparison as well."""
    assert cli.main(["compare", TEN_LINES, "--problems", "linear", *small]) == 0
    first = rows(small)
    runs = len(list(Path(small[1]).glob("runs/*")))
    assert cli.main(["compare", TEN_LINES, "--problems", "linear", *small]) == 0
    assert len(list(Path(small[1]).glob("runs/*"))) == runs
    timed = ("seconds_per_step", "machine")
    assert [{k: v for k, v in r.items() if k not in timed} for r in rows(small)] == [
        {k: v for k, v in r.items() if k not in timed} for r in first
    ]
    assert cli.main(["compare", "sign", "--problems", "linear", *small]) == 0
    assert rows(small)[1]["loss"] == first[1]["loss"]


def test_a_dry_run_counts_and_trains_nothing(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """It has one line for each optimizer that lacks runs, and as many runs as are then trained; afterwards none."""
    command = ["compare", TEN_LINES, "--problems", "bigram", *small]
    assert cli.main([*command, "--dry-run"]) == 0
    planned = capsys.readouterr().out
    assert not Path(small[1]).exists()
    assert not Path(small[3]).exists()
    assert [line.split()[1] for line in planned.splitlines() if " GB " in line] == ["GD", "Adam", TEN_LINES]
    assert cli.main(command) == 0
    counted = sum(int(line.split()[2]) for line in planned.splitlines() if " GB " in line)
    trained = len(list(Path(small[1]).glob("runs/*")))
    assert 0.8 * trained <= counted <= trained  # a search whose best step size is at the edge goes on
    capsys.readouterr()
    assert cli.main([*command, "--dry-run"]) == 0
    assert "\n0 runs that are not stored" in capsys.readouterr().out


def test_verdicts_and_the_time_left_are_shown_as_they_come(
    small: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of runs and their time come first, each verdict once its runs are finished, while others train."""
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    command = ["compare", "sign", "signum", "--problems", "linear", *small]
    assert cli.main(command) == 0
    first, *lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"about \d+ runs to train, roughly 1 minute with 1 worker", first)
    planned = int(first.split()[1])
    sign, signum = (lines.index(f"{row['optimizer']} on linear: {row['sentence']}") for row in rows(small)[-2:])
    assert sign + 10 < signum  # its runs are trained after sign's
    trained = [line for line in lines if f" of {planned} runs trained; " in line]
    assert all(re.search(r"; about \d+ minutes? left; ", line) for line in trained[: planned // 4])
    assert lines[-1] == "timing the steps on linear"
    assert cli.main(command) == 0
    assert capsys.readouterr().err == "timing the steps on linear\n"
    assert cli.main(["compare", "signum", "--problems", "linear", "--quiet", *small, "--seeds", "4"]) == 0
    assert capsys.readouterr().err == ""


def test_a_stored_comparison_needs_no_data(small: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with the store and without the data the verdicts are written; steps are not timed there."""
    command = ["compare", "sign", "--problems", "linear", *small]
    assert cli.main(command) == 0
    before = rows(small)

    def absent(*_: object) -> None:
        raise DataError("ptb.train.txt not found")

    monkeypatch.setattr(engine, "price", absent)
    assert cli.main(command) == 0
    timed = ("seconds_per_step", "state_bytes", "machine")
    assert rows(small) == [{**row, **dict.fromkeys(timed)} for row in before]


def test_a_failing_optimizer_does_not_hide_the_others(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The others are judged, the failure is in its row, and the command exits with 2."""
    code = cli.main(["compare", "tests.outside:Breaks", "sign", "--problems", "linear", *small])
    assert code == 2
    by_name = {r["optimizer"]: r for r in rows(small)}
    assert by_name["tests.outside:Breaks"]["verdict"] == NOT_JUDGED
    assert "too large for me" in by_name["tests.outside:Breaks"]["sentence"]
    assert by_name["sign"]["verdict"] in (SAME, BETTER, WORSE)
    assert "too large for me" in capsys.readouterr().err


def test_an_interrupted_comparison_shows_what_is_finished(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C ends with 130 and files in which the finished baselines have their losses; the same command continues."""
    outside.Interrupts.armed = True
    command = ["compare", "tests.outside:Interrupts", "--problems", "linear", *small]
    assert cli.main(command) == 130
    assert [(r["verdict"], r["loss"] is None) for r in rows(small)] == [
        (BASELINE, False),
        (BASELINE, False),
        (NOT_JUDGED, True),
    ]
    assert "the same command continues" in capsys.readouterr().err
    assert cli.main(command) == 0
    assert rows(small)[-1]["verdict"] in (SAME, BETTER, WORSE)


def test_the_price_has_rare_work_and_hidden_state(tmp_path: Path) -> None:
    """What an optimizer does in every tenth step is in its time, and tensors in its attributes are in its bytes."""
    seconds, state = price(tiny(optim="tests.outside:Hoards"), tmp_path)
    assert seconds > 0.5 * outside.Hoards.BURNT / 10
    assert state == 1000 * 4


def test_an_optimizer_without_a_stable_step_size_is_unstable(small: list[str]) -> None:
    """Its verdict is "unstable" and its numbers are null."""
    assert cli.main(["compare", "tests.outside:Ascends", "--problems", "linear", *small]) == 0
    row = rows(small)[-1]
    assert (row["verdict"], row["lr"], row["p_value"]) == (UNSTABLE, None, None)


def test_an_optimizer_that_needs_a_closure_is_not_judged(small: list[str]) -> None:
    """Its loss is the same at every step size, which is no verdict on it; the grid is not continued for it."""
    assert cli.main(["compare", "tests.outside:NeedsClosure", "--problems", "linear", *small]) == 0
    row = rows(small)[-1]
    assert (row["verdict"], row["lr"]) == (NOT_JUDGED, None)
    assert "closure" in row["sentence"]


def test_a_step_size_that_an_optimizer_refuses_is_not_stable(small: list[str]) -> None:
    """The others are searched, up to the bound; without one, the optimizer has the numbers of torch's Adam."""
    bounded = ["tests.outside:Bounded", "torch.optim.Adam", "--problems", "linear", *small]
    made = {}
    for largest in (1.0, 0.02):
        assert cli.main(["compare", *bounded, "--set", f"largest={largest}"]) == 0
        made[largest] = rows(small)[-2:]
    (mine, adam), (bound, _) = made.values()
    assert 0.02 < adam["lr"] <= 1.0
    assert (mine["lr"], mine["loss"]) == (adam["lr"], adam["loss"])
    assert bound["lr"] == pytest.approx(0.01)
    assert mine["verdict"] in (SAME, BETTER, WORSE)


def test_a_refused_step_size_is_no_movement(small: list[str]) -> None:
    """An optimizer that needs a closure is not judged, whatever step sizes it refuses; a part refuses for all."""
    assert cli.main(["compare", "tests.outside:Bounded", "--set", "still=true", "--problems", "linear", *small]) == 0
    assert (rows(small)[-1]["verdict"], rows(small)[-1]["lr"]) == (NOT_JUDGED, None)
    by_role = Component("by-role", {"hidden": "tests.outside:Bounded", "rest": "adam"})
    assert [registry("optim").make(by_role).refuses(lr) for lr in (0.1, 1.0, 10.0)] == [False, False, True]


def test_an_average_that_overflows_is_unstable(small: list[str]) -> None:
    """Losses that are not finite end a run, and no comparison."""
    assert (
        cli.main(["compare", "tests.outside:Averages", "--set", "overflow=true", "--problems", "linear", *small]) == 0
    )
    assert [row["verdict"] for row in rows(small)] == [BASELINE, BASELINE, UNSTABLE]


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (RuntimeError, 0)])
def test_verdicts_are_written_before_the_timing(
    error: type[BaseException], code: int, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted or failing timing costs the prices alone."""

    def fails(*_: object) -> tuple[float, int]:
        raise error

    monkeypatch.setattr("heavytail.train.engine.price", fails)
    assert cli.main(["compare", "sign", "--problems", "linear", *small]) == code
    made = rows(small)[-1]
    assert made["verdict"] in (SAME, BETTER, WORSE)
    assert made["seconds_per_step"] is None


def test_an_unstable_baseline_is_named(small: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where GD diverges nobody is judged, and the reason is its own; the picture's key has whoever has losses."""
    read = Losses.read
    monkeypatch.setattr(Losses, "read", lambda trial, *rest: None if trial.optimizer == "GD" else read(trial, *rest))
    assert cli.main(["compare", "sign", "--problems", "linear", *small]) == 0
    gd, adam, sign = rows(small)
    assert (gd["verdict"], adam["verdict"], sign["verdict"]) == (UNSTABLE, BASELINE, NOT_JUDGED)
    assert sign["sentence"] == "the baseline GD: a run with a verdict seed diverged"
    assert [text.get_text() for text in draw([gd, adam, sign], "quick").figure.legends[0].get_texts()] == [
        "Adam",
        "sign",
    ]


def test_the_key_has_every_optimizer_of_any_problem(small: list[str]) -> None:
    """An optimizer that is missing on the first problem alone is in the key of the picture."""
    assert cli.main(["compare", "sign", "--problems", "linear", *small]) == 0
    made = rows(small)
    first = [{**row, "problem": "memory", "group_losses": None, "closed_rarest": None} for row in made]
    picture = draw([*first, *made], "quick")
    assert [text.get_text() for text in picture.figure.legends[0].get_texts()] == ["GD", "Adam", "sign"]


def test_of_many_optimizers_those_that_help_have_a_colour() -> None:
    """More lines than colours cannot be told apart: all but the baselines and the better ones are grey."""

    def row(name: str, verdict: str) -> dict[str, Any]:
        shares = {"closed_rarest": 1.0, "closed_rarest_interval": [0.9, 1.1]}
        return {"optimizer": name, "problem": "linear", "group_losses": [1.0, 2.0], "verdict": verdict, **shares}

    made = [row("GD", BASELINE), row("Adam", BASELINE), row("a.b:Good", BETTER)]
    made += [row(f"plain{k}", SAME) for k in range(len(OTHERS))]
    picture = draw(made, "quick")
    assert [text.get_text() for text in picture.figure.legends[0].get_texts()] == ["GD", "Adam", "Good", "others"]
    for panel in picture.panels.values():
        colours = {line.get_label(): line.get_color() for line in panel.axes.get_lines()}
        assert len({colour for name, colour in colours.items() if name.startswith("plain")}) == 1
    undrawn = [*made[:3], {**made[3], "group_losses": None}, *made[4:]]  # the key has the others all the same
    assert draw(undrawn, "quick").figure.legends[0].get_texts()[-1].get_text() == "others"
    few = draw(made[:-1], "quick").figure.legends[0]
    assert len(few.get_texts()) == len(made) - 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "OPT: expected the name of an optimizer, got none"),
        (["admm"], "unknown optimizer 'admm'; did you mean 'adam'?"),
        (["adam", "--problems", "liner"], "unknown problem 'liner'; did you mean 'linear'?"),
        (["adam", "--seeds", "2"], "--seeds: expected at least 3, got 2"),
        (["adam", "--set", "beta3=0.5"], "unknown setting of the optimizers 'beta3'; did you mean"),
        (["adam", "--set", "beta1"], "--set: expected KEY=VALUE, got 'beta1'"),
        (["adam", "--on", "hiden=gd"], "--on: expected ROLE=OPT"),
        (["lion", "--on", "rest=adam"], "--on: expected one optimizer for rest, got 'lion' and 'adam'"),
        (
            ["adam", "--on", "head=gd", "--on", "head=sign"],
            "--on: expected one optimizer for head, got 'gd' and 'sign'",
        ),
        (["adam", "--set", "eps=False"], "--set eps: expected a TOML value, got False; write false"),
        (["adam", "--set", "eps=.5"], "--set eps: expected a TOML value, got .5; write 0.5"),
        (["adam", "--set", "eps=None"], "--set eps: expected a TOML value, got None"),
        (["torch.optim.Adam", "--set", "eps=inf"], "optim.eps: expected a finite number, got inf"),
        (["torch.optim.Adm"], "did you mean 'Adam'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_are_one_line(
    arguments: list[str], expected: str, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Every mistake ends the command before training."""
    options = small if "--seeds" not in arguments else small[:-2]
    assert cli.main(["compare", *arguments, *options]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1


def test_roles_and_settings_of_parts() -> None:
    """--on gives every optimizer its roles, --set reaches those that have the setting and the parts of --on."""
    from heavytail.cli.compare import candidates

    made = candidates(["adam", "gd"], ["hidden=torch.optim.Muon"], ["hidden.momentum=0.5"])
    assert {name: c.params["rest"]["name"] for name, c in made.items()} == {
        "adam, hidden=torch.optim.Muon": "adam",
        "gd, hidden=torch.optim.Muon": "gd",
    }
    assert all(c.params["hidden"] == {"name": "torch.optim.Muon", "momentum": 0.5} for c in made.values())
    rest = candidates(["adam", "gd"], ["head=sign"], ["momentum=0.5", "rest.beta2=0.9"])
    assert [c.params["rest"] for c in rest.values()] == [
        {"name": "adam", "beta2": 0.9},
        {"name": "gd", "momentum": 0.5},
    ]
    plain = candidates(["adam", "gd"], [], ["momentum=0.5"])
    assert plain["gd"].params == {"momentum": 0.5}
    assert plain["adam"].params == {}


@pytest.mark.parametrize("scale", ["quick", "small", "paper"])
def test_the_problems_are_the_pages(scale: str) -> None:
    """Data, models, baselines and seeds are those of docs/compare.md at every scale."""
    made = Comparison.of({}, PROBLEMS, scale=scale, num_seeds=5, data_dir=Path("/nowhere"))
    specs = {(t.problem, t.optimizer): t.sweep.spec(t.arm, 0.0, 100) for t in made.trials}
    assert len(specs) == 10
    linear, memory = (6, 7) if scale == "quick" else (8, 8)
    assert specs["linear", "GD"].data.to_dict() == {"name": "random-heavy-tail", "groups": linear}
    assert specs["memory", "GD"].data.to_dict() == {"name": "memory", "groups": memory, "rotated": True}
    assert specs["memory", "GD"].model.params == {"bias": False, "init": "zero"}
    assert specs["bigram", "GD"].model.params == {"init": "zero"}
    assert all(spec.batch_size is None for spec in specs.values())
    assert {specs[p, "GD"].optim.to_dict()["momentum"] for p in PROBLEMS} == {0.9}
    adam = specs["cnn", "Adam"].resolved.optim.params
    assert adam == {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    assert {t.sweep.seeds for t in made.trials} == {(0, 1, 2)}
    assert {t.sweep.verdict_seeds for t in made.trials} == {(100, 101, 102, 103, 104)}


def test_prices_are_not_measured_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the login node of a cluster that has trained on GPUs, the times and sizes are null; nothing is an error."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    made = Comparison.of({"sign": Component("sign")}, ["linear"], scale="quick", num_seeds=3, data_dir=Path())
    rows = [{"lr": 0.1, **command.UNPRICED} for _ in made.trials]
    command._measure_prices(made, rows, Options(Path(), "cuda", executor="slurm"), print)
    assert {row[key] for row in rows for key in command.UNPRICED} == {None}
