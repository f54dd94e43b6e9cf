"""MetaLR: learning the base learning rate instead of the loss (paper, Algorithms 3 and 4)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from metaloss import checks
from metaloss.errors import InputError
from metaloss.meta_optimizers.base import (
    META_OPTIMIZERS,
    Draw,
    MetaDescent,
    MetaOptimizer,
    MetaStep,
)
from metaloss.problem import Problem


@META_OPTIMIZERS.register("meta_lr")
class MetaLR(MetaOptimizer):
    """Learns the base learning rate α by gradient (paper, appendix C.1, Algorithms 3 and 4).

    θ' is linear in α, so ∇_α L_T = ⟨v, ∂θ'/∂α⟩ with v = ∇_θ' L_T: no forward-mode pass at all. α is
    a bare scalar that starts at the optimizer's own learning rate, without bounds, as the paper
    writes it; parameter groups keep the ratios of their learning rates, and a learning-rate
    scheduler has no effect. Used as the initialisation it is Algorithm 3, used as the adaptation
    Algorithm 4.

    Args:
        meta_lr: η of Adam.
        every: base steps per meta-step.
        objective: split of the task loss, "valid" or "train" (a fresh batch either way).
        objective_batch_size: examples in that batch; None takes the task's batch size.
        steps: meta-steps of the phase, where it is used as an initialisation.
    """

    def __init__(
        self,
        meta_lr: float = 1e-5,
        every: int = 1,
        objective: Literal["valid", "train"] = "valid",
        objective_batch_size: int | None = None,
        steps: int = 2500,
    ) -> None:
        checks.number(meta_lr, "meta_lr.meta_lr")
        checks.integer(every, "meta_lr.every", minimum=1)
        checks.choice(objective, "meta_lr.objective", ("valid", "train"))
        if objective_batch_size is not None:
            checks.integer(objective_batch_size, "meta_lr.objective_batch_size", minimum=1)
        checks.integer(steps, "meta_lr.steps", minimum=0)
        self.meta_lr = meta_lr
        self.every = every
        self.objective = objective
        self.objective_batch_size = objective_batch_size
        self.steps = steps

    def attach(self, problem: Problem) -> None:
        self._problem = problem
        groups = problem.optimizer.param_groups
        start = float(groups[0]["lr"])
        if start == 0:
            raise InputError("a learning rate that starts at 0 has no ratio to the other groups'")
        self._ratios = [float(group["lr"]) / start for group in groups]
        # float64: at α = 1e-2, float32 would round away steps of 1e-5 by up to 1e-4 of their size.
        self._alpha = torch.tensor(start, dtype=torch.float64)
        self._descent = MetaDescent({"lr": self._alpha}, self.meta_lr)
        self._base_steps = 0

    def step(self, draw_train: Draw, draw_objective: Draw) -> MetaStep:
        due = self._base_steps % self.every == 0
        self._base_steps += 1
        self._set_lr()  # it is ours alone: a scheduler's would not be what ∂θ'/∂α is taken for
        base = self._problem.base_step(draw_train())
        if not due:
            return MetaStep(base.learned_loss)
        task_loss, v = self._problem.task_gradient(draw_objective())
        slope = _inner(v, base.taken.direction(self._ratios))
        result = self._descent.descend([slope], base.learned_loss, task_loss)
        self._set_lr()
        return result

    def state_dict(self) -> dict[str, Any]:
        return {
            "descent": self._descent.state_dict(),
            "alpha": float(self._alpha),
            "base_steps": self._base_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._descent.load_state_dict(state["descent"])
        self._alpha.fill_(state["alpha"])
        self._base_steps = state["base_steps"]
        self._set_lr()

    def _set_lr(self) -> None:
        for group, ratio in zip(self._problem.optimizer.param_groups, self._ratios, strict=True):
            group["lr"] = float(self._alpha) * ratio


def _inner(v: list[Tensor | None], w: list[Tensor | None]) -> Tensor | None:
    """⟨v, w⟩ over θ, None standing for zero; None if nothing is left."""
    terms = [
        torch.dot(x.flatten(), y.flatten()).double()
        for x, y in zip(v, w, strict=True)
        if x is not None and y is not None
    ]
    return torch.stack(terms).sum().cpu() if terms else None
