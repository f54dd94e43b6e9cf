"""timm's training transforms for a picture that is already a tensor of the task's size."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metaloss.errors import ArgumentError

#: What timm takes for what a task says itself, or for what comes after the transforms.
NOT_TAKEN = {
    **dict.fromkeys(("input_size", "is_training", "separate"), "what the task says itself"),
    **dict.fromkeys(("mean", "std", "normalize", "use_prefetcher"), "the task's mean, deviation"),
    **dict.fromkeys(
        ("re_prob", "re_mode", "re_count", "re_num_splits"), "('RandomErasing', {'p': ...}) after"
    ),
    **dict.fromkeys(("naflex", "patchify", "patch_size"), "pictures of one size"),
}


class TimmTransforms:
    """The transforms of `timm.data.create_transform(..., is_training=True)` up to normalisation.

    A random resized crop, flips, and RandAugment, AugMix or AutoAugment by timm's words
    (`auto_augment = "rand-m9-mstd0.5-inc1"`, "augmix-m5-w4-d2"), or colour jitter. Sizes are the
    picture's own. They draw from torch's, Python's and numpy's generators; all their numbers here
    follow from torch's, and the other two are as they were afterwards.

    Args:
        arguments: of `create_transform`.

    Raises:
        ArgumentError: it takes no such argument, or the task says it otherwise.
        TypeError, ValueError, AssertionError, KeyError: timm does not take them.
    """

    def __init__(self, **arguments: Any) -> None:
        for name in arguments:
            if name in NOT_TAKEN:
                raise ArgumentError("augment", {name: arguments[name]}, NOT_TAKEN[name])
        self._arguments = arguments
        self._by_shape: dict[torch.Size, Callable[[Any], Any]] = {}
        self._made(torch.Size((3, 32, 32)))

    def __call__(self, example: Tensor) -> Tensor:
        """A picture of bytes, [1 or 3, height, width] -> another of the same shape.

        Raises:
            ArgumentError: it is none of bytes.
        """
        from torchvision.transforms.v2 import functional

        if example.dtype != torch.uint8:
            asked = "torchvision's transforms by their names for pictures of more than 8 bits"
            raise ArgumentError("augment", "timm", asked)
        with _seeded(int(torch.randint(1 << 32, ()))):
            picture = self._made(example.shape)(functional.to_pil_image(example))
        return functional.pil_to_tensor(picture)

    def _made(self, shape: torch.Size) -> Callable[[Any], Any]:
        if shape not in self._by_shape:
            from timm.data import create_transform

            channels, height, width = shape
            first, second, _ = create_transform(  # the third makes numbers of it
                (channels, height, width), is_training=True, separate=True, **self._arguments
            )
            self._by_shape[shape] = lambda picture: second(first(picture))
        return self._by_shape[shape]

    def __getstate__(self) -> dict[str, Any]:
        return {"_arguments": self._arguments, "_by_shape": {}}  # made anew in another process


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Within it, Python's and numpy's generators begin at a seed; outside, they have not moved."""
    outside, of_numpy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(outside)
        np.random.set_state(of_numpy)
