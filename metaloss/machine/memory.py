"""Memory: the peak of a `with` block and of a process, and what the C library does with it."""

from __future__ import annotations

import resource
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: The most that glibc lets a freed block raise its thresholds to, less what it puts in front of it.
LARGEST = 32 * 2**20 - 2**16


@cache
def keep_freed() -> None:
    """Lets the C library keep up to 64 MiB that a CPU step has freed for the next one.

    glibc asks the system for every block above a threshold, gives back what is free above twice
    that, and sets the threshold to the largest such block that was freed so far: here one that
    nobody writes to. A step whose tensors take a few megabytes each otherwise waits for the system
    to find and clear its pages, for a quarter of its time. Other C libraries are left as they are.
    """
    torch.empty(LARGEST, dtype=torch.uint8)


class PeakMemory:
    """The result of a measurement; complete when its `with` block has ended."""

    peak_bytes: int = 0  #: most bytes alive at once, of tensors that were allocated within


@contextmanager
def measuring(device: torch.device) -> Iterator[PeakMemory]:
    """Measures the peak tensor memory of what runs within, above what was alive at its start.

    On the CPU every storage that an operator gives out is counted from then to its end, so that
    tensors kept by autograd count and views do not count twice; scratch memory inside a kernel is
    not seen. It slows the block down: measure time elsewhere. On a GPU it is the allocator's count.
    """
    result = PeakMemory()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield result
        torch.cuda.synchronize(device)
        result.peak_bytes = torch.cuda.max_memory_allocated(device) - before
    else:
        with _StorageCount(result):
            yield result


def of_run(device: torch.device) -> int:
    """Bytes so far: of the GPU's memory that tensors took, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    kilobyte = 1024 if sys.platform != "darwin" else 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobyte


class _StorageCount(TorchDispatchMode):
    """Counts the bytes of the living storages that were born under it."""

    def __init__(self, result: PeakMemory) -> None:
        super().__init__()
        self._result = result
        self._alive: dict[int, int] = {}  # bytes by storage
        self._total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # An output that shares an input's storage is a view or the input itself, changed in place.
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        outputs = func(*args, **(kwargs or {}))
        for tensor in _tensors(outputs):
            storage = tensor.untyped_storage()
            if storage._cdata not in given and storage._cdata not in self._alive:
                self._alive[storage._cdata] = storage.nbytes()
                self._total += storage.nbytes()
                weakref.finalize(storage, self._end, storage._cdata)
        self._result.peak_bytes = max(self._result.peak_bytes, self._total)
        return outputs

    def _end(self, key: int) -> None:
        self._total -= self._alive.pop(key)


def _tensors(tree: Any) -> list[Tensor]:
    """The tensors in a tree that have memory.

    Forward mode also makes symbolic zeros, and plans some of its operators on the meta device.
    """
    return [
        leaf
        for leaf in tree_leaves(tree)
        if isinstance(leaf, Tensor) and not leaf.is_meta and not leaf._is_zerotensor()
    ]
