"""Fits a learned loss to the task loss: a safe start in seconds, no model is trained for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metaloss.config.arguments import NonNegativeInt, PositiveFloat, PositiveInt
from metaloss.engines.base import Draw, Hypergradient
from metaloss.links import TaskLoss
from metaloss.machine import distributed
from metaloss.meta_optimizers.base import META_OPTIMIZERS, MetaOptimizer, MetaStep
from metaloss.meta_optimizers.offline_unrolled import falling
from metaloss.meta_optimizers.parts.by_gradient import MetaDescent
from metaloss.problem import batches
from metaloss.problem.meta_parameters import MetaParameters
from metaloss.problem.problem import Problem


@META_OPTIMIZERS.register("task_fit")
class TaskFit(MetaOptimizer):
    """Fits φ to the task loss: ∂M_φ/∂f to ∂L_T/∂f, at outputs f drawn over a wide range.

    A learned loss that starts so trains as the task loss does. No base step is made: a training
    batch gives labels, and one pass of the model the shape of its outputs. What is minimised is the
    squared error of the slope, relative to the task loss's slope.

    Args:
        steps: of Adam on φ.
        meta_lr: η of Adam at the start; it falls linearly to 0.
        examples: rows in each step; of the batch's labels they are drawn with repetition.
    """

    objective = "train"

    def __init__(
        self,
        steps: NonNegativeInt = 500,
        meta_lr: PositiveFloat = 1e-2,
        examples: PositiveInt = 64,
    ) -> None:
        self.steps = steps
        self.meta_lr = meta_lr
        self.examples = examples

    def attach(self, problem: Problem) -> None:
        self.problem = problem
        self._meta = MetaParameters(problem)
        self._descent = MetaDescent(self._meta, falling(max(self.steps, 1)), self.meta_lr)

    def step(self, draw_train: Draw, draw_objective: Draw) -> MetaStep:
        problem = self.problem
        batch = draw_train()
        problem.probe(batch)
        inputs, labels = batches.parts(batch)[0]
        with torch.no_grad(), problem.replaced({}, problem.surroundings.keep()):
            like = problem.forward(inputs)
        labels = torch.cat(distributed.gather(labels.cpu())).to(labels.device)
        rows = torch.randint(len(labels), (self.examples,), device=labels.device)
        labels = labels[rows]
        outputs = wide_outputs(
            like.new_empty(len(rows), *like.shape[1:]), labels, problem.task_loss
        )
        distributed.spread([outputs, labels])  # the first process draws for all, as one alone does
        outputs.requires_grad_()
        (asked,) = torch.autograd.grad(problem.task_loss(outputs, labels), outputs)
        loss = problem.learned_loss(outputs, labels)
        (slope,) = torch.autograd.grad(loss, outputs, create_graph=True)
        error = (slope - asked).square().sum() / asked.square().sum()
        gradients = torch.autograd.grad(error, self._meta.phi, allow_unused=True)
        return self._descent.descend(
            Hypergradient(loss.detach(), error.detach(), list(gradients), None)
        )

    def state_dict(self) -> dict[str, Any]:
        return {"descent": self._descent.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._descent.load_state_dict(state["descent"])


def wide_outputs(like: Tensor, labels: Tensor, task_loss: TaskLoss) -> Tensor:
    """Outputs over a wide range, some right and some wrong; [rows, ...] as `like`.

    Around the labels where these are values as the outputs are, at distances of .03 to 10 of their
    deviation. Else of scales from .1 to 10, and every other row moved towards being right: along
    its task loss's steepest descent, which for cross-entropy raises the label's logit wherever in
    the outputs the classes stand.
    """
    row = (len(like), *[1] * (like.dim() - 1))
    noise = torch.randn_like(like)
    if labels.is_floating_point() and labels.shape == like.shape:
        spread = labels.std() if labels.numel() > 1 else labels.abs().mean()
        distance = torch.where(spread > 0, spread, 1.0) * 10 ** _between(-1.5, 1.0, row, like)
        return labels + noise * distance
    scale = 10 ** _between(-1.0, 1.0, row, like)
    outputs = (noise * scale).requires_grad_()
    (slope,) = torch.autograd.grad(task_loss(outputs, labels), outputs)
    steepest = slope.flatten(1).abs().amax(1).reshape(row).clamp_min(torch.finfo(slope.dtype).tiny)
    moved = _between(0.0, 3.0, row, like) * scale * (_between(0.0, 1.0, row, like) < 0.5)
    return outputs.detach() - moved * slope / steepest


def _between(low: float, high: float, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Uniform numbers, of a tensor's kind."""
    return torch.rand(shape, dtype=like.dtype, device=like.device) * (high - low) + low
