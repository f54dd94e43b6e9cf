"""Clock: which part of a run its seconds went to.

Whoever does the work says what it is, by `part`, and knows no clock; where none is running, that
costs next to nothing. Kernels that a GPU has been handed are not waited for: there the seconds are
those in which Python was busy with a part, or waited for the device in it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ContextDecorator, contextmanager

#: The parts of a run, in the order in which they are told; the rest of its seconds is "other".
PARTS = (
    *("initialization", "base", "meta", "data", "evaluation", "figures", "compiling"),
    *("checkpoint", "other"),
)


class Clock:
    """Seconds by part; of parts within one another each has its own, counted once.

    Attributes:
        seconds: by part, so far.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._open: list[tuple[str, bool]] = []
        self._since = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within it the parts that are entered are counted here."""
        global _running
        before, _running = _running, self
        try:
            yield
        finally:
            _running = before

    def by_part(self, whole: float) -> dict[str, float]:
        """The seconds of all parts that had any, and the others of a whole, to the millisecond."""
        rest = whole - sum(self.seconds.values())
        found = {**self.seconds, "other": max(0.0, rest)}
        return {name: round(found[name], 3) for name in PARTS if name in found}

    def enter(self, name: str, whole: bool) -> None:
        """A part begins; within a whole one it is that one that goes on."""
        self._count()
        outer = self._open[-1] if self._open else (name, whole)
        self._open.append(outer if outer[1] else (name, whole))

    def leave(self) -> None:
        """The part that was entered last ends."""
        self._count()
        self._open.pop()

    def _count(self) -> None:
        now = time.perf_counter()
        if self._open:
            name = self._open[-1][0]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now


_running: Clock | None = None


class part(ContextDecorator):  # noqa: N801 - reads as what it is: `with part("data"):`
    """A part of a run, as a `with` block or a decorator.

    Args:
        name: one of `PARTS`.
        whole: what is entered within it belongs to it.
    """

    def __init__(self, name: str, whole: bool = False) -> None:
        self._name, self._whole = name, whole

    def __enter__(self) -> None:
        if _running is not None:
            _running.enter(self._name, self._whole)

    def __exit__(self, *error: object) -> None:
        if _running is not None:
            _running.leave()
