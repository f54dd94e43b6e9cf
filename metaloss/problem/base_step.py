"""A base step that was made, and what the meta-gradient needs of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from metaloss.base_optimizers.parts.taken_step import KeepState, TakenStep
from metaloss.problem.batches import Batch, Share
from metaloss.problem.forward_mode import KeepPrimals
from metaloss.problem.gradient_transform import Transformed
from metaloss.problem.slopes import Slope
from metaloss.problem.surroundings import Kept
from metaloss.problem.vectors import Vector


@dataclass(frozen=True)
class Keep:
    """What a base step keeps for the way back through it; by default nothing."""

    slope: bool = False  #: ∂M_φ/∂f with its graph to φ
    graph: bool = False  #: g with its graph to θ and φ, if one pass gives all of it
    gradient: bool = False  #: g itself, before a gradient transform: the optimizer may change it
    primals: bool = False  #: the intermediate values that a forward-mode pass over it can reuse
    state: KeepState = "nothing"  #: of the optimizer's, before the step

    @property
    def replay(self) -> bool:
        """Whether the passes may be run again: in the same surroundings, along the same g."""
        return self.slope or self.state != "nothing"


NOTHING = Keep()

#: Is given L_T on a base step's batch, a scalar, and v = ∇_θ L_T, both by the step's own pass. M_φ
#: is taken there afterwards: φ may move in it.
Judge = Callable[[Tensor, Vector], None]


@dataclass(frozen=True)
class Graph:
    """g of a pass as a differentiable function of θ and φ."""

    theta: list[Tensor]  #: leaves in place of the parameters, which the optimizer changes
    g: Vector


@dataclass
class Pass:
    """The model's passes over one batch of a base step."""

    batch: Batch
    share: Share  #: of this batch's loss in the step's
    #: ∂M_φ/∂f, of that share, with the way to φ. None where none was asked for, and of
    #: micro-batches, where the pass that gives the outputs again takes it again.
    slope: Slope | None
    primals: KeepPrimals  #: of the forward pass; empty unless asked for
    surroundings: Kept  #: before the forward pass; empty unless it may be replayed
    #: Torch's global generators before the forward pass (dropout masks); empty likewise.
    random_state: list[Tensor]
    graph: Graph | None = None  #: of its share of g, where it was asked for


@dataclass
class BaseGradient:
    """How g = ∇_θ M_φ over a step's batch came about; g itself need not be kept."""

    passes: list[Pass]  #: one, or one for each micro-batch
    weight: float | Tensor  #: of the rows of this process's batch, together
    learned_loss: Tensor  #: M_φ on the batch before the step; a scalar without graph
    transformed: Transformed | None  #: g on its way through a gradient transform, if there is one
    #: Itself; empty unless asked for, or a pass did what none before it did, so that the step is to
    #: have a certificate.
    g: Vector


@dataclass
class BaseStep:
    """One base step θ → θ'."""

    gradient: BaseGradient
    along: Vector  #: g as the optimizer had it; empty where running the one pass again gives it
    taken: TakenStep
