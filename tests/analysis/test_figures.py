"""Figures: what each draws, by its lines and labels; and that a folder is enough to draw again."""

from __future__ import annotations

import io
import itertools
import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import metaloss
from metaloss import links
from metaloss.analysis import (
    animation,
    curves,
    index_figures,
    indices,
    known,
    loss_figures,
    paper_figures,
)
from metaloss.representations.saved.learned_loss import LearnedLoss, Trajectory, flat
from metaloss.runs import launch
from tests.helpers import SHORT, drawn, thinned, tool, train


def sampled(classes=None, name="nn", steps=(0, 1, 5), grow=1.0, points=41, **arguments):
    loss = metaloss.REPRESENTATIONS[name](**arguments)
    phi = torch.stack([flat(loss) * grow**t for t in range(len(steps))])
    return loss, curves.sample(loss, Trajectory(torch.tensor(steps), phi), classes, points=points)


def made(values, grid, classes=None):
    """Curves of one step and one panel (or of an example) with given values."""
    values = np.asarray(values, np.float32)[None, None]
    slopes = np.gradient(values, grid, axis=-1)
    return curves.LossCurves(np.array([7]), ("y",), grid, values, slopes, classes)


# --- curves ---


def test_curves_are_the_loss_and_their_slopes_its_derivative():
    loss, found = sampled(classes=10, points=2001)
    assert found.values.shape == found.slopes.shape == (3, 3, 2001)
    p = float(found.grid[700])
    for k, target in ((0, 1.0), (1, 0.0)):
        expected = loss(torch.tensor([[p]]), torch.tensor([[target]])).item()
        assert found.values[0, k, 700] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    numeric = np.gradient(found.values[0].astype(float), found.grid.astype(float), axis=-1)
    inner = slice(5, -5)
    assert np.abs(numeric - found.slopes[0])[:, inner].max() < 0.02 * np.abs(found.slopes[0]).max()


def test_a_slope_that_both_targets_share_does_not_reach_an_example():
    """Σ f_i = 1, so c Σ f_i is a constant: it tilts y = 1 and y = 0, not the third panel."""

    class Tilted(metaloss.REPRESENTATIONS["squared_error"]):
        def forward(self, prediction, target):
            return super().forward(prediction, target) + 3 * prediction.mean(-1)

    trajectory = Trajectory(torch.tensor([0]), torch.zeros(1, 0))
    straight = curves.sample(metaloss.REPRESENTATIONS["squared_error"](), trajectory, 5)
    tilted = curves.sample(Tilted(), trajectory, 5)
    assert np.allclose(tilted.slopes[0, :2] - straight.slopes[0, :2], 3, atol=1e-5)
    assert np.allclose(tilted.slopes[0, 2], straight.slopes[0, 2], atol=1e-5)


def test_regression_is_drawn_over_the_error():
    _, found = sampled(name="squared_error")
    assert found.panels == ("y = 0.1", "y = 0.5", "y = 0.9")
    assert (found.grid[0], found.grid[-1]) == (-1, 1)
    assert np.allclose(found.values[0], found.grid**2, atol=1e-6)
    assert found.grid[found.reference] == pytest.approx(0, abs=1e-6)


# --- indices ---


def test_indices_of_the_squared_error_are_known():
    _, found = sampled(name="squared_error", points=2001)
    numbers = indices.of_curves(found)
    assert numbers["scale"] == pytest.approx(1, rel=1e-3)  # the mean of |2e| over [-1, 1]
    assert numbers["flat_range"] == pytest.approx(0.05 / 2, abs=2e-3)  # |2e| < 0.05
    assert numbers["argmin"] == pytest.approx(0, abs=1e-6)
    assert (numbers["wrong_slope"], numbers["turns"]) == (0, 0)
    assert indices.warnings(numbers) == []


def test_label_smoothing_has_its_least_loss_where_theory_has_it():
    """-(1-ε+ε/C) log p - ((C-1) ε/C) log((1-p)/(C-1)) is least at p = 1 - ε (C-1)/C."""
    grid = np.linspace(1e-4, 1 - 1e-4, 5001)
    smooth = known._of_probability(grid, 10)["label smoothing 0.1"]
    numbers = indices.of_curves(made(smooth, grid, classes=10))
    assert numbers["argmin"] == pytest.approx(1 - 0.1 * 9 / 10, abs=1e-3)
    assert numbers["turns"] == 1
    assert indices.warnings(numbers)[0].startswith("not monotone")
    entropy = known._of_probability(grid, 10)["cross-entropy"]
    assert indices.of_curves(made(entropy, grid, classes=10))["argmin"] == grid[-1]


