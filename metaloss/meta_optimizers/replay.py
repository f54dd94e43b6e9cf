"""A learned loss replayed: it changes over a new training as it did over its own."""

from __future__ import annotations

from typing import Any

from metaloss.config.arguments import PositiveInt
from metaloss.engines.base import Draw
from metaloss.errors import InputError
from metaloss.meta_optimizers.base import META_OPTIMIZERS, MetaOptimizer, MetaStep
from metaloss.problem.problem import Problem
from metaloss.representations.saved.learned_loss import load_loss


@META_OPTIMIZERS.register("replay")
class Replay(MetaOptimizer):
    """Nothing is learned: after each base step φ is what was recorded of it, see `ScheduledLoss`.

    Args:
        path: a run folder, or a folder that `LearnedLoss.save_pretrained` wrote, with a trajectory
            of the same representation.
        over: base steps of the new training that the recording is stretched or squeezed to; None
            replays step by step.

    Raises:
        RunFolderError, UnknownComponentError: it cannot be loaded, see `metaloss.load_loss`.
        InputError: nothing was recorded, or the loss at hand has another number of parameters.
    """

    objective = "valid"  # which is never asked for
    steps = 0

    def __init__(self, path: str, over: PositiveInt | None = None) -> None:
        self.path = path
        self.over = over
        trajectory = load_loss(path).trajectory
        if trajectory is None:
            raise InputError(f"replay.path: {path} does not say how its loss changed")
        self._trajectory = trajectory

    def attach(self, problem: Problem) -> None:
        own = 0 if problem.loss is None else sum(p.numel() for p in problem.loss.parameters())
        recorded = self._trajectory.phi.shape[1]
        if problem.loss is None or own != recorded:
            raise InputError(
                f"replay.path: {self.path} recorded {recorded} numbers φ, and the run's loss has "
                f"{own}: give it Runner.representation = @representations.pretrained()"
            )
        self._problem, self._loss = problem, problem.loss
        self._index = -1  # of the φ that the loss has
        self._go_to(0)

    def step(self, draw_train: Draw, draw_objective: Draw) -> MetaStep:
        learned_loss = self._problem.plain_step(draw_train())
        self._go_to(self._base_steps + 1)
        return MetaStep(learned_loss)

    def _go_to(self, step: int) -> None:
        # From the recording, never from the φ at hand: a resumed run needs its step alone.
        self._base_steps = step
        index = self._trajectory.index(step, self.over)
        if index != self._index:  # else nothing is sent to a GPU
            self._trajectory.write(index, self._loss)
            self._index = index

    def state_dict(self) -> dict[str, Any]:
        return {"base_steps": self._base_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._go_to(state["base_steps"])
