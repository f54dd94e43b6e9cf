"""Run: a Runner carried out, in reading order: set up, initialise, train, evaluate, finish."""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metaloss import checkpoint, seeding
from metaloss.backbones import BACKBONES
from metaloss.errors import RunFolderError
from metaloss.export import Trajectory, flat, save_loss
from metaloss.learner import AdaLFL
from metaloss.loggers import MetricsFile, Progress, Row, TensorBoard
from metaloss.meta_optimizers.base import MetaOptimizer, MetaStep
from metaloss.problem import Batch
from metaloss.run_folder import RunFolder, write_json
from metaloss.runner import Runner
from metaloss.tasks import TASKS

#: What draws from a stream of its own. "theta", "split" and "train" do not depend on the method.
STREAMS = ("theta", "split", "train", "objective", "init_theta", "init_train", "init_objective")


class Diverged(Exception):
    """A loss or a parameter is no longer finite."""


class Stopped(Exception):
    """Someone asked the run to stop; its state is saved."""


class Run:
    """A model in training on a task, from a seed to a result.

    Args:
        plan: the components and numbers of the run.
        seed: decides θ_0, the validation split, all batches and dropout masks.
        device: where data and model live.
        data_dir: see `Task.load`.

    Attributes:
        stop: set it to True (from a signal handler, say) to have the run save itself and stop.

    Raises:
        DataError, ConfigError: the data cannot be read, or a recipe refuses the task's sizes.
    """

    def __init__(self, plan: Runner, seed: int, device: torch.device, data_dir: Path) -> None:
        self.plan = plan
        self.seed = seed
        self.device = device
        self.stop = False
        self.streams = {name: seeding.stream(seed, name) for name in STREAMS}
        torch.manual_seed(seeding.stream(seed, "global").initial_seed())  # dropout
        self.data = plan.task.load(data_dir, self.streams["split"]).to(device)
        self.model = self._draw_model("theta").to(device).train()
        self.loss = None if plan.representation is None else plan.representation.to(device)
        objective = plan.task.objective
        self.learner = AdaLFL(
            self.model,
            plan.base_optimizer(self.model.parameters()),
            self.loss,
            objective.loss,
            link=objective.link,
            meta_lr=None,
            adaptation=plan.adaptation,
        )
        if plan.initialization is not None:
            plan.initialization.attach(self.learner.problem)
        self.init_steps = 0  # meta-steps of the initialisation made so far
        self.steps = 0  # base steps of the training made so far
        self.skipped = 0
        self.seconds = 0.0  # of earlier starts
        self.samples: dict[int, Tensor] = {}  # φ by base step
        self.latest: dict[str, float | None] = {}  # of the latest meta-step

    # --- the run, from top to bottom ---

    def execute(self, folder: RunFolder, config: str) -> dict[str, Any]:
        """Carries the run out, going on from the folder's checkpoint if there is one.

        Returns:
            The content of result.json.

        Raises:
            RunFolderError: the checkpoint is damaged or another configuration's; nothing is changed.
        """
        written = self._continue_from(folder.checkpoint, config)
        self.folder, self.config = folder, config
        self.began = time.monotonic()
        starts = {"initialization": self.init_steps + 1, "train": self.steps + 1}
        with (
            closing(MetricsFile(folder.metrics, written)) as self.metrics,
            closing(TensorBoard(folder.path, starts if written else {})) as self.board,
            closing(Progress()) as self.progress,
        ):
            self.board.text("config", config)
            status = "finished"
            try:
                self._initialize()
                self._train()
                self._save_checkpoint()
            except Diverged:
                status = "diverged"
            except Stopped:
                status = "stopped"
            return self._finish(status)

    def rehearse(self) -> None:
        """One step of each phase, without files, to see that they work."""
        for meta_optimizer in (self.plan.initialization, self.plan.adaptation):
            if meta_optimizer is not None:
                meta_optimizer.step(
                    lambda: self._draw("train", "init_train"),
                    lambda: self._draw("valid", "init_objective"),
                )
        self.learner.step(
            lambda: self._draw("train", "train"), lambda: self._draw("valid", "objective")
        )

    def _initialize(self) -> None:
        initialization = self._initializing
        if initialization is None:
            return
        self.progress.start("initialization", self.init_steps, initialization.steps)
        phase = self.learner.initializing(
            initialization,
            lambda: self._draw("train", "init_train"),
            lambda: self._draw(initialization.objective, "init_objective"),
            self._redraw,
            start=self.init_steps,
        )
        for result in phase:
            self.init_steps += 1
            last = self.init_steps == initialization.steps
            self._after_step("initialization", self.init_steps, last, result)

    def _train(self) -> None:
        self.progress.start("training", self.steps, self.plan.steps)
        objective = "valid" if self.plan.adaptation is None else self.plan.adaptation.objective
        if self.steps == 0:
            self._sample_loss()
        while self.steps < self.plan.steps:
            result = self.learner.step(
                lambda: self._draw("train", "train"), lambda: self._draw(objective, "objective")
            )
            self.steps += 1
            last = self.steps == self.plan.steps
            if self.steps in self._sample_steps():
                self._sample_loss()
            if last or self.steps % self.plan.evaluate_every == 0:
                self._log({**self._evaluate("train"), "split": "train"})
                self._log({**self._evaluate("valid"), "split": "valid"})
            self._after_step("train", self.steps, last, result)

    def _finish(self, status: str) -> dict[str, Any]:
        """Evaluates on the test split and writes what the run leaves behind, result.json last."""
        plan, metric = self.plan, self.plan.task.objective.metric
        test = None
        if status == "finished":
            row = self._evaluate("test")
            self._log({**row, "split": "test"})
            test = row[metric]
        result = {
            "task": TASKS.name_of(plan.task),
            "backbone": BACKBONES.name_of(plan.backbone),
            "method": plan.method,
            "seed": self.seed,
            "steps": self.steps,
            "init_steps": self.init_steps,
            "metric": metric,
            "test": test,
            "status": status,
            "skipped_meta_steps": self.skipped,
            "seconds": round(self._seconds(), 3),
            "peak_memory_bytes": _peak_memory(self.device),
        }
        if self.loss is not None:
            save_loss(
                self.folder.loss, self.loss, plan.task.objective.link, self._trajectory(), result
            )
        self._draw_figures()
        write_json(self.folder.result, result)
        return result

    # --- after each step ---

    def _after_step(self, phase: str, step: int, last: bool, result: MetaStep) -> None:
        self.skipped += result.skipped
        if last or step % self.plan.log_every == 0:
            self._log_step(phase, step, result)
        if self.stop:
            self._save_checkpoint()
            raise Stopped
        if last or step % self.plan.checkpoint_every == 0:
            self._save_checkpoint()

    def _log_step(self, phase: str, step: int, result: MetaStep) -> None:
        """A row of metrics; the numbers leave the device only here.

        Raises:
            Diverged: the learned loss or the outputs behind it are no longer finite.
        """
        row: Row = {"phase": phase, "step": step, "learned_loss": result.learned_loss.item()}
        if result.task_loss is not None and result.gradient_norm is not None:
            self.latest["task_loss"] = result.task_loss.item()
            self.latest["gradient_norm"] = result.gradient_norm.item()
        row |= self.latest
        row["base_lr"] = float(self.learner.problem.optimizer.param_groups[0]["lr"])
        row["skipped"] = self.skipped
        finite = math.isfinite(row["learned_loss"])
        self._log({name: _finite_or_none(value) for name, value in row.items()})
        if phase == "train" and not finite:
            raise Diverged

    def _log(self, row: Row) -> None:
        row = {"phase": "train", "step": self.steps, **row, "seconds": round(self._seconds(), 3)}
        self.metrics.write(row)
        self.board.scalars(row)
        self.progress.show(row)

    def _sample_loss(self) -> None:
        """Keeps φ, and draws the loss into TensorBoard every so often."""
        if self.loss is None:
            return
        self.samples[self.steps] = flat(self.loss)
        if len(self.samples) % max(1, self.plan.samples // self.plan.figures) == 1:
            self.board.figure("loss/curves", self._loss_figure(), self.steps)

    def _sample_steps(self) -> frozenset[int]:
        plan = self.plan
        return frozenset(round(i * plan.steps / plan.samples) for i in range(plan.samples + 1))

    @torch.no_grad()
    def _evaluate(self, split: str) -> Row:
        """Loss and metric on a split in eval mode; of the training data, as many as are held out.

        The seconds of evaluations are part of the run's time.
        """
        task = self.plan.task
        inputs, labels = self.data.splits[split]
        if split == "train":
            count = len(self.data.splits["valid"][0])
            inputs, labels = inputs[:count], labels[:count]
        loss, error = 0.0, 0.0
        self.model.eval()
        for x, y in zip(inputs.split(1000), labels.split(1000), strict=True):
            outputs = self.model(x)
            loss += task.objective.loss(outputs, y).item() * len(x)
            error += task.objective.errors(outputs, y).double().sum().item()
        self.model.train()
        row = {"loss": loss / len(inputs), task.objective.metric: error / len(inputs)}
        return {name: _finite_or_none(value) for name, value in row.items()}

    # --- randomness: each draw has its stream ---

    def _draw(self, split: str, stream: str) -> Batch:
        return self.data.draw(split, self.plan.task.batch_size, self.streams[stream])

    def _draw_model(self, stream: str) -> nn.Module:
        with seeding.drawing_from(self.streams[stream]):
            return self.plan.backbone(
                input_shape=self.data.input_shape, outputs=self.data.outputs
            )

    def _redraw(self) -> None:
        self.model.load_state_dict(self._draw_model("init_theta").state_dict())

    # --- what a checkpoint holds ---

    def _save_checkpoint(self) -> None:
        checkpoint.save(self.folder.checkpoint, self.state_dict() | {"config": self.config})

    def _continue_from(self, path: Path, config: str) -> int:
        """Takes the state of the checkpoint, if there is one; the bytes of metrics it counts."""
        if not path.is_file():
            return 0
        state = checkpoint.load(path)
        if state.get("config") != config:
            raise RunFolderError(f"{path} is a checkpoint of another configuration; nothing changed")
        self.load_state_dict(state)
        return int(state["metrics_bytes"])

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how the run goes on: tensors and plain data."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.learner.problem.optimizer.state_dict(),
            "learner": self.learner.state_dict(),
            "initialization": self._initializing.state_dict() if self._initializing else {},
            "init_steps": self.init_steps,
            "steps": self.steps,
            "skipped": self.skipped,
            "seconds": self._seconds(),
            "samples": self.samples,
            "latest": self.latest,
            "streams": {name: stream.get_state() for name, stream in self.streams.items()},
            "global": seeding.global_state(self.device),
            "metrics_bytes": self.metrics.sync(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on bit for bit from what `state_dict` gave."""
        self.init_steps, self.steps = state["init_steps"], state["steps"]
        self.learner.problem.optimizer.load_state_dict(state["optimizer"])
        self.learner.load_state_dict(state["learner"])
        if self._initializing:
            # θ is drawn anew at each step, and the model that stands here is the seed's θ_0.
            self._initializing.load_state_dict(state["initialization"])
        else:
            self.model.load_state_dict(state["model"])
        self.skipped, self.seconds = state["skipped"], state["seconds"]
        self.samples, self.latest = dict(state["samples"]), dict(state["latest"])
        for name, stream in self.streams.items():
            stream.set_state(state["streams"][name])
        seeding.set_global_state(state["global"], self.device)

    @property
    def _initializing(self) -> MetaOptimizer | None:
        """The initialisation's meta-optimizer, while it is at work."""
        initialization = self.plan.initialization
        if initialization is None or self.init_steps >= initialization.steps:
            return None
        return initialization

    # --- what is left to look at ---

    def _trajectory(self) -> Trajectory:
        steps = sorted(self.samples)
        phi = [self.samples[step] for step in steps] or [flat(self.loss)]
        return Trajectory(torch.tensor(steps or [0]), torch.stack(phi))

    def _loss_figure(self) -> Any:
        from metaloss.analysis import curves, figures

        classification = self.plan.task.objective.metric == "error_rate"
        sampled = curves.sample(self.loss, self._trajectory(), classification)
        return figures.loss_curves(sampled, f"{self.plan.method}, seed {self.seed}")

    def _draw_figures(self) -> None:
        from metaloss.analysis import figures

        self.folder.figures.mkdir(exist_ok=True)
        rows = [json.loads(line) for line in self.folder.metrics.read_text().splitlines()]
        metric = self.plan.task.objective.metric
        drawn = {"learning_curve.png": figures.learning_curve(rows, metric, self.plan.method)}
        if self.loss is not None:
            drawn["loss.png"] = self._loss_figure()
            self.board.figure("loss/curves", drawn["loss.png"], self.steps)
        for name, figure in drawn.items():
            figure.savefig(self.folder.figures / name, dpi=120)

    def _seconds(self) -> float:
        return self.seconds + time.monotonic() - self.began


def _finite_or_none(value: Any) -> Any:
    """JSON has no NaN: a number that is not finite is written as null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU's memory that tensors took, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    kilobyte = 1024 if sys.platform != "darwin" else 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobyte
