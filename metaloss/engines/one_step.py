"""One base step, gone back through by the identity that needs no second order in the backbone.

For one base step θ' = U(θ, g), g = ∇_θ M_φ(y, f_θ(x)), and v = ∇_θ' L_T, φ reaches θ' only through
g, and θ reaches M_φ only through the outputs f. So, with u = (∂U/∂g)ᵀ v,

    ∇_φ L_T = ∇_φ ⟨u, ∇_θ M_φ⟩ = ∇_φ ⟨∂M_φ/∂f, t⟩,    t = J_f(θ) u,

which takes one directional derivative of the outputs for t and second derivatives of the small loss
network alone, where eqs. 10 and 11 of the paper are usually computed by a double backward pass
through f. A loss that looks at θ itself adds ∇_φ ⟨u, ∂M_φ/∂θ⟩. And ∂L_T/∂α = ⟨v, ∂θ'/∂α⟩ needs no
derivative of f at all. Where g is transformed before the step (clipped), U is both together, and
where it is a sum over micro-batches, so is what stands behind ∇_φ.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from metaloss.engines.base import Rollout
from metaloss.machine import distributed
from metaloss.problem.base_step import BaseStep, Pass
from metaloss.problem.batches import StepBatch
from metaloss.problem.meta_parameters import MetaParameters
from metaloss.problem.problem import Problem
from metaloss.problem.vectors import Vector, add, gradient, inner

#: f and J_f(θ) u on a pass's batch and dropout masks, [batch, C]. The second is None if the outputs
#: do not feel u; the first may be, where the pass has a slope.
Directional = Callable[[Problem, BaseStep, Pass, Vector], tuple[Tensor | None, Tensor | None]]


class OneStepRollout(Rollout):
    """One base step, by the identity above.

    Args:
        directional: how t = J_f(θ) u is computed.
        primals: whether it makes use of the primal values kept from the base pass.
    """

    def __init__(
        self,
        problem: Problem,
        meta: MetaParameters,
        batch: StepBatch,
        directional: Directional,
        *,
        primals: bool,
    ) -> None:
        self._problem = problem
        self._meta = meta
        self._directional = directional
        self._step = problem.base_step(batch, loss_graph=bool(meta.phi), keep_primals=primals)
        self.learned_loss = self._step.gradient.learned_loss
        if self._step.taken.scale() is not None and meta.ratios is None:
            for parameter in problem.theta:  # then u does not depend on g
                parameter.grad = None

    def pullback(self, v: Vector) -> tuple[list[Tensor | None], Tensor | None]:
        ratios, taken = self._meta.ratios, self._step.taken
        alpha_bar = None if ratios is None else inner(v, taken.direction(ratios))
        return self._through_loss(v) if self._meta.phi else [], alpha_bar

    def _through_loss(self, v: Vector) -> list[Tensor | None]:
        step, scale = self._step, self._step.taken.scale()
        u = step.taken.cotangent(v) if scale is None else v
        if step.gradient.transformed is not None:
            u = step.gradient.transformed.cotangent(u)
        phi_bar: list[Tensor | None] = [None] * len(self._meta.phi)
        for part in step.gradient.passes:
            outputs, t = self._directional(self._problem, step, part, u)
            slope = part.slope
            if slope is None and t is not None:
                assert outputs is not None
                slope = self._problem.slope(outputs, part)
            ends = [t, *(u if part.direct else [])]
            if scale is not None:  # u = c·v: all that follows is linear in it, and smaller than v
                ends = [None if end is None else scale * end for end in ends]
            phi_bar = add(phi_bar, gradient([slope, *part.direct], self._meta.phi, ends))
        return distributed.mean(phi_bar, self._meta.phi, step.gradient.examples)
