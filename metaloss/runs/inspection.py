"""Inspection: what a run tells of its learned loss while it trains."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from metaloss import links
from metaloss.analysis import curves, indices
from metaloss.learner import AdaLFL
from metaloss.links import Link
from metaloss.meta_optimizers.base import MetaStep
from metaloss.problem import health
from metaloss.problem.batches import Batch, call, outputs_of
from metaloss.problem.problem import Problem
from metaloss.representations.base import Representation
from metaloss.representations.saved.learned_loss import LearnedLoss
from metaloss.representations.saved.trajectory import Trajectory, flat
from metaloss.runs.callbacks.base import Look
from metaloss.runs.folder import RunFolder
from metaloss.runs.state import State

EXAMPLES = 256  #: training examples that the loss is looked at on
POINTS = 101  #: of a curve in a picture that is looked at beside others, and small


def numbers(learner: AdaLFL, batch: Batch, start: Tensor | None = None) -> dict[str, float]:
    """The indices of the loss as it is now (see `indices`).

    Without a learned loss only "effective_base_lr", which is then the optimizer's own, learned or
    not, so that it stands beside that of a learned loss.

    Args:
        batch: training examples that it is looked at on.
        start: φ at the start, flat; None: it is there still.
    """
    problem = learner.problem
    base_lr = float(problem.optimizer.param_groups[0]["lr"])
    if problem.loss is None:
        return {"effective_base_lr": base_lr}
    loss = learner.learned_loss()
    phi = flat(problem.loss)
    now = Trajectory(torch.tensor([0]), phi[None])
    outputs, labels = _outputs(problem, batch), batch[1]
    prediction, target, *weights = problem.link(outputs, labels)
    if weights:
        prediction, target = prediction[weights[0] != 0], target[weights[0] != 0]
    count = classes(problem.link, prediction)
    stands = (prediction - target).flatten() if count is None else (prediction * target).sum(-1)
    sampled = curves.sample(loss.representation, now, count)
    with _evaluating(problem.model):
        cosine, ratio = health.by_parameters(problem, batch)
    return {
        **indices.of_curves(sampled, stands.double().cpu().numpy()),
        "phi_distance": float((phi - (phi if start is None else start)).norm()),
        "cosine_theta": cosine,
        "ratio_theta": ratio,
        "effective_base_lr": indices.effective_base_lr(
            loss, problem.task_loss, outputs, labels, base_lr
        ),
    }


def of_step(learner: AdaLFL, result: MetaStep, latest: dict[str, float]) -> dict[str, float]:
    """What metrics say of a step; its numbers leave the device only here.

    Args:
        latest: numbers of the latest meta-step, brought up to date.
    """
    if result.task_loss is not None:
        latest["task_loss"] = result.task_loss.item()
    if result.gradient_norm is not None:
        latest["gradient_norm"] = result.gradient_norm.item()
    return {
        "learned_loss": result.learned_loss.item(),
        **latest,
        "base_lr": float(learner.problem.optimizer.param_groups[0]["lr"]),
        **{f"health_{name}": value for name, value in learner.health().numbers.items()},
    }


def look(learner: AdaLFL, batch: Batch, step: int) -> Look:
    """What to know first of the loss so far, and two histograms."""
    found = indices.warnings(numbers(learner, batch))
    problem = learner.problem
    assert problem.loss is not None
    with torch.no_grad():
        losses = problem.loss(*problem.link(_outputs(problem, batch), batch[1])[:2])
    return Look(
        step,
        texts={"loss/warnings": "; ".join(found) or "none"},
        values={"loss/phi": flat(problem.loss), "loss/per_example": losses},
    )


def look_at_curves(
    loss: Representation, trajectory: Trajectory, count: int | None, step: int
) -> Look:
    """The curves of the loss so far.

    Args:
        count: see `classes`.
        step: at which it is looked at; φ is then that of the trajectory's last one.
    """
    from metaloss.analysis import loss_figures  # matplotlib takes half a second

    sampled = curves.sample(loss, trajectory, count, POINTS)
    figure = loss_figures.loss_curves([sampled], title=f"step {step:,}")
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return Look(step, images={"loss/curves": content.getvalue()})


def export(
    folder: RunFolder, loss: LearnedLoss, count: int | None, provenance: Mapping[str, Any]
) -> None:
    """Leaves the learned loss so far in a run's folder, for whoever looks at it or uses it.

    Args:
        count: see `classes`.
        provenance: the run in a few numbers.
    """
    given = {**provenance, "classes": count, **folder.provenance()}
    loss.save_pretrained(folder.loss, **given)


def classes(link: Link, prediction: Tensor) -> int | None:
    """C in classification, None where the prediction's columns are no classes.

    Args:
        prediction: as the link gives it, [rows, C].
    """
    while isinstance(link, links.Weighted):
        link = link.link
    of_classes = link is links.probabilities or isinstance(link, links.Dense)
    return prediction.shape[-1] if of_classes else None


def columns(learner: AdaLFL, batch: Batch) -> int | None:
    """`classes` of a learner that has looked at a batch, by what its model makes of this one."""
    problem = learner.problem
    return classes(problem.link, problem.link(_outputs(problem, batch), batch[1])[0])


def examples(state: State) -> Batch:
    """The first training examples of a run, on which its loss is looked at."""
    return next(state.data.in_order("train", EXAMPLES))


@torch.no_grad()
def _outputs(problem: Problem, batch: Batch) -> Tensor:
    """The model's outputs in eval mode, in its own precision."""
    with _evaluating(problem.model):
        return outputs_of(call(problem.model, batch[0]), problem.outputs)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Within it the model is in eval mode."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
