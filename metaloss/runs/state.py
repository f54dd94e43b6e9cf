"""State: everything that decides how a run goes on, and nothing else."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from metaloss.engines.base import Draw
from metaloss.errors import InputError
from metaloss.learner import AdaLFL
from metaloss.machine import clock, distributed, seeding
from metaloss.meta_optimizers.base import MetaOptimizer
from metaloss.problem.batches import Batch, StepBatch
from metaloss.representations.saved.trajectory import Trajectory, flat
from metaloss.runs.compiling import refuse_compiling
from metaloss.runs.freezing import Freezing
from metaloss.runs.precision import cosine
from metaloss.runs.recomputing import recompute
from metaloss.runs.runner import Runner
from metaloss.runs.schedule import Schedule
from metaloss.runs.sharding import Sharded, refuse_sharding
from metaloss.tasks.preparation import kept

#: Whose streams batches are drawn from: the training's, or the initialisation's.
Phase = Literal["", "init_"]
#: A kind of batches: the split, how many examples, and the stream that draws them.
Asked = tuple[str, int, str]
Arranged = TypeVar("Arranged", nn.Module, Tensor)

#: The streams that a state draws from. "theta" and "train" do not depend on the method.
DRAWING = (
    *("theta", "train", "objective", "init_theta", "init_train", "init_objective"),
    *("mix", "init_mix"),
)
#: Of the batches that θ is trained on, what draws how they are mixed. Those that the task loss is
#: taken on stay as they are.
MIXED = {"train": "mix", "init_train": "init_mix"}


class State:
    """Data, model, learner, random streams and counters of a run.

    Args:
        plan: the components of the run.
        seed: decides θ_0, the validation split, all batches and dropout masks, where
            `Runner.seed_of` names no other.
        device: where data and model live.
        data_dir: see `Task.load`.
        cuda_graphs: see `AdaLFL`; the run is the same one without.
        sharded: the training is made in shards, see `sharding`; likewise.

    Raises:
        DataError, ConfigError: the data cannot be read, or a recipe refuses the task's sizes.
        InputError: a batch has fewer examples than there are processes.
    """

    def __init__(
        self,
        plan: Runner,
        seed: int,
        device: torch.device,
        data_dir: Path,
        cuda_graphs: bool = False,
        sharded: bool = False,
    ) -> None:
        if sharded:
            refuse_sharding(plan, cuda_graphs)
        if plan.compile_backbone:
            refuse_compiling(plan, cuda_graphs, sharded)
        self._plan = plan
        self._device = device
        self._seed = seed
        self._streams = {name: plan.stream(seed, name) for name in DRAWING}
        self._seed_globally("global")  # dropout
        self.data = plan.load_data(data_dir, seed).to(device)
        self.mixing = plan.mixing(self.data)
        self.total = plan.steps_on(self.data)  # base steps of the whole training
        self.model = self._new_model(self._streams["theta"])
        self.loss = None if plan.representation is None else plan.representation.to(device)
        self._sharding = sharded
        self._sharded: Sharded | None = None  # from the training's first step on
        optimizer = plan.optimizer(self.model)  # of all parameters, also those frozen until later
        self.freezing = Freezing(self.model, plan.frozen_until)
        self.freezing.apply(0)
        self.learner = self._new_learner(self.model, optimizer, cuda_graphs)
        if plan.compile_backbone:
            self.learner.problem.compile()
        if self.loss is not None:
            objective = self.data.objective
            labels = self.data.splits["train"][1][:2]
            outputs = torch.zeros(len(labels), self.data.outputs, device=device)
            self.loss.require_pairs(*objective.link(outputs, labels)[:2])
        if plan.initialization is not None:
            plan.initialization.attach(self.learner.problem)
        self.schedule = self._new_schedule()  # of the training: it begins with it
        if cuda_graphs and plan.micro_batches > 1:
            raise InputError("cuda_graphs: no graph is made of micro-batches, leave it out")
        if cuda_graphs and self.schedule is not None and not self.schedule.seldom:
            raise InputError(
                "cuda_graphs: a graph holds one base learning rate, and Runner.schedule gives each "
                "step another: leave one of them out, or take schedules.steps or schedules.plateau"
            )
        for size in self._batch_sizes():
            distributed.share(size)  # refuses what is too small now, not after the first steps
        self.init_steps = 0  # meta-steps of the initialisation made so far
        self.steps = 0  # base steps of the training made so far
        self.skipped: int | Tensor = 0  # meta-steps whose gradient was not used; on the device
        self.residual: Tensor | None = None  # of the latest certificate, until it is logged
        self.worst_residual: Tensor | None = None  # of all certificates; None: there is none
        self.seconds = 0.0  # spent before the process that runs now
        self.clock = clock.Clock()  # what they were spent on, and those of this process
        self.samples: dict[int, Tensor] = {}  # φ by base step
        self.latest: dict[str, float] = {}  # numbers of the latest meta-step
        self.selection: float | None = None  # the latest metric on the split "select"
        self.best: dict[str, Any] | None = None  # the model that was best so far, see `keep_best`
        self.waited = 0  # evaluations since then
        self.average: AveragedModel | None = None  # of θ and buffers, once the training begins
        self._generators = seeding.global_state(device)  # torch's global ones, between turns
        self._taking_turns = False

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of how data and model were made."""
        return *self.data.notes, *getattr(self.model, "notes", ())

    @property
    def acting(self) -> AdaLFL:
        """The learner that makes the training's steps: of the shards, where there are some."""
        return self.learner if self._sharded is None else self._sharded.learner

    def shard(self) -> None:
        """The training's next step is made in shards, if that was asked for."""
        if self._sharding and self._sharded is None:
            model = self._new_model(torch.Generator())
            self._sharded = Sharded(self.learner, model, self._plan.optimizer, self._new_learner)
            if self.schedule is not None:
                self.schedule.steer(self.acting.problem.optimizer)

    def collect(self, moments: bool = False) -> None:
        """Before the model is looked at; all processes take part. See `Sharded.collect`."""
        if self._sharded is not None:
            self._sharded.collect(moments)

    def begin_training(self) -> None:
        """The initialisation is over: the schedule begins, at the rates that it has left."""
        self.schedule = self._new_schedule()
        if self.schedule is not None:
            self.schedule.write()
        self.average = self._new_average()

    @property
    def impatient(self) -> bool:
        """Whether too many evaluations were no better than the best one."""
        return self._plan.patience is not None and self.waited >= self._plan.patience

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Within it torch's global generators are this run's own, of several in the process."""
        outside = seeding.global_state(self._device)
        seeding.set_global_state(self._generators, self._device)
        self._taking_turns = True
        try:
            yield
        finally:
            self._generators = seeding.global_state(self._device)
            seeding.set_global_state(outside, self._device)

    def end_turns(self, first: State) -> None:
        """From here on several runs draw together, from where the first one's generators stand."""
        self._taking_turns = False
        seeding.set_global_state(first._generators, self._device)

    @property
    def initializing(self) -> MetaOptimizer | None:
        """The initialisation's meta-optimizer, while it is at work."""
        initialization = self._plan.initialization
        if initialization is None or self.init_steps >= initialization.steps:
            return None
        return initialization

    def draws(self, phase: Phase) -> tuple[Draw, Draw | None]:
        """Give the next training batch, and the next one that the task loss is taken on, if any."""
        train, objective = self.asked(phase)
        return partial(self._draw_step, *train), objective and partial(self._draw, *objective)

    def asked(self, phase: Phase) -> tuple[Asked, Asked | None]:
        """The batches of a phase's training, and of its task loss if it has one."""
        meta_optimizer = self._plan.initialization if phase else self._plan.adaptation
        train: Asked = ("train", self._plan.task.batch_size, f"{phase}train")
        if meta_optimizer is None or meta_optimizer.objective == "next":
            return train, None
        size = self._objective_size(meta_optimizer)
        return train, (meta_optimizer.objective, size, f"{phase}objective")

    def stream(self, name: str) -> torch.Generator:
        """What draws one kind of batches, see `DRAWING`."""
        return self._streams[name]

    def redraw_model(self) -> None:
        """Draws parameters and buffers anew, as the recipe did, for the initialisation."""
        self.model.load_state_dict(self._draw_model(self._streams["init_theta"]).state_dict())

    def precision_cosine(self) -> float | None:
        """Between the meta-gradients in the run's lower precision and in float32, as φ is now.

        None where the precision is no lower, or the loss has no parameters.
        """
        problem = self.learner.problem
        if problem.autocast is None or not problem.phi:
            return None
        stream = self._plan.stream(self._seed, "precision")
        size = self._plan.task.batch_size
        train, objective = (self.data.draw(split, size, stream) for split in ("train", "valid"))
        return cosine(problem, train, objective)

    def sample_loss(self) -> None:
        """Keeps φ as it is now, for the trajectory."""
        if self.loss is not None:
            self.samples[self.steps] = flat(self.loss)

    def keep_best(self, value: float) -> None:
        """Keeps the model as it is now if it is better than all before: a lower number is."""
        self.waited += 1
        if math.isfinite(value) and (self.best is None or value < self.best["value"]):
            model = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
            self.best = {"value": value, "step": self.steps, "model": model}
            if self.average is not None:
                self.best["average"] = copy.deepcopy(self.average.state_dict())
            self.waited = 0

    def trajectory(self) -> Trajectory:
        """The samples of φ so far."""
        return Trajectory.of(self.samples)

    def note_residual(self, residual: Tensor) -> None:
        """Takes that of a step's certificate; waits for no device."""
        worst = self.worst_residual
        self.residual = residual
        self.worst_residual = residual if worst is None else torch.fmax(worst, residual)

    def standing(self) -> dict[str, Any]:
        """The model, its best and its running mean, where they stand, and what inputs are to it."""
        return {
            "model": self.model.state_dict(),
            "best": self.best,
            "average": None if self.average is None else self.average.state_dict(),
            "init_steps": self.init_steps,
            "steps": self.steps,
            "total": self.total,
            "data": kept.of(self.data),
        }

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain data that `load_state_dict` goes on from, bit for bit.

        Of several processes all take part; any number of them can go on from it.
        """
        self.collect(moments=True)
        standing = self._generators if self._taking_turns else seeding.global_state(self._device)
        own, *others = distributed.gather(standing)
        return {
            **self.standing(),
            "optimizer": self.learner.problem.optimizer.state_dict(),
            "learner": self.acting.state_dict(),
            "initialization": self.initializing.state_dict() if self.initializing else {},
            "schedule": self.schedule.state_dict() if self.schedule and self.steps else None,
            "skipped": int(self.skipped),
            "residual": None if self.residual is None else float(self.residual),
            "worst_residual": None if self.worst_residual is None else float(self.worst_residual),
            "seconds": self.seconds,
            "parts": dict(self.clock.seconds),
            "samples": self.samples,
            "latest": self.latest,
            "selection": self.selection,
            "waited": self.waited,
            "streams": {name: stream.get_state() for name, stream in self._streams.items()},
            "global": own,
            "global_of_others": others,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` gave.

        Raises:
            DataError: the data are others than they were.
        """
        kept.require_same(self.data, state.get("data"))
        self.init_steps, self.steps = state["init_steps"], state["steps"]
        self.freezing.apply(self.steps)
        self.learner.problem.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None and state.get("schedule") is not None:
            self.schedule.load_state_dict(state["schedule"])
        self.learner.load_state_dict(state["learner"])
        if self.initializing:
            # θ is drawn anew at each step, and the model that stands here is the seed's θ_0.
            self.initializing.load_state_dict(state["initialization"])
        else:
            self.model.load_state_dict(state["model"])
        self.skipped, self.seconds = state["skipped"], state["seconds"]
        self.clock.seconds.update(state.get("parts", {}))
        for name in ("residual", "worst_residual"):
            value = state.get(name)
            setattr(self, name, None if value is None else torch.tensor(value, dtype=torch.float64))
        self.samples, self.latest = dict(state["samples"]), dict(state["latest"])
        self.selection, self.best = state.get("selection"), state.get("best")
        self.waited = state.get("waited", 0)
        if state.get("average") is not None:
            self.average = self._new_average()
            assert self.average is not None
            self.average.load_state_dict(state["average"])
        for name, saved in state["streams"].items():
            if name in self._streams:  # an earlier version kept that of the splits too
                self._streams[name].set_state(saved)
        generators = [state["global"], *state.get("global_of_others", [])]
        if distributed.rank() < len(generators):
            seeding.set_global_state(generators[distributed.rank()], self._device)
        else:
            self._seed_globally(f"global/from {self.init_steps + self.steps}")
        self._generators = seeding.global_state(self._device)

    def _seed_globally(self, stream: str) -> None:
        """Torch's global generators, from which dropout masks come: each process has its own."""
        name = f"{stream}/{distributed.rank()}" if distributed.rank() else stream
        torch.manual_seed(self._plan.stream(self._seed, name).initial_seed())

    def _new_schedule(self) -> Schedule | None:
        recipe = self._plan.schedule
        return recipe and Schedule(recipe, self.learner.problem.optimizer, self.total)

    def _new_average(self) -> AveragedModel | None:
        ema, swa = self._plan.ema, self._plan.swa
        if ema is None and swa is None:
            return None
        mean = get_swa_multi_avg_fn() if ema is None else get_ema_multi_avg_fn(ema)
        return AveragedModel(self.model, multi_avg_fn=mean, use_buffers=True)

    def _objective_size(self, meta_optimizer: MetaOptimizer) -> int:
        return meta_optimizer.objective_batch_size or self._plan.task.batch_size

    def _batch_sizes(self) -> list[int]:
        """Of every kind of batch that the run draws."""
        meta_optimizers = (self._plan.initialization, self._plan.adaptation)
        asked = [("train", self._plan.task.batch_size)]
        asked += [
            (m.objective, self._objective_size(m))
            for m in meta_optimizers
            if m is not None and m.objective != "next"
        ]
        return [min(size, len(self.data.splits[split][1])) for split, size in asked]

    def _draw_step(self, *asked: Any) -> StepBatch:
        return self._plan.one_step(partial(self._draw, *asked))

    @clock.part("data")
    def _draw(self, split: str, size: int, stream: str) -> Batch:
        mixing = self.mixing if stream in MIXED else None
        batch = self.data.draw(split, size, self._streams[stream], whole=mixing is not None)
        if mixing is not None:  # of several processes each mixes the whole batch
            inputs, labels = mixing(batch, self._streams[MIXED[stream]])
            taken = distributed.share(len(labels))
            batch = inputs[taken], labels[taken]
        inputs, labels = batch
        return self._arranged(inputs) if inputs.dim() == 4 else inputs, labels

    def _arranged(self, what: Arranged) -> Arranged:
        """A model or images in the run's memory format."""
        if self._plan.memory_format == "contiguous":
            return what
        return what.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _new_learner(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, cuda_graphs: bool = False
    ) -> AdaLFL:
        plan, objective = self._plan, self.data.objective
        return AdaLFL(
            model,
            optimizer,
            self.loss,
            objective.loss,
            link=objective.link,
            meta_lr=None,
            adaptation=plan.adaptation,
            autocast=torch.bfloat16 if plan.precision == "bf16" else None,
            gradient_transform=plan.gradient_transform,
            steps=self.total,
            cuda_graphs=cuda_graphs,
            tabulate=plan.tabulate,
            health_every=plan.health_every,
            on_unhealthy=plan.on_unhealthy,
        )

    def _new_model(self, stream: torch.Generator) -> nn.Module:
        """A model on its device, as the training has it."""
        model = self._arranged(self._draw_model(stream).to(self._device).train())
        recompute(model, self._plan.checkpointed)
        return model

    def _draw_model(self, stream: torch.Generator) -> nn.Module:
        with seeding.drawing_from(stream):
            return self._plan.backbone(input_shape=self.data.input_shape, outputs=self.data.outputs)
