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

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from metaloss.engines.base import Certificate
from metaloss.engines.parts.certificate import ERRORS, Product, product, tolerance
from metaloss.machine import distributed, seeding
from metaloss.problem.gradient_transform import ClipNorm, ClipValue, Transformed
from metaloss.problem.graph import by_functions
from metaloss.problem.problem import Problem
from metaloss.problem.refusals import warn_of_curvature
from metaloss.problem.vectors import Vector, gradient

#: What its certificate compares, for messages.
WORDS = "what another ∂M/∂f makes of ⟨g, u⟩ and its derivative by double backward"
CAUSE = (
    "a backward pass that cannot be differentiated, as one of a torch.autograd.Function with "
    "@once_differentiable, .detach() or NumPy in it, or with a hook that detaches a part"
)

OF_TRANSFORM = "what another gradient makes of the transformed one and its derivative by autograd"
WHY_TRANSFORM = (
    "a gradient_transform that autograd does not know the derivative of, as one that detaches a "
    "length or a direction, or computes under torch.no_grad()"
)

OF_CURVATURE = "what another θ makes of ⟨g, u⟩ and its derivative by double backward"

#: The share of ‖g(m + r) - g(m)‖‖u‖ that a residual is relative to at least. There is no J u to
#: take the length of, and where the two are next to orthogonal, their product is rounding itself.
SHARE = 5e-2
#: How much more a quotient may be off than rounding is: clipping has kinks, at both of its steps.
KINKS = 10.0
#: How much a mean may be off, relative to the size: as much more, but in low precision.
AT_MOST = 0.1
#: By what share of their length two quotients of one derivative may differ, to say anything.
MOST_APART = 0.25
#: How many more comparisons the mean is of.
MORE = 3


class Beside:
    """What is added to the slope in a model's outputs on its way back; at first nothing.

    Args:
        added: of the outputs' shape; None: zero.

    Attributes:
        leaf: what is added, once there are outputs.
        slope: what has gone on into the model, without graph; once it has.
        own: whether the model's pass is by a torch.autograd.Function, as hooks on modules are too.
    """

    def __init__(self, added: Tensor | None = None) -> None:
        self._added = added
        self.leaf: Tensor
        self.slope: Tensor | None = None
        self.own = False

    def __call__(self, outputs: Tensor) -> Tensor:
        """The outputs, on whose way back it is added."""
        added = torch.zeros_like(outputs) if self._added is None else self._added
        self.leaf = added.detach().requires_grad_()
        self.own = by_functions(outputs)
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

    def moved(r: Tensor) -> tuple[Vector, Beside, Product]:
        """g(m + r), what gave it, and ⟨g(m + r) - g(m), u⟩."""
        beside = Beside(r)
        there = again(beside)
        return there, beside, product(problem, _less(there, g), u)

    def expected(t: Tensor, beside: Beside) -> Tensor:
        """⟨t, r⟩, r as it was rounded."""
        assert beside.slope is not None
        return product(problem, [t], [beside.slope.double() - slope.double()]).value

    def compared(r: Tensor) -> Tensor:
        """A gap as the first one, of a derivative that was taken elsewhere, and so rounded."""
        there, beside, made = moved(r)
        (t,) = gradient(there, [beside.leaf], u)
        return expected(torch.zeros_like(slope) if t is None else t, beside) - made.value

    r = _change(slope, t, 0)
    _, beside, made = moved(r)
    size = _size(made)
    gap = expected(t, beside) - made.value
    residual = _relative(gap, size)
    if bool((residual > bound).any()):
        half = moved(2 * r)[2].value / 2
        if bool((_relative(half - made.value, size) <= bound).all()):
            gaps = [gap, *(compared(_change(slope, t, seed)) for seed in range(1, MORE + 1))]
            mean = _relative(torch.stack(gaps).mean(0), size)
            residual = torch.minimum(residual, mean / min(KINKS, AT_MOST / bound))
        elif bool((_relative(moved(torch.zeros_like(r))[2].value, size) <= bound).all()):

            def between(step: float) -> Product:
                ends = [again(Beside(by * r)) for by in (step, -step)]
                return product(problem, _less(*ends), u)

            step = float(torch.finfo(problem.precision).eps ** (1 / 3))
            residual = _beyond(product(problem, [t], [r]).value, between, step)
        else:  # no pass can be made again
            whole = product(problem, g, u)
            gap = product(problem, [t], [slope]).value - whole.value
            residual = _relative(gap, _size(whole))
    return distributed.mean_beside([], [], [residual], weight)[1][0]


