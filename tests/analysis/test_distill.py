"""Distillation: closed forms are found again, in float64, and what is written is what was found."""

from __future__ import annotations

import json
import re
from functools import partial

import numpy as np
import pytest
import torch

import metaloss
from metaloss import load_loss
from metaloss.analysis import curves, formulas
from metaloss.errors import ConfigError, InputError
from metaloss.representations.parts import expressions
from tests.helpers import FORMAT_1

REPRESENTATIONS = metaloss.REPRESENTATIONS


def terms(**weights):
    """A loss by its coefficients, in float64."""
    loss = REPRESENTATIONS["terms"](tuple(weights), tuple(weights.values())).double()
    with torch.no_grad():
        loss.weights.copy_(torch.tensor(list(weights.values()), dtype=torch.float64))
    return loss


def found_in(loss, classes, **arguments):
    """The last formula, as coefficients by term."""
    formula = formulas.distill(loss, classes, **arguments)[-1]
    return dict(zip(formula.terms, formula.coefficients, strict=True)), formula


# --- closed forms ---


@pytest.mark.parametrize(
    "form",
    [
        {"y*log(f)": -1.7},
        {"y*log(f)": -1.0, "(1-y)*log(1-f)": -0.25},
        {"y*log(f)": -1.0, "(1-y)*f^2": 0.5, "y*f^3": -0.75},
        {"sqrt(f)": 0.3, "y*f": -2.0, "(1-y)*f*log(f)": 1.1, "f": 0.4},
    ],
)
def test_a_formula_of_probabilities_is_found_exactly(form):
    weights, formula = found_in(terms(**form), 5)
    assert formula.size == len(form.keys() - {"f"})
    assert weights.keys() == form.keys()
    assert weights == pytest.approx(form, rel=1e-8)
    for near in formula.closeness:
        assert near.r2 is None or near.r2 == pytest.approx(1, abs=1e-12)
        assert near.slope_error < 1e-7 * max(1, near.scale)


@pytest.mark.parametrize(
    "form",
    [
        {"e^2": 1.5},
        {"e^2": 0.5, "log(cosh(e))": -0.2},
        {"e": 0.1, "e^2": 1.0, "y*e^2": -0.5, "sqrt(1+e^2)": 2.0},
    ],
)
def test_a_formula_of_errors_is_found_exactly(form):
    weights, formula = found_in(terms(**form), None)
    assert formula.size == len(form)
    assert weights == pytest.approx(form, rel=1e-8)
    assert all(near.r2 == pytest.approx(1, abs=1e-12) for near in formula.closeness)


def test_handcrafted_losses_are_found_in_their_own_unit():
    """Cross-entropy sums over the outputs, which a formula averages: -C y log f."""
    weights, _ = found_in(REPRESENTATIONS["cross_entropy"](), 7)
    assert weights == pytest.approx({"y*log(f)": -7.0})
    weights, _ = found_in(REPRESENTATIONS["squared_error"](), 7)  # (f - y)² = f² - 2fy + y²
    assert weights == pytest.approx({"f^2": 1.0, "y*f": -2.0})
    weights, _ = found_in(REPRESENTATIONS["squared_error"](), None)
    assert weights == pytest.approx({"e^2": 1.0})


def test_a_cubic_taylor_polynomial_is_found():
    """Of its terms y is free, and y², y³, xy, xy² remain where the target is 0 or 1."""
    loss = REPRESENTATIONS["taylor"](order=3).double()
    with torch.no_grad():
        loss.centre.zero_()
        loss.coefficients.copy_(torch.tensor([0.3, 1.0, 0.6, -2.0, 0.8, 0.0]))
    weights, formula = found_in(loss, 10)
    expected = {"f": 0.3, "f^2": 0.5, "f^3": 0.1, "y*f": -2.0, "y*f^2": 0.4}
    assert weights == pytest.approx(expected, rel=1e-6)
    assert formula.size == 4


def test_a_slope_that_both_targets_share_does_not_count():
    tilted = terms(**{"y*log(f)": -1.0, "f": 1e4})
    weights, formula = found_in(tilted, 10)
    assert formula.size == 1 and weights == pytest.approx({"y*log(f)": -1.0, "f": 1e4})
    # The whole of it moves nothing:
    with pytest.raises(InputError, match="the learned loss moves no parameter"):
        formulas.distill(terms(f=3.0), 10)


