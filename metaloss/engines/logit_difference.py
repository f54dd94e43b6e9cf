"""The identity with a central difference of the outputs, for models without forward mode."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from metaloss.config.arguments import Share
from metaloss.engines.base import ENGINES, CertifiedEngine, Draw, Hypergradient
from metaloss.engines.exact import through_one_step
from metaloss.engines.parts.certificate import tolerance
from metaloss.errors import ConfigError
from metaloss.problem.base_step import BaseStep, Keep, Pass
from metaloss.problem.batches import StepBatch
from metaloss.problem.meta_parameters import MetaParameters
from metaloss.problem.problem import Problem
from metaloss.problem.refusals import refuse_tied_padding
from metaloss.problem.vectors import Vector


@ENGINES.register("logit_difference")
class LogitDifference(CertifiedEngine):
    """t = (f(θ + εu) - f(θ - εu)) / 2ε: two plain forward passes, and no demands on the model.

    An approximation: its error is of order ε² where f is smooth, and of rounding over ε. For one
    base step at a time.

    Args:
        relative_step: ‖εu‖ / ‖θ‖; None takes a thirtieth of the cube root of the floating-point
            type's resolution (1.6e-4 in float32). The cube root itself would balance the two errors
            if f changed over the length of θ; networks change over much less of it.
    """

    def __init__(self, relative_step: Share | None = None) -> None:
        self.relative_step = relative_step

    def hypergradient(
        self,
        problem: Problem,
        meta: MetaParameters,
        train: Sequence[StepBatch],
        draw_objective: Draw,
        certify: bool = False,
    ) -> Hypergradient:
        if len(train) > 1:
            raise ConfigError(
                "engine = 'logit_difference' goes back through one base step at a time; "
                f"inner_steps = {len(train)} needs 'exact' or 'unrolled'"
            )
        refuse_tied_padding(problem.model, problem.theta)
        directional = partial(central_difference, relative_step=self.relative_step)
        keep = Keep(slope=bool(meta.phi))
        bound = tolerance(problem, quotient=True) if certify else None
        return through_one_step(problem, meta, train[0], draw_objective, directional, keep, bound)


@torch.no_grad()
def central_difference(
    problem: Problem, step: BaseStep, part: Pass, u: Vector, relative_step: float | None
) -> tuple[Tensor | None, Tensor | None]:
    """f, where the pass has no slope, and J_f(θ) u on its batch and masks; None if u is zero."""
    theta = step.taken.theta_before
    moved = [k for k, direction in enumerate(u) if direction is not None]
    if not moved:
        return None, None
    directions = [direction for direction in u if direction is not None]
    size = torch.stack(torch._foreach_norm(directions)).norm()
    if relative_step is None:
        relative_step = torch.finfo(theta[0].dtype).eps ** (1 / 3) / 30
    epsilon = relative_step * torch.stack(torch._foreach_norm(theta)).norm() / size
    epsilon = torch.where(size > 0, epsilon, 1.0)  # u = 0 has the derivative 0

    def outputs_at(theta: Sequence[Tensor]) -> Tensor:
        named = {name: p.detach() for name, p in problem.followed.others.items()}
        named |= dict(zip(problem.theta_names, theta, strict=True))
        with (
            sdpa_kernel(SDPBackend.MATH),  # the same dropout masks whatever kernel is chosen
            problem.again(named, part),
        ):
            return problem.forward(part.batch[0])

    def outputs_beside(sign: int) -> Tensor:
        shifted = list(theta)
        for k, direction in zip(moved, directions, strict=True):
            shifted[k] = theta[k] + sign * epsilon * direction
        return outputs_at(shifted)

    tangent = (outputs_beside(1) - outputs_beside(-1)) / (2 * epsilon)
    return outputs_at(theta) if part.slope is None else None, tangent
