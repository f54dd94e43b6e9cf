"""A base optimizer as a plugin: AdaBelief (Zhuang et al., 2020), whose step is written once."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from metaloss.base_optimizers.base import BASE_OPTIMIZERS, Hyperparameters, State, Update, certify


class AdaBelief(torch.optim.Optimizer):
    """Adam whose step is long where the gradient is what its running mean foretold."""

    def __init__(self, params: Iterable[Tensor], lr: float, betas: tuple, eps: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Takes one step; not with a closure."""
        for group in self.param_groups:
            for theta in group["params"]:
                if theta.grad is not None:
                    after, state = UPDATE.step(theta, theta.grad, self.state[theta], group)
                    theta.copy_(after)
                    self.state[theta].update(state)


@certify(AdaBelief)
class AdaBeliefUpdate(Update):
    """m' = β₁m + (1-β₁)g;  s' = β₂s + (1-β₂)(g-m')² + ε;  θ' = θ - lr·(m'/c₁)/(√(s'/c₂) + ε).

    c₁ = 1-β₁ᵗ and c₂ = 1-β₂ᵗ at step t (Algorithm 2). The derivatives are taken by autograd.
    """

    def step(
        self, theta: Tensor, grad: Tensor, state: State, hyper: Hyperparameters
    ) -> tuple[Tensor, State]:
        (beta1, beta2), eps = hyper["betas"], hyper["eps"]
        time = state.get("step", 0.0) + 1
        moment = beta1 * state.get("exp_avg", 0.0) + (1 - beta1) * grad
        belief = beta2 * state.get("exp_avg_var", 0.0) + (1 - beta2) * (grad - moment) ** 2 + eps
        denominator = (belief / (1 - beta2**time)).sqrt() + eps
        after = theta - hyper["lr"] / (1 - beta1**time) * moment / denominator
        return after, {"step": time, "exp_avg": moment, "exp_avg_var": belief}


UPDATE = AdaBeliefUpdate()


@BASE_OPTIMIZERS.register("adabelief")
def adabelief(
    parameters: Iterable[Tensor],
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-16,
) -> AdaBelief:
    """AdaBelief without weight decay."""
    return AdaBelief(parameters, lr, betas, eps)