@given(factor=st.floats(0.01, 100), shift=st.floats(-10, 10))
def test_only_the_scale_follows_the_scale(factor, shift):
    grid = np.linspace(-1, 1, 101)
    valley = grid**2 + 0.2 * np.sin(7 * grid)
    one, other = (indices.of_curves(made(v, grid)) for v in (valley, factor * valley + shift))
    assert other.pop("scale") == pytest.approx(factor * one.pop("scale"), rel=1e-2)
    assert other == pytest.approx(one, abs=0.03)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (lambda e: 0 * e, "the loss is constant: it moves no parameter"),
        (lambda e: -(e**2), "negative slope"),
        (lambda e: np.maximum(np.abs(e) - 0.9, 0), "flat on "),
        (lambda e: np.cos(9 * e) * (e**2 + 0.1), "not monotone"),
    ],
)
def test_warnings_say_what_is_wrong(values, expected):
    grid = np.linspace(-1, 1, 201)
    found = indices.warnings(indices.of_curves(made(values(grid), grid)))
    assert found[0].startswith(expected)


def test_the_effective_learning_rate_of_a_scaled_task_loss_is_its_scale():
    class Scaled(metaloss.REPRESENTATIONS["squared_error"]):
        def forward(self, prediction, target):
            return -3 * super().forward(prediction, target)

    outputs, labels = torch.randn(20, 2), torch.randn(20, 2)
    loss = LearnedLoss(Scaled(), links.values)
    found = indices.effective_base_lr(loss, torch.nn.functional.mse_loss, outputs, labels, 0.1)
    assert found == pytest.approx(-0.3, rel=1e-5)
    assert indices.warnings({"effective_base_lr": found, "cosine_theta": 0.3}) == []
    (warning,) = indices.warnings({"cosine_theta": -0.3})
    assert warning.startswith("works against the task loss")


def cross_entropy_curves(points):
    trajectory = Trajectory(torch.tensor([0]), torch.zeros(1, 0))
    return curves.sample(metaloss.REPRESENTATIONS["cross_entropy"](), trajectory, 10, points)


@pytest.mark.parametrize("points", [101, 201, 2001])
def test_cross_entropy_is_flat_nowhere_but_at_the_target(points):
    """Its slope by the logit is p - 1, whatever the grid: .5 in the mean, small for p > .975."""
    numbers = indices.of_curves(cross_entropy_curves(points))
    assert numbers["scale"] == pytest.approx(0.5, rel=0.02)
    assert numbers["flat_range"] == pytest.approx(0.025, abs=0.011)
    assert indices.warnings(numbers) == []


def test_scale_and_flatness_are_those_of_where_the_model_stands():
    found = cross_entropy_curves(2001)
    unsure = indices.of_curves(found, np.array([0.1, 0.3]))
    assert unsure["scale"] == pytest.approx(0.8, rel=1e-3)
    assert unsure["flatness"] == 0
    sure = indices.of_curves(found, np.array([0.999, 0.998, 0.999, 0.4]))
    assert sure["flatness"] == 0.75
    assert sure["flat_range"] == unsure["flat_range"]


# --- known losses ---


def test_an_affine_copy_of_a_known_loss_is_found():
    grid = np.linspace(1e-4, 1 - 1e-4, 201)
    learned = 5 * known._of_probability(grid, 3)["focal, γ = 2"] - 2
    (fits,) = known.fits(made(learned, grid, classes=3)).values()
    focal = next(fit for fit in fits if "focal" in fit.name)
    assert (focal.scale, focal.r2) == pytest.approx((5, 1), rel=1e-4)
    assert all(fit.r2 < 0.999 for fit in fits if fit is not focal)
    assert {fit.name for fit in fits} == {
        "cross-entropy", "label smoothing 0.1", "focal, γ = 2", "squared error",
    }  # fmt: skip


# --- figures of the loss ---


def test_loss_curves_has_a_row_a_loss_and_a_line_a_step():
    _, one = sampled(classes=10)
    _, two = sampled(classes=10, grow=2)
    figure = loss_figures.loss_curves([one, two], ["a", "b"], "title")
    axes = np.array(figure.axes[:6]).reshape(2, 3)
    assert [axis.get_title() for axis in axes[0]] == ["y = 1", "y = 0", "an example of 10 classes"]
    assert [axis.get_ylabel() for axis in axes[:, 0]] == ["a", "b"]
    (lines,) = axes[0, 0].collections
    assert np.allclose(lines.get_segments()[1][:, 1], loss_figures.aligned(one, 0)[1])
    assert lines.get_array().tolist() == [0, 1, 5]
    for column in axes.T:
        assert column[0].get_ylim() == column[1].get_ylim()  # shared, so that rows compare
    assert axes[1, 0].get_xlim() == (0, 1)
    assert figure.get_suptitle() == "title"


