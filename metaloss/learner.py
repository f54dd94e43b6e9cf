"""The learner: a base model in training, whose loss improves while it trains."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaloss import links
from metaloss.base_optimizers.base import reset
from metaloss.engines.base import Draw
from metaloss.errors import HealthWarning, InputError, did_you_mean
from metaloss.links import Link, TaskLoss
from metaloss.machine import clock, distributed, memory
from metaloss.meta_optimizers.base import MetaOptimizer, MetaStep
from metaloss.meta_optimizers.descents.adam import Adam
from metaloss.meta_optimizers.descents.base import Descent
from metaloss.meta_optimizers.in_turn import InTurn
from metaloss.meta_optimizers.offline_unrolled import OfflineUnrolled, memory_of
from metaloss.meta_optimizers.online_one_step import OnlineOneStep
from metaloss.meta_optimizers.parts.recorded import RecordedSteps
from metaloss.meta_optimizers.task_fit import TaskFit
from metaloss.problem import snapshot
from metaloss.problem.batches import Adapter, Outputs, StepBatch, adapted, gives_batches, repeat
from metaloss.problem.gradient_transform import GradientTransform
from metaloss.problem.health import PROBES, TRIAL_STEPS, Health, Watch, of_batch, probe, trial
from metaloss.problem.problem import Problem
from metaloss.problem.redraw import redraw_by_modules
from metaloss.problem.refusals import refuse_float16
from metaloss.problem.surroundings import Kept, Surroundings
from metaloss.problem.tables import Tabulate
from metaloss.representations.base import Representation
from metaloss.representations.saved.learned_loss import LearnedLoss

HEALTH_EVERY = 20  #: base steps between probes of the learned loss, if nothing else is said
OnUnhealthy = Literal["warn", "task_loss", "last_healthy"]


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
    means over all examples. Every process calls `step` equally often. Of a model of `fully_shard`
    each process has its part: see docs/scaling.md.

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
        meta_lr: η of the descent on φ; None leaves φ as it is.
        descent: how φ moves: a name in `metaloss.DESCENTS`, as "sgd", or a partial of what has it.
        autocast: the lower precision in which the model's passes are made (torch.bfloat16); losses,
            cotangents and φ keep their own. None: that of an active torch.autocast, if there is
            one. A GradScaler has no part in it, so float16 is refused.
        adapter: a data loader's batch -> (inputs, labels), where it is no such pair itself.
        outputs: what the model returns -> the tensor of outputs, where it returns something else.
        gradient_transform: what happens to the gradients before the optimizer's step:
            `metaloss.ClipNorm`, `metaloss.ClipValue`, or a differentiable function of one's own.
        adaptation: another meta-optimizer than `OnlineOneStep(meta_lr)`; `meta_lr` and `descent`
            are then unused.
        steps: base steps of the whole training, for a loss that looks at its progress.
        cuda_graphs: record each kind of step as a CUDA graph and replay it: faster where a step is
            mostly launches of kernels. A task loss or link of one's own is then tensor operations.
        tabulate: of a learned loss that sees single pairs, with class indices as labels: evaluate
            it on a grid, and read it there at each pair, to about its rounding. "auto", where that
            pays (many outputs); "always", wherever a table can be certified; "never".
        health_every: base steps from one probe of the learned loss to the next, each a forward
            pass; 0 makes none. They change no bit of the training. None: 20 where there is an
            `adaptation`, else 0.
        on_unhealthy: what happens where they find trouble, beside a `HealthWarning`: "task_loss",
            base steps descend the task loss, and φ rests, until they find none, or to the end
            where the trial has failed or it is the second time; "last_healthy", φ becomes again
            what it was when they last found none; "warn", no more.

    Attributes:
        watch: what the probes and the trial have found, see `health`.
        tell: is told each kind of trouble once, and of falling back; by default it warns.
        steps_by_task_loss: base steps that descended the task loss in place of the learned one.

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
        descent: Callable[..., Descent] | str = Adam,
        adaptation: MetaOptimizer | None = None,
        autocast: torch.dtype | None = None,
        adapter: Adapter | None = None,
        outputs: Outputs | None = None,
        gradient_transform: GradientTransform | None = None,
        steps: int | None = None,
        cuda_graphs: bool = False,
        tabulate: Tabulate = "auto",
        health_every: int | None = None,
        on_unhealthy: OnUnhealthy = "task_loss",
    ) -> None:
        for name, value, known in (
            ("tabulate", tabulate, get_args(Tabulate)),
            ("on_unhealthy", on_unhealthy, get_args(OnUnhealthy)),
        ):
            if value not in known:
                near = did_you_mean(str(value), known)
                raise InputError(f"{name} = {value!r}: give one of {', '.join(known)}{near}")
        if autocast is not None and not isinstance(autocast, torch.dtype):
            raise InputError(f"autocast = {autocast!r}: give a dtype, as torch.bfloat16, or None")
        if adapter is not None and not callable(adapter):
            raise InputError(
                f"adapter = {adapter!r}: give a function from a batch to (inputs, labels)"
            )
        if cuda_graphs and tabulate == "always":
            raise InputError("tabulate = 'always': what a table asks of φ, no CUDA graph can")
        self.problem = Problem(
            model, optimizer, loss, task_loss, link, autocast, outputs, gradient_transform,
            "never" if cuda_graphs else tabulate,
        )  # fmt: skip
        if cuda_graphs and self.problem.shards is not None:
            raise InputError("cuda_graphs: the collectives of fully_shard are in no recorded step")
        if adaptation is not None and not isinstance(adaptation, MetaOptimizer):
            raise InputError(
                f"adaptation is a meta-optimizer, and this is {adaptation!r}: give a built one, as "
                "metaloss.META_OPTIMIZERS['online_one_step']()"
            )
        if self.problem.device.type == "cpu":
            memory.keep_freed()
        self.adapter = adapter
        if adaptation is None and meta_lr is not None:
            adaptation = OnlineOneStep(meta_lr, descent=descent)
        self.adaptation = adaptation
        if adaptation is not None:
            adaptation.attach(self.problem)
        self._recorded = RecordedSteps(self.problem) if cuda_graphs else None
        if health_every is None:
            health_every = HEALTH_EVERY if adaptation is not None else 0
        self.health_every = 0 if loss is None else health_every
        self.on_unhealthy = on_unhealthy
        self.watch = Watch()
        self.steps_by_task_loss = 0
        self.tell: Callable[[str], None] = warn
        self._steps = steps
        self._base_steps = 0
        self._tell_progress()

    def step(self, train_batch: Any, valid_batch: Any = None) -> MetaStep:
        """One base step on M_φ, and one meta-step if one is due.

        The parameters' `.grad` is the engine's: afterwards it may be None.

        Args:
            train_batch: a batch, MicroBatches, or a function that gives one of them.
            valid_batch: the same, which the task loss is taken on; a function is called only when a
                meta-step is due. None takes the training batch again. An adaptation whose objective
                is "next" asks for none.

        Raises:
            InputError: a batch, after `adapter`, is no (inputs, labels).
        """
        self._tell_progress()
        due = self.health_every and self._base_steps and self._base_steps % self.health_every == 0
        self._base_steps += 1
        draw_train, draw_valid = self._drawing(train_batch), self._drawing(valid_batch)
        if valid_batch is None:
            both = draw_train()
            draw_train = draw_valid = lambda: both
        drawn: list[StepBatch] = []
        if due:
            draw_train, draw_valid = noting(draw_train, drawn), noting(draw_valid, drawn)
        if self.problem.by_task_loss:
            made = self._rest(draw_train, draw_valid)
        else:
            made = self._take(self.adaptation, draw_train, draw_valid)
        if due:
            self._look(drawn[-1])  # what the task loss was taken on, if it was; no more is drawn
        return made

    def _rest(self, draw_train: Draw, draw_valid: Draw) -> MetaStep:
        """A base step on the task loss, while φ rests; batches are drawn as if it did not."""
        made = self._take(None, draw_train, draw_valid)
        self.steps_by_task_loss += 1
        if self.adaptation is not None:
            self.adaptation.rest(draw_valid)
        return made

    @clock.part("evaluation")
    def _look(self, batch: StepBatch) -> None:
        """Probes the learned loss, and answers to what is found."""
        learners = self._members()
        with outer_autocast(self.problem):
            seen = probe(self.problem, batch, [learner.watch for learner in learners])
        for learner, own in zip(learners, seen, strict=bool(seen)):
            for trouble in learner.watch.judge(self._base_steps, own):
                learner.tell(trouble)
            learner._answer(self._base_steps)

    def _members(self) -> Sequence[AdaLFL]:
        """Whose learned losses a step moves."""
        return [self]

    @torch.no_grad()
    def _answer(self, step: int) -> None:
        """Does what was asked for where the learned loss is unhealthy, or is well again."""
        watch, phi = self.watch, self.problem.phi
        if watch.well:
            if self.on_unhealthy == "last_healthy":
                watch.phis = [*watch.phis, [p.detach().clone() for p in phi]][-PROBES:]
            if self.problem.by_task_loss and not watch.failed:
                self._descend(f"step {step}: the learned loss is well again", by_task_loss=False)
        elif watch.health().status == "unhealthy":
            if self.on_unhealthy == "task_loss" and not self.problem.by_task_loss:
                # The first time it may be where θ stood. A loss that brought it there once more
                # would do so again and again.
                watch.failed = self.steps_by_task_loss > 0
                self._descend(f"step {step}", by_task_loss=True)
            elif self.on_unhealthy == "last_healthy" and watch.phis:
                for parameter, value in zip(phi, watch.phis[0], strict=True):
                    parameter.copy_(value)

    def _descend(self, when: str, by_task_loss: bool) -> None:
        """From here on base steps descend the task loss, and φ rests; or the learned one again."""
        self.problem.by_task_loss = by_task_loss
        self._forget_recordings()
        by = "task" if by_task_loss else "learned"
        end = ", to the end" if by_task_loss and self.watch.failed else ""
        self.watch.warnings.append(f"{when}: from here on base steps descend the {by} loss{end}")
        self.tell(self.watch.warnings[-1])

    def health(self, batch: Any = None) -> Health:
        """How the learned loss stands beside the task loss: a word, warnings and numbers.

        Args:
            batch: a batch to measure on, best of validation data; None asks for what the trial and
                the latest probes have found.
        """
        found = self.watch.health()
        if self.problem.by_task_loss:
            found = replace(found, status="task_loss")
        if batch is None or self.problem.loss is None:
            return found
        with outer_autocast(self.problem):
            numbers = of_batch(self.problem, adapted(batch, self.adapter))
        return replace(found, numbers={**found.numbers, **numbers})

    @clock.part("base")
    def _take(
        self, meta_optimizer: MetaOptimizer | None, draw_train: Draw, draw_objective: Draw
    ) -> MetaStep:
        with outer_autocast(self.problem):
            if self._recorded is not None:
                return self._recorded.step(meta_optimizer, draw_train, draw_objective)
            if getattr(meta_optimizer, "problem", self.problem) is not self.problem:
                raise InputError(
                    "the learner's adaptation was given to another learner since: give each its own"
                )
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
        scale_steps: int = 150,
        redraw: Callable[[], None] | None = None,
        trial_steps: int | None = None,
        descent: Callable[..., Descent] | str | None = None,
    ) -> None:
        """Learns φ offline before training starts, on models that are drawn anew now and then.

        φ is first fitted to the task loss, then learned through `inner_steps` base steps at a time:
        see `metaloss.meta_optimizers.offline_unrolled`; then its scale is searched. Algorithm 1 to
        the letter is `steps=2500, inner_steps=1, meta_lr=1e-3, horizon=1, fit_steps=0,
        scale_steps=0`. Afterwards model and optimizer are as they were before any training: θ_0
        restored, optimizer state empty. The base steps have the optimizer's rates of now: build a
        scheduler that warms up after it.

        At the end the loss is put on trial (`metaloss.problem.health.trial`). Where it fails, φ
        goes back to what it was before the search of its scale, and then to what its fit to the
        task loss had left, with a `HealthWarning` each; `health` tells what was found.

        Args:
            train, valid: loaders of batches, repeated as often as needed, or functions that give
                the next one.
            steps: meta-steps, S_init; None: 1200 base steps in all.
            inner_steps: base steps per meta-step, S_inner; None: by the optimizer's momentum.
            meta_lr: η on φ at the start.
            horizon: base steps from one drawing of θ to the next, in the mean.
            fit_steps: steps that fit φ to the task loss before; they train no model.
            scale_steps: base steps of each training on a multiple of the loss, of which the best is
                taken; 0: none. There is none with Adam and its kin, whose steps have no scale.
            redraw: draws the parameters that are trained anew, in place; by default each module
                draws its own, by its method `redraw`, or `reset_parameters`.
            trial_steps: base steps of the trial, which it makes twice; 0: no trial. None: 100, or
                2/(1 - μ) of the optimizer's momentum if that is more.
            descent: likewise, after the fit; None: Adam, whose η falls linearly to
                0.

        Raises:
            InputError: no `redraw` was given and a parameter belongs to a module without either; a
                loader cannot be started over; or the model is sharded.
        """
        if self.problem.shards is not None:
            raise InputError(
                "the model is sharded by fully_shard, and an initialisation goes back through "
                "several steps of a whole one: initialise the loss before, on the model when it is "
                "whole or on a smaller one of its kind, and give it to a learner of the shards"
            )
        model = self.problem.model
        redraw = redraw or redraw_by_modules(self.problem)

        def redraw_alike() -> None:
            redraw()
            distributed.spread([*model.parameters(), *model.buffers()])

        initialization = initialization_of(
            steps, inner_steps, meta_lr, horizon, fit_steps, scale_steps, descent
        )
        initialization.attach(self.problem)
        draw_train, draw_valid = (self._drawing(repeat(batches)) for batches in (train, valid))
        phase = self.initializing(
            initialization, draw_train, draw_valid, redraw_alike, trial_steps=trial_steps
        )
        for _ in phase:
            pass

    def initializing(
        self,
        initialization: MetaOptimizer,
        draw_train: Draw,
        draw_objective: Draw,
        redraw: Callable[[], None],
        start: int = 0,
        trial_steps: int | None = None,
    ) -> Iterator[MetaStep]:
        """The initialisation phase (Algorithms 1 and 3), one meta-step at a time.

        Args:
            initialization: the phase's meta-optimizer, attached to the problem already.
            draw_train, draw_objective: give the batches.
            redraw: draws the model's parameters and buffers anew, in place.
            start: meta-steps that were made before (when a run is resumed).
            trial_steps: see `initialize`.
        """
        model, optimizer = self.problem.model, self.problem.optimizer
        before = snapshot.model_values(model)
        attributes = Kept(Surroundings(model, None, {}).watch().contents)
        self._forget_recordings()
        self.problem.by_task_loss, self.steps_by_task_loss = False, 0  # of an earlier loss
        for done in range(start + 1, initialization.steps + 1):
            with clock.part("initialization", whole=True):
                initialization.set_out(self.problem, redraw)
                result = self._take(initialization, draw_train, draw_objective)
                if done == initialization.steps:
                    snapshot.set_model_values(model, before)
                    attributes.put_back()
                    reset(optimizer)
                    self._forget_recordings()
                    self._try_out(initialization, draw_train, draw_objective, redraw, trial_steps)
                    if self.adaptation is not None:
                        self.adaptation.attach(self.problem)  # a fresh Adam, as the authors have it
            yield result

    def _try_out(
        self,
        initialization: MetaOptimizer,
        draw_train: Draw,
        draw_objective: Draw,
        redraw: Callable[[], None],
        steps: int | None,
    ) -> None:
        """Puts the loss on trial; where it fails, an earlier φ is, from the latest that is kept."""
        if steps is None:
            memory = math.ceil(2 * memory_of(self.problem.optimizer))
            steps = max(TRIAL_STEPS, memory)
            steps = steps if self._steps is None else min(steps, self._steps)
        if self.problem.loss is None or not steps:
            return
        earlier = earlier_phis(initialization)
        while True:
            with outer_autocast(self.problem):
                tried = trial(self.problem, draw_train, draw_objective, redraw, steps)
            self.watch = Watch(tried, self.watch.warnings)
            if tried.trouble is None:
                return
            if not earlier:
                self.tell(f"initialisation: {tried.trouble}")
                break
            left_by, phi = earlier.pop()
            self.tell(f"initialisation: {tried.trouble}: φ is again as {left_by} left it")
            with torch.no_grad():
                for parameter, value in zip(self.problem.phi, phi, strict=True):
                    parameter.copy_(value)
        if self.on_unhealthy == "task_loss":
            self._descend("initialisation", by_task_loss=True)

    def _drawing(self, batch: Any) -> Draw:
        """A function that gives a batch, or the next one, as (inputs, labels)."""
        draw = batch if gives_batches(batch, self.adapter) else lambda: batch

        def drawn() -> StepBatch:
            try:
                return adapted(draw(), self.adapter)
            except StopIteration:
                raise InputError("the function that gives the batches is at its end") from None

        return drawn

    def learned_loss(self) -> LearnedLoss:
        """The loss as it is learned here, to call, to record over the training and to save.

        It shares φ with the learner; each call gives one with a record of its own.

        Raises:
            InputError: the learner learns no loss.
        """
        if self.problem.loss is None:
            raise InputError("there is no learned loss: the learner descends the task loss")
        link = self.problem.link
        if link is links.by_labels:  # there was no batch yet
            link = links.of_task_loss(self.problem.task_loss) or link
        return LearnedLoss(self.problem.loss, link)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        """φ and what continues its learning; model and optimizer are the caller's to save."""
        return {
            "loss": {} if self.problem.loss is None else self.problem.loss.state_dict(),
            "adaptation": {} if self.adaptation is None else self.adaptation.state_dict(),
            "base_steps": self._base_steps,
            "tables": self.problem.tables.state_dict(),
            "health": self.watch.state_dict(),
            "by_task_loss": self.problem.by_task_loss,
            "steps_by_task_loss": self.steps_by_task_loss,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues bit for bit from what `state_dict` gave."""
        if self.problem.loss is not None:
            self.problem.loss.load_state_dict(state["loss"])
        if self.adaptation is not None:
            self.adaptation.load_state_dict(state["adaptation"])
        self._base_steps = state["base_steps"]
        if "tables" in state:  # a state of 0.1.0's first days has neither these nor health
            self.problem.tables.load_state_dict(state["tables"])
        if "health" in state:
            self.watch.load_state_dict(state["health"])
            self.problem.by_task_loss = state["by_task_loss"]
        self.steps_by_task_loss = state.get("steps_by_task_loss", 0)  # since 0.1.0's first days
        self._forget_recordings()

    def _forget_recordings(self) -> None:
        """Another meta-optimizer, or another state of it, has its tensors elsewhere."""
        if self._recorded is not None:
            self._recorded.forget()

    def _tell_progress(self) -> None:
        if isinstance(self.problem.loss, Representation):
            self.problem.loss.observe(self._base_steps, self._steps)


def initialization_of(
    steps: int | None,
    inner_steps: int | None,
    meta_lr: float,
    horizon: float,
    fit_steps: int,
    scale_steps: int,
    descent: Callable[..., Descent] | str | None = None,
) -> MetaOptimizer:
    """The initialisation that `AdaLFL.initialize` makes, by its arguments."""
    learn = OfflineUnrolled(
        steps, inner_steps, horizon, scale_steps=scale_steps, meta_lr=meta_lr, descent=descent
    )
    return InTurn([TaskFit(fit_steps), learn]) if fit_steps else learn


def earlier_phis(initialization: MetaOptimizer) -> list[tuple[str, list[Tensor]]]:
    """φ as the latest fit, and the meta-steps before the scale was searched, have left it.

    Returns:
        Who left it, in words, and values of the parameters' shapes, from the earliest; what there
        is of them.
    """
    last, found = initialization, []
    if isinstance(initialization, InTurn):
        last = initialization.phases[-1]
        ended = zip(initialization.phases, initialization.left, strict=False)
        fits = [phi for phase, phi in ended if isinstance(phase, TaskFit) and phase.steps]
        found += [("its fit to the task loss", phi) for phi in fits[-1:]]
    if isinstance(last, OfflineUnrolled) and last.unscaled is not None:
        found.append(("the meta-steps, before the search of its scale,", last.unscaled))
    return found


def warn(trouble: str) -> None:
    """Warns of a learned loss that does not work."""
    warnings.warn(trouble, HealthWarning, stacklevel=5)


def noting(draw: Draw, drawn: list[StepBatch]) -> Draw:
    """A function that gives the same batches, and keeps each in the list."""

    def noted() -> StepBatch:
        drawn.append(draw())
        return drawn[-1]

    return noted


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
