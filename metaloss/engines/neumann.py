"""Implicit differentiation, the inverse as a Neumann series."""

from __future__ import annotations

from metaloss.config.arguments import NonNegativeFloat, PositiveFloat, PositiveInt
from metaloss.engines.base import ENGINES
from metaloss.engines.parts.implicit import Dense, Hessian, Implicit, plus


@ENGINES.register("neumann")
class Neumann(Implicit):
    """Implicit differentiation, the inverse as a Neumann series (Lorraine et al., 2020).

    q = η Σ_{i<iterations} (I - η(H + λI))ⁱ v, which converges for η below 2 / (largest eigenvalue).
    With η = α it is the gradient through the last steps of plain gradient descent, as if all had
    been made at θ_K.

    Args:
        iterations: terms of the series.
        lr: η; None takes the base optimizer's learning rate.
        damping: added to the Hessian.
    """

    def __init__(
        self,
        iterations: PositiveInt = 20,
        lr: PositiveFloat | None = None,
        damping: NonNegativeFloat = 0.0,
    ) -> None:
        super().__init__(damping)
        self.iterations = iterations
        self.lr = lr

    def solve(self, hessian: Hessian, v: Dense, base_lr: float) -> Dense:
        lr = base_lr if self.lr is None else self.lr
        term, total = v, v
        for _ in range(self.iterations - 1):
            term = plus(term, -lr, hessian(term))
            total = plus(total, 1.0, term)
        return [lr * part for part in total]
