"""This machine: a pool of processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from metaloss.config.arguments import PositiveInt
from metaloss.errors import ArgumentError
from metaloss.experiments.launchers.base import LAUNCHERS, Job, Launcher
from metaloss.experiments.launchers.parts.process import LoggedProcess


@LAUNCHERS.register("local")
class Local(Launcher):
    """A pool of processes on this machine, by joblib.

    joblib's threads wait for them, not its loky workers: a run is a process of its own already, and
    loky, when it ends a worker (at Ctrl-C, say), kills that worker's run before it can save itself.

    Args:
        parallel: runs at a time; None: one for each of `gpus`, else as many as the cores allow.
        threads: CPU threads of a run. Results depend on it in their last bits, and runs of several
            threads that share a machine slow each other down.
        gpus: that the runs are dealt out to evenly, by CUDA_VISIBLE_DEVICES: each sees one alone.
            A number, of those that this process sees; or their indices, or names as nvidia-smi has
            them. None: every run sees all, and takes the first.
    """

    def __init__(
        self,
        parallel: PositiveInt | None = None,
        threads: PositiveInt = 1,
        gpus: PositiveInt | Sequence[int | str] | None = None,
    ) -> None:
        self.threads = threads
        self.gpus = _named(gpus)
        cores = max(1, (os.cpu_count() or 1) // threads)
        self.parallel = parallel or len(self.gpus) or cores

    def launch(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, int]]:
        """See `Launcher`. SIGINT and SIGTERM let the runs save themselves; no other begins.

        Raises:
            KeyboardInterrupt: after such a signal, its number, when the runs have ended.
        """
        from joblib import Parallel, delayed

        running: list[LoggedProcess] = []
        # Of which each thread takes one, and puts it back; a list's changes are atomic.
        free = list(self.gpus) * -(-self.parallel // max(1, len(self.gpus)))
        with _stopping(running) as received:

            def run(job: Job) -> tuple[Job, int]:
                seen = {"CUDA_VISIBLE_DEVICES": free.pop(0)} if free else {}
                process = LoggedProcess(job.command, job.log, seen)
                running.append(process)
                if received:  # it began in the same moment: who passed the signal on missed it
                    process.terminate()
                code = process.wait()
                running.remove(process)
                free.extend(seen.values())
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


def _named(gpus: int | Sequence[int | str] | None) -> tuple[str, ...]:
    """The GPUs as CUDA_VISIBLE_DEVICES names them.

    Raises:
        ArgumentError: there are none, or not as many as are asked for.
    """
    if gpus is None:
        return ()
    if not isinstance(gpus, int):
        names = tuple(map(str, gpus))
        if not names or len(set(names)) < len(names):
            raise ArgumentError("gpus", gpus, "a number, or a list that names each GPU once")
        return names
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if seen is None:
        return tuple(map(str, range(gpus)))
    names = tuple(filter(None, seen.split(",")))
    if gpus > len(names):
        raise ArgumentError("gpus", gpus, f"at most {len(names)}: CUDA_VISIBLE_DEVICES is {seen!r}")
    return names[:gpus]


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
