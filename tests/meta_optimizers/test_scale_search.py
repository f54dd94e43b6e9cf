"""The search of a loss's scale, or a learned rate's, by trainings on multiples of it."""

from __future__ import annotations

import copy
import itertools
import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metaloss
from metaloss.base_optimizers.rates.bounded import Bounded
from metaloss.base_optimizers.rates.exponential import Exponential
from metaloss.meta_optimizers.in_turn import InTurn
from metaloss.meta_optimizers.offline_unrolled import OfflineUnrolled
from metaloss.meta_optimizers.parts.scale_search import search
from metaloss.meta_optimizers.task_fit import TaskFit
from metaloss.problem.meta_parameters import MetaParameters
from metaloss.problem.redraw import redraw_by_modules
from metaloss.representations.terms import Terms


def quadratic(rate, loss=None, optimizer=torch.optim.SGD, **settings):
    """θ ∈ R from 1 on, inputs 1, labels 0: with M = c·θ² a step is θ' = (1 - 2 c lr) θ."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(model.weight)
    loss = loss if loss is not None else Terms(["e^2"], [1.0]).double()
    learner = metaloss.AdaLFL(
        model, optimizer(model.parameters(), rate, **settings), loss, F.mse_loss
    )
    batch = torch.ones(3, 1, dtype=torch.float64), torch.zeros(3, 1, dtype=torch.float64)
    return learner, batch


def searched(learner, batch, steps=4, meta=None):
    problem = learner.problem
    meta = meta or MetaParameters(problem)
    draw = lambda: batch  # noqa: E731
    return search(problem, meta, draw, draw, lambda: nn.init.ones_(problem.model.weight), steps)


@pytest.mark.parametrize(
    ("rate", "multiple"),
    [
        # Powers of two of 2 c lr: the least loss is at 1, and within a tenth of it nothing else is.
        (0.5, 1), (0.25, 2), (0.125, 4), (0.5 / 64, 64),
        # Doubling makes these diverge: they are halved while that helps. What trains nothing stays.
        (0.9, 0.5), (0.98, 0.5), (1.0, 1), (32.0, 1),
        # Farther than eight doublings it does not go.
        (0.5 / 1024, 256),
    ],
)  # fmt: skip
def test_the_multiple_is_the_one_that_trains_best(rate, multiple):
    learner, batch = quadratic(rate)
    assert searched(learner, batch) == multiple
    assert learner.problem.loss.weights.item() == multiple  # powers of 2 round nothing


def test_of_those_within_a_tenth_the_nearest_to_what_was_learned_is_taken():
    """Two steps of 2 c lr = .02: the end is .92, and .96 of that, .92 of it, .85, ... doubled."""
    learner, batch = quadratic(0.01)
    ends = {2**k: (1 - 0.02 * 2**k) ** 4 for k in range(9)}
    least = min(ends.values())
    assert searched(learner, batch, steps=2) == min(m for m in ends if ends[m] <= 1.1 * least) == 64
    # One step of 2 c lr = .9 is at .01 of the start, doubled .64: it stays. Of .96 too, though half
    # of it would be better for noise that is not there.
    assert searched(*quadratic(0.45), steps=1) == 1


@pytest.mark.parametrize(("first", "multiple"), [(0.0, 4), (2.0, 1)])
def test_a_larger_loss_that_is_above_the_start_on_its_way_is_out(first, multiple):
    """A first batch of label 2 drives θ from 1 to 1 + a, and three of label 0 to (1 + a)(1 - a)³.

    With a = .25 that ends at .28 of the start. With a = .5 it ends at .04, but is at 2.25 before.
    """
    learner, (inputs, zeros) = quadratic(0.25 / 2)
    order = itertools.cycle([(inputs, zeros + first), *[(inputs, zeros)] * 3])
    meta, model = MetaParameters(learner.problem), learner.problem.model
    found = search(
        learner.problem, meta, lambda: next(order), lambda: (inputs, zeros),
        lambda: nn.init.ones_(model.weight), 4,
    )  # fmt: skip
    assert found == multiple


def test_nothing_is_multiplied_where_that_changes_no_step_or_nothing_trains():
    assert searched(*quadratic(0.01, optimizer=torch.optim.Adam)) == 1
    learner, batch = quadratic(0.25, metaloss.REPRESENTATIONS["robust"]().double())
    assert searched(learner, batch) == 1  # no parameters of it multiply it
    learner, batch = quadratic(0.25)
    assert searched(learner, batch, meta=MetaParameters(learner.problem, ())) == 1
    learner, batch = quadratic(0.25, Terms(["e^2"], [-1.0]).double())  # no multiple trains
    assert searched(learner, batch) == 1
    assert learner.problem.loss.weights.item() == -1


def test_momentum_is_empty_at_each_start():
    learner, batch = quadratic(0.05, momentum=0.9)
    problem = learner.problem
    ends = {}
    for power in range(-1, 8):
        theta, velocity = 1.0, 0.0
        for _ in range(4):
            velocity = 0.9 * velocity + 2 * 2.0**power * theta
            theta -= 0.05 * velocity
        ends[2.0**power] = theta**2
    best = min(ends, key=ends.get)
    assert searched(learner, batch) == best
    assert problem.optimizer.state  # of the last training: the learner empties it


@pytest.mark.parametrize("rate", [Exponential(), Bounded(1e-4, 10.0)])
def test_a_learned_rate_is_searched_likewise(rate):
    learner, batch = quadratic(0.125)
    meta = MetaParameters(learner.problem, (), rate)
    assert searched(learner, batch, meta=meta) == 4
    assert float(rate.decode(meta.x)) == pytest.approx(0.5)
    assert learner.problem.optimizer.param_groups[0]["lr"] == pytest.approx(0.5)
    assert learner.problem.loss.weights.item() == 1


def test_a_rate_stays_within_its_bounds_and_is_not_rounded():
    learner, batch = quadratic(0.125)
    meta = MetaParameters(learner.problem, (), Bounded(1e-4, 0.2))
    before = meta.x.clone()
    assert searched(learner, batch, meta=meta) == 1
    assert meta.x.equal(before)


def small(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.2), nn.Linear(6, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.001, momentum=0.9)
    learner = metaloss.AdaLFL(model, optimizer, metaloss.REPRESENTATIONS["nn"](hidden=(8,)))
    batches = [(torch.randn(16, 4), torch.randint(3, (16,))) for _ in range(7)]
    batches = [(x + F.one_hot(y, 4), y) for x, y in batches]
    return learner, batches


def phase_of(learner, phase, batches, start=0):
    train, valid = itertools.cycle(batches), itertools.cycle(batches[::-1])
    redraw = redraw_by_modules(learner.problem)
    return learner.initializing(
        phase, lambda: next(train), lambda: next(valid), redraw, start, trial_steps=0
    )


def test_it_ends_the_initialisation_and_says_what_it_found(caplog):
    found = {}
    for scale_steps in (0, 20):
        learner, batches = small()
        learn = OfflineUnrolled(4, 2, 20, scale_steps=scale_steps)
        phase = InTurn([TaskFit(150), learn])
        phase.attach(learner.problem)
        before = copy.deepcopy(learner.problem.model.state_dict())
        with caplog.at_level(logging.INFO, "metaloss"):
            for _ in phase_of(learner, phase, batches):
                pass
        assert all(v.equal(before[n]) for n, v in learner.problem.model.state_dict().items())
        assert not learner.problem.optimizer.state
        found[scale_steps] = learner.problem.loss.layers[-1].weight.detach(), learn.multiple
    assert found[0][1] == 1
    assert found[20][1] > 1  # the rate is far too small
    assert found[20][0].equal(found[0][0] * found[20][1])
    (line,) = caplog.messages
    assert line == f"scale: {found[20][1]:g} times what the meta-steps have made it"
