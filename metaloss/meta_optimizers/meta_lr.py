"""MetaLR: learning the base learning rate instead of the loss (paper, Algorithms 3 and 4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from metaloss.base_optimizers.rates.base import Rate
from metaloss.base_optimizers.rates.raw import Raw
from metaloss.config.arguments import NonNegativeInt, PositiveFloat, PositiveInt
from metaloss.engines.exact import Exact
from metaloss.meta_optimizers.base import META_OPTIMIZERS
from metaloss.meta_optimizers.descents.adam import Adam
from metaloss.meta_optimizers.descents.base import Descent
from metaloss.meta_optimizers.online_one_step import OnlineOneStep


@META_OPTIMIZERS.register("meta_lr")
def meta_lr(
    meta_lr: PositiveFloat = 1e-5,
    every: PositiveInt = 1,
    objective: Literal["valid", "train", "next"] = "valid",
    objective_batch_size: PositiveInt | None = None,
    rate: Rate | None = None,
    descent: Callable[..., Descent] | str = Adam,
    steps: NonNegativeInt = 2500,
) -> OnlineOneStep:
    """Learns the base learning rate α by gradient, and nothing else (paper, Algorithms 3 and 4).

    ∇_α L_T = ⟨v, ∂θ'/∂α⟩ with v = ∇_θ' L_T: no forward-mode pass at all. Used as the initialisation
    it is Algorithm 3, used as the adaptation Algorithm 4. It is `online_one_step` with `rate` and
    without φ; that one learns both at once.

    Args:
        meta_lr: η of the rate's parameter.
        every: base steps per meta-step.
        objective: what the task loss is taken on, see `online_one_step`.
        objective_batch_size: examples in a fresh batch; None takes the task's batch size.
        rate: the parametrisation of α; None is the paper's bare scalar, without bounds.
        descent: how it moves: a recipe, or a registered name.
        steps: meta-steps of the phase, where it is used as an initialisation.
    """
    return OnlineOneStep(
        meta_lr,
        every,
        objective=objective,
        objective_batch_size=objective_batch_size,
        learn=(),
        rate=rate or Raw(),
        descent=descent,
        engine=Exact(),
        steps=steps,
    )
