"""Scaling of numbers, inputs or targets, and the way back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Scaling:
    """Column by column scaled = (raw - zero) / unit, in double precision.

    Attributes:
        zero: the raw number that becomes 0, [columns], or [1] for all.
        unit: what 1 is in the raw number's unit, of the same shape.
    """

    zero: Tensor
    unit: Tensor

    def prepare(self, raw: Tensor) -> Tensor:
        """The scaled numbers of raw ones [..., columns]; float32."""
        return ((raw.double() - self.zero) / self.unit).float()

    def undo(self, scaled: Tensor) -> Tensor:
        """The raw numbers of scaled ones [..., columns]; float64."""
        return scaled.double() * self.unit + self.zero

    def plain(self) -> dict[str, Tensor]:
        """What a run keeps, on the CPU."""
        return {"zero": self.zero.cpu(), "unit": self.unit.cpu()}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Scaling:
        """The scaling that `plain` described, its tensors perhaps as lists."""
        zero, unit = (
            torch.as_tensor(plain[name], dtype=torch.float64) for name in ("zero", "unit")
        )
        return cls(zero, unit)

    def to(self, device: torch.device) -> Scaling:
        """The same for numbers on a device."""
        return Scaling(self.zero.to(device), self.unit.to(device))


def by(unit: float) -> Scaling:
    """Division of every column by the same unit; by 1, nothing changes."""
    return Scaling(torch.zeros(1, dtype=torch.float64), torch.tensor([unit], dtype=torch.float64))


def standard(train: Tensor) -> Scaling:
    """To mean 0 and deviation 1 of each column [n, columns]; a constant column's unit is 1."""
    train = train.double()
    deviation = train.std(0, correction=0)
    return Scaling(train.mean(0), deviation.where(deviation > 0, 1.0))


def standard_of(array: np.ndarray, rows: np.ndarray, at_once: int = 65_536) -> Scaling:
    """`standard` of some rows of an array [n, columns], a part at a time."""
    parts = [rows[start : start + at_once] for start in range(0, len(rows), at_once)]
    mean = sum(array[part].astype(np.float64).sum(0) for part in parts) / len(rows)
    square = sum(((array[part].astype(np.float64) - mean) ** 2).sum(0) for part in parts)
    deviation = torch.as_tensor(np.sqrt(square / len(rows)))
    return Scaling(torch.as_tensor(mean), deviation.where(deviation > 0, 1.0))


def to_range(train: Tensor) -> Scaling:
    """To [0, 1] of each column [n, columns]."""
    low = train.double().amin(0)
    return Scaling(low, train.double().amax(0) - low)
