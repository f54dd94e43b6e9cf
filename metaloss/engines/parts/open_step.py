"""An open step: a base step that was made, and is not judged yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from metaloss.base_optimizers.base import update_of
from metaloss.base_optimizers.parts.taken_step import TakenStep
from metaloss.machine import seeding
from metaloss.problem import snapshot
from metaloss.problem.base_step import BaseStep, Keep
from metaloss.problem.followed import Followed
from metaloss.problem.problem import Problem
from metaloss.problem.vectors import Vector

#: What of a `TakenStep` is its own: the rest is the optimizer's.
_TAKEN = ("keep", "theta_before", "state_before", "first", "groups")


@dataclass
class OpenStep:
    """A base step with what it takes to judge it: at once, or when the next one is made.

    In between only an optimizer's settings may change, and θ' be looked at.
    """

    made: BaseStep
    keep: Keep
    grads: Vector  #: `.grad` as the optimizer left it; empty where the way back does not look at it
    bound: float | None  #: of its certificate's residual; None: it has none
    followed: Followed  #: the parameters that it moved
    phi: list[int]  #: the version of each parameter of φ, which it was made by

    def holds(self, problem: Problem) -> bool:
        """Whether the model is built as it was then, and nobody has moved φ since."""
        return self.followed is problem.followed and self.phi == versions(problem)

    def state_dict(self, problem: Problem) -> dict[str, Any]:
        """What `reopened` makes it anew from: tensors and plain data."""
        (part,) = self.made.gradient.passes
        with problem.replaced({}, part.surroundings):
            buffers = {name: buffer.clone() for name, buffer in problem.model.named_buffers()}
        return {
            "batch": part.batch,
            "buffers": buffers,
            "random_state": part.random_state,
            "taken": {name: getattr(self.made.taken, name) for name in _TAKEN},
            "keep": {"slope": self.keep.slope, "gradient": self.keep.gradient,
                     "primals": self.keep.primals},
            "grads": list(self.grads),
            "bound": self.bound,
        }  # fmt: skip


def versions(problem: Problem) -> list[int]:
    """Of the parameters of φ: a number of each that changes whenever it is written."""
    return [parameter._version for parameter in problem.phi]


def reopened(problem: Problem, state: dict[str, Any]) -> OpenStep:
    """The step that `OpenStep.state_dict` was taken of, bit for bit; its pass is made again.

    Args:
        problem: as it was left, φ and the optimizer's state included.
    """
    random_state = state["random_state"]
    state = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(problem.device), state)
    batch, keep = state["batch"], Keep(**state["keep"])
    taken = TakenStep(
        problem.optimizer, update_of(problem.optimizer), problem.theta, **state["taken"]
    )
    with snapshot.on_trial(problem, batch), torch.no_grad():
        for parameter, value in zip(problem.theta, taken.theta_before, strict=True):
            parameter.copy_(value)
        for name, value in state["buffers"].items():
            problem.model.get_buffer(name).copy_(value)
        seeding.set_global_state(random_state, problem.device)
        with torch.enable_grad():
            gradient = problem.gradient(batch, keep)[0]
    made = BaseStep(gradient, [], taken)
    return OpenStep(made, keep, state["grads"], state["bound"], problem.followed, versions(problem))
