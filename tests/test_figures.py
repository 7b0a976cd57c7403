"""Figures: what is drawn is what the runs recorded, and nothing else is needed to draw it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from heavytail.errors import HeavyTailError, SpecError, StoreError
from heavytail.experiment.store import RunStore
from heavytail.plotting.panels import balanced, draw, oscillates, search_picture, shades
from heavytail.plotting.style import (
    COLOURS,
    OTHERS,
    Picture,
    applied,
    forget_colours,
    group_colours,
    optimizer_colour,
    optimizer_name,
)
from heavytail.results.figure import all_figures, figure
from heavytail.results.results import MissingRuns, Results, SweepRef
from tests.reference.figures import decay, fill, history_of, write_presets

STEPS = 20
RATES = (0.1, 1.0, 10.0)
FAMILIES = [f"fig{n:02}" for n in (1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22)]
SWEEPS = sorted({(ref.preset, ref.variant) for name in FAMILIES for ref in figure(name).sweeps})
LINEAR = SweepRef("linear", ("gd+m", "adam+m"))


def losses(preset, variant, label, lr, seed):
    """GD diverges at step size 10, 1 is the best, and every seed ends elsewhere."""
    if label.startswith("gd") and lr == 10.0:
        return None
    groups = 2 if preset == "cnn" else 4
    end = (2.0 if label.startswith("gd") else 1.0) * np.linspace(0.2, 2.3, groups)
    return decay(5, end * {0.1: 1.1, 1.0: 1.0, 10.0: 1.05}[lr] * (1 + 0.02 * seed), STEPS)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """One seed of every sweep, with its best step size alone; of "linear" three seeds and three step sizes."""
    folder = tmp_path_factory.mktemp("runs")
    store = RunStore(folder)
    linear, others = ([s for s in SWEEPS if (s[0] == "linear") == which] for which in (True, False))
    write_presets(folder, others, steps=STEPS, seeds=1, rates=[1.0], batch_size=4)
    write_presets(folder, linear, steps=STEPS, seeds=3, rates=RATES, first_seed=500)
    fill(store, folder, SWEEPS, losses)
    return Results(store, "quick", presets=folder)


def panel(picture, title):
    """The record of the panel with a title."""
    return next(record for record in picture.plotted if record["title"] == title)


def series(record, kind, label):
    """One series of a panel."""
    return next(s for s in record["series"] if (s["kind"], s["label"]) == (kind, label))


def not_blank(png):
    """Whether a picture opens and has more than a few dark and coloured pixels."""
    image = np.asarray(Image.open(BytesIO(png)).convert("RGB")).astype(int)
    return (image.min(axis=2) < 200).mean() > 0.01 and (np.ptp(image, axis=2) > 60).sum() > 100


@pytest.mark.parametrize("name", FAMILIES)
def test_every_figure_draws(name, results):
    """Every panel of every figure has a title, a named x axis and at least one series, with finite numbers."""
    picture = draw(figure(name), results)
    assert picture.plotted
    for record in picture.plotted:
        assert record["title"]
        assert record["xlabel"]
        assert record["series"]
        for entry in record["series"]:
            assert all(np.isfinite(v).all() for k, v in entry.items() if k not in ("kind", "label", "colour", "dash"))


@pytest.mark.parametrize("name", ["fig04", "fig15"])
def test_pictures_open_and_are_not_blank(name, results):
    """PNG and PDF files are real pictures, and the same numbers give the same bytes."""
    png = draw(figure(name), results).render("png")
    assert not_blank(png)
    assert png == draw(figure(name), results).render("png")
    assert draw(figure(name), results).render("pdf").startswith(b"%PDF")


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_picture_opens_and_is_not_blank(name, results):
    """Every figure, and the picture of its step-size searches, renders."""
    assert not_blank(draw(figure(name), results).render("png"))
    with applied():
        assert not_blank(search_picture(results, figure(name).sweeps).render("png"))


def test_overall_loss_is_the_median_with_the_range_of_the_seeds(results):
    """The overall panel holds the median over seeds at the best step size, and the band from minimum to maximum."""
    seeds = np.stack([losses("linear", "", "gd+m", 1.0, seed).mean(axis=1) for seed in range(3)])
    overall = panel(draw(figure("fig04"), results), "overall")
    np.testing.assert_array_equal(series(overall, "line", "GD")["x"], np.arange(STEPS + 1))
    np.testing.assert_allclose(series(overall, "line", "GD")["y"], np.median(seeds, axis=0), rtol=1e-6)
    np.testing.assert_allclose(series(overall, "band", "GD")["low"], seeds.min(axis=0), rtol=1e-6)
    np.testing.assert_allclose(series(overall, "band", "GD")["high"], seeds.max(axis=0), rtol=1e-6)
    assert series(overall, "level", "initial")["y"] == pytest.approx(5.0)


@pytest.mark.parametrize(("label", "title"), [("gd+m", "GD, by group"), ("adam+m", "Adam, by group")])
def test_group_panels_hold_every_group(results, label, title):
    """The panel of an optimizer holds the median loss of each frequency group, most frequent first."""
    expected = np.median([losses("linear", "", label, 1.0, seed) for seed in range(3)], axis=0)
    record = panel(draw(figure("fig04"), results), title)
    drawn = np.stack([series(record, "line", f"group {g + 1}")["y"] for g in range(4)], axis=1)
    np.testing.assert_allclose(drawn, expected, rtol=1e-6)


def test_selected_losses(results):
    """Final and initial losses are medians over seeds, at the step size with the smallest worst final loss."""
    run = results.selected(LINEAR, "gd+m")
    assert (run.lr, run.num_groups, run.stochastic) == (1.0, 4, False)
    finals = np.stack([losses("linear", "", "gd+m", 1.0, seed)[-2:].mean(axis=0) for seed in range(3)])
    np.testing.assert_allclose(run.final_group_loss, np.median(finals, axis=0), rtol=1e-6)
    assert run.final_loss == pytest.approx(np.median(finals.mean(axis=1)), rel=1e-6)
    assert run.initial_loss == pytest.approx(5.0)
    np.testing.assert_allclose(run.group_loss_at(7), losses("linear", "", "gd+m", 1.0, 1)[7], rtol=1e-6)
    histories = list(results.histories(LINEAR, "gd+m"))
    assert [h.spec.seed for h in histories] == [0, 1, 2]


@pytest.mark.parametrize(("rows", "last"), [(1, 1), (9, 1), (19, 1), (20, 2), (101, 10)])
def test_final_is_the_mean_over_the_last_tenth_of_the_rows(rows, last, tmp_path):
    """A last row in the trough of an oscillation decides nothing: final losses are means over the last tenth."""
    write_presets(tmp_path, [("linear", "")], steps=rows - 1 or 1, seeds=1, rates=[1.0])
    store, made = RunStore(tmp_path), np.random.default_rng(rows).uniform(1, 9, (rows, 4))
    made = made if rows > 1 else np.repeat(made, 2, axis=0)
    fill(store, tmp_path, [("linear", "")], lambda *_: made)
    run = Results(store, "quick", presets=tmp_path).selected(LINEAR, "gd+m")
    np.testing.assert_allclose(run.final_group_loss, made[-last:].mean(axis=0), rtol=1e-6)
    assert run.final_loss == pytest.approx(made[-last:].mean(), rel=1e-6)
    assert run.initial_loss == pytest.approx(made[0].mean(), rel=1e-6)


def test_results_of_one_seed(results):
    """Restricted to a seed, losses are that seed's alone, initial ones included."""
    for seed in range(3):
        run = results.for_seed(seed).selected(LINEAR, "gd+m")
        expected = losses("linear", "", "gd+m", 1.0, seed)
        np.testing.assert_allclose(run.group_loss, expected[None], rtol=1e-6)
        np.testing.assert_allclose(run.final_group_loss, expected[-2:].mean(axis=0), rtol=1e-6)
        assert run.initial_loss == pytest.approx(expected[0].mean(), rel=1e-6)
    assert results.for_seed(7).selected(LINEAR, "gd+m").loss.shape == (1, STEPS + 1)


