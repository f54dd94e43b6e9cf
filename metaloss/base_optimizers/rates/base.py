"""What a rate is: how a learned base learning rate α follows from a scalar that Adam moves."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from metaloss.config.registry import Registry


class Rate(ABC):
    """A parametrisation α(x) of a learned learning rate.

    Contract, held by `metaloss.testing.check_rate`: `decode` is differentiable and increasing, and
    `decode(encode(α)) = α`.
    """

    @abstractmethod
    def decode(self, x: Tensor) -> Tensor:
        """α of a scalar x, both float64 of shape []."""

    @abstractmethod
    def encode(self, alpha: float) -> float:
        """The x that gives this α.

        Raises:
            InputError: no x does.
        """


RATES = Registry("rates", Rate)
