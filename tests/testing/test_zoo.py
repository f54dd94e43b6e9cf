"""The zoo: each unusual model's meta-gradient is right, or it is refused by what it does."""

from __future__ import annotations

import pytest
import torch

import metaloss
from metaloss import links
from metaloss.meta_optimizers.online_one_step import OnlineOneStep
from metaloss.problem.batches import call
from metaloss.testing.base import float64
from metaloss.testing.certification import model as certification
from metaloss.testing.certification.model import check_model
from tests.zoo import REFUSED, ZOO

STEPS = 3


def is_dear(name: str) -> bool:
    """Other people's models, whose import alone takes seconds; but for two."""
    kept = {"timm_deit_tiny_patch16_224", "timm_test_resnet"}
    return name.startswith(("timm_", "transformers_")) and name not in kept


every = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.full if is_dear(name) else ()) for name in ZOO]
)
others_own = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@others_own
@every
def test_right_or_refused(name):
    verdict = check_model(ZOO[name])
    if name in REFUSED:
        assert verdict.holds
        assert REFUSED[name] in verdict.said[-1]
    else:
        assert verdict.right, str(verdict)


def left(model):
    """What a training has left in a model."""
    return {name: value for name, value in model.state_dict().items() if torch.is_tensor(value)}


def plainly_trained(make):
    model, (inputs, labels), loss = certification._made(make)
    optimizer = certification._optimizer(model)
    link = certification._link((inputs, labels))
    for _ in range(STEPS):
        optimizer.zero_grad()
        prediction, target, *weights = link(call(model, inputs), labels)
        torch.autograd.backward(links.mean(loss(prediction, target), *weights))
        optimizer.step()
    return left(model)


@others_own
@pytest.mark.filterwarnings("ignore:the meta-gradient is taken by engine")
@every
def test_its_training_is_the_plain_one(name):
    """By three steps: what follows θ, as a teacher does, shows no earlier than in the second."""
    if name in REFUSED:
        pytest.skip("it is not trained")
    with float64():
        expected = plainly_trained(ZOO[name])
        model, batch, loss = certification._made(ZOO[name])
        adaptation = OnlineOneStep(meta_lr=1e-300)
        learner = metaloss.AdaLFL(
            model,
            certification._optimizer(model),
            loss,
            certification._task_loss(batch),
            link=certification._link(batch),
            adaptation=adaptation,
        )
        for _ in range(STEPS):
            learner.step(batch, batch)
    found = left(model)
    rounding = 0.0 if adaptation.engine.chosen.bitwise else 1e-12
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=rounding, atol=rounding)


def test_the_zoo_is_large():
    assert len(ZOO) >= 60
