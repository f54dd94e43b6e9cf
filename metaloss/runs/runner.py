"""Runner: what a run is made of; gin builds it, `metaloss.runs.run.Run` carries it out."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from metaloss.backbones import BACKBONES
from metaloss.config.arguments import NonNegativeInt, PositiveInt
from metaloss.config.registry import root
from metaloss.errors import ArgumentError
from metaloss.meta_optimizers.base import MetaOptimizer
from metaloss.representations.base import Representation
from metaloss.runs.precision import Precision
from metaloss.tasks import TASKS
from metaloss.tasks.base import Task


@root
class Runner:
    """Trains a backbone on a task, with a loss that is learned, fixed or the task's own.

    Args:
        task: data, task loss and metric.
        backbone: a recipe, called with the task's input shape and number of outputs.
        base_optimizer: a recipe, called with the backbone's parameters.
        steps: base steps, S_train.
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

    Raises:
        ArgumentError: a number is out of its range, or the method is no word.
    """

    def __init__(
        self,
        task: Task,
        backbone: Callable[..., nn.Module],
        base_optimizer: Callable[..., torch.optim.Optimizer],
        steps: NonNegativeInt,
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
    ) -> None:
        if not re.fullmatch(r"[\w.-]+", method):
            raise ArgumentError("method", method, "a word; it names a folder")
        self.task = task
        self.backbone = backbone
        self.base_optimizer = base_optimizer
        self.steps = steps
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

    @property
    def names(self) -> dict[str, str]:
        """What folders, tables and figures call its runs: task, backbone and method."""
        task, backbone = TASKS.name_of(self.task), BACKBONES.name_of(self.backbone)
        return {"task": task, "backbone": backbone, "method": self.method}