@pytest.mark.parametrize("recorded", [1, 4, STEPS + 1])
def test_a_verdict_seed_that_diverges_has_infinite_losses(recorded, tmp_path):
    """A step size that is stable on the seed of the search may diverge on a fresh one: that seed ends at infinity."""
    write_presets(tmp_path, [("linear", "")], steps=STEPS, seeds=1, rates=[0.1, 1.0])
    preset = tmp_path / "linear.toml"
    preset.write_text(preset.read_text().replace("seeds = [0]", "seeds = [0]\nverdict_seeds = [11, 12, 13]"))
    store = RunStore(tmp_path)
    fill(store, tmp_path, [("linear", "")], losses, seeds=[0, 11, 13], labels=["adam+m", "gd+m"])
    spec = Results(store, "quick", presets=tmp_path).sweep(LINEAR)
    spec = spec.spec(spec.arm("gd+m"), 0.0, 12)
    made = history_of(spec, losses("linear", "", "gd+m", 1.0, 12)[:recorded], np.full(4, 100))
    made.status = "diverged"
    store.save(made, step=recorded - 1)
    fill(store, tmp_path, [("linear", "")], losses, seeds=[12], labels=["adam+m"])
    results = Results(store, "quick", presets=tmp_path)
    run = results.selected(LINEAR, "gd+m")
    assert run.lr == 1.0
    assert run.loss.shape == (3, STEPS + 1)
    assert np.isinf(results.for_seed(1).selected(LINEAR, "gd+m").final_group_loss).all()
    assert np.isfinite(run.final_loss)
    (ahead,) = (c for c in figure("fig04").claims(results) if c.claim == "adam-ahead")
    assert np.isfinite(ahead.per_seed).all()
    assert ahead.per_seed[1] == 0.0
    picture = draw(figure("fig04"), results)
    assert not_blank(picture.render("png"))


