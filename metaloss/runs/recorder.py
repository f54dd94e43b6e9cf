"""Recorder: one's own training loop, told in a run folder as runs are."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from metaloss.errors import ArgumentError, InputError
from metaloss.learner import AdaLFL
from metaloss.machine import clock, distributed, memory
from metaloss.machine.circumstances import describe
from metaloss.machine.files import write_json
from metaloss.meta_optimizers.base import META_OPTIMIZERS, MetaStep
from metaloss.problem.batches import adapted, parts
from metaloss.representations.base import REPRESENTATIONS, Representation
from metaloss.representations.saved.trajectory import Trajectory, flat
from metaloss.runs import inspection
from metaloss.runs.callbacks.base import Callback, Start
from metaloss.runs.callbacks.parts.everyone import Everyone
from metaloss.runs.callbacks.tensorboard import TensorBoard
from metaloss.runs.folder import RunFolder
from metaloss.runs.metrics import MetricsFile, Row, finite_or_none
from metaloss.runs.progress import LOG

OWN_LOOP = "own_loop"  #: the kind that task and model of an own loop have in its config.gin


class Recorder:
    """Writes a run folder around a learner in one's own loop, for reports and TensorBoard.

    The loop stays the caller's, and so do evaluations; what a run of `tools/train.py` leaves of its
    numbers, this leaves: metrics.jsonl, result.json, the exported loss, figures::

        with metaloss.Recorder("runs/adalfl/seed0", learner, batch, task="tags",
                               model="transformer", method="adalfl") as record:
            learner.initialize(train_loader, valid_loader)
            record.evaluation("valid", error_rate=...)
            for train_batch, valid_batch in ...:
                record.step(learner.step(train_batch, valid_batch))
            record.finish(error_rate=...)

    Left without `finish`, by an error say, it is a run that was cut short. With several processes
    the first one alone writes, and its numbers are what it is given.

    Args:
        folder: the run folder; made within the `with` block.
        learner: of the loop; a baseline is `AdaLFL(model, optimizer, None, task_loss)`.
        examples: a batch of training data, on which the learned loss is looked at.
        task: a word for the data, as reports have it.
        model: a word for the model.
        method: a word for what is compared, such as "baseline" or "adalfl".
        seed: runs that differ in nothing else are averaged.
        metric: "error_rate" or "mse", which evaluations give, lower being better.
        settings: whatever else makes it this run and no other, by name: learning rates, steps.
        log_every: base steps between rows on a step.
        callbacks: who is told how it goes; None: TensorBoard.

    Raises:
        InputError: a word is none, a setting is no plain value, or a batch is no (inputs, labels).
    """

    def __init__(
        self,
        folder: str | Path,
        learner: AdaLFL,
        examples: Any,
        *,
        task: str,
        model: str,
        method: str,
        seed: int = 0,
        metric: str = "error_rate",
        settings: Mapping[str, Any] | None = None,
        log_every: int = 100,
        callbacks: Sequence[Callback] | None = None,
    ) -> None:
        self._names = {"task": task, "backbone": model, "method": method}
        for name, word in (("task", task), ("model", model)):
            if not re.fullmatch(r"[A-Za-z_]\w*", word):
                raise ArgumentError(name, word, "a word of letters, digits and underscores")
        self.folder = RunFolder(Path(folder))
        self.learner = learner
        self.seed = seed
        self.metric = metric
        self.log_every = log_every
        self._examples = parts(adapted(examples, learner.adapter))[0]
        self._config = config_of(learner, self._names, settings or {})
        self._callbacks = Everyone([TensorBoard()] if callbacks is None else callbacks, LOG.warning)
        self._metrics = MetricsFile(self.folder.metrics)
        self._clock = clock.Clock()
        self._steps = self._skipped = 0
        self._latest: dict[str, float] = {}  # numbers of the latest meta-step
        self._samples: dict[int, Tensor] = {}  # φ by base step
        self._seconds = 0.0  # spent before this process
        self._resumed: dict[str, Any] | None = None
        self._open = ExitStack()

    def __enter__(self) -> Recorder:
        """Makes the folder, or goes on in it after `load_state_dict`.

        Raises:
            RunFolderError: another run is there; or the folder cannot be written to.
        """
        self._began = time.monotonic()
        self._open.enter_context(self._clock.running())
        self._told, self.learner.tell = self.learner.tell, self._tell
        self._open.callback(self._untell)
        if distributed.rank() == 0:
            self._begin()
        return self

    def _begin(self) -> None:
        resumed = self._resumed or {}
        self.folder.check(self._config, self.seed, resume=self._resumed is not None)
        self._open.enter_context(self.folder.held())
        device = self.learner.problem.device
        self.folder.begin(self._config, {**self._names, **describe(self.seed, device)})
        self._open.callback(self._metrics.close)
        rows = self._metrics.resume(resumed.get("metrics", 0))
        self._open.callback(self._callbacks.close)
        start = Start(
            self.folder.path, self._config, self._names, self.seed, self.metric,
            {"initialization": 0, "train": self._steps}, rows,
        )  # fmt: skip
        self._callbacks.begin(start, resumed.get("callbacks", {}))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()

    def step(self, result: MetaStep) -> None:
        """A base step was made: counts it, and tells of it every `log_every` steps.

        Args:
            result: what `learner.step` gave; scalars.
        """
        self._steps += 1
        if result.skipped is not None and result.skipped.any():
            self._skipped += 1
        if self._steps % self.log_every == 0:
            made = inspection.of_step(self.learner, result, self._latest)
            self._log({**made, "skipped": self._skipped})

    @clock.part("evaluation")
    def evaluation(self, split: str, **numbers: float | Tensor) -> None:
        """Tells what an evaluation has found, and looks at the learned loss.

        Before the first step it tells of the start.

        Args:
            split: "train", "valid" or "select".
            numbers: of the split, the metric among them; scalars.

        Raises:
            InputError: the metric is not among them.
        """
        if self._steps not in self._samples:
            problem = self.learner.problem
            if problem.loss is not None:
                problem.probe(self._examples)  # which decides what labels are, if nobody has
                self._samples[self._steps] = flat(problem.loss)
            start = self._samples.get(min(self._samples, default=0))
            self._log(inspection.numbers(self.learner, self._examples, start))
        self._log({"split": split, **self._given(numbers)})

    def finish(self, **numbers: float | Tensor) -> dict[str, Any]:
        """Ends the run with what its model came to on test data; leaves the loss and figures.

        Args:
            numbers: on the test split, the metric among them; scalars. One that is not finite says
                that the training diverged.

        Returns:
            The content of result.json.

        Raises:
            InputError: the metric is not among them.
        """
        given = self._given(numbers)
        if distributed.rank() > 0:
            return self._result(given)
        self._log({"split": "test", **given})
        self._export()
        result = self._result(given)
        self._draw(result)
        result.update(self._times())
        self._callbacks.end(result)
        self._metrics.sync()
        write_json(self.folder.result, result)
        return result

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain data, for the loop's own checkpoint."""
        return {
            "steps": self._steps,
            "skipped": self._skipped,
            "latest": self._latest,
            "samples": self._samples,
            "seconds": self._passed(),
            "parts": dict(self._clock.seconds),
            "metrics": self._metrics.sync(),
            "callbacks": self._callbacks.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` gave, before the `with` block; rows beyond it are cut."""
        self._steps, self._skipped = state["steps"], state["skipped"]
        self._latest, self._samples = dict(state["latest"]), dict(state["samples"])
        self._seconds = state["seconds"]
        self._clock.seconds.update(state["parts"])
        self._resumed = state

    def _given(self, numbers: Mapping[str, float | Tensor]) -> dict[str, float]:
        if self.metric not in numbers:
            given = ", ".join(numbers) or "nothing"
            raise InputError(f"an evaluation gives {self.metric}, the metric; this one: {given}")
        return {name: float(value) for name, value in numbers.items()}

    @distributed.first_alone
    def _log(self, row: Row) -> None:
        where = {"phase": "train", "step": self._steps}
        row = where | {name: finite_or_none(value) for name, value in row.items()}
        row["seconds"] = round(self._passed(), 3)
        self._metrics.write(row)
        tell = self._callbacks.after_evaluation if "split" in row else self._callbacks.after_step
        tell(row)

    def _tell(self, trouble: str) -> None:
        """The learned loss does not work."""
        self._log({"health": self.learner.health().status, "warning": trouble})
        self._told(trouble)

    def _untell(self) -> None:
        self.learner.tell = self._told

    def _passed(self) -> float:
        return self._seconds + time.monotonic() - self._began

    def _times(self) -> dict[str, Any]:
        seconds = self._passed()
        return {"seconds": round(seconds, 3), "seconds_by_part": self._clock.by_part(seconds)}

    def _result(self, test: Mapping[str, float]) -> dict[str, Any]:
        value, health = finite_or_none(test[self.metric]), self.learner.health()
        return {
            **self._names,
            "seed": self.seed,
            "steps": self._steps,
            "metric": self.metric,
            "test": value,
            "test_metrics": {name: finite_or_none(number) for name, number in test.items()},
            "status": "diverged" if value is None else "finished",
            "skipped_meta_steps": self._skipped,
            "health": None if self.learner.problem.loss is None else health.status,
            "health_warnings": list(health.warnings),
            "steps_by_task_loss": self.learner.steps_by_task_loss,
            **self._times(),
            "peak_memory_bytes": memory.of_run(self.learner.problem.device),
        }

    def _export(self) -> None:
        problem = self.learner.problem
        if problem.loss is None:
            return
        self._samples[self._steps] = flat(problem.loss)
        loss = self.learner.learned_loss()
        loss.trajectory, loss.step = Trajectory.of(self._samples), self._steps
        columns = inspection.columns(self.learner, self._examples)
        inspection.export(self.folder, loss, columns, {**self._names, "seed": self.seed})

    @clock.part("figures")
    def _draw(self, result: dict[str, Any]) -> None:
        try:
            from metaloss.runs import pictures  # matplotlib takes half a second, and may be missing

            pictures.draw(self.folder.path, pictures.title(result), pictures.OF_SHORT_RUNS, result)
        except Exception as error:  # no picture is worth the result of a training
            LOG.warning(f"without figures: {type(error).__name__}: {error}")


def config_of(learner: AdaLFL, names: Mapping[str, str], settings: Mapping[str, Any]) -> str:
    """What config.gin says of an own loop: nobody can train by it, and reports can compare it.

    Raises:
        ArgumentError: a setting's name is none, or its value is no plain one.
    """
    lines = [
        f"Runner.task = @{OWN_LOOP}.{names['task']}()",
        f"Runner.backbone = @{OWN_LOOP}.{names['backbone']}()",
        f"Runner.method = {names['method']!r}",
    ]
    loss, adaptation = learner.problem.loss, learner.adaptation
    optimizer = type(learner.problem.optimizer).__name__
    given = {"optimizer": optimizer, **settings}
    if isinstance(loss, Representation):
        name = REPRESENTATIONS.name_of(loss)
        lines.append(f"Runner.representation = @representations.{name}()")
        arguments = loss.arguments()
        lines += [f"representations.{name}.{key} = {arguments[key]!r}" for key in arguments]
    if adaptation is not None:
        name = META_OPTIMIZERS.name_of(adaptation)
        lines.append(f"Runner.adaptation = @meta_optimizers.{name}()")
        given.setdefault("meta_lr", getattr(adaptation, "meta_lr", None))
        given.setdefault("every", getattr(adaptation, "every", None))
    for key, value in given.items():
        if not re.fullmatch(r"[A-Za-z_]\w*", key):
            raise ArgumentError("settings", key, "names of letters, digits and underscores")
        if not isinstance(value, (bool, int, float, str, tuple, list, type(None))):
            raise ArgumentError(f"settings[{key!r}]", value, "a number, text, None or a tuple")
        lines.append(f"{OWN_LOOP}.{key} = {value!r}")
    return "\n".join(lines) + "\n"
