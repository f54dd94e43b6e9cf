"""Whether a double backward pass is the derivative of the backward pass that it goes through.

A backward pass is linear in the slope that it starts from. Begun with c times that, it gives
g(c) = c·g, so that what autograd finds for ∂⟨g(c), u⟩/∂c at c = 1 is ⟨g, u⟩. It is less where the
graph of the backward pass is cut: by @once_differentiable, by .detach(), by NumPy. Autograd says
nothing of it where, as here, the leaves are on the other side of the cut.

Another pass decides what is asked next. If g(2) = 2·g, and the two differ, the mean of some more
such comparisons is taken, whose rounding is other rounding each time. If g(2) is another one, a
hook makes the backward pass no linear one, as by clipping: there quotients of four more passes
decide, up to what two of them differ by.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metaloss.engines.parts.certificate import ERRORS, product, tolerance
from metaloss.machine import distributed
from metaloss.problem.problem import Problem
from metaloss.problem.stacked import Stacked
from metaloss.problem.vectors import Vector, gradient

#: What its certificate compares, for messages.
WORDS = "⟨g, u⟩ and its derivative by double backward"
CAUSE = (
    "a backward pass that cannot be differentiated, as one of a torch.autograd.Function with "
    "@once_differentiable, .detach() or NumPy in it"
)

#: The share of ‖g‖‖u‖ that a residual is relative to at least. There is no J u to take the length
#: of, and where g and u are next to orthogonal, as in some steps, ⟨g, u⟩ is rounding itself.
SHARE = 5e-2
#: How much more a quotient may be off than rounding is: clipping has kinks, at both of its steps.
KINKS = 10.0
#: How much a mean may be off, relative to the size: as much more, but in low precision.
AT_MOST = 0.1
#: From how many times the slope the more comparisons begin: no powers of two, which round alike.
FACTORS = (1.2, 1.4, 1.7)


class Factor:
    """c, by which the slope in a model's outputs is multiplied on its way back.

    Args:
        value: of it.
    """

    def __init__(self, problem: Problem, value: float = 1.0) -> None:
        members = len(problem.theta[0]) if isinstance(problem.model, Stacked) else 1
        self.leaf = torch.full(
            [members], value, dtype=torch.float64, device=problem.device, requires_grad=True
        )

    def __call__(self, outputs: Tensor) -> Tensor:
        """The outputs, whose slope arrives c times as large."""
        factor = self.leaf
        if len(factor) > 1:  # of a stack, each its own
            factor = factor.view(-1, *[1] * (outputs.dim() - 1))
        scaled: Tensor = _Scaled.apply(outputs, factor)  # type: ignore[no-untyped-call]
        return scaled


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, outputs: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return outputs.view_as(outputs)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (factor,) = ctx.saved_tensors
        return slope * factor.to(slope.dtype), None


def derivative_residual(
    problem: Problem,
    g: Vector,
    u: Vector,
    found: Tensor | None,
    again: Callable[[Factor], Vector],
    weight: float | Tensor,
) -> Tensor:
    """|∂⟨g(c), u⟩/∂c, as autograd has it, - what it is|, by the lengths of g and u.

    It waits for the device.

    Args:
        g, u: over θ, of this process.
        found: what autograd has, [1]; of a stack [S]. None: it has found no path.
        again: runs the passes that gave g once more, with another factor -> g(c).
        weight: of this process's rows.

    Returns:
        A scalar, or [S].
    """
    left = product(problem, g, u)
    size = torch.maximum(left.value.abs(), SHARE * (left.squared_v * left.squared_w).sqrt())
    found = torch.zeros_like(left.value) if found is None else found.reshape(left.value.shape)

    def relative(gap: Tensor) -> Tensor:
        return torch.where(size > 0, gap.abs() / size, 0.0)

    def quotient(step: float) -> Tensor:
        ends = (product(problem, again(Factor(problem, 1 + by)), u) for by in (step, -step))
        more, less = (end.value for end in ends)
        return (more - less) / (2 * step)

    def compared(by: float) -> Tensor:
        factor = Factor(problem, by)
        g = again(factor)
        (slope,) = gradient(g, [factor.leaf], [None if part is None else by * part for part in u])
        slope = torch.zeros_like(left.value) if slope is None else slope.reshape(left.value.shape)
        return (slope - product(problem, g, u).value) / by

    def holds(value: Tensor) -> bool:
        return bool((relative(value - left.value) <= bound / KINKS).all())

    bound = tolerance(problem)
    residual = relative(found - left.value)
    # Whatever autograd finds: where a hook divides by a length that it detaches, it sees no more
    # than a constant.
    linear = holds(product(problem, again(Factor(problem, 2.0)), u).value / 2)
    if linear and bool((residual > bound).any()):
        gaps = [found - left.value, *map(compared, FACTORS)]
        beyond = relative(torch.stack(gaps).mean(0)) / min(KINKS, AT_MOST / bound)
        residual = torch.minimum(residual, beyond)
    # Of a model of which no pass can be made again, others say nothing.
    elif not linear and holds(product(problem, again(Factor(problem)), u).value):
        step = float(torch.finfo(problem.precision).eps ** (1 / 3))
        near, far = quotient(step), quotient(2 * step)
        uncertain = ERRORS * relative(near - far)
        residual = (relative(found - near) - uncertain).clamp_min(0.0) / KINKS
    return distributed.mean_beside([], [], [residual], weight)[1][0]
