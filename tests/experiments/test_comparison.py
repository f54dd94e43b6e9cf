"""Two runs side by side, as tools/compare.py shows them."""

from __future__ import annotations

import json
import shutil
from functools import partial

import numpy as np
import pytest
from PIL import Image

from metaloss.experiments import records
from metaloss.experiments.reports import comparison, output, report
from metaloss.runs.folder import RunFolder
from tests.helpers import SHORT, tool
from tests.small_runs import write_run

SMALL = (
    "--gin_file=tasks/digits_mlp.gin",
    "--gin_param=Runner.steps = 6",
    "--gin_param=Runner.evaluate_every = 2",
    "--gin_param=backbones.mlp.hidden = (4,)",
    *(f"--gin_param={binding}" for binding in SHORT),
)


@pytest.fixture
def compare(command):
    return partial(command, "compare")


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """Two real runs with a learned loss, AdaLFL and ML³ with its own network."""
    folder = tmp_path_factory.mktemp("learned")
    for name in ("adalfl", "ml3_relu"):
        flags = (*SMALL, f"--gin_file=methods/{name}.gin", f"--output_dir={folder / name}")
        assert tool("train").main([*flags]) == 0
    return folder


def pictures(one, other):
    found = comparison.document(*comparison.read(one, other))
    return {picture.name: picture.figure for picture in found.pictures()}


def test_what_differs_is_told_and_what_is_equal_is_not(compare, tmp_path):
    one = write_run(tmp_path / "a", seed=0, test=0.0100)
    other = write_run(tmp_path / "b", bindings=["Runner.steps = 500"], seed=1, test=0.0125)
    code, text, _ = compare(one, other)
    assert code == 0
    assert text.startswith(
        "# A: mnist + lenet5, adalfl_letter, seed 0 and B: mnist + lenet5, adalfl_letter, seed"
    )
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert ["Runner.steps", "10000", "500"] in cells
    assert ["seed", "0", "1"] in cells
    assert ["test error rate", ".0100", ".0125"] in cells
    assert ["500", ".1000", ".1000", ".1100", ".1100"] in cells
    assert "A - B of the test error: -.0025; one run each, different seeds." in text
    assert "representations.nn.beta" not in text
    assert "A learned no loss." in text


def test_two_models_are_compared_example_by_example(compare, tmp_path):
    """One against five: McNemar's p is 14/64. Of another test set nothing is said."""
    one, other, third = (write_run(tmp_path / name) for name in "abc")
    first, second = np.zeros(8, np.float32), np.zeros(8, np.float32)
    first[0], second[1:6] = 1, 1
    RunFolder(one).keep_errors(first, np.arange(8))
    RunFolder(other).keep_errors(second, np.arange(8))
    RunFolder(third).keep_errors(second, np.arange(1, 9))
    text = compare(one, other)[1]
    assert "Over 8 test examples: -.5000" in text
    assert "A alone is wrong on 1, B alone on 5: McNemar's p is .22." in text
    assert "test examples" not in compare(one, third)[1]


def test_a_run_keeps_the_error_of_each_test_example(learned):
    """Their mean is the test error of result.json; both runs have the same examples."""
    runs = [records.read_run(learned / name)[0] for name in ("adalfl", "ml3_relu")]
    assert runs[0].errors.examples == runs[1].errors.examples
    for run in runs:
        assert run.errors.errors.mean() == pytest.approx(run.test, abs=1e-12)


def test_the_same_configuration_is_said_to_be_the_same(compare, tmp_path):
    one, other = (write_run(tmp_path / name) for name in "ab")
    text = compare(one, other)[1]
    assert "The configurations are the same." in text
    assert "-.0000" not in text


def test_the_curves_of_both_are_drawn_by_split(tmp_path):
    one = write_run(tmp_path / "a", seed=0)
    other = write_run(tmp_path / "b", ("tasks/mnist_mlp.gin", "methods/baseline.gin"), seed=2)
    figure = pictures(one, other)["learning-curves"]
    assert [axis.get_ylabel() for axis in figure.axes] == [
        "training error rate",
        "validation error rate",
    ]
    lines = figure.axes[0].lines
    assert [line.get_label() for line in lines] == [
        "A: adalfl_letter, seed 0",
        "B: baseline, seed 2",
    ]
    assert lines[1].get_xydata() == pytest.approx(np.array([[500, 0.12], [1000, 0.07]]))


