"""Health: losses spoilt on purpose are noticed in every kind of task, and healthy ones are not."""

from __future__ import annotations

import copy
import functools
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metaloss
from metaloss import links
from metaloss.errors import HealthWarning, InputError
from metaloss.learner import earlier_phis, initialization_of
from metaloss.machine.memory import measuring
from metaloss.meta_optimizers import offline_unrolled
from metaloss.problem.health import PROBES, Watch, by_parameters, constant_loss
from tests.helpers import thinned

#: Factors of a loss's output layer.
SPOILT = {"scale": 30.0, "sign": -1.0, "constant": 0.0}
KINDS = ("classification", "binary", "multi_label", "dense", "regression")
FEW = ("classification", "regression")  #: of the small run, where they are trained on for long


def task_of(kind):
    """Inputs, labels, task loss, link and number of outputs; noisy, so that errors are left."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 6, generator=generator)
    z = x @ torch.randn(6, 4, generator=generator) + torch.randn(600, 4, generator=generator)
    if kind == "classification":
        return x, z.argmax(-1), F.cross_entropy, links.by_labels, 4
    if kind == "regression":
        return x, z[:, :1], F.mse_loss, links.by_labels, 1
    if kind == "binary":
        labels = (z[:, :1] > 0).float()
        return x, labels, F.binary_cross_entropy_with_logits, links.multi_label, 1
    if kind == "dense":
        return x, z.unflatten(1, (2, 2)).argmax(1), F.cross_entropy, links.Dense(), 4
    return x, (z > 0).float(), F.binary_cross_entropy_with_logits, links.multi_label, 4


def learner_of(kind, **arguments):
    x, y, task_loss, link, outputs = task_of(kind)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, outputs))
    if kind == "dense":  # two classes at each of two places
        model.append(nn.Unflatten(1, (2, 2)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
    learner = metaloss.AdaLFL(
        model, optimizer, metaloss.REPRESENTATIONS["nn"](), task_loss, link=link, **arguments
    )
    return learner, batches(x[:400], y[:400]), batches(x[400:], y[400:])


def batches(x, y, size=40):
    """Shuffled batches without end, from a generator of their own."""
    generator = torch.Generator().manual_seed(1)
    while True:
        for rows in torch.randperm(len(x), generator=generator).split(size):
            yield x[rows], y[rows]


@functools.cache
def initial_of(kind):
    """What a learner of the kind saves after its initialisation."""
    learner, train, valid = learner_of(kind)
    learner.initialize(
        lambda: next(train), lambda: next(valid), steps=3, inner_steps=5, fit_steps=200,
        trial_steps=40,
    )  # fmt: skip
    return learner.state_dict()


def initialized(kind, **arguments):
    learner, train, valid = learner_of(kind, **arguments)
    learner.load_state_dict(initial_of(kind))
    return learner, train, valid


def spoil(learner, how):
    with torch.no_grad():
        [*learner.problem.loss.parameters()][-1].mul_(SPOILT[how])


def train_on(learner, train, valid, steps):
    for _ in range(steps):
        learner.step(next(train), next(valid))


@pytest.mark.parametrize(
    "kind", thinned(((kind,) for kind in KINDS), keep=lambda kind: kind in FEW)
)
def test_healthy_losses_raise_no_alarm(kind):
    learner, train, valid = initialized(kind)
    assert learner.health().status == "healthy"
    assert learner.health().numbers["share"] > 0.5
    train_on(learner, train, valid, 130)
    found = learner.health(next(valid))
    assert (found.status, found.warnings) == ("healthy", ())
    assert found.numbers["cosine"] > 0.5
    assert {"cosine_theta", "ratio_theta", "task_loss", "constant_loss"} <= set(found.numbers)


@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize("kind", KINDS)
def test_spoilt_losses_are_noticed_within_100_steps(kind, how):
    learner, train, valid = initialized(kind)
    train_on(learner, train, valid, 30)
    spoil(learner, how)
    with pytest.warns(HealthWarning):
        train_on(learner, train, valid, 90)
    assert learner.health().status == "task_loss"  # what it falls back on
    assert learner.health().warnings


def test_probes_change_no_bit_of_the_training():
    """Nor of what is drawn: the model drops out, and normalises by batches."""

    def trained(every):
        x, y, task_loss, _, outputs = task_of("classification")
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, outputs)
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        learner = metaloss.AdaLFL(
            model, optimizer, metaloss.REPRESENTATIONS["nn"](), health_every=every
        )
        train, valid = batches(x, y), batches(x, y)
        for _ in range(5):
            learner.step(next(train), lambda: next(valid))
        return [*model.state_dict().values(), *learner.problem.phi, torch.get_rng_state()]

    for probed, plain in zip(trained(1), trained(0), strict=True):
        assert torch.equal(probed, plain)


def many_outputs(outputs, **arguments):
    """A learner whose loss is read from a table, and a batch."""
    torch.manual_seed(0)
    model = nn.Linear(6, outputs)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    learner = metaloss.AdaLFL(model, optimizer, metaloss.REPRESENTATIONS["nn"](), **arguments)
    return learner, (torch.randn(128, 6), torch.randint(outputs, (128,)))


def test_probes_look_at_tables_and_leave_them_as_they_are():
    """Where φ moves so far that they are certified anew, and where it stays, too."""

    def trained(every, stop):
        online = metaloss.META_OPTIMIZERS["online_one_step"](0.02, stop=stop, engine="exact")
        learner, batch = many_outputs(70, adaptation=online, tabulate="always", health_every=every)
        for _ in range(20):
            learner.step(batch, batch)
        theta, phi = (list(m.parameters()) for m in (learner.problem.model, learner.problem.loss))
        return theta + phi, learner.problem.tables.state_dict()

    for stop in (None, 5):
        (probed, seen), (plain, unseen) = trained(1, stop), trained(0, stop)
        assert all(map(torch.equal, probed, plain))
        assert torch.equal(seen.pop("at"), unseen.pop("at"))
        assert seen == unseen


def test_a_probe_of_many_outputs_takes_no_more_memory_than_a_step():
    """The network of the loss, at each of a batch's pairs, would take fifty times as much."""
    learner, batch = many_outputs(2000)
    for _ in range(3):  # before the first ones it is found out what the model is
        learner.step(batch, batch)
    peaks = []
    for what in (lambda: learner.step(batch, batch), lambda: learner.health(batch)):
        with measuring(torch.device("cpu")) as memory:
            what()
        peaks.append(memory.peak_bytes)
    assert peaks[1] <= peaks[0]


