"""The identity with a central difference of the outputs, for models without forward mode."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from metaloss.config.arguments import Share
from metaloss.engines.base import ENGINES, Draw, Hypergradient
from metaloss.engines.exact import ByIdentity, by_identity
from metaloss.engines.parts.certificate import ERRORS
from metaloss.engines.parts.open_step import OpenStep
from metaloss.errors import ConfigError
from metaloss.machine import distributed
from metaloss.problem.base_step import BaseStep, Judge, Pass
from metaloss.problem.batches import StepBatch
from metaloss.problem.meta_parameters import MetaParameters
from metaloss.problem.problem import Problem
from metaloss.problem.refusals import refuse_tied_padding
from metaloss.problem.vectors import Vector

#: Where they differ by more than this share of their length, they are two numbers with nothing in
#: common, as of a model that keeps something from pass to pass, and nothing is certified. Kinks
#: were seen to make a tenth of it. In float64 steps are so short that they hardly ever meet one:
#: there it is float32 somewhere in the model, whose rounding the quotient multiplies.
MOST_APART = 0.25
MOST_APART_IN_FLOAT64 = 0.01


@ENGINES.register("logit_difference")
class LogitDifference(ByIdentity):
    """t = (f(θ + εu) - f(θ - εu)) / 2ε: two plain forward passes, and no demands on the model.

    An approximation: its error is of order ε² where f is smooth, and of rounding over ε. For one
    base step at a time.

    Args:
        relative_step: ‖εu‖ / ‖θ‖; None takes a thirtieth of the cube root of the resolution of the
            passes' floating-point type (1.6e-4 in float32). The cube root itself would balance the
            two errors if f changed over the length of θ; networks change over much less of it.
    """

    of_shards = True

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
        return self.through_one_step(problem, meta, train[0], draw_objective, certify)

    def open(
        self,
        problem: Problem,
        meta: MetaParameters,
        batch: StepBatch,
        certify: bool = False,
        judge: Judge | None = None,
    ) -> OpenStep:
        refuse_tied_padding(problem.model, problem.theta)
        return super().open(problem, meta, batch, certify, judge)

    def close(
        self,
        problem: Problem,
        meta: MetaParameters,
        opened: OpenStep,
        task_loss: Tensor,
        v: Vector,
    ) -> Hypergradient:
        if opened.bound is None:
            directional = partial(central_difference, relative_step=self.relative_step)
            return by_identity(problem, meta, opened, task_loss, v, directional)
        twice = TwoSteps(self.relative_step)
        return by_identity(problem, meta, opened, task_loss, v, twice, twice.beyond)


class TwoSteps:
    """The difference quotient with a second one beside it, whose step is twice as long.

    By what the two differ, either is uncertain: by rounding, which a longer step has less of, and
    by the outputs' curvature and kinks, which it has more of. A certificate is of the rest.
    """

    def __init__(self, relative_step: float | None) -> None:
        self._relative_step = relative_step
        self._apart: list[Tensor] = []  # of each pass, squared lengths
        self._size: list[Tensor] = []
        self._most = MOST_APART

    def __call__(
        self, problem: Problem, step: BaseStep, part: Pass, u: Vector
    ) -> tuple[Tensor | None, Tensor | None]:
        outputs, t = central_difference(problem, step, part, u, self._relative_step)
        if t is not None:
            dtype = step.taken.theta_before[0].dtype
            self._most = MOST_APART_IN_FLOAT64 if dtype is torch.float64 else MOST_APART
            near = self._relative_step or default_step(problem.precision)
            far = central_difference(problem, step, part, u, 2 * near, tangent_alone=True)[1]
            assert far is not None
            self._apart.append((t - far).double().square().sum())
            self._size.append(t.double().square().sum())
        return outputs, t

    def beyond(self, residual: Tensor, weight: float | Tensor) -> Tensor:
        """How much of a certificate's residual the quotient's own error does not explain; scalar.

        Args:
            residual: a scalar, relative to the length of t.
            weight: of this process's rows.
        """
        if not self._apart:
            return residual
        sums = [torch.stack(self._apart).sum(), torch.stack(self._size).sum()]
        apart, size = distributed.mean_beside([], [], sums, weight)[1]
        apart = (apart / size).sqrt()
        error = torch.where(apart > self._most, 0.0, ERRORS * apart)
        return torch.where(size > 0, residual - error.to(residual), residual).clamp_min(0.0)


def default_step(dtype: torch.dtype) -> float:
    """‖εu‖ / ‖θ‖, see `LogitDifference`."""
    return float(torch.finfo(dtype).eps ** (1 / 3) / 30)


@torch.no_grad()
def central_difference(
    problem: Problem,
    step: BaseStep,
    part: Pass,
    u: Vector,
    relative_step: float | None,
    tangent_alone: bool = False,
) -> tuple[Tensor | None, Tensor | None]:
    """f, where the pass has no slope, and J_f(θ) u on its batch and masks; None if u is zero.

    Returns:
        Of the outputs' shape; f is None too where the tangent is asked for alone.
    """
    theta = step.taken.theta_before
    moved = [k for k, direction in enumerate(u) if direction is not None]
    if not moved:
        return None, None
    directions = [direction for direction in u if direction is not None]
    size = _length(problem, directions)
    if relative_step is None:
        relative_step = default_step(problem.precision)
    epsilon = relative_step * _length(problem, theta) / size
    epsilon = torch.where(size > 0, epsilon, 1.0)  # u = 0 has the derivative 0

    def outputs_at(theta: Sequence[Tensor]) -> Tensor:
        if problem.shards is not None:
            with sdpa_kernel(SDPBackend.MATH), problem.again({}, part), problem.shards.at(theta):
                return problem.forward(part.batch[0])
        named = {name: p.detach() for name, p in problem.followed.others.items()}
        named |= dict(zip(problem.theta_names, (p.detach() for p in theta), strict=True))
        for tensor in named.values():
            tensor.requires_grad_()  # the model may take gradients in it
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
    needed = part.slope is None and not tangent_alone
    return outputs_at(theta) if needed else None, tangent


def _length(problem: Problem, vector: list[Tensor]) -> Tensor:
    """‖v‖, also of one in shards; scalar."""
    length = torch.stack(torch._foreach_norm(vector)).norm()
    if problem.shards is None:
        return length
    return distributed.total([length.square()])[0].sqrt()
