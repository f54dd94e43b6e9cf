"""The reference: plain double backward through all steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metaloss.base_optimizers.base import State
from metaloss.base_optimizers.parts.taken_step import take_step
from metaloss.engines.base import ENGINES, Draw, Engine, Hypergradient
from metaloss.machine import distributed
from metaloss.problem import replicas
from metaloss.problem.batches import StepBatch, examples, parts
from metaloss.problem.gradient_transform import transform
from metaloss.problem.meta_parameters import MetaParameters
from metaloss.problem.problem import Problem
from metaloss.problem.refusals import refusing_single_backward
from metaloss.problem.vectors import add, copy, gradient


@ENGINES.register("unrolled")
class Unrolled(Engine):
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
        for batch in train:
            grads, learned_loss = _gradient(problem, theta, batch)
            # Copies: torch's foreach kernel of Nesterov's SGD changes its gradients in place.
            problem.set_gradients(copy([None if grad is None else grad.detach() for grad in grads]))
            taken = take_step(problem.optimizer, problem.theta, "values")
            state = taken.state_before if state is None else state
            theta, state = taken.differentiable(theta, grads, state, alpha, meta.ratios)
        task_loss, v = problem.task_gradient(draw_objective())
        with refusing_single_backward():
            bars = gradient(theta, leaves, v)
        bars = distributed.mean(bars, leaves, examples=1)
        alpha_bar = None if alpha is None else bars.pop()
        return Hypergradient(learned_loss, task_loss, bars, alpha_bar)


def _gradient(
    problem: Problem, theta: Sequence[Tensor], batch: StepBatch
) -> tuple[list[Tensor | None], Tensor]:
    """g at θ with its graph, and M_φ without one; running statistics move here."""
    grads: list[Tensor | None] = [None] * len(theta)
    losses: list[Tensor] = []
    named = dict(zip(problem.theta_names, theta, strict=True))
    micro_batches = parts(batch)
    with problem.replaced(named, None):
        for part in micro_batches:
            loss, g = problem.graph(theta, part, len(micro_batches))
            grads = add(grads, g)
            losses.append(loss)
    grads, learned_loss = replicas.mean_step(
        problem.model, theta, grads, sum(losses[1:], losses[0]), examples(batch)
    )
    if problem.gradient_transform is not None:
        grads = transform(problem.gradient_transform, grads)
    return grads, learned_loss
