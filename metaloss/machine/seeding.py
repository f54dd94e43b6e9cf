"""Randomness: one seed, independent streams, and the state of torch's global generators.

θ, φ, splits, batches and the rest each draw from a stream of their own, so that every method under
one seed starts from the same θ_0 and sees the same training batches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def stream(seed: int, name: str) -> torch.Generator:
    """A CPU generator that depends on the seed and the stream's name alone."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@contextmanager
def drawing_from(generator: torch.Generator) -> Iterator[None]:
    """Within it, whatever draws from torch's global CPU generator draws from this stream."""
    outside = torch.get_rng_state()
    torch.set_rng_state(generator.get_state())
    try:
        yield
    finally:
        generator.set_state(torch.get_rng_state())
        torch.set_rng_state(outside)


def global_state(device: torch.device) -> list[Tensor]:
    """The state of torch's global generators that a model on `device` may draw from (dropout).

    In a CUDA graph nothing may be drawn on the GPU, so its generator has no part.
    """
    states = [torch.get_rng_state()]
    if device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
        states.append(torch.cuda.get_rng_state(device))
    return states


def set_global_state(states: list[Tensor], device: torch.device) -> None:
    """Puts the global generators back to a state that `global_state` returned."""
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)


@contextmanager
def aside(device: torch.device) -> Iterator[None]:
    """Within it, what a model draws on a CPU moves nothing outside: masks of a pass on the side.

    Its numbers follow from where the generator stands, and are no others' numbers. On a GPU the
    generator goes on, since in a CUDA graph it can never be put back.
    """
    if device.type != "cpu":
        yield
        return
    outside = torch.get_rng_state()
    digest = hashlib.blake2b(outside.numpy().tobytes(), digest_size=8).digest()
    torch.default_generator.manual_seed(int.from_bytes(digest, "big") >> 1)
    try:
        yield
    finally:
        torch.set_rng_state(outside)


#: Lists of those who want to know of each replay whether anything was drawn in it.
_WATCHERS: list[list[bool]] = []


@contextmanager
def watching_replays() -> Iterator[list[bool]]:
    """Gives a list, to which each `replaying` within adds whether anything was drawn in it."""
    drawn: list[bool] = []
    _WATCHERS.append(drawn)
    try:
        yield drawn
    finally:
        _WATCHERS.remove(drawn)


@contextmanager
def replaying(states: list[Tensor], device: torch.device) -> Iterator[None]:
    """Within it, the global generators draw again what they drew after `states` was taken."""
    outside = global_state(device)
    set_global_state(states, device)
    try:
        yield
    finally:
        if _WATCHERS:
            drawn = not all(map(torch.equal, states, global_state(device)))
            for watcher in _WATCHERS:
                watcher.append(drawn)
        set_global_state(outside, device)
