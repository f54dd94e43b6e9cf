"""Introduction: what a run is made of, in the lines that it begins with."""

from __future__ import annotations

import math

import torch
from torch import nn

from metaloss import links
from metaloss.engines.base import ENGINES
from metaloss.machine import distributed
from metaloss.meta_optimizers.base import META_OPTIMIZERS, MetaOptimizer
from metaloss.representations.base import REPRESENTATIONS
from metaloss.runs.runner import Runner
from metaloss.runs.state import State


def introduction(plan: Runner, state: State, device: torch.device) -> list[str]:
    """Device, data, model, loss and phases of a run, a line each."""
    lines = [_device(plan, device), _data(plan, state), *state.notes, _model(plan, state)]
    if plan.representation is not None:
        name, loss = REPRESENTATIONS.name_of(plan.representation), plan.representation
        lines.append(f"loss: {name}, {_parameters(loss)}")
    if plan.initialization is not None:
        steps = plan.initialization.steps
        lines.append(f"initialization: {steps:,} meta-steps, {_learner(plan.initialization)}")
    epochs = "" if plan.epochs is None else f" ({plan.epochs:,} epochs)"
    how = "" if plan.adaptation is None else f", {_learner(plan.adaptation)}"
    return [*lines, f"training: {plan.method}, {state.total:,} steps{epochs}{how}"]


def layers(model: nn.Module) -> list[str]:
    """A line for each module that has parameters of its own: its name, class, and how many."""
    rows = []
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if own:
            count = f"{sum(p.numel() for p in own):,}"
            frozen = "" if any(p.requires_grad for p in own) else "  frozen at the start"
            rows.append((name or "(itself)", type(module).__name__, count, frozen))
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
    return [
        f"  {name:<{widths[0]}}  {kind:<{widths[1]}}  {count:>{widths[2]}}{frozen}"
        for name, kind, count, frozen in rows
    ]


def _device(plan: Runner, device: torch.device) -> str:
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    else:
        threads = torch.get_num_threads()
        where = f"{device}, {threads} thread{'s' * (threads > 1)}"
    several = f", {distributed.count()} processes" if distributed.several() else ""
    return f"device: {where}{several}, {plan.precision}, torch {torch.__version__}"


def _data(plan: Runner, state: State) -> str:
    data = state.data
    splits = ", ".join(f"{name} {len(labels):,}" for name, (_, labels) in data.splits.items())
    shape = " x ".join(map(str, data.input_shape))
    link = data.objective.link
    kind = "classes" if link is links.probabilities else "outputs"
    batch = f"{plan.micro_batches} x " * (plan.micro_batches > 1) + f"{plan.task.batch_size:,}"
    name = plan.names["task"]
    return (
        f"data: {name}, {splits} examples of {shape}, {data.outputs:,} {kind}; batches of {batch}"
    )


def _model(plan: Runner, state: State) -> str:
    trained = sum(p.numel() for p in state.model.parameters() if p.requires_grad)
    every = sum(p.numel() for p in state.model.parameters())
    frozen = f", {trained:,} of them trained from the start" if trained < every else ""
    optimizer = type(state.learner.problem.optimizer).__name__
    rate = state.learner.problem.optimizer.param_groups[0]["lr"]
    name = plan.names["backbone"]
    compiled = ", compiled" if plan.compile_backbone else ""
    told = f"{name}, {_parameters(state.model)}{frozen}{compiled}"
    return f"model: {told}; {optimizer}, lr {float(rate):g}"


def _parameters(module: nn.Module) -> str:
    return f"{sum(math.prod(p.shape) for p in module.parameters()):,} parameters"


def _learner(meta_optimizer: MetaOptimizer) -> str:
    """A meta-optimizer by name, or its phases, with the engine that takes the meta-gradient."""
    phases = getattr(meta_optimizer, "phases", [meta_optimizer])
    names = [
        f"{phase.steps:,} of " * (len(phases) > 1) + META_OPTIMIZERS.name_of(phase)
        for phase in phases
    ]
    engines = [ENGINES.name_of(phase.engine) for phase in phases if hasattr(phase, "engine")]
    return " then ".join(names) + (f", engine {engines[-1]}" if engines else "")
