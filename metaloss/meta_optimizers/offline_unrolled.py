"""Offline loss learning: ML³, and the initialisation of AdaLFL (paper, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Literal

from metaloss.base_optimizers.rates.base import Rate
from metaloss.config.arguments import NonNegativeInt, PositiveFloat, PositiveInt
from metaloss.engines.base import Draw, Engine
from metaloss.meta_optimizers.base import META_OPTIMIZERS, MetaStep
from metaloss.meta_optimizers.by_gradient import ByGradient
from metaloss.meta_optimizers.descents.adam import Adam
from metaloss.meta_optimizers.descents.base import Descent


@META_OPTIMIZERS.register("offline_unrolled")
class OfflineUnrolled(ByGradient):
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
        certify_every: meta-steps per certificate of the meta-gradient, after the first three; 0:
            none at all.
        uncertified: what becomes of a meta-gradient whose certificate does not hold, where the
            engine was asked for by name: "raise", or "warn" and use it.
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
        certify_every: NonNegativeInt = 50,
        uncertified: Literal["raise", "warn"] = "raise",
    ) -> None:
        super().__init__(
            meta_lr, objective, objective_batch_size, learn, rate, rate_meta_lr, descent, engine,
            steps, certify_every, uncertified,
        )  # fmt: skip
        self.inner_steps = inner_steps

    def step(self, draw_train: Draw, draw_objective: Draw) -> MetaStep:
        self.meta.write_rate()
        return self.meta_step([draw_train() for _ in range(self.inner_steps)], draw_objective)

    def branch(self) -> Hashable | None:
        return super().branch() if self.inner_steps == 1 else None