def test_limits_leave_out_single_extremes_and_what_is_not_finite():
    values = np.append(np.linspace(0, 1, 1000), [1e6, np.nan, np.inf])
    low, high = loss_figures.limits([values], margin=0)
    assert low == pytest.approx(0, abs=0.01) and high == pytest.approx(1, abs=0.01)
    assert loss_figures.limits([np.full(3, np.nan)]) == (0, 1)
    assert loss_figures.limits([np.ones(3)]) == (0.5, 1.5)


def test_the_colours_get_lighter_in_grey():
    red, green, blue, _ = loss_figures.COLOURS(np.linspace(0, 1, 20)).T
    grey = 0.299 * red + 0.587 * green + 0.114 * blue
    assert (np.diff(grey) > 0).all() and grey[-1] < 0.85


def test_heat_map_shows_every_step_and_prediction():
    _, found = sampled(classes=10, grow=2)
    figure = loss_figures.heat_map(found)
    mesh = figure.axes[0].collections[0]
    assert np.allclose(mesh.get_array(), loss_figures.aligned(found, 0).T)
    assert figure.axes[0].get_xlim() == (0, 5)
    assert figure.axes[0].get_ylabel() == "predicted probability f(x)"
    assert len(figure.axes[0].collections) > 1  # contours


def test_ribbon_is_a_surface_in_the_colours_of_the_steps():
    _, found = sampled(grow=2)
    figure = loss_figures.ribbon(found)
    assert [axis.name for axis in figure.axes] == ["3d"] * 3
    assert len(figure.axes[0].lines) == 3  # the first, the last, and between
    assert figure.axes[0].get_xlabel() == "error f(x) - y"


def test_known_losses_are_drawn_at_the_first_and_the_last_step():
    _, found = sampled(classes=10, grow=2)
    first, last = loss_figures.against_known(found).axes
    assert (first.get_title(), last.get_title()) == (
        "an example of 10 classes, step 0",
        "an example of 10 classes, step 5",
    )
    learned, *others = last.lines
    assert learned.get_label() == "learned" and len(others) >= 4
    assert np.allclose(learned.get_ydata(), loss_figures.aligned(found, 2)[-1])


def test_the_animation_plays_every_step():
    _, found = sampled(classes=3, grow=1.5, steps=tuple(range(5)))
    gif = Image.open(io.BytesIO(animation.animation(found, "title")))
    assert (gif.format, gif.n_frames, gif.info["loop"]) == ("GIF", 5, 0)
    frames = []
    for i in range(5):
        gif.seek(i)
        frames.append(np.asarray(gif.convert("RGB")))
    assert gif.info["duration"] == animation.HOLD
    assert all((a != b).any() for a, b in zip(frames, frames[1:], strict=False))
    long = sampled(steps=tuple(range(0, 900, 10)))[1]
    assert Image.open(io.BytesIO(animation.animation(long))).n_frames == animation.FRAMES


#: A loss that never changes, and one that blew up.
ODD = {
    "squared_error": {"name": "squared_error"},
    "nn": {"name": "nn"},
    "blown": {"grow": 1e30},
}


@pytest.mark.parametrize(
    ("classes", "odd"),
    thinned(
        itertools.product([None, 2], ODD),
        keep=lambda *case: case in [(None, "blown"), (2, "squared_error")],
    ),
)
def test_a_loss_that_never_changes_or_blew_up_is_drawn_too(classes, odd):
    _, found = sampled(classes=classes, **ODD[odd])
    for draw in (loss_figures.heat_map, loss_figures.ribbon, loss_figures.against_known):
        draw(found).savefig(io.BytesIO())
    loss_figures.loss_curves([found]).savefig(io.BytesIO())
    animation.animation(found)


# --- figures of numbers ---

ROWS = [
    {"phase": "initialization", "step": 100, "learned_loss": 1.0, "base_lr": 9.0},
    *(
        row
        for step in (0, 5, 10)
        for row in (
            {"phase": "train", "step": step, "base_lr": 0.1},
            {
                "phase": "train", "step": step, "scale": 1.0 + step, "flatness": 0.1,
                "flat_range": 0.2, "argmin": 0.9, "wrong_slope": 0.2, "turns": 1.0,
                "cosine_theta": 0.7, "ratio_theta": 3.0,
                "phi_distance": None if step == 5 else step, "effective_base_lr": 0.3,
            },
        )
    ),
]  # fmt: skip


