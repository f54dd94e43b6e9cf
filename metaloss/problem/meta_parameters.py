"""The meta-parameters: what of a problem a meta-optimizer improves."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from metaloss.base_optimizers.rates.base import Rate
from metaloss.errors import InputError
from metaloss.problem.problem import Problem


class MetaParameters:
    """Parameters φ of the learned loss, the base learning rate α, or both.

    Args:
        problem: the base level.
        learn: patterns of names; the parameters of the loss that match one are learned, the others
            stay as they are. ("*",) takes all.
        rate: the parametrisation of a learned α, which starts at the optimizer's own; parameter
            groups keep the ratios of their learning rates, and a scheduler has no effect. None
            leaves the learning rate to the optimizer and its scheduler.

    Raises:
        InputError: a pattern matches no parameter; or the learning rate is 0, or not in the range
            of the parametrisation.
    """

    def __init__(
        self, problem: Problem, learn: Sequence[str] = ("*",), rate: Rate | None = None
    ) -> None:
        names = problem.named_phi
        for pattern in learn:
            if pattern != "*" and not any(fnmatchcase(name, pattern) for name in names):
                raise InputError(
                    f"learn = '{pattern}' matches no parameter of the loss · known: "
                    f"{', '.join(names) or 'none'}"
                )
        self.named_phi: dict[str, nn.Parameter] = {
            name: parameter
            for name, parameter in names.items()
            if any(fnmatchcase(name, pattern) for pattern in learn)
        }
        self.phi = list(self.named_phi.values())
        self.rate = rate
        self._optimizer = problem.optimizer  # its list of groups changes when it loads a state
        self._own: list[float] | None = None  # see `ratios`
        #: float64: at α = 1e-2, float32 would round away steps of 1e-5 by up to 1e-4 of their size.
        self.x = torch.zeros((), dtype=torch.float64)
        if rate is not None:
            groups = problem.optimizer.param_groups
            start = float(groups[0]["lr"])
            if start == 0:
                raise InputError(
                    "a learning rate that starts at 0 has no ratio to the other groups'"
                )
            self.x.fill_(rate.encode(start))
            self._own = [float(group["lr"]) / start for group in groups]

    @property
    def ratios(self) -> list[float] | None:
        """Learning rate of each group as a multiple of α; None where α is not learned.

        Those at the start, times what a schedule makes of the group's rate now ("scheduled").
        """
        if self._own is None:
            return None
        groups = zip(self._optimizer.param_groups, self._own, strict=True)
        return [own * float(group.get("scheduled", 1.0)) for group, own in groups]

    def write_rate(self) -> None:
        """Sets the optimizer's learning rates to the learned one, if there is one."""
        ratios = self.ratios
        if self.rate is None or ratios is None:
            return
        alpha = float(self.rate.decode(self.x))
        for group, ratio in zip(self._optimizer.param_groups, ratios, strict=True):
            group["lr"] = alpha * ratio

    def through_rate(self, alpha_bar: Tensor | None) -> Tensor | None:
        """dL/dx of dL/dα, both of shape [], where α is learned."""
        if self.rate is None or alpha_bar is None:
            return None
        x = self.x.detach().requires_grad_()
        return torch.autograd.grad(self.rate.decode(x), x, alpha_bar.to(x))[0]
