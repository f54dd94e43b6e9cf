"""Where a run reports to: metrics.jsonl (the source of truth) and the terminal."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

from metaloss.errors import first_line
from metaloss.runs.metrics import Row


class Progress:
    """Tells a person how far the run is: a bar in a terminal, else a line now and then.

    Args:
        every: seconds between two lines where there is no terminal.

    Attributes:
        label: of the run, where there are several.
    """

    def __init__(self, every: float = 10.0) -> None:
        self.label = ""
        self._every = every
        self._terminal = sys.stderr.isatty()
        self._bar: Any = None
        self._phase = ""
        self._total = self._first = self._done = 0
        self._began = self._told = 0.0

    def start(self, phase: str, done: int, total: int) -> None:
        """A phase begins, or goes on from `done` steps."""
        self.close()
        self._phase = f"{self.label} {phase}".lstrip()
        self._total, self._first, self._done = total, done, done
        self._began = self._told = time.monotonic()
        if self._terminal:
            from tqdm import tqdm

            self._bar = tqdm(desc=self._phase, initial=done, total=total, dynamic_ncols=True)

    def show(self, row: Row) -> None:
        """A row of the phase's metrics is there."""
        numbers = ", ".join(
            f"{name} {value:.4g}"
            for name, value in row.items()
            if isinstance(value, float) and name != "seconds"
        )
        numbers = f"{row['split']} {numbers}" if "split" in row else numbers
        if self._bar is not None:
            self._bar.update(row["step"] - self._done)
            self._bar.set_postfix_str(numbers)
        elif time.monotonic() - self._told >= self._every or row["step"] == self._total:
            self._told = time.monotonic()
            rate = (row["step"] - self._first) / max(1e-9, self._told - self._began)
            left = f", {(self._total - row['step']) / rate:.0f} s left" if rate else ""
            self.say(f"{self._phase} {row['step']}/{self._total}{left}: {numbers}")
        self._done = row["step"]

    def say(self, line: str) -> None:
        """A line of its own."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            with contextlib.suppress(OSError):  # a full disk or a closed terminal; the run goes on
                print(line, file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def sparing(self, figures: str) -> Iterator[None]:
        """What goes wrong in drawing is told, and costs the run no more than the figures."""
        try:
            yield
        except Exception as error:
            reason = first_line(error)
            self.say(f"warning: without {figures}: {type(error).__name__}: {reason}")

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
