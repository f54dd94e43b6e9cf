"""Persistent evolution strategies: the gradient-free control without a short horizon."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from metaloss.config.arguments import PositiveFloat, PositiveInt
from metaloss.engines.base import ENGINES, Draw, Engine, Hypergradient
from metaloss.engines.evolution import (
    Noise,
    accumulate,
    draw_noise,
    perturbed,
    step_for_real,
    zero,
)
from metaloss.problem import snapshot
from metaloss.problem.batches import StepBatch
from metaloss.problem.meta_parameters import MetaParameters
from metaloss.problem.problem import Problem


@ENGINES.register("persistent_evolution")
class PersistentEvolution(Engine):
    """Persistent evolution strategies (Vicol et al., 2021): no bias towards the short horizon.

    Each member of a pair goes on training a θ of its own under its own perturbations of φ, and the
    loss of a window of K steps is credited to all perturbations since its start:
    ĝ = mean over pairs of ξ (L_T⁺ - L_T⁻) / 2σ, ξ the sum of the pair's ε so far. For the online
    phase, where θ is not drawn anew.

    Args:
        pairs: antithetic pairs; each keeps two copies of θ and of the optimizer's state.
        sigma: σ, in units of φ; of α it is relative.
        horizon: windows after which all members start again from the run's own θ, which bounds the
            variance; None never does.
    """

    def __init__(
        self, pairs: PositiveInt = 4, sigma: PositiveFloat = 0.01, horizon: PositiveInt | None = 100
    ) -> None:
        self.pairs = pairs
        self.sigma = sigma
        self.horizon = horizon
        self._windows = 0
        self._members: list[list[dict[str, Any]]] = []  # snapshots of + and -, by pair
        self._sums: list[Noise] = []  # ξ, by pair

    def hypergradient(
        self,
        problem: Problem,
        meta: MetaParameters,
        train: Sequence[StepBatch],
        draw_objective: Draw,
    ) -> Hypergradient:
        objective = draw_objective()
        if not self._members or (self.horizon and self._windows % self.horizon == 0):
            start = snapshot.take(problem)
            self._members = [[start, start] for _ in range(self.pairs)]
            self._sums = [zero(meta) for _ in range(self.pairs)]
        self._windows += 1
        estimate = zero(meta)
        for pair, total in zip(self._members, self._sums, strict=True):
            noise = draw_noise(meta)
            accumulate(total, noise, 1.0)
            losses = []
            for k, sign in enumerate((1, -1)):
                with snapshot.on_trial(problem, train[0]):
                    snapshot.put_back(problem, pair[k])
                    with perturbed(problem, meta, noise, sign * self.sigma):
                        for batch in train:
                            problem.plain_step(batch)
                        losses.append(snapshot.task_loss(problem, objective))
                    pair[k] = snapshot.take(problem)
            accumulate(estimate, total, (losses[0] - losses[1]) / (2 * self.sigma * self.pairs))
        return step_for_real(problem, meta, train, objective, estimate)

    def state_dict(self) -> dict[str, Any]:
        return {"windows": self._windows, "members": self._members, "sums": self._sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._windows = state["windows"]
        self._members = [list(pair) for pair in state["members"]]
        self._sums = [[part.clone() for part in total] for total in state["sums"]]
