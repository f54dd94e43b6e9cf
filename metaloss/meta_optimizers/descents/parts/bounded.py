"""What the shipped descents share: bounds on gradients and distances, and a schedule of η."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Hashable, Sequence
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from metaloss.config.arguments import check
from metaloss.errors import ArgumentError
from metaloss.meta_optimizers.descents.base import Descent, Group
from metaloss.problem.vectors import laid_out

Schedule = Literal["constant", "linear", "cosine"]


class Bounded(Descent):
    """A descent that moves each parameter by a rule, kept within bounds.

    Args:
        groups: the meta-parameters.
        clip_norm: the gradient of a group is scaled down to at most this norm.
        trust_radius: a group stays within this distance of its start, in units of the start's
            norm; a step that would leave is projected back.
        warm_up: meta-steps over which the meta learning rate rises linearly from 0.
        schedule: how the meta learning rate falls from there to 0.
        schedule_steps: the meta-step at which it is 0; for "linear" and "cosine".
    """

    def __init__(
        self,
        groups: Sequence[Group],
        clip_norm: float | None,
        trust_radius: float | None,
        warm_up: int,
        schedule: Schedule,
        schedule_steps: int | None,
    ) -> None:
        if (schedule == "constant") != (schedule_steps is None):
            end = "None" if schedule_steps is not None else "the step at which it is 0"
            asked = f"{end}, as schedule = {schedule!r}"
            raise ArgumentError("schedule_steps", schedule_steps, asked)
        if schedule_steps is not None:
            check("schedule_steps", schedule_steps, Annotated[int, Ge(warm_up + 1)])
        self.groups = [list(group.tensors.values()) for group in groups]
        self._rates = [group.meta_lr for group in groups]
        self._clip_norm = clip_norm
        self._radius = trust_radius
        self._warm_up = warm_up
        self._schedule = schedule
        self._end = schedule_steps
        self._starts = [
            [] if trust_radius is None else [p.detach().clone() for p in group]
            for group in self.groups
        ]
        self._steps = 0

    @abstractmethod
    def rule(self, parameters: list[Tensor], lr: float, finite: Tensor) -> None:
        """Moves parameters of one kind along their `.grad`; all stays where `finite` is False."""

    @abstractmethod
    def rule_state(self) -> dict[str, Any]:
        """What the rule remembers: tensors and plain data."""

    @abstractmethod
    def load_rule_state(self, state: dict[str, Any]) -> None:
        """Takes back what `rule_state` gave."""

    def descend(self, gradients: Sequence[Tensor | None], finite: Tensor) -> None:
        factor = self._factor()
        self._steps += 1
        given = iter(gradients)
        for group, rate in zip(self.groups, self._rates, strict=True):
            for parameter in group:
                gradient = next(given)
                gradient = None if gradient is None else gradient.to(parameter)
                parameter.grad = laid_out(gradient, parameter)
            if self._clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(group, self._clip_norm)
            with torch.no_grad():
                for alike in _alike(group):
                    self.rule(alike, rate * factor, finite)
        if self._radius is not None:
            for group, starts in zip(self.groups, self._starts, strict=True):
                _project(group, starts, self._radius)

    def branch(self) -> Hashable | None:
        return self._factor()

    def replayed(self) -> None:
        self._steps += 1

    def state_dict(self) -> dict[str, Any]:
        return {**self.rule_state(), "steps": self._steps, "starts": self._starts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.load_rule_state(state)
        self._steps = state["steps"]
        for starts, saved in zip(self._starts, state["starts"], strict=True):
            for start, value in zip(starts, saved, strict=True):
                start.copy_(value)

    def _factor(self) -> float:
        """The meta learning rate at this step, in units of η."""
        if self._steps < self._warm_up:
            return (self._steps + 1) / (self._warm_up + 1)
        if self._end is None:
            return 1.0
        share = min(1.0, (self._steps - self._warm_up) / (self._end - self._warm_up))
        return 1 - share if self._schedule == "linear" else (1 + math.cos(math.pi * share)) / 2


class Averages:
    """A tensor beside each parameter, 0 at first, that only a usable gradient changes.

    Args:
        groups: the parameters.
    """

    def __init__(self, groups: Sequence[Sequence[Tensor]]) -> None:
        self._of = {p: torch.zeros_like(p) for group in groups for p in group}

    def __getitem__(self, parameter: Tensor) -> Tensor:
        return self._of[parameter]

    def state(self) -> list[Tensor]:
        """All of them, in the order of the parameters."""
        return list(self._of.values())

    def load(self, state: Sequence[Tensor]) -> None:
        """Takes back what `state` gave, in place."""
        for average, saved in zip(self._of.values(), state, strict=True):
            average.copy_(saved)


def _alike(parameters: list[Tensor]) -> list[list[Tensor]]:
    """Those that have a gradient, by what one call of a kernel can take."""
    kinds: dict[Any, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            kinds.setdefault((parameter.dtype, parameter.device), []).append(parameter)
    return list(kinds.values())


@torch.no_grad()
def _project(parameters: list[Tensor], starts: list[Tensor], radius: float) -> None:
    """Moves parameters back along the line to their start, to where ‖p - p₀‖ <= radius · ‖p₀‖."""
    if not parameters:
        return
    moves = torch._foreach_sub(parameters, starts)
    distance = torch.stack(torch._foreach_norm(moves)).norm()
    allowed = radius * torch.stack(torch._foreach_norm(starts)).norm()
    share = torch.where(distance > allowed, allowed / distance, torch.ones_like(distance))
    for parameter, start, move in zip(parameters, starts, moves, strict=True):
        parameter.copy_(torch.where(share < 1, start + share * move, parameter))
