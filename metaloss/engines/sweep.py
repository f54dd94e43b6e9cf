"""Several base steps, gone back through one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from metaloss.engines.base import ENGINES, Certificate, CertifiedEngine, Draw, Hypergradient
from metaloss.engines.parts.certificate import repeat_residual, tolerance
from metaloss.engines.parts.linearity import (
    CAUSE,
    WORDS,
    Beside,
    derivative_residual,
    of_curvature,
    with_transform,
    worst,
)
from metaloss.machine import distributed
from metaloss.problem import snapshot
from metaloss.problem.base_step import BaseStep, Graph, Keep, Pass
from metaloss.problem.batches import StepBatch
from metaloss.problem.double_backward import DoubleBackward
from metaloss.problem.followed import Followed
from metaloss.problem.meta_parameters import MetaParameters
from metaloss.problem.problem import Problem
from metaloss.problem.refusals import refusing_single_backward
from metaloss.problem.vectors import Vector, add, gradient

KEPT_BYTES = 1 << 30


@ENGINES.register("sweep")
class Sweep(CertifiedEngine):
    """A reverse sweep, one base step at a time: exact, its memory bounded whatever K is.

    A step's gradient is taken with its graph, and the graphs of the last steps are kept; earlier
    steps are run again, one at a time. So is every step if the graph would change the step: where
    one is kept, torch differentiates some operators by other formulas, which round otherwise, and
    a loss that is read from tables has no graph to θ.

    Needs double backward of every operator of the model, through one step.

    Args:
        kept_bytes: memory of the graphs that are kept.
    """

    exact = True
    elementwise = True

    def __init__(self, kept_bytes: Annotated[int, Ge(0)] = KEPT_BYTES) -> None:
        self.kept_bytes = kept_bytes
        self._known: tuple[Followed, int] | None = None  # for which model, and its steps to keep

    def hypergradient(
        self,
        problem: Problem,
        meta: MetaParameters,
        train: Sequence[StepBatch],
        draw_objective: Draw,
        certify: bool = False,
    ) -> Hypergradient:
        # What certifies a step is that it can be run again.
        kept = 0 if certify else self._kept_steps(problem, train[0])
        # Of each step θ_k, the batch, and of the optimizer's state what its derivatives take.
        keep = Keep(gradient=certify, state="derivative" if meta.ratios is None else "values")
        steps = [
            problem.base_step(batch, replace(keep, graph=left <= kept))
            for left, batch in zip(range(len(train), 0, -1), train, strict=True)
        ]
        learned_loss = steps[-1].gradient.learned_loss
        task_loss, v = problem.task_gradient(draw_objective())
        phi_bar: list[Tensor | None] = [None] * len(meta.phi)
        alpha_bar: Tensor | None = None
        state_bar: list[dict[str, Tensor]] = [{} for _ in problem.theta]
        certificates: list[Certificate] = []
        while steps:  # popped: a step's memory is free before the next one is run again
            v, state_bar, phi_share, alpha_share = _back(
                problem, meta, steps.pop(), v, state_bar, certificates, bool(steps)
            )
            phi_bar = add(phi_bar, phi_share)
            (alpha_bar,) = add([alpha_bar], [alpha_share])
        certificate = worst(certificates) if certificates else None
        return Hypergradient(learned_loss, task_loss, phi_bar, alpha_bar, certificate)

    def _kept_steps(self, problem: Problem, batch: StepBatch) -> int:
        """How many graphs are kept; found on trial, by a step with and one without."""
        problem.probe(batch)
        if self._known is None or self._known[0] is not problem.followed:
            size = _graph_bytes(problem, batch) if self.kept_bytes else None
            self._known = problem.followed, self.kept_bytes // size if size else 0
        return self._known[1]


def _graph_bytes(problem: Problem, batch: StepBatch) -> int | None:
    """Of a step's graph; None if the step has other bits with it than without."""
    storages: dict[int, int] = {}

    def note(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return saved

    with snapshot.on_trial(problem, batch):
        plain = problem.base_step(batch, Keep(gradient=True)).gradient.g
    with (
        snapshot.on_trial(problem, batch),
        torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved),
    ):
        made = problem.base_step(batch, Keep(gradient=True, graph=True)).gradient
    same = made.passes[0].graph is not None and all(
        (x is None and y is None) or (x is not None and y is not None and torch.equal(x, y))
        for x, y in zip(made.g, plain, strict=True)
    )
    return max(sum(storages.values()), 1) if same else None


