"""Online loss learning: AdaLFL (paper, Algorithm 2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from annotated_types import Ge

from metaloss.base_optimizers.rates.base import Rate
from metaloss.config.arguments import NonNegativeInt, PositiveFloat, PositiveInt, check
from metaloss.engines.base import Draw, Engine
from metaloss.meta_optimizers.base import META_OPTIMIZERS, MetaStep
from metaloss.meta_optimizers.descents.adam import Adam
from metaloss.meta_optimizers.descents.base import Descent
from metaloss.meta_optimizers.parts.by_gradient import ByGradient
from metaloss.problem.problem import Problem


@META_OPTIMIZERS.register("online_one_step")
class OnlineOneStep(ByGradient):
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
        certify_every: meta-steps per certificate of the meta-gradient, after the first three; 0:
            none at all.
        uncertified: what becomes of a meta-gradient whose certificate does not hold, where the
            engine was asked for by name: "raise", or "warn" and use it.
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
        certify_every: NonNegativeInt = 50,
        uncertified: Literal["raise", "warn"] = "raise",
        steps: NonNegativeInt = 2500,
    ) -> None:
        if stop is not None:
            check("stop", stop, Annotated[int, Ge(start)])
        super().__init__(
            meta_lr, objective, objective_batch_size, learn, rate, rate_meta_lr, descent, engine,
            steps, certify_every, uncertified,
        )  # fmt: skip
        self.every = every
        self.start = start
        self.stop = stop

    def attach(self, problem: Problem) -> None:
        super().attach(problem)
        self._base_steps = 0

    def step(self, draw_train: Draw, draw_objective: Draw) -> MetaStep:
        due = self.due()
        self.count()
        self.meta.write_rate()  # it is ours alone: a scheduler's would not be what α stands for
        if not due:
            return MetaStep(self.engine.base_step(self.problem, draw_train()))
        return self.meta_step([draw_train()], draw_objective)

    def due(self) -> bool:
        made = self._base_steps
        frozen = self.stop is not None and made >= self.stop
        return made >= self.start and not frozen and (made - self.start) % self.every == 0

    def meta_steps(self, base_steps: int) -> int:
        end = base_steps if self.stop is None else min(base_steps, self.stop)
        return len(range(self.start, end, self.every))

    def count(self) -> None:
        self._base_steps += 1

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "base_steps": self._base_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._base_steps = state["base_steps"]
