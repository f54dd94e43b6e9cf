"""Reentrant activation checkpoints, torch.utils.checkpoint(..., use_reentrant=True), are refused.

They differentiate their block by a backward() of their own, within no_grad: torch.autograd.grad
does not pass through it, and where no input of the block requires a gradient, as in a model's first
block, torch warns and leaves the block's parameters without one.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from metaloss.errors import UnsupportedModelError

#: What torch says of the two cases.
_WITHOUT_GRADIENT = "None of the inputs have requires_grad=True"
_WITHIN_GRAD = "When use_reentrant=True, torch.utils.checkpoint is incompatible"


@contextmanager
def refusing_reentrant_checkpoints() -> Iterator[None]:
    """Within it belong a forward pass of the model and the backward pass to its parameters.

    Raises:
        UnsupportedModelError: the model has a reentrant checkpoint.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("error", _WITHOUT_GRADIENT, UserWarning)
        try:
            yield
        except (UserWarning, RuntimeError) as error:
            if not str(error).startswith((_WITHOUT_GRADIENT, _WITHIN_GRAD)):
                raise
            raise UnsupportedModelError(
                "the model has reentrant activation checkpoints, whose gradients do not pass "
                "through torch.autograd.grad: give its checkpoints use_reentrant=False"
            ) from error