def _back(
    problem: Problem,
    meta: MetaParameters,
    step: BaseStep,
    v: Vector,
    state_bar: list[dict[str, Tensor]],
    certificates: list[Certificate],
    before: bool,
) -> tuple[list[Tensor | None], list[dict[str, Tensor]], list[Tensor | None], Tensor | None]:
    """From the cotangents of θ_{k+1}, s_{k+1} to those of θ_k, s_k, and the shares of φ, α.

    What certifies it comes to `certificates`, if g was kept for it: that the step which is run
    again has the gradient of the one that was made, and that its double backward pass is the
    derivative.

    Args:
        before: whether a step comes before it, so that it matters how g moves with θ.
    """
    certify = bool(step.gradient.g) and all(part.graph is None for part in step.gradient.passes)
    again: list[Tensor | None] = [None] * len(problem.theta)
    theta = [value.requires_grad_() for value in step.taken.theta_before]
    along, grad_bar = step.along, None
    after: Vector = []  # grad_bar, over what a transform has made of g
    bound = tolerance(problem)
    total: list[Tensor | None] = [None] * (len(theta) + len(meta.phi))
    for part in step.gradient.passes:
        leaves = theta if part.graph is None else part.graph.theta
        named = dict(zip(problem.theta_names, leaves, strict=True))
        beside = Beside() if certify else None
        with DoubleBackward(), problem.again(named, part):
            graph = part.graph or Graph(
                theta, problem.graph(theta, part.batch, part.share, beside)[1]
            )
            made = [None if g is None else g.detach() for g in graph.g] if certify else []
            if certify:
                again = add(again, made)
            if grad_bar is None:
                theta_bar, grad_bar, state_bar, alpha_bar = step.taken.pullback(
                    along or graph.g, v, state_bar, meta.ratios
                )
                after = grad_bar
                if step.gradient.transformed is not None:
                    grad_bar = step.gradient.transformed.cotangent(grad_bar)
            with refusing_single_backward():
                ends = [*leaves, *meta.phi, *([] if beside is None else [beside.leaf])]
                bars = gradient(graph.g, ends, grad_bar)
            total = add(total, bars[: len(total)])
        del graph  # before the next micro-batch's graph grows
        part.graph = None
        if beside is not None:
            again_at = partial(_once_more, problem, part, theta)
            derived = derivative_residual(
                problem, made, grad_bar, beside.slope, bars[-1], again_at, step.gradient.weight
            )
            certificates.append(Certificate(derived, bound, WORDS, CAUSE))
            if before:
                at = partial(_elsewhere, problem, part)
                found: partial[Vector] = partial(list, bars[: len(theta)])
                certificates += of_curvature(
                    problem, beside, theta, made, grad_bar, found, at, step.gradient.weight,
                )  # fmt: skip
    if certify:
        repeated = Certificate(repeat_residual(problem, step.gradient, again), bound)
        certificates.append(with_transform(problem, step.gradient.g, after, repeated))
    through = distributed.mean(total, [*theta, *meta.phi], step.gradient.weight)
    direct, phi_share = through[: len(theta)], through[len(theta) :]
    return add(theta_bar, direct), state_bar, phi_share, alpha_bar


def _once_more(problem: Problem, part: Pass, theta: list[Tensor], beside: Beside | None) -> Vector:
    """A pass's share of g, from a slope to which something may be added."""
    named = dict(zip(problem.theta_names, theta, strict=True))
    with problem.again(named, part):
        return problem.graph(theta, part.batch, part.share, beside)[1]


def _elsewhere(problem: Problem, part: Pass, theta: Sequence[Tensor]) -> Vector:
    """A pass's share of g at another θ."""
    return _once_more(problem, part, [p.requires_grad_() for p in theta], None)
