"""Stack: the learners of several seeds, one step of all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import tee
from typing import Any

import torch
from torch.utils._pytree import tree_map

from metaloss.engines.base import Draw
from metaloss.errors import InputError
from metaloss.learner import AdaLFL
from metaloss.machine import distributed
from metaloss.meta_optimizers.base import MetaOptimizer, MetaStep
from metaloss.meta_optimizers.descents.base import Descent
from metaloss.meta_optimizers.parts.stacked import StackedMetaOptimizer
from metaloss.problem.batches import StepBatch, repeat
from metaloss.problem.health import Health
from metaloss.problem.stacked import Stacked, over_members, stack_optimizers, stack_states
from metaloss.representations.saved.learned_loss import LearnedLoss


class Stack(AdaLFL):
    """Learners of one build, such as one for each seed, that make their steps together.

    A small model's step on a GPU is launches of kernels, hardly any arithmetic; a stack launches
    them once for all, by torch.func.vmap. Each learner's steps are its own: it has its θ, φ and
    batches, and one whose numbers are not finite leaves the others alone::

        stack = metaloss.Stack([metaloss.AdaLFL(...) for seed in range(10)])
        for inputs, labels, valid_inputs, valid_labels in loader:  # each [10, batch, ...]
            stack.step((inputs, labels), (valid_inputs, valid_labels))

    The learners go on to be what they were: their models, losses and states are theirs to evaluate
    and to save at any time; their parameters are views of the stack's. Only the stack makes steps,
    and a scheduler is that of `stack.problem.optimizer`.

    Batches and results are stacks too: (inputs [S, batch, ...], labels [S, batch, ...]), and a
    MetaStep of tensors [S]. Dropout masks are drawn for all at once, so those of one seed are other
    draws than it has alone.

    Args:
        learners: they stand at the same step.

    Raises:
        InputError: they are not built alike, stand at different steps, or have a part that cannot
            be stacked: an engine that mixes the numbers of a vector, a learned learning rate, a
            gradient transform, an adapter, a learned loss that holds the model, several processes.
    """

    def __init__(self, learners: Sequence[AdaLFL]) -> None:
        _refuse_others(learners)
        self.learners = tuple(learners)
        self._fallen = [False] * len(self.learners)
        self._rested = tuple(self._fallen)  # in the latest step
        problems = [learner.problem for learner in learners]
        first, models = problems[0], [problem.model for problem in problems]
        losses = [problem.loss for problem in problems if problem.loss is not None]
        model = Stacked(models, "model")
        super().__init__(
            model,
            stack_optimizers([problem.optimizer for problem in problems], models, model),
            Stacked(losses, "loss") if losses else None,
            over_members(first.task_loss, "the task loss"),
            link=over_members(first.link, "the link"),
            meta_lr=None,
            autocast=first.autocast,
            outputs=first.outputs and over_members(first.outputs, "what `outputs` does"),
            steps=learners[0]._steps,
            cuda_graphs=learners[0]._recorded is not None,
            health_every=learners[0].health_every,
        )
        adaptations = [made for learner in learners if (made := learner.adaptation) is not None]
        if adaptations:
            self.adaptation = self.together(adaptations)
        self.join()

    def join(self) -> None:
        """Goes on from where the learners stand, after a state was loaded into them.

        Raises:
            InputError: they stand at different steps.
        """
        _require_same_step(self.learners)
        self._base_steps = self.learners[0]._base_steps
        stack_states(
            self.problem.optimizer, [learner.problem.optimizer for learner in self.learners]
        )
        if isinstance(self.adaptation, StackedMetaOptimizer):
            self.adaptation.join()
        self._note_fallen()
        self._forget_recordings()

    def step(self, train_batch: Any, valid_batch: Any = None) -> MetaStep:
        """One step of all, see `AdaLFL.step`; batches and the result are stacks [S, ...].

        Raises:
            UnsupportedModelError: torch.func.vmap cannot follow the model, the link or a loss.
        """
        self._rested = tuple(self._fallen)
        for learner, rested in zip(self.learners, self._rested, strict=True):
            learner.steps_by_task_loss += rested
        result = super().step(train_batch, valid_batch)
        for learner in self.learners:
            learner._base_steps = self._base_steps
        return result

    def initialize(  # type: ignore[override]  # a redraw for each learner
        self,
        train: Iterable[Any] | Draw,
        valid: Iterable[Any] | Draw,
        steps: int | None = None,
        inner_steps: int | None = None,
        meta_lr: float = 1e-2,
        horizon: float = 50.0,
        fit_steps: int = 500,
        scale_steps: int = 150,
        redraw: Sequence[Callable[[], None]] | None = None,
        trial_steps: int | None = None,
        descent: Callable[..., Descent] | str | None = None,
    ) -> None:
        """All learners' offline learning, see `AdaLFL.initialize`; batches are stacks [S, ...].

        Each learner's is made alone, one after another: their models are drawn anew at steps of
        their own. Each sees its rows of the same batches.

        Args:
            train, valid, steps, inner_steps, meta_lr, horizon, fit_steps: as there.
            scale_steps, trial_steps, descent: as there.
            redraw: for each learner, what draws its parameters anew, in place.

        Raises:
            InputError: no `redraw` was given and a parameter belongs to a module without
                `reset_parameters`.
        """
        count = len(self.learners)
        self.problem.optimizer.state.clear()
        train_of, valid_of = (tee(_drawn(repeat(batches)), count) for batches in (train, valid))
        redraws: Sequence[Callable[[], None] | None] = redraw or [None] * count
        for i, (learner, own) in enumerate(zip(self.learners, redraws, strict=True)):
            learner.initialize(
                partial(_rows, train_of[i], i), partial(_rows, valid_of[i], i),
                steps, inner_steps, meta_lr, horizon, fit_steps, scale_steps, own, trial_steps,
                descent,
            )  # fmt: skip
        self.join()

    def together(self, members: Sequence[MetaOptimizer]) -> MetaOptimizer:
        """The learners' meta-optimizers as one; each is attached to its learner's problem.

        Raises:
            InputError: their kind takes one seed at a time.
        """
        problems = [learner.problem for learner in self.learners]
        return StackedMetaOptimizer(members, problems, self.problem)

    def members(self, made: MetaStep) -> list[MetaStep]:
        """What the latest step did for each learner, as it would be of the learner alone.

        Args:
            made: what `step` gave.
        """
        parts = zip(made.members(), self._rested, strict=True)
        return [MetaStep(part.learned_loss) if rested else part for part, rested in parts]

    def _members(self) -> Sequence[AdaLFL]:
        return self.learners

    def _look(self, batch: StepBatch) -> None:
        super()._look(batch)
        self._note_fallen()

    def _note_fallen(self) -> None:
        """Which learners descend the task loss, for the step that all make together."""
        fallen = [learner.problem.by_task_loss for learner in self.learners]
        if fallen != self._fallen:
            self._fallen = fallen
            mask = torch.tensor(fallen, device=self.problem.device)
            self.problem.members_by_task_loss = mask if any(fallen) else None
            self._forget_recordings()

    def health(self, batch: Any = None) -> Health:
        """Refused: each learner has its own.

        Raises:
            InputError: always.
        """
        raise InputError("a stack has a health for each seed: ask its learners")

    def learned_loss(self) -> LearnedLoss:
        """Refused: each learner has its own.

        Raises:
            InputError: always.
        """
        raise InputError("a stack has a learned loss for each seed: ask its learners")

    def state_dict(self) -> dict[str, Any]:
        """What each learner saves."""
        return {"learners": [learner.state_dict() for learner in self.learners]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from what `state_dict` gave."""
        for learner, own in zip(self.learners, state["learners"], strict=True):
            learner.load_state_dict(own)
        self.join()

    def _tell_progress(self) -> None:
        for learner in self.learners:
            learner._tell_progress()


