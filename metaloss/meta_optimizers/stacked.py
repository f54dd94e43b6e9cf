"""Stacked: the meta-optimizers of several seeds, one step of all at once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch

from metaloss.base_optimizers.rates.base import Rate
from metaloss.engines.base import ENGINES, Draw, Engine, Hypergradient
from metaloss.errors import InputError
from metaloss.meta_optimizers.base import MetaOptimizer, MetaStep
from metaloss.meta_optimizers.by_gradient import MetaDescent
from metaloss.problem.problem import Problem


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


class StackedMetaOptimizer(MetaOptimizer):
    """Meta-optimizers of one build, a step of all of them at once.

    Args:
        members: attached to their problems.
        problems: theirs.
        stacked: the stack of these.

    Raises:
        InputError: their kind takes one seed at a time.
    """

    def __init__(
        self, members: Sequence[MetaOptimizer], problems: Sequence[Problem], stacked: Problem
    ) -> None:
        self._members = members
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
        self._lead = self._members[0].leading(self._members, self._stacked)

    def step(self, draw_train: Draw, draw_objective: Draw) -> MetaStep:
        result = self._lead.step(draw_train, draw_objective)
        for member in self._members:
            member.keep_up(self._lead)
        return result

    def branch(self) -> Hashable | None:
        return self._lead.branch()

    def replayed(self) -> None:
        self._lead.replayed()
        for member in self._members:
            member.keep_up(self._lead)

    def state_dict(self) -> dict[str, Any]:
        return {"members": [member.state_dict() for member in self._members]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for member, own in zip(self._members, state["members"], strict=True):
            member.load_state_dict(own)
        self.join()
