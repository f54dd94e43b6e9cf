"""A profile of a part of the training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch.profiler import ProfilerActivity

from metaloss.config.arguments import NonNegativeInt
from metaloss.runs.callbacks.base import CALLBACKS, Callback, Start
from metaloss.runs.metrics import Row


@CALLBACKS.register("profiler")
class Profiler(Callback):
    """What torch does in some steps of the training, and for how long.

    In `profile/` of the run folder: a trace (*.pt.trace.json), which chrome://tracing, Perfetto and
    TensorBoard's profile plugin show, and a table of the dearest operators. The steps are those
    between two rows on a step (`Runner.log_every`): some tens are enough, and keep the trace small.

    Args:
        after: the step after which it begins, with the next row; the first steps are no typical
            ones.
    """

    #: torch profiles for one at a time: of several seeds in a process the first one has it.
    _busy: ClassVar[bool] = False

    def __init__(self, after: NonNegativeInt = 1) -> None:
        self._after = after
        self._profile: Any = None
        self._began = self._latest = 0
        self._done = False

    def begin(self, start: Start, state: Mapping[str, Any]) -> None:
        self._folder = start.folder / "profile"

    def after_step(self, row: Row) -> None:
        if row["phase"] != "train" or "learned_loss" not in row or row["step"] < self._after:
            return  # of indices and warnings there are rows too, and of a meta-step's phase
        self._latest = row["step"]
        if self._profile is not None:
            if self._latest > self._began:
                self._write()
        elif not self._done and not Profiler._busy:
            Profiler._busy, self._began = True, self._latest
            gpu = [ProfilerActivity.CUDA] * torch.cuda.is_available()
            self._profile = torch.profiler.profile(activities=[ProfilerActivity.CPU, *gpu])
            self._profile.start()

    def close(self) -> None:
        if self._profile is not None:
            self._write()

    def _write(self) -> None:
        profile, self._profile = self._profile, None
        Profiler._busy, self._done = False, True
        profile.stop()
        self._folder.mkdir(exist_ok=True)
        name = f"steps_{self._began}_to_{self._latest}"
        profile.export_chrome_trace(str(self._folder / f"{name}.pt.trace.json"))
        order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = profile.key_averages().table(sort_by=order, row_limit=40)
        (self._folder / f"{name}.txt").write_text(table, "utf-8")
