"""The learner: a base model in training, whose loss improves while it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from metaloss import links
from metaloss.engines.base import Draw
from metaloss.errors import InputError
from metaloss.meta_optimizers.base import MetaOptimizer, MetaStep
from metaloss.meta_optimizers.offline_unrolled import OfflineUnrolled
from metaloss.meta_optimizers.online_one_step import OnlineOneStep
from metaloss.problem import Batch, Link, Problem, TaskLoss
from metaloss.update import reset


class AdaLFL:
    """Learns a loss online, around anybody's model, optimizer and training loop (Algorithm 2).

    The model and the optimizer stay the caller's: each `step` writes θ' into the model by the
    optimizer's own `step()`, schedulers go on working, and where φ stays as it is θ follows plain
    training bit for bit::

        learner = metaloss.AdaLFL(model, optimizer, metaloss.REPRESENTATIONS["nn"]())
        learner.initialize(train_loader, valid_loader)
        for train_batch, valid_batch in zip(train_loader, itertools.cycle(valid_loader)):
            result = learner.step(train_batch, valid_batch)

    Args:
        model: maps inputs to outputs [batch, C]. In train mode BatchNorm uses batch statistics in
            every pass, and its running statistics move once a step, in the base training pass.
        optimizer: a certified torch.optim object over the model's parameters.
        loss: the learned loss M_φ, a representation on the model's device; None descends the task
            loss itself (the baseline, or a learned learning rate).
        task_loss: L_T, `(outputs, labels) -> scalar`.
        link: how outputs and labels become the prediction and target that M_φ sees; by default
            softmax and one-hot for integer labels, as they are for floating-point ones.
        meta_lr: η of Adam on φ; None leaves φ as it is.
        autocast: the lower precision in which the model's passes are made (torch.bfloat16); losses,
            cotangents and φ keep their own. None: that of an active torch.autocast, if there is
            one. A GradScaler has no part in it.
        adaptation: another meta-optimizer than `OnlineOneStep(meta_lr)`; `meta_lr` is then unused.

    Raises:
        UncertifiedOptimizerError, InputError: see `Problem`.
        MissingGradientError: there is no parameter to learn.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: nn.Module | None,
        task_loss: TaskLoss = F.cross_entropy,
        *,
        link: Link = links.by_labels,
        meta_lr: float | None = 1e-5,
        adaptation: MetaOptimizer | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.problem = Problem(model, optimizer, loss, task_loss, link, autocast)
        if adaptation is None and meta_lr is not None:
            adaptation = OnlineOneStep(meta_lr)
        self.adaptation = adaptation
        if adaptation is not None:
            adaptation.attach(self.problem)

    def step(self, train_batch: Batch | Draw, valid_batch: Batch | Draw | None = None) -> MetaStep:
        """One base step on M_φ, and one meta-step if one is due.

        The parameters' `.grad` is the engine's: after a meta-step it may be None.

        Args:
            train_batch: (inputs, labels), or a function that gives them.
            valid_batch: the batch that the task loss is taken on, or a function that is called only
                when a meta-step is due; None takes the training batch again.
        """
        draw_train = _as_draw(train_batch)
        with self.problem.taking_autocast():
            if self.adaptation is None:
                return MetaStep(self.problem.base_step(draw_train()).learned_loss)
            if valid_batch is None:
                valid_batch = train_batch = draw_train()
                draw_train = _as_draw(train_batch)
            return self.adaptation.step(draw_train, _as_draw(valid_batch))

    def initialize(
        self,
        train: Iterable[Batch] | Draw,
        valid: Iterable[Batch] | Draw,
        steps: int = 2500,
        inner_steps: int = 1,
        meta_lr: float = 1e-3,
        redraw: Callable[[], None] | None = None,
    ) -> None:
        """Learns φ offline before training starts (Algorithm 1): θ is drawn anew at each step.

        Afterwards model and optimizer are as they were before any training: θ_0 restored, optimizer
        state empty.

        Args:
            train, valid: loaders of (inputs, labels), repeated as often as needed, or functions
                that give the next batch.
            steps: meta-steps, S_init.
            inner_steps: base steps per meta-step, S_inner.
            meta_lr: η of Adam on φ.
            redraw: draws the model's parameters anew in place; by default each module's own
                `reset_parameters`.

        Raises:
            InputError: no `redraw` was given and a parameter belongs to a module without one.
        """
        redraw = redraw or _resetting(self.problem.model)
        initialization = OfflineUnrolled(steps, inner_steps, meta_lr)
        initialization.attach(self.problem)
        phase = self.initializing(initialization, _repeat(train), _repeat(valid), redraw)
        for _ in phase:
            pass

    def initializing(
        self,
        initialization: MetaOptimizer,
        draw_train: Draw,
        draw_objective: Draw,
        redraw: Callable[[], None],
        start: int = 0,
    ) -> Iterator[MetaStep]:
        """The initialisation phase (Algorithms 1 and 3), one meta-step at a time.

        Args:
            initialization: the phase's meta-optimizer, attached to the problem already.
            draw_train, draw_objective: give the batches.
            redraw: draws the model's parameters and buffers anew, in place.
            start: meta-steps that were made before (when a run is resumed).
        """
        model, optimizer = self.problem.model, self.problem.optimizer
        before = {name: value.clone() for name, value in model.state_dict().items()}
        for done in range(start + 1, initialization.steps + 1):
            redraw()
            reset(optimizer)
            with self.problem.taking_autocast():
                result = initialization.step(draw_train, draw_objective)
            if done == initialization.steps:
                model.load_state_dict(before)
                reset(optimizer)
                if self.adaptation is not None:
                    self.adaptation.attach(self.problem)  # a fresh Adam, as the authors have it
            yield result

    def state_dict(self) -> dict[str, Any]:
        """φ and what continues its learning; model and optimizer are the caller's to save."""
        return {
            "loss": {} if self.problem.loss is None else self.problem.loss.state_dict(),
            "adaptation": {} if self.adaptation is None else self.adaptation.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues bit for bit from what `state_dict` gave."""
        if self.problem.loss is not None:
            self.problem.loss.load_state_dict(state["loss"])
        if self.adaptation is not None:
            self.adaptation.load_state_dict(state["adaptation"])


def _as_draw(batch: Batch | Draw) -> Draw:
    return batch if callable(batch) else lambda: batch


def _repeat(batches: Iterable[Batch] | Draw) -> Draw:
    """A function that gives the next batch, starting over when a loader is exhausted."""
    if callable(batches):
        return batches

    def endless() -> Iterator[Batch]:
        while True:
            empty = True
            for batch in batches:
                empty = False
                yield batch
            if empty:
                raise InputError("the loader gives no batch")

    return endless().__next__


def _resetting(model: nn.Module) -> Callable[[], None]:
    """A function that draws every parameter anew by its module's `reset_parameters`."""
    owners = [m for m in model.modules() if next(m.parameters(recurse=False), None) is not None]
    for owner in owners:
        if not callable(getattr(owner, "reset_parameters", None)):
            raise InputError(
                f"{type(owner).__name__} owns parameters and has no reset_parameters(): give "
                "`redraw`, a function that draws the model's parameters anew"
            )

    def redraw() -> None:
        for owner in owners:
            owner.reset_parameters()  # type: ignore[operator]

    return redraw
