"""Followed parameters: which of a model's parameters an optimizer trains, and the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import is_

import torch
from torch import nn

from metaloss.errors import InputError
from metaloss.problem.refusals import refuse_hooks, refuse_unbuilt, refuse_untrue_gradients


@dataclass(frozen=True)
class Followed:
    """The parameters of a model, as the meta level sees them."""

    theta: list[nn.Parameter]  #: those that are trained, in the optimizer's order
    names: list[str]  #: theirs in the model
    others: dict[str, nn.Parameter]  #: that require a gradient and are not trained here


def trained_by(optimizer: torch.optim.Optimizer, theta: Sequence[nn.Parameter]) -> bool:
    """Whether these are the parameters that an optimizer trains now, in its order."""
    held = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    return len(held) == len(theta) and all(map(is_, held, theta)) and bool(theta)


def follow(model: nn.Module, optimizer: torch.optim.Optimizer) -> Followed:
    """Sorts a model's parameters by what the optimizer does with them.

    Raises:
        InputError: the optimizer holds a parameter that is not the model's, or none to train; or a
            parameter has hooks.
        UnsupportedModelError: an embedding's gradient is not its derivative.
    """
    refuse_unbuilt(model)
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
    trained = set(theta)
    return Followed(
        theta,
        [names[p] for p in theta],
        {name: p for p, name in names.items() if p.requires_grad and p not in trained},
    )