def test_different_metrics_get_axes_of_their_own(tmp_path, compare):
    one = write_run(tmp_path / "a")
    other = write_run(tmp_path / "b", ("tasks/diabetes_mlp.gin", "methods/baseline.gin"))
    labels = [axis.get_ylabel() for axis in pictures(one, other)["learning-curves"].axes]
    assert sorted(labels) == [
        "training MSE", "training error rate", "validation MSE", "validation error rate",
    ]  # fmt: skip
    assert "A - B of the test error" not in compare(one, other)[1]


def test_learned_losses_stand_one_above_the_other(learned, compare):
    figure = pictures(learned / "adalfl", learned / "ml3_relu")["losses-A-B"]
    rows = [axis.get_ylabel() for axis in figure.axes if axis.get_ylabel()]
    assert rows[:2] == ["A: adalfl, seed 0", "B: ml3_relu, seed 0"]
    _, text, _ = compare(learned / "adalfl", learned / "ml3_relu")
    assert "share of the range without slope" in text
    assert "| representations.nn.output" in text


def test_a_damaged_loss_costs_only_itself(learned, compare, tmp_path):
    other = tmp_path / "damaged"
    shutil.copytree(learned / "ml3_relu", other)
    (other / "loss" / "trajectory.safetensors").write_bytes(b"cut")
    code, text, _ = compare(learned / "adalfl", other)
    assert code == 0
    assert "B: its learned loss cannot be drawn: " in text
    assert list(pictures(learned / "adalfl", other)) == ["learning-curves", "losses-A"]


def test_runs_are_compared_as_far_as_they_can_be_read(compare, tmp_path):
    one = write_run(tmp_path / "a", status="unfinished", rows=[])
    other = write_run(tmp_path / "b")
    (other / "result.json").write_text("{")
    code, text, _ = compare(one, other)
    assert code == 0
    assert f"{one}: unfinished: no result.json, before its first row of metrics" in text
    assert f"{other}: result.json cannot be read" in text


def test_html_and_png_show_the_figures(compare, learned, tmp_path):
    for name in ("compare.html", "compare.png"):
        assert (
            compare(learned / "adalfl", learned / "ml3_relu", "--output", tmp_path / name)[0] == 0
        )
    text = (tmp_path / "compare.html").read_text()
    assert text.count("<svg") == 2
    assert "What the configurations differ in" in text
    figures = pictures(learned / "adalfl", learned / "ml3_relu").values()
    with Image.open(tmp_path / "compare.png") as image:
        height = sum(figure.get_size_inches()[1] for figure in figures) * output.DPI
        assert image.height == pytest.approx(height, abs=2)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["{run}", "nowhere"], "nowhere is no folder: give a run folder"),
        (["{run}", "{empty}"], "{empty}: no config.gin: it cannot be told which run this is"),
        (["{run}", "{run}", "--output={empty}/x.md"], "let its name end in .html or .png"),
        (["{bare}", "{bare}", "--output={empty}/x.png"], "there is no picture: neither run has"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(compare, tmp_path, arguments, line):
    run = write_run(tmp_path / "run")
    bare = write_run(tmp_path / "bare", rows=[])
    empty = tmp_path / "empty"
    empty.mkdir()
    code, _, err = compare(*(a.format(run=run, bare=bare, empty=empty) for a in arguments))
    assert code == 2
    assert line.format(empty=empty) in err.splitlines()[-1]
    assert list(empty.iterdir()) == []


def test_the_report_draws_the_networks_activation_and_flat_losses(learned):
    found = report.document(report.contents(records.read([learned])))
    drawn = {picture.name: picture for picture in found.pictures()}
    assert drawn["activation"].title.startswith("Figure 6")
    (axis,) = drawn["flatness"].figure.axes
    assert axis.get_title().startswith("digits + mlp, seed 0: flat on ")


def test_a_report_with_a_damaged_loss_says_so(learned, tmp_path):
    shutil.copytree(learned / "ml3_relu", tmp_path / "run")
    path = tmp_path / "run" / "loss" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    found = report.document(report.contents(records.read([tmp_path])))
    lines = [block.lines for s in found.sections if s.heading == "The loss network" for block in
             s.blocks if hasattr(block, "lines")]  # fmt: skip
    assert "has format 99" in lines[0][0]
    assert "flatness" not in {picture.name for picture in found.pictures()}
