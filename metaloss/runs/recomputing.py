"""Recomputing: modules whose activations are computed again in the backward pass, by name."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from metaloss.errors import ArgumentError, did_you_mean


def recompute(model: nn.Module, patterns: Sequence[str]) -> None:
    """Has the modules whose names match one of the patterns keep no activations, but their inputs.

    Of modules one within the other the outer one alone: the inner one's are gone with it.

    Raises:
        ArgumentError: a pattern matches no module.
    """
    names = [name for name, _ in model.named_modules() if name]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = did_you_mean(pattern, names)
            asked = f"patterns of the backbone's modules{near} · known: {', '.join(names)}"
            raise ArgumentError("checkpointed", tuple(patterns), asked)
    found: list[str] = []
    for name, module in model.named_modules():
        within = any(name.startswith(f"{outer}.") for outer in found)
        if name and not within and any(fnmatchcase(name, pattern) for pattern in patterns):
            found.append(name)
            module.forward = partial(  # type: ignore[method-assign]
                checkpoint, module.forward, use_reentrant=False
            )
