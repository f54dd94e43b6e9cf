"""The contract of rates."""

from __future__ import annotations

import torch

from metaloss.base_optimizers.rates.base import Rate
from metaloss.testing.base import float64, require


def check_rate(rate: Rate, alpha: float = 0.01) -> None:
    """Holds a rate to the contract in `metaloss.base_optimizers.rates.base`.

    Args:
        rate: the parametrisation.
        alpha: a learning rate in its range.
    """
    with float64():
        start = torch.tensor(rate.encode(alpha))
        back = float(rate.decode(start))
        require(abs(back - alpha) <= 1e-12 * alpha, f"decode(encode({alpha})) gives {back}")
        xs = start + torch.linspace(-3, 3, 13)
        values = torch.stack([rate.decode(x) for x in xs])
        require(values.isfinite().all(), "is not finite")
        require((values.diff() > 0).all(), "is not increasing")
        x = start.clone().requires_grad_()
        require(torch.autograd.gradcheck(rate.decode, x), "has a wrong derivative")
