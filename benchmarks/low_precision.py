r"""Does a meta-gradient in bfloat16 point where the one in float32 does? Along trainings.

    python -m benchmarks.low_precision run --json=FILE          # continues where the file ends
    python -m benchmarks.low_precision run --json=FILE --device=cuda --channels_last
    python -m benchmarks.low_precision show --json=FILE

The models, data and optimizers of `benchmarks.certificates`, trained under autocast to bfloat16 by
engine `exact`. Now and then model, optimizer and φ are copied, and the meta-gradient of the next
step is taken in both precisions, from the same batches and random numbers. φ is in float32 in
both, as are the losses and the cotangents.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import metaloss
from benchmarks.certificates import BATCH, MODELS, OPTIMIZERS
from benchmarks.heat_map import errors, splits, without_end
from metaloss import links
from metaloss.engines.exact import Exact
from metaloss.meta_optimizers.online_one_step import OnlineOneStep
from metaloss.problem.meta_parameters import MetaParameters
from metaloss.problem.problem import Problem

STEPS, EVERY = 1000, 25


def meta_gradient(
    learner: metaloss.AdaLFL, batches: list[Any], autocast: torch.dtype | None
) -> Tensor:
    """That of the step from a learner's model on the batches, flat; on copies of everything."""
    own = learner.problem
    model, optimizer, loss = copy.deepcopy((own.model, own.optimizer, own.loss))
    problem = Problem(model, optimizer, loss, F.cross_entropy, links.by_labels, autocast)
    torch.manual_seed(0)  # of dropout masks
    train, valid = batches
    found = Exact().hypergradient(problem, MetaParameters(problem), [train], lambda: valid)
    return torch.cat([g.flatten() for g in found.phi if g is not None])


def train(model_name: str, steps: int, device: torch.device, channels_last: bool) -> dict[str, Any]:
    """One training, as a row of the results."""
    data = {
        split: (inputs.to(device), labels.to(device))
        for split, (inputs, labels) in splits(0).items()
    }
    torch.manual_seed(0)
    model = MODELS[model_name]().to(device)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    learner = metaloss.AdaLFL(
        model,
        OPTIMIZERS[model_name](model),
        metaloss.REPRESENTATIONS["nn"]().to(device),
        adaptation=OnlineOneStep(1e-5, engine="exact"),
        autocast=torch.bfloat16,
        on_unhealthy="warn",
    )
    batches = [without_end(data[split], 0, BATCH) for split in ("train", "valid")]
    learner.initialize(*batches, steps=1, trial_steps=0)
    cosines, ratios = [], []
    started = time.perf_counter()
    for step in range(steps):
        drawn = [next(part) for part in batches]
        if step % EVERY == 0:
            low, full = (meta_gradient(learner, drawn, kind) for kind in (torch.bfloat16, None))
            cosines.append(float(F.cosine_similarity(low, full, dim=0)))
            ratios.append(float(low.norm() / full.norm()))
        learner.step(*drawn)
    return {
        "model": model_name,
        "device": device.type,
        "channels_last": channels_last,
        "steps": steps,
        "compared": len(cosines),
        "median_cosine": statistics.median(cosines),
        "least_cosine": min(cosines),
        "median_ratio": statistics.median(ratios),
        **errors(model.eval(), data),
        "seconds": time.perf_counter() - started,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """A line a training."""
    names = "model", "device", "steps", "compared", "median cosine", "least", "ratio of norms"
    lines = ["| " + " | ".join((*names, "test error")) + " |", "|" + "---|" * 8]
    for row in rows:
        where = row["device"] + ", channels_last" * row["channels_last"]
        numbers = [f"{row[f'{name}']:.4f}" for name in ("median_cosine", "least_cosine")]
        words = [row["model"], where, str(row["steps"]), str(row["compared"]), *numbers]
        words += [f"{row['median_ratio']:.3f}", f"{row['test']:.4f}"]
        lines.append("| " + " | ".join(words) + " |")
    return "\n".join(lines)


def main(command_line: list[str] | None = None) -> int:
    """Runs what the file lacks, or shows what it has."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("run", "show"))
    parser.add_argument("--json", type=Path, required=True, help="a line of JSON for each training")
    parser.add_argument("--model", action="append", choices=list(MODELS), help="default: all")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--channels_last", action="store_true")
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args(command_line)
    text = arguments.json.read_text() if arguments.json.exists() else ""
    rows = [json.loads(line) for line in text.splitlines()]
    if arguments.what == "show":
        print(table(rows))
        return 0
    there = {(row["model"], row["device"], row["channels_last"]) for row in rows}
    for model in arguments.model or MODELS:
        if (model, arguments.device.type, arguments.channels_last) not in there:
            row = train(model, arguments.steps, arguments.device, arguments.channels_last)
            with arguments.json.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(table([row]), flush=True)
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
