"""Implicit differentiation: the inner steps as a road to a minimum (paper, section 2.3)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from metaloss.config.arguments import NonNegativeFloat
from metaloss.engines.base import Draw, Engine, Hypergradient
from metaloss.machine import distributed
from metaloss.problem import vectors
from metaloss.problem.batches import StepBatch
from metaloss.problem.meta_parameters import MetaParameters
from metaloss.problem.problem import Problem
from metaloss.problem.vectors import gradient

Dense = list[Tensor]  #: a vector over θ without gaps
Hessian = Callable[[Dense], Dense]  #: q -> (H + λI) q


class Implicit(Engine, ABC):
    """θ_K taken for a minimum θ* of M_φ(θ) + λ/2 ‖θ‖², on the last training batch.

    There ∇_θ M_φ + λθ = 0 holds for every φ, so dθ*/dφ = -(H + λI)⁻¹ ∂²M_φ/∂θ∂φ with H = ∂²M_φ/∂θ²,
    and ∇_φ L_T = -∇_φ ⟨q, ∇_θ M_φ⟩ with (H + λI) q = v (implicit function theorem). λ is each
    group's weight decay plus `damping`. Exact at a minimum with the linear system solved; on the
    way there it is an estimate. The path does not matter, so neither does α: it gets no gradient.

    Args:
        damping: added to H, which makes a system solvable that otherwise is not.
    """

    def __init__(self, damping: NonNegativeFloat) -> None:
        self.damping = damping

    @abstractmethod
    def solve(self, hessian: Hessian, v: Dense, base_lr: float) -> Dense:
        """q with (H + λI) q ≈ v; `base_lr` is the base optimizer's learning rate."""

    def hypergradient(
        self,
        problem: Problem,
        meta: MetaParameters,
        train: Sequence[StepBatch],
        draw_objective: Draw,
    ) -> Hypergradient:
        for batch in train:
            learned_loss = problem.plain_step(batch)
        task_loss, v = problem.task_gradient(draw_objective())
        theta, decays, weight = problem.theta, self._decays(problem), problem.weight(batch)
        with sdpa_kernel(SDPBackend.MATH), problem.replaced({}, problem.surroundings.keep()):
            loss = problem.whole(batch)
            grads = torch.autograd.grad(
                loss, theta, create_graph=True, allow_unused=True, materialize_grads=True
            )

            def hessian(q: Dense) -> Dense:
                share = torch.autograd.grad(
                    grads, theta, q, retain_graph=True, materialize_grads=True
                )
                _, image = distributed.mean_beside([], [], share, weight)
                pairs = zip(image, decays, q, strict=True)
                return [part + decay * direction for part, decay, direction in pairs]

            q = self.solve(
                hessian,
                [torch.zeros_like(p) if g is None else g for p, g in zip(theta, v, strict=True)],
                float(problem.optimizer.param_groups[0]["lr"]),
            )
            shares = gradient(grads, meta.phi, [-part for part in q])
            phi_bar = distributed.mean(shares, meta.phi, weight)
        return Hypergradient(learned_loss, task_loss, phi_bar, None)

    def _decays(self, problem: Problem) -> list[float]:
        """λ of each parameter."""
        decay = {
            parameter: float(group.get("weight_decay", 0.0))
            for group in problem.optimizer.param_groups
            for parameter in group["params"]
        }
        return [decay[parameter] + self.damping for parameter in problem.theta]


def plus(x: Dense, scale: Tensor | float, y: Dense) -> Dense:
    """x + scale · y."""
    return [a + scale * b for a, b in zip(x, y, strict=True)]


def dot(x: Dense, y: Dense) -> Tensor:
    """⟨x, y⟩, shape [], in their precision."""
    return torch.stack([vectors.dot(a, b) for a, b in zip(x, y, strict=True)]).sum().to(x[0])
