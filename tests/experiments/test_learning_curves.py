"""Mean learning curves: what is averaged, and what the figure shows of it."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

from metaloss.experiments import records
from metaloss.experiments.groups import group
from metaloss.experiments.reports import learning
from tests.small_runs import write_run


def rows(values, split="train", start=100):
    return [
        {"phase": "train", "step": start * (i + 1), "split": split, "error_rate": value}
        for i, value in enumerate(values)
    ]


@pytest.fixture
def made(tmp_path):
    """A group of the runs whose rows are given, and of diverged ones."""

    def make(*finished, diverged=()):
        for seed, some in enumerate([*finished, *diverged]):
            status = "finished" if seed < len(finished) else "diverged"
            write_run(tmp_path / str(seed), seed=seed, status=status, rows=some)
        ((found,), _) = group(records.read([tmp_path]).runs)
        return found

    return make


def test_the_mean_is_over_seeds_and_the_band_one_sample_deviation(made):
    """At step 200: (.1 + .2 + .6) / 3 = .3, deviation √((.04 + .01 + .09) / 2) = .26458."""
    curve = learning.mean_curve(made(*(rows([0.9, v]) for v in (0.1, 0.2, 0.6))), "train", "A")
    assert curve.steps.tolist() == [100, 200]
    assert curve.mean == pytest.approx([0.9, 0.3])
    assert curve.high == pytest.approx([0.9, 0.3 + 0.07**0.5])
    assert curve.low == pytest.approx([0.9, 0.1])  # not .03: no seed is so low
    assert curve.note == "n = 3"


def test_only_steps_that_all_seeds_have_are_averaged(made):
    group = made(rows([0.5, 0.4, 0.3, 0.2]), rows([0.2, 0.0], start=200))
    curve = learning.mean_curve(group, "train", "A")
    assert curve.steps.tolist() == [200, 400]
    assert curve.mean == pytest.approx([0.3, 0.1])


def test_a_run_that_diverged_is_shown_and_not_averaged(made):
    found = made(rows([0.5, 0.4]), diverged=[rows([0.6, 0.9, None])])
    curve = learning.mean_curve(found, "train", "A")
    assert curve.mean == pytest.approx([0.5, 0.4])
    ((steps, values),) = curve.diverged
    assert (steps.tolist(), values.tolist()) == ([100, 200], [0.6, 0.9])
    axis = learning.learning_curves([learning.panel("P", {"A": found}, "train")]).axes[0]
    assert [line.get_marker() for line in axis.lines] == ["None", "None", "x"]
    assert axis.lines[2].get_xydata().tolist() == [[200, 0.9]]


def test_without_rows_of_a_split_there_is_nothing_to_draw(made):
    found = made(rows([0.5]))
    assert learning.mean_curve(found, "valid", "A") is None
    assert learning.panel("P", {"A": found, "B": None}, "valid") is None


def test_the_figure_has_a_panel_each_on_a_log_scale_with_labels_and_limits(made):
    found = made(rows([0.5, 0.05]), rows([0.3, 0.03]))
    one = learning.panel("MNIST + LeNet-5", {"AdaLFL": found, "Mine": found, "Lost": None}, "train")
    two = learning.panel("other", {"Mine": found}, "train")
    figure = learning.learning_curves([one, two])
    first, second = figure.axes
    assert first.get_title() == "MNIST + LeNet-5"
    assert (first.get_xlabel(), first.get_ylabel()) == ("base step", "training error rate")
    assert first.get_yscale() == "log"
    low, high = first.get_ylim()
    assert low < 0.03 < 0.5 < high
    assert [text.get_text() for text in first.get_legend().get_texts()] == [
        "AdaLFL (n = 2)",
        "Mine (n = 2)",
    ]
    assert first.lines[0].get_ydata() == pytest.approx([0.4, 0.04])
    assert len(first.collections) == 2  # the bands
    assert first.lines[0].get_color() == learning.COLOURS["AdaLFL"]
    assert first.lines[1].get_color() == second.lines[0].get_color()


def test_every_label_has_a_colour_of_its_own():
    nothing = np.array([1.0])
    labels = ["AdaLFL", "Baseline", *"abcdef"]
    curves = tuple(learning.MeanCurve(name, *[nothing] * 4) for name in labels)
    axis = learning.learning_curves([learning.Panel("", "", curves)]).axes[0]
    assert len({to_hex(line.get_color()) for line in axis.lines}) == len(labels)


def test_an_error_of_zero_is_drawn_at_the_bottom(made):
    found = made(rows([0.1, 0.0]))
    figure = learning.learning_curves([learning.panel("", {"A": found}, "train")])
    figure.draw_without_rendering()
    assert figure.axes[0].get_yscale() == "log"


def test_errors_that_are_all_zero_have_no_logarithm(made):
    found = made(rows([0.0, 0.0]))
    figure = learning.learning_curves([learning.panel("", {"A": found}, "train")])
    figure.draw_without_rendering()
    assert figure.axes[0].get_yscale() == "linear"
