"""The peak of what torch gives out on a CPU: to compiled code too, which no operator shows."""

from __future__ import annotations

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def peak_bytes(work: Callable[[], object]) -> int:
    """The most bytes alive at once above what was there before.

    Unlike `metaloss.machine.memory.measuring` it sees what compiled code and kernels take for
    themselves. It writes every allocation down, and so is for a few steps.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    assert seen.profiler is not None
    events = seen.profiler.kineto_results.events()
    moments = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    alive = peak = 0
    for _, change in moments:
        alive += change
        peak = max(peak, alive)
    return peak
