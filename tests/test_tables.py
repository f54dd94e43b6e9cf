"""Tables of a learned loss: against the loss itself, and the meta-gradient through them."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metaloss
from metaloss import links
from metaloss.problem import slopes
from metaloss.problem.problem import Problem
from metaloss.problem.tables import Tables, certificate
from metaloss.representations.base import Representation
from metaloss.representations.parts.table import Grid, Table

OUTPUTS = 300  # more than the head of a table asks for
ROWS = 40


def make_loss(name: str, **arguments: object) -> Representation:
    """A loss as a training leaves it: with larger weights than at the start."""
    torch.manual_seed(1)
    loss = metaloss.REPRESENTATIONS[name](**arguments)
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.mul_(1.5).add_(0.05)
    return loss


def make_problem(
    loss: Representation, tabulate: str, link: links.Link = links.by_labels, outputs: int = OUTPUTS
) -> Problem:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, outputs)).to(
        next(loss.parameters()).dtype
    )
    with torch.no_grad():
        model[2].weight.mul_(8)  # probabilities all over [0, 1]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    return Problem(model, optimizer, loss, F.cross_entropy, link, tabulate=tabulate)


def batch(dtype: torch.dtype, outputs: int = OUTPUTS) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(ROWS, 20, generator=generator, dtype=torch.float64).to(dtype)
    return inputs, torch.randint(outputs, (ROWS,), generator=generator)


def slope_and_gradient(problem: Problem, x: Tensor, y: object) -> tuple[slopes.Slope, list[Tensor]]:
    outputs = problem.forward(x)
    torch.manual_seed(4)
    t = torch.randn_like(outputs)
    slope = problem.slope(outputs, y, 1, graph=True)
    return slope, [g for g in slope.pullback(problem.phi, t, ()) if g is not None]


def distance(found: list[Tensor], exact: list[Tensor]) -> float:
    """Of two vectors, over the length of the second."""
    both = [torch.cat([part.double().flatten() for part in parts]) for parts in (found, exact)]
    return float((both[0] - both[1]).norm() / both[1].norm())


TABULATED = {
    "nn": ("nn", {}),
    "softplus": ("nn", {"activation": "softplus"}),
    "tanh": ("nn", {"activation": "tanh"}),
    "taylor": ("taylor", {"order": 3}),
    "poly": ("poly", {"terms": 3}),
    "scale_shape": ("scale_shape", {}),
    "residual": ("residual", {"factor": 0.3}),
    "residual_of_squares": ("residual", {"base": "squared_error", "factor": 0.3}),
}


@pytest.mark.parametrize("name", TABULATED)
@pytest.mark.parametrize("outputs", [7, OUTPUTS])
@pytest.mark.parametrize(
    ("dtype", "bounds"),
    [(torch.float64, (1e-8, 1e-8)), (torch.float32, (4e-6, 1e-5))],
    ids=["double", "single"],
)
def test_a_table_gives_the_slopes_and_the_meta_gradient_of_the_loss(name, outputs, dtype, bounds):
    """Slopes against float64; the meta-gradient against the loss itself in the same precision.

    That one's own rounding in float32 is 7e-6 here: t is random, and its products nearly cancel.
    """
    kind, arguments = TABULATED[name]
    loss = make_loss(kind, **arguments).to(dtype)
    x, y = batch(dtype, outputs)
    read = make_problem(loss, "always", outputs=outputs)
    found, gradient = slope_and_gradient(read, x, y)
    assert isinstance(found, slopes.TabulatedSlope)
    whole = make_problem(copy.deepcopy(loss), "never", outputs=outputs)
    exact, exact_gradient = slope_and_gradient(whole, x, y)
    assert isinstance(exact, slopes.WholeSlope)
    assert distance(gradient, exact_gradient) < bounds[1]
    precise = make_problem(copy.deepcopy(loss).double(), "never", outputs=outputs)
    precise.model.load_state_dict(read.model.state_dict())
    slope = precise.slope(precise.forward(x.double()), y, 1, graph=False)
    assert float(found.loss) == pytest.approx(float(slope.loss), rel=1e-6)
    assert distance([found.hand_out()], [slope.hand_out()]) < bounds[0]


@pytest.mark.parametrize(
    ("link", "reshape"),
    [
        (links.Weighted(), lambda x, y: (x, (y, torch.rand(ROWS, dtype=x.dtype)))),
        (links.Dense(class_dim=-1), lambda x, y: (x.view(4, 10, 20), y.view(4, 10))),
        (
            links.Dense(class_dim=-1, ignore_index=5, weight=(0.5, 2.0) * (OUTPUTS // 2)),
            lambda x, y: (x.view(4, 10, 20), y.clamp_min(5).view(4, 10)),
        ),
    ],
    ids=["weighted", "dense", "some_ignored"],
)
def test_rows_that_weigh_something_of_their_own(link, reshape):
    loss = make_loss("nn").double()
    x, y = reshape(*batch(torch.float64))
    found, gradient = slope_and_gradient(make_problem(loss, "always", link), x, y)
    exact, exact_gradient = slope_and_gradient(make_problem(loss, "never", link), x, y)
    assert isinstance(found, slopes.TabulatedSlope)
    assert distance([found.hand_out()], [exact.hand_out()]) < 1e-8
    assert float(found.loss) == pytest.approx(float(exact.loss), rel=1e-6)  # it is for the log
    assert distance(gradient, exact_gradient) < 1e-8


@pytest.mark.parametrize("labels", ["classes", "soft"])
@pytest.mark.parametrize("name", ["nn", "class_set"])
def test_chunks_of_rows_give_what_all_rows_at_once_give(name, labels, monkeypatch):
    loss = make_loss(name).double()
    x, y = batch(torch.float64)
    y = torch.rand(ROWS, OUTPUTS, dtype=x.dtype).softmax(-1) if labels == "soft" else y
    problem = make_problem(loss, "never")
    exact, exact_gradient = slope_and_gradient(problem, x, y)
    monkeypatch.setattr("metaloss.problem.problem.MOST_AT_ONCE", 100)
    monkeypatch.setitem(slopes.CHUNK, "cpu", 7 * OUTPUTS)
    found, gradient = slope_and_gradient(problem, x, y)
    assert isinstance(found, slopes.ChunkedSlope)
    assert distance([found.hand_out()], [exact.hand_out()]) < 1e-13
    assert float(found.loss) == pytest.approx(float(exact.loss), rel=1e-13)
    assert distance(gradient, exact_gradient) < 1e-13


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("nn", {"activation": "relu"}), ("class_set", {}), ("label_smoothing", {})],
)
def test_what_no_table_can_hold_is_evaluated_at_each_pair(name, arguments):
    loss = make_loss(name, **arguments).double()
    found, _ = slope_and_gradient(make_problem(loss, "always"), *batch(torch.float64))
    assert isinstance(found, slopes.WholeSlope)


def test_a_loss_that_is_no_sum_over_pairs_is_found_out():
    class Wrong(metaloss.REPRESENTATIONS["nn"]):
        def forward(self, prediction, target):
            return super().forward(prediction, target) ** 2

    torch.manual_seed(0)
    assert certificate(Wrong(), 10, torch.float32).panels == 0
    assert certificate(metaloss.REPRESENTATIONS["nn"](), 10, torch.float32).panels > 0


def test_a_sharper_loss_takes_more_nodes():
    loss = make_loss("nn").double()
    panels = []
    for _ in range(3):
        panels.append(certificate(loss, 10, torch.float32).panels)
        with torch.no_grad():
            loss.layers[0].weight.mul_(2.5)
    assert 0 < panels[0] < panels[1] <= panels[2]


def test_the_certificate_is_made_anew_where_the_loss_has_moved_far():
    loss = make_loss("nn")
    tables = Tables(loss, "always")
    rows = torch.zeros(4, 10)
    first = tables.reading(rows, graph=False)
    assert tables.reading(rows, graph=False) is first  # kept while φ stays
    with torch.no_grad():
        loss.layers[0].weight.mul_(4)
    for _ in range(8):
        with torch.no_grad():
            loss.layers[0].weight.add_(0)  # another version of it: a new table
        later = tables.reading(rows, graph=False)
    assert later is not None and later.table.grid.panels > first.table.grid.panels


def test_where_it_does_not_pay_nothing_changes():
    loss = make_loss("nn")
    x, y = batch(torch.float32, 7)
    problem = make_problem(loss, "auto", outputs=7)
    assert isinstance(problem.slope(problem.forward(x), y, 1, False), slopes.WholeSlope)


@pytest.mark.parametrize("panels", [4, 64])
@pytest.mark.parametrize("degree", [1, 2])
def test_the_way_back_is_the_transpose_of_reading(panels, degree):
    torch.manual_seed(0)
    grid = Grid(panels, degree, 1 << 12, head=5)
    values, s, x, t = (
        torch.rand(shape, dtype=torch.float64)
        for shape in [(2, grid.nodes), (2, grid.nodes), (50,), (50,)]
    )
    table = Table(grid, values, s)
    into = table.scattered()
    at = table.look(x.view(10, 5), torch.arange(10)[:, None] % 5)
    table.scatter(into, at, t)
    read = table.read(at)[1]
    assert float((table.gathered(into) * s).sum()) == pytest.approx(float((read * t).sum()))


@pytest.mark.parametrize("weights", [None, torch.arange(1, 6, dtype=torch.float64)])
def test_the_head_reads_what_the_cells_read(weights):
    grid = Grid(8, 2, 1 << 14, head=9)
    nodes = grid.places(torch.zeros((), dtype=torch.float64))
    table = Table(grid, torch.cos(3 * nodes)[None], -3 * torch.sin(3 * nodes)[None])
    torch.manual_seed(0)
    x = (4 * torch.randn(5, 333, dtype=torch.float64)).softmax(-1)
    t = torch.randn_like(x)
    total, s = table.head().read(x, weights)
    v, exact = (part.view_as(x) for part in table.read(table.look(x)))
    summed = (v.sum(-1) * (1 if weights is None else weights)).sum()
    torch.testing.assert_close(s, exact, rtol=0, atol=1e-9)
    torch.testing.assert_close(total, summed, rtol=1e-6, atol=0)
    by_head, by_cells = table.scattered(), table.scattered()
    table.scatter(by_cells, table.look(x), t.view(-1))
    table.head().scatter(by_head, x, t.clone())
    through = [(table.gathered(into) * table._slopes).sum() for into in (by_head, by_cells)]
    torch.testing.assert_close(*through, rtol=1e-8, atol=0)


def test_a_loss_of_nan_is_nan():
    x, y = batch(torch.float32)
    problem = make_problem(make_loss("nn"), "always")
    outputs = problem.forward(x)
    problem.slope(outputs, y, 1, False)
    slope = problem.slope(torch.full_like(outputs, torch.nan), y, 1, False)
    assert slope.loss.isnan() and slope.hand_out().isnan().all()


def make_learner(tabulate: str) -> metaloss.AdaLFL:
    problem = make_problem(make_loss("nn"), tabulate)
    return metaloss.AdaLFL(
        problem.model, problem.optimizer, problem.loss, meta_lr=3e-2, tabulate=tabulate
    )


def test_training_by_tables_is_that_by_pairs_and_goes_on_bit_for_bit():
    data = batch(torch.float32)
    learners = [make_learner(tabulate) for tabulate in ("always", "never")]
    for _ in range(21):
        results = [learner.step(data, data) for learner in learners]
        assert results[0].learned_loss == pytest.approx(float(results[1].learned_loss), rel=1e-3)
    through, _ = learners
    again = make_learner("always")
    again.problem.model.load_state_dict(through.problem.model.state_dict())
    again.problem.optimizer.load_state_dict(copy.deepcopy(through.problem.optimizer.state_dict()))
    again.load_state_dict(copy.deepcopy(through.state_dict()))
    for _ in range(20):
        for learner in (through, again):
            learner.step(data, data)
    for one, other in zip(through.problem.phi, again.problem.phi, strict=True):
        assert one.equal(other)
    assert through.state_dict()["tables"]["made"] == again.state_dict()["tables"]["made"]


@pytest.mark.parametrize(
    "how",
    ["every", pytest.param("micro_batches", marks=pytest.mark.full)],  # 2 s
)
def test_a_table_is_of_the_present_loss_where_nothing_is_learned_through_it(how):
    """After a step of Adam, whose kernel writes φ without telling torch so."""
    data = batch(torch.float64)
    given = metaloss.MicroBatches([data, data]) if how == "micro_batches" else data
    after = []
    for tabulate in ("always", "never"):
        problem = make_problem(make_loss("nn").double(), tabulate)
        online = metaloss.META_OPTIMIZERS["online_one_step"](3e-2, every=1 + (how == "every"))
        learner = metaloss.AdaLFL(
            problem.model, problem.optimizer, problem.loss, adaptation=online, tabulate=tabulate
        )
        results = [learner.step(given, data) for _ in range(3)]
        assert not any(bool(result.skipped) for result in results)
        after.append([*problem.theta, *(result.learned_loss for result in results)])
    for one, other in zip(*after, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_loss_that_somebody_has_moved_far_is_certified_anew():
    problem = make_problem(make_loss("nn"), "always", outputs=10)
    data = torch.randn(128, 10), torch.arange(128) % 10
    assert isinstance(problem.slope(*data, None, graph=False), slopes.TabulatedSlope)
    with torch.no_grad():
        for parameter in problem.phi:
            parameter.mul_(3)
    exact = make_problem(problem.loss, "never", outputs=10).slope(*data, None, False).hand_out()
    for _ in range(6):
        read = problem.slope(*data, None, graph=False)
        torch.testing.assert_close(read.hand_out(), exact, rtol=1e-5, atol=1e-7)
    assert isinstance(read, slopes.TabulatedSlope)


def test_one_process_alone_asks_no_batch_what_its_rows_weigh(monkeypatch):
    problem = make_problem(make_loss("nn"), "auto")
    data = batch(torch.float32)
    problem.plain_step(data)
    monkeypatch.setattr("metaloss.links.weight", None)
    problem.plain_step(data)
    problem.task_gradient(data)
    with pytest.raises(TypeError):
        problem.plain_step(metaloss.MicroBatches([data, data]))
