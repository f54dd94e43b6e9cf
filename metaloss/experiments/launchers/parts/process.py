"""A run's process: what it prints and how it ends are kept in a log.

The standard library alone (and submitit, where that calls): this module is carried to workers that
import nothing else of the package.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

#: How a log's last line begins once the process has ended.
END = "exit code "


class LoggedProcess:
    """A command line in a process of its own; it appends to a log and so does its exit code.

    Args:
        command: the words.
        log: the file; its folder is made.
        environment: variables that it has beside or in place of this process's.
    """

    def __init__(
        self, command: Sequence[str], log: str, environment: Mapping[str, str] | None = None
    ) -> None:
        Path(log).parent.mkdir(parents=True, exist_ok=True)
        self._log = Path(log)
        words = [*(f"{name}={value}" for name, value in (environment or {}).items()), *command]
        self._write(f"--- {time.strftime('%Y-%m-%dT%H:%M:%S%z')} {' '.join(words)}\n")
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
            )

    def wait(self) -> int:
        """The exit code, once it ends; -N if signal N killed it."""
        return self._ended(self._process.wait())

    def stop(self) -> int:
        """Sends SIGTERM and waits, also from a signal handler that interrupts `wait`."""
        self._process.terminate()
        # Popen.wait holds a lock that is not reentrant, so the operating system is asked itself.
        return self._ended(os.waitstatus_to_exitcode(os.waitpid(self._process.pid, 0)[1]))

    def terminate(self) -> None:
        """Sends SIGTERM, and does not wait."""
        self._process.terminate()

    def _ended(self, code: int) -> int:
        self._write(f"{END}{code}\n")
        return code

    def _write(self, line: str) -> None:
        with self._log.open("a", encoding="utf-8") as log:
            log.write(line)


class Requeued:
    """A job as submitit calls it: before its node is taken away it saves itself and queues again.

    Slurm warns by a signal, and submitit then calls `checkpoint` while the call is going on.
    """

    def __init__(self, command: Sequence[str], log: str) -> None:
        self._command = command
        self._log = log
        self._process: LoggedProcess | None = None

    def __call__(self) -> int:
        """Runs the command line; its exit code."""
        self._process = LoggedProcess(self._command, self._log)
        return self._process.wait()

    def checkpoint(self) -> Any:
        """Lets the run save itself, and gives what is to be submitted in its place."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            self._process.stop()
        return DelayedSubmission(Requeued(self._command, self._log))


def run(command: Sequence[str], log: str) -> int:
    """Runs a command line to its end; the exit code."""
    return LoggedProcess(command, log).wait()
