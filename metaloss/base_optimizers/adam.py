"""Adam (Kingma & Ba, 2015), with every option of torch.optim.Adam."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from metaloss import checks
from metaloss.base_optimizers.base import BASE_OPTIMIZERS
from metaloss.update import GroupStep, Hyperparameters, State, Update, certify


@BASE_OPTIMIZERS.register("adam")
def adam(
    parameters: Iterable[Tensor],
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    maximize: bool = False,
) -> torch.optim.Adam:
    """Adam; its weight decay is added to the gradient (torch.optim.Adam)."""
    checks.number(lr, "base_optimizers.adam.lr")
    return torch.optim.Adam(
        parameters,
        lr=lr,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
        amsgrad=amsgrad,
        maximize=maximize,
    )


@certify(torch.optim.Adam)
class AdamUpdate(Update):
    """m' = β₁m + (1-β₁)g̃;  q' = β₂q + (1-β₂)g̃²;  θ' = θ - lr/c₁ · m' / (√(q'/c₂) + ε).

    c₁ = 1-β₁ᵗ and c₂ = 1-β₂ᵗ at step t, g̃ = ±g + λθ; AMSGrad puts the largest q' so far for q'.
    """

    def step(
        self, theta: Tensor, grad: Tensor, state: State, hyper: Hyperparameters
    ) -> tuple[Tensor, State]:
        beta1, beta2 = hyper["betas"]
        time = state.get("step", 0.0) + 1
        grad = -grad if hyper["maximize"] else grad
        decay = hyper["weight_decay"]
        if decay != 0 and not decoupled(hyper):
            grad = grad.add(theta, alpha=decay)
        moment = beta1 * state.get("exp_avg", 0.0) + (1 - beta1) * grad
        square = beta2 * state.get("exp_avg_sq", 0.0) + (1 - beta2) * grad * grad
        after = {"step": time, "exp_avg": moment, "exp_avg_sq": square}
        if hyper["amsgrad"]:
            largest = state.get("max_exp_avg_sq", torch.zeros_like(theta))
            square = after["max_exp_avg_sq"] = torch.maximum(largest, square)
        # The square root has no derivative at 0, where g and all gradients before it were 0: there
        # θ' depends on g through m' alone, so the root is cut out of the graph.
        zero = square == 0
        root = torch.where(zero, 1.0, square).sqrt().masked_fill(zero, 0.0)
        denominator = root / (1 - beta2**time) ** 0.5 + hyper["eps"]
        if decay != 0 and decoupled(hyper):
            theta = theta * (1 - hyper["lr"] * decay)
        return theta - hyper["lr"] / (1 - beta1**time) * moment / denominator, after

    def cotangent(self, step: GroupStep, v: list[Tensor]) -> list[Tensor]:
        return [self._cotangent_of_one(step, k, value) for k, value in enumerate(v)]

    def _cotangent_of_one(self, step: GroupStep, k: int, v: Tensor) -> Tensor:
        """dθ'/dg̃ = -lr/c₁ · [(1-β₁) - m'/(√(q'/c₂) + ε) · (1-β₂) g̃/(√(q'c₂))] / (√(q'/c₂) + ε)."""
        hyper, state = step.hyper, step.state[k]
        beta1, beta2 = hyper["betas"]
        time = float(state["step"])
        bias1, bias2 = 1 - beta1**time, 1 - beta2**time
        grad = -step.grad[k] if hyper["maximize"] else step.grad[k]
        if hyper["weight_decay"] != 0 and not decoupled(hyper):
            grad = grad.add(step.theta[k], alpha=hyper["weight_decay"])
        square = state["max_exp_avg_sq"] if hyper["amsgrad"] else state["exp_avg_sq"]
        root = square.sqrt()
        denominator = (root / bias2**0.5).add_(hyper["eps"])
        through_square = grad.mul(1 - beta2).div_(root).div_(bias2**0.5)
        # 0/0 where g and all gradients before it were 0, with limit 0; with AMSGrad, g has no part
        # in an older maximum.
        without = square == 0
        if hyper["amsgrad"]:
            without |= state["exp_avg_sq"] < square
        through_square.masked_fill_(without, 0.0)
        slope = state["exp_avg"].div(denominator).mul_(through_square).neg_().add_(1 - beta1)
        sign = 1.0 if hyper["maximize"] else -1.0
        return slope.div_(denominator).mul_(v).mul_(sign * hyper["lr"] / bias1)

    def direction(self, step: GroupStep) -> list[Tensor]:
        hyper = step.hyper
        beta1, beta2 = hyper["betas"]
        directions = []
        for theta, state in zip(step.theta, step.state, strict=True):
            time = float(state["step"])
            square = state["max_exp_avg_sq"] if hyper["amsgrad"] else state["exp_avg_sq"]
            denominator = (square.sqrt() / (1 - beta2**time) ** 0.5).add_(hyper["eps"])
            direction = (state["exp_avg"] / denominator).mul_(-1 / (1 - beta1**time))
            if hyper["weight_decay"] != 0 and decoupled(hyper):
                direction.sub_(theta, alpha=hyper["weight_decay"])
            directions.append(direction)
        return directions


def decoupled(hyper: Hyperparameters) -> bool:
    """Whether the weight decay shrinks θ by itself (AdamW) or enters through the gradient."""
    return bool(hyper.get("decoupled_weight_decay", False))
