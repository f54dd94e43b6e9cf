"""A torch.optim step as mathematics: θ', s' = U(θ, g, s), and the derivatives of U that we need.

The user's own optimizer object always makes the step. An `Update` says the same thing once more as
a function that can be differentiated, so that the meta-gradient knows how θ' depends on g.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from metaloss.errors import UncertifiedOptimizerError

Hyperparameters = dict[str, Any]
State = dict[str, Any]


#: How much of the optimizer's state before a step is kept: nothing, what the derivative of the
#: step depends on, or all of it.
KeepState = Literal["nothing", "derivative", "values"]


@dataclass(frozen=True)
class GroupStep:
    """A step of one parameter group, seen from after it; the lists are aligned with each other."""

    hyper: Hyperparameters  #: the group's settings at that step ("lr", "momentum", ...)
    theta: list[Tensor]  #: parameters before the step
    grad: list[Tensor]  #: their gradients g
    state: list[State]  #: optimizer state after the step (the live one, not a copy)
    first: list[bool]  #: whether the parameter had no optimizer state before


class Update(ABC):
    """The step of one torch.optim class. All of U is elementwise, so that derivatives are too."""

    #: True if U is linear in (θ, g, s): its derivatives then need no values of the state.
    linear = False

    @abstractmethod
    def step(
        self, theta: Tensor, grad: Tensor, state: State, hyper: Hyperparameters
    ) -> tuple[Tensor, State]:
        """θ' and s' from θ, g and s, all of the parameter's shape, differentiable in each of them.

        `state` is empty before the first step. Its "step" counter, if any, is a plain number here.
        """

    @abstractmethod
    def cotangent(self, step: GroupStep, v: list[Tensor]) -> list[Tensor]:
        """u = (∂θ'/∂g)ᵀ v in closed form, finite also where a gradient is exactly zero."""

    def scale(self, step: GroupStep) -> float | None:
        """c if u = c·v, one number for the whole group; else None."""
        return None

    @abstractmethod
    def direction(self, step: GroupStep) -> list[Tensor]:
        """∂θ'/∂lr in closed form: the negative update direction."""


_UPDATES: dict[type[torch.optim.Optimizer], Update] = {}


def certify(optimizer: type[torch.optim.Optimizer]) -> Callable[[type[Update]], type[Update]]:
    """A class decorator: this `Update` is the step of that class, and of no subclass of it."""

    def enter(update: type[Update]) -> type[Update]:
        _UPDATES[optimizer] = update()
        return update

    return enter


def certified_optimizers() -> list[type[torch.optim.Optimizer]]:
    """The optimizer classes with a registered `Update`."""
    return list(_UPDATES)


def update_of(optimizer: torch.optim.Optimizer) -> Update:
    """The `Update` of an optimizer object.

    Raises:
        UncertifiedOptimizerError: its class has none (a subclass of a certified class may step
            differently, so it is refused too), or it has hooks around its step.
    """
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        raise UncertifiedOptimizerError(
            f"the {type(optimizer).__name__} has step hooks, and what they change in a step cannot "
            "be followed: remove them"
        )
    try:
        return _UPDATES[type(optimizer)]
    except KeyError:
        known = ", ".join(sorted(known.__name__ for known in _UPDATES))
        raise UncertifiedOptimizerError(
            f"no certified meta-gradient for {type(optimizer).__module__}."
            f"{type(optimizer).__qualname__} · certified: {known} · another optimizer needs an "
            "Update, registered with metaloss.update.certify"
        ) from None


class TakenStep:
    """One step of a torch.optim object, with what its derivatives need.

    Vectors over θ are lists aligned with `theta`; None stands for zero (a parameter that the model
    did not use has no gradient, and torch.optim leaves it alone).

    Args:
        optimizer: makes the step, along the gradients in `.grad`.
        theta: the parameters that are differentiated through.
        keep: how much of the state before the step to keep, for `pullback` and `differentiable`.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, theta: Sequence[nn.Parameter], keep: KeepState
    ) -> None:
        self._update = update_of(optimizer)
        self._theta = theta
        self._optimizer = optimizer
        states = optimizer.state
        self.theta_before: list[Tensor] = [p.detach().clone() for p in theta]
        self.state_before: list[State] = (
            [] if keep == "nothing" else [self._copy(states.get(p, {}), keep) for p in theta]
        )
        self._first = [not _has_tensors(states.get(p, {})) for p in theta]
        place = {parameter: i for i, parameter in enumerate(theta)}
        self._groups: list[tuple[Hyperparameters, list[int]]] = [
            (
                {key: value for key, value in group.items() if key != "params"},
                [place[p] for p in group["params"] if p in place and p.grad is not None],
            )
            for group in optimizer.param_groups
        ]
        optimizer.step()

    def cotangent(self, v: Sequence[Tensor | None]) -> list[Tensor | None]:
        """u = (∂θ'/∂g)ᵀ v, by the closed form. Valid until the optimizer steps again."""
        u: list[Tensor | None] = [None] * len(v)
        for hyper, places in self._groups:
            given = [(i, value) for i in places if (value := v[i]) is not None]
            step = self._seen_from_after(hyper, [i for i, _ in given])
            results = self._update.cotangent(step, [value for _, value in given])
            for (i, _), result in zip(given, results, strict=True):
                u[i] = result
        return u

    def scale(self) -> float | None:
        """c if u = c·v by one number for all parameters that have a gradient; else None."""
        scales = {
            self._update.scale(self._seen_from_after(hyper, places))
            for hyper, places in self._groups
            if places
        }
        return scales.pop() if len(scales) == 1 else None

    def direction(self, ratios: Sequence[float]) -> list[Tensor | None]:
        """∂θ'/∂α for groups with lr = ratio · α, by the closed form. Valid as `cotangent` is."""
        directions: list[Tensor | None] = [None] * len(self._theta)
        for (hyper, places), ratio in zip(self._groups, ratios, strict=True):
            results = self._update.direction(self._seen_from_after(hyper, places))
            for i, result in zip(places, results, strict=True):
                directions[i] = result if ratio == 1 else ratio * result
        return directions

    def differentiable(
        self, theta: Sequence[Tensor], grad: Sequence[Tensor | None], state: Sequence[State]
    ) -> tuple[list[Tensor], list[State]]:
        """θ', s' once more, as differentiable functions of the θ, g and s that are given."""
        theta_after, state_after = list(theta), list(state)
        for hyper, places in self._groups:
            for i in places:
                gradient = grad[i]
                assert gradient is not None
                theta_after[i], state_after[i] = self._update.step(
                    theta[i], gradient, state[i], hyper
                )
        return theta_after, state_after

    def pullback(
        self,
        grad: Sequence[Tensor | None],
        theta_bar: Sequence[Tensor | None],
        state_bar: Sequence[dict[str, Tensor]],
    ) -> tuple[list[Tensor | None], list[Tensor | None], list[dict[str, Tensor]]]:
        """The transposed derivative of the whole step, by autograd through U.

        Args:
            grad: g of that step.
            theta_bar: cotangent of θ'.
            state_bar: cotangents of the tensors in s', by name; {} for zero.

        Returns:
            The cotangents of θ (through U alone, not through g), of g and of s.
        """
        theta_out, state_out = list(theta_bar), list(state_bar)
        grad_out: list[Tensor | None] = [None] * len(theta_bar)
        for hyper, places in self._groups:
            for i in places:
                theta, gradient = _leaf(self.theta_before[i]), _leaf(grad[i])
                state = {
                    key: _leaf(value) if torch.is_tensor(value) else value
                    for key, value in self.state_before[i].items()
                }
                names = [key for key, value in state.items() if torch.is_tensor(value)]
                after, state_after = self._update.step(theta, gradient, state, hyper)
                ends = [(after, theta_bar[i])] if theta_bar[i] is not None else []
                ends += [(state_after[key], bar) for key, bar in state_bar[i].items()]
                theta_out[i], grad_out[i], *bars = (
                    torch.autograd.grad(
                        [end for end, _ in ends],
                        [theta, gradient, *(state[key] for key in names)],
                        [bar for _, bar in ends],
                        allow_unused=True,
                    )
                    if ends
                    else [None] * (2 + len(names))
                )
                state_out[i] = {
                    key: bar for key, bar in zip(names, bars, strict=True) if bar is not None
                }
        return theta_out, grad_out, state_out

    def _seen_from_after(self, hyper: Hyperparameters, places: list[int]) -> GroupStep:
        theta = [self._theta[i] for i in places]
        return GroupStep(
            hyper=hyper,
            theta=[self.theta_before[i] for i in places],
            grad=[p.grad for p in theta],  # type: ignore[misc]
            state=[self._optimizer.state.get(p, {}) for p in theta],
            first=[self._first[i] for i in places],
        )

    def _copy(self, state: State, keep: KeepState) -> State:
        """A parameter's state, the step counter as a number.

        The derivative of a linear U depends on no values: one zero, expanded, stands in for each
        tensor and takes no memory.
        """
        copy: State = {}
        for key, value in state.items():
            if key == "step":
                copy[key] = float(value)
            elif torch.is_tensor(value):
                copy[key] = (
                    value.new_zeros(()).expand_as(value)
                    if self._update.linear and keep == "derivative"
                    else value.detach().clone()
                )
        return copy


def _has_tensors(state: State) -> bool:
    """Whether a parameter has optimizer state; SGD without momentum leaves a None behind."""
    return any(torch.is_tensor(value) for value in state.values())


def _leaf(value: Tensor | None) -> Tensor:
    assert value is not None
    return value.detach().requires_grad_()
