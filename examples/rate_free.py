#!/usr/bin/env python
"""Baselines that choose their own step: Prodigy and schedule-free SGD, beside a run's optimizer.

python examples/rate_free.py                                          # digits
python examples/rate_free.py --task=tasks/mnist_lenet5.gin --data_dir=DIR

Nothing is learned here but the model. Their steps are not elementwise, so that no learned loss can
be differentiated through them; as baselines they need no derivative. Model, splits and batches are
those of a run of the same task and seed, and so is the first row.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaloss import config
from metaloss.runs.evaluation import evaluate
from metaloss.runs.state import State
from metaloss.tasks.base import find_data_dir

Recipe = Callable[[Iterable[Tensor]], Any]


def prodigy(parameters: Iterable[Tensor]) -> Any:
    """Prodigy (Mishchenko & Defazio, 2024), whose authors leave its lr at 1."""
    from prodigyopt import Prodigy

    return Prodigy(list(parameters), lr=1.0)


def schedule_free(parameters: Iterable[Tensor]) -> Any:
    """Schedule-free SGD (Defazio et al., 2024); its rate is not chosen by itself."""
    from schedulefree import SGDScheduleFree

    return SGDScheduleFree(list(parameters), lr=1.0, warmup_steps=100)


def trained(
    task: str, seed: int, data_dir: Path, steps: int | None, recipe: Recipe | None
) -> State:
    """A run's model after a plain training loop on the task loss.

    Args:
        task: a gin file.
        seed: of the run.
        data_dir: of its data.
        steps: None: as many as the file says.
        recipe: of the optimizer; None: the file's own.
    """
    plan = config.load([task, "methods/baseline.gin", "ablations/select.gin"]).build()
    state = State(plan, seed, torch.device("cpu"), data_dir)
    optimizer = (recipe or plan.base_optimizer)(state.model.parameters())
    in_order = getattr(optimizer, "train", lambda: None), getattr(optimizer, "eval", lambda: None)
    draw, _ = state.draws("")
    in_order[0]()  # schedule-free: the point that is trained; `eval` is the one that is evaluated
    for _ in range(plan.steps if steps is None else steps):
        inputs, labels = draw()
        optimizer.zero_grad()
        state.data.objective.loss(state.model(inputs), labels).backward()
        optimizer.step()
    in_order[1]()
    return state


def parse_arguments(command_line: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="tasks/digits_mlp.gin", help="a gin file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="default: the file's")
    parser.add_argument("--data_dir")
    parser.add_argument("--only", choices=("sgd", "prodigy", "schedule_free"), action="append")
    return parser.parse_args(command_line)


def main(command_line: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Trains with each; gives the metrics on the test split."""
    arguments = parse_arguments(command_line)
    recipes = {"sgd": None, "prodigy": prodigy, "schedule_free": schedule_free}
    found = {}
    for name in arguments.only or recipes:
        state = trained(
            arguments.task, arguments.seed, find_data_dir(arguments.data_dir), arguments.steps,
            recipes[name],
        )  # fmt: skip
        found[name] = evaluate(state.model, state.data, "test")
        select = evaluate(state.model, state.data, "select")
        metric = state.data.objective.metric
        print(
            f"{name:14} {metric} on select {select[metric]:.4f}, on test {found[name][metric]:.4f}"
            f", test loss {found[name]['loss']:.4f}"
        )
    return found


if __name__ == "__main__":
    main()
