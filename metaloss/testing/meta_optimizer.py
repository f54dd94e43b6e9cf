"""The contract of meta-optimizers."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from metaloss.learner import AdaLFL
from metaloss.meta_optimizers.base import MetaOptimizer
from metaloss.representations.nn import NN
from metaloss.testing.base import float64, require


def check_meta_optimizer(make: Callable[[], MetaOptimizer]) -> None:
    """Holds a meta-optimizer to the contract in `metaloss.meta_optimizers.base`.

    Args:
        make: builds one, with a meta learning rate that makes a difference in 30 steps.
    """
    with float64():
        learner, batch = _small_learner(make())
        start = copy.deepcopy(learner.problem.model.state_dict())
        losses = []
        for _ in range(30):
            learner.problem.model.load_state_dict(start)
            learner.problem.optimizer.state.clear()
            losses.append(learner.step(batch, batch).task_loss)
        seen = [loss for loss in losses if loss is not None]
        if seen:  # else φ follows what was learned before
            require(
                seen[-1] < seen[0],
                f"30 steps do not improve the task loss: {seen[0]} to {seen[-1]}",
            )
        fresh = _meta(_small_learner(make())[0])
        require(
            any(not fresh[name].equal(value) for name, value in _meta(learner).items()),
            "30 steps change no meta-parameter",
        )

        whole, batch = _small_learner(make())
        halves = [_small_learner(make())[0] for _ in range(2)]
        torch.manual_seed(1)
        for _ in range(6):
            whole.step(batch, batch)
        torch.manual_seed(1)
        for _ in range(3):
            halves[0].step(batch, batch)
        halves[1].load_state_dict(copy.deepcopy(halves[0].state_dict()))
        halves[1].problem.model.load_state_dict(halves[0].problem.model.state_dict())
        saved = copy.deepcopy(halves[0].problem.optimizer.state_dict())
        halves[1].problem.optimizer.load_state_dict(saved)
        for _ in range(3):
            halves[1].step(batch, batch)
        for name, value in _learned(whole).items():
            require(value.equal(_learned(halves[1])[name]), f"{name} differs after save and load")


def _small_learner(adaptation: MetaOptimizer) -> tuple[AdaLFL, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    inputs, labels = torch.randn(16, 3), torch.randn(16, 1)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    learner = AdaLFL(
        model,
        optimizer,
        NN(hidden=(8,)),
        nn.functional.mse_loss,
        adaptation=adaptation,
    )
    return learner, (inputs, labels)


def _learned(learner: AdaLFL) -> dict[str, Tensor]:
    return {**learner.problem.model.state_dict(), **_meta(learner)}


def _meta(learner: AdaLFL) -> dict[str, Tensor]:
    problem = learner.problem
    return {**problem.named_phi, "lr": torch.tensor(problem.optimizer.param_groups[0]["lr"])}
