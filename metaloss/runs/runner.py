"""Runner: what a run is made of; gin builds it, `metaloss.runs.run.Run` carries it out."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from metaloss.backbones import BACKBONES
from metaloss.backbones.base import PICTURES
from metaloss.config import Config
from metaloss.config.arguments import (
    Decay,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    Share,
)
from metaloss.config.registry import root
from metaloss.errors import ArgumentError
from metaloss.machine import seeding
from metaloss.meta_optimizers.base import MetaOptimizer
from metaloss.problem.batches import Batch, MicroBatches, StepBatch
from metaloss.problem.gradient_transform import ClipNorm, ClipValue, GradientTransform
from metaloss.problem.tables import Tabulate
from metaloss.representations.base import Representation
from metaloss.runs.callbacks.base import Callback
from metaloss.runs.precision import Precision
from metaloss.tasks import TASKS
from metaloss.tasks.base import Data, Task
from metaloss.tasks.preparation.mixing import Mixing
from metaloss.tasks.preparation.splits import with_selection

#: What draws from a stream of its own, and by `Runner.seed_of` from one of another seed.
STREAMS = (
    *("phi", "theta", "split", "select", "train", "objective", "mix", "global", "precision"),
    *("init_theta", "init_train", "init_objective", "init_mix"),
)


@root
class Runner:
    """Trains a backbone on a task, with a loss that is learned, fixed or the task's own.

    Args:
        task: data, task loss and metric.
        backbone: a recipe, called with the task's input shape and number of outputs.
        base_optimizer: a recipe, called with the backbone's parameters.
        grouping: a recipe, called with the model, that puts its parameters in groups of other
            rates or without weight decay; None: all alike.
        frozen_until: by pattern of parameters' names, the base steps before they are trained; None
            of them: never. Of several patterns that match, the last holds.
        steps: base steps, S_train; or `epochs` beside `steps = None`.
        epochs: the same by the training data: an epoch is as many base steps as it takes to draw as
            many examples as there are. Every batch is a draw of its own, so that an epoch sees some
            examples twice and others not at all.
        schedule: how the base learning rate changes over the training, by a recipe that is called
            with its steps; None leaves it to the base optimizer. It begins with the training: the
            initialisation is made at the base optimizer's own rate. A learned rate is multiplied by
            what the schedule makes of it.
        clip_norm: the gradient of every base step, in the initialisation too, is scaled down to at
            most this norm (`metaloss.ClipNorm`); None: it is not.
        clip_value: the same, each of its elements cut to this size (`metaloss.ClipValue`).
        micro_batches: batches that make one base step together, along the mean of their gradients
            (gradient accumulation); one at a time is in memory. Each has the task's batch size.
        ema: the weight of the past in a running mean of θ and buffers, such as 0.999, taken after
            each base step of the training; it is evaluated beside θ. None: there is none.
        swa: the base step, or the share of the training, after which an equal mean of θ and buffers
            begins (stochastic weight averaging), in place of `ema`; None: there is none.
        checkpointed: patterns of names of the backbone's modules, whose activations are not kept
            for the backward pass but computed again.
        compile_backbone: `torch.compile` makes the backbone's passes that no engine looks into:
            base steps that nothing is learned through, and the task loss's. Those of other
            base steps, and evaluations, stay as they are.
        representation: the learned loss M_φ; None trains on the task loss.
        initialization: the meta-optimizer of the phase before training; None starts from the
            meta-parameters as they are.
        adaptation: the meta-optimizer that goes on during training; None leaves them as they are.
        precision: "float32"; "tf32", on a GPU; or "bf16", the backbone under autocast while losses,
            cotangents and φ stay in float32, and evaluations too.
        memory_format: "channels_last" keeps images and convolutions in that layout, which GPUs and
            bf16 prefer.
        method: a word for tables: "baseline", "ml3", "meta_lr", "adalfl", ...
        log_every: base steps (or meta-steps of the initialisation) between rows of metrics.
        evaluate_every: base steps between evaluations on validation and training data.
        checkpoint_every: steps of either phase between checkpoints.
        samples: how often φ is sampled over the training, at equal distances.
        figures: how often TensorBoard shows the learned loss over the training; 0 draws nothing at
            all, also not at the end of the run (`tools/figures.py` does so later).
        tabulate: whether the learned loss is read from a table, to about its rounding: "auto",
            where that pays; "always", wherever it can be certified; "never". See `AdaLFL`.
        health_every: base steps between probes of the learned loss, see `AdaLFL`; 0 makes none.
        on_unhealthy: what happens where they find trouble: "warn", "task_loss" or "last_healthy".
        select_fraction: share of the validation data that neither θ nor φ is trained on, as a
            split of its own, "select", to choose by (the paper's Figure 8 has one); None: there
            is none, and the validation data are all φ's.
        keep_best: the split, "valid" or "select", on which the model of each evaluation is judged:
            the best one is tested, saved and loaded in place of the last (early stopping).
        patience: evaluations without a better one, by `keep_best`, after which the run ends; None
            goes on to the last step.
        mixup, cutmix: α of the Beta distribution by which training batches are mixed in pairs, see
            `metaloss.tasks.preparation.mixing.Mixing`; 0: they are not.
        label_smoothing: the share of a training label that goes to all classes alike.
        seed_of: seeds of single random streams, by their names, in place of the run's own seed:
            "phi" (φ_0), "theta" (θ_0), "split" (training and validation data), "select", "train"
            and "objective" (batches of training and task loss), "mix", "global" (dropout) and
            "precision"; of the initialisation "init_theta", "init_train", "init_objective" and
            "init_mix". None: all are the run's.
        callbacks: who is told how the run goes, see `metaloss.runs.callbacks`; None: TensorBoard,
            where it is installed.

    Raises:
        ArgumentError: a number is out of its range, the method is no word, or `seed_of` names no
            stream.
    """

    def __init__(
        self,
        task: Task,
        backbone: Callable[..., nn.Module],
        base_optimizer: Callable[..., torch.optim.Optimizer],
        steps: NonNegativeInt | None = None,
        epochs: PositiveInt | None = None,
        schedule: Callable[..., LRScheduler] | None = None,
        clip_norm: PositiveFloat | None = None,
        clip_value: PositiveFloat | None = None,
        micro_batches: PositiveInt = 1,
        ema: Decay | None = None,
        swa: NonNegativeInt | Share | None = None,
        checkpointed: Sequence[str] = (),
        compile_backbone: bool = False,
        representation: Representation | None = None,
        initialization: MetaOptimizer | None = None,
        adaptation: MetaOptimizer | None = None,
        precision: Precision = "float32",
        memory_format: Literal["contiguous", "channels_last"] = "contiguous",
        method: str = "baseline",
        log_every: PositiveInt = 100,
        evaluate_every: PositiveInt = 500,
        checkpoint_every: PositiveInt = 1000,
        samples: PositiveInt = 50,
        figures: NonNegativeInt = 6,
        tabulate: Tabulate = "auto",
        health_every: NonNegativeInt = 20,
        on_unhealthy: Literal["warn", "task_loss", "last_healthy"] = "warn",
        select_fraction: Share | None = None,
        keep_best: Literal["valid", "select"] | None = None,
        patience: PositiveInt | None = None,
        mixup: NonNegativeFloat = 0.0,
        cutmix: NonNegativeFloat = 0.0,
        label_smoothing: Probability = 0.0,
        grouping: Callable[..., list[dict[str, Any]]] | None = None,
        frozen_until: Mapping[str, NonNegativeInt | None] | None = None,
        seed_of: Mapping[str, NonNegativeInt] | None = None,
        callbacks: Sequence[Callback] | None = None,
    ) -> None:
        if not re.fullmatch(r"[\w.-]+", method):
            raise ArgumentError("method", method, "a word; it names a folder")
        if (steps is None) == (epochs is None):
            why = (
                "None beside Runner.epochs" if epochs is not None else "a number, or Runner.epochs"
            )
            raise ArgumentError("steps", steps, why)
        self.task = task
        self.backbone = backbone
        self.base_optimizer = base_optimizer
        self.steps = steps
        self.epochs = epochs
        self.schedule = schedule
        if clip_norm is not None and clip_value is not None:
            raise ArgumentError("clip_value", clip_value, "None beside Runner.clip_norm")
        self.clip_norm = clip_norm
        self.clip_value = clip_value
        if micro_batches > 1 and adaptation is not None and adaptation.objective == "next":
            raise ArgumentError(
                "micro_batches", micro_batches,
                "1 with objective = 'next', which takes the task loss and M_φ of one pass",
            )  # fmt: skip
        self.micro_batches = micro_batches
        if ema is not None and swa is not None:
            raise ArgumentError("swa", swa, "None beside Runner.ema")
        self.ema = ema
        self.swa = swa
        self.checkpointed = tuple(checkpointed)
        self.compile_backbone = compile_backbone
        self.representation = representation
        self.initialization = initialization
        self.adaptation = adaptation
        self.precision = precision
        self.memory_format = memory_format
        self.method = method
        self.log_every = log_every
        self.evaluate_every = evaluate_every
        self.checkpoint_every = checkpoint_every
        self.samples = samples
        self.figures = figures
        self.health_every = health_every
        self.on_unhealthy = on_unhealthy
        self.tabulate = tabulate
        if keep_best == "select" and select_fraction is None:
            raise ArgumentError("keep_best", keep_best, "Runner.select_fraction beside it, as 0.5")
        self.select_fraction = select_fraction
        self.keep_best = keep_best
        if patience is not None and keep_best is None:
            raise ArgumentError("patience", patience, "Runner.keep_best beside it, as 'valid'")
        self.patience = patience
        self.mixup, self.cutmix, self.label_smoothing = mixup, cutmix, label_smoothing
        self.grouping = grouping
        self.frozen_until = frozen_until or {}
        self.seed_of = dict(seed_of or {})
        if not self.seed_of.keys() <= {*STREAMS}:
            unknown = {name: own for name, own in self.seed_of.items() if name not in STREAMS}
            raise ArgumentError("seed_of", unknown, f"streams among {', '.join(STREAMS)}")
        self.callbacks = callbacks

    def stream(self, seed: int, name: str) -> torch.Generator:
        """A random stream of the run of a seed, at its start.

        Args:
            seed: of the run.
            name: one of `STREAMS`, or one of its own below it: "global/1".
        """
        return seeding.stream(self.seed_of.get(name.partition("/")[0], seed), name)

    def load_data(self, data_dir: Path, seed: int) -> Data:
        """The task's data as the run of a seed splits them.

        Args:
            data_dir: see `Task.load`.
            seed: of the run.

        Raises:
            DataError: see `Task.load`.
            InputError: see `with_selection`.
        """
        data = self.task.load(data_dir, self.stream(seed, "split"))
        if self.select_fraction is None:
            return data
        return with_selection(data, self.select_fraction, self.stream(seed, "select"))

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The base optimizer of a model, its parameters in their groups."""
        if self.grouping is None:
            return self.base_optimizer(model.parameters())
        groups = self.grouping(model=model)
        scales = [float(group.pop("lr_scale", 1.0)) for group in groups]
        # What is told and learned as the learning rate is the first group's: the recipe's own.
        order = sorted(range(len(groups)), key=lambda i: abs(math.log(scales[i])))
        optimizer = self.base_optimizer([groups[i] for i in order])
        for group, i in zip(optimizer.param_groups, order, strict=True):
            group["lr"] = group["lr"] * scales[i]
        return optimizer

    def mixing(self, data: Data) -> Mixing | None:
        """How batches that θ is trained on are mixed; None: they are as they are drawn.

        Raises:
            ConfigError: the task's labels are no classes, or its inputs no pictures.
        """
        if not (self.mixup or self.cutmix or self.label_smoothing):
            return None
        made = Mixing(data.outputs, self.mixup, self.cutmix, self.label_smoothing)
        made.require(data.input_shape, data.objective)
        return made

    def own_pictures(self) -> list[str]:
        """Bindings by which the task's pictures are as a pretrained backbone's own were.

        Of what the task was not asked for: size, interpolation, mean and deviation.
        """
        unsaid = [name for name, value in self.task.pictured.items() if value is None]
        answer = PICTURES.get(BACKBONES.name_of(self.backbone))
        if not unsaid or answer is None:
            return []
        own = answer(**getattr(self.backbone, "arguments", {}))
        task = f"tasks.{TASKS.name_of(self.task)}"
        return [f"{task}.{name} = {own[name]!r}" for name in unsaid if name in own]

    def steps_on(self, data: Data) -> int:
        """Base steps of the training on these data."""
        if self.epochs is None:
            assert self.steps is not None
            return self.steps
        examples = len(data.splits["train"][1])
        return self.epochs * math.ceil(examples / (self.task.batch_size * self.micro_batches))

    def averaged_after(self, steps: int) -> int:
        """The base step of so many, after which the mean of the weights begins."""
        return round(self.swa * steps) if isinstance(self.swa, float) else self.swa or 0

    def one_step(self, draw: Callable[[], Batch]) -> StepBatch:
        """What a base step is made on, by what draws the next batch."""
        if self.micro_batches == 1:
            return draw()
        return MicroBatches(draw() for _ in range(self.micro_batches))

    @property
    def gradient_transform(self) -> GradientTransform | None:
        """What happens to the gradient before every base step."""
        if self.clip_norm is not None:
            return ClipNorm(self.clip_norm)
        return None if self.clip_value is None else ClipValue(self.clip_value)

    @property
    def names(self) -> dict[str, str]:
        """What folders, tables and figures call its runs: task, backbone and method."""
        task, backbone = TASKS.name_of(self.task), BACKBONES.name_of(self.backbone)
        return {"task": task, "backbone": backbone, "method": self.method}


def built(configuration: Config, seed: int) -> Runner:
    """A seed's run by a configuration; φ, where a representation draws it, is of its own stream."""
    with seeding.drawing_from(seeding.stream(seed, "phi")):
        runner: Runner = configuration.build()
    if "phi" not in runner.seed_of:
        return runner
    # Which stream φ comes from is said by the Runner, and that is built after φ.
    with seeding.drawing_from(runner.stream(seed, "phi")):
        other: Runner = configuration.build()
    return other
