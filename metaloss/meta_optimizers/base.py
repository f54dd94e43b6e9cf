"""What a meta-optimizer is: it makes base steps, and improves the meta-parameters by them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metaloss.descents.base import Descent, Group
from metaloss.engines.base import ENGINES, Draw, Engine, Hypergradient
from metaloss.errors import InputError, MissingGradientError
from metaloss.meta_parameters import MetaParameters
from metaloss.problem import Problem
from metaloss.rates.base import Rate
from metaloss.registry import Registry
from metaloss.vectors import Vector


@dataclass
class MetaStep:
    """What one call of a meta-optimizer did; scalars without graph, still on the device.

    Of a stack of problems each is of shape [S].
    """

    learned_loss: Tensor  #: M_φ on the training batch, before the (last) base step
    task_loss: Tensor | None = None  #: L_T at the new θ; None if no meta-step was due
    gradient_norm: Tensor | None = None  #: of the meta-gradient; None if no meta-step was due
    skipped: Tensor | None = None  #: bool [], whether the meta-gradient was not finite and unused

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

    def branch(self) -> Hashable | None:
        """What Python decides by in the next `step`; None if no CUDA graph can hold it.

        "base" is a base step alone, which draws no objective.
        """
        return None

    def replayed(self) -> None:  # noqa: B027
        """A CUDA graph has made a step: counts it."""

    def refuse_stack(self) -> None:
        """Whether `leading` can be asked.

        Raises:
            InputError: this kind, or a part of it, takes one problem at a time.
        """
        raise InputError(
            f"meta_optimizers.{META_OPTIMIZERS.name_of(self)} takes one seed at a time"
        )

    def leading(self, members: Sequence[MetaOptimizer], stacked: Problem) -> MetaOptimizer:
        """What makes the steps of several at once, on the stack of their problems.

        Args:
            members: of this one's build, attached to their problems; their descents are made use
                of, so that each one's meta-parameters move, and are skipped, by themselves.
            stacked: the stack of these problems, whose losses are of shape [S].

        Raises:
            InputError: see `refuse_stack`.
        """
        self.refuse_stack()
        raise AssertionError(f"{type(self).__name__} can be stacked, and has no `leading`")

    def keep_up(self, lead: MetaOptimizer) -> None:  # noqa: B027 - most kinds count no steps
        """Counts a step that `leading`'s result has made for this one too."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What continues this phase: tensors and plain data."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave; `attach` comes first."""