def test_probes_draw_nothing():
    """Functions that give batches are asked as often as without; also where none is validated."""
    learner, train, valid = learner_of("classification", health_every=1, meta_lr=None)
    learner.step(lambda: next(train), lambda: pytest.fail("no meta-step is due"))
    learner.step(lambda: next(train), lambda: pytest.fail("no meta-step is due"))
    assert learner.health().numbers["task_loss"] > 0


def test_a_saved_watch_goes_on():
    one, train, valid = initialized("regression", health_every=2)
    given = [(next(train), next(valid)) for _ in range(12)]
    for pair in given[:6]:
        one.step(*pair)
    saved, θ = copy.deepcopy(one.state_dict()), copy.deepcopy(one.problem.model.state_dict())
    momentum = copy.deepcopy(one.problem.optimizer.state_dict())
    other, *_ = learner_of("regression", health_every=2)
    other.load_state_dict(saved)
    other.problem.model.load_state_dict(θ)
    other.problem.optimizer.load_state_dict(momentum)
    for pair in given[6:]:
        one.step(*pair)
        other.step(*pair)
    assert one.health() == other.health()


def test_a_failed_trial_brings_the_fitted_loss_back():
    learner, train, valid = learner_of("classification")
    kept = []
    learner.tell = lambda trouble: kept.append([trouble, *map(torch.clone, learner.problem.phi)])
    learner.initialize(
        lambda: next(train), lambda: next(valid), steps=6, inner_steps=1, meta_lr=1e6,
        horizon=1, fit_steps=200, scale_steps=0, trial_steps=40,
    )  # fmt: skip
    ((trouble, *spoilt),) = kept
    assert trouble.endswith("φ is again as its fit to the task loss left it")
    assert max(float(p.detach().abs().max()) for p in spoilt) > 1e4
    assert learner.health().status == "healthy" and learner.health().numbers["share"] > 0.5
    assert learner.health().warnings  # what was found is not forgotten