def test_validation_figure_reads_the_test_split(tmp_path):
    """Figure 10 draws test losses where figure 1 draws training losses, in the groups of the training labels."""
    write_presets(tmp_path, [("gpt2", "")], steps=STEPS, seeds=1, rates=[1.0])
    store = RunStore(tmp_path)
    fill(store, tmp_path, [("gpt2", "")], losses, test_offset=0.5)
    made = Results(store, "quick", presets=tmp_path)
    train, test = (panel(draw(figure(n), made), "GD, by group") for n in ("fig01", "fig10"))
    shift = series(test, "line", "group 2")["y"] - series(train, "line", "group 2")["y"]
    np.testing.assert_allclose(shift, 0.5, rtol=1e-5)
    assert "validation" in panel(draw(figure("fig10"), made), "overall")["ylabel"]


def test_a_preset_without_test_losses_is_named(tmp_path):
    """A validation figure of a preset that records none names the setting to change."""
    write_presets(tmp_path, [("gpt2", "")], steps=STEPS, seeds=1, rates=[1.0], test_every=0)
    store = RunStore(tmp_path)
    fill(store, tmp_path, [("gpt2", "")], losses, test_offset=None)
    with pytest.raises(SpecError, match=r"test_every.*gpt2"):
        draw(figure("fig10"), Results(store, "quick", presets=tmp_path))


def test_histogram_is_sorted_by_frequency(tmp_path):
    """The class histogram holds the counts of the seen classes in descending order against their rank."""
    write_presets(tmp_path, [("linear", "")], steps=STEPS, seeds=1, rates=[1.0])
    store = RunStore(tmp_path)
    fill(store, tmp_path, [("linear", "")], losses, counts={"linear": [90, 40, 0, 7]})
    record = panel(draw(figure("fig04"), Results(store, "quick", presets=tmp_path)), "classes")
    np.testing.assert_array_equal(series(record, "steps", "samples per class")["y"], [90, 40, 7])


def test_histogram_and_groups_are_those_of_one_seed(tmp_path):
    """Where the data differ from seed to seed, the counts and the groups of the histogram are those of the first."""
    write_presets(tmp_path, [("linear", "")], steps=STEPS, seeds=2, rates=[1.0])
    store, sweep = RunStore(tmp_path), Results(RunStore(tmp_path), "quick", presets=tmp_path).sweep(LINEAR)
    counts, order = [np.array([90, 40, 20, 7]), np.array([7, 20, 40, 90])], [np.arange(4), np.arange(4)[::-1]]
    for seed in (0, 1):
        for label in LINEAR.optim:
            made = history_of(sweep.spec(sweep.arm(label), 0.0, seed), decay(5, [1] * 4, STEPS), counts[seed])
            made.arrays["group"] = order[seed]
            store.save(made, step=STEPS)
    for place in (None, 0, 1):
        run = Results(store, "quick", presets=tmp_path, place=place).selected(LINEAR, "gd+m")
        np.testing.assert_array_equal(run.counts, counts[0])
        np.testing.assert_array_equal(run.group, order[0])
    record = panel(draw(figure("fig04"), Results(store, "quick", presets=tmp_path)), "classes")
    np.testing.assert_array_equal(series(record, "steps", "samples per class")["y"], counts[0])


def test_mini_batches_make_gd_stochastic(results):
    """GD on mini-batches is written SGD, as in the paper."""
    assert panel(draw(figure("fig17"), results), "SGD, by group")
    with pytest.raises(StopIteration):
        panel(draw(figure("fig04"), results), "SGD, by group")


def test_horizons_of_one_run(results):
    """Figure 16 shows one run up to 1 %, 10 % and 100 % of its steps."""
    ends = [record["series"][-1]["x"][-1] for record in draw(figure("fig16"), results).plotted]
    assert ends == [1, 2, 20]


