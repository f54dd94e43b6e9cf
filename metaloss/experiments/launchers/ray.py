"""Ray: tasks on a cluster that is there, or on this machine."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterable, Iterator
from typing import Any

from metaloss.config.arguments import NonNegativeFloat, PositiveInt
from metaloss.errors import InputError, first_line
from metaloss.experiments.launchers.base import LAUNCHERS, Job, Launcher
from metaloss.experiments.launchers.parts import process


@LAUNCHERS.register("ray")
class Ray(Launcher):
    """Ray tasks; several small runs can share a GPU.

    Needs the extra `ray`. On a cluster of several machines, runs, data and Python must be where
    every node sees them.

    Args:
        address: of a cluster; "auto" finds the one that this machine belongs to; None starts one
            here and ends it afterwards.
        threads: CPU cores of a run.
        gpus: GPUs of a run; 0.25 lets four runs share one.
        parallel: cores of the cluster that is started here; None: as many as the machine has.

    Raises:
        ConfigError: a number is out of its range.
    """

    def __init__(
        self,
        address: str | None = None,
        threads: PositiveInt = 1,
        gpus: NonNegativeFloat = 0.0,
        parallel: PositiveInt | None = None,
    ) -> None:
        self.threads = threads
        self.parallel = parallel or max(1, (os.cpu_count() or 1) // threads)
        self._address = address
        self._gpus = gpus

    def launch(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, int]]:
        try:
            import ray
        except ImportError:
            raise InputError("launchers.ray needs Ray: install metaloss[ray]") from None
        own: dict[str, Any] = {"num_cpus": self.parallel * self.threads, "include_dashboard": False}
        try:
            ray.init(
                self._address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                **({} if self._address else own),
            )
        except ConnectionError as error:
            reason = first_line(error)
            raise InputError(f"launchers.ray.address = {self._address!r}: {reason}") from error
        # By value: a worker, which only waits for its process, need not import torch.
        ray.cloudpickle.register_pickle_by_value(process)
        try:
            # Not repeated by Ray: a run goes on from its checkpoint when the sweep is run again.
            needs: dict[str, Any] = {
                "num_cpus": self.threads,
                "num_gpus": self._gpus,
                "max_retries": 0,
            }
            task = ray.remote(**needs)(process.run)
            waiting = {task.remote(job.command, job.log): job for job in jobs}
            while waiting:
                for ended in ray.wait(list(waiting))[0]:
                    job = waiting.pop(ended)
                    try:
                        yield job, ray.get(ended)
                    except ray.exceptions.RayError:  # its worker or node was lost
                        yield job, -signal.SIGKILL
        finally:
            ray.shutdown()
