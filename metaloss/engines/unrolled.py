"""The reference: plain double backward through all steps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from metaloss.base_optimizers.base import State
from metaloss.base_optimizers.parts.taken_step import TakenStep, take_step
from metaloss.engines.base import ENGINES, Certificate, CertifiedEngine, Draw, Hypergradient
from metaloss.engines.parts.certificate import tolerance
from metaloss.engines.parts.linearity import (
    CAUSE,
    WORDS,
    Beside,
    derivative_residual,
    of_curvature,
    with_transform,
    worst,
)
from metaloss.machine import distributed, seeding
from metaloss.problem import replicas
from metaloss.problem.base_step import Pass
from metaloss.problem.batches import StepBatch, examples, parts, together
from metaloss.problem.forward_mode import KeepPrimals
from metaloss.problem.gradient_transform import transform
from metaloss.problem.meta_parameters import MetaParameters
from metaloss.problem.problem import Problem
from metaloss.problem.refusals import refusing_single_backward
from metaloss.problem.vectors import Vector, add, copy, gradient


@ENGINES.register("unrolled")
class Unrolled(CertifiedEngine):
    """θ_K as one differentiable function of φ and α, by autograd alone; memory grows with K.

    So it does with the number of micro-batches. The way for losses that look at θ itself, and
    torch's own derivatives throughout, so that other engines can be compared with it. Not for
    several steps of a model with activation checkpoints: torch would run a step's checkpoint again
    with the parameters of a later one.

    The base steps are those of plain training up to rounding, not bit for bit. Each gradient is
    taken at the θ_k of the graph, which is U written out; the optimizer's own kernel rounds in
    another order. And where autograd keeps a graph, torch differentiates some operators (SiLU,
    group normalisation, attention) by other formulas.
    """

    exact = True
    elementwise = True
    bitwise = False

    def hypergradient(
        self,
        problem: Problem,
        meta: MetaParameters,
        train: Sequence[StepBatch],
        draw_objective: Draw,
        certify: bool = False,
    ) -> Hypergradient:
        problem.probe(train[0])
        theta: list[Tensor] = [p.detach().clone().requires_grad_() for p in problem.theta]
        leaves: list[Tensor] = [*meta.phi]
        alpha: Tensor | None = None
        if meta.ratios is not None:
            lr = float(problem.optimizer.param_groups[0]["lr"])
            alpha = torch.tensor(lr, dtype=torch.float64, requires_grad=True)
            leaves.append(alpha)
        state: list[State] | None = None
        last = None
        for k, batch in enumerate(train):
            # Of several steps the last one has a certificate: what is wrong is so in each.
            last = Last(problem, theta) if certify and k == len(train) - 1 else None
            grads, learned_loss = _gradient(problem, theta, batch, last)
            # Copies: torch's foreach kernel of Nesterov's SGD changes its gradients in place.
            problem.set_gradients(copy([None if grad is None else grad.detach() for grad in grads]))
            taken = take_step(problem.optimizer, problem.theta, "values")
            state = taken.state_before if state is None else state
            theta, state = taken.differentiable(theta, grads, state, alpha, meta.ratios)
        task_loss, v = problem.task_gradient(draw_objective())
        certificate = None
        with refusing_single_backward():
            if last is not None:
                certificate = last.certificate(taken, v, problem.weight(train[-1]), len(train) > 1)
            bars = gradient(theta, leaves, v)
        bars = distributed.mean(bars, leaves, 1)
        alpha_bar = None if alpha is None else bars.pop()
        return Hypergradient(learned_loss, task_loss, bars, alpha_bar, certificate)


class Last:
    """The last step, with what certifies its double backward pass.

    Args:
        theta: its parameters, with their graph.
    """

    def __init__(self, problem: Problem, theta: Sequence[Tensor]) -> None:
        self._problem, self._theta = problem, theta
        self.beside = Beside()
        self.grads: list[Tensor | None] = []  #: g of this process, with its graph
        self.passes: list[Pass] = []

    def note(self, batch: StepBatch) -> None:
        """Keeps what it takes to run the step's passes once more; comes before the first."""
        device = self._problem.device
        if len(parts(batch)) == 1:
            kept = self._problem.surroundings.keep(), seeding.global_state(device)
            self.passes = [Pass(parts(batch)[0], None, None, KeepPrimals(), *kept)]

    def certificate(
        self, taken: TakenStep, v: Vector, weight: float | Tensor, several: bool
    ) -> Certificate | None:
        """Of the step that was taken, given v; None where it is not a single pass.

        Comes before the graph of θ' is gone.

        Args:
            weight: of this process's rows.
            several: whether steps come before it, so that it matters how g moves with θ.
        """
        if not self.passes:
            return None
        problem = self._problem
        g = [g if g is None else g.detach() for g in self.grads]
        # Any u shows what is missing, and a gradient transform is asked by itself.
        u = taken.cotangent(v)
        (t,) = gradient(self.grads, [self.beside.leaf], u, retain_graph=True)
        residual = derivative_residual(problem, g, u, self.beside.slope, t, self._again, weight)
        certificate = Certificate(residual, tolerance(problem), WORDS, CAUSE)
        if several:
            found = partial(gradient, self.grads, self._theta, u, retain_graph=True)
            at = partial(self._pass, None)
            others = of_curvature(problem, self.beside, self._theta, g, u, found, at, weight)
            certificate = worst([certificate, *others])
        return with_transform(problem, g, u, certificate)

    def _again(self, beside: Beside) -> Vector:
        return self._pass(beside, self._theta)

    def _pass(self, beside: Beside | None, theta: Sequence[Tensor]) -> Vector:
        (part,) = self.passes
        theta = [p.detach().requires_grad_() for p in theta]
        named = dict(zip(self._problem.theta_names, theta, strict=True))
        with self._problem.again(named, part):
            return self._problem.graph(theta, part.batch, None, beside)[1]


def _gradient(
    problem: Problem, theta: Sequence[Tensor], batch: StepBatch, last: Last | None
) -> tuple[list[Tensor | None], Tensor]:
    """g at θ with its graph, and M_φ without one; running statistics move here.

    Args:
        last: of the last step: is told of its passes, and may add to their slopes.
    """
    if last is not None:
        last.note(batch)
    grads: list[Tensor | None] = [None] * len(theta)
    losses: list[Tensor] = []
    named = dict(zip(problem.theta_names, theta, strict=True))
    micro_batches = problem.shared_out(batch)
    beside = None if last is None else last.beside
    with problem.surroundings.noting() as news, problem.replaced(named, None):
        for part, share in micro_batches:
            loss, g = problem.graph(theta, part, share, beside)
            grads = add(grads, g)
            losses.append(loss)
    problem.surroundings.passed()
    if last is not None:
        last.grads = grads
        for made in last.passes:
            made.surroundings = news.beside(made.surroundings)
    whole = together(losses, [share for _, share in micro_batches])
    grads, learned_loss = replicas.mean_step(
        problem.model, theta, grads, whole, problem.weight(batch), examples(batch)
    )
    if problem.gradient_transform is not None:
        grads = transform(problem.gradient_transform, grads)
    return grads, learned_loss
