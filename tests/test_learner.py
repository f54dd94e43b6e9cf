"""AdaLFL in one's own training loop."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metaloss
from metaloss.errors import InputError, MissingGradientError, UncertifiedOptimizerError
from metaloss.representations.base import Representation


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2),
        nn.Linear(4 * 36, 10),
    )  # fmt: skip


def make_loss() -> Representation:
    torch.manual_seed(1)
    return metaloss.REPRESENTATIONS["nn"](hidden=(8, 8))


def make_batches(count: int, seed: int = 0) -> list:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(16, 1, 8, 8, generator=generator),
            torch.randint(10, (16,), generator=generator),
        )
        for _ in range(count)
    ]


OPTIMIZERS = {
    "nesterov": lambda p: torch.optim.SGD(
        p, lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4
    ),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, dampening=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3),
}


@pytest.mark.parametrize("adaptation", ["none", "zero", "rarely", "next"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_with_phi_frozen_theta_equals_plain_training_bit_for_bit(optimizer, adaptation):
    """50 steps; without meta-steps, with meta-steps of length 0, and in between meta-steps.

    The dropout masks of the validation pass are no others' masks.
    """
    plain, model, loss = make_model(), make_model(), make_loss()
    plain_optimizer, own_optimizer = (OPTIMIZERS[optimizer](m.parameters()) for m in (plain, model))
    schedulers = [
        torch.optim.lr_scheduler.CosineAnnealingLR(o, 50) for o in (plain_optimizer, own_optimizer)
    ]
    online = metaloss.META_OPTIMIZERS["online_one_step"]
    learner = metaloss.AdaLFL(
        model,
        own_optimizer,
        loss,
        meta_lr=None,
        adaptation={
            "none": None,
            "zero": online(meta_lr=1e-300),
            "rarely": online(meta_lr=1e-300, every=7),
            "next": online(meta_lr=1e-300, objective="next"),
        }[adaptation],
    )
    batches, valid = make_batches(50), make_batches(50, seed=1)
    torch.manual_seed(5)
    for x, y in batches:
        plain_optimizer.zero_grad()
        loss(*metaloss.links.probabilities(plain(x), y)).mean().backward()
        plain_optimizer.step()
        schedulers[0].step()
    torch.manual_seed(5)
    for train_batch, valid_batch in zip(batches, valid, strict=True):
        learner.step(train_batch, valid_batch)
        schedulers[1].step()
    for name, value in plain.state_dict().items():
        assert model.state_dict()[name].equal(value), name


def test_online_learning_lowers_the_task_loss():
    """On one batch, learning φ on the way beats keeping the same random φ."""
    (batch,) = make_batches(1)
    reached = {}
    for meta_lr in (None, 1e-2):
        model = make_model()
        learner = metaloss.AdaLFL(
            model, torch.optim.SGD(model.parameters(), lr=0.1), make_loss(), meta_lr=meta_lr
        )
        for _ in range(100):
            learner.step(batch)
        reached[meta_lr] = F.cross_entropy(model.eval()(batch[0]), batch[1]).item()
    assert reached[1e-2] < 0.5 * reached[None]


def test_step_result_and_lazy_validation_batches():
    model = make_model()
    drawn = []
    learner = metaloss.AdaLFL(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        make_loss(),
        meta_lr=None,
        adaptation=metaloss.META_OPTIMIZERS["online_one_step"](every=3),
    )
    for i, batch in enumerate(make_batches(7)):
        result = learner.step(batch, lambda i=i, batch=batch: drawn.append(i) or batch)
        assert result.learned_loss.ndim == 0 and not result.learned_loss.requires_grad
        assert (result.task_loss is None) == (i % 3 != 0) == (result.gradient_norm is None)
    assert drawn == [0, 3, 6]


def test_initialize_restores_theta_and_learns_phi():
    model, loss = make_model(), make_loss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    learner = metaloss.AdaLFL(model, optimizer, loss)
    theta, phi = copy.deepcopy(model.state_dict()), copy.deepcopy(loss.state_dict())
    learner.initialize(make_batches(3), make_batches(2, seed=1), steps=7, inner_steps=2)
    for name, value in theta.items():
        assert model.state_dict()[name].equal(value), name
    assert not optimizer.state
    assert not any(value.equal(phi[name]) for name, value in loss.state_dict().items())


def test_initialize_needs_a_way_to_redraw():
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(64, 10))

        def forward(self, x):
            return x.flatten(1) @ self.weight

    model = Bare()
    learner = metaloss.AdaLFL(model, torch.optim.SGD(model.parameters(), lr=0.1), make_loss())
    with pytest.raises(InputError, match=r"Bare owns parameters and has no reset_parameters\(\)"):
        learner.initialize(make_batches(1), make_batches(1))
    learner.initialize(
        make_batches(1), make_batches(1), steps=2, fit_steps=2, trial_steps=0,
        redraw=lambda: nn.init.normal_(model.weight),
    )  # fmt: skip
    assert model.weight.eq(1).all()


def test_state_dict_continues_bit_for_bit():
    def start():
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return model, optimizer, metaloss.AdaLFL(model, optimizer, make_loss(), meta_lr=1e-2)

    batches = make_batches(8)
    model, optimizer, learner = start()
    for batch in batches[:4]:
        learner.step(batch)
    states = copy.deepcopy((model.state_dict(), optimizer.state_dict(), learner.state_dict()))
    random = torch.get_rng_state()
    for batch in batches[4:]:
        learner.step(batch)

    again, optimizer_again, learner_again = start()
    for part, state in zip((again, optimizer_again, learner_again), states, strict=True):
        part.load_state_dict(state)
    torch.set_rng_state(random)
    for batch in batches[4:]:
        learner_again.step(batch)
    for a, b in ((model, again), (learner.problem.loss, learner_again.problem.loss)):
        for name, value in a.state_dict().items():
            assert b.state_dict()[name].equal(value), name


# A loss with random weights is found unhealthy, which leaves nothing behind either.
@pytest.mark.filterwarnings("ignore::metaloss.errors.HealthWarning")
def test_no_tensor_outlives_its_step():
    def living() -> int:
        gc.collect()
        return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())

    model = make_model()
    learner = metaloss.AdaLFL(
        model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9), make_loss(),
        on_unhealthy="warn",
    )  # fmt: skip
    batch = make_batches(1)[0]
    for _ in range(24):  # the first probe of health is over, which keeps the shares of the labels
        learner.step(batch)
    before = living()
    for _ in range(50):
        learner.step(batch)
    assert living() <= before


class Breaking(Representation):
    """A loss whose meta-gradient is NaN once its switch is on."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.broken = False

    def forward(self, prediction, target):
        loss = self.scale * (prediction - target).square().mean(-1)
        return loss + (self.scale - self.scale).sqrt() * prediction.sum(-1) if self.broken else loss


