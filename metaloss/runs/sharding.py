"""A run whose training is made in shards: each process has its part of θ, gradients and moments.

Only the training's steps are. The initialisation comes before, on whole models; and evaluations,
figures and checkpoints see the whole model, which the first process alone keeps, as it was when it
was collected last. So a run's files say nothing of shards, and any number of processes goes on.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from metaloss.errors import InputError
from metaloss.learner import AdaLFL
from metaloss.machine import distributed
from metaloss.machine.distributed import local
from metaloss.runs.runner import Runner


def refuse_sharding(plan: Runner, cuda_graphs: bool) -> None:
    """Raises InputError for a run that has no training in shards."""
    engine = getattr(plan.adaptation, "engine", None)
    frozen = [steps for steps in plan.frozen_until.values() if steps]
    reasons = {
        "there is one process: start it by torchrun": not distributed.several(),
        "its engine differentiates the whole model: take 'auto', 'exact' or 'logit_difference'": (
            engine is not None and not engine.of_shards
        ),
        "Runner.ema takes a mean over all of θ after each step": plan.ema is not None,
        "Runner.swa takes a mean over all of θ after each step": plan.swa is not None,
        "Runner.frozen_until changes what is trained in shards that are there": bool(frozen),
        "Runner.memory_format: fully_shard takes contiguous parameters": (
            plan.memory_format == "channels_last"
        ),
        "cuda_graphs hold no collectives": cuda_graphs,
    }
    for reason, holds in reasons.items():
        if holds:
            raise InputError(f"--sharded: {reason}")


class Sharded:
    """The learner of the shards, beside the learner of a whole model.

    Args:
        whole: as it stands at the training's first step, or where a checkpoint was.
        model: another of the same kind; its numbers are taken over.
        optimizer: a recipe, called with the sharded model.
        make: a learner of a model and its optimizer, with the same loss and adaptation.

    Attributes:
        learner: makes the steps.
    """

    def __init__(
        self,
        whole: AdaLFL,
        model: nn.Module,
        optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        make: Callable[[nn.Module, torch.optim.Optimizer], AdaLFL],
    ) -> None:
        from torch.distributed.fsdp import fully_shard

        self._whole = whole
        theirs = whole.problem.model
        model.load_state_dict(theirs.state_dict())
        for one, other in zip(model.parameters(), theirs.parameters(), strict=True):
            one.requires_grad_(other.requires_grad)
        for unit in _units(model):
            fully_shard(unit)
        fully_shard(model)
        self._model = model
        made = optimizer(self._model)
        before = whole.problem.optimizer
        for group, old in zip(made.param_groups, before.param_groups, strict=True):
            group.update({name: value for name, value in old.items() if name != "params"})
        states = {
            i: {name: _as_part(value, p) for name, value in state.items()}
            for i, p in enumerate(_parameters(made))
            if (state := before.state_dict()["state"].get(i))
        }
        made.load_state_dict({"state": states, "param_groups": made.state_dict()["param_groups"]})
        stands = copy.deepcopy(whole.state_dict())  # before the adaptation is given another problem
        self.learner = make(self._model, made)
        self.learner.load_state_dict(stands)
        self.learner.tell, whole.watch = whole.tell, self.learner.watch
        if distributed.rank() > 0:  # the first one's is enough
            for parameter in theirs.parameters():
                parameter.data = parameter.new_empty(0)

    @torch.no_grad()
    def collect(self, moments: bool = False) -> None:
        """Gives the whole model the numbers of now; all processes take part.

        Args:
            moments: the optimizer's state too.
        """
        shards, whole = self.learner.problem, self._whole.problem
        assert shards.shards is not None
        shards.shards.gathered()
        whole.by_task_loss = shards.by_task_loss
        self._whole.steps_by_task_loss = self.learner.steps_by_task_loss
        theirs = whole.model.state_dict()
        for name, part in self._model.state_dict().items():
            value = _collected(part)
            if distributed.rank() == 0:
                theirs[name].copy_(value)
        for group, own in zip(
            whole.optimizer.param_groups, shards.optimizer.param_groups, strict=True
        ):
            group.update({name: value for name, value in own.items() if name != "params"})
        if not moments:
            return
        states = {
            i: {name: _collected(v) if torch.is_tensor(v) else v for name, v in state.items()}
            for i, state in shards.optimizer.state_dict()["state"].items()
        }
        if distributed.rank() == 0:
            groups = whole.optimizer.state_dict()["param_groups"]
            whole.optimizer.load_state_dict({"state": states, "param_groups": groups})


def _units(module: nn.Module) -> Iterator[nn.Module]:
    """What is gathered at once: the layers of chains and lists. Of tied parameters all are one."""
    named = dict(module.named_parameters(remove_duplicate=False))
    if len(named) > len({id(parameter) for parameter in named.values()}):
        return
    for child in module.children():
        if isinstance(child, (nn.Sequential, nn.ModuleList)):
            yield from _units(child)
        elif next(child.parameters(), None) is not None:
            yield child


def _parameters(optimizer: torch.optim.Optimizer) -> list[Any]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _as_part(value: Any, parameter: Any) -> Any:
    """A number of the optimizer's, or this process's part of what it has for each of θ's."""
    from torch.distributed.tensor import distribute_tensor

    if not torch.is_tensor(value) or value.shape != parameter.shape:
        return copy.deepcopy(value)
    return distribute_tensor(
        value.detach().clone(), parameter.device_mesh, parameter.placements, src_data_rank=None
    )


def _collected(part: Tensor) -> Tensor:
    """A tensor of which each process has a part, whole on all."""
    whole: Any = part
    found: Tensor = whole.full_tensor() if local(part) is not part else part
    return found
