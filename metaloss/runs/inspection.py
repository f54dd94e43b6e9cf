"""Inspection: what a run tells of its learned loss while it trains."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from metaloss import links
from metaloss.analysis import curves, indices
from metaloss.problem import health
from metaloss.problem.batches import Batch
from metaloss.representations.saved.learned_loss import LearnedLoss
from metaloss.representations.saved.trajectory import Trajectory, flat
from metaloss.runs.callbacks.base import Look
from metaloss.runs.state import State

EXAMPLES = 256  #: training examples that the loss is looked at on
POINTS = 101  #: of a curve in a picture that is looked at beside others, and small


def numbers(state: State) -> dict[str, float]:
    """The indices of the loss as it is now (see `indices`).

    Without a learned loss only "effective_base_lr", which is then the optimizer's own, learned or
    not, so that it stands beside that of a learned loss.
    """
    base_lr = float(state.learner.problem.optimizer.param_groups[0]["lr"])
    if state.loss is None:
        return {"effective_base_lr": base_lr}
    phi = flat(state.loss)
    now = Trajectory(torch.tensor([state.steps]), phi[None])
    outputs, labels = _examples(state)
    objective = state.data.objective
    prediction, target = objective.link(outputs, labels)[:2]
    if classes(state) is None:
        stands = (prediction - target).flatten()
    else:
        stands = (prediction * target).sum(-1)
    sampled = curves.sample(state.loss, now, classes(state))
    with _evaluating(state):
        cosine, ratio = health.by_parameters(state.learner.problem, _first(state))
    return {
        **indices.of_curves(sampled, stands.double().cpu().numpy()),
        "phi_distance": float((phi - state.samples.get(0, phi)).norm()),
        "cosine_theta": cosine,
        "ratio_theta": ratio,
        "effective_base_lr": indices.effective_base_lr(
            LearnedLoss(state.loss, objective.link), objective.loss, outputs, labels, base_lr
        ),
    }


def look(state: State) -> Look:
    """What to know first of the loss so far, and two histograms."""
    assert state.loss is not None
    found = indices.warnings(numbers(state))
    with torch.no_grad():
        losses = state.loss(*state.data.objective.link(*_examples(state)))
    return Look(
        state.steps,
        texts={"loss/warnings": "; ".join(found) or "none"},
        values={"loss/phi": flat(state.loss), "loss/per_example": losses},
    )


def look_at_curves(state: State) -> Look:
    """The curves of the loss so far."""
    from metaloss.analysis import loss_figures  # matplotlib takes half a second

    assert state.loss is not None
    sampled = curves.sample(state.loss, state.trajectory(), classes(state), POINTS)
    figure = loss_figures.loss_curves([sampled], title=f"step {state.steps:,}")
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return Look(state.steps, images={"loss/curves": content.getvalue()})


def classes(state: State) -> int | None:
    """C in classification, None in regression."""
    return state.data.outputs if state.data.objective.link is links.probabilities else None


@torch.no_grad()
def _examples(state: State) -> tuple[Tensor, Tensor]:
    """The model's outputs on the first training examples, in eval mode, and their labels."""
    inputs, labels = _first(state)
    with _evaluating(state):
        return state.model(inputs), labels


def _first(state: State) -> Batch:
    """The first training examples."""
    return next(state.data.in_order("train", EXAMPLES))


@contextmanager
def _evaluating(state: State) -> Iterator[None]:
    """Within it the model is in eval mode."""
    training = state.model.training
    state.model.eval()
    try:
        yield
    finally:
        state.model.train(training)
