"""Run: a Runner carried out, in reading order: initialise, train, evaluate, finish.

Its steps are made outside, alone or those of several seeds at once: see `metaloss.runs.lockstep`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import torch

from metaloss.backbones import BACKBONES
from metaloss.machine import distributed, memory
from metaloss.machine.files import write_json
from metaloss.meta_optimizers.base import MetaStep
from metaloss.representations.saved.learned_loss import LearnedLoss
from metaloss.runs import checkpoint, inspection
from metaloss.runs.evaluation import evaluate
from metaloss.runs.folder import RunFolder
from metaloss.runs.metrics import MetricsFile, Row, finite_or_none
from metaloss.runs.progress import Progress
from metaloss.runs.runner import Runner
from metaloss.runs.state import State
from metaloss.runs.tensorboard import TensorBoard
from metaloss.tasks import TASKS

Returned = TypeVar("Returned")
#: Gives True for each step that it asks for, and is sent what the step did.
Follower = Generator[bool, MetaStep, Returned]


class Diverged(Exception):
    """The learned loss is no longer finite."""


class Stopped(Exception):
    """Someone asked the run to stop; its state is saved."""


class Run:
    """A model in training on a task, from a seed to a result.

    Args:
        plan: the components and numbers of the run.
        seed: decides θ_0, the validation split, all batches and dropout masks.
        device: where data and model live.
        data_dir: see `Task.load`.
        cuda_graphs: see `AdaLFL`; the run is the same one without.

    Attributes:
        state: everything that decides how the run goes on.
        stop: set it to True (from a signal handler, say) to have the run save itself and stop.
        label: what a person is told of which run, where there are several.

    Raises:
        DataError, ConfigError: the data cannot be read, or a recipe refuses the task's sizes.
    """

    def __init__(
        self,
        plan: Runner,
        seed: int,
        device: torch.device,
        data_dir: Path,
        cuda_graphs: bool = False,
    ) -> None:
        self.plan = plan
        self.seed = seed
        self.device = device
        self.state = State(plan, seed, device, data_dir, cuda_graphs)
        self.stop = False
        self.label = ""

    def restore(
        self, folder: RunFolder, config: str, at: checkpoint.Position | None = None
    ) -> None:
        """Goes on from the folder's checkpoint, if there is one.

        Args:
            at: where a checkpoint stands, to take that one.

        Raises:
            RunFolderError: the checkpoint is damaged or another configuration's; nothing is
                changed.
        """
        self.folder, self.config = folder, config
        self._written = checkpoint.restore(self.state, folder, config, at)
        done = {"initialization": self.state.init_steps, "train": self.state.steps}
        distributed.require_equal(done, "goes on from another step")
        self._starts = {phase: steps + 1 if steps else 0 for phase, steps in done.items()}

    def follow(self) -> Follower[dict[str, Any]]:
        """All that there is to a run beside its steps; gives False once, before it finishes.

        Of several processes the first alone evaluates and writes; the others make the same steps.

        Returns:
            The content of result.json.
        """
        self.began, self.earlier = time.monotonic(), self.state.seconds
        self.progress = Progress(self.label)
        if distributed.rank() > 0:
            status = yield from self._phases()
            yield False
            return self._result(status, {})
        written, events = self._written
        with (
            closing(MetricsFile(self.folder.metrics, written)) as self.metrics,
            closing(TensorBoard(self.folder.path, self._starts, events)) as self.board,
            closing(self.progress),
        ):
            if self.state.steps == 0:
                self.board.begin(self.config, self.state.data.objective.metric)
            status = yield from self._phases()
            waiting = time.monotonic()
            yield False
            self.began += time.monotonic() - waiting  # while others drew their figures
            return self._finish(status)

    def _phases(self) -> Follower[str]:
        """Both phases; how they ended."""
        try:
            yield from self._initialize()
            yield from self._train()
            self._save_checkpoint()
        except Diverged:
            return "diverged"
        except Stopped:
            return "stopped"
        return "finished"

    def _initialize(self) -> Follower[None]:
        """The initialisation phase, if there is one and what is left of it."""
        state, initialization = self.state, self.state.initializing
        if initialization is None:
            return
        self.progress.start("initialization", state.init_steps, initialization.steps)
        while state.init_steps < initialization.steps:
            result = yield True
            state.init_steps += 1
            last = state.init_steps == initialization.steps
            self._after_step("initialization", state.init_steps, last, result)

    def _train(self) -> Follower[None]:
        """The training, or what is left of it."""
        state, plan = self.state, self.plan
        sampled = self._equidistant(plan.samples) | {4**i for i in range(6)}  # and early ones
        drawn = self._equidistant(plan.figures)
        self.progress.start("training", state.steps, plan.steps)
        if state.steps == 0:
            state.latest.clear()  # the initialisation's numbers end with it
            state.sample_loss()
            if (cosine := state.precision_cosine()) is not None:
                self._log({"phase": "train", "step": 0, "precision_cosine": cosine})
            self._report()
        while state.steps < plan.steps:
            result = yield True
            state.steps += 1
            last = state.steps == plan.steps
            if state.steps in sampled:
                state.sample_loss()
            if state.steps in drawn and distributed.rank() == 0:
                with self.progress.sparing(f"the figures at step {state.steps}"):
                    inspection.show(self.board, state)
            if last or state.steps % plan.evaluate_every == 0:
                self._report("train", "valid")
            self._after_step("train", state.steps, last, result)

    def _finish(self, status: str) -> dict[str, Any]:
        """Evaluates on the test split and writes what the run leaves behind, result.json last."""
        from metaloss.runs import pictures  # matplotlib takes half a second

        numbers: dict[str, Any] = {}
        if status == "finished":
            row = self._evaluate("test")
            self._log(row)
            numbers = {k: finite_or_none(v) for k, v in row.items() if isinstance(v, float)}
        result = self._result(status, numbers)
        self._export_loss(result)
        with self.progress.sparing(f"figures (tools/figures.py {self.folder.path} draws them)"):
            pictures.draw(self.folder.path, pictures.title(result))
        if status != "stopped":
            inspection.conclude(self.board, self.folder, self.config, result)
        self.metrics.sync()
        write_json(self.folder.result, result)
        return result

    def _result(self, status: str, test: dict[str, Any]) -> dict[str, Any]:
        """The run in a few numbers, as it stands; with those of the test split, if there are."""
        state, plan = self.state, self.plan
        metric = state.data.objective.metric
        return {
            "task": TASKS.name_of(plan.task),
            "backbone": BACKBONES.name_of(plan.backbone),
            "method": plan.method,
            "seed": self.seed,
            "steps": state.steps,
            "init_steps": state.init_steps,
            "metric": metric,
            "test": test.get(metric),
            "test_metrics": test or None,
            "status": status,
            "skipped_meta_steps": int(state.skipped),
            "seconds": round(self._seconds(), 3),
            "peak_memory_bytes": memory.of_run(self.device),
        }

    # --- after each step ---

    def _after_step(self, phase: str, step: int, last: bool, result: MetaStep) -> None:
        if result.skipped is not None:
            self.state.skipped = self.state.skipped + result.skipped
        if last or step % self.plan.log_every == 0:
            self._log_step(phase, step, result)
        if distributed.anywhere(self.stop):
            self._save_checkpoint()
            raise Stopped
        if last or step % self.plan.checkpoint_every == 0:
            self._save_checkpoint()

    def _log_step(self, phase: str, step: int, result: MetaStep) -> None:
        """A row of metrics; the numbers leave the device only here.

        Raises:
            Diverged: the learned loss of a training step is no longer finite.
        """
        state = self.state
        learned_loss = result.learned_loss.item()
        if result.task_loss is not None:
            state.latest["task_loss"] = result.task_loss.item()
        if result.gradient_norm is not None:
            state.latest["gradient_norm"] = result.gradient_norm.item()
        self._log(
            {
                "phase": phase,
                "step": step,
                "learned_loss": learned_loss,
                **state.latest,
                "base_lr": float(state.learner.problem.optimizer.param_groups[0]["lr"]),
                "skipped": int(state.skipped),
            }
        )
        if phase == "train" and not math.isfinite(learned_loss):
            raise Diverged

    @distributed.first_alone
    def _report(self, *splits: str) -> None:
        """The indices of the learned loss, and what the model is worth on some splits."""
        self._log({"phase": "train", "step": self.state.steps, **inspection.numbers(self.state)})
        for split in splits:
            self._log(self._evaluate(split))

    @distributed.first_alone
    def _log(self, row: Row) -> None:
        row = {name: finite_or_none(value) for name, value in row.items()}
        row["seconds"] = round(self._seconds(), 3)
        self.metrics.write(row)
        self.board.scalars(row)
        self.progress.show(row)

    def _evaluate(self, split: str) -> Row:
        """Loss and metric on a split; of the training data, on as much as is held out."""
        data = self.state.data
        limit = len(data.splits["valid"][0]) if split == "train" else None
        numbers = evaluate(self.state.model, data, split, limit)
        return {"phase": "train", "step": self.state.steps, "split": split, **numbers}

    def _equidistant(self, count: int) -> frozenset[int]:
        """Steps at equal distances, the last among them."""
        return frozenset(round(i * self.plan.steps / count) for i in range(1, count + 1))

    # --- checkpoints ---

    def _save_checkpoint(self) -> None:
        self.state.seconds = self._seconds()
        self._write_checkpoint(self.state.state_dict())  # which asks all processes

    @distributed.first_alone
    def _write_checkpoint(self, state: dict[str, Any]) -> None:
        checkpoint.save(self.folder, self.config, self.metrics.sync(), state)
        self._export_loss(self._result("unfinished", {}))

    def _export_loss(self, provenance: dict[str, Any]) -> None:
        """The learned loss so far, for whoever looks at it or uses it."""
        state, objective = self.state, self.state.data.objective
        if state.loss is not None and state.samples:
            loss = LearnedLoss(
                state.loss, objective.link, trajectory=state.trajectory(), step=state.steps
            )
            provenance = {**provenance, "classes": inspection.classes(state)}
            loss.save_pretrained(self.folder.loss, **provenance, **self.folder.provenance())

    def _seconds(self) -> float:
        return self.earlier + time.monotonic() - self.began
