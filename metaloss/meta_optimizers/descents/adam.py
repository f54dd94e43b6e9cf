"""Adam on the meta-parameters (paper, appendix C), with what keeps it in bounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from metaloss.config.arguments import Decay, NonNegativeInt, PositiveFloat
from metaloss.meta_optimizers.descents.base import DESCENTS, Group
from metaloss.meta_optimizers.descents.parts.bounded import Bounded


@DESCENTS.register("adam")
class Adam(Bounded):
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
        super().__init__(groups, clip_norm, trust_radius, warm_up, schedule, schedule_steps)
        self._betas = betas
        self._adam = torch.optim.Adam([{"params": group} for group in self.groups], fused=True)

    def rule(self, parameters: list[Tensor], lr: float, finite: Tensor) -> None:
        """`torch.optim.Adam.step` on its own state, by its kernel alone.

        What that does beside is a step's longest stretch of Python. Where `found_inf` is 1 the
        kernel does nothing, without a word to the CPU.
        """
        states = [self._adam.state[parameter] for parameter in parameters]
        for parameter, state in zip(parameters, states, strict=True):
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        steps = [state["step"] for state in states]
        skip = (~finite).float().to(steps[0].device)
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

    def rule_state(self) -> dict[str, Any]:
        return {"adam": self._adam.state_dict()}

    def load_rule_state(self, state: dict[str, Any]) -> None:
        self._adam.load_state_dict(state["adam"])
