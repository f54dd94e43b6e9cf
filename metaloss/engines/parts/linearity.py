"""Whether a double backward pass is the derivative of the backward pass that it goes through.

φ moves a base step by the slope m = ∂M/∂f alone. Autograd says how g(m) follows it, by the
derivative t of ⟨g(m), u⟩; and another backward pass, from m + r, says what a change r makes of g:

    ⟨g(m + r) - g(m), u⟩ = ⟨t, r⟩,

since a backward pass is linear in the slope that it starts from. It does not hold where the graph
of the backward pass is cut, by @once_differentiable, by .detach(), by NumPy: autograd says nothing
of that where, as here, the leaves are on the other side of the cut. r is no multiple of m: a hook
that detaches the direction of a slope, or its length, is right along m and wrong beside it.

Where it does not hold, a pass from m + 2r tells why. If g has moved twice as far, the pass is
linear, and the mean of some more such comparisons decides, whose rounding is other rounding each
time. If not, a hook makes it no linear one, as by clipping: there quotients along r decide, by four
more passes, up to what two of them differ by. Of a model of which no pass can be made again, other
passes say nothing, and it is asked along m alone, where g is known: ⟨t, m⟩ = ⟨g, u⟩.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metaloss.engines.parts.certificate import ERRORS, product, tolerance
from metaloss.machine import distributed
from metaloss.problem.problem import Problem
from metaloss.problem.vectors import Vector, gradient

#: What its certificate compares, for messages.
WORDS = "what another ∂M/∂f makes of ⟨g, u⟩ and its derivative by double backward"
CAUSE = (
    "a backward pass that cannot be differentiated, as one of a torch.autograd.Function with "
    "@once_differentiable, .detach() or NumPy in it, or with a hook that detaches a part"
)

#: The share of ‖g(m + r) - g(m)‖‖u‖ that a residual is relative to at least. There is no J u to
#: take the length of, and where the two are next to orthogonal, their product is rounding itself.
SHARE = 5e-2
#: How much more a quotient may be off than rounding is: clipping has kinks, at both of its steps.
KINKS = 10.0
#: How much a mean may be off, relative to the size: as much more, but in low precision.
AT_MOST = 0.1
#: How many more comparisons the mean is of.
MORE = 3


class Beside:
    """What is added to the slope in a model's outputs on its way back; at first nothing.

    Args:
        added: of the outputs' shape; None: zero.

    Attributes:
        leaf: what is added, once there are outputs.
        slope: what has gone on into the model, without graph; once it has.
    """

    def __init__(self, added: Tensor | None = None) -> None:
        self._added = added
        self.leaf: Tensor
        self.slope: Tensor | None = None

    def __call__(self, outputs: Tensor) -> Tensor:
        """The outputs, on whose way back it is added."""
        added = torch.zeros_like(outputs) if self._added is None else self._added
        self.leaf = added.detach().requires_grad_()
        passed: Tensor = _Beside.apply(outputs, self)  # type: ignore[no-untyped-call]
        return passed

    def send(self, slope: Tensor) -> Tensor:
        """What goes on into the model."""
        if self.slope is not None:  # a double backward pass comes by as well
            return slope
        slope = slope + self.leaf
        self.slope = slope.detach()
        return slope


class _Beside(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, outputs: Tensor, beside: Beside) -> Tensor:
        ctx.beside = beside
        return outputs.view_as(outputs)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.beside.send(slope), None


def derivative_residual(
    problem: Problem,
    g: Vector,
    u: Vector,
    slope: Tensor | None,
    found: Tensor | None,
    again: Callable[[Beside], Vector],
    weight: float | Tensor,
) -> Tensor:
    """|⟨t, r⟩ - ⟨g(m + r) - g(m), u⟩|, by what the second is at most. It waits for the device.

    Args:
        g, u: over θ, of this process.
        slope: m, of the outputs' shape. None: no slope has come by.
        found: t, likewise. None: autograd has found no path.
        again: runs the passes that gave g once more, with something added to the slope -> g.
        weight: of this process's rows.

    Returns:
        A scalar; of a stack [S].
    """
    if slope is None:
        return product(problem, [], []).value
    bound = tolerance(problem)
    t = torch.zeros_like(slope) if found is None else found

    def moved(r: Tensor) -> tuple[Vector, Beside, Tensor, Tensor]:
        """g(m + r), what gave it, ⟨g(m + r) - g(m), u⟩, and what that is at most or a share."""
        beside = Beside(r)
        there = again(beside)
        change = [
            x if y is None else -y if x is None else x.detach() - y
            for x, y in zip(there, g, strict=True)
        ]
        along = product(problem, change, u)
        length = SHARE * (along.squared_v * along.squared_w).sqrt()
        return there, beside, along.value, torch.maximum(along.value.abs(), length)

    def expected(t: Tensor, beside: Beside) -> Tensor:
        """⟨t, r⟩, r as it was rounded."""
        assert beside.slope is not None
        return product(problem, [t], [beside.slope.double() - slope.double()]).value

    def compared(r: Tensor) -> Tensor:
        """A gap as the first one, of a derivative that was taken elsewhere, and so rounded."""
        there, beside, value, _ = moved(r)
        (t,) = gradient(there, [beside.leaf], u)
        return expected(torch.zeros_like(slope) if t is None else t, beside) - value

    def relative(gap: Tensor) -> Tensor:
        return torch.where(size > 0, gap.abs() / size, 0.0)

    def quotient(step: float) -> Tensor:
        ends = [moved(by * r) for by in (step, -step)]
        return (ends[0][2] - ends[1][2]) / (2 * step)

    r = _change(slope, t, 0)
    _, beside, value, size = moved(r)
    gap = expected(t, beside) - value
    residual = relative(gap)
    if bool((residual > bound).any()):
        linear = bool((relative(moved(2 * r)[2] / 2 - value) <= bound).all())
        if linear:
            gaps = [gap, *(compared(_change(slope, t, seed)) for seed in range(1, MORE + 1))]
            beyond = relative(torch.stack(gaps).mean(0)) / min(KINKS, AT_MOST / bound)
            residual = torch.minimum(residual, beyond)
        elif bool((relative(moved(torch.zeros_like(r))[2]) <= bound).all()):
            step = float(torch.finfo(problem.precision).eps ** (1 / 3))
            near, far = quotient(step), quotient(2 * step)
            size = torch.maximum(size, near.abs())
            uncertain = ERRORS * relative(near - far)
            there = product(problem, [t], [r]).value
            residual = (relative(there - near) - uncertain).clamp_min(0.0) / KINKS
        else:  # no pass can be made again
            whole = product(problem, g, u)
            length = SHARE * (whole.squared_v * whole.squared_w).sqrt()
            size = torch.maximum(whole.value.abs(), length)
            residual = relative(product(problem, [t], [slope]).value - whole.value)
    return distributed.mean_beside([], [], [residual], weight)[1][0]


def _change(slope: Tensor, t: Tensor, seed: int) -> Tensor:
    """r: a change of each number of m in proportion to it, as no hook has a kink at zero there.

    It has a part along m, one that t sees best, and one by chance; another one for each seed.
    """
    chance = torch.randn(slope.shape, generator=torch.Generator().manual_seed(seed))
    return slope * (1 + slope.sign() * t.sign() + chance.to(slope))
