"""A loss in two factors, its scale and its shape, so that either can be learned alone."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from annotated_types import Gt
from torch import Tensor, nn

from metaloss.representations.base import REPRESENTATIONS, Representation

POINTS = 20  #: predictions at which the scale is taken, the midpoints of equal cells of (0, 1)


@REPRESENTATIONS.register("scale_shape")
class ScaleShape(Representation):
    """M = s · ℓ / S(ℓ): another representation ℓ, normalised to the scale 1, times a learned s.

    S(ℓ) is the root mean square of ∂ℓ/∂f over predictions f in (0, 1) at the targets 0 and 1, one
    output. s scales the base gradient as a learning rate would (paper, section 5.5), the rest is
    the loss's shape; M starts as ℓ. With the meta-optimizer's `learn = ("log_factor",)` a run
    learns the scale only, with `("loss.*",)` the shape only.

    Args:
        of: the name of ℓ's representation.
        settings: arguments of its constructor, beyond the defaults.
        limit: s stays within the factors 1/limit and limit of its start, a trust region on the
            loss's scale; None leaves it free.
    """

    def __init__(
        self,
        of: str = "nn",
        settings: dict[str, Any] | None = None,
        limit: Annotated[float, Gt(1)] | None = None,
    ) -> None:
        super().__init__()
        self.of = of
        self.settings = dict(settings or {})
        self.limit = limit
        self.loss = REPRESENTATIONS.build(of, self.settings)
        self.log_factor = nn.Parameter(torch.zeros(()))
        self.log_start: Tensor
        self.register_buffer("log_start", self._scale_of_loss().detach().log())

    @property
    def pairs(self) -> Literal["mean", "sum"] | None:  # type: ignore[override]
        return self.loss.pairs

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return self.scale() / self._scale_of_loss() * self.loss(prediction, target)

    def scale(self) -> Tensor:
        """s, shape []."""
        factor: Tensor = self.log_factor
        if self.limit is not None:
            most = math.log(self.limit)
            factor = most * (factor / most).tanh()
        return (self.log_start + factor).exp()

    @torch.enable_grad()
    def _scale_of_loss(self) -> Tensor:
        """S(ℓ), shape []; with a graph to the parameters of ℓ."""
        like = self.log_factor
        midpoints = (torch.arange(POINTS, dtype=like.dtype, device=like.device) + 0.5) / POINTS
        prediction = midpoints.repeat(2)[:, None].requires_grad_()
        target = torch.tensor([0.0, 1.0]).to(like).repeat_interleave(POINTS)[:, None]
        total = self.loss(prediction, target).sum()
        (slope,) = torch.autograd.grad(total, prediction, create_graph=True)
        return slope.square().mean().sqrt()
