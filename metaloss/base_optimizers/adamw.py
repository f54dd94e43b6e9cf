"""AdamW (Loshchilov & Hutter, 2019): Adam with decoupled weight decay."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from metaloss.base_optimizers.adam import AdamUpdate
from metaloss.base_optimizers.base import BASE_OPTIMIZERS, certify
from metaloss.config.arguments import Decay, NonNegativeFloat, PositiveFloat


@BASE_OPTIMIZERS.register("adamw")
def adamw(
    parameters: Iterable[Tensor],
    lr: PositiveFloat = 1e-3,
    betas: tuple[Decay, Decay] = (0.9, 0.999),
    eps: NonNegativeFloat = 1e-8,
    weight_decay: NonNegativeFloat = 1e-2,
    amsgrad: bool = False,
    maximize: bool = False,
) -> torch.optim.AdamW:
    """Adam whose weight decay shrinks the parameters directly (torch.optim.AdamW)."""
    return torch.optim.AdamW(
        parameters,
        lr=lr,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
        amsgrad=amsgrad,
        maximize=maximize,
    )


# torch's AdamW is an Adam whose groups carry decoupled_weight_decay=True: one Update serves both.
certify(torch.optim.AdamW)(AdamUpdate)
