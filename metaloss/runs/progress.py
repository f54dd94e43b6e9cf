"""What a run says while it goes on: a bar in a terminal, else lines with the time, by `logging`."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from typing import Any

from metaloss.errors import first_line, lacks
from metaloss.runs import words
from metaloss.runs.metrics import Row

LOG = logging.getLogger("metaloss.runs")
EVERY = 8.0  #: seconds between two lines of a phase: with a slow step between, ten
FIRST = 2.0  #: seconds until its first line, which says how long it will take
#: Numbers of a row of metrics that are spoken of; of a split's the loss and the metric are.
SPOKEN = ("learned_loss", "task_loss")


class Progress:
    """Tells a person how far a run is.

    Args:
        metric: of the task, such as "error_rate".
        learned: whether there is a learned loss.

    Attributes:
        label: of the run, where there are several.
    """

    def __init__(self, metric: str, learned: bool) -> None:
        self.label = ""
        self._metric = metric
        self._learned = learned
        self._terminal = sys.stderr.isatty()
        self._bar: Any = None
        self._phase = ""
        self._total = self._first = self._done = 0
        self._began = self._due = 0.0
        self._numbers: dict[str, str] = {}  # the latest ones, by what they are called

    def start(self, phase: str, done: int, total: int, alike: int = 0, examples: int = 0) -> None:
        """A phase begins, or goes on from `done` steps.

        Args:
            alike: the step after which steps take alike; how long is left is not told before.
            examples: in a step, of which a line says how many a second there are; 0: it does not.
        """
        self.close()
        self._phase = f"{self.label} {phase}".lstrip()
        self._total, self._done, self._first = total, done, max(done, alike)
        self._examples = examples
        self._began = time.monotonic()
        self._due = self._began + FIRST
        self._numbers = {}
        if self._terminal:
            from tqdm import tqdm

            self._bar = tqdm(desc=self._phase, initial=done, total=total, dynamic_ncols=True)

    def show(self, row: Row) -> None:
        """A row of the phase's metrics is there."""
        split = row.get("split")
        for name, value in row.items():
            if isinstance(value, float) and name in ((self._metric,) if split else SPOKEN):
                called = f"{split} {name}" if split else name
                self._numbers[words.named(called, self._learned)] = words.number(value)

    def step(self, step: int) -> None:
        """A step of the phase was made, and what is due after it is done."""
        done, self._done = self._done, step
        if self._bar is not None:
            self._bar.set_postfix_str(self._told(), refresh=False)
            self._bar.update(step - done)
            return
        now = time.monotonic()
        if step <= self._first:
            self._began = now
        if now < self._due and step < self._total:
            return
        self._due = now + EVERY
        ahead, made, taken = "", step - self._first, now - self._began
        if made > 0 and step < self._total:
            ahead = f", {words.duration((self._total - step) * taken / made)} left"
        if made > 0 and self._examples and taken:
            ahead += f", {words.rate(made * self._examples / taken)} examples/s"
        told = self._told()
        self.say(f"{self._phase} {step}/{self._total}{ahead}{told and ': '}{told}")

    def say(self, line: str) -> None:
        """A line of its own."""
        LOG.info(line)

    def warn(self, trouble: str) -> None:
        """A line about what is wrong."""
        LOG.warning(f"{self.label} {trouble}".lstrip())

    @contextlib.contextmanager
    def sparing(self, figures: str) -> Iterator[None]:
        """What goes wrong in drawing is told, and costs the run no more than the figures."""
        try:
            yield
        except Exception as error:
            why = lacks(error) or f"{type(error).__name__}: {first_line(error)}"
            self.warn(f"without {figures}: {why}")

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _told(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self._numbers.items())


@contextlib.contextmanager
def speaking() -> Iterator[None]:
    """Within it what runs say is on stderr: beside the bars of a terminal, else with the time.

    A program that has given the logger "metaloss" a handler of its own is left to that.
    """
    logger = logging.getLogger("metaloss")
    if logger.handlers:
        yield
        return
    handler, before = _Stderr(), (logger.level, logger.propagate)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # what is told here, a handler of the whole process need not repeat
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before


class _Stderr(logging.Handler):
    """Lines on stderr as it is at the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        level = record.levelname
        with contextlib.suppress(OSError):  # a full disk or a closed terminal; the run goes on
            if sys.stderr.isatty():
                from tqdm import tqdm

                plain = level == "INFO"
                tqdm.write(line if plain else f"{level.lower()}: {line}", file=sys.stderr)
            else:
                stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
                print(f"{stamp} {level} {line}", file=sys.stderr, flush=True)
