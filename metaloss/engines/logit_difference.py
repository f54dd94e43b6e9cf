"""The identity with a central difference of the outputs, for models without forward mode."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from metaloss import checks, seeding
from metaloss.engines.base import ENGINES, Rollout, RolloutEngine
from metaloss.engines.one_step import OneStepRollout
from metaloss.errors import ConfigError
from metaloss.meta_parameters import MetaParameters
from metaloss.problem import BaseStep, Batch, Problem
from metaloss.vectors import Vector


@ENGINES.register("logit_difference")
class LogitDifference(RolloutEngine):
    """t = (f(θ + εu) - f(θ - εu)) / 2ε: two plain forward passes, and no demands on the model.

    An approximation: its error is of order ε² where f is smooth, and of rounding over ε. For one
    base step at a time.

    Args:
        relative_step: ‖εu‖ / ‖θ‖; None takes the cube root of the floating-point type's
            resolution, which balances the two errors (0.005 in float32).
    """

    def __init__(self, relative_step: float | None = None) -> None:
        if relative_step is not None:
            checks.number(relative_step, "logit_difference.relative_step", below=1)
        self.relative_step = relative_step

    def roll_out(self, problem: Problem, meta: MetaParameters, batches: Sequence[Batch]) -> Rollout:
        if len(batches) > 1:
            raise ConfigError(
                "engine = 'logit_difference' goes back through one base step at a time; "
                f"inner_steps = {len(batches)} needs 'exact' or 'unrolled'"
            )
        directional = partial(central_difference, relative_step=self.relative_step)
        return OneStepRollout(problem, meta, batches[0], directional, primals=False)


@torch.no_grad()
def central_difference(
    problem: Problem, step: BaseStep, u: Vector, relative_step: float | None
) -> Tensor | None:
    """J_f(θ) u on the step's batch and dropout masks; None if u is zero."""
    theta = step.taken.theta_before
    moved = [k for k, direction in enumerate(u) if direction is not None]
    if not moved:
        return None
    directions = [direction for direction in u if direction is not None]
    size = torch.stack(torch._foreach_norm(directions)).norm()
    if relative_step is None:
        relative_step = torch.finfo(theta[0].dtype).eps ** (1 / 3)
    epsilon = relative_step * torch.stack(torch._foreach_norm(theta)).norm() / size
    epsilon = torch.where(size > 0, epsilon, 1.0)  # u = 0 has the derivative 0
    outputs = []
    for sign in (1, -1):
        shifted = {name: p.detach() for name, p in problem.others.items()}
        shifted |= dict(zip(problem.theta_names, theta, strict=True))
        for k, direction in zip(moved, directions, strict=True):
            shifted[problem.theta_names[k]] = theta[k] + sign * epsilon * direction
        buffers = {name: value.clone() for name, value in step.buffers.items()}
        with (
            sdpa_kernel(SDPBackend.MATH),  # the same dropout masks whatever kernel is chosen
            seeding.replaying(step.random_state, problem.device),
            problem.replaced(shifted, buffers),
        ):
            outputs.append(problem.forward(step.batch[0]))
    return (outputs[0] - outputs[1]) / (2 * epsilon)
