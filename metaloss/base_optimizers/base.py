"""What a base optimizer is: a recipe, called with parameters, that returns a torch.optim object.

Contract: `recipe(parameters, lr, ...) -> torch.optim.Optimizer`; the arguments carry torch.optim's
own names and defaults; the returned class has an `Update`, below, that equals its
step. `metaloss.testing.check_base_optimizer` holds a recipe to it.

torch.optim's switches `foreach`, `fused` and `capturable` change no step and are not among the
arguments; an optimizer that was built with them is used as it is.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.optim import optimizer as torch_optimizer

from metaloss.config.registry import Registry
from metaloss.errors import UncertifiedOptimizerError

BASE_OPTIMIZERS = Registry("base_optimizers", supplied=("parameters",))


Hyperparameters = dict[str, Any]


State = dict[str, Any]


@dataclass(frozen=True)
class GroupStep:
    """A step of one parameter group, seen from after it; the lists are aligned with each other."""

    hyper: Hyperparameters  #: the group's settings at that step ("lr", "momentum", ...)
    theta: list[Tensor]  #: parameters before the step
    grad: list[Tensor]  #: their gradients g
    state: list[State]  #: optimizer state after the step (the live one, not a copy)
    first: list[bool]  #: whether the parameter had no optimizer state before
    before: list[State]  #: optimizer state before the step; empty if the update is a closed form


class Update(ABC):
    """The step of one torch.optim class, in which each parameter goes its own way.

    `step` is all that an author has to write; its derivatives are then taken by autograd. A
    subclass may give them in closed form instead, which saves the copy of the state before the step
    and the second computation of it.
    """

    #: True if U is linear in (θ, g, s): its derivatives in them then need no values of the state.
    linear = False
    #: Scalars of the state that no gradient enters; `step` has them as plain numbers.
    counters: tuple[str, ...] = ("step",)
    #: True if `cotangent` and `direction` are computed from what is there after the step.
    closed_form = False
    #: True if in the step and its derivatives Python computes with nothing but the settings, so
    #: that a CUDA graph of them holds for the next step too.
    recordable = False

    @abstractmethod
    def step(
        self, theta: Tensor, grad: Tensor, state: State, hyper: Hyperparameters
    ) -> tuple[Tensor, State]:
        """θ' and s' from θ, g and s, differentiable in each of them and in the learning rate.

        Where U has a kink or a jump, the derivative is the one that holds almost everywhere; where
        a gradient is exactly zero, it is finite.

        Args:
            theta, grad: of one parameter.
            state: what the optimizer keeps for it, under the same names; empty before the first
                step, where the optimizer makes it in that step.
            hyper: the group's settings; "lr" may be a scalar tensor.
        """

    def initial_state(self, theta: Tensor, hyper: Hyperparameters) -> State:
        """The state made for a parameter, of any shape, when the optimizer is built; else {}."""
        return {}

    def cotangent(self, step: GroupStep, v: list[Tensor]) -> list[Tensor | None]:
        """u = (∂θ'/∂g)ᵀ v, of θ's shapes, finite also where a gradient is zero; None is zero."""
        u: list[Tensor | None] = []
        for theta, grad, state, value in zip(step.theta, step.grad, step.before, v, strict=True):
            leaf = grad.detach().requires_grad_()
            with torch.enable_grad():
                after, _ = self.step(theta, leaf, state, step.hyper)
            u += pull([(after, value)], [leaf])
        return u

    def scale(self, step: GroupStep) -> float | None:
        """c if u = c·v, one number for the whole group; else None."""
        return None

    def direction(self, step: GroupStep) -> list[Tensor | None]:
        """∂θ'/∂lr, of θ's shapes: mostly the negative update direction; None stands for zero."""
        directions: list[Tensor | None] = []
        with forward_ad.dual_level():
            for theta, grad, state in zip(step.theta, step.grad, step.before, strict=True):
                lr = theta.new_tensor(step.hyper["lr"])
                lr = forward_ad.make_dual(lr, torch.ones_like(lr))  # type: ignore[no-untyped-call]
                after, _ = self.step(theta, grad, state, {**step.hyper, "lr": lr})
                tangent = forward_ad.unpack_dual(after).tangent  # type: ignore[no-untyped-call]
                directions.append(tangent)
        return directions


def pull(
    ends: Sequence[tuple[Any, Tensor | None]], leaves: Sequence[Tensor]
) -> list[Tensor | None]:
    """Cotangents of the leaves, of their shapes, from those of the ends; None stands for zero.

    An end may be a constant, or a plain number, and have no part in them.
    """
    felt = [
        (end, bar)
        for end, bar in ends
        if bar is not None and torch.is_tensor(end) and end.requires_grad
    ]
    if not felt:
        return [None] * len(leaves)
    outputs, bars = zip(*felt, strict=True)
    return list(torch.autograd.grad(outputs, leaves, bars, allow_unused=True))


_UPDATES: dict[type[torch.optim.Optimizer], Update] = {}


#: Classes of torch.optim that have no `Update` here, and why.
_WITHOUT_UPDATE: dict[type[torch.optim.Optimizer], str] = {
    torch.optim.Adafactor: "its step is not elementwise: it divides by the means of squared "
    "gradients over rows and columns, and by norms of whole tensors",
    torch.optim.Muon: "its step is not elementwise: it orthogonalises whole matrices, in bfloat16",
    torch.optim.LBFGS: "its step evaluates the loss again, through a closure",
    torch.optim.SparseAdam: "it takes sparse gradients only, which no forward-mode pass follows",
}


def certify(optimizer: type[torch.optim.Optimizer]) -> Callable[[type[Update]], type[Update]]:
    """A class decorator: this `Update` is the step of that class, and of no subclass of it."""

    def enter(update: type[Update]) -> type[Update]:
        _UPDATES[optimizer] = update()
        return update

    return enter


def certified_optimizers() -> list[type[torch.optim.Optimizer]]:
    """The optimizer classes with a registered `Update`."""
    return list(_UPDATES)


def update_of(optimizer: torch.optim.Optimizer) -> Update:
    """The `Update` of an optimizer object.

    Of torch.optim's switches, `foreach`, `fused` and `capturable` choose how the same step is
    computed, and make no difference here.

    Raises:
        UncertifiedOptimizerError: its class has none (a subclass of a certified class may step
            differently, so it is refused too), it has hooks around its step, its step was replaced
            by another function, it was built with `differentiable=True`, or it holds complex
            parameters.
    """
    kind = type(optimizer)
    if kind not in _UPDATES:
        why = f" ({_WITHOUT_UPDATE[kind]})" if kind in _WITHOUT_UPDATE else ""
        within = getattr(optimizer, "optimizer", None)
        if type(within) in _UPDATES:
            why = f", which is around a {type(within).__name__}: give that, its `optimizer`"
        known = ", ".join(sorted(known.__name__ for known in _UPDATES))
        raise UncertifiedOptimizerError(
            f"no certified meta-gradient for {kind.__module__}.{kind.__qualname__}{why} · "
            f"certified: {known} · another optimizer needs an Update, registered with "
            "metaloss.base_optimizers.base.certify"
        )
    hooks = (
        optimizer._optimizer_step_pre_hooks,
        optimizer._optimizer_step_post_hooks,
        torch_optimizer._global_optimizer_pre_hooks,
        torch_optimizer._global_optimizer_post_hooks,
    )
    if any(hooks):
        raise UncertifiedOptimizerError(
            f"the {kind.__name__} has step hooks, and what they change in a step cannot "
            "be followed: remove them"
        )
    replaced = _replaced_step(optimizer)
    if replaced is not None:
        raise UncertifiedOptimizerError(
            f"the {kind.__name__}'s step was replaced on this object by {replaced}, and what that "
            "does to a step cannot be followed: remove it, and give what it does to gradients as "
            "`gradient_transform`"
        )
    for group in optimizer.param_groups:
        if group.get("differentiable"):
            raise UncertifiedOptimizerError(
                f"the {kind.__name__} was built with differentiable=True, which torch needs to "
                "differentiate its own step: leave it out, the meta-gradient does without"
            )
        if any(parameter.is_complex() for parameter in group["params"]):
            raise UncertifiedOptimizerError(
                f"the {kind.__name__} holds a complex parameter: real ones only"
            )
    return _UPDATES[kind]


def _replaced_step(optimizer: torch.optim.Optimizer) -> str | None:
    """What stands in the place of its class's step on an optimizer object, if it does more.

    Of what torch's learning rate schedulers put there is known that it does not: it notes that the
    step was made.
    """
    function = vars(optimizer).get("step")
    while getattr(function, "_wrapped_by_lr_sched", False):
        function = getattr(function, "__wrapped__", None)
    function = getattr(function, "__func__", function)
    if function is None or function is type(optimizer).step:
        return None
    name = getattr(function, "__qualname__", type(function).__name__)
    return f"{getattr(function, '__module__', '')}.{name}".lstrip(".")


def reset(optimizer: torch.optim.Optimizer) -> None:
    """Puts the optimizer's state back to what it was when it was built."""
    update = update_of(optimizer)
    optimizer.state.clear()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if state := update.initial_state(parameter, group):
                optimizer.state[parameter] = state