def test_no_stable_step_size_is_written_into_the_picture(tmp_path):
    """An optimizer that always diverged has an empty curve and a remark; the others are drawn."""
    write_presets(tmp_path, [("linear", "")], steps=STEPS, seeds=1, rates=[1.0])
    store = RunStore(tmp_path)
    fill(store, tmp_path, [("linear", "")], lambda p, v, label, *_: None if "gd" in label else decay(5, [1] * 4, STEPS))
    made = Results(store, "quick", presets=tmp_path)
    picture = draw(figure("fig04"), made)
    assert panel(picture, "overall")["notes"] == ["GD: no stable step size"]
    assert panel(picture, "GD, by group")["notes"] == ["no stable step size"]
    assert series(panel(picture, "overall"), "line", "Adam")
    assert figure("fig04").search(made)[0]["selected"] is None
    assert not_blank(picture.render("png"))


def test_search_says_why_each_step_size_lost(results):
    """The table of a search has every candidate, its worst final loss, and a reason; one is selected."""
    table = next(t for t in figure("fig04").search(results) if t["optimizer"] == "gd+m")
    assert table["selected"] == 1.0
    assert [row["lr"] for row in table["candidates"]] == pytest.approx(RATES)
    worst = losses("linear", "", "gd+m", 1.0, 2)[-1].mean()
    assert table["candidates"][1]["loss"] == pytest.approx(worst, rel=1e-6)
    assert "selected" in table["candidates"][1]["reason"]
    assert "diverged" in table["candidates"][2]["reason"]


def test_missing_runs_name_the_command(tmp_path):
    """A figure whose runs are missing cannot be drawn, and says which command makes them."""
    write_presets(tmp_path, [("linear", "")], steps=STEPS)
    with pytest.raises(MissingRuns, match="heavytail reproduce fig04 --scale quick") as caught:
        draw(figure("fig04"), Results(RunStore(tmp_path), "quick", presets=tmp_path))
    assert isinstance(caught.value, HeavyTailError)


def test_seeds_must_agree_on_the_groups(tmp_path):
    """Runs of one step size whose seeds have different frequency groups cannot be averaged, and are refused."""
    write_presets(tmp_path, [("linear", "")], steps=STEPS, seeds=2, rates=[1.0])
    store = RunStore(tmp_path)
    for seed, groups in enumerate((4, 3)):
        ends, counts = [1.0] * groups, {"linear": [1] * groups}
        fill(store, tmp_path, [("linear", "")], lambda *_, e=ends: decay(5, e, STEPS), seeds=[seed], counts=counts)
    with pytest.raises(StoreError, match="different numbers of frequency groups"):
        Results(store, "quick", presets=tmp_path).selected(LINEAR, "gd+m")


def test_caption_tells_the_scale_and_the_data(results):
    """Below the paper's scale a caption says so, and names the data that were used."""
    caption = figure("fig04").caption(results)
    assert "quick scale, not the paper's" in caption
    assert "random heavy-tailed labels" in caption
    assert "medians over seeds 0, 1, 2" in caption


@pytest.mark.parametrize("scale", ["quick", "small", "paper"])
@pytest.mark.parametrize("name", [made.id for made in all_figures()])
def test_a_figure_names_the_data_it_was_made_from(name, scale, tmp_path):
    """No title, caption or claim of a figure names a data set of the paper where another one stands in for it."""
    made, results = figure(name), Results(RunStore(tmp_path), scale)
    text = " ".join([made.title, made.caption(results), *(rule.statement for rule in made.rules)])
    used = " ".join(results.data_title(ref) for ref in made.sweeps)
    for public in ("MNIST", "ImageNet", "WikiText-103"):
        assert public not in text or public in used


@pytest.mark.parametrize("name", ["fig02", "fig03", "fig14"])
def test_panels_name_the_data(name, tmp_path):
    """Whatever stands in for the data of the paper, the panels call it by its own name."""
    sweeps = [(ref.preset, ref.variant) for ref in figure(name).sweeps]
    write_presets(tmp_path, sweeps, steps=STEPS, seeds=1, rates=[1.0])
    for file in tmp_path.glob("*.toml"):
        file.write_text(file.read_text().replace('"random-heavy-tail", groups', '"digits", bits'))
    store = RunStore(tmp_path)
    fill(store, tmp_path, sweeps, losses)
    picture = draw(figure(name), Results(store, "quick", presets=tmp_path))
    assert "digits+Barcoded" in picture.plotted[0]["title"]
    assert not any("MNIST" in record["title"] or "ImageNet" in record["title"] for record in picture.plotted)


