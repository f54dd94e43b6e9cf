"""The learner: a base model in training, whose loss improves while it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from metaloss import links
from metaloss.base_optimizers.base import reset
from metaloss.engines.base import Draw
from metaloss.errors import InputError
from metaloss.links import Link, TaskLoss
from metaloss.machine import distributed, memory
from metaloss.meta_optimizers.base import MetaOptimizer, MetaStep
from metaloss.meta_optimizers.in_turn import InTurn
from metaloss.meta_optimizers.offline_unrolled import OfflineUnrolled
from metaloss.meta_optimizers.online_one_step import OnlineOneStep
from metaloss.meta_optimizers.parts.recorded import RecordedSteps
from metaloss.meta_optimizers.task_fit import TaskFit
from metaloss.problem import snapshot
from metaloss.problem.batches import Adapter, Outputs, adapted, gives_batches, repeat
from metaloss.problem.gradient_transform import GradientTransform
from metaloss.problem.problem import Problem
from metaloss.problem.redraw import redraw_by_modules
from metaloss.problem.refusals import refuse_float16
from metaloss.problem.surroundings import Kept, Surroundings
from metaloss.representations.base import Representation
from metaloss.representations.saved.learned_loss import LearnedLoss


class AdaLFL:
    """Learns a loss online, around anybody's model, optimizer and training loop (Algorithm 2).

    The model and the optimizer stay the caller's: each `step` writes θ' into the model by the
    optimizer's own `step()`, schedulers go on working, and where φ stays as it is θ follows plain
    training bit for bit::

        learner = metaloss.AdaLFL(model, optimizer, metaloss.REPRESENTATIONS["nn"]())
        learner.initialize(train_loader, valid_loader)
        for train_batch, valid_batch in zip(train_loader, itertools.cycle(valid_loader)):
            result = learner.step(train_batch, valid_batch)

    A batch is (inputs, labels): inputs a tensor, a tuple of the model's arguments or a mapping of
    them by name; labels what `task_loss` and `link` take. `MicroBatches` make one step together.

    In the processes of torch.distributed, each gives the plain module and its own examples, of any
    number: all take the first one's θ and φ at the start, and make the same steps on the gradients'
    means over all examples. Every process calls `step` equally often.

    Args:
        model: maps inputs to outputs [batch, C], or to what `link` takes. In train mode BatchNorm
            uses batch statistics in every pass, and its running statistics move once a step, in the
            base training pass.
        optimizer: a certified torch.optim object over the model's parameters, or some of them.
        loss: the learned loss M_φ, a representation on the model's device; None descends the task
            loss itself (the baseline, or a learned learning rate).
        task_loss: L_T, `(outputs, labels) -> scalar`.
        link: how outputs and labels become the prediction and target that M_φ sees. By default
            the first batch decides it: by the task loss if it is one of torch's (for cross-entropy
            softmax, and one-hot or the probabilities given), else integers are classes and other
            numbers values; what may be either is refused. See `metaloss.links`.
        meta_lr: η of Adam on φ; None leaves φ as it is.
        autocast: the lower precision in which the model's passes are made (torch.bfloat16); losses,
            cotangents and φ keep their own. None: that of an active torch.autocast, if there is
            one. A GradScaler has no part in it, so float16 is refused.
        adapter: a data loader's batch -> (inputs, labels), where it is no such pair itself.
        outputs: what the model returns -> the tensor of outputs, where it returns something else.
        gradient_transform: what happens to the gradients before the optimizer's step:
            `metaloss.ClipNorm`, `metaloss.ClipValue`, or a differentiable function of one's own.
        adaptation: another meta-optimizer than `OnlineOneStep(meta_lr)`; `meta_lr` is then unused.
        steps: base steps of the whole training, for a loss that looks at its progress.
        cuda_graphs: record each kind of step as a CUDA graph and replay it: faster where a step is
            mostly launches of kernels. A task loss or link of one's own is then tensor operations.

    Raises:
        UncertifiedOptimizerError, InputError: see `Problem`; or the loss looks at the progress of
            the training and `steps` was not given; or CUDA graphs cannot hold such steps.
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
        adapter: Adapter | None = None,
        outputs: Outputs | None = None,
        gradient_transform: GradientTransform | None = None,
        steps: int | None = None,
        cuda_graphs: bool = False,
    ) -> None:
        self.problem = Problem(
            model, optimizer, loss, task_loss, link, autocast, outputs, gradient_transform
        )
        if self.problem.device.type == "cpu":
            memory.keep_freed()
        self.adapter = adapter
        if adaptation is None and meta_lr is not None:
            adaptation = OnlineOneStep(meta_lr)
        self.adaptation = adaptation
        if adaptation is not None:
            adaptation.attach(self.problem)
        self._recorded = RecordedSteps(self.problem) if cuda_graphs else None
        self._steps = steps
        self._base_steps = 0
        self._tell_progress()

    def step(self, train_batch: Any, valid_batch: Any = None) -> MetaStep:
        """One base step on M_φ, and one meta-step if one is due.

        The parameters' `.grad` is the engine's: afterwards it may be None.

        Args:
            train_batch: a batch, MicroBatches, or a function that gives one of them.
            valid_batch: the same, which the task loss is taken on; a function is called only when a
                meta-step is due. None takes the training batch again.

        Raises:
            InputError: a batch, after `adapter`, is no (inputs, labels).
        """
        self._tell_progress()
        self._base_steps += 1
        draw_train, draw_valid = self._drawing(train_batch), self._drawing(valid_batch)
        if valid_batch is None:
            both = draw_train()
            draw_train = draw_valid = lambda: both
        return self._take(self.adaptation, draw_train, draw_valid)

    def _take(
        self, meta_optimizer: MetaOptimizer | None, draw_train: Draw, draw_objective: Draw
    ) -> MetaStep:
        with outer_autocast(self.problem):
            if self._recorded is not None:
                return self._recorded.step(meta_optimizer, draw_train, draw_objective)
            if meta_optimizer is None:
                return MetaStep(self.problem.plain_step(draw_train()))
            return meta_optimizer.step(draw_train, draw_objective)

    def initialize(
        self,
        train: Iterable[Any] | Draw,
        valid: Iterable[Any] | Draw,
        steps: int | None = None,
        inner_steps: int | None = None,
        meta_lr: float = 1e-2,
        horizon: float = 50.0,
        fit_steps: int = 500,
        redraw: Callable[[], None] | None = None,
    ) -> None:
        """Learns φ offline before training starts, on models that are drawn anew now and then.

        φ is first fitted to the task loss, then learned through `inner_steps` base steps at a time:
        see `metaloss.meta_optimizers.offline_unrolled`. Algorithm 1 to the letter is
        `steps=2500, inner_steps=1, meta_lr=1e-3, horizon=1, fit_steps=0`. Afterwards model and
        optimizer are as they were before any training: θ_0 restored, optimizer state empty.

        Args:
            train, valid: loaders of batches, repeated as often as needed, or functions that give
                the next one.
            steps: meta-steps, S_init; None: 1500 base steps in all.
            inner_steps: base steps per meta-step, S_inner; None: by the optimizer's momentum.
            meta_lr: η of Adam on φ at the start; it falls linearly to 0.
            horizon: base steps from one drawing of θ to the next, in the mean.
            fit_steps: steps that fit φ to the task loss before; they train no model.
            redraw: draws the parameters that are trained anew, in place; by default each module
                draws its own, by its method `redraw`, or `reset_parameters`.

        Raises:
            InputError: no `redraw` was given and a parameter belongs to a module without either; or
                a loader cannot be started over.
        """
        model = self.problem.model
        redraw = redraw or redraw_by_modules(self.problem)

        def redraw_alike() -> None:
            redraw()
            distributed.spread([*model.parameters(), *model.buffers()])

        initialization = initialization_of(steps, inner_steps, meta_lr, horizon, fit_steps)
        initialization.attach(self.problem)
        draw_train, draw_valid = (self._drawing(repeat(batches)) for batches in (train, valid))
        phase = self.initializing(initialization, draw_train, draw_valid, redraw_alike)
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
        before = snapshot.model_values(model)
        attributes = Kept(Surroundings(model, None, {}).watch().contents)
        self._forget_recordings()
        for done in range(start + 1, initialization.steps + 1):
            initialization.set_out(self.problem, redraw)
            result = self._take(initialization, draw_train, draw_objective)
            if done == initialization.steps:
                snapshot.set_model_values(model, before)
                attributes.put_back()
                reset(optimizer)
                self._forget_recordings()
                if self.adaptation is not None:
                    self.adaptation.attach(self.problem)  # a fresh Adam, as the authors have it
            yield result

    def _drawing(self, batch: Any) -> Draw:
        """A function that gives a batch, or the next one, as (inputs, labels)."""
        draw = batch if gives_batches(batch, self.adapter) else lambda: batch
        return lambda: adapted(draw(), self.adapter)

    def learned_loss(self) -> LearnedLoss:
        """The loss as it is learned here, to call, to record over the training and to save.

        It shares φ with the learner; each call gives one with a record of its own.

        Raises:
            InputError: the learner learns no loss.
        """
        if self.problem.loss is None:
            raise InputError("there is no learned loss: the learner descends the task loss")
        return LearnedLoss(self.problem.loss, self.problem.link)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        """φ and what continues its learning; model and optimizer are the caller's to save."""
        return {
            "loss": {} if self.problem.loss is None else self.problem.loss.state_dict(),
            "adaptation": {} if self.adaptation is None else self.adaptation.state_dict(),
            "base_steps": self._base_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues bit for bit from what `state_dict` gave."""
        if self.problem.loss is not None:
            self.problem.loss.load_state_dict(state["loss"])
        if self.adaptation is not None:
            self.adaptation.load_state_dict(state["adaptation"])
        self._base_steps = state["base_steps"]
        self._forget_recordings()

    def _forget_recordings(self) -> None:
        """Another meta-optimizer, or another state of it, has its tensors elsewhere."""
        if self._recorded is not None:
            self._recorded.forget()

    def _tell_progress(self) -> None:
        if isinstance(self.problem.loss, Representation):
            self.problem.loss.observe(self._base_steps, self._steps)


def initialization_of(
    steps: int | None, inner_steps: int | None, meta_lr: float, horizon: float, fit_steps: int
) -> MetaOptimizer:
    """The initialisation that `AdaLFL.initialize` makes, by its arguments."""
    fit = TaskFit(fit_steps)
    learn = OfflineUnrolled(steps, inner_steps, horizon, meta_lr=meta_lr)
    return InTurn([fit, learn])


@contextmanager
def outer_autocast(problem: Problem) -> Iterator[None]:
    """Within it, an autocast that is active outside holds for the model's passes alone.

    Losses, cotangents and φ keep their own precision: differences between two steps are small
    numbers, and derivatives of derivatives smaller ones.
    """
    kind = problem.device.type
    if not torch.is_autocast_enabled(kind):
        yield
        return
    refuse_float16(torch.get_autocast_dtype(kind))
    own, problem.autocast = problem.autocast, torch.get_autocast_dtype(kind)
    try:
        with torch.autocast(kind, enabled=False):
            yield
    finally:
        problem.autocast = own
