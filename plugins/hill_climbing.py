"""A meta-optimizer as a plugin: hill climbing, the control that uses no gradient at all."""

from typing import Any, Literal

import torch

from metaloss.config.arguments import PositiveFloat
from metaloss.engines.base import Draw
from metaloss.engines.evolution import Noise, draw_noise, perturbed
from metaloss.meta_optimizers.base import META_OPTIMIZERS, MetaOptimizer, MetaStep
from metaloss.problem import snapshot
from metaloss.problem.batches import Batch
from metaloss.problem.meta_parameters import MetaParameters
from metaloss.problem.problem import Problem


@META_OPTIMIZERS.register("hill_climbing")
class HillClimbing(MetaOptimizer):
    """φ takes a random step if a base step on the changed loss leaves a lower task loss.

    Both base steps are tried from the same θ on the same batches and dropout masks, then one is
    made for real. Costs three base steps; what a gradient adds to it is what the gradient is worth.

    Args:
        sigma: standard deviation of the random step, in units of φ.
        objective: split of the task loss, "valid" or "train".
        steps: meta-steps of the phase, where it is used as an initialisation.
    """

    def __init__(
        self,
        sigma: PositiveFloat = 0.01,
        objective: Literal["valid", "train"] = "valid",
        steps: int = 2500,
    ) -> None:
        self.sigma = sigma
        self.objective = objective
        self.steps = steps

    def attach(self, problem: Problem) -> None:
        self._problem = problem
        self._meta = MetaParameters(problem)

    def step(self, draw_train: Draw, draw_objective: Draw) -> MetaStep:
        train, objective = draw_train(), draw_objective()
        noise = draw_noise(self._meta)
        before, after = (self._trial(noise, size, train, objective) for size in (0.0, self.sigma))
        if after < before:  # False for a NaN
            with torch.no_grad():
                for parameter, direction in zip(self._meta.phi, noise, strict=True):
                    parameter.add_(direction, alpha=self.sigma)
        learned_loss = self._problem.plain_step(train)
        return MetaStep(learned_loss, snapshot.task_loss(self._problem, objective))

    def _trial(self, noise: Noise, size: float, train: Batch, objective: Batch) -> float:
        """L_T after a base step on φ + size · ε, of which nothing else remains."""
        with (
            snapshot.on_trial(self._problem, train),
            perturbed(self._problem, self._meta, noise, size),
        ):
            self._problem.plain_step(train)
            return snapshot.task_loss(self._problem, objective).item()

    def state_dict(self) -> dict[str, Any]:
        return {}  # φ, θ and torch's generator are saved by the run

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