def test_a_meta_gradient_that_is_not_finite_is_skipped_and_counted():
    model, loss = make_model(), Breaking()
    learner = metaloss.AdaLFL(model, torch.optim.SGD(model.parameters(), lr=0.01), loss)
    batches = make_batches(3)
    assert not learner.step(batches[0]).skipped
    scale = loss.scale.clone()
    loss.broken = True
    assert learner.step(batches[1]).skipped
    assert loss.scale.equal(scale)
    loss.broken = False
    assert not learner.step(batches[2]).skipped


def test_a_first_meta_gradient_that_is_not_finite_is_an_error():
    model, loss = make_model(), Breaking()
    loss.broken = True
    learner = metaloss.AdaLFL(model, torch.optim.SGD(model.parameters(), lr=0.01), loss)
    with pytest.raises(
        MissingGradientError, match=r"no meta-parameter received a finite gradient \(scale\)"
    ):
        learner.step(make_batches(1)[0])


def test_a_missing_meta_gradient_is_an_error():
    class Offset(Representation):
        def __init__(self) -> None:
            super().__init__()
            self.offset = nn.Parameter(torch.zeros(()))

        def forward(self, prediction, target):
            return (prediction - target).square().mean(-1) + self.offset

    model = make_model()
    learner = metaloss.AdaLFL(model, torch.optim.SGD(model.parameters(), lr=0.01), Offset())
    with pytest.raises(
        MissingGradientError, match=r"no meta-parameter received a gradient \(offset\)"
    ):
        learner.step(make_batches(1)[0])
    handcrafted = metaloss.REPRESENTATIONS["cross_entropy"]()
    with pytest.raises(MissingGradientError, match="there is nothing to learn"):
        metaloss.AdaLFL(model, torch.optim.SGD(model.parameters(), lr=0.01), handcrafted)


def test_what_cannot_be_followed_is_refused():
    model = make_model()

    class MySGD(torch.optim.SGD):
        pass

    with pytest.raises(UncertifiedOptimizerError) as error:
        metaloss.AdaLFL(model, MySGD(model.parameters(), lr=0.1), make_loss())
    assert "MySGD · certified: ASGD, " in str(error.value)
    hooked = torch.optim.SGD(model.parameters(), lr=0.1)
    hooked.register_step_pre_hook(lambda *_: None)
    with pytest.raises(UncertifiedOptimizerError, match="the SGD has step hooks"):
        metaloss.AdaLFL(model, hooked, make_loss())
    stranger = nn.Parameter(torch.zeros(3, 2))
    with pytest.raises(InputError, match=r"a parameter of shape \(3, 2\) that the model does not"):
        metaloss.AdaLFL(
            model, torch.optim.SGD([*model.parameters(), stranger], lr=0.1), make_loss()
        )
    with pytest.raises(InputError, match="wrapped in DataParallel"):
        metaloss.AdaLFL(
            nn.DataParallel(model), torch.optim.SGD(model.parameters(), lr=0.1), make_loss()
        )