def test_index_panels_draw_each_index_with_its_meaning():
    axes = index_figures.index_panels(ROWS, "title").axes
    assert len(axes) == len(index_figures.PANELS)
    (scale,) = axes[0].lines
    assert (list(scale.get_xdata()), list(scale.get_ydata())) == ([0, 5, 10], [1, 6, 11])
    rate, beside = axes[1].lines
    assert list(rate.get_ydata()) == [0.3] * 3 and list(beside.get_ydata()) == [0.1] * 3
    assert np.isnan(axes[5].lines[0].get_ydata()[1])  # null is a gap
    assert "5.7" in axes[3].get_title()


def test_learning_rates_stand_beside_each_other():
    steep = [{"step": s, "effective_base_lr": 0.01 * 10**s} for s in range(3)]
    (axis,) = index_figures.learning_rates({"adalfl": ROWS, "meta_lr": steep}).axes
    assert [text.get_text() for text in axis.get_legend().texts] == ["adalfl", "meta_lr"]
    assert axis.get_yscale() == "log"


def test_learning_curve():
    rows = [{"split": s, "step": i, "mse": 0.1 / i} for i in (1, 2) for s in ("train", "valid")]
    curve = index_figures.learning_curve(rows, "mse")
    assert [line.get_label() for line in curve.axes[0].lines] == ["train", "valid"]
    assert curve.axes[0].get_yscale() == "log"


# --- figures of the paper's loss network ---


def test_the_activation_figure_draws_the_activation_of_the_network():
    x = np.linspace(-3, 3, 61)
    value, slope = paper_figures.smooth_leaky_relu(x, gamma=0.2, beta=4.0)
    z = torch.tensor(x, requires_grad=True)
    network = metaloss.REPRESENTATIONS["nn"](hidden=(1,), gamma=0.2, beta=4.0).double()
    with torch.no_grad():  # one unit that sees the prediction alone
        network.layers[0].weight.copy_(torch.tensor([[1.0, 0.0]]))
        network.layers[1].weight.fill_(1)
    expected = network(z[:, None], torch.zeros_like(z)[:, None])
    assert np.allclose(value, expected.detach().numpy())
    (derivative,) = torch.autograd.grad(expected.sum(), z)
    assert np.allclose(slope, derivative.numpy())
    axes = paper_figures.activation(gammas=(0, 0.5), betas=(1, 9)).axes
    assert [len(axis.lines) for axis in axes] == [2, 2, 2, 2, 3]
    assert axes[1].lines[1].get_ydata().min() == pytest.approx(0.5)  # the leak


def test_flat_parts_are_marked():
    grid = np.linspace(-1, 1, 201)
    flat = made(np.maximum(np.abs(grid) - 0.5, 0), grid)
    (axis,) = paper_figures.flat_losses([flat], ["relu"]).axes
    curve, marked, *_ = axis.lines
    assert axis.get_title().startswith("relu: flat on 49%")
    drawn = ~np.isnan(marked.get_ydata())
    assert (np.abs(grid[drawn]) <= 0.51).all() and drawn.sum() > 95


# --- from a folder ---


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of AdaLFL."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with drawn():
        code = launch.train(
            gin_file=["quickstart.gin"],
            gin_param=[
                "Runner.steps = 6",
                "Runner.log_every = 2",
                "Runner.evaluate_every = 3",
                "Runner.checkpoint_every = 4",
                "Runner.figures = 1",
                *SHORT,
                "backbones.mlp.hidden = (8,)",
            ],
            device="cpu",
            output_dir=str(folder),
        )
    assert code == 0
    return folder


ALL = {
    "learning_curve.png", "indices.png", "loss.png", "loss_known.png", "loss_heat_map.png",
    "loss_ribbon.png", "loss.gif", "reliability.png",
}  # fmt: skip


@pytest.fixture
def draw(capsys):
    def command(*arguments):
        code = tool("figures").main([str(argument) for argument in arguments])
        return code, capsys.readouterr()

    return command


@pytest.mark.pictures
def test_a_run_leaves_its_pictures_and_they_can_be_drawn_again(run, draw, tmp_path):
    assert {path.name for path in (run / "figures").iterdir()} == ALL
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("config.gin", "meta.json", "result.json", "metrics.jsonl"):
        shutil.copy(run / name, copy)
    shutil.copytree(run / "loss", copy / "loss")  # no model, no data, no checkpoint
    code, said = draw(copy)
    assert code == 0
    assert said.out.startswith(f"{copy}/figures: digits + mlp, adalfl, seed 0\n")
    assert {path.name for path in (copy / "figures").iterdir()} == ALL
    for name in ALL:
        with Image.open(copy / "figures" / name) as image:
            image.load()


