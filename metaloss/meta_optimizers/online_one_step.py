"""Online loss learning: AdaLFL (paper, Algorithm 2)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Sequence
from typing import Annotated, Any, Literal

from annotated_types import Ge

from metaloss.base_optimizers.rates.base import Rate
from metaloss.config.arguments import NonNegativeInt, PositiveFloat, PositiveInt, check
from metaloss.engines.base import Draw, Engine, engine_by
from metaloss.meta_optimizers.base import META_OPTIMIZERS, MetaOptimizer, MetaStep
from metaloss.meta_optimizers.by_gradient import MetaDescent
from metaloss.meta_optimizers.descents.adam import Adam
from metaloss.meta_optimizers.descents.base import Descent
from metaloss.meta_optimizers.stacked import StackedDescent, refuse_mixing
from metaloss.problem.meta_parameters import MetaParameters
from metaloss.problem.problem import Problem


@META_OPTIMIZERS.register("online_one_step")
class OnlineOneStep(MetaOptimizer):
    """One base step, then one meta-step through it; θ and its optimizer go on (Algorithm 2).

    Args:
        meta_lr: η of φ.
        every: base steps per meta-step; the paper takes 1 and suggests more (section 5.2).
        start: base steps before the first meta-step.
        stop: base steps after which φ stays as it is; None never freezes it.
        objective: split of the task loss, "valid" or "train" (a fresh batch either way).
        objective_batch_size: examples in that batch; None takes the task's batch size.
        learn: patterns of names of the loss's parameters; those that match one are learned.
        rate: the parametrisation of a base learning rate that is learned beside them; None leaves
            it to the optimizer.
        rate_meta_lr: η of its parameter; None takes `meta_lr`.
        descent: how the meta-parameters move.
        engine: how the meta-gradient is computed, by name or built.
        steps: meta-steps of the phase, where it is used as an initialisation.
    """

    def __init__(
        self,
        meta_lr: PositiveFloat = 1e-5,
        every: PositiveInt = 1,
        start: NonNegativeInt = 0,
        stop: int | None = None,
        objective: Literal["valid", "train"] = "valid",
        objective_batch_size: PositiveInt | None = None,
        learn: Sequence[str] = ("*",),
        rate: Rate | None = None,
        rate_meta_lr: PositiveFloat | None = None,
        descent: Callable[..., Descent] = Adam,
        engine: Engine | str = "auto",
        steps: NonNegativeInt = 2500,
    ) -> None:
        if stop is not None:
            check("stop", stop, Annotated[int, Ge(start)])
        self.meta_lr = meta_lr
        self.every = every
        self.start = start
        self.stop = stop
        self.objective = objective
        self.objective_batch_size = objective_batch_size
        self.learn = tuple(learn)
        self.rate = rate
        self.rate_meta_lr = rate_meta_lr
        self.descent = descent
        self.engine = engine_by(engine)
        self.steps = steps

    def attach(self, problem: Problem) -> None:
        self._problem = problem
        self._meta = MetaParameters(problem, self.learn, self.rate)
        self._descent = MetaDescent(self._meta, self.descent, self.meta_lr, self.rate_meta_lr)
        self._base_steps = 0

    def step(self, draw_train: Draw, draw_objective: Draw) -> MetaStep:
        due = self._due()
        self._base_steps += 1
        self._meta.write_rate()  # it is ours alone: a scheduler's would not be what α stands for
        if not due:
            return MetaStep(self.engine.base_step(self._problem, draw_train()))
        return self._descent.descend(
            self.engine.hypergradient(self._problem, self._meta, [draw_train()], draw_objective)
        )

    def _due(self) -> bool:
        """Whether the next base step is followed by a meta-step."""
        made = self._base_steps
        frozen = self.stop is not None and made >= self.stop
        return made >= self.start and not frozen and (made - self.start) % self.every == 0

    def branch(self) -> Hashable | None:
        if self._meta.ratios is not None or not self.engine.recordable:
            return None  # a learned rate is written by Python
        return self._descent.branch() if self._due() else "base"

    def replayed(self) -> None:
        if self._due():
            self._descent.replayed()
        self._base_steps += 1

    def refuse_stack(self) -> None:
        refuse_mixing(self.rate, self.engine)

    def leading(self, members: Sequence[MetaOptimizer], stacked: Problem) -> MetaOptimizer:
        self.refuse_stack()
        lead = copy.copy(self)
        lead.attach(stacked)
        lead._descent = StackedDescent(
            [member._descent for member in members if isinstance(member, OnlineOneStep)]
        )
        lead.keep_up(self)
        return lead

    def keep_up(self, lead: MetaOptimizer) -> None:
        assert isinstance(lead, OnlineOneStep)
        self._base_steps = lead._base_steps

    def state_dict(self) -> dict[str, Any]:
        return {
            "descent": self._descent.state_dict(),
            "engine": self.engine.state_dict(),
            "base_steps": self._base_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._descent.load_state_dict(state["descent"])
        self.engine.load_state_dict(state["engine"])
        self._base_steps = state["base_steps"]
