"""Online loss learning: AdaLFL (paper, Algorithm 2)."""

from __future__ import annotations

from typing import Any, Literal

from metaloss import checks
from metaloss.hypergradient import ENGINES, Engine, roll_out
from metaloss.meta_optimizers.base import (
    META_OPTIMIZERS,
    Draw,
    MetaDescent,
    MetaOptimizer,
    MetaStep,
)
from metaloss.problem import Problem


@META_OPTIMIZERS.register("online_one_step")
class OnlineOneStep(MetaOptimizer):
    """One base step, then one meta-step through it; θ and its optimizer go on (Algorithm 2).

    Args:
        meta_lr: η of Adam.
        every: base steps per meta-step; the paper takes 1 and suggests more (section 5.2).
        objective: split of the task loss, "valid" or "train" (a fresh batch either way).
        objective_batch_size: examples in that batch; None takes the task's batch size.
        engine: "exact" or "unrolled" (plain double backward, the reference).
        steps: meta-steps of the phase, where it is used as an initialisation.
    """

    def __init__(
        self,
        meta_lr: float = 1e-5,
        every: int = 1,
        objective: Literal["valid", "train"] = "valid",
        objective_batch_size: int | None = None,
        engine: Engine = "exact",
        steps: int = 2500,
    ) -> None:
        checks.number(meta_lr, "online_one_step.meta_lr")
        checks.integer(every, "online_one_step.every", minimum=1)
        checks.choice(objective, "online_one_step.objective", ("valid", "train"))
        if objective_batch_size is not None:
            checks.integer(objective_batch_size, "online_one_step.objective_batch_size", minimum=1)
        checks.choice(engine, "online_one_step.engine", ENGINES)
        checks.integer(steps, "online_one_step.steps", minimum=0)
        self.meta_lr = meta_lr
        self.every = every
        self.objective = objective
        self.objective_batch_size = objective_batch_size
        self.engine: Engine = engine
        self.steps = steps

    def attach(self, problem: Problem) -> None:
        self._problem = problem
        self._descent = MetaDescent(problem.named_phi, self.meta_lr)
        self._base_steps = 0

    def step(self, draw_train: Draw, draw_objective: Draw) -> MetaStep:
        due = self._base_steps % self.every == 0
        self._base_steps += 1
        if not due:
            return MetaStep(self._problem.base_step(draw_train()).learned_loss)
        rollout = roll_out(self._problem, [draw_train()], self.engine)
        task_loss, v = self._problem.task_gradient(draw_objective())
        return self._descent.descend(rollout.pullback(v), rollout.learned_loss, task_loss)

    def state_dict(self) -> dict[str, Any]:
        return {"descent": self._descent.state_dict(), "base_steps": self._base_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._descent.load_state_dict(state["descent"])
        self._base_steps = state["base_steps"]
