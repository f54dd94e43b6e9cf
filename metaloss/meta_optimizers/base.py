"""What a meta-optimizer is: it makes base steps, and improves the meta-parameters by them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metaloss.errors import MissingGradientError
from metaloss.problem import Batch, Problem
from metaloss.registry import Registry

Draw = Callable[[], Batch]  #: gives the next batch


@dataclass
class MetaStep:
    """What one call of a meta-optimizer did; scalars without graph, still on the device."""

    learned_loss: Tensor  #: M_φ on the training batch, before the (last) base step
    task_loss: Tensor | None = None  #: L_T at the new θ; None if no meta-step was due
    gradient_norm: Tensor | None = None  #: ‖∇_φ L_T‖; None if no meta-step was due
    skipped: bool = False  #: the meta-gradient was not finite, so the meta-parameters stayed


class MetaOptimizer(ABC):
    """Improves the meta-parameters (φ, or a learning rate) of a problem.

    Contract, held by `metaloss.testing.check_meta_optimizer`: one call of `step` changes the
    meta-parameters at most once, by batches it is given (it never sees the test split), and makes
    real base steps on the problem; `state_dict` and `load_state_dict` continue it bit for bit.

    Attributes:
        steps: meta-steps that make a whole initialisation phase (S_init).
        objective: the split that the task loss is taken on, "valid" or "train".
        objective_batch_size: examples in the batch of the task loss; None for the task's number.
    """

    steps: int
    objective: str
    objective_batch_size: int | None = None

    @abstractmethod
    def attach(self, problem: Problem) -> None:
        """Starts afresh on a problem; called once before the first step of a phase."""

    @abstractmethod
    def step(self, draw_train: Draw, draw_objective: Draw) -> MetaStep:
        """One meta-step, drawing the training batches and the batch for the task loss it needs."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What continues this phase: tensors and plain data."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave; `attach` comes first."""


class MetaDescent:
    """Adam on the meta-parameters (paper, appendix C), guarded against unusable gradients.

    Args:
        parameters: the meta-parameters, by name.
        meta_lr: η.
    """

    def __init__(self, parameters: Mapping[str, Tensor], meta_lr: float) -> None:
        if not parameters:
            raise MissingGradientError(
                "there is nothing to learn: the loss has no parameter that requires a gradient"
            )
        self._parameters = parameters
        self._adam = torch.optim.Adam(parameters.values(), lr=meta_lr, fused=True)
        self._usable = False  # whether any gradient has been usable so far

    def descend(
        self, gradients: Sequence[Tensor | None], learned_loss: Tensor, task_loss: Tensor
    ) -> MetaStep:
        """One Adam step; skipped, and said so, where the gradient or a loss is not finite.

        Raises:
            MissingGradientError: no meta-parameter has a gradient; or the very first gradient is
                not finite although both losses are.
        """
        given = [gradient for gradient in gradients if gradient is not None]
        names = ", ".join(self._parameters)
        if not given:
            raise MissingGradientError(
                f"no meta-parameter received a gradient ({names}): the base step does not depend "
                "on them, as with an output bias alone or a loss that is constant in the prediction"
            )
        norm = torch.stack(torch._foreach_norm(given)).norm()
        finite = bool(torch.isfinite(norm) & torch.isfinite(task_loss))
        if finite:
            for parameter, gradient in zip(self._parameters.values(), gradients, strict=True):
                parameter.grad = gradient
            self._adam.step()
            self._usable = True
        elif not self._usable and bool(torch.isfinite(learned_loss) & torch.isfinite(task_loss)):
            raise MissingGradientError(
                f"no meta-parameter received a finite gradient ({names}) although both losses are "
                "finite: look for a derivative of the loss or the model that is infinite or NaN"
            )
        return MetaStep(learned_loss, task_loss, norm, skipped=not finite)

    def state_dict(self) -> dict[str, Any]:
        return {"adam": self._adam.state_dict(), "usable": self._usable}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._adam.load_state_dict(state["adam"])
        self._usable = state["usable"]


META_OPTIMIZERS = Registry("meta_optimizers", MetaOptimizer)
