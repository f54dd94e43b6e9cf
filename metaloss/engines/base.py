"""What an engine is: it makes base steps, and differentiates the task loss through them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from metaloss.config.registry import Registry
from metaloss.problem.batches import StepBatch
from metaloss.problem.meta_parameters import MetaParameters
from metaloss.problem.problem import Problem

Draw = Callable[[], StepBatch]  #: gives the next batch


@dataclass
class Hypergradient:
    """The task loss after some base steps, and its gradient; tensors without graph."""

    learned_loss: Tensor  #: M_φ on the last training batch, before its step
    task_loss: Tensor  #: L_T at the new θ
    phi: list[Tensor | None]  #: ∇_φ L_T, aligned with the meta-parameters; None without a path
    alpha: Tensor | None  #: ∂L_T/∂α, shape []; None where α is not learned or has no path
    certificate: Certificate | None = None  #: of this step, where one was asked for


@dataclass
class Certificate:
    """What a step's certificate says; see `metaloss.engines.parts.certificate`."""

    residual: Tensor  #: by how much its identity does not hold, a scalar without graph
    tolerance: float  #: up to which it is rounding
    compared: str = "⟨g, u⟩ and ⟨∂M/∂f, J u⟩"  #: what differs by it, for messages
    cause: str = "an operator's forward and backward derivatives are of different functions"

    @property
    def holds(self) -> Tensor:
        """Bool []. Of numbers that are not finite it says nothing."""
        return ~(self.residual > self.tolerance)


class Engine(ABC):
    """Differentiates the task loss through steps of the base optimizer, with respect to φ and α.

    Contract, held by `metaloss.testing.check_engine`: the base steps are those of plain training on
    M_φ (bit for bit, or up to rounding: `bitwise`), and stand in the model and the optimizer
    afterwards; the gradient is what the class says (the exact ones agree with each other, up to
    rounding); `state_dict` holds what the engine carries from one call to the next, so that a
    restored engine goes on bit for bit. In several processes the gradient is that of the whole
    batch: what is a mean over a batch passes `metaloss.machine.distributed.mean`, unless `Problem`
    has seen to it.
    """

    #: Whether its base steps have the bits of plain training: on the same machine, with as many
    #: threads. An engine that says False says why, and keeps to them up to rounding.
    bitwise = True
    #: Whether the gradient is that of the steps themselves, up to rounding.
    exact = False
    #: Whether a meta-step of one base step is tensor operations alone, which a CUDA graph can hold.
    recordable = False
    #: Whether nothing in it mixes the numbers of a vector over θ or φ, so that the problems of a
    #: stack stay apart.
    elementwise = False
    #: Whether its passes are plain ones of the model, or `Shards` has them, so that of a model of
    #: fully_shard each process need not have more than its part.
    of_shards = False

    @abstractmethod
    def hypergradient(
        self,
        problem: Problem,
        meta: MetaParameters,
        train: Sequence[StepBatch],
        draw_objective: Draw,
    ) -> Hypergradient:
        """Makes one base step on each training batch, and differentiates the task loss after them.

        Raises:
            UnsupportedModelError: the engine cannot differentiate this model.
        """

    def base_step(self, problem: Problem, batch: StepBatch) -> Tensor:
        """A base step that no meta-step follows -> M_φ before it, a scalar without graph."""
        return problem.plain_step(batch)

    def state_dict(self) -> dict[str, Any]:
        """What the next call depends on: tensors and plain data."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        assert not state, f"{type(self).__name__} carries nothing from one call to the next"


class CertifiedEngine(Engine):
    """An engine that can certify the gradient of a step; it costs some products of vectors."""

    @abstractmethod
    def hypergradient(
        self,
        problem: Problem,
        meta: MetaParameters,
        train: Sequence[StepBatch],
        draw_objective: Draw,
        certify: bool = False,
    ) -> Hypergradient:
        """See `Engine.hypergradient`; with `certify` it gives a certificate too."""


def certified(engine: Engine, certify: bool = True) -> Callable[..., Hypergradient]:
    """`engine.hypergradient`, with a certificate if it is wanted and the engine gives any."""
    if certify and isinstance(engine, CertifiedEngine):
        return partial(engine.hypergradient, certify=True)
    return engine.hypergradient


ENGINES = Registry("engines", Engine)


def engine_by(engine: Engine | str) -> Engine:
    """The engine itself, or one by its registered name with its default arguments.

    Raises:
        UnknownComponentError: no engine has this name.
    """
    if isinstance(engine, Engine):
        return engine
    built = ENGINES[engine]()
    assert isinstance(built, Engine)
    return built
