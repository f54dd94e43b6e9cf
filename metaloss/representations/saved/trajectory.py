"""Trajectories: the parameters φ of a loss as they were at some steps of a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Trajectory:
    """φ as it changed over a training: `phi[t]` is the flat parameter vector at `steps[t]`."""

    steps: Tensor  #: base steps made when φ was recorded, [T], int64, ascending
    phi: Tensor  #: [T, P], on the CPU

    @classmethod
    def of(cls, samples: Mapping[int, Tensor]) -> Trajectory:
        """The trajectory of at least one sample, flat vectors by step."""
        steps = sorted(samples)
        return cls(torch.tensor(steps), torch.stack([samples[step] for step in steps]))

    @property
    def samples(self) -> dict[int, Tensor]:
        """What `of` takes."""
        return dict(zip(self.steps.tolist(), self.phi, strict=True))

    @property
    def first(self) -> int:
        """The first recorded step."""
        return int(self.steps[0])

    @property
    def last(self) -> int:
        """The last recorded step."""
        return int(self.steps[-1])

    def index(self, step: int, over: int | None = None) -> int:
        """Where the latest φ recorded up to a step is; where the first is, before that.

        Args:
            step: base steps made.
            over: steps of a training that the whole recording is stretched or squeezed to; None
                takes it as it was recorded.
        """
        if over is None:
            over = self.last
        # In integers: step/over of the recording's length, without rounding.
        return max(int((self.steps * over <= step * self.last).sum()) - 1, 0)

    @torch.no_grad()
    def write(self, index: int, loss: nn.Module) -> None:
        """Gives a loss the φ at an index, in place."""
        # Not torch's `vector_to_parameters`: it makes the parameters views of this record, and
        # whatever trains them would write into it.
        parameters = list(loss.parameters())
        parts = self.phi[index].split([p.numel() for p in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.copy_(part.view_as(parameter))


def flat(representation: nn.Module) -> Tensor:
    """φ as one vector [P], a copy on the CPU."""
    values = [p.detach().flatten() for p in representation.parameters()]
    return torch.cat(values).cpu() if values else torch.zeros(0)
