"""What a launcher is: it starts command lines, each a process of its own, and tells how they ended.

Scheduling is the business of existing engines (joblib, Slurm, Ray); a launcher is a few lines that
hand jobs to one of them.
"""

from __future__ import annotations

import shlex
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from metaloss.config.registry import Registry


@dataclass(frozen=True)
class Job:
    """One command line."""

    name: str
    command: tuple[str, ...]
    log: str  #: absolute path; what the process prints is appended to it

    @property
    def line(self) -> str:
        """The command line, to be pasted into a shell."""
        return shlex.join(self.command)


class Launcher(ABC):
    """Starts jobs.

    Contract, held by `metaloss.testing.check_launcher`: every job that is given is started once, as
    a process whose output and exit code go to its log (see `process`); one that fails does not stop
    the others.

    Attributes:
        threads: CPU threads that each job is told to use.
        parallel: how many jobs run at a time, as far as it is known.
    """

    threads: int
    parallel: int

    @abstractmethod
    def launch(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, int]]:
        """Carries the jobs out; gives each with its exit code as it ends.

        Args:
            jobs: taken one at a time, as late as the launcher can: a job that someone else has
                carried out meanwhile is no longer given.

        Raises:
            InputError: the engine behind is not installed, or cannot be reached.
        """


LAUNCHERS = Registry("launchers", Launcher)
