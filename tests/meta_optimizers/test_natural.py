"""The descent `natural`: (F + λI)⁻¹ g, with F of the slopes that a base step sees."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metaloss
from metaloss import links
from metaloss.errors import InputError
from metaloss.meta_optimizers.descents.base import Group
from metaloss.meta_optimizers.parts.by_gradient import ByGradient
from metaloss.problem.jacobian import Jacobian
from metaloss.representations.base import Representation
from tests.helpers import assert_same_state, killed_when, relative, rows, train

NATURAL = metaloss.DESCENTS["natural"]


class Linear(Representation):
    """ℓ = Σ_c (φ₁ f²/2 + φ₂ f y)/C: the slope (φ₁ f + φ₂ y)/C is linear in φ."""

    pairs = "mean"

    def __init__(self, unit: float = 1.0) -> None:
        super().__init__()
        self.unit = unit
        self.phi = nn.Parameter(torch.tensor([1.0 / unit, -1.0]))

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        a, b = self.phi
        return (a * self.unit * prediction**2 / 2 + b * prediction * target).mean(-1)


def regression(loss, descent, meta_lr=0.5):
    """A learner, and batches of two tensors of values."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    learner = metaloss.AdaLFL(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        loss,
        F.mse_loss,
        link=links.values,
        meta_lr=meta_lr,
        descent=descent,
        tabulate="never",
    )
    return learner, [(torch.randn(7, 4), torch.randn(7, 3)) for _ in range(2)]


def gradient_of(learner, train, valid) -> Tensor:
    """∇_φ of the next step, by a learner of its own, without moving anything."""
    other = copy.deepcopy(learner)
    found = metaloss.ENGINES["exact"]().hypergradient(
        other.problem, other.adaptation.meta, [train], lambda: valid
    )
    return torch.cat([g.flatten() for g in found.phi])


def row(slope: Tensor, phi: list[Tensor]) -> Tensor:
    """∂slope/∂φ of one number."""
    grads = torch.autograd.grad(slope, phi, retain_graph=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in grads])


def solved(J: Tensor, g: Tensor, damping: float) -> Tensor:
    """(F + λI)⁻¹ g with F = JᵀJ, by a dense solve."""
    metric = J.T @ J
    by = damping * (g @ metric @ g) / (g @ g)
    return torch.linalg.solve(metric + by * torch.eye(len(g)), g)


@pytest.mark.usefixtures("float64")
def test_the_step_on_a_linear_loss_is_the_closed_form():
    descent = functools.partial(NATURAL, damping=0.1)
    learner, (train, valid) = regression(Linear(), descent)
    f, y = learner.problem.model(train[0]).detach(), train[1]
    # A row for each output, its columns ∂s/∂φ; the mean over the 7 rows of the batch.
    J = torch.stack([f.flatten(), y.flatten()], dim=1) / 3 / 7**0.5
    g = gradient_of(learner, train, valid)
    before = learner.problem.phi[0].clone()
    learner.step(train, valid)
    expected = before - 0.5 * solved(J, g, 0.1)
    torch.testing.assert_close(learner.problem.phi[0], expected, rtol=1e-12, atol=1e-14)


@pytest.mark.usefixtures("float64")
def test_the_step_is_the_same_in_every_parametrisation():
    """φ₁ in other units: the loss after the step is the same one where little is damped."""
    found = []
    for unit in (1.0, 50.0):
        learner, (train, valid) = regression(
            Linear(unit), functools.partial(NATURAL, damping=1e-13)
        )
        learner.step(train, valid)
        (phi,) = learner.problem.phi
        found.append(phi.detach() * torch.tensor([unit, 1.0]))
    torch.testing.assert_close(*found, rtol=1e-9, atol=0.0)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", ["probabilities", "dense", "micro_batches"])