def test_unknown_figure():
    """A figure that does not exist is refused with the nearest name; the leading zero may be left out."""
    assert figure("fig4") is figure("4") is figure("fig04")
    with pytest.raises(SpecError, match="did you mean 'fig04'"):
        figure("figg04")


def test_every_file_of_the_folder_is_found():
    """Looking up one figure finds those of every file, sorted by id."""
    names = [made.id for made in all_figures()]
    assert set(FAMILIES) <= set(names)
    assert names == sorted(names)


def test_looking_up_figures_loads_no_training_and_no_plotting():
    """The list of figures needs neither the training code nor matplotlib; drawing never touches pyplot."""
    code = (
        "import sys; from heavytail.results.figure import all_figures; all_figures();"
        "bad = [m for m in sys.modules if m.startswith(('heavytail.train', 'heavytail.models', 'heavytail.optim',"
        " 'matplotlib'))]; sys.exit(str(bad) if bad else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_pyplot_is_never_used():
    """A picture is made without pyplot, and matplotlib's global settings come back as they were."""
    code = """
import sys, matplotlib
from heavytail.plotting.style import Picture, applied
before = matplotlib.rcParams.copy()
with applied():
    picture = Picture(1, 1)
    panel = picture.panel(0, 0, "title", "x", "y")
    panel.line([1, 2], [2, 3], "line")
    picture.group_bar([panel], 3)
picture.render("png"), picture.render("pdf")
sys.exit("matplotlib.pyplot" in sys.modules or matplotlib.rcParams.copy() != before)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("num_groups", [1, 2, 10])
def test_groups_run_from_light_to_dark(num_groups):
    """Group colours get darker towards the rarest group, so that they survive a black-and-white print."""
    brightness = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b, _ in group_colours(num_groups)]
    assert brightness == sorted(brightness, reverse=True)
    assert len(set(brightness)) == num_groups


@pytest.mark.parametrize("names", [["lion", "lion2", "soap", "shampoo"], ["x", "a b", "no-momentum", "gd2"]])
def test_other_optimizers_have_colours_and_names(names):
    """Optimizers that the paper does not have get colours of their own, with and without momentum, and a name."""
    colours = [optimizer_colour(f"{name}{suffix}") for name in names for suffix in ("", "+m", "-m")]
    assert colours == [optimizer_colour(name) for name in names for _ in range(3)]
    assert not set(colours) & set(COLOURS.values())
    assert set(colours) <= set(OTHERS)
    assert len({*map(str.lower, OTHERS), *map(str.lower, COLOURS.values())}) == len(OTHERS) + len(COLOURS)
    assert [optimizer_name(f"{name}+m", momentum=True) for name in names] == [
        f"{n} +m".replace("-", "−") for n in names
    ]


def test_six_other_optimizers_differ(monkeypatch):
    """As many other optimizers as there are colours are all told apart, whatever their names."""
    monkeypatch.setattr("heavytail.plotting.style._assigned", {})
    assert {optimizer_colour(f"optimizer{k}") for k in range(len(OTHERS))} == set(OTHERS)
    assert optimizer_colour("one-more") in OTHERS


def test_colours_do_not_depend_on_earlier_figures(tmp_path):
    """Whatever was drawn before in this process, a figure's optimizers have the same colours, and differ."""
    names = ("decay 0", "decay 0.1", "decay 0.3", "decay 1")
    results, made = Results(RunStore(tmp_path), "quick"), []

    def colours(_: Results) -> Picture:
        made.append([optimizer_colour(name) for name in names])
        return Picture(1, 1)

    mine = replace(figure("fig06"), plot=colours)
    for earlier in range(2 * len(OTHERS)):
        forget_colours()
        for k in range(earlier):
            optimizer_colour(f"earlier {k}")
        draw(mine, results)
    assert made == [made[0]] * len(made)
    assert len(set(made[0])) == len(names)


def test_balanced_classes_are_grey_and_oscillations_thin() -> None:
    """Groups of equally frequent classes have no colours of frequency; a curve that turns at every step is thin."""
    rare, equal = np.array([8, 2, 2, 0]), np.array([3, 3, 0])
    assert not balanced(rare)
    assert balanced(equal)
    assert len(set(shades(equal, 4))) == 1
    assert len(set(shades(rare, 4))) == 4
    step = np.arange(30)
    assert oscillates(5.0 + (-1.0) ** step)
    assert not oscillates(np.exp(-step / 5.0))
    assert not oscillates(np.array([1.0, 2.0, 1.0]))