@pytest.mark.full  # draws every picture of a run
@pytest.mark.pictures
@pytest.mark.parametrize(
    ("figures", "pictures", "shown"),
    [(3, {"learning_curve.png", "loss.png"}, [6]), (0, set(), [])],
)
def test_a_short_run_draws_little_and_once_or_nothing_and_all_can_be_drawn_later(
    figures, pictures, shown, draw, tmp_path, monkeypatch
):
    monkeypatch.setattr("metaloss.runs.run.LONG", 1e9)
    folder = tmp_path / "run"
    extra = ("Runner.steps = 6", f"Runner.figures = {figures}")
    assert train(folder, "ml3", extra) == 0
    assert {path.name for path in folder.glob("figures/*")} == pictures
    events = EventAccumulator(str(folder)).Reload()
    images = {tag: events.Images(tag) for tag in events.Tags()["images"]}
    assert [event.step for tag in images for event in images[tag]] == shown
    assert set(images) <= {"loss/curves"}
    assert draw(folder)[0] == 0
    assert {path.name for path in (folder / "figures").iterdir()} == ALL


@pytest.mark.full
@pytest.mark.pictures
def test_runs_side_by_side(run, draw, tmp_path):
    shutil.copytree(run, tmp_path / "one")
    shutil.copytree(run, tmp_path / "two")
    code, said = draw(tmp_path, f"--together={tmp_path / 'both'}")
    assert code == 0
    assert {path.name for path in (tmp_path / "both").iterdir()} == {
        "losses.png", "flatness.png", "learning_rates.png",
    }  # fmt: skip


@pytest.mark.full
@pytest.mark.pictures
def test_a_run_that_goes_on_is_drawn_as_far_as_it_is(run, draw, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "result.json").unlink()
    with (copy / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"phase": "train", "st')  # being written
    code, said = draw(copy)
    assert code == 0
    assert "adalfl, seed 0 (unfinished, step 6)" in said.out
    shutil.rmtree(copy / "loss")  # before the first checkpoint of the training
    assert draw(copy)[0] == 0


#: What is done to a run folder, and the error that says so.
DAMAGE = (
    (lambda run: (run / "config.gin").unlink(), "{run} holds no run: there is no config.gin"),
    (lambda run: (run / "metrics.jsonl").unlink(), "{run} has no metrics.jsonl: nothing is"),
    (
        lambda run: (run / "metrics.jsonl").write_bytes(b'{"phase": "train", "step": 1}\n\0\n'),
        "{run}/metrics.jsonl is damaged in line 2",
    ),
    (lambda run: (run / "meta.json").write_text("{"), "{run}/meta.json cannot be read"),
    (lambda run: (run / "result.json").write_text("[]"), "{run}/result.json holds no JSON"),
    (
        lambda run: (run / "loss" / "trajectory.safetensors").write_bytes(b"cut"),
        "{run}/loss/trajectory.safetensors cannot be read",
    ),
    (
        lambda run: (run / "loss" / "trajectory.safetensors").unlink(),
        "{run}/loss/trajectory.safetensors cannot be read: there is none",
    ),
    (
        lambda run: (run / "loss" / "config.json").write_text(
            json.dumps({**json.loads((run / "loss/config.json").read_text()), "provenance": {}})
        ),
        "{run}/loss/config.json does not say the number of classes",
    ),
)


@pytest.mark.full  # draws a whole run for each damage
@pytest.mark.pictures
def test_damaged_runs_are_a_line_each_and_the_others_are_drawn(run, draw, tmp_path):
    damaged, whole = [tmp_path / f"damaged{i}" for i in range(len(DAMAGE))], tmp_path / "whole"
    for folder, (spoil, _) in zip(damaged, DAMAGE, strict=True):
        shutil.copytree(run, folder)
        spoil(folder)
    shutil.copytree(run, whole)
    shutil.rmtree(whole / "figures")
    code, said = draw(*damaged, whole)
    assert code == 2
    errors = [text for text in said.err.splitlines() if text.startswith("error")]
    for error, folder, (_, line) in zip(errors, damaged, DAMAGE, strict=True):
        assert error.startswith("error: " + line.format(run=folder))
    assert {path.name for path in (whole / "figures").iterdir()} == ALL