def of_curvature(
    problem: Problem,
    beside: Beside,
    theta: Sequence[Tensor],
    g: Vector,
    u: Vector,
    found: Callable[[], Vector],
    at: Callable[[Sequence[Tensor]], Vector],
    weight: float | Tensor,
) -> list[Certificate]:
    """Of several steps: whether autograd's ∂⟨g, u⟩/∂θ is that of quotients of g.

    Torch's own operators know their second derivatives. A backward pass of one's own may not: one
    that multiplies by what its forward pass has saved of a derivative is right in one step, and
    takes the curvature of the model for 0. And what changes gradients on their way, as a hook or a
    gradient reversal, changes those of a double backward pass too.

    Kinks make a quotient uncertain by what two of them differ by, and what both sides of one; and
    what is left of it in each of some directions is the derivative's. That is asked in float64
    alone: the steps of lower precision cross so many kinks, as of max pooling, that these make a
    curvature which no derivative has. There it is said, once. It waits for the device.

    Args:
        beside: of the pass.
        theta: of the step.
        g, u: over θ.
        found: gives what autograd has, likewise.
        at: a pass at another θ -> g there.
        weight: of this process's rows.

    Returns:
        One, where the model has what this is about, else none.
    """
    if not (beside.own or problem.hooked):
        return []
    if problem.precision is not torch.float64:
        problem.tell_once(warn_of_curvature)
        return []
    residual = _curvature_residual(problem, theta, g, u, found(), at, weight)
    return [Certificate(residual, tolerance(problem), OF_CURVATURE, CAUSE)]


def _curvature_residual(
    problem: Problem,
    theta: Sequence[Tensor],
    g: Vector,
    u: Vector,
    found: Vector,
    at: Callable[[Sequence[Tensor]], Vector],
    weight: float | Tensor,
) -> Tensor:
    """A scalar; of a stack [S]. Found: over θ, what autograd has; all else as above."""
    step = float(torch.finfo(torch.float64).eps ** (1 / 3)) / 30  # networks are curved
    bound = tolerance(problem)
    length = torch.stack(torch._foreach_norm([p.detach() for p in theta])).norm()

    def along(seed: int) -> Tensor:
        chance = torch.Generator().manual_seed(seed)
        r = [
            torch.randn(p.shape, generator=chance).to(p) + (0.0 if bar is None else bar.sign())
            for p, bar in zip(theta, found, strict=True)
        ]
        scale = length / torch.stack(torch._foreach_norm(r)).norm()
        r = [scale * part for part in r]
        ends = {
            by: at([(p + by * d).detach() for p, d in zip(theta, r, strict=True)])
            for by in (step, -step, 2 * step, -2 * step)
        }

        def between(more: float, less: float) -> Product:
            return product(problem, _less(ends[more], ends[less]), u)

        middle, wide = between(step, -step), between(2 * step, -2 * step)
        sides = product(problem, _less(ends[step], g), u).value
        size = _size(middle)
        apart = torch.maximum(
            _relative(middle.value - wide.value / 2, size),
            _relative(2 * (2 * sides - middle.value), size),
        )
        gap = _relative(2 * step * product(problem, found, r).value - middle.value, size)
        residual = (gap - 2 * ERRORS * apart).clamp_min(0.0) / KINKS
        return torch.where(apart < MOST_APART, residual, 0.0)

    residual = along(0)
    for seed in range(1, MORE + 1):
        if bool((residual > bound).any()):
            residual = torch.minimum(residual, along(seed))
    return distributed.mean_beside([], [], [residual], weight)[1][0]


