"""Followed parameters: which of a model's parameters an optimizer trains, and the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any

import torch
from torch import nn

from metaloss.errors import InputError
from metaloss.problem.refusals import (
    refuse_hooks,
    refuse_scripted,
    refuse_shared_memory,
    refuse_unbuilt,
    refuse_untrue_gradients,
)

#: What a model is made of, for whether it is still what it was: its modules, and of each the mode,
#: the numbers of hooks, and what is in the place of its forward.
Build = list[tuple[Any, ...]]


@dataclass(frozen=True)
class Followed:
    """The parameters of a model, as the meta level sees them."""

    theta: list[nn.Parameter]  #: those that are trained, in the optimizer's order
    names: list[str]  #: theirs in the model
    others: dict[str, nn.Parameter]  #: that require a gradient and are not trained here
    build: Build  #: of the model

    def holds(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> bool:
        """Whether they are still what they were; asked at every step."""
        return trained_by(optimizer, self.theta) and self.build == build_of(model)


def trained_by(optimizer: torch.optim.Optimizer, theta: Sequence[nn.Parameter]) -> bool:
    """Whether these are the parameters that an optimizer trains now, in its order."""
    held = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    return len(held) == len(theta) and all(map(is_, held, theta)) and bool(theta)


def follow(model: nn.Module, optimizer: torch.optim.Optimizer) -> Followed:
    """Sorts a model's parameters by what the optimizer does with them.

    Raises:
        InputError: the optimizer holds a parameter that is not the model's, or none to train; or a
            parameter has hooks.
        UnsupportedModelError: an embedding's gradient is not its derivative, a part with
            parameters is TorchScript, or two parameters are in the same memory.
    """
    refuse_unbuilt(model)
    refuse_scripted(model)
    names = {parameter: name for name, parameter in model.named_parameters()}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    strangers = [tuple(p.shape) for p in held if p not in names]
    if strangers:
        raise InputError(
            f"the optimizer holds a parameter of shape {strangers[0]} that the model does not own, "
            "so its effect on the outputs cannot be followed"
        )
    theta = [p for p in held if p.requires_grad]
    if not theta:
        raise InputError("the optimizer holds no parameter that requires a gradient")
    refuse_hooks(theta)
    refuse_untrue_gradients(model, theta)
    refuse_shared_memory([names[p] for p in theta], theta)
    trained = set(theta)
    return Followed(
        theta,
        [names[p] for p in theta],
        {name: p for p, name in names.items() if p.requires_grad and p not in trained},
        build_of(model),
    )


def build_of(model: nn.Module) -> Build:
    """See `Build`."""
    return [
        (
            id(module), module.training, vars(module).get("forward"),
            len(module._forward_hooks), len(module._forward_pre_hooks),
            len(module._backward_hooks), len(module._backward_pre_hooks),
        )
        for module in model.modules()
    ]  # fmt: skip