def test_a_failed_trial_brings_the_loss_from_before_the_search_of_its_scale_back(monkeypatch):
    learner, train, valid = learner_of("classification")
    kept = []

    def spoil(problem, *_):
        kept.append([parameter.detach().clone() for parameter in problem.phi])
        with torch.no_grad():
            for parameter in problem.phi:
                parameter.mul_(1e3)
        return 1e3

    monkeypatch.setattr(offline_unrolled, "search", spoil)
    learner.tell = lambda trouble: kept.append(trouble)
    learner.initialize(
        lambda: next(train), lambda: next(valid), steps=6, inner_steps=1, meta_lr=1e-3,
        horizon=1, fit_steps=200, scale_steps=1, trial_steps=40,
    )  # fmt: skip
    before, trouble = kept
    end = "φ is again as the meta-steps, before the search of its scale, left it"
    assert trouble.endswith(end)
    assert all(map(torch.equal, learner.problem.phi, before))
    assert learner.health().status == "healthy"


def test_a_run_that_is_resumed_knows_the_way_back():
    """φ as the fit left it is in the phase's state, also where the phase after it has begun."""
    learner, train, valid = learner_of("classification")
    draws = (lambda: next(train)), (lambda: next(valid))
    phase = initialization_of(
        steps=2, inner_steps=1, meta_lr=1e-2, horizon=1, fit_steps=3, scale_steps=0
    )
    phase.attach(learner.problem)
    for _ in range(4):
        phase.step(*draws)
    (left,) = phase.left
    saved = copy.deepcopy(phase.state_dict())
    other = initialization_of(
        steps=2, inner_steps=1, meta_lr=1e-2, horizon=1, fit_steps=3, scale_steps=0
    )
    other.attach(learner.problem)
    other.load_state_dict(saved)
    ((_, known),) = earlier_phis(other)
    assert all(map(torch.equal, known, left))
    assert not all(map(torch.equal, learner.problem.phi, left))


def test_where_nothing_helps_it_is_said():
    learner, train, valid = learner_of("classification")
    spoil(learner, "constant")
    with pytest.warns(HealthWarning):
        learner.initialize(
            lambda: next(train), lambda: next(valid), steps=1, inner_steps=1, meta_lr=1e-12,
            horizon=1, fit_steps=0, scale_steps=0, trial_steps=5,
        )  # fmt: skip
    assert learner.health().status == "task_loss"
    *_, trouble, answer = learner.health().warnings
    assert "base steps on the learned loss" in trouble
    assert answer == "initialisation: from here on base steps descend the task loss, to the end"


def test_a_loss_that_failed_its_trial_stays_out_of_use():
    """Its probes may be well: they do not see that it trains nothing."""
    learner, train, valid = initialized("classification", health_every=2)
    learner.watch.failed = learner.problem.by_task_loss = True
    train_on(learner, train, valid, 10)
    assert learner.watch.well
    assert learner.health().status == "task_loss"
    assert learner.steps_by_task_loss == 10


