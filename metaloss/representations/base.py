"""What a representation is: a loss (prediction, target) -> loss per example, with parameters φ."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from metaloss.registry import Registry


class Representation(nn.Module, ABC):
    """A loss function with parameters φ (none, for a handcrafted one).

    Contract, held by `metaloss.testing.check_representation`: one loss per example, no reduction
    over the batch; examples do not see each other; twice differentiable in the prediction, once in
    φ; every constructor argument is kept as an attribute of its name and is plain data (numbers,
    strings, tuples, dicts of them), so that an exported loss can be built again.
    """

    @abstractmethod
    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The loss of each example.

        Args:
            prediction: [batch, C]; probabilities in classification, raw outputs in regression.
            target: [batch, C]; one-hot in classification, values in regression.

        Returns:
            Loss per example, [batch]; the mean over the C outputs (paper, eqs. 3 and 14).
        """

    def arguments(self) -> dict[str, Any]:
        """The constructor arguments that build an equal representation."""
        parameters = inspect.signature(type(self)).parameters.values()
        named = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        return {name: getattr(self, name) for name in named}


REPRESENTATIONS = Registry("representations", Representation)