class MetaDescent:
    """The meta-parameters of a problem on their way down, guarded against unusable gradients.

    Args:
        meta: the meta-parameters.
        descent: a recipe for how they move.
        meta_lr: η of φ.
        rate_meta_lr: η of a learned base learning rate's parameter; None takes that of φ.

    Raises:
        MissingGradientError: there is nothing to learn.
    """

    def __init__(
        self,
        meta: MetaParameters,
        descent: Callable[..., Descent],
        meta_lr: float,
        rate_meta_lr: float | None = None,
    ) -> None:
        groups = []
        if meta.phi:
            groups.append(Group(meta.named_phi, meta_lr))
        if meta.ratios is not None:
            groups.append(Group({"lr": meta.x}, rate_meta_lr or meta_lr))
        if not groups:
            raise MissingGradientError(
                "there is nothing to learn: the loss has no parameter that requires a gradient"
            )
        self._meta = meta
        self._names = ", ".join(name for group in groups for name in group.tensors)
        self._descent = descent(groups=groups)
        self._usable = False  # whether any gradient has been usable so far

    def descend(self, found: Hypergradient) -> MetaStep:
        """One step; skipped, and said so, where the gradient or the task loss is not finite.

        Raises:
            MissingGradientError: no meta-parameter has a gradient; or the very first gradient is
                not finite although both losses are.
        """
        gradients = [*found.phi]
        if self._meta.ratios is not None:
            gradients.append(self._meta.through_rate(found.alpha))
        given = self.given(gradients)
        device = found.task_loss.device
        norm = torch.linalg.vector_norm(torch.cat([part.to(device).flatten() for part in given]))
        both = norm + found.task_loss
        finite = both - both == 0  # neither infinite nor NaN, in fewer calls than isfinite makes
        self.move(found, gradients, finite)
        return MetaStep(found.learned_loss, found.task_loss, norm, skipped=~finite)

    def given(self, gradients: Vector) -> list[Tensor]:
        """The gradients that there are, of the shapes of the meta-parameters.

        Raises:
            MissingGradientError: there is none.
        """
        given = [gradient for gradient in gradients if gradient is not None]
        if not given:
            raise MissingGradientError(
                f"no meta-parameter received a gradient ({self._names}): the base step does not "
                "depend on them, as with an output bias alone or a loss that is constant in the "
                "prediction"
            )
        return given

    def move(self, found: Hypergradient, gradients: Vector, finite: Tensor) -> None:
        """One step along gradients, if they and the task loss are finite.

        Args:
            found: what is to be told of, should there never be a usable gradient.
            gradients: of the shapes of the meta-parameters.
            finite: bool [].

        Raises:
            MissingGradientError: see `descend`.
        """
        if not self._usable:  # later, nothing here waits for the device
            self._usable = bool(finite)
            both = torch.isfinite(found.learned_loss) & torch.isfinite(found.task_loss)
            if not self._usable and bool(both):
                raise MissingGradientError(
                    f"no meta-parameter received a finite gradient ({self._names}) although both "
                    "losses are finite: look for a derivative of the loss or the model that is "
                    "infinite or NaN"
                )
        self._descent.descend(gradients, finite)
        self._meta.write_rate()

    def branch(self) -> Hashable | None:
        """Of the descent; None before the first usable gradient, and where a rate is learned."""
        if not self._usable or self._meta.ratios is not None:
            return None
        return self._descent.branch()

    def replayed(self) -> None:
        """A CUDA graph has made a step: counts it."""
        self._descent.replayed()

    def state_dict(self) -> dict[str, Any]:
        return {
            "descent": self._descent.state_dict(),
            "usable": self._usable,
            "x": float(self._meta.x),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._descent.load_state_dict(state["descent"])
        self._usable = state["usable"]
        self._meta.x.fill_(state["x"])
        self._meta.write_rate()


class StackedDescent(MetaDescent):
    """The descents of stacked problems, so that what is not elementwise stays each one's own.

    They save themselves: this one has no state.

    Args:
        members: each over views of its part of the stacked meta-parameters.
    """

    def __init__(self, members: Sequence[MetaDescent]) -> None:
        self._members = members

    def descend(self, found: Hypergradient) -> MetaStep:
        """One step of each, see `MetaDescent.descend`."""
        given = self._members[0].given(found.phi)
        norms = torch.stack([torch.linalg.vector_norm(g.reshape(len(g), -1), dim=1) for g in given])
        norm = torch.linalg.vector_norm(norms, dim=0)  # [S]
        finite = torch.isfinite(norm) & torch.isfinite(found.task_loss)
        for i, member in enumerate(self._members):
            gradients = [None if gradient is None else gradient[i] for gradient in found.phi]
            own = Hypergradient(found.learned_loss[i], found.task_loss[i], gradients, None)
            member.move(own, gradients, finite[i])
        return MetaStep(found.learned_loss, found.task_loss, norm, skipped=~finite)

    def branch(self) -> Hashable | None:
        branches = tuple(member.branch() for member in self._members)
        return None if None in branches else branches

    def replayed(self) -> None:
        for member in self._members:
            member.replayed()


def refuse_mixing(rate: Rate | None, engine: Engine) -> None:
    """Refuses what would not keep a stack's seeds apart.

    Raises:
        InputError: a learning rate is learned, or the engine is not `elementwise`.
    """
    if rate is not None:
        raise InputError(
            "a learned learning rate is one number of the optimizer, which a stack has once: train "
            "these seeds one at a time"
        )
    if not engine.elementwise:
        raise InputError(
            f"engine '{ENGINES.name_of(engine)}' mixes the numbers of a vector, which would be of "
            "all seeds together: train them one at a time"
        )


META_OPTIMIZERS = Registry("meta_optimizers", MetaOptimizer)
