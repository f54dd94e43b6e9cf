"""The scale of a loss, by trainings on multiples of it: one number, and a long look ahead."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from metaloss.base_optimizers.base import reset
from metaloss.engines.base import Draw
from metaloss.errors import InputError
from metaloss.problem import snapshot
from metaloss.problem.health import TRIAL_BATCHES, mean_task_loss, that_count
from metaloss.problem.meta_parameters import MetaParameters
from metaloss.problem.problem import Problem
from metaloss.representations.base import Representation

WORTH = 0.1  #: a larger step off the scale that was learned has to lower the task loss by so much
ABOVE = 0.1  #: how far above its start the task loss may be on the way, relatively: for noise
FARTHEST = 8  #: doublings, or halvings, at most
LOOKS = 4  #: at a training on a larger loss: after 1/16, 1/8, 1/4 and 1/2 of it


def search(
    problem: Problem,
    meta: MetaParameters,
    draw_train: Draw,
    draw_objective: Draw,
    redraw: Callable[[], None],
    steps: int,
) -> float:
    """Multiplies the learned loss, or the learned rate, by the power of 2 that trains best.

    Meta-steps through K base steps ask what is best after K steps. Where noise and curvature make
    small steps the better ones at once, and large ones later (Wu et al., 2018: the short-horizon
    bias), such a loss is too small, and no meta-gradient says so. So a model drawn anew is trained
    on the loss, on 2, 4, ... times it while the task loss at the end falls, and on a half, a
    quarter, ... where doubling makes it worse at once. Of the multiples whose task loss is within a
    tenth of the least, that nearest to 1 is taken: short trainings like large steps too well.

    A larger loss is out where the task loss rises above its start on the way. Such steps shatter
    the model first, and it is luck how well what is left trains: another θ_0 may not recover.

    θ and the optimizer's state are afterwards those of some training.

    Args:
        redraw: draws the model's parameters and buffers anew, in place.
        steps: base steps of each training.

    Returns:
        The multiple; 1 where nothing is learned that can be multiplied.
    """
    multiply = multiplier(problem, meta)
    if multiply is None:
        return 1.0
    redraw()
    reset(problem.optimizer)
    judged = that_count(problem, [draw_objective() for _ in range(TRIAL_BATCHES)])
    start = mean_task_loss(problem, judged)
    fresh = snapshot.take(problem)
    ends: dict[int, float] = {}

    def end(power: int) -> float:
        """The task loss after a training on 2^power times the loss; inf where that is out."""
        snapshot.put_back(problem, fresh)
        reset(problem.optimizer)
        ends[power] = math.inf
        try:
            multiply(2.0**power)
        except InputError:  # no learning rate of the parametrisation's range is so large, or small
            return math.inf
        looks = {steps >> part for part in range(LOOKS + 1 if power > 0 else 1)}
        found = math.inf
        for step in range(1, steps + 1):
            problem.plain_step(draw_train())
            if step in looks:
                found = mean_task_loss(problem, judged)
                if not found <= start + ABOVE * abs(start):  # also where it is NaN
                    return math.inf
        if found < start:
            ends[power] = found
        return ends[power]

    least = end(0)
    if math.isinf(least):  # a loss that trains nothing is left to its trial, which says so
        multiply(1.0)
        return 1.0
    for direction in (1, -1):
        for power in range(direction, direction * (FARTHEST + 1), direction):
            if not end(power) < least:
                break
            least = ends[power]
        if least < ends[0]:
            break
    near = least + WORTH * abs(least)  # a likelihood of values may be negative
    multiple = 2.0 ** min((power for power in ends if ends[power] <= near), key=abs)
    multiply(multiple)
    return multiple


def multiplier(problem: Problem, meta: MetaParameters) -> Callable[[float], None] | None:
    """What makes the learned rate, or else the learned loss, a multiple of what it is now.

    None where that changes no step, as with an optimizer that divides gradients by their size, or
    where no learned parameters multiply the loss.
    """
    if meta.rate is not None:
        return partial(_multiply_rate, meta, meta.x.clone())
    loss = problem.loss
    if divides(problem.optimizer) or not isinstance(loss, Representation) or not loss.linear_in:
        return None
    if not meta.named_phi.keys() >= {*loss.linear_in}:
        return None
    factors = [meta.named_phi[name] for name in loss.linear_in]
    return partial(_multiply_loss, factors, [factor.detach().clone() for factor in factors])


def _multiply_rate(meta: MetaParameters, now: Tensor, multiple: float) -> None:
    assert meta.rate is not None
    meta.x.copy_(now)
    if multiple != 1:  # to encode what was decoded would round
        meta.x.fill_(meta.rate.encode(multiple * float(meta.rate.decode(now))))
    meta.write_rate()


@torch.no_grad()
def _multiply_loss(factors: Sequence[Tensor], now: Sequence[Tensor], multiple: float) -> None:
    for factor, value in zip(factors, now, strict=True):
        factor.copy_(multiple * value)


def divides(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer divides gradients by their size, or takes their signs alone."""
    return not isinstance(optimizer, (torch.optim.SGD, torch.optim.ASGD))
