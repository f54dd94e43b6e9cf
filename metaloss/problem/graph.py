"""What a pass has left in torch's graph of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def nodes(outputs: Tensor) -> Iterator[Any]:
    """All of a tensor's graph, each once."""
    ahead, seen = [outputs.grad_fn], set()
    while ahead:
        node = ahead.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            ahead += [before for before, _ in node.next_functions]


def by_functions(outputs: Tensor) -> bool:
    """Whether a torch.autograd.Function of others is in it, as hooks on modules are too."""
    functions = (getattr(node, "_forward_cls", None) for node in nodes(outputs))
    return any(f is not None and not f.__module__.startswith("metaloss.") for f in functions)


def dtypes(outputs: Tensor) -> set[torch.dtype]:
    """Those that the pass has computed in."""
    return {made.dtype for node in nodes(outputs) for made in node._input_metadata}