def test_the_search_is_that_of_least_squares_one_by_one():
    """All choices of two terms, each fitted by itself."""
    import itertools

    loss = load_loss(FORMAT_1).representation.double()
    library = ["y*f", "f^2", "y*log(f)", "(1-y)*f^3", "y*sqrt(f)"]
    formula = formulas.distill(loss, 10, 2, library)[1]
    grid = curves.grid_of(10, formulas.POINTS).double()
    seen = list(formulas.panels(10).values())

    def slopes(one):
        return np.concatenate([curves.curve(one, panel, grid)[1] for panel in seen])

    goal = slopes(loss)
    shared = slopes(terms(f=1.0))
    rest = goal - shared * (shared @ goal) / (shared @ shared)
    weights = np.repeat(1 / np.linalg.norm(rest.reshape(3, -1), axis=1), formulas.POINTS)
    left = {}
    for pair in itertools.combinations(library, 2):
        design = np.stack([*(slopes(terms(**{t: 1.0})) for t in pair), shared], axis=1)
        design = design * weights[:, None]
        solution, *_ = np.linalg.lstsq(design, goal * weights, rcond=None)
        left[pair] = (np.square(goal * weights - design @ solution).sum(), solution)
    best = min(left, key=lambda pair: left[pair][0])
    assert formula.terms == (*best, "f")
    assert formula.coefficients == pytest.approx(tuple(left[best][1]), rel=1e-6)


def test_larger_formulas_are_nearer():
    found = formulas.distill(load_loss(FORMAT_1).representation, 10, 4)
    assert [formula.size for formula in found] == [1, 2, 3, 4]

    def left(formula):
        return sum(1 - near.slope_r2 for near in formula.closeness)

    assert all(np.diff([left(formula) for formula in found]) < 0.05)
    assert left(found[3]) < 0.2 * left(found[0])


def test_closeness_is_what_it_says():
    """On a line that misses a parabola's slope: 2f for f in the panel of y = 0."""
    near = formulas._compare(terms(**{"(1-y)*f^2": 2.0}), terms(**{"(1-y)*f": 2.0}), 2)
    panel = {closeness.panel: closeness for closeness in near}["y = 0"]
    f = np.linspace(1e-4, 1 - 1e-4, 201)
    learned, formula = f**2, f  # the mean over two outputs; the other one is constant
    difference = (learned - learned.mean()) - (formula - formula.mean())
    assert panel.error == pytest.approx(np.abs(difference).max(), rel=1e-4)
    spread = np.square(learned - learned.mean()).sum()
    assert panel.r2 == pytest.approx(1 - np.square(difference).sum() / spread, rel=1e-4)
    assert panel.slope_error == pytest.approx(1 - 2e-4, rel=1e-4)
    expected = 1 - np.square(2 * f - 1).sum() / np.square(2 * f).sum()
    assert panel.slope_r2 == pytest.approx(expected, rel=1e-4)
    assert panel.scale == pytest.approx(np.abs(2 * f).mean(), rel=1e-4)


# --- expressions ---

ALL = tuple(expressions.FACTORS)


@pytest.mark.parametrize("term", [*ALL, "y*log(f)^2", "(1-y)*f^3", "y^2*e^2", "f*log(1-f)*sqrt(f)"])
def test_a_term_is_the_same_in_every_language(term):
    f = torch.rand(50, dtype=torch.float64) * 0.9 + 0.05
    y = torch.rand(50, dtype=torch.float64)
    value = expressions.parse(term)(f, y)
    function = eval(expressions.as_python((term, "f"), (-2.5, 1e-9)), {"torch": torch})
    torch.testing.assert_close(function(f, y), -2.5 * value + 1e-9 * f)
    text = expressions.as_text((term,), (-2.5,))
    python = re.sub(r"\b(log|sqrt|exp|cosh)\b", r"torch.\1", text.replace("^", "**"))
    read = eval(python, {"torch": torch, "f": f, "y": y, "e": f - y})
    torch.testing.assert_close(read, -2.5 * value)


def test_latex():
    weights = (-1.5, 2e-7, 0.25, -3.0)
    written = expressions.as_latex(("y*log(f)", "(1-y)*f^2", "log(f)^2", "sqrt(1+e^2)"), weights)
    assert written == (
        r"-1.5\,y\,\log f + 2 \cdot 10^{-7}\,(1-y)\,f^{2} + 0.25\,\left(\log f\right)^{2} "
        r"- 3\,\sqrt{1+(f-y)^2}"
    )


def test_an_unknown_factor_names_the_known():
    message = (
        r"no factor 'lg\(f\)' for the term 'y\*lg\(f\)'; did you mean 'log\(f\)'\? · known: f, y"
    )
    with pytest.raises(ConfigError, match=message):
        REPRESENTATIONS["terms"](("y*lg(f)",), (1.0,))
    with pytest.raises(ConfigError, match="coefficients = .1.0,.: give one for each of 2 terms"):
        REPRESENTATIONS["terms"](("f", "y"), (1.0,))
    with pytest.raises(ConfigError, match="each item a number that is finite"):
        REPRESENTATIONS["terms"](("f",), (float("nan"),))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_certain_predictions_have_finite_derivatives(dtype):
    loss = REPRESENTATIONS["terms"](ALL, (1.0,) * len(ALL)).to(dtype)
    target = torch.eye(3, dtype=dtype)
    prediction = torch.cat([target, target.roll(1, 0)]).requires_grad_()
    values = loss(prediction, target.repeat(2, 1))
    (slope,) = torch.autograd.grad(values.sum(), prediction, create_graph=True)
    second = torch.autograd.grad(slope.sum(), [prediction, *loss.parameters()])
    assert all(tensor.isfinite().all() for tensor in (values, slope, *second))


# --- classes ---


def test_the_number_of_classes_is_found():
    loss = load_loss(FORMAT_1)
    assert formulas.classes_of(loss) == formulas.classes_of(loss, 10) == 10
    with pytest.raises(InputError, match="--classes 3: the loss was learned with 10"):
        formulas.classes_of(loss, 3)
    alone = metaloss.LearnedLoss(loss.representation)
    with pytest.raises(InputError, match="does not say its number of classes: give --classes"):
        formulas.classes_of(alone)
    assert formulas.classes_of(alone, 0) is None
    with pytest.raises(InputError, match="1 is no number of classes: at least 2, or 0"):
        formulas.classes_of(alone, 1)
    values = metaloss.LearnedLoss(loss.representation, metaloss.links.values)
    assert formulas.classes_of(values) is None


def test_what_is_not_finite_cannot_be_fitted():
    loss = load_loss(FORMAT_1)
    with torch.no_grad():
        next(loss.parameters()).fill_(float("nan"))
    with pytest.raises(InputError, match="not finite"):
        formulas.distill(loss.representation, 10)
    with pytest.raises(ConfigError, match="largest = 0: give an integer of at least 1"):
        formulas.distill(load_loss(FORMAT_1).representation, 10, 0)


# --- the tool ---


@pytest.fixture
def run(command):
    return partial(command, "distill")


def test_a_formula_is_reported_and_kept(run, tmp_path):
    code, stdout, stderr = run(FORMAT_1, "--largest=3", "--size=2", f"--output={tmp_path / 'out'}")
    assert (code, stderr) == (0, "")
    out = tmp_path / "out"
    assert (out / "distill.md").read_text() in stdout
    (*_, third) = found = json.loads((out / "distill.json").read_text())["formulas"]
    assert [formula["size"] for formula in found] == [1, 2, 3]
    for formula in found:
        assert f"`{formula['text']}`" in stdout and f"`{formula['latex']}`" in stdout
        assert f"`{formula['python']}`" in stdout
    kept = load_loss(out / "formula")
    assert kept.representation.terms == tuple(found[1]["terms"])
    assert kept.provenance["distilled_from"] == "nn, digits + mlp, adalfl, seed 0, step 20"
    # The printed function is the loss that was fitted, but for the mean over the outputs.
    logits, labels = torch.randn(6, 10), torch.randint(10, (6,))
    function = eval(found[1]["python"], {"torch": torch})
    f, y = metaloss.links.probabilities(logits, labels)
    torch.testing.assert_close(kept(logits, labels), function(f, y).mean())
    assert "| 3     | y = 1" in stdout and "an example of 10 classes" in stdout


def test_a_step_has_its_own_formula(run):
    """φ at step 1 is half of that at the end, and so the network of one hidden layer another."""
    reports = [
        run(FORMAT_1, "--largest=1", *step)[1] for step in ((), ("--step=20",), ("--step=2",))
    ]
    assert reports[0] == reports[1] != reports[2]
    assert "nn, digits + mlp, adalfl, seed 0, step 1. " in reports[2]


def test_a_formula_trains_beside_the_loss(run, tmp_path):
    code, stdout, stderr = run(
        FORMAT_1, "--largest=2", f"--output={tmp_path}", "--train", "--seed=0",
        "--gin_file=tasks/digits_mlp.gin", "--gin_param=Runner.steps = 3",
        "--gin_param=backbones.mlp.hidden = (4,)",
    )  # fmt: skip
    assert code == 0, stderr
    written = json.loads((tmp_path / "transfer.json").read_text())["methods"]
    assert list(written) == ["baseline", "frozen", "distilled"]
    loss = load_loss(tmp_path / "distilled/seed0")
    assert type(loss.representation).__name__ == "Terms"
    assert "| distilled" in stdout


def test_bad_input_is_one_line(run, tmp_path):
    def error(*arguments):
        code, stdout, stderr = run(*arguments)
        assert (
            (code, stdout) == (2, "") and stderr.startswith("error: ") and stderr.count("\n") == 1
        )
        return stderr.removeprefix("error: ").strip()

    assert error("nowhere").startswith("there is no learned loss in nowhere")
    assert error(FORMAT_1, "--train") == "--train needs --output DIR, and --gin_file for the task"
    assert error(FORMAT_1, "--step=21").startswith("step 21 is not in what was recorded")
    assert error(FORMAT_1, "--largest=2", "--size=3", f"--output={tmp_path / 'out'}") == (
        "--size 3: there are formulas of 1 to 2 terms"
    )
    assert error(FORMAT_1, "--term=y*lg(f)").startswith("no factor 'lg(f)' for the term 'y*lg(f)'")
    assert not (tmp_path / "out").exists()
