"""A Slurm cluster: an array of jobs, by submitit."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from metaloss.config.arguments import NonNegativeInt, PositiveFloat, PositiveInt
from metaloss.errors import InputError, first_line
from metaloss.experiments.launchers.base import LAUNCHERS, Job, Launcher
from metaloss.experiments.launchers.parts import process


@LAUNCHERS.register("slurm")
class Slurm(Launcher):
    """An array of Slurm jobs; one that is preempted or runs out of time is requeued and goes on.

    Needs the extra `slurm`. Runs, data and Python must be where every node sees them. The jobs are
    Slurm's: they go on if the sweeper, which only waits for them, is ended.

    Args:
        parallel: jobs of the array that run at a time.
        threads: CPU cores of a job.
        gpus: GPUs of a job.
        memory: gigabytes of a job.
        hours: time limit of a job, after which it is requeued.
        partition: where; None is the cluster's own choice.
        timeouts: how often a job may run out of time; being preempted does not count.
        setup: shell lines before Python starts, such as "module load cuda".
        options: further options of `sbatch` by name, such as {"account": "abc"}.
        folder: of submitit's own files; every node must see it.
        cluster: "slurm"; "local" starts the jobs on this machine, all at once, to try things out.
        poll: seconds between two looks at the jobs.

    Raises:
        ConfigError: a number is out of its range.
    """

    def __init__(
        self,
        parallel: PositiveInt = 64,
        threads: PositiveInt = 4,
        gpus: NonNegativeInt = 0,
        memory: PositiveInt = 16,
        hours: PositiveFloat = 24.0,
        partition: str | None = None,
        timeouts: NonNegativeInt = 10,
        setup: Sequence[str] = (),
        options: Mapping[str, Any] | None = None,
        folder: str = "runs/slurm",
        cluster: Literal["slurm", "local"] = "slurm",
        poll: PositiveFloat = 10.0,
    ) -> None:
        self.parallel = parallel
        self.threads = threads
        self._place: dict[str, Any] = {
            "folder": folder,
            "cluster": cluster,
            "slurm_max_num_timeout": timeouts,
        }
        self._poll = poll
        self._parameters: dict[str, Any] = {
            "name": "metaloss",
            "timeout_min": max(1, round(60 * hours)),
            "cpus_per_task": threads,
            "gpus_per_node": gpus,
            "mem_gb": memory,
            "slurm_array_parallelism": parallel,
            "slurm_setup": list(setup),
            "slurm_additional_parameters": dict(options or {}),
        }
        if partition is not None:
            self._parameters["slurm_partition"] = partition

    def launch(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, int]]:
        try:
            import cloudpickle  # submitit's own
            import submitit
            from submitit.core import utils
        except ImportError:
            raise InputError("launchers.slurm needs submitit: install metaloss[slurm]") from None
        # By value: a job, which only waits for its process, need not import torch.
        cloudpickle.register_pickle_by_value(process)
        try:
            executor = submitit.AutoExecutor(**self._place)
        except RuntimeError as error:  # there is no Slurm here
            raise InputError(f"launchers.slurm: {first_line(error)}") from error
        executor.update_parameters(**self._parameters)
        given = list(jobs)
        calls = [process.Requeued(job.command, job.log) for job in given]
        submitted = executor.submit_array(calls) if given else []
        waiting = dict(zip(submitted, given, strict=True))
        while waiting:
            for ended in [job for job in waiting if job.done()]:
                try:
                    code = ended.result()
                except (utils.FailedJobError, utils.UncompletedJobError):
                    code = -signal.SIGKILL  # the cluster ended it; the reason is in `folder`
                yield waiting.pop(ended), code
            if waiting:
                time.sleep(self._poll)
