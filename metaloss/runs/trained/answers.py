"""Answers: from raw inputs, as a task's files hold them, to what a person wants to know."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from metaloss.errors import DataError
from metaloss.tasks.base import MULTI_LABEL, Data

Kind = Literal["probabilities", "values"]


class Answer(nn.Module):
    """A model between the preparation of its inputs and the meaning of its outputs.

    Args:
        model: in eval mode.
        about: its data, on its device; their examples are not used.

    Attributes:
        kind: "probabilities", of classes that exclude each other or of each label; or "values", in
            the targets' own units.

    Raises:
        DataError: the task does not say how raw inputs are prepared.
    """

    def __init__(self, model: nn.Module, about: Data) -> None:
        super().__init__()
        if about.preparation is None:
            raise DataError(
                "the run's task does not say how raw inputs become the model's: Data.inputs"
            )
        self.model = model
        self.kind: Kind = "values" if about.objective.metric == "mse" else "probabilities"
        self._prepare = about.preparation.prepare
        self._several = about.objective is MULTI_LABEL
        self._targets = about.targets

    def forward(self, raw: Tensor) -> Tensor:
        outputs: Tensor = self.model(self._prepare(raw))
        if self.kind == "probabilities":
            return outputs.sigmoid() if self._several else outputs.softmax(-1)
        return outputs if self._targets is None else self._targets.undo(outputs)
