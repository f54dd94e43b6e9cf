"""This machine: a pool of processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator

from metaloss import checks
from metaloss.launchers import process
from metaloss.launchers.base import LAUNCHERS, Job, Launcher


@LAUNCHERS.register("local")
class Local(Launcher):
    """A pool of processes on this machine, by joblib's loky.

    Args:
        parallel: runs at a time; None: as many as the cores allow.
        threads: CPU threads of a run. Results depend on it in their last bits, and runs of several
            threads that share a machine slow each other down.
    """

    def __init__(self, parallel: int | None = None, threads: int = 1) -> None:
        checks.integer(threads, "launchers.local.threads", minimum=1)
        if parallel is not None:
            checks.integer(parallel, "launchers.local.parallel", minimum=1)
        self.threads = threads
        self.parallel = parallel or max(1, (os.cpu_count() or 1) // threads)

    def launch(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, int]]:
        import cloudpickle
        from joblib import Parallel, delayed
        from joblib.externals.loky.process_executor import TerminatedWorkerError

        # By value: a worker, which only waits for its process, need not import torch.
        cloudpickle.register_pickle_by_value(process)
        environment = dict(os.environ)  # a run's is that of this process, not loky's
        remaining, started = iter(jobs), {}

        def calls() -> Iterator[object]:
            for job in remaining:
                started[job.name] = job
                yield delayed(process.run)(job.name, job.command, job.log, environment)

        pool = Parallel(
            n_jobs=self.parallel,
            batch_size=1,
            pre_dispatch=self.parallel,
            return_as="generator_unordered",
        )
        broken = True
        while broken:
            broken = False
            try:
                for name, code in pool(calls()):
                    yield started.pop(name), code
            except TerminatedWorkerError:  # someone killed a worker, and loky then ends the others
                broken = True
                while started:
                    yield started.popitem()[1], -signal.SIGKILL
