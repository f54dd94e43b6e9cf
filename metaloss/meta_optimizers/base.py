"""What a meta-optimizer is: it makes base steps, and improves the meta-parameters by them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from metaloss.base_optimizers.base import reset
from metaloss.config.registry import Registry
from metaloss.engines.base import Draw
from metaloss.problem.problem import Problem


@dataclass
class MetaStep:
    """What one call of a meta-optimizer did; scalars without graph, still on the device.

    Of a stack of problems each is of shape [S].
    """

    learned_loss: Tensor  #: M_φ on the training batch, before the (last) base step
    task_loss: Tensor | None = None  #: L_T at the new θ; None if no meta-step was due
    gradient_norm: Tensor | None = None  #: of the meta-gradient; None if no meta-step was due
    #: bool [], whether the meta-gradient was left unused: it or a loss is not finite, or its
    #: certificate does not hold
    skipped: Tensor | None = None
    adjoint_residual: Tensor | None = None  #: of its certificate; None if it has none

    @property
    def due(self) -> bool:
        """Whether the meta-parameters were to move."""
        return self.task_loss is not None

    def members(self) -> list[MetaStep]:
        """Of a stack's step, what it did for each of its problems; views."""
        given = {name: v.unbind() for name, v in vars(self).items() if v is not None}
        return [
            MetaStep(**{name: parts[i] for name, parts in given.items()})
            for i in range(len(self.learned_loss))
        ]


class MetaOptimizer(ABC):
    """Improves the meta-parameters (φ, or a learning rate) of a problem.

    Contract, held by `metaloss.testing.check_meta_optimizer`: one call of `step` changes the
    meta-parameters at most once, by batches it is given (it never sees the test split), and makes
    real base steps on the problem; `state_dict` and `load_state_dict` continue it bit for bit.

    Steps that are recorded as CUDA graphs, and several seeds at once, ask for more: `ByGradient`
    has it.

    Attributes:
        steps: meta-steps that make a whole initialisation phase (S_init).
        objective: what the task loss is taken on: a batch of the split "valid" or "train", or
            "next", the training batch of the step after; then none is drawn for it.
        objective_batch_size: examples in the batch of the task loss; None for the task's number.
    """

    steps: int
    objective: str
    objective_batch_size: int | None = None

    @abstractmethod
    def attach(self, problem: Problem) -> None:
        """Starts afresh on a problem; called once before the first step of a phase."""

    def set_out(self, problem: Problem, redraw: Callable[[], None]) -> None:
        """Puts the base level where the next meta-step of an initialisation starts from.

        That is a θ drawn anew and an empty optimizer (Algorithm 1), unless a kind lets θ go on.

        Args:
            redraw: draws the model's parameters and buffers anew, in place.
        """
        redraw()
        reset(problem.optimizer)

    @abstractmethod
    def step(self, draw_train: Draw, draw_objective: Draw) -> MetaStep:
        """One meta-step, drawing the training batches and the batch for the task loss it needs."""

    def rest(self, draw_objective: Draw) -> None:  # noqa: B027 - it may have nothing to count
        """A base step was made without it, while meta-parameters rest: counts that step.

        Args:
            draw_objective: what a meta-step would have drawn, this one draws too: when they move
                again it is on the batches that they would have had.
        """

    def meta_steps(self, base_steps: int) -> int:
        """How many meta-steps go with so many base steps of a training: one with each."""
        return base_steps

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What continues this phase: tensors and plain data."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave; `attach` comes first."""


META_OPTIMIZERS = Registry("meta_optimizers", MetaOptimizer)
