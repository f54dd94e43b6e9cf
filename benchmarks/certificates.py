r"""Does a certificate ever refuse a sound step? Long trainings, every step of them certified.

    python -m benchmarks.certificates run --json=FILE            # continues where the file ends
    python -m benchmarks.certificates run --json=FILE --model=lenet5 --precision=float32
    python -m benchmarks.certificates run --json=FILE --engine=unrolled --steps=5000
    python -m benchmarks.certificates show --json=FILE

Own loops on the digits of scikit-learn, by engine `exact` or another one; its tolerance must never
be reached. φ starts as its fit to the task loss leaves it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import metaloss
from benchmarks.heat_map import errors, splits, without_end
from metaloss.engines.parts.certificate import TOLERANCES
from metaloss.meta_optimizers.online_one_step import OnlineOneStep

STEPS, BATCH = 10_000, 16


class Transformer(nn.Module):
    """Reads the rows of a digit as a sentence of eight words."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Linear(8, 32)
        self.places = nn.Embedding(8, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(32, 10)

    def forward(self, pictures: Tensor) -> Tensor:
        found: Tensor = self.layers(self.words(pictures.squeeze(1)) + self.places.weight)
        logits: Tensor = self.head(found.mean(1))
        return logits


def lenet5() -> nn.Module:
    """On pictures of 28 x 28: the digits are drawn larger."""
    return nn.Sequential(
        nn.Upsample(size=28, mode="bilinear"), metaloss.BACKBONES["lenet5"]((1, 28, 28), 10)
    )


def resnet18() -> nn.Module:
    """He et al.'s for small pictures, BatchNorm and all, an eighth as wide: 8 to 64 channels."""
    from timm.models.resnet import BasicBlock, ResNet

    model = ResNet(BasicBlock, (2, 2, 2, 2), num_classes=10, channels=(8, 16, 32, 64))
    model.conv1 = nn.Conv2d(1, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "lenet5": lenet5,
    "transformer": Transformer,
    "resnet18": resnet18,
}
OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "lenet5": lambda model: torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
    "transformer": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3),
    "resnet18": lambda model: torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
}
ENGINES = "exact", "unrolled", "logit_difference"
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}


def train(model_name: str, precision: str, engine: str, steps: int) -> dict[str, Any]:
    """One training, as a row of the results."""
    data = splits(0)
    torch.manual_seed(0)
    model = MODELS[model_name]()
    online = OnlineOneStep(1e-5, engine=engine, certify_every=1, uncertified="warn")
    learner = metaloss.AdaLFL(
        model,
        OPTIMIZERS[model_name](model),
        metaloss.REPRESENTATIONS["nn"](),
        adaptation=online,
        autocast=PRECISIONS[precision],
        on_unhealthy="warn",  # certificates are of steps on the learned loss
    )
    train, valid = (without_end(data[split], 0, BATCH) for split in ("train", "valid"))
    learner.initialize(lambda: next(train), lambda: next(valid), steps=1, trial_steps=0)
    residuals = []
    started = time.perf_counter()
    for step in range(1, steps + 1):
        made = learner.step(lambda: next(train), lambda: next(valid))
        assert made.adjoint_residual is not None
        residuals.append(float(made.adjoint_residual))
        if step % 1000 == 0:
            print(model_name, precision, engine, step, f"{max(residuals):.1e}", flush=True)
    return {
        "model": model_name,
        "precision": precision,
        "engine": engine,
        "steps": steps,
        "alarms": sum(not residual <= TOLERANCES[precision] for residual in residuals),
        "largest": max(residuals),
        "median": statistics.median(residuals),
        "tolerance": TOLERANCES[precision],
        **errors(model.eval(), data),
        "seconds": time.perf_counter() - started,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """A line a training."""
    names = "model", "passes in", "engine", "certified steps", "alarms", "largest residual"
    head = "| " + " | ".join((*names, "median", "bound")) + " |"
    lines = [head, "|" + "---|" * 8]
    for row in rows:
        numbers = (f"{row[name]:.1e}" for name in ("largest", "median", "tolerance"))
        counts = str(row["steps"]), str(row["alarms"])
        words = [row["model"], row["precision"], row["engine"], *counts, *numbers]
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
    parser.add_argument("--precision", action="append", choices=list(PRECISIONS))
    parser.add_argument("--engine", action="append", choices=ENGINES, help="default: exact")
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args(command_line)
    text = arguments.json.read_text() if arguments.json.exists() else ""
    rows = [json.loads(line) for line in text.splitlines()]
    if arguments.what == "show":
        print(table(rows))
        return 0
    there = {(row["model"], row["precision"], row["engine"]) for row in rows}
    wanted = [arguments.model or MODELS, arguments.precision or PRECISIONS]
    for asked in itertools.product(*wanted, arguments.engine or ["exact"]):
        if asked not in there:
            row = train(*asked, arguments.steps)
            with arguments.json.open("a") as file:
                file.write(json.dumps(row) + "\n")
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
