"""What a representation is: a loss (prediction, target) -> loss per example, with parameters φ."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Literal

from torch import Tensor, nn

from metaloss.config.registry import Registry
from metaloss.errors import InputError


class Representation(nn.Module, ABC):
    """A loss function with parameters φ (none, for a handcrafted one).

    Contract, held by `metaloss.testing.check_representation`: one loss per example, no reduction
    over the batch; examples do not see each other; twice differentiable in the prediction, once in
    φ; every constructor argument is kept as an attribute of its name and is plain data (numbers,
    strings, tuples, dicts of them), so that an exported loss can be built again.

    Attributes:
        classification_only: whether the loss is made for class probabilities alone, with targets
            that are distributions over the classes.
    """

    classification_only = False
    #: How the loss of an example comes from its pairs (f_i, y_i), each by itself: their "mean" or
    #: their "sum" over the outputs; None where outputs see each other. Such a loss may be tabulated
    #: (see `metaloss.problem.tables`).
    pairs: Literal["mean", "sum"] | None = None
    #: Names of parameters that, multiplied by a number together, multiply the loss by it; none
    #: where no parameters do.
    linear_in: tuple[str, ...] = ()
    #: Whether `forward` takes parameters [S, ...] with pairs [S, batch, C] too: a whole stack of
    #: losses, which is otherwise left to torch.func.vmap. Not inherited.
    takes_stacks = False

    @abstractmethod
    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The loss of each example.

        Args:
            prediction: [batch, C]; probabilities in classification, raw outputs in regression.
            target: [batch, C]; one-hot in classification, values in regression.

        Returns:
            Loss per example, [batch]; the mean over the C outputs (paper, eqs. 3 and 14).
        """

    @property
    def of_pairs(self) -> bool:
        """Whether the loss of an example is a sum over its outputs of `pair_losses`."""
        return self.pairs is not None

    def pair_losses(self, prediction: Tensor, target: Tensor, outputs: int) -> Tensor:
        """What each pair has in the loss of an example with that many outputs.

        Args:
            prediction, target: [N], the pairs.
            outputs: C.

        Returns:
            [N].
        """
        losses: Tensor = self(prediction[:, None], target[:, None])
        return losses / outputs if self.pairs == "mean" else losses

    def observe(self, step: int, steps: int | None) -> None:
        """Tells a loss that depends on it how far the training is; here, what it is made of.

        The learner calls it when it is made (step 0) and before each base step, so that the loss is
        one function of (prediction, target) within a meta-step. What is kept of it belongs into a
        buffer: then checkpoints and exports hold it too.

        Args:
            step: base steps made so far.
            steps: of the whole training; None keeps what was told before.

        Raises:
            InputError: the loss needs `steps` and was never told.
        """
        for part in self.children():
            if isinstance(part, Representation):
                part.observe(step, steps)

    @property
    def of_classes(self) -> bool:
        """Whether the loss, or a loss in it, is `classification_only`."""
        return any(isinstance(m, Representation) and m.classification_only for m in self.modules())

    def require_pairs(self, prediction: Tensor, target: Tensor) -> None:
        """Refuses what the loss, or a loss in it, is not made for; asked once, before training.

        Args:
            prediction: [batch, C].
            target: [batch, C].

        Raises:
            InputError: the loss is `classification_only`, and the targets are no distributions.
        """
        for part in self.modules():
            if isinstance(part, Representation) and part.classification_only:
                total = target.detach().sum(-1)
                if not bool(((total - 1).abs() < 1e-3).all() and (target >= 0).all()):
                    raise InputError(
                        f"representations.{REPRESENTATIONS.name_of(part)} is a loss of class "
                        "probabilities, and these targets are no distributions over classes: it "
                        "serves neither regression nor several labels at once · losses that do: "
                        f"{', '.join(_of_values())}"
                    )

    def arguments(self) -> dict[str, Any]:
        """The constructor arguments that build an equal representation."""
        parameters = inspect.signature(type(self)).parameters.values()
        named = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        return {name: getattr(self, name) for name in named}


REPRESENTATIONS = Registry("representations", Representation)


def _of_values() -> Iterator[str]:
    """The names of losses that take any targets."""
    for name, cls in REPRESENTATIONS.items():
        if (
            isinstance(cls, type)
            and issubclass(cls, Representation)
            and not cls.classification_only
        ):
            yield name
