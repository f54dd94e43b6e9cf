"""What a descent is: how the meta-parameters move along their gradient."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metaloss.config.registry import Registry
from metaloss.errors import InputError
from metaloss.problem.jacobian import Jacobian


@dataclass(frozen=True)
class Group:
    """Meta-parameters that share a meta learning rate."""

    tensors: Mapping[str, Tensor]  #: by name; changed in place
    meta_lr: float  #: η


class Descent(ABC):
    """Moves meta-parameters; a recipe's result, made afresh for each phase.

    Contract: a gradient that is not finite, or comes with a task loss that is not, changes nothing,
    and neither does `descend` wait for the device; `state_dict` and `load_state_dict` continue it
    bit for bit.

    Args:
        groups: the meta-parameters.
    """

    @abstractmethod
    def descend(self, gradients: Sequence[Tensor | None], finite: Tensor) -> None:
        """One step.

        Args:
            gradients: aligned with the groups' tensors in their order; None leaves one as it is.
            finite: bool [], whether the step may be made.
        """

    def branch(self) -> Hashable | None:
        """What Python decides by in the next step; None if no CUDA graph can hold it."""
        return None

    def replayed(self) -> None:  # noqa: B027
        """A CUDA graph has made a step: counts it."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain data."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""


class JacobianDescent(Descent):
    """A descent that is also given the Jacobian of M_φ's slopes at the pairs of the step.

    It costs a forward pass a meta-step. Such a descent takes one seed at a time, and its steps no
    CUDA graph: `branch` stays None.
    """

    @abstractmethod
    def descend(
        self, gradients: Sequence[Tensor | None], finite: Tensor, jacobian: Jacobian | None = None
    ) -> None:
        """See `Descent.descend`; `finite` is of shape [].

        Args:
            jacobian: its columns are the first of the groups' tensors; what comes after them, a
                learned rate, M_φ does not know. None: no φ is learned.
        """


DESCENTS = Registry("descents", Descent, supplied=("groups",))


def descent_by(descent: Callable[..., Descent] | str) -> Callable[..., Descent]:
    """The recipe itself, or that of a registered name with its default arguments.

    Raises:
        UnknownComponentError: no descent has this name.
        InputError: it is one of torch's optimizers, which knows nothing of a step that may not be
            made.
    """
    if isinstance(descent, str):
        return DESCENTS[descent]
    asked: Any = descent
    if isinstance(asked, type) and issubclass(asked, torch.optim.Optimizer):
        raise InputError(
            f"descent = {asked.__name__}, an optimizer of torch: φ moves by a descent, as "
            f"metaloss.DESCENTS['sgd'] · known: {', '.join(DESCENTS)}"
        )
    return descent
