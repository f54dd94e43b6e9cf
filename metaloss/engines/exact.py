"""The exact engine: one step of AdaLFL, by an identity that needs no second order in the backbone.

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

import threading
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.autograd import forward_ad

from metaloss.engines.base import ENGINES, Certificate, CertifiedEngine, Draw, Hypergradient
from metaloss.engines.parts.certificate import adjoint_residual, product, tolerance
from metaloss.engines.parts.linearity import with_transform
from metaloss.engines.parts.open_step import OpenStep, versions
from metaloss.engines.sweep import Sweep
from metaloss.errors import UnsupportedModelError, first_line
from metaloss.machine import distributed
from metaloss.problem.base_step import BaseStep, Judge, Keep, Pass
from metaloss.problem.batches import StepBatch
from metaloss.problem.forward_mode import ForwardMode
from metaloss.problem.meta_parameters import MetaParameters
from metaloss.problem.problem import Problem
from metaloss.problem.shards import Shards
from metaloss.problem.vectors import Vector, add, inner

#: Torch counts its levels of forward mode for all threads together.
_ONE_AT_A_TIME = threading.RLock()

#: f and J_f(θ) u on a pass's batch and dropout masks, [batch, C]. The second is None if the outputs
#: do not feel u; the first may be, where the pass has a slope.
Directional = Callable[[Problem, BaseStep, Pass, Vector], tuple[Tensor | None, Tensor | None]]


class ByIdentity(CertifiedEngine):
    """An engine that takes the gradient of one base step by the identity above.

    `open` makes the step, and `close` judges it: at once, or in the pass of the step after it.
    """

    #: Whether t is found from the base pass's intermediate values.
    primals = False

    def open(
        self,
        problem: Problem,
        meta: MetaParameters,
        batch: StepBatch,
        certify: bool = False,
        judge: Judge | None = None,
    ) -> OpenStep:
        """Makes a base step, with what it takes to close it.

        Args:
            certify: whether it will have a certificate; it has one too where its pass does what
                none before it did.
            judge: see `Problem.base_step`.
        """
        certify = certify and bool(meta.phi)
        keep = Keep(slope=bool(meta.phi), gradient=certify, primals=self.primals)
        made = problem.base_step(batch, keep, judge)
        bound = tolerance(problem) if made.gradient.g else None
        # Where u = c·v nothing looks at g again: a whole gradient of memory, while the task loss
        # takes most.
        looks = made.taken.scale() is None or meta.ratios is not None
        grads = [parameter.grad if looks else None for parameter in problem.theta]
        for parameter in problem.theta:
            parameter.grad = None
        grads = grads if looks else []
        keep = replace(keep, gradient=bound is not None)
        return OpenStep(made, keep, grads, bound, problem.followed, versions(problem))

    @abstractmethod
    def close(
        self,
        problem: Problem,
        meta: MetaParameters,
        opened: OpenStep,
        task_loss: Tensor,
        v: Vector,
    ) -> Hypergradient:
        """The gradient of the task loss after a step.

        Args:
            opened: the step.
            task_loss, v: L_T and ∇_θ L_T at the θ that it has led to.
        """

    def through_one_step(
        self,
        problem: Problem,
        meta: MetaParameters,
        batch: StepBatch,
        draw_objective: Draw,
        certify: bool,
    ) -> Hypergradient:
        """One base step, and the gradient of the task loss after it."""
        opened = self.open(problem, meta, batch, certify)
        task_loss, v = problem.task_gradient(draw_objective())
        return self.close(problem, meta, opened, task_loss, v)


@ENGINES.register("exact")
class Exact(ByIdentity):
    """The identity with a forward-mode pass for one base step; `sweep` where there are several.

    Needs a forward derivative of every operator of the model, and no double backward.
    """

    exact = True
    recordable = True
    elementwise = True
    of_shards = True
    primals = True

    def __init__(self) -> None:
        self._several = Sweep()

    def hypergradient(
        self,
        problem: Problem,
        meta: MetaParameters,
        train: Sequence[StepBatch],
        draw_objective: Draw,
        certify: bool = False,
    ) -> Hypergradient:
        if len(train) > 1:
            refuse_several_steps(problem, len(train))
            return self._several.hypergradient(problem, meta, train, draw_objective, certify)
        return self.through_one_step(problem, meta, train[0], draw_objective, certify)

    def close(
        self,
        problem: Problem,
        meta: MetaParameters,
        opened: OpenStep,
        task_loss: Tensor,
        v: Vector,
    ) -> Hypergradient:
        return by_identity(problem, meta, opened, task_loss, v, forward_mode_pass)


def by_identity(
    problem: Problem,
    meta: MetaParameters,
    opened: OpenStep,
    task_loss: Tensor,
    v: Vector,
    directional: Directional,
    beyond: Callable[[Tensor, float | Tensor], Tensor] | None = None,
) -> Hypergradient:
    """The gradient of the task loss after a base step, by the identity above.

    Args:
        directional: how t = J_f(θ) u is computed.
        beyond: what of a residual is not the error that it is known to have; takes the weight of
            this process's rows too. None: all.
    """
    step, bound = opened.made, opened.bound
    taken = step.taken
    scale = taken.scale()  # c, where u = c·v
    if opened.grads:
        for parameter, grad in zip(problem.theta, opened.grads, strict=True):
            parameter.grad = grad
    alpha_bar = None if meta.ratios is None else inner(v, taken.direction(meta.ratios))
    if problem.shards is not None and alpha_bar is not None:
        (alpha_bar,) = distributed.total([alpha_bar])
    phi_bar: list[Tensor | None] = [None] * len(meta.phi)
    certificate = None
    right = None if bound is None else product(problem, [], [])  # ⟨∂M/∂f, t⟩, of all passes
    if meta.phi:
        # c waits until the end: all in between is linear in u, and φ is smaller than θ.
        u = after = taken.cotangent(v) if scale is None else v
        if step.gradient.transformed is not None:
            u = step.gradient.transformed.cotangent(u)
        for part in step.gradient.passes:
            outputs, t = directional(problem, step, part, u)
            slope = part.slope
            if slope is None and t is not None:
                assert outputs is not None
                slope = problem.slope(outputs, part.batch[1], part.share, graph=True)
            if slope is not None:
                if right is not None:
                    ends = [t, *(u if slope.direct else [])]
                    right += product(problem, [slope.hand_out(), *slope.direct], ends)
                phi_bar = add(phi_bar, slope.pullback(meta.phi, t, u))
        if scale is not None:
            phi_bar = [None if bar is None else scale * bar for bar in phi_bar]
        phi_bar = distributed.mean(phi_bar, meta.phi, step.gradient.weight)
        if right is not None and bound is not None:
            left = product(problem, step.gradient.g, u)
            residual = adjoint_residual(problem, left, right, step.gradient.weight)
            if beyond is not None:
                residual = beyond(residual, step.gradient.weight)
            certificate = Certificate(residual, bound)
            certificate = with_transform(problem, step.gradient.g, after, certificate)
    return Hypergradient(step.gradient.learned_loss, task_loss, phi_bar, alpha_bar, certificate)


def forward_mode_pass(
    problem: Problem, step: BaseStep, part: Pass, u: Vector
) -> tuple[Tensor, Tensor | None]:
    """f and J_f(θ) u on a pass's batch and dropout masks; None if the outputs do not feel u.

    Raises:
        UnsupportedModelError: an operator of the model has no forward derivative.
    """
    theta = {name: p.detach() for name, p in problem.followed.others.items()}
    inside = part.primals.differentiates or part.primals.hooked  # the model takes gradients itself
    for other in theta.values():
        other.requires_grad_(inside)
    with _ONE_AT_A_TIME, forward_ad.dual_level():
        if problem.shards is not None:
            return _in_shards(problem, problem.shards, step, part, u)
        for name, before, direction in zip(
            problem.theta_names, step.taken.theta_before, u, strict=True
        ):
            if inside:
                before = before.detach().requires_grad_()
            theta[name] = before if direction is None else forward_ad.make_dual(before, direction)
        with (
            torch.enable_grad(),  # where the model itself turns it off, tangents end
            ForwardMode(part.primals),
            problem.again(theta, part),
        ):
            return _pushed(problem, part)


def _in_shards(
    problem: Problem, shards: Shards, step: BaseStep, part: Pass, u: Vector
) -> tuple[Tensor, Tensor | None]:
    """The same of a sharded model: FSDP gathers θ, and beside it u is gathered.

    Raises:
        UnsupportedModelError: an operator of the model has no forward derivative, or the model
            takes gradients itself.
    """
    if part.primals.differentiates:
        raise UnsupportedModelError(
            "the model takes gradients within its forward pass, which is not followed where it is "
            "sharded: take engine='logit_difference'"
        )
    with (
        torch.enable_grad(),
        ForwardMode(part.primals),
        problem.again({}, part),
        shards.at(step.taken.theta_before, u),
    ):
        return _pushed(problem, part)


def _pushed(problem: Problem, part: Pass) -> tuple[Tensor, Tensor | None]:
    """Outputs on a pass's batch and their tangent, within a level that has put tangents in θ."""
    try:
        outputs = problem.forward(part.batch[0])
    except torch.OutOfMemoryError:
        raise
    # The base pass had none. NotImplementedError is one, and torch.func asserts.
    except (RuntimeError, AssertionError) as error:
        raise UnsupportedModelError(
            f"the model cannot be differentiated in forward mode ({first_line(error)}): take "
            "engine='unrolled' or 'logit_difference'"
        ) from error
    return forward_ad.unpack_dual(outputs)


def refuse_several_steps(problem: Problem, steps: int) -> None:
    """Raises UnsupportedModelError where a model in shards would be differentiated twice."""
    if problem.shards is not None:
        raise UnsupportedModelError(
            f"a meta-step of {steps} base steps differentiates the model twice, and fully_shard's "
            "gathering has no second derivative: one step at a time, or the whole model"
        )
