"""A step that a torch.optim object has made, and the ways back through it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from metaloss.base_optimizers.base import (
    GroupStep,
    Hyperparameters,
    State,
    Update,
    pull,
    update_of,
)
from metaloss.errors import UnsupportedModelError
from metaloss.machine.distributed import local

#: How much of the optimizer's state before a step is kept: nothing, what the derivatives of the
#: step in θ, g and s depend on, or all of it.
KeepState = Literal["nothing", "derivative", "values"]


@dataclass(frozen=True)
class TakenStep:
    """One step that a torch.optim object has made, with what its derivatives need.

    Vectors over θ are lists aligned with `theta`; None stands for zero (a parameter that the model
    did not use has no gradient, and torch.optim leaves it alone). Of a sharded θ they are this
    process's parts.
    """

    optimizer: torch.optim.Optimizer
    update: Update  #: its step, to be differentiated
    theta: Sequence[nn.Parameter]  #: what is differentiated through; the live ones, after the step
    keep: KeepState
    theta_before: list[Tensor]
    state_before: list[State]  #: aligned with `theta`; empty if nothing is kept
    first: list[bool]  #: whether a parameter had no state before
    #: The settings of each group at that step, and the places in `theta` of those that moved.
    groups: list[tuple[Hyperparameters, list[int]]]

    def cotangent(self, v: Sequence[Tensor | None]) -> list[Tensor | None]:
        """u = (∂θ'/∂g)ᵀ v. Valid until the optimizer steps again."""
        u: list[Tensor | None] = [None] * len(v)
        for hyper, places in self.groups:
            given = [(i, value) for i in places if (value := v[i]) is not None]
            if given:
                step = self._seen_from_after(hyper, [i for i, _ in given])
                results = self.update.cotangent(step, [value for _, value in given])
                for (i, _), result in zip(given, results, strict=True):
                    u[i] = result
        return u

    def scale(self) -> float | None:
        """c if u = c·v by one number for all parameters that have a gradient; else None."""
        scales = {
            self.update.scale(self._seen_from_after(hyper, places))
            for hyper, places in self.groups
            if places
        }
        return scales.pop() if len(scales) == 1 else None

    def direction(self, ratios: Sequence[float]) -> list[Tensor | None]:
        """∂θ'/∂α for groups with lr = ratio · α. Valid until the optimizer steps again."""
        directions: list[Tensor | None] = [None] * len(self.theta)
        for (hyper, places), ratio in zip(self.groups, ratios, strict=True):
            if places:
                results = self.update.direction(self._seen_from_after(hyper, places))
                for i, result in zip(places, results, strict=True):
                    directions[i] = result if ratio == 1 or result is None else ratio * result
        return directions

    def differentiable(
        self,
        theta: Sequence[Tensor],
        grad: Sequence[Tensor | None],
        state: Sequence[State],
        alpha: Tensor | None = None,
        ratios: Sequence[float] | None = None,
    ) -> tuple[list[Tensor], list[State]]:
        """θ', s' once more, as differentiable functions of the θ, g and s that are given.

        Args:
            theta, grad, state: at which U is taken; aligned with θ.
            alpha: the groups' common learning rate, a scalar tensor, to differentiate in it too; by
                default the groups' own rates are constants.
            ratios: by group, lr = ratio · α; all 1 by default.
        """
        theta_after, state_after = list(theta), list(state)
        for (hyper, places), ratio in zip(self.groups, self._ratios(ratios), strict=True):
            lr = None if alpha is None else alpha * ratio
            for i in places:
                gradient = grad[i]
                assert gradient is not None
                theta_after[i], state_after[i] = self._step(theta[i], gradient, state[i], hyper, lr)
        return theta_after, state_after

    def pullback(
        self,
        grad: Sequence[Tensor | None],
        theta_bar: Sequence[Tensor | None],
        state_bar: Sequence[dict[str, Tensor]],
        ratios: Sequence[float] | None = None,
    ) -> tuple[list[Tensor | None], list[Tensor | None], list[dict[str, Tensor]], Tensor | None]:
        """The transposed derivative of the whole step, by autograd through U.

        Args:
            grad: g of that step.
            theta_bar: cotangent of θ'.
            state_bar: cotangents of the tensors in s', by name; {} for zero.
            ratios: by group, lr = ratio · α, to have the cotangent of α too; the step must then
                have been taken with keep="values".

        Returns:
            The cotangents of θ (through U alone, not through g), of g, of s, and of α (a float64
            scalar; None without `ratios`, or where α had no part).
        """
        if ratios is not None and self.keep != "values":
            raise ValueError("the cotangent of the learning rate needs keep='values'")
        theta_out, state_out = list(theta_bar), list(state_bar)
        grad_out: list[Tensor | None] = [None] * len(theta_bar)
        alpha_out: Tensor | None = None
        for (hyper, places), ratio in zip(self.groups, self._ratios(ratios), strict=True):
            lr = (
                None
                if ratios is None
                else torch.tensor(
                    hyper["lr"],
                    dtype=torch.float64,
                    device=self.theta[0].device,
                    requires_grad=True,
                )
            )
            for i in places:
                theta, gradient = _leaf(self.theta_before[i]), _leaf(grad[i])
                state = {
                    key: _leaf(value) if torch.is_tensor(value) else value
                    for key, value in self.state_before[i].items()
                }
                names = [key for key, value in state.items() if torch.is_tensor(value)]
                after, state_after = self._step(theta, gradient, state, hyper, lr)
                leaves = [theta, gradient, *(state[key] for key in names)]
                ends = [(state_after[key], bar) for key, bar in state_bar[i].items()]
                theta_out[i], grad_out[i], *bars = pull(
                    [(after, theta_bar[i]), *ends], leaves if lr is None else [*leaves, lr]
                )
                if lr is not None and (lr_bar := bars.pop()) is not None:
                    alpha_out = ratio * lr_bar + (0.0 if alpha_out is None else alpha_out)
                state_out[i] = {
                    key: bar for key, bar in zip(names, bars, strict=True) if bar is not None
                }
        return theta_out, grad_out, state_out, alpha_out

    def _step(
        self,
        theta: Tensor,
        grad: Tensor,
        state: State,
        hyper: Hyperparameters,
        lr: Tensor | None,
    ) -> tuple[Tensor, State]:
        """U of one parameter; at `lr`, in the parameter's precision, if it is given."""
        if lr is not None:
            hyper = {**hyper, "lr": lr.to(theta)}
        return self.update.step(theta, grad, state, hyper)

    def _ratios(self, ratios: Sequence[float] | None) -> Sequence[float]:
        return [1.0] * len(self.groups) if ratios is None else ratios

    def _seen_from_after(self, hyper: Hyperparameters, places: list[int]) -> GroupStep:
        theta = [self.theta[i] for i in places]
        return GroupStep(
            hyper=hyper,
            theta=[self.theta_before[i] for i in places],
            grad=[local(p.grad) for p in theta],  # type: ignore[arg-type]
            state=[_local(self.optimizer.state.get(p, {})) for p in theta],
            first=[self.first[i] for i in places],
            before=[] if self.update.closed_form else [self.state_before[i] for i in places],
        )


def take_step(
    optimizer: torch.optim.Optimizer, theta: Sequence[nn.Parameter], keep: KeepState
) -> TakenStep:
    """Lets the optimizer step along the gradients in `.grad`.

    Args:
        optimizer: makes the step.
        theta: the parameters that are differentiated through.
        keep: how much of the state before the step to keep, for `pullback` and `differentiable`.

    Raises:
        UncertifiedOptimizerError: see `update_of`.
        UnsupportedModelError: a gradient is sparse.
    """
    update, states = update_of(optimizer), optimizer.state
    if keep == "nothing" and not update.closed_form:
        keep = "derivative"
    place = {parameter: i for i, parameter in enumerate(theta)}
    taken = TakenStep(
        optimizer,
        update,
        theta,
        keep,
        # Copies, whatever the update: the forward-mode pass is taken at the θ before the step.
        theta_before=[local(p.detach()).clone() for p in theta],
        state_before=[]
        if keep == "nothing"
        else [_copy(_local(states.get(p, {})), update, keep) for p in theta],
        first=[not _has_tensors(states.get(p, {})) for p in theta],
        # Before the step: a scheduler changes settings in place, an optimizer its gradients.
        groups=[
            (
                _settings(group),
                [place[p] for p in group["params"] if p in place and _has_gradient(p)],
            )
            for group in optimizer.param_groups
        ],
    )
    # The user's own object makes the step, not `update.step`: only so are θ' and its state those of
    # plain training to the bit.
    optimizer.step()
    return taken


def _local(state: State) -> State:
    """A parameter's state, of which this process may have a part."""
    return {key: local(value) if torch.is_tensor(value) else value for key, value in state.items()}


def _copy(state: State, update: Update, keep: KeepState) -> State:
    """A parameter's state, its counters as numbers.

    The derivatives of a linear U in θ, g and s depend on no values: one zero, expanded, stands in
    for each tensor and takes no memory.
    """
    stand_in = update.linear and keep == "derivative"
    copy: State = {}
    for key, value in state.items():
        if key in update.counters:
            copy[key] = float(value)
        elif torch.is_tensor(value):
            copy[key] = value.new_zeros(()).expand_as(value) if stand_in else value.detach().clone()
        else:
            copy[key] = value
    return copy


def _has_gradient(parameter: nn.Parameter) -> bool:
    if parameter.grad is None:
        return False
    if parameter.grad.is_sparse:
        raise UnsupportedModelError(
            f"a parameter of shape {tuple(parameter.shape)} has a sparse gradient, which no "
            "forward-mode pass follows: build its embedding with sparse=False"
        )
    return True


def _has_tensors(state: State) -> bool:
    """Whether a parameter has optimizer state; SGD without momentum leaves a None behind."""
    return any(torch.is_tensor(value) for value in state.values())


def _settings(group: dict[str, Any]) -> Hyperparameters:
    """A group's settings as numbers: torch.optim takes tensors too, and schedulers fill them."""
    settings = {**group}
    del settings["params"]
    for key, value in settings.items():
        if isinstance(value, (Tensor, tuple)):
            settings[key] = _number(value)
    return settings


def _number(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_number, value))
    return value.item() if torch.is_tensor(value) and value.numel() == 1 else value


def _leaf(value: Tensor | None) -> Tensor:
    assert value is not None
    return value.detach().requires_grad_()
