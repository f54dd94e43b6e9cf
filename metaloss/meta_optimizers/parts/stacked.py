"""Stacked: the meta-optimizers of several seeds, one step of all at once."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from metaloss.engines.base import ENGINES, Draw, Hypergradient
from metaloss.errors import InputError
from metaloss.meta_optimizers.base import META_OPTIMIZERS, MetaOptimizer, MetaStep
from metaloss.meta_optimizers.descents.base import DESCENTS, Group, JacobianDescent
from metaloss.meta_optimizers.parts.by_gradient import ByGradient, MetaDescent
from metaloss.problem.batches import StepBatch
from metaloss.problem.jacobian import Jacobian
from metaloss.problem.meta_parameters import MetaParameters
from metaloss.problem.problem import Problem


class StackedDescent(MetaDescent):
    """The descents of stacked problems, so that what is not elementwise stays each one's own.

    They save themselves: this one has no state.

    Args:
        members: each over views of its part of the stacked meta-parameters.
        problems: theirs; the meta-parameters of one that descends the task loss are at rest.
    """

    def __init__(self, members: Sequence[MetaDescent], problems: Sequence[Problem]) -> None:
        self._members = members
        self._problems = problems

    def look(self, problem: Problem, batch: StepBatch) -> None:
        """None of them asks for anything: `refuse_unstackable`."""

    def descend(
        self, found: Hypergradient, trusted: bool = False, jacobian: Jacobian | None = None
    ) -> MetaStep:
        """One step of each, see `MetaDescent.descend`."""
        given = self._members[0].given(found.phi)
        norms = torch.stack([torch.linalg.vector_norm(g.reshape(len(g), -1), dim=1) for g in given])
        norm = torch.linalg.vector_norm(norms, dim=0)  # [S]
        usable = torch.isfinite(norm + found.task_loss + found.learned_loss)
        residual = None
        if found.certificate is not None:
            residual = found.certificate.residual.expand_as(norm)
            if not trusted:
                usable &= found.certificate.holds.to(usable.device)
        for i, member in enumerate(self._members):
            gradients = [None if gradient is None else gradient[i] for gradient in found.phi]
            own = Hypergradient(found.learned_loss[i], found.task_loss[i], gradients, None)
            if residual is not None and found.certificate is not None:
                own.certificate = replace(found.certificate, residual=residual[i])
            if not self._problems[i].by_task_loss:
                member.move(own, gradients, usable[i])
            else:
                usable[i] = True  # its meta-gradient is left, and not for a fault
        return MetaStep(found.learned_loss, found.task_loss, norm, ~usable, residual)

    def branch(self) -> Hashable | None:
        branches = tuple(member.branch() for member in self._members)
        return None if None in branches else branches

    def replayed(self) -> None:
        for member in self._members:
            member.replayed()


def refuse_unstackable(meta_optimizer: MetaOptimizer) -> None:
    """Refuses what would not keep a stack's seeds apart.

    Raises:
        InputError: it is not by gradient, it learns a learning rate, its engine is not
            `elementwise`, its objective is "next", or its descent asks for a Jacobian.
    """
    if not isinstance(meta_optimizer, ByGradient):
        raise InputError(
            f"meta_optimizers.{META_OPTIMIZERS.name_of(meta_optimizer)} takes one seed at a time"
        )
    if meta_optimizer.rate is not None:
        raise InputError(
            "a learned learning rate is one number of the optimizer, which a stack has once: train "
            "these seeds one at a time"
        )
    if not meta_optimizer.engine.elementwise:
        raise InputError(
            f"engine '{ENGINES.name_of(meta_optimizer.engine)}' mixes the numbers of a vector, "
            "which would be of all seeds together: train them one at a time"
        )
    if meta_optimizer.objective == "next":
        raise InputError(
            "objective = 'next' leaves a step of each seed open, and a stack makes one of all: "
            "take 'train', or train these seeds one at a time"
        )
    made = meta_optimizer.descent(groups=[Group({"p": torch.zeros(())}, 1.0)])
    if isinstance(made, JacobianDescent):
        raise InputError(
            f"descents.{DESCENTS.name_of(made)} takes the Jacobian of one learned loss: train "
            "these seeds one at a time"
        )


class StackedMetaOptimizer(MetaOptimizer):
    """Meta-optimizers of one build, a step of all of them at once.

    One of them, the lead, makes the steps on the stack of their problems. Each keeps its own
    descent and count, and saves itself.

    Args:
        members: attached to their problems.
        problems: theirs.
        stacked: the stack of these, whose losses are of shape [S].

    Raises:
        InputError: see `refuse_unstackable`.
    """

    def __init__(
        self, members: Sequence[MetaOptimizer], problems: Sequence[Problem], stacked: Problem
    ) -> None:
        for member in members:
            refuse_unstackable(member)
        self._members = [member for member in members if isinstance(member, ByGradient)]
        self._problems = problems
        self._stacked = stacked
        self.steps = members[0].steps
        self.objective = members[0].objective
        self.objective_batch_size = members[0].objective_batch_size
        self.join()

    def attach(self, problem: Problem) -> None:
        for member, own in zip(self._members, self._problems, strict=True):
            member.attach(own)
        self.join()

    def join(self) -> None:
        """Goes on from where the members stand."""
        lead = self._lead = copy.copy(self._members[0])  # with its count of steps
        lead.problem = self._stacked
        lead.meta = MetaParameters(self._stacked, lead.learn)
        lead.guard = copy.copy(lead.guard)
        lead.guard.trained = None  # the stack calls its parameters otherwise
        lead.meta_descent = StackedDescent(
            [member.meta_descent for member in self._members], self._problems
        )

    def step(self, draw_train: Draw, draw_objective: Draw) -> MetaStep:
        result = self._lead.step(draw_train, draw_objective)
        self._count()
        return result

    def _count(self) -> None:
        for member, problem in zip(self._members, self._problems, strict=True):
            if problem.by_task_loss:
                member.count()  # its meta-parameters rest, as in `rest`
            else:
                member.passed()

    def branch(self) -> Hashable | None:
        """See `ByGradient.branch`."""
        return self._lead.branch()

    def replayed(self) -> None:
        """See `ByGradient.replayed`."""
        self._lead.replayed()
        self._count()

    def certified(self, residual: Tensor) -> None:
        """See `ByGradient.certified`."""
        self._lead.certified(residual)

    def state_dict(self) -> dict[str, Any]:
        return {"members": [member.state_dict() for member in self._members]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for member, own in zip(self._members, state["members"], strict=True):
            member.load_state_dict(own)
        self.join()