def test_regression_by_floating_point_labels():
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    loss = make_loss()
    learner = metaloss.AdaLFL(
        model, torch.optim.SGD(model.parameters(), lr=0.01), loss, F.mse_loss, meta_lr=1e-2
    )
    before = copy.deepcopy(loss.state_dict())
    result = learner.step((torch.randn(4, 3), torch.randn(4, 1)))
    with pytest.raises(InputError, match=r"outputs \[4, 1\] for labels \[4\]"):
        learner.step((torch.randn(4, 3), torch.randn(4)))
    assert result.task_loss is not None
    assert any(not v.equal(before[name]) for name, v in loss.state_dict().items())


def test_meta_lr_owns_the_learning_rate():
    """A scheduler has no effect; groups keep their ratio; a start at 0 is refused."""
    model = make_model()
    first, *rest = model.parameters()
    groups = [{"params": [first], "lr": 0.02}, {"params": rest, "lr": 0.04}]
    optimizer = torch.optim.SGD(groups)
    meta_lr = metaloss.META_OPTIMIZERS["meta_lr"](meta_lr=1e-3, every=2)
    learner = metaloss.AdaLFL(model, optimizer, None, adaptation=meta_lr)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    (batch,) = make_batches(1)
    for _ in range(4):
        learner.step(batch)
        one, other = (group["lr"] for group in optimizer.param_groups)
        assert other == pytest.approx(2 * one) and 0.017 < one < 0.023 and one != 0.02
        scheduler.step()
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    with pytest.raises(InputError, match="a learning rate that starts at 0"):
        metaloss.AdaLFL(model, optimizer, None, adaptation=meta_lr)


# --- how φ moves ---


def test_a_descent_is_said_to_the_learner_itself():
    """`AdaLFL(descent=...)` is `adaptation` written out, and `initialize` has one of its own."""
    asked, made = [], []

    def sgd(groups):
        asked.append([group.meta_lr for group in groups])
        return metaloss.DESCENTS["sgd"](groups=groups, momentum=0.5)

    for how in ("descent", "adaptation"):
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loss = metaloss.REPRESENTATIONS["taylor"]()
        more = {"meta_lr": 0.5, "descent": sgd}
        if how == "adaptation":
            more = {"adaptation": metaloss.META_OPTIMIZERS["online_one_step"](0.5, descent=sgd)}
        learner = metaloss.AdaLFL(model, optimizer, loss, **more)
        batch, *train = [(torch.randn(8, 4), torch.randint(3, (8,))) for _ in range(3)]
        start = [p.clone() for p in learner.problem.phi]
        learner.initialize(train, train, 1, 1, 0.25, 1.0, 0, trial_steps=0, descent=sgd)
        assert not all(p.equal(q) for p, q in zip(start, learner.problem.phi, strict=True))
        for _ in range(3):
            learner.step(batch, batch)
        made.append([p.clone() for p in learner.problem.phi])
    assert [0.25] in asked and [0.5] in asked
    assert all(p.equal(q) for p, q in zip(*made, strict=True))


def test_a_descent_is_said_by_its_name():
    model = nn.Linear(4, 3)
    optimizer, loss = torch.optim.SGD(model.parameters()), metaloss.REPRESENTATIONS["taylor"]()
    batch, starts = (torch.randn(8, 4), torch.randint(3, (8,))), []
    for descent in ("sgd", metaloss.DESCENTS["sgd"]):
        start = copy.deepcopy((model.state_dict(), loss.state_dict()))
        torch.manual_seed(0)  # models are drawn anew
        learner = metaloss.AdaLFL(model, optimizer, loss, meta_lr=0.1, descent=descent)
        learner.initialize([batch], [batch], 1, 1, fit_steps=0, trial_steps=0, descent=descent)
        learner.step(batch, batch)
        starts.append([p.clone() for p in loss.parameters()])
        model.load_state_dict(start[0])
        loss.load_state_dict(start[1])
    assert all(p.equal(q) for p, q in zip(*starts, strict=True))
    with pytest.raises(InputError, match="no 'sdg' in descents; did you mean 'sgd'.* known: adam"):
        metaloss.AdaLFL(model, optimizer, loss, descent="sdg")
    with pytest.raises(InputError, match="descent = 3"):
        metaloss.AdaLFL(model, optimizer, loss, descent=3)


def test_an_optimizer_of_torch_is_no_descent():
    model = nn.Linear(4, 3)
    optimizer, loss = torch.optim.SGD(model.parameters()), metaloss.REPRESENTATIONS["taylor"]()
    with pytest.raises(InputError, match=r"descent = SGD, .* as metaloss.DESCENTS\['sgd'\]"):
        metaloss.AdaLFL(model, optimizer, loss, descent=torch.optim.SGD)