def test_the_training_falls_back_on_the_task_loss():
    learner, train, valid = initialized("classification", health_every=2)
    spoil(learner, "sign")
    with pytest.warns(HealthWarning):
        train_on(learner, train, valid, 10)
    assert learner.health().status == "task_loss"
    x, y = next(train)
    plain = copy.deepcopy(learner.problem.model)
    F.cross_entropy(plain(x), y).backward()
    learner.step((x, y), next(valid))
    for own, expected in zip(learner.problem.theta, plain.parameters(), strict=True):
        assert torch.equal(own.grad, expected.grad)


def test_a_loss_that_is_unhealthy_twice_stays_out_of_use():
    learner, train, valid = initialized("classification", health_every=2)
    for _ in range(4):  # the other sign, and back, twice
        spoil(learner, "sign")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HealthWarning)
            train_on(learner, train, valid, 12)
    assert learner.watch.well
    assert learner.health().status == "task_loss"
    told = [text.partition(": ")[2] for text in learner.health().warnings if "from here" in text]
    assert told == [
        "from here on base steps descend the task loss",
        "the learned loss is well again: from here on base steps descend the learned loss",
        "from here on base steps descend the task loss, to the end",
    ]


@pytest.mark.parametrize("on_unhealthy", ["task_loss", "warn"])
def test_a_class_that_was_lost_comes_back_by_the_task_loss(on_unhealthy):
    """And the learned loss goes on from there; by itself it leaves the class lost."""
    learner, train, valid = initialized("classification", on_unhealthy=on_unhealthy)
    x, y, *_ = task_of("classification")
    train_on(learner, train, valid, 100)
    with torch.no_grad():
        learner.problem.model[-1].bias[0] -= 14.0
    told = 1 if on_unhealthy == "warn" else 3
    with pytest.warns(HealthWarning):
        train_on(learner, train, valid, 400)
    found = learner.health()
    with torch.no_grad():
        wrong = float((learner.problem.model(x).argmax(-1) != y)[y == 0].float().mean())
    assert len(found.warnings) == told, found
    assert "the task loss is" in found.warnings[0]
    if on_unhealthy == "warn":
        assert (found.status, wrong, learner.steps_by_task_loss) == ("unhealthy", 1.0, 0)
        return
    assert found.status == "healthy"
    assert found.warnings[1].endswith("from here on base steps descend the task loss")
    back = int(found.warnings[2].split()[1].rstrip(":"))
    assert found.warnings[2].startswith(f"step {back}: the learned loss is well again")
    assert 0 < learner.steps_by_task_loss < back - 100
    assert wrong < 0.4


def test_the_loss_can_go_back_to_where_it_was_healthy():
    learner, train, valid = initialized(
        "classification", on_unhealthy="last_healthy", health_every=2, meta_lr=1e-12
    )
    train_on(learner, train, valid, 14)
    before = [p.clone() for p in learner.problem.phi]
    spoil(learner, "sign")
    with pytest.warns(HealthWarning):
        train_on(learner, train, valid, 6)
    for now, then in zip(learner.problem.phi, before, strict=True):
        torch.testing.assert_close(now, then)


def test_each_loss_of_a_stack_has_its_own_health():
    made = [initialized("classification", health_every=2) for _ in range(2)]
    learners = [learner for learner, *_ in made]
    stack = metaloss.Stack(learners)
    spoil(learners[1], "sign")
    train, valid = made[0][1:]
    with pytest.warns(HealthWarning):
        for _ in range(10):
            drawn = [[torch.stack([part] * 2) for part in next(b)] for b in (train, valid)]
            stack.step(*drawn)
    assert [learner.health().status for learner in learners] == ["healthy", "task_loss"]
    with pytest.raises(InputError, match="ask its learners"):
        stack.health()


