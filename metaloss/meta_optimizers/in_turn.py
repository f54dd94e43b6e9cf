"""Several phases of an initialisation, one after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from metaloss.engines.base import Draw
from metaloss.errors import ArgumentError
from metaloss.meta_optimizers.base import META_OPTIMIZERS, MetaOptimizer, MetaStep
from metaloss.problem.problem import Problem


@META_OPTIMIZERS.register("in_turn")
class InTurn(MetaOptimizer):
    """Phases that each start from the φ that the one before has left.

    Args:
        phases: meta-optimizers; each makes its own `steps`, and the last one's task loss decides
            what batches are drawn.

    Attributes:
        left: φ as each phase has left it that has ended, but for the last: where to go back to.
    """

    def __init__(self, phases: Sequence[MetaOptimizer]) -> None:
        if not phases:
            raise ArgumentError("phases", [], "at least one meta-optimizer")
        self.phases = tuple(phases)
        self.objective = phases[-1].objective
        self.objective_batch_size = phases[-1].objective_batch_size
        self.steps = sum(phase.steps for phase in phases)

    def attach(self, problem: Problem) -> None:
        self.problem = problem
        for phase in self.phases:
            phase.attach(problem)
        self.steps = sum(phase.steps for phase in self.phases)  # attached, a rule is a number
        self._index, self._made = 0, 0
        self.left: list[list[Tensor]] = []
        self._enter()

    @property
    def at_work(self) -> MetaOptimizer:
        """The phase that makes the next step; the last one at the end."""
        return self.phases[self._index]

    def set_out(self, problem: Problem, redraw: Callable[[], None]) -> None:
        self.at_work.set_out(problem, redraw)

    def step(self, draw_train: Draw, draw_objective: Draw) -> MetaStep:
        made = self.at_work.step(draw_train, draw_objective)
        self._made += 1
        self._enter()
        return made

    def _enter(self) -> None:
        """Goes on to the next phase that has a step to make, if the present one has none left."""
        while self._made >= self.at_work.steps and self._index + 1 < len(self.phases):
            self._index, self._made = self._index + 1, 0
            self.left.append([parameter.detach().clone() for parameter in self.problem.phi])
            self.at_work.attach(self.problem)  # from the φ that it finds

    def state_dict(self) -> dict[str, Any]:
        return {
            "index": self._index,
            "made": self._made,
            "left": self.left,
            "at_work": self.at_work.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._index, self._made = state["index"], state["made"]
        self.left = [[part.clone() for part in phi] for phi in state.get("left", [])]
        self.at_work.attach(self.problem)
        self.at_work.load_state_dict(state["at_work"])
