"""Implicit differentiation, the linear system solved by conjugate gradients."""

from __future__ import annotations

from metaloss.config.arguments import NonNegativeFloat, PositiveInt
from metaloss.engines.base import ENGINES
from metaloss.engines.parts.implicit import Dense, Hessian, Implicit, dot, plus


@ENGINES.register("conjugate_gradient")
class ConjugateGradient(Implicit):
    """Implicit differentiation by conjugate gradients (Hestenes & Stiefel, 1952).

    For positive definite systems: exact in n iterations for n parameters, usually good in a few.
    Where a direction of no or negative curvature shows up, it ends with what it has.

    Args:
        iterations: at most as many products with the Hessian.
        tolerance: ends where ‖residual‖ <= tolerance · ‖v‖.
        damping: added to the Hessian.
    """

    def __init__(
        self,
        iterations: PositiveInt = 20,
        tolerance: NonNegativeFloat = 1e-6,
        damping: NonNegativeFloat = 0.0,
    ) -> None:
        super().__init__(damping)
        self.iterations = iterations
        self.tolerance = tolerance

    def solve(self, hessian: Hessian, v: Dense, base_lr: float) -> Dense:
        solution = [part.new_zeros(part.shape) for part in v]
        residual = direction = v
        square = dot(residual, residual)
        enough = self.tolerance**2 * square
        for _ in range(self.iterations):
            if square <= enough:
                break
            image = hessian(direction)
            curvature = dot(direction, image)
            if curvature <= 0:
                break
            length = square / curvature
            solution = plus(solution, length, direction)
            residual = plus(residual, -length, image)
            square, before = dot(residual, residual), square
            direction = plus(residual, square / before, direction)
        return solution
