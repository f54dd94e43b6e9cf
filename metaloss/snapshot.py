"""Snapshots: the base level as it was, for steps that are made on trial."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from metaloss import distributed, seeding
from metaloss.problem import Problem


def take(problem: Problem) -> dict[str, Any]:
    """θ, buffers and the optimizer's state, not its settings; plain data that can be saved."""
    return {
        "model": {name: value.clone() for name, value in problem.model.state_dict().items()},
        "optimizer": copy.deepcopy(problem.optimizer.state_dict()["state"]),
    }


def put_back(problem: Problem, snapshot: dict[str, Any]) -> None:
    """Sets the base level to what `take` gave."""
    problem.model.load_state_dict(snapshot["model"])
    settings = problem.optimizer.state_dict()["param_groups"]
    problem.optimizer.load_state_dict(
        {"state": copy.deepcopy(snapshot["optimizer"]), "param_groups": settings}
    )


@contextmanager
def on_trial(problem: Problem) -> Iterator[None]:
    """Within it, base steps may be made; afterwards model, optimizer and generators are as before.

    Gradients in `.grad` are gone.
    """
    before, random_state = take(problem), seeding.global_state(problem.device)
    try:
        yield
    finally:
        put_back(problem, before)
        seeding.set_global_state(random_state, problem.device)
        for parameter in problem.theta:
            parameter.grad = None


@torch.no_grad()
def task_loss(problem: Problem, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """L_T on a batch at the current θ, without gradient; running statistics stay."""
    with problem.replaced({}, problem.copy_buffers()):
        loss = problem.task_loss(problem.forward(batch[0]), batch[1])
    _, (loss,) = distributed.mean_beside([], [], [loss], len(batch[1]))
    return loss
