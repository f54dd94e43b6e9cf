"""Snapshots: the base level as it was, for steps that are made on trial."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from metaloss.machine import distributed, seeding
from metaloss.problem.batches import StepBatch
from metaloss.problem.problem import Problem

EXTRA = "_extra_state"  #: torch's name of what a module keeps beside tensors


def take(problem: Problem) -> dict[str, Any]:
    """θ, buffers and the optimizer's state, not its settings; plain data that can be saved."""
    with _without_strays(problem.optimizer):
        state = copy.deepcopy(problem.optimizer.state_dict()["state"])
    return {"model": model_values(problem.model), "optimizer": state}


@contextmanager
def _without_strays(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Within it, an optimizer's state is of the parameters it has: torch reads and sets no other.

    It may have more where a parameter was replaced by another one.
    """
    held = {p for group in optimizer.param_groups for p in group["params"]}
    strays = {p: optimizer.state.pop(p) for p in optimizer.state.keys() - held}
    try:
        yield
    finally:
        optimizer.state.update(strays)


def model_values(model: nn.Module) -> dict[str, Any]:
    """Copies of all that a forward or a base step may change in a model.

    Not by its state_dict, which a model may write and read as it likes.
    """
    state: dict[str, Any] = {name: tensor.detach().clone() for name, tensor in _held(model).items()}
    for path, module in model.named_modules(remove_duplicate=False):
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            state[_extra(path)] = copy.deepcopy(module.get_extra_state())
    return {"state": state}


@torch.no_grad()
def set_model_values(model: nn.Module, values: dict[str, Any]) -> None:
    """Sets a model to what `model_values` gave."""
    state = {**values["state"], **values.get("not_persistent", {})}  # the latter of older states
    for name, tensor in _held(model).items():
        if tensor.shape != state[name].shape:
            tensor.data = state[name].clone()
        else:
            tensor.copy_(state[name])
    for path, module in model.named_modules(remove_duplicate=False):
        if _extra(path) in state:
            module.set_extra_state(copy.deepcopy(state[_extra(path)]))


def _held(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name, of several names the first."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _extra(path: str) -> str:
    return f"{path}.{EXTRA}" if path else EXTRA


def put_back(problem: Problem, snapshot: dict[str, Any]) -> None:
    """Sets the base level to what `take` gave."""
    set_model_values(problem.model, snapshot["model"])
    # The settings of now: load_state_dict would put back a learning rate that a scheduler, or a
    # meta-step, has changed since.
    with _without_strays(problem.optimizer):
        settings = problem.optimizer.state_dict()["param_groups"]
        problem.optimizer.load_state_dict(
            {"state": copy.deepcopy(snapshot["optimizer"]), "param_groups": settings}
        )


@contextmanager
def on_trial(problem: Problem, batch: StepBatch) -> Iterator[None]:
    """Within it, base steps may be made; afterwards model, optimizer and generators are as before.

    Gradients in `.grad` are gone.

    Args:
        batch: of training, by which to see what of the model a pass changes, if that is not known.
    """
    problem.probe(batch)
    surroundings = problem.surroundings.whole()
    before, random_state = take(problem), seeding.global_state(problem.device)
    try:
        with problem.surroundings.on_trial():
            yield
    finally:
        surroundings.put_back()  # first: a layer that a pass has built is in no state before
        put_back(problem, before)
        seeding.set_global_state(random_state, problem.device)
        for parameter in problem.theta:
            parameter.grad = None


@torch.no_grad()
def task_loss(problem: Problem, batch: StepBatch) -> torch.Tensor:
    """L_T on a batch at the current θ, without gradient; the surroundings stay as they are."""
    with torch.enable_grad():
        problem.probe(batch)
    with problem.aside(), problem.replaced({}, problem.surroundings.keep()):
        loss = problem.whole(batch, problem.task_loss)
    return distributed.mean_beside([], [], [loss], problem.weight(batch))[1][0]
