"""Offline loss learning: ML³, and the initialisation of AdaLFL (paper, Algorithm 1)."""

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


@META_OPTIMIZERS.register("offline_unrolled")
class OfflineUnrolled(MetaOptimizer):
    """Meta-steps through `inner_steps` base steps from the θ it finds (Algorithm 1; section 2.3).

    The phase around it re-draws θ and empties the optimizer's state before each meta-step.

    Args:
        steps: meta-steps of the phase, S_init.
        inner_steps: base steps that are differentiated through, S_inner; each has a fresh batch.
        meta_lr: η of Adam.
        objective: split of the task loss, "valid" or "train" (a fresh batch either way).
        objective_batch_size: examples in that batch; None takes the task's batch size.
        engine: "exact" or "unrolled" (plain double backward, the reference).
    """

    def __init__(
        self,
        steps: int = 2500,
        inner_steps: int = 1,
        meta_lr: float = 1e-3,
        objective: Literal["valid", "train"] = "valid",
        objective_batch_size: int | None = None,
        engine: Engine = "exact",
    ) -> None:
        checks.integer(steps, "offline_unrolled.steps", minimum=0)
        checks.integer(inner_steps, "offline_unrolled.inner_steps", minimum=1)
        checks.number(meta_lr, "offline_unrolled.meta_lr")
        checks.choice(objective, "offline_unrolled.objective", ("valid", "train"))
        if objective_batch_size is not None:
            checks.integer(objective_batch_size, "offline_unrolled.objective_batch_size", minimum=1)
        checks.choice(engine, "offline_unrolled.engine", ENGINES)
        self.steps = steps
        self.inner_steps = inner_steps
        self.meta_lr = meta_lr
        self.objective = objective
        self.objective_batch_size = objective_batch_size
        self.engine: Engine = engine

    def attach(self, problem: Problem) -> None:
        self._problem = problem
        self._descent = MetaDescent(problem.named_phi, self.meta_lr)

    def step(self, draw_train: Draw, draw_objective: Draw) -> MetaStep:
        batches = [draw_train() for _ in range(self.inner_steps)]
        rollout = roll_out(self._problem, batches, self.engine)
        task_loss, v = self._problem.task_gradient(draw_objective())
        return self._descent.descend(rollout.pullback(v), rollout.learned_loss, task_loss)

    def state_dict(self) -> dict[str, Any]:
        return self._descent.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._descent.load_state_dict(state)