def with_transform(problem: Problem, g: Vector, u: Vector, certificate: Certificate) -> Certificate:
    """The worse one of a step's certificate and that of what happens to its gradient.

    A gradient transform of one's own is asked by itself, from one state each time: for a quotient
    of what it makes of g, and for the transposed derivative that autograd has. Where it gives
    something else each time all the same, nothing is asked.

    Args:
        g: the gradient that it was given.
        u: over what it has made of that.
    """
    function = problem.gradient_transform
    if function is None or isinstance(function, ClipNorm | ClipValue) or problem.shards is not None:
        return certificate
    state, before = seeding.global_state(problem.device), problem.surroundings.whole()

    def made(by: float) -> Transformed:
        given = [None if x is None or y is None else x + by * y for x, y in zip(g, r, strict=True)]
        with seeding.replaying(state, problem.device):
            try:
                return Transformed(function, given)
            finally:
                before.changed().put_back()

    r: Vector = [None if part is None else torch.zeros_like(part) for part in g]
    here, again = made(0.0), made(0.0)
    same = product(problem, *[_less(here.values(), again.values())] * 2).value == 0
    found = here.cotangent(u)
    r = [
        None if x is None else _change(x, torch.zeros_like(x) if t is None else t, k)
        for k, (x, t) in enumerate(zip(g, found, strict=True))
    ]

    def between(step: float) -> Product:
        return product(problem, _less(made(step).values(), made(-step).values()), u)

    step = float(torch.finfo(problem.theta[0].dtype).eps ** (1 / 3))
    beyond = _beyond(product(problem, found, r).value, between, step)
    residual = torch.where(same, beyond, 0.0)
    its_own = Certificate(residual, certificate.tolerance, OF_TRANSFORM, WHY_TRANSFORM)
    return worst([certificate, its_own])


def worst(certificates: Sequence[Certificate]) -> Certificate:
    """One for all, in the words of the one with the largest residual; of one bound."""
    residuals = torch.stack([one.residual for one in certificates])
    largest = int(residuals.reshape(len(certificates), -1).amax(1).argmax())
    return replace(certificates[largest], residual=residuals.amax(0))


def _beyond(expected: Tensor, between: Callable[[float], Product], step: float) -> Tensor:
    """By how much a derivative is off a quotient, beyond what two quotients differ by.

    Args:
        expected: the derivative.
        between: ⟨h(step) - h(-step), u⟩.
    """
    ends = between(step)
    near, far = ends.value / (2 * step), between(2 * step).value / (4 * step)
    size = _size(ends) / (2 * step)
    uncertain = ERRORS * _relative(near - far, size)
    return (_relative(expected - near, size) - uncertain).clamp_min(0.0) / KINKS


def _size(of: Product) -> Tensor:
    """What a gap of a product is relative to."""
    return torch.maximum(of.value.abs(), SHARE * (of.squared_v * of.squared_w).sqrt())


def _relative(gap: Tensor, size: Tensor) -> Tensor:
    return torch.where(size > 0, gap.abs() / size, 0.0)


def _less(x: Vector, y: Vector) -> Vector:
    """x - y, without graph."""
    return [
        a if b is None else -b if a is None else (a - b).detach() for a, b in zip(x, y, strict=True)
    ]


def _change(slope: Tensor, t: Tensor, seed: int) -> Tensor:
    """r: a change of each number of m in proportion to it, as no hook has a kink at zero there.

    It has a part along m, one that t sees best, and one by chance; another one for each seed.
    """
    chance = torch.randn(slope.shape, generator=torch.Generator().manual_seed(seed))
    return slope * (1 + slope.sign() * t.sign() + chance.to(slope))
