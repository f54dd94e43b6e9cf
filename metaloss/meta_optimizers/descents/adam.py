"""Adam on the meta-parameters (paper, appendix C), with what keeps it in bounds."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from metaloss.config.arguments import Decay, NonNegativeInt, PositiveFloat, check
from metaloss.errors import ArgumentError
from metaloss.meta_optimizers.descents.base import DESCENTS, Descent, Group
from metaloss.problem.vectors import laid_out


@DESCENTS.register("adam")
class Adam(Descent):
    """Adam (Kingma & Ba, 2015); without options it is the paper's.

    Args:
        groups: the meta-parameters.
        betas: decay of Adam's two averages.
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
        betas: tuple[Decay, Decay] = (0.9, 0.999),
        clip_norm: PositiveFloat | None = None,
        trust_radius: PositiveFloat | None = None,
        warm_up: NonNegativeInt = 0,
        schedule: Literal["constant", "linear", "cosine"] = "constant",
        schedule_steps: int | None = None,
    ) -> None:
        if (schedule == "constant") != (schedule_steps is None):
            end = "None" if schedule_steps is not None else "the step at which it is 0"
            asked = f"{end}, as schedule = {schedule!r}"
            raise ArgumentError("schedule_steps", schedule_steps, asked)
        if schedule_steps is not None:
            check("schedule_steps", schedule_steps, Annotated[int, Ge(warm_up + 1)])
        self._groups = [list(group.tensors.values()) for group in groups]
        self._rates = [group.meta_lr for group in groups]
        self._betas = betas
        self._clip_norm = clip_norm
        self._radius = trust_radius
        self._warm_up = warm_up
        self._schedule = schedule
        self._end = schedule_steps
        self._starts = [
            [] if trust_radius is None else [p.detach().clone() for p in group]
            for group in self._groups
        ]
        self._steps = 0
        self._adam = torch.optim.Adam(
            [
                {"params": group, "lr": rate}
                for group, rate in zip(self._groups, self._rates, strict=True)
            ],
            betas=betas,
            fused=True,
        )

    def descend(self, gradients: Sequence[Tensor | None], finite: Tensor) -> None:
        factor = self._factor()
        self._steps += 1
        given = iter(gradients)
        skip = (~finite).float()
        for group, rate in zip(self._groups, self._rates, strict=True):
            for parameter in group:
                gradient = next(given)
                gradient = None if gradient is None else gradient.to(parameter)
                parameter.grad = laid_out(gradient, parameter)
            if self._clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(group, self._clip_norm)
            for alike in _alike(group):
                self._step(alike, rate * factor, skip)
        if self._radius is not None:
            for group, starts in zip(self._groups, self._starts, strict=True):
                _project(group, starts, self._radius)

    @torch.no_grad()
    def _step(self, parameters: list[Tensor], lr: float, skip: Tensor) -> None:
        """`torch.optim.Adam.step` on its own state, by its kernel alone.

        What that does beside is a step's longest stretch of Python. Where `skip` is 1 the kernel
        does nothing, without a word to the CPU.
        """
        states = [self._adam.state[parameter] for parameter in parameters]
        for parameter, state in zip(parameters, states, strict=True):
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        steps = [state["step"] for state in states]
        skip = skip.to(steps[0].device)
        torch._foreach_add_(steps, 1)
        torch._fused_adam_(
            parameters,
            [parameter.grad for parameter in parameters],  # type: ignore[misc]
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            steps,
            lr=lr,
            beta1=self._betas[0],
            beta2=self._betas[1],
            weight_decay=0.0,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
            found_inf=skip,
        )
        torch._foreach_sub_(steps, [skip] * len(steps))

    def branch(self) -> Hashable | None:
        return self._factor()

    def replayed(self) -> None:
        self._steps += 1

    def state_dict(self) -> dict[str, Any]:
        return {"adam": self._adam.state_dict(), "steps": self._steps, "starts": self._starts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._adam.load_state_dict(state["adam"])
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
