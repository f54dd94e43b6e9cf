"""Rprop (Riedmiller & Braun, 1993), with every option of torch.optim.Rprop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor

from metaloss.base_optimizers.base import BASE_OPTIMIZERS, Hyperparameters, State, Update, certify
from metaloss.config.arguments import PositiveFloat, Share


@BASE_OPTIMIZERS.register("rprop")
def rprop(
    parameters: Iterable[Tensor],
    lr: PositiveFloat = 1e-2,
    etas: tuple[Share, Annotated[float, Gt(1)]] = (0.5, 1.2),
    step_sizes: tuple[float, float] = (1e-6, 50.0),
    maximize: bool = False,
) -> torch.optim.Rprop:
    """Rprop (torch.optim.Rprop). Its step does not feel a small change of the gradient."""
    return torch.optim.Rprop(
        parameters,
        lr=lr,
        etas=etas,
        step_sizes=step_sizes,
        maximize=maximize,
    )


@certify(torch.optim.Rprop)
class RpropUpdate(Update):
    """d' = clip(d·(η₊, η₋ or 1 where g·g₋ is > 0, < 0 or 0));  θ' = θ - d'·sign(g).

    After a change of sign, where g·g₋ < 0, g counts as 0. d = lr at first, and lr acts at no later
    step. g enters by its sign alone, so that ∂θ'/∂g is 0 almost everywhere: no loss can be learned
    through this step, and a meta-optimizer that tries says so (MissingGradientError).
    """

    def step(
        self, theta: Tensor, grad: Tensor, state: State, hyper: Hyperparameters
    ) -> tuple[Tensor, State]:
        smaller, larger = hyper["etas"]
        grad = (-grad if hyper["maximize"] else grad).detach()  # signs have no derivative
        turn = (grad * state.get("prev", 0.0)).sign()
        change = torch.where(turn > 0, larger, torch.where(turn < 0, smaller, 1.0))
        size = (state["step_size"] if state else hyper["lr"]) * change.to(theta)
        size = size.clamp(*hyper["step_sizes"])
        grad = grad.masked_fill(turn < 0, 0.0)
        after = {"step": state.get("step", 0.0) + 1, "prev": grad, "step_size": size}
        return theta - size * grad.sign(), after