def test_the_step_is_that_of_an_explicit_dense_solve(kind):
    """Of a network, with softmax, ignored labels and accumulation; resumed, the same bits."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    loss = metaloss.REPRESENTATIONS["nn"](hidden=(4, 3))
    link = links.Dense(ignore_index=0) if kind == "dense" else links.probabilities
    task_loss = functools.partial(F.cross_entropy, ignore_index=0 if kind == "dense" else -100)
    descent = functools.partial(NATURAL, damping=1e-2, iterations=80, momentum=0.5)
    learner = metaloss.AdaLFL(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        loss,
        task_loss,
        link=link,
        meta_lr=1e-3,
        descent=descent,
    )
    batches = [(torch.randn(9, 4), torch.arange(9) % 3) for _ in range(3)]
    train = metaloss.MicroBatches(batches[:2]) if kind == "micro_batches" else batches[0]
    parts = list(train) if kind == "micro_batches" else [train]
    phi = learner.problem.phi
    direction = torch.zeros(sum(p.numel() for p in phi))
    for _ in range(2):
        rows = []
        for x, y in parts:
            f = learner.problem.model(x).detach().requires_grad_()
            prediction, target, *weights = learner.problem.link(f, y)
            mean = links.mean(loss(prediction, target), *weights)
            (slope,) = torch.autograd.grad(mean, f, create_graph=True)
            J = torch.stack([row(s, phi) for s in slope.flatten()])
            rows.append(J * (len(prediction) / len(parts)) ** 0.5)
        g = gradient_of(learner, train, batches[2])
        before = torch.cat([p.detach().flatten() for p in phi])
        direction = 0.5 * direction + solved(torch.cat(rows), g, 1e-2)
        learner.step(train, batches[2])
        moved = torch.cat([p.detach().flatten() for p in phi]) - before
        assert relative(moved, -1e-3 * direction) < 1e-7

    other = copy.deepcopy(learner)
    state = copy.deepcopy(learner.state_dict())
    learner.step(train, batches[2])
    other.load_state_dict(state)
    other.step(train, batches[2])
    assert all(p.equal(q) for p, q in zip(phi, other.problem.phi, strict=True))


@pytest.mark.usefixtures("float64")
def test_products_with_the_jacobian_are_those_of_the_matrix():
    matrix = torch.randn(5, 3)
    phi = torch.randn(3, requires_grad=True)
    offset = torch.ones(2, requires_grad=True)  # which no slope feels
    jacobian = Jacobian([matrix @ phi, torch.ones(4)], [phi, offset])
    v = [torch.randn(3), torch.randn(2)]
    assert jacobian.times(v)[0].allclose(matrix @ v[0])
    in_phi, in_offset = jacobian.gram(v)
    assert in_phi.allclose(matrix.T @ matrix @ v[0] / 2) and not in_offset.any()


def test_a_learned_rate_moves_along_its_gradient():
    rate = torch.tensor(1.0)
    descent = NATURAL([Group({"lr": rate}, 0.1)])
    descent.descend([torch.tensor(2.0)], torch.tensor(True))
    assert float(rate) == pytest.approx(0.8)


def test_what_it_cannot_do_is_said_in_a_line():
    def learner():
        return regression(Linear(), NATURAL)[0]

    with pytest.raises(InputError, match=r"^descents\.natural takes .* one at a time$"):
        metaloss.Stack([learner(), learner()])
    one = learner()
    assert isinstance(one.adaptation, ByGradient)
    one.step((torch.randn(7, 4), torch.randn(7, 3)))
    assert one.adaptation.branch() is None  # so no CUDA graph records its steps
    many = torch.randn(100_000, 4), torch.randn(100_000, 3)
    with pytest.raises(InputError, match="at 300000 pairs of outputs and labels, and 262144 is"):
        one.step(many)


@pytest.mark.full  # two runs of each
@pytest.mark.parametrize("method", ["ml3", "adalfl", "meta_lr"])
def test_a_run_by_it_resumes_bit_for_bit(method, tmp_path):
    by_it = [
        f"meta_optimizers.{phase}.descent = @descents.natural"
        for phase in ("offline_unrolled", "online_one_step")
    ]
    by_it.append("descents.natural.momentum = 0.5")
    if method == "ml3":
        del by_it[1]
    assert train(tmp_path / "whole", method, by_it) == 0
    for moment in (lambda state: state.init_steps == 6, lambda state: state.steps == 9):
        with killed_when(moment):
            train(tmp_path / "run", method, by_it, resume=True)
    assert train(tmp_path / "run", method, by_it, resume=True) == 0
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    assert_same_state(tmp_path / "run", tmp_path / "whole")
    plain = train(tmp_path / "adam", method)
    assert plain == 0 and rows(tmp_path / "adam") != rows(tmp_path / "whole")
