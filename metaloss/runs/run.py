"""Run: a Runner carried out, in reading order: begin, what is due after each step, finish.

The loop over the steps, of one run or of several seeds at once, is `metaloss.runs.lockstep`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metaloss.machine import clock, distributed, memory
from metaloss.machine.files import write_json
from metaloss.meta_optimizers.base import MetaStep
from metaloss.representations.saved.learned_loss import LearnedLoss
from metaloss.runs import checkpoint, inspection
from metaloss.runs.callbacks.base import Start
from metaloss.runs.callbacks.parts.everyone import Everyone
from metaloss.runs.callbacks.tensorboard import TensorBoard
from metaloss.runs.evaluation import evaluate, examine
from metaloss.runs.folder import RunFolder
from metaloss.runs.metrics import MetricsFile, Row, finite_or_none
from metaloss.runs.progress import Progress
from metaloss.runs.runner import Runner
from metaloss.runs.state import State
from metaloss.runs.trained import calibration, saved_model

FEW = 256  #: examples by which evaluations are timed before a run
LONG = 60.0  #: seconds from which on a run draws all its pictures, and some while it trains


class Run:
    """A model in training on a task, from a seed to a result.

    Of several processes the first alone evaluates and writes; the others make the same steps.

    Args:
        plan: the components and numbers of the run.
        seed: decides θ_0, the validation split, all batches and dropout masks.
        device: where data and model live.
        data_dir: see `Task.load`.
        folder: where the run leaves its files.
        config: the complete configuration.
        cuda_graphs: see `AdaLFL`; the run is the same one without.
        sharded: see `State`; likewise.

    Attributes:
        state: everything that decides how the run goes on.
        status: "unfinished", until the run ends: "finished", "diverged" or "stopped".
        stop: set it to True (from a signal handler, say) to have the run save itself and stop.
        progress: tells a person how far the run is.

    Raises:
        DataError, ConfigError: the data cannot be read, or a recipe refuses the task's sizes.
    """

    def __init__(
        self,
        plan: Runner,
        seed: int,
        device: torch.device,
        data_dir: Path,
        folder: RunFolder,
        config: str,
        cuda_graphs: bool = False,
        sharded: bool = False,
    ) -> None:
        self.plan = plan
        self.seed = seed
        self.device = device
        self.folder = folder
        self.config = config
        self.state = State(plan, seed, device, data_dir, cuda_graphs, sharded)
        self.state.learner.tell = self._tell_unhealthy
        self.status = "unfinished"
        self.stop = False
        metric = self.state.data.objective.metric
        self.progress = Progress(metric, learned=plan.representation is not None)
        self.metrics = MetricsFile(folder.metrics)
        by_default = [TensorBoard()] if find_spec("tensorboard") is not None else []
        callbacks = by_default if plan.callbacks is None else plan.callbacks
        self.callbacks = Everyone(callbacks, self._warn)
        self._restored: tuple[int, dict[str, Any]] = 0, {}  # see `checkpoint.restore`
        self._sampled = self._equidistant(plan.samples) | {4**i for i in range(6)}  # and early ones
        empty = torch.empty(0, self.state.data.outputs)
        self._columns = inspection.classes(self.state.data.objective.link, empty)
        self._found: dict[str, float] = {}  # the metric by split, of the latest evaluation
        self._shown = self._equidistant(plan.figures)
        self._began = self._ended = time.monotonic()

    def restore(self, at: checkpoint.Position | None = None) -> None:
        """Goes on from the folder's checkpoint, if there is one.

        Args:
            at: where a checkpoint stands, to take that one.

        Raises:
            RunFolderError: the checkpoint is damaged or another configuration's; nothing is
                changed.
        """
        self._restored = checkpoint.restore(self.state, self.folder, self.config, at)
        stands = (self.state.init_steps, self.state.steps)
        distributed.require_equal(stands, "goes on from another step")

    def begin(self) -> bool:
        """Opens the files and enters the phase that the run stands in.

        Returns:
            Whether it asks for a step.

        Raises:
            RunFolderError: from each method: a file of the folder cannot be written.
        """
        state = self.state
        self._began = time.monotonic() - state.seconds
        if distributed.rank() == 0:
            metrics, callbacks = self._restored
            rows = self.metrics.resume(metrics)
            self.callbacks.begin(self._start(rows), callbacks)
        if (initialization := state.initializing) is not None:
            total = initialization.steps
            alike = total - getattr(initialization, "phases", [initialization])[-1].steps
            self.progress.start("initialization", state.init_steps, total, alike)
        else:
            self._begin_training()
        return self.status == "unfinished"

    def after_step(self, result: MetaStep) -> bool:
        """Counts a step of the phase that the run is in, and does what is due after it.

        Returns:
            Whether it asks for one more.
        """
        if (initialization := self.state.initializing) is not None:
            self._after_meta_step(initialization.steps, result)
        else:
            self._after_training_step(result)
        return self.status == "unfinished"

    def finish(self) -> dict[str, Any]:
        """Evaluates on the test split and writes what the run leaves behind, result.json last.

        Returns:
            The content of result.json.
        """
        self._began += time.monotonic() - self._ended  # others drew their figures meanwhile
        if distributed.rank() > 0:
            return self._result({})
        numbers: dict[str, Any] = {}
        details: dict[str, Any] = {}
        if self.status == "finished":
            self._leave_model()
            numbers, details = self._test()
        result = {**self._result(numbers), **details}
        self._export_loss(result)
        if self.status != "stopped":  # its end is still to come, and whoever stopped it waits
            if self.plan.figures:
                self._draw(result)
                result.update(self._times())
            self.callbacks.end(result)
        self.metrics.sync()
        write_json(self.folder.result, result)
        self.close()
        return result

    @clock.part("evaluation")
    def _test(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The model, or the best one so far, on the test split: in numbers, and in detail."""
        if self.state.best is not None:
            self.state.model.load_state_dict(self.state.best["model"])
            if self.state.average is not None:
                self.state.average.load_state_dict(self.state.best["average"])
        found = examine(self.state.model, self.state.data, "test")
        average = self._of_average(lambda m: examine(m, self.state.data, "test").numbers)
        numbers = {**found.numbers, **average}
        self._log(self._row_of("test", numbers))
        self.folder.keep_errors(found.errors.numpy(), found.labels.numpy())
        numbers = {name: finite_or_none(value) for name, value in numbers.items()}
        return numbers, {"recall": found.scores.recall, "reliability": found.scores.reliability}

    def close(self) -> None:
        """Ends the files, whatever has become of the run."""
        self.state.data.close()
        self.progress.close()
        self.callbacks.close()
        self.metrics.close()

    # --- the phases ---

    def _after_meta_step(self, total: int, result: MetaStep) -> None:
        """A meta-step of the initialisation was made; after the last one the training begins."""
        state = self.state
        state.init_steps += 1
        last = state.init_steps == total
        self._record("initialization", state.init_steps, last, result)
        if last and self.status == "unfinished":
            self._begin_training()

    def _begin_training(self) -> None:
        """The training begins, or goes on; or there is nothing left of it."""
        state = self.state
        examples = self.plan.task.batch_size * self.plan.micro_batches
        self.progress.start("training", state.steps, state.total, examples=examples)
        if state.steps == 0:
            state.begin_training()
            state.latest.clear()  # the initialisation's numbers end with it
            state.sample_loss()
            if (cosine := state.precision_cosine()) is not None:
                self._log({"phase": "train", "step": 0, "precision_cosine": cosine})
            self._report()
        if state.steps == state.total or state.impatient:
            self._save_checkpoint()  # a run of no steps at all has none yet
            self._end("finished")

    def _after_training_step(self, result: MetaStep) -> None:
        """A base step of the training was made."""
        state, plan = self.state, self.plan
        state.steps += 1
        if state.steps in state.freezing.steps:
            state.freezing.apply(state.steps)
        if state.average is not None and state.steps > plan.averaged_after(state.total):
            state.average.update_parameters(state.model)
        last = state.steps == state.total
        if state.steps in self._sampled:
            state.sample_loss()
        evaluates = last or state.steps % plan.evaluate_every == 0
        if evaluates or state.steps in self._shown:
            state.collect()
        if state.steps in self._shown:
            self._show(last)
        if evaluates:
            self._report("train", "valid", *({"select"} & self.state.data.splits.keys()))
            if state.schedule is not None and state.schedule.by_metric:
                state.schedule.note(distributed.gather(self._found.get("valid"))[0])
            if plan.patience is not None:  # the first process alone has looked
                state.waited = distributed.gather(state.waited)[0]
                last = last or state.impatient
        self._record("train", state.steps, last, result)
        if last and self.status == "unfinished":
            self._end("finished")

    def _record(self, phase: str, step: int, last: bool, result: MetaStep) -> None:
        """What is due after a step of either phase: a row, a checkpoint, an end that is early."""
        state, plan = self.state, self.plan
        if result.skipped is not None:
            state.skipped = state.skipped + result.skipped
        if result.adjoint_residual is not None:
            state.note_residual(result.adjoint_residual)
        if last or step % plan.log_every == 0:
            learned_loss = self._log_step(phase, step, result)
            if phase == "train" and not math.isfinite(learned_loss):
                self._end("diverged")  # its checkpoint is the last one before
                return
        if phase == "train" and state.schedule is not None and not last:
            state.schedule.after_step()
        self._tell_step(step)
        stop = distributed.anywhere(self.stop)
        if stop or last or step % plan.checkpoint_every == 0:
            self._save_checkpoint()
        if stop:
            self._end("stopped")

    def _end(self, status: str) -> None:
        self.status = status
        self._ended = time.monotonic()

    # --- what it tells ---

    def _log_step(self, phase: str, step: int, result: MetaStep) -> float:
        """A row of metrics; the numbers leave the device only here. Gives the learned loss."""
        state = self.state
        if state.residual is not None:  # of a certified step, which seldom is one that is logged
            state.latest["adjoint_residual"] = state.residual.item()
            state.residual = None
        made = inspection.of_step(state.acting, result, state.latest)
        self._log({"phase": phase, "step": step, **made, "skipped": int(state.skipped)})
        return made["learned_loss"]

    def _start(self, rows: int) -> Start:
        """What callbacks are told of the run when it begins, or goes on."""
        return Start(
            self.folder.path,
            self.config,
            self.plan.names,
            self.seed,
            self.state.data.objective.metric,
            {"initialization": self.state.init_steps, "train": self.state.steps},
            rows,
        )

    def _tell_unhealthy(self, trouble: str) -> None:
        """The learned loss does not work, in the step that is being made."""
        state = self.state
        phase, made = "train", state.steps
        if state.initializing is not None:
            phase, made = "initialization", state.init_steps
        health = state.learner.health().status
        self._log({"phase": phase, "step": made + 1, "health": health, "warning": trouble})
        self._warn(trouble)

    @distributed.first_alone
    def _warn(self, trouble: str) -> None:
        self.progress.warn(trouble)

    @distributed.first_alone
    def _tell_step(self, step: int) -> None:
        self.progress.step(step)

    @clock.part("figures")
    @distributed.first_alone
    def _show(self, last: bool) -> None:
        """Looks at the loss; its curves are drawn in long runs alone, the last at the end."""
        state = self.state
        if state.loss is None:
            return
        with self.progress.sparing(f"the figures at step {state.steps}"):
            batch = inspection.examples(state)
            self.callbacks.after_look(inspection.look(state.learner, batch, state.steps))
            if self._is_long() and not last:
                so_far = state.trajectory(), self._columns, state.steps
                self.callbacks.after_look(inspection.look_at_curves(state.loss, *so_far))

    @clock.part("figures")
    def _draw(self, result: dict[str, Any]) -> None:
        with self.progress.sparing(f"figures (tools/figures.py {self.folder.path} draws them)"):
            from metaloss.runs import pictures  # matplotlib takes half a second, and may be missing

            names = None if self._is_long() else pictures.OF_SHORT_RUNS
            pictures.draw(self.folder.path, pictures.title(result), names, result)

    def _is_long(self) -> bool:
        return self.seconds() >= LONG

    def _result(self, test: dict[str, Any]) -> dict[str, Any]:
        """The run in a few numbers, as it stands; with those of the test split, if there are."""
        state = self.state
        metric, best = state.data.objective.metric, state.best
        selection = state.selection
        if best is not None and self.plan.keep_best == "select":
            selection = best["value"]
        return {
            **self.plan.names,
            "seed": self.seed,
            "steps": state.steps,
            "init_steps": state.init_steps,
            "metric": metric,
            "test": test.get(metric),
            "select": finite_or_none(selection),
            "best_step": best and best["step"],
            "stopped_early": state.impatient and state.steps < state.total,
            "test_metrics": test or None,
            "status": self.status,
            "skipped_meta_steps": int(state.skipped),
            "health": None if state.loss is None else state.learner.health().status,
            "health_warnings": list(state.learner.health().warnings),
            "steps_by_task_loss": state.learner.steps_by_task_loss,
            "adjoint_residual": None
            if state.worst_residual is None
            else finite_or_none(float(state.worst_residual)),
            **self._times(),
            "peak_memory_bytes": memory.of_run(self.device),
        }

    def _times(self) -> dict[str, Any]:
        """Seconds so far, and what they were spent on."""
        seconds = self.seconds()
        by_part = self.state.clock.by_part(seconds)
        return {"seconds": round(seconds, 3), "seconds_by_part": by_part}

    @clock.part("evaluation")
    @distributed.first_alone
    def _report(self, *splits: str) -> None:
        """Logs the indices of the learned loss, and loss and metric of the model on some splits."""
        self._log({"phase": "train", "step": self.state.steps, **self._indices()})
        for split in splits:
            row = self._evaluate(split)
            self._log(row)
            self._found[split] = row[self.state.data.objective.metric]
            if split == "select":
                self.state.selection = self._found[split]
            if split == self.plan.keep_best:
                self.state.keep_best(self._found[split])

    @distributed.first_alone
    def _log(self, row: Row) -> None:
        row = {name: finite_or_none(value) for name, value in row.items()}
        row["seconds"] = round(self.seconds(), 3)
        self.metrics.write(row)
        tell = self.callbacks.after_evaluation if "split" in row else self.callbacks.after_step
        tell(row)
        self.progress.show(row)

    def _indices(self) -> dict[str, float]:
        state = self.state
        return inspection.numbers(state.learner, inspection.examples(state), state.samples.get(0))

    def _evaluate(self, split: str) -> Row:
        """Loss and metric on a split; of the training data, on as much as is held out."""
        data = self.state.data
        limit = len(data.splits["valid"][0]) if split == "train" else None
        measure = partial(evaluate, data=data, split=split, limit=limit)
        return self._row_of(split, {**measure(self.state.model), **self._of_average(measure)})

    def evaluation_seconds(self) -> float:
        """That all evaluations of the training will take, by one on a few examples."""
        sizes = {name: len(labels) for name, (_, labels) in self.state.data.splits.items()}
        count = len(range(0, self.state.total, self.plan.evaluate_every))
        examples = sizes["test"] + count * (2 * sizes["valid"] + sizes.get("select", 0))
        began = time.monotonic()
        taken = min(FEW, sizes["valid"])
        evaluate(self.state.model, self.state.data, "valid", taken)
        forward = (time.monotonic() - began) / taken * examples
        began = time.monotonic()
        self._indices()
        looking = (time.monotonic() - began) * (count + 1)
        return forward * (1 if self.state.average is None else 2) + looking

    def _of_average(self, measure: Callable[[nn.Module], dict[str, float]]) -> dict[str, float]:
        """The same numbers of the averaged θ, if the run keeps one and it has begun."""
        average = self.state.average
        if average is None or not average.n_averaged:
            return {}
        kind = "swa" if self.plan.ema is None else "ema"
        return {f"{kind}_{name}": value for name, value in measure(average.module).items()}

    def _row_of(self, split: str, numbers: dict[str, float]) -> Row:
        return {"phase": "train", "step": self.state.steps, "split": split, **numbers}

    def _equidistant(self, count: int) -> frozenset[int]:
        """Steps at equal distances, the last among them."""
        return frozenset(round(i * self.state.total / count) for i in range(1, count + 1))

    # --- checkpoints ---

    @clock.part("checkpoint")
    def _save_checkpoint(self) -> None:
        self.state.seconds = self.seconds()
        self._write_checkpoint(self.state.state_dict())  # which asks all processes

    @distributed.first_alone
    def _write_checkpoint(self, state: dict[str, Any]) -> None:
        metrics, callbacks = self.metrics.sync(), self.callbacks.state_dict()
        checkpoint.save(self.folder, self.config, metrics, callbacks, state)
        self._export_loss(self._result({}))

    @clock.part("evaluation")
    def _leave_model(self) -> None:
        """The model, for whoever uses it where neither data nor gin files are."""
        state = self.state.standing()
        saved = saved_model.of_state(self.plan, self.seed, state)
        if saved is None:
            why = saved_model.obstacle(self.plan, state["data"])
            self._warn(
                f"there is no model.json: {why}; metaloss.load_model takes the model from "
                "checkpoint.pt, with this run's data and plugins"
            )
        else:
            calibration.calibrated(saved, self.state.data).write(self.folder.path)

    def _export_loss(self, provenance: dict[str, Any]) -> None:
        """The learned loss so far, for whoever looks at it or uses it."""
        state, objective = self.state, self.state.data.objective
        if state.loss is not None and state.samples:
            loss = LearnedLoss(
                state.loss, objective.link, trajectory=state.trajectory(), step=state.steps
            )
            inspection.export(self.folder, loss, self._columns, provenance)

    def seconds(self) -> float:
        """That the run has taken so far, in all its processes one after the other."""
        return time.monotonic() - self._began
