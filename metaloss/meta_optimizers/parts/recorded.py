"""Training steps as CUDA graphs: recorded once, and replayed by one call instead of hundreds.

On a GPU a small model's step is mostly the launching of its kernels. A graph launches them all at
once, with the same arguments: so what a recorded step reads and writes must stay where it is, and
what Python decides in it must come out alike. Both make the key under which it is kept.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, fields
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from metaloss.base_optimizers.base import State, update_of
from metaloss.engines.base import Draw
from metaloss.errors import InputError, UnsupportedModelError, first_line
from metaloss.machine import clock, distributed, seeding
from metaloss.meta_optimizers.base import MetaOptimizer, MetaStep
from metaloss.problem.batches import StepBatch
from metaloss.problem.followed import build_of
from metaloss.problem.problem import Problem

KEPT = 4  #: recordings; a training has two kinds of step at most, and settings seldom change
SEEN = 8  #: kinds of step that are remembered until they come again

Batches: TypeAlias = tuple[StepBatch, StepBatch | None]  #: of training, and of the task loss
Steps: TypeAlias = Callable[[Draw, Draw], MetaStep]


@dataclass
class Recording:
    """One kind of step, as a graph.

    Attributes:
        inputs: the tensors of both batches that the graph reads, in pytree order.
        replay: launches it.
        result: what the step gives; the graph writes these very tensors.
        state: the optimizer's, where the graph makes it (a first step); else empty.
    """

    inputs: list[Tensor]
    replay: Callable[[], None]
    result: MetaStep
    state: dict[Tensor, State]


@runtime_checkable
class Recordable(Protocol):
    """What a meta-optimizer has whose steps can be recorded, beside its contract."""

    def branch(self) -> Hashable | None:
        """What Python will decide by in the next `step`; None if no CUDA graph can hold it."""

    def certified(self, residual: Tensor) -> None:
        """Takes the residual of the certificate of a step that a CUDA graph has made."""

    def replayed(self) -> None:
        """A CUDA graph has made a step: counts it."""


class RecordedSteps:
    """Steps of a meta-optimizer, or of the base level alone, of which equal ones are replayed.

    The first step of a kind is carried out as it is, the second recorded. A kind is what the
    meta-optimizer's `branch` says, the shapes of the batches, the optimizer's settings, and where
    the tensors are. A step whose `branch` is None is never recorded, nor one of a meta-optimizer
    that is not `Recordable`.

    Args:
        problem: the base level.

    Raises:
        InputError: the problem's steps cannot be recorded; says why.
    """

    def __init__(self, problem: Problem) -> None:
        refuse_unrecordable(problem)
        self._problem = problem
        self._seen: deque[Hashable] = deque(maxlen=SEEN)
        self._recordings: OrderedDict[Hashable, Recording] = OrderedDict()

    def forget(self) -> None:
        """Drops the recordings: the meta-optimizer's tensors have been replaced."""
        self._seen.clear()
        self._recordings.clear()

    def step(
        self, meta_optimizer: MetaOptimizer | None, draw_train: Draw, draw_objective: Draw
    ) -> MetaStep:
        """`meta_optimizer.step`, or without one a base step on the learned loss.

        Raises:
            InputError: the model draws random numbers in a way that no graph can.
            UnsupportedModelError: CUDA cannot record what the step does.
        """
        take = self._base_step if meta_optimizer is None else meta_optimizer.step
        foreseen = meta_optimizer if isinstance(meta_optimizer, Recordable) else None
        branch = "base" if meta_optimizer is None else foreseen and foreseen.branch()
        if branch is None:
            return take(draw_train, draw_objective)
        batches: Batches = draw_train(), None if branch == "base" else draw_objective()
        leaves, shape = pytree.tree_flatten(batches)
        if not all(leaf is None or torch.is_tensor(leaf) for leaf in leaves):
            return _on(take, batches)
        given = [leaf for leaf in leaves if leaf is not None]
        key = (branch, shape, tuple(map(_layout, given)), self._base_level())
        if recording := self._recordings.get(key):
            self._recordings.move_to_end(key)
            for place, tensor in zip(recording.inputs, given, strict=True):
                place.copy_(tensor)
            if foreseen is not None:
                foreseen.replayed()
        elif key in self._seen:
            recording = self._make(take, leaves, shape)
            self._recordings[key] = recording
            if len(self._recordings) > KEPT:
                self._recordings.popitem(last=False)
        else:
            self._seen.append(key)
            return self._watched(take, batches)
        with clock.part("base" if branch == "base" else "meta"):
            recording.replay()
        for parameter, state in recording.state.items():
            self._problem.optimizer.state[parameter] = dict(state)
        result = _copy(recording.result)
        if foreseen is not None and result.adjoint_residual is not None:
            foreseen.certified(result.adjoint_residual)
        return result

    def _base_step(self, draw_train: Draw, draw_objective: Draw) -> MetaStep:
        return MetaStep(self._problem.plain_step(draw_train()))

    def _base_level(self) -> Hashable:
        """What of the base level Python decides by, and where its tensors are."""
        problem, optimizer = self._problem, self._problem.optimizer
        states = [
            value.data_ptr() if torch.is_tensor(value) else value
            for parameter in problem.theta
            for value in optimizer.state.get(parameter, {}).values()
        ]
        return (
            tuple(tuple(v for k, v in g.items() if k != "params") for g in optimizer.param_groups),
            tuple(states),
            tuple(tensor.data_ptr() for tensor in [*problem.theta, *problem.phi]),
            tuple(buffer.data_ptr() for buffer in problem.model.buffers()),
            tuple(build_of(problem.model)),
            problem.surroundings.changes(),
            problem.autocast,
        )

    def _watched(self, take: Steps, batches: Batches) -> MetaStep:
        """The step as it is, if a recording draws random numbers as it does.

        In a graph torch's generator on the GPU goes on with each replay, but never back.
        """
        before = torch.get_rng_state()
        with seeding.watching_replays() as drawn:
            result = _on(take, batches)
        if any(drawn):
            raise InputError(
                "cuda_graphs: the forward-mode pass draws the base pass's random numbers again (as "
                "of dropout in attention, or of a dropout changed in place), which no graph can: "
                "leave it out"
            )
        if self._problem.surroundings.beyond_tensors:
            raise InputError(
                "cuda_graphs: the model changes Python objects in its forward pass, or draws from "
                "a generator of its own, which no graph would do again: leave it out"
            )
        if not torch.equal(before, torch.get_rng_state()):
            raise InputError(
                "cuda_graphs: the model draws random numbers on the CPU, and a graph would keep "
                "the first ones: leave it out"
            )
        return result

    @clock.part("compiling")
    def _make(self, take: Steps, leaves: list[Any], shape: Any) -> Recording:
        """Records the step without carrying it out; Python has then counted it."""
        optimizer = self._problem.optimizer
        stateless = not any(optimizer.state.values())
        copies = [None if leaf is None else leaf.clone() for leaf in leaves]
        batches: Batches = pytree.tree_unflatten(copies, shape)
        try:
            replay, result = graph(lambda: _on(take, batches))
        except RuntimeError as error:
            raise UnsupportedModelError(
                f"cuda_graphs: the step cannot be recorded ({first_line(error)}): leave it out"
            ) from error
        state = {p: dict(s) for p, s in optimizer.state.items()} if stateless else {}
        return Recording([copy for copy in copies if copy is not None], replay, result, state)


