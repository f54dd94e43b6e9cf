"""Offline loss learning: ML³, and the initialisation of AdaLFL (paper, Algorithm 1)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal

from metaloss.base_optimizers.rates.base import Rate
from metaloss.config.arguments import NonNegativeInt, PositiveFloat, PositiveInt
from metaloss.engines.base import Draw, Engine, engine_by
from metaloss.meta_optimizers.base import META_OPTIMIZERS, MetaOptimizer, MetaStep
from metaloss.meta_optimizers.by_gradient import MetaDescent
from metaloss.meta_optimizers.descents.adam import Adam
from metaloss.meta_optimizers.descents.base import Descent
from metaloss.meta_optimizers.stacked import StackedDescent, refuse_mixing
from metaloss.problem.meta_parameters import MetaParameters
from metaloss.problem.problem import Problem


@META_OPTIMIZERS.register("offline_unrolled")
class OfflineUnrolled(MetaOptimizer):
    """Meta-steps through `inner_steps` base steps from the θ it finds (Algorithm 1; section 2.3).

    The phase around it re-draws θ and empties the optimizer's state before each meta-step.

    Args:
        steps: meta-steps of the phase, S_init.
        inner_steps: base steps that are differentiated through, S_inner; each has a fresh batch.
        meta_lr: η of φ.
        objective: split of the task loss, "valid" or "train" (a fresh batch either way).
        objective_batch_size: examples in that batch; None takes the task's batch size.
        learn: patterns of names of the loss's parameters; those that match one are learned.
        rate: the parametrisation of a base learning rate that is learned beside them; None leaves
            it to the optimizer.
        rate_meta_lr: η of its parameter; None takes `meta_lr`.
        descent: how the meta-parameters move.
        engine: how the meta-gradient is computed, by name or built.
    """

    def __init__(
        self,
        steps: NonNegativeInt = 2500,
        inner_steps: PositiveInt = 1,
        meta_lr: PositiveFloat = 1e-3,
        objective: Literal["valid", "train"] = "valid",
        objective_batch_size: PositiveInt | None = None,
        learn: Sequence[str] = ("*",),
        rate: Rate | None = None,
        rate_meta_lr: PositiveFloat | None = None,
        descent: Callable[..., Descent] = Adam,
        engine: Engine | str = "auto",
    ) -> None:
        self.steps = steps
        self.inner_steps = inner_steps
        self.meta_lr = meta_lr
        self.objective = objective
        self.objective_batch_size = objective_batch_size
        self.learn = tuple(learn)
        self.rate = rate
        self.rate_meta_lr = rate_meta_lr
        self.descent = descent
        self.engine = engine_by(engine)

    def attach(self, problem: Problem) -> None:
        self._problem = problem
        self._meta = MetaParameters(problem, self.learn, self.rate)
        self._descent = MetaDescent(self._meta, self.descent, self.meta_lr, self.rate_meta_lr)

    def step(self, draw_train: Draw, draw_objective: Draw) -> MetaStep:
        self._meta.write_rate()
        batches = [draw_train() for _ in range(self.inner_steps)]
        return self._descent.descend(
            self.engine.hypergradient(self._problem, self._meta, batches, draw_objective)
        )

    def branch(self) -> Hashable | None:
        one = self.inner_steps == 1
        return self._descent.branch() if one and self.engine.recordable else None

    def replayed(self) -> None:
        self._descent.replayed()

    def refuse_stack(self) -> None:
        refuse_mixing(self.rate, self.engine)

    def leading(self, members: Sequence[MetaOptimizer], stacked: Problem) -> MetaOptimizer:
        self.refuse_stack()
        lead = copy.copy(self)
        lead.attach(stacked)
        lead._descent = StackedDescent(
            [member._descent for member in members if isinstance(member, OfflineUnrolled)]
        )
        return lead

    def state_dict(self) -> dict[str, Any]:
        return {"descent": self._descent.state_dict(), "engine": self.engine.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._descent.load_state_dict(state["descent"])
        self.engine.load_state_dict(state["engine"])
