"""This machine: a pool of processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from metaloss.config.arguments import PositiveInt
from metaloss.experiments.launchers.base import LAUNCHERS, Job, Launcher
from metaloss.experiments.launchers.parts.process import LoggedProcess


@LAUNCHERS.register("local")
class Local(Launcher):
    """A pool of processes on this machine, by joblib.

    joblib's threads wait for them, not its loky workers: a run is a process of its own already, and
    loky, when it ends a worker (at Ctrl-C, say), kills that worker's run before it can save itself.

    Args:
        parallel: runs at a time; None: as many as the cores allow.
        threads: CPU threads of a run. Results depend on it in their last bits, and runs of several
            threads that share a machine slow each other down.
    """

    def __init__(self, parallel: PositiveInt | None = None, threads: PositiveInt = 1) -> None:
        self.threads = threads
        self.parallel = parallel or max(1, (os.cpu_count() or 1) // threads)

    def launch(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, int]]:
        """See `Launcher`. SIGINT and SIGTERM let the runs save themselves; no other begins.

        Raises:
            KeyboardInterrupt: after such a signal, its number, when the runs have ended.
        """
        from joblib import Parallel, delayed

        running: list[LoggedProcess] = []
        with _stopping(running) as received:

            def run(job: Job) -> tuple[Job, int]:
                process = LoggedProcess(job.command, job.log)
                running.append(process)
                code = process.wait()
                running.remove(process)
                return job, code

            def calls() -> Iterator[object]:
                for job in jobs:
                    if received:
                        return
                    yield delayed(run)(job)

            yield from Parallel(
                n_jobs=self.parallel,
                backend="threading",
                batch_size=1,
                pre_dispatch=self.parallel,
                return_as="generator_unordered",
            )(calls())
        if received:
            raise KeyboardInterrupt(received[0])


@contextmanager
def _stopping(running: list[LoggedProcess]) -> Iterator[list[int]]:
    """Within it, SIGINT and SIGTERM are noted and passed on; a second one acts as it does without.

    A terminal sends SIGINT to the runs too; then they get it twice, which train.py takes for a
    second wish, so it is left to the terminal.
    """
    received: list[int] = []

    def stop(number: int, frame: object) -> None:
        received.append(number)
        signal.signal(number, before[signal.Signals(number)])
        if number == signal.SIGTERM:
            for process in list(running):
                process.terminate()

    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, stop)
    except ValueError:  # not the main thread, to which signals come
        pass
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