def graph(step: Callable[[], MetaStep]) -> tuple[Callable[[], None], MetaStep]:
    """Records a step as a CUDA graph; gives what launches it, and the tensors it will write."""
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded, capture_error_mode="thread_local"):
        result = step()
    return recorded.replay, result


def refuse_unrecordable(problem: Problem) -> None:
    """Raises InputError if no step of the problem can be recorded."""
    kind = type(problem.optimizer).__name__
    if problem.device.type != "cuda":
        raise InputError(f"cuda_graphs: the model is on the {problem.device.type}, and not on cuda")
    if not update_of(problem.optimizer).recordable:
        raise InputError(
            f"cuda_graphs: {kind} keeps counts that Python computes with in each step; SGD does not"
        )
    if distributed.several():
        raise InputError("cuda_graphs: the steps of several processes cannot be recorded")
    if problem.gradient_transform is not None:
        raise InputError("cuda_graphs: a step with a gradient_transform cannot be recorded")


def _on(take: Steps, batches: Batches) -> MetaStep:
    train, objective = batches
    return take(lambda: train, lambda: objective)  # type: ignore[arg-type, return-value]


def _layout(tensor: Tensor) -> Hashable:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _copy(result: MetaStep) -> MetaStep:
    """The same numbers in tensors that the next replay does not write."""
    values = (getattr(result, field.name) for field in fields(MetaStep))
    return MetaStep(*(value.clone() if torch.is_tensor(value) else value for value in values))
