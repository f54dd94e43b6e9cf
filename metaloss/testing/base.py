"""What the contract checks share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class ContractError(AssertionError):
    """A component does not keep its kind's contract."""


def require(holds: bool | Tensor, what: str) -> None:
    """Raises ContractError, saying what does not hold, unless it (a bool or a scalar) does."""
    if not bool(holds):
        raise ContractError(what)


@contextmanager
def float64() -> Iterator[None]:
    """Within it, float64 is the default and the global generator starts from 0."""
    before = torch.get_default_dtype()
    state = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
        torch.set_rng_state(state)
