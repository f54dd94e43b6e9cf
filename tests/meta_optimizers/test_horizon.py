"""The initialisation that lets models go on, and the fit to the task loss before it."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metaloss
from metaloss.base_optimizers.base import reset
from metaloss.meta_optimizers.in_turn import InTurn
from metaloss.meta_optimizers.offline_unrolled import OfflineUnrolled
from metaloss.meta_optimizers.task_fit import TaskFit, wide_outputs
from metaloss.problem.redraw import redraw_by_modules
from metaloss.representations.nn import NN


def make_learner(
    optimizer=lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), task_loss=F.cross_entropy
):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 3)
    )
    return metaloss.AdaLFL(model, optimizer(model.parameters()), NN(hidden=(8,)), task_loss)


def make_batches(count=12, size=16):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 4, generator=generator), torch.randint(3, (size,), generator=generator))
        for _ in range(count)
    ]


def phase_of(learner, initialization, batches, start=0, redrawn=None):
    train, objective = itertools.cycle(batches), itertools.cycle(batches[::-1])
    redraw = redraw_by_modules(learner.problem)

    def counting():
        if redrawn is not None:
            redrawn.append(1)
        redraw()

    return learner.initializing(
        initialization,
        lambda: next(train),
        lambda: next(objective),
        counting,
        start,
        trial_steps=0,
    )


@pytest.mark.parametrize(
    ("optimizer", "inner_steps", "warm_up"),
    [
        (lambda p: torch.optim.SGD(p, 0.1), 10, 0),
        (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), 10, 0),
        (lambda p: torch.optim.SGD(p, 0.1, momentum=0.95), 20, 0),
        (lambda p: torch.optim.Adam(p, 0.1), 10, 10),
        (lambda p: torch.optim.AdamW(p, 0.1, betas=(0.95, 0.99)), 20, 20),
        (lambda p: torch.optim.RMSprop(p, 0.1), 10, 1),
    ],
)
def test_the_optimizer_says_through_how_many_steps(optimizer, inner_steps, warm_up):
    phase = OfflineUnrolled()
    phase.attach(make_learner(optimizer).problem)
    assert (phase.inner_steps, phase.warm_up) == (inner_steps, warm_up)
    assert phase.steps == 1200 // inner_steps


def test_what_is_asked_for_is_no_rule():
    phase = OfflineUnrolled(steps=7, inner_steps=3, warm_up=2)
    phase.attach(make_learner(lambda p: torch.optim.Adam(p, 0.1)).problem)
    assert (phase.steps, phase.inner_steps, phase.warm_up) == (7, 3, 2)


def test_to_the_letter_every_meta_step_begins_anew():
    learner, redrawn = make_learner(), []
    phase = OfflineUnrolled(steps=8, inner_steps=2, horizon=1)
    phase.attach(learner.problem)
    for _ in phase_of(learner, phase, make_batches(), redrawn=redrawn):
        pass
    assert len(redrawn) == 8
    assert phase.warm_up == 0


def test_with_a_horizon_models_go_on_and_theta_0_comes_back():
    learner, redrawn = make_learner(), []
    before = copy.deepcopy(learner.problem.model.state_dict())
    phase = OfflineUnrolled(steps=60, inner_steps=2, horizon=20, meta_lr=1e-3)
    phase.attach(learner.problem)
    between = []
    for _ in phase_of(learner, phase, make_batches(), redrawn=redrawn):
        between.append(bool(learner.problem.optimizer.state))
    drawn = len(redrawn) - phase.diverged
    assert 2 <= drawn <= 14  # 1 + 59 · 2/20 in the mean
    assert all(between[:-1])  # the momentum goes on too
    assert not between[-1]
    for name, value in learner.problem.model.state_dict().items():
        assert value.equal(before[name]), name


def test_a_model_that_diverged_is_drawn_anew_and_counted():
    learner, redrawn = make_learner(lambda p: torch.optim.SGD(p, 1e6)), []
    phase = OfflineUnrolled(steps=5, inner_steps=2, horizon=1e9)
    phase.attach(learner.problem)
    for _ in phase_of(learner, phase, make_batches(), redrawn=redrawn):
        pass
    assert phase.diverged == 5
    assert len(redrawn) == 5


@pytest.mark.parametrize("optimizer", [
    lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), lambda p: torch.optim.AdamW(p, 1e-2),
])  # fmt: skip
def test_a_phase_goes_on_bit_for_bit(optimizer):
    def make():
        learner = make_learner(optimizer)
        phase = InTurn(
            [TaskFit(3), OfflineUnrolled(steps=9, inner_steps=2, horizon=12, scale_steps=5)]
        )
        phase.attach(learner.problem)
        return learner, phase

    batches = make_batches(400)
    whole, phase = make()
    torch.manual_seed(5)
    for _ in phase_of(whole, phase, batches):
        pass
    for cut in (2, 3, 6, 8):
        first, phase = make()
        torch.manual_seed(5)
        steps = phase_of(first, phase, batches)
        seen = [next(steps) for _ in range(cut)]
        assert len(seen) == cut
        state = copy.deepcopy((phase.state_dict(), first.state_dict()))
        drawn = torch.get_rng_state()
        used = counted(phase, cut, batches, optimizer)
        second, phase = make()
        second.load_state_dict(state[1])
        phase.load_state_dict(state[0])
        torch.set_rng_state(drawn)
        train, objective = (itertools.cycle(b) for b in (batches, batches[::-1]))
        for stream, count in zip((train, objective), used, strict=True):
            for _ in range(count):
                next(stream)
        redraw = redraw_by_modules(second.problem)
        for _ in second.initializing(
            phase, lambda s=train: next(s), lambda s=objective: next(s), redraw, cut, trial_steps=0
        ):
            pass
        for ours, theirs in zip(second.problem.phi, whole.problem.phi, strict=True):
            assert ours.equal(theirs)


def counted(phase, cut, batches, optimizer):
    """How many training and objective batches the first `cut` steps of the phase have drawn."""
    learner = make_learner(optimizer)
    again = InTurn([TaskFit(3), OfflineUnrolled(steps=9, inner_steps=2, horizon=12, scale_steps=5)])
    again.attach(learner.problem)
    torch.manual_seed(5)
    counts, stream = [0, 0], itertools.cycle(batches)
    other = itertools.cycle(batches[::-1])

    def draw(i, source):
        counts[i] += 1
        return next(source)

    steps = learner.initializing(
        again,
        lambda: draw(0, stream),
        lambda: draw(1, other),
        redraw_by_modules(learner.problem),
        trial_steps=0,
    )
    for _ in range(cut):
        next(steps)
    return counts


@pytest.mark.parametrize(
    ("task_loss", "labels", "outputs", "error"),
    [
        (F.cross_entropy, torch.randint(5, (64,)), torch.zeros(64, 5), 0.4),
        (F.mse_loss, torch.rand(64, 2), torch.zeros(64, 2), 0.15),
    ],
    ids=["cross_entropy", "squared_error"],
)
def test_a_loss_is_fitted_to_the_task_loss(task_loss, labels, outputs, error):
    torch.manual_seed(0)
    model = nn.Linear(1, outputs.shape[1])
    learner = metaloss.AdaLFL(model, torch.optim.SGD(model.parameters(), 0.1), NN(), task_loss)
    phase = TaskFit(500)
    phase.attach(learner.problem)
    batch = torch.zeros(64, 1), labels
    made = [phase.step(lambda: batch, lambda: batch) for _ in range(500)]
    assert torch.stack([step.task_loss for step in made[-50:]]).mean() < error
    reset(learner.problem.optimizer)


def test_wide_outputs_are_right_in_every_other_row_wherever_the_classes_stand():
    torch.manual_seed(0)
    labels = torch.randint(5, (4000,))
    logits = wide_outputs(torch.zeros(4000, 5), labels, F.cross_entropy)
    right = (logits.argmax(1) == labels).float().mean()
    assert 0.4 < right < 0.8
    tokens = torch.randint(5, (40, 7))
    sequences = wide_outputs(
        torch.zeros(40, 7, 5), tokens, lambda f, y: F.cross_entropy(f.flatten(0, 1), y.flatten())
    )
    assert sequences.shape == (40, 7, 5)
    assert (sequences.argmax(-1) == tokens).float().mean() > 0.25
    values = wide_outputs(torch.zeros(4000, 2), torch.full((4000, 2), 3.0), F.mse_loss)
    assert abs(values.mean() - 3) < 0.5


def test_initialize_trains_where_algorithm_1_ruins():
    """SGD with momentum, as everybody has it: a loss of first steps alone leaves chance level."""
    torch.manual_seed(0)
    centres = 2 * torch.randn(3, 4)
    labels = torch.randint(3, (256,))
    inputs = centres[labels] + torch.randn(256, 4)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    learner = metaloss.AdaLFL(model, optimizer, NN())
    half = slice(None, 128), slice(128, None)
    train, valid = ((inputs[rows], labels[rows]) for rows in half)
    learner.initialize([train], [valid], steps=20, fit_steps=150)
    for _ in range(100):
        learner.step(train, valid)
    baseline = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    plain = torch.optim.SGD(baseline.parameters(), 0.1, momentum=0.9)
    for _ in range(100):
        plain.zero_grad()
        F.cross_entropy(baseline(train[0]), train[1]).backward()
        plain.step()

    def error(net):
        with torch.no_grad():
            return (net(valid[0]).argmax(1) != valid[1]).float().mean().item()

    assert error(model) <= 1.3 * error(baseline) + 0.03
