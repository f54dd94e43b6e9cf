"""Redraw: parameters and buffers of a model drawn anew, as its modules do it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from metaloss.errors import InputError
from metaloss.problem.problem import Problem


def redraw_by_modules(problem: Problem) -> Callable[[], None]:
    """A function that draws every trained parameter anew by its module's `reset_parameters`.

    Parameters that are not trained stay: a frozen backbone may have come a long way.

    Raises:
        InputError: a module that owns one has no `reset_parameters`.
    """
    trained = set(problem.theta)
    owned = {m: list(m.parameters(recurse=False)) for m in problem.model.modules()}
    owners = {m: own for m, own in owned.items() if any(p in trained for p in own)}
    for owner in owners:
        if not callable(getattr(owner, "reset_parameters", None)):
            raise InputError(
                f"{type(owner).__name__} owns parameters and has no reset_parameters(): give "
                "`redraw`, a function that draws the model's parameters anew"
            )
    frozen = [p for own in owners.values() for p in own if p not in trained]

    def redraw() -> None:
        kept = [p.detach().clone() for p in frozen]
        for owner in owners:
            owner.reset_parameters()  # type: ignore[operator]
        with torch.no_grad():
            for parameter, value in zip(frozen, kept, strict=True):
                parameter.copy_(value)

    return redraw
