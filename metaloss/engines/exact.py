"""The exact engine: one forward-mode pass for one base step, a reverse sweep for several."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from metaloss.engines.base import ENGINES, Rollout, RolloutEngine
from metaloss.engines.one_step import OneStepRollout
from metaloss.engines.sweep import SweepRollout
from metaloss.errors import UnsupportedModelError
from metaloss.machine import seeding
from metaloss.problem.base_step import BaseStep, Pass
from metaloss.problem.batches import StepBatch
from metaloss.problem.forward_mode import ForwardMode
from metaloss.problem.meta_parameters import MetaParameters
from metaloss.problem.problem import Problem
from metaloss.problem.vectors import Vector


@ENGINES.register("exact")
class Exact(RolloutEngine):
    """The identity of `one_step` with a forward-mode pass; `sweep` where there are several steps.

    Needs a forward derivative of every operator of the model, and no double backward.
    """

    exact = True
    recordable = True
    elementwise = True

    def roll_out(
        self, problem: Problem, meta: MetaParameters, batches: Sequence[StepBatch]
    ) -> Rollout:
        if len(batches) > 1:
            return SweepRollout(problem, meta, batches)
        return OneStepRollout(problem, meta, batches[0], forward_mode_pass, primals=True)


def forward_mode_pass(
    problem: Problem, step: BaseStep, part: Pass, u: Vector
) -> tuple[Tensor, Tensor | None]:
    """f and J_f(θ) u on a pass's batch and dropout masks; None if the outputs do not feel u.

    Raises:
        UnsupportedModelError: an operator of the model has no forward derivative.
    """
    theta = {name: p.detach() for name, p in problem.others.items()}
    with forward_ad.dual_level():
        for name, before, direction in zip(
            problem.theta_names, step.taken.theta_before, u, strict=True
        ):
            theta[name] = before if direction is None else forward_ad.make_dual(before, direction)
        with (
            torch.enable_grad(),  # where the model itself turns it off, tangents end
            ForwardMode(part.primals),
            seeding.replaying(part.random_state, problem.device),
            problem.replaced(theta, part.buffers),
        ):
            try:
                outputs = problem.forward(part.batch[0])
            except NotImplementedError as error:
                operator = str(error).splitlines()[0]
                raise UnsupportedModelError(
                    f"the model cannot be differentiated in forward mode ({operator}): take "
                    "engine='unrolled' or 'logit_difference'"
                ) from error
        return forward_ad.unpack_dual(outputs)
