"""d task loss / d φ through the steps of the base optimizer: the exact engine and its reference.

For one base step θ' = U(θ, g), g = ∇_θ M_φ(y, f_θ(x)), and v = ∇_θ' L_T, φ reaches θ' only through
g, and θ reaches M_φ only through the outputs f. So, with u = (∂U/∂g)ᵀ v,

    ∇_φ L_T = ∇_φ ⟨u, ∇_θ M_φ⟩ = ∇_φ ⟨∂M_φ/∂f, t⟩,    t = J_f(θ) u,

which takes one forward-mode pass for t and second derivatives of the small loss network alone,
where eqs. 10 and 11 of the paper are usually computed by a double backward pass through f.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from metaloss import seeding
from metaloss.errors import UnsupportedModelError
from metaloss.forward_mode import ForwardMode
from metaloss.problem import BaseStep, Batch, Problem
from metaloss.update import State

Cotangent = Sequence[Tensor | None]  #: a vector over θ; None stands for zero
Engine = Literal["exact", "unrolled"]


class Rollout(ABC):
    """Base steps θ_0 → ... → θ_K that were made, and the way back through them to φ."""

    learned_loss: Tensor  #: M_φ at the last step; a scalar without graph

    @abstractmethod
    def pullback(self, v: Cotangent) -> list[Tensor | None]:
        """(dθ_K/dφ)ᵀ v, aligned with φ; None where φ had no part. May be called once."""


class ExactRollout(Rollout):
    """One base step, by the identity above."""

    def __init__(self, problem: Problem, batch: Batch) -> None:
        self._problem = problem
        self._step = problem.base_step(batch, loss_graph=True)
        self.learned_loss = self._step.learned_loss
        if self._step.taken.scale() is not None:  # then u does not depend on g
            for parameter in problem.theta:
                parameter.grad = None

    def pullback(self, v: Cotangent) -> list[Tensor | None]:
        slope, taken = self._step.slope, self._step.taken
        scale = taken.scale()
        tangent = self._jvp(taken.cotangent(v) if scale is None else v)
        if scale is not None and tangent is not None:
            tangent = scale * tangent  # u = c·v: t is smaller than v, and linear in it
        return _grad([slope], self._problem.phi, [tangent])

    def _jvp(self, u: Cotangent) -> Tensor | None:
        """J_f(θ) u on the step's batch and dropout masks; None if the outputs do not feel u.

        Raises:
            UnsupportedModelError: an operator of the model has no forward derivative.
        """
        problem, step = self._problem, self._step
        theta = {name: p.detach() for name, p in problem.others.items()}
        with forward_ad.dual_level():
            for name, before, direction in zip(
                problem.theta_names, step.taken.theta_before, u, strict=True
            ):
                theta[name] = (
                    before if direction is None else forward_ad.make_dual(before, direction)
                )
            with (
                torch.enable_grad(),  # where the model itself turns it off, tangents end
                sdpa_kernel(SDPBackend.MATH),  # fused attention has no forward derivative
                ForwardMode(step.primals),
                seeding.replaying(step.random_state, problem.device),
                problem.replaced(theta, step.buffers),
            ):
                try:
                    outputs = problem.model(step.batch[0])
                except NotImplementedError as error:
                    operator = str(error).splitlines()[0]
                    raise UnsupportedModelError(
                        f"the model cannot be differentiated in forward mode ({operator}): take "
                        "engine='unrolled'"
                    ) from error
            return forward_ad.unpack_dual(outputs).tangent


class SweepRollout(Rollout):
    """K base steps, by a reverse sweep that re-runs one step at a time.

    Keeps θ_k, the batch and (unless U is linear) the optimizer's state of each step: activation
    memory does not grow with K.
    """

    def __init__(self, problem: Problem, batches: Sequence[Batch]) -> None:
        self._problem = problem
        self._steps = [problem.base_step(batch, keep="derivative") for batch in batches]
        self.learned_loss = self._steps[-1].learned_loss

    def pullback(self, v: Cotangent) -> list[Tensor | None]:
        phi_bar: list[Tensor | None] = [None] * len(self._problem.phi)
        state_bar: list[dict[str, Tensor]] = [{} for _ in self._problem.theta]
        while self._steps:
            v, state_bar, through_phi = self._back(self._steps.pop(), v, state_bar)
            phi_bar = _sum(phi_bar, through_phi)
        return phi_bar

    def _back(
        self, step: BaseStep, v: Cotangent, state_bar: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor | None], list[dict[str, Tensor]], list[Tensor | None]]:
        """From the cotangents of θ_{k+1}, s_{k+1} to those of θ_k, s_k, and their share of φ."""
        problem = self._problem
        inputs, labels = step.batch
        theta = [value.requires_grad_() for value in step.taken.theta_before]
        named = dict(zip(problem.theta_names, theta, strict=True))
        with (
            sdpa_kernel(SDPBackend.MATH),  # fused attention has no second derivative
            seeding.replaying(step.random_state, problem.device),
            problem.replaced(named, step.buffers),
        ):
            loss = problem.learned_loss(problem.model(inputs), labels)
            grads = torch.autograd.grad(loss, theta, create_graph=True, allow_unused=True)
            theta_bar, grad_bar, state_bar, _ = step.taken.pullback(grads, v, state_bar)
            through = _grad(grads, [*theta, *problem.phi], grad_bar)
        return _sum(theta_bar, through[: len(theta)]), state_bar, through[len(theta) :]


class UnrolledRollout(Rollout):
    """Plain double backward: θ_K as one differentiable function of φ. The reference.

    Not for several steps of a model with activation checkpoints: torch would run a step's
    checkpoint again with the parameters of a later one.
    """

    def __init__(self, problem: Problem, batches: Sequence[Batch]) -> None:
        self._problem = problem
        self._theta: list[Tensor] = [p.detach().clone().requires_grad_() for p in problem.theta]
        state: list[State] | None = None
        for inputs, labels in batches:
            named = dict(zip(problem.theta_names, self._theta, strict=True))
            with sdpa_kernel(SDPBackend.MATH), problem.replaced(named, {}):
                loss = problem.learned_loss(problem.model(inputs), labels)
                grads = torch.autograd.grad(loss, self._theta, create_graph=True, allow_unused=True)
            taken = problem.take_step(
                [None if grad is None else grad.detach() for grad in grads], keep="values"
            )
            state = taken.state_before if state is None else state
            self._theta, state = taken.differentiable(self._theta, grads, state)
            self.learned_loss = loss.detach()

    def pullback(self, v: Cotangent) -> list[Tensor | None]:
        return _grad(self._theta, self._problem.phi, v)


#: The engines by name, and what each is for.
ENGINES: dict[Engine, str] = {
    "exact": "one forward-mode pass for one step, a reverse sweep for several",
    "unrolled": "double backward through all steps: the reference",
}


def roll_out(problem: Problem, batches: Sequence[Batch], engine: Engine) -> Rollout:
    """Makes one base step on each batch, so that the engine can differentiate through them."""
    if engine == "unrolled":
        return UnrolledRollout(problem, batches)
    if len(batches) == 1:
        return ExactRollout(problem, batches[0])
    return SweepRollout(problem, batches)


def _grad(outputs: Cotangent, inputs: Sequence[Tensor], v: Cotangent) -> list[Tensor | None]:
    """torch.autograd.grad that leaves out what has no graph or no cotangent."""
    pairs = [
        (output, bar)
        for output, bar in zip(outputs, v, strict=True)
        if output is not None and bar is not None and output.requires_grad
    ]
    if not pairs or not inputs:
        return [None] * len(inputs)
    ends, bars = zip(*pairs, strict=True)
    return list(torch.autograd.grad(ends, inputs, bars, allow_unused=True))


def _sum(a: Cotangent, b: Cotangent) -> list[Tensor | None]:
    return [y if x is None else x if y is None else x + y for x, y in zip(a, b, strict=True)]
