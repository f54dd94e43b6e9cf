"""Redraw: parameters and buffers of a model drawn anew, as its modules do it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from metaloss.errors import InputError
from metaloss.problem.problem import Problem


def redraw_by_modules(problem: Problem) -> Callable[[], None]:
    """A function that draws every trained parameter anew, as the module that owns it does.

    A module of one's own says how by a method `redraw()`, or `reset_parameters()` as torch's have
    it: it draws the module's own parameters in place. The parts of a module come before it, as they
    are built. Parameters that are not trained stay: a frozen backbone may have come a long way.

    Raises:
        InputError: a module that owns one has no such method.
    """
    trained = set(problem.theta)
    draws: list[Callable[[], object]] = []
    touched: list[nn.Parameter] = []
    for module in _parts_first(problem.model):
        own = [*module.parameters(recurse=False)]
        draw = _drawing(module)
        owns = any(p in trained for p in own)
        if owns and draw is None:
            raise InputError(
                f"{type(module).__name__} owns parameters and has no reset_parameters(): write it "
                "a method `redraw` that draws them anew, or give `redraw`, a function that draws "
                "those of the model"
            )
        # torch.nn.Transformer owns none, and draws those of its parts once more.
        if draw is not None and (owns or hasattr(module, "_reset_parameters")):
            draws.append(draw)
            touched += module.parameters()
    frozen = [p for p in dict.fromkeys(touched) if p not in trained]

    def redraw() -> None:
        kept = [p.detach().clone() for p in frozen]
        for draw in draws:
            draw()
        with torch.no_grad():
            for parameter, value in zip(frozen, kept, strict=True):
                parameter.copy_(value)

    return redraw


def _drawing(module: nn.Module) -> Callable[[], object] | None:
    """The method that draws a module's own parameters, if it has one."""
    names = ["redraw", "reset_parameters"]
    if type(module).__module__.startswith("torch.nn"):
        names.append("_reset_parameters")  # attention's, and the Transformer's
    found = (getattr(module, name, None) for name in names)
    return next((method for method in found if callable(method)), None)


def _parts_first(model: nn.Module) -> Iterator[nn.Module]:
    """All modules once, each after its parts, which are in their order."""

    def walk(module: nn.Module) -> Iterator[nn.Module]:
        if module not in seen:
            seen.add(module)
            for part in module.children():
                yield from walk(part)
            yield module

    seen: set[nn.Module] = set()
    yield from walk(model)
