"""Stacked: equal modules, and equal optimizers, as one; all make their passes and steps at once.

The parameters of S modules lie in one tensor [S, ...], and each module's own are views of its part:
what is written into one is there in the other. A pass of all is one pass of torch.func.vmap, and as
every certified step of torch.optim is elementwise, one optimizer makes the steps of all.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.stateless import _reparametrize_module

from metaloss.base_optimizers.base import State, update_of
from metaloss.errors import InputError, UnsupportedModelError, first_line


class Stacked(nn.Module):
    """S modules of one build: [S, ...] in, [S, ...] out.

    Args:
        members: the modules; the first one's code makes all passes. Their parameters and buffers
            become views.
        what: they are, for messages.

    Raises:
        InputError: their parameters or buffers are of other names, shapes, types or devices.
        UnsupportedModelError: they have an embedding with a padding row.
    """

    def __init__(self, members: Sequence[nn.Module], what: str) -> None:
        super().__init__()
        first, *others = [dict(_tensors(member)) for member in members]
        for number, other in enumerate(others, start=1):
            if (ours := _kinds(first)) != (theirs := _kinds(other)):
                differing = [name for name in ours if theirs.get(name) != ours[name]]
                raise InputError(
                    f"{what} {number} is built otherwise than {what} 0 ("
                    f"{(differing or [*theirs.keys() - ours.keys()])[0]}): a stack is of equal ones"
                )
        for module in members[0].modules():
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                raise UnsupportedModelError(
                    f"the {what} has {module}, and torch.func.vmap lets the padding rows of all "
                    "members but one move: train these seeds one at a time"
                )
        self.module = copy.deepcopy(members[0])
        # Of this very class: one derived from it may use its parameters otherwise.
        self._whole = bool(vars(type(self.module)).get("takes_stacks", False))
        self._over = over_members(self._pass, f"the {what}")
        stacks: dict[Tensor, Tensor] = {}  # by the first member's, which may have several names
        for name, tensor in first.items():
            if tensor not in stacks:
                stacks[tensor] = _stack([tensor, *(other[name] for other in others)])
            owner, _, leaf = name.rpartition(".")
            setattr(self.module.get_submodule(owner), leaf, stacks[tensor])

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The members' results on their parts of the arguments, all tensors [S, ...]."""
        if self._whole:
            return self.module(*args, **kwargs)
        return self._over(dict(_tensors(self.module)), args, kwargs)

    def _pass(self, tensors: dict[str, Tensor], args: Any, kwargs: Any) -> Any:
        before = dict(tensors)
        with (
            sdpa_kernel(SDPBackend.MATH),  # vmap has no rule for the fused kernels
            _reparametrize_module(self.module, tensors, stack_weights=True),
        ):
            result = self.module(*args, **kwargs)
        for name, tensor in tensors.items():
            if tensor is not before[name]:
                raise UnsupportedModelError(
                    f"{name} is another tensor after a pass, which a stack would not see: change "
                    "it in place"
                )
        return result


def stack_optimizers(
    optimizers: Sequence[torch.optim.Optimizer], models: Sequence[nn.Module], stacked: Stacked
) -> torch.optim.Optimizer:
    """One optimizer over the parameters of stacked models, without a state yet.

    From now on the optimizers have their parts of its state whenever their `state_dict` is asked
    for.

    Raises:
        InputError: they are of other classes, groups or settings.
    """
    names: list[dict[Tensor, str]] = [
        {p: name for name, p in model.named_parameters()} for model in models
    ]
    settings = [
        (type(optimizer), [_settings(group, own) for group in optimizer.param_groups])
        for optimizer, own in zip(optimizers, names, strict=True)
    ]
    if any(setting != settings[0] for setting in settings):
        raise InputError("the base optimizers are not built alike: a stack is of equal ones")
    parameters = dict(stacked.module.named_parameters(remove_duplicate=False))
    made = copy.copy(optimizers[0])
    made.__dict__.update({**optimizers[0].__dict__, **made.__dict__})  # torch copies a part
    made.param_groups = [
        {**group, "params": [parameters[names[0][p]] for p in group["params"]]}
        for group in optimizers[0].param_groups
    ]
    made.state = defaultdict(dict)
    for index, optimizer in enumerate(optimizers):
        optimizer.register_state_dict_pre_hook(partial(_hand_out, made, index))
    return made


def stack_states(made: torch.optim.Optimizer, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Gives the optimizer of all the states that each one has now.

    Raises:
        InputError: they have made other numbers of steps.
    """
    made.state.clear()
    for parameter, *own in zip(_held(made), *map(_held, optimizers), strict=True):
        states = [optimizer.state.get(p, {}) for optimizer, p in zip(optimizers, own, strict=True)]
        if any(states):
            made.state[parameter] = _stack_state(states, own[0].shape, update_of(made).counters)


def _stack_state(states: Sequence[State], shape: torch.Size, counters: tuple[str, ...]) -> State:
    """The state of one parameter of all members; what is not of its shape goes with the steps."""
    first = states[0]
    counted = [{key: float(state[key]) for key in counters if key in state} for state in states]
    if any(s.keys() != first.keys() for s in states) or any(c != counted[0] for c in counted):
        raise InputError("the base optimizers have made other numbers of steps")
    return {
        key: torch.stack([state[key] for state in states])
        if torch.is_tensor(value) and value.shape == shape and key not in counters
        else copy.deepcopy(value)
        for key, value in first.items()
    }


def _hand_out(stacked: torch.optim.Optimizer, index: int, member: torch.optim.Optimizer) -> None:
    """Gives a member's optimizer its part of the state of all."""
    member.state.clear()
    for parameter, own in zip(_held(stacked), _held(member), strict=True):
        if state := stacked.state.get(parameter):
            member.state[own] = {
                key: value[index]
                if torch.is_tensor(value) and value.shape == parameter.shape
                else copy.deepcopy(value)
                for key, value in state.items()
            }


def _held(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _settings(group: Mapping[str, Any], names: Mapping[Tensor, str]) -> dict[str, Any]:
    """A parameter group without its tensors."""
    plain = {key: float(v) if torch.is_tensor(v) else v for key, v in group.items()}
    return {**plain, "params": [names[p] for p in group["params"]]}


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All parameters and buffers, under all of their names."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _kinds(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Any, ...]]:
    return {
        name: (tuple(t.shape), t.dtype, t.device, t.requires_grad, isinstance(t, nn.Parameter))
        for name, t in tensors.items()
    }


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    """The tensors in one, [S, ...], of which they become views."""
    stack = torch.stack([tensor.detach() for tensor in tensors])
    for tensor, part in zip(tensors, stack, strict=True):
        tensor.data = part
    if isinstance(tensors[0], nn.Parameter):
        return nn.Parameter(stack, tensors[0].requires_grad)
    return stack


def over_members(function: Callable[..., Any], what: str) -> Callable[..., Any]:
    """A function of tensors as one of stacks [S, ...] of them; its random numbers differ.

    Args:
        function: of tensors, in tuples, lists and dicts, that gives the like.
        what: it is, for messages.

    Raises:
        UnsupportedModelError: from the function made: torch.func.vmap cannot follow this one.
    """
    each = torch.func.vmap(function, randomness="different")

    def over(*arguments: Any) -> Any:
        try:
            return each(*arguments)
        except (InputError, NotImplementedError, torch.OutOfMemoryError):
            raise
        except (RuntimeError, ValueError) as error:
            reason = first_line(error).split(". ")[0]
            raise UnsupportedModelError(
                f"{what} cannot be followed by torch.func.vmap ({reason}): train these seeds one "
                "at a time"
            ) from error

    return over