def _drawn(draw: Draw) -> Iterator[Any]:
    """The batches that a function gives, without end."""
    while True:
        yield draw()


def _rows(batches: Iterator[Any], member: int) -> tuple[Any, Any]:
    """A member's rows of the next stacked batch."""
    inputs, labels = next(batches)
    return tree_map(lambda tensor: tensor[member], inputs), labels[member]


def _refuse_others(learners: Sequence[AdaLFL]) -> None:
    """Raises InputError unless the learners can be stacked, as far as it shows before a step."""
    if not learners:
        raise InputError("a stack is of at least one learner; there is none")
    if distributed.several():
        raise InputError("a stack is of one process: start one for each of its devices")
    _require_same_step(learners)  # before all that a first step decides, as the link is
    alike: dict[str, Callable[[AdaLFL], Any]] = {
        "are of trainings of other lengths": lambda learner: learner._steps,
        "have another task loss": lambda learner: learner.problem.task_loss,
        "have another link": lambda learner: learner.problem.link,
        "have another autocast": lambda learner: learner.problem.autocast,
        "have other `outputs`": lambda learner: learner.problem.outputs,
        "have other kinds of models": lambda learner: type(learner.problem.model),
        "have other kinds of losses": lambda learner: type(learner.problem.loss),
        "have other kinds of adaptation": lambda learner: type(learner.adaptation),
        "are probed at other steps": lambda learner: learner.health_every,
    }
    for complaint, of in alike.items():
        for number, learner in enumerate(learners):
            if of(learner) != of(learners[0]):
                raise InputError(f"learners 0 and {number} {complaint}: a stack is of equal ones")
    adaptations = [made for learner in learners if (made := learner.adaptation) is not None]
    if len({id(adaptation) for adaptation in adaptations}) < len(adaptations):
        raise InputError(
            "learners of a stack have each an adaptation of its own, and these share one"
        )
    for learner in learners:
        problem = learner.problem
        if learner.adapter is not None:
            raise InputError("a stack takes batches (inputs, labels) [S, batch, ...], no `adapter`")
        if problem.gradient_transform is not None:
            raise InputError(
                "a stack takes no gradient_transform: a norm would be that of all seeds together"
            )
        if problem.loss is not None and {*problem.loss.parameters()} & {
            *problem.model.parameters()
        }:
            raise InputError("the learned loss holds the model, and a stack keeps the two apart")


def _require_same_step(learners: Sequence[AdaLFL]) -> None:
    """Raises InputError if learners stand at different steps."""
    steps = [learner._base_steps for learner in learners]
    if len(set(steps)) > 1:
        found = ", ".join(map(str, steps))
        raise InputError(f"the learners of a stack stand at different steps: {found}")