@pytest.mark.parametrize("engine", ["auto", "sweep", "unrolled"])
@pytest.mark.parametrize("spoilt", [(1,), (0, 1)])
def test_a_stack_falls_back_where_its_learners_do_alone(spoilt, engine):
    """And comes back with them, θ and φ and all; a meta-step is due every third step."""

    def made():
        learners = []
        for _ in range(2):
            adaptation = metaloss.META_OPTIMIZERS["online_one_step"](1e-3, every=3, engine=engine)
            learner, *draws = initialized("classification", health_every=2, adaptation=adaptation)
            learners.append((learner, *draws))
        return learners

    alone, stacked = made(), made()
    stack = metaloss.Stack([learner for learner, *_ in stacked])
    for step in range(24):
        for i, (learner, train, valid) in enumerate(alone):
            if i in spoilt and step in (3, 10):  # the other sign, and back
                spoil(learner, "sign")
                spoil(stacked[i][0], "sign")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", HealthWarning)
                learner.step(next(train), next(valid))
        drawn = [[torch.stack(p) for p in zip(*(next(d[k]) for d in stacked), strict=True)]
                 for k in (1, 2)]  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HealthWarning)
            stack.step(*drawn)
        for (one, *_), (other, *_) in zip(alone, stacked, strict=True):
            assert one.problem.by_task_loss == other.problem.by_task_loss
            for a, b in zip(one.problem.theta, other.problem.theta, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
            for a, b in zip(one.problem.phi, other.problem.phi, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    for i, (learner, *_) in enumerate(stacked):
        found = learner.health()
        assert found == alone[i][0].health() or found.status == alone[i][0].health().status
        assert learner.steps_by_task_loss == alone[i][0].steps_by_task_loss
        assert (0 < learner.steps_by_task_loss < 20) == (i in spoilt)
        assert learner.health().status == "healthy"


@pytest.mark.parametrize("kind", ["classification", "regression", "multi_label"])
def test_a_constant_prediction_is_the_best_one(kind):
    learner, _, _ = learner_of(kind)
    _, y, task_loss, _, outputs = task_of(kind)
    like = torch.zeros(len(y), outputs)
    found = float(constant_loss(learner.problem, like, y, [Watch()]))
    row = torch.zeros(outputs, requires_grad=True)
    optimizer = torch.optim.LBFGS([row], max_iter=100)

    def closure():
        optimizer.zero_grad()
        loss = task_loss(row.expand(len(y), outputs), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert math.isclose(found, closure().item(), rel_tol=1e-4)


def test_gradients_are_compared_in_parts_in_which_a_few_wrong_examples_have_no_say():
    """The learned loss is three times the task loss, but for far errors, on which it is flat."""

    class Deaf(metaloss.REPRESENTATIONS["squared_error"]):
        def forward(self, prediction, target):
            error = (prediction - target).square().mean(-1)
            return 3 * torch.where(error < 100, error, 100.0)

    x, y, task_loss, link, _ = task_of("regression")
    model = nn.Linear(6, 1)
    learner = metaloss.AdaLFL(
        model, torch.optim.SGD(model.parameters(), lr=0.1), Deaf(), task_loss, link=link,
        meta_lr=None,
    )  # fmt: skip
    y[:5] += 1e4
    assert by_parameters(learner.problem, (x, y)) == pytest.approx((1, 3), rel=1e-4)
    assert learner.health((x, y)).numbers["ratio_theta"] < 0.1  # of all at once


def test_a_fitted_model_leaves_nothing_to_judge():
    """Its slopes are those of rounding, and a learned label smoothing has the other sign."""
    watch = Watch()
    for step in range(PROBES):
        assert watch.judge(step, [-0.9, 1e-3, 0.001, 1.0]) == []
    assert watch.well


@pytest.mark.parametrize(
    ("step", "cosine", "task_loss", "kinds"),
    [(51, 0.4, 1.5, 1), (50, 0.4, 1.5, 0), (51, 0.6, 1.5, 0), (51, 0.4, 1.0, 0)],
)
def test_a_loss_that_does_little_about_a_high_task_loss_is_said(step, cosine, task_loss, kinds):
    """It leaves a class alone, say; later the few examples that are wrong may be noise."""
    watch = Watch()
    for _ in range(PROBES):
        told = watch.judge(step, [cosine, 1.0, task_loss, 2.3])
    assert len(told) == kinds
