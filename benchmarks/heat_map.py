r"""Does AdaLFL work wherever its task loss does? Digits, two models, 14 optimizers, own loops.

    python -m benchmarks.heat_map run --json=FILE              # continues where the file ends
    python -m benchmarks.heat_map run --json=FILE --model=mlp --seeds=1 --cell='sgd 0.1 0.9'
    python -m benchmarks.heat_map run --json=FILE --by=runner  # runs of gin files, not own loops
    python -m benchmarks.heat_map show --json=FILE --png=docs/images/heat_map.png

Nothing is set: `AdaLFL(model, optimizer, loss)`, then `initialize(train, valid)`, then `step`; by
the Runner, `tasks/digits_mlp.gin` and `methods/adalfl.gin` with another backbone and optimizer. A
cell holds where AdaLFL's test error is at most 1.3 times cross-entropy's plus .01, or where the
learner said that it is not healthy: at the end of the initialisation, or within 5 % of the steps.
Cells where cross-entropy itself errs on a tenth and more say nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metaloss
from metaloss.errors import HealthWarning
from metaloss.machine.files import read_json
from metaloss.runs import launch

STEPS, BATCH = 1000, 64
TRAINS = 0.1  #: below this test error cross-entropy trains
FACTOR, ADDED = 1.3, 0.01  #: what AdaLFL's error may be of cross-entropy's
TROUBLED = ("unhealthy", "task_loss")  #: the latter: base steps fell back on the task loss
EARLY = 0.05  #: of the training; until then an alarm counts
MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10)
    ),
    "conv": lambda: nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(96, 10),
    ),
}  # fmt: skip
CELLS = [
    *(("sgd", lr, momentum) for momentum in (0.0, 0.9) for lr in (0.01, 0.03, 0.1, 0.3)),
    *((name, lr, 0.0) for name in ("adam", "adamw") for lr in (1e-4, 1e-3, 1e-2)),
]
Cell = tuple[str, float, float]
BACKBONES = {
    "mlp": ("Runner.backbone = @backbones.mlp", "backbones.mlp.hidden = (100,)"),
    "conv": ("Runner.backbone = @backbones.small_conv",),  # of plugins/
}  #: the models' bindings: by the Runner they begin from other θ_0 than `MODELS`


def optimizer_of(cell: Cell, model: nn.Module) -> torch.optim.Optimizer:
    """The cell's optimizer, all else by its defaults."""
    name, lr, momentum = cell
    if name == "sgd":
        return torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name](model.parameters(), lr=lr)


def name_of(cell: Cell) -> str:
    """As `--cell` takes it."""
    name, lr, momentum = cell
    return f"{name} {lr:g}" + (f" {momentum:g}" if name == "sgd" else "")


def splits(seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Digits: a fixed test split; `select` is validation data that no φ sees."""
    data = metaloss.TASKS["digits"]().load(Path(), torch.Generator().manual_seed(seed))
    inputs, labels = data.splits["train"]
    return {
        "train": (inputs[144:], labels[144:]),
        "select": (inputs[:144], labels[:144]),
        "valid": data.splits["valid"],
        "test": data.splits["test"],
    }


def without_end(
    part: tuple[Tensor, Tensor], seed: int, batch: int = BATCH
) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled batches, epoch after epoch."""
    inputs, labels = part
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(inputs), generator=generator)
        for rows in order[: len(order) // BATCH * BATCH].split(BATCH):
            yield inputs[rows], labels[rows]


@torch.no_grad()
def errors(model: nn.Module, data: dict[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Error rates, and the cross-entropy of the test split."""
    found = {}
    for split in ("select", "test"):
        inputs, labels = data[split]
        outputs = model(inputs)
        found[split] = float((outputs.argmax(-1) != labels).double().mean())
    return {**found, "cross_entropy": float(F.cross_entropy(outputs, labels))}


def train(
    model_name: str,
    cell: Cell,
    seed: int,
    method: str,
    steps: int,
    initialize: Mapping[str, Any] = {},  # noqa: B006 - it is only read
) -> dict[str, Any]:
    """One training, as a row of the results.

    Args:
        model_name: of `MODELS`.
        cell: of `CELLS`.
        seed: of the data's splits, θ_0, φ_0 and the batches.
        method: "baseline" or "adalfl".
        steps: of the training.
        initialize: arguments of `AdaLFL.initialize`; the benchmark gives none.
    """
    data = splits(seed)
    torch.manual_seed(seed)
    model = MODELS[model_name]()
    optimizer = optimizer_of(cell, model)
    train, valid = (without_end(data[split], seed) for split in ("train", "valid"))
    row: dict[str, Any] = {
        "model": model_name, "cell": name_of(cell), "seed": seed, "method": method, "steps": steps,
    }  # fmt: skip
    started = time.perf_counter()
    if method == "baseline":
        for _ in range(steps):
            inputs, labels = next(train)
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
        return {**row, **errors(model, data), "seconds": time.perf_counter() - started}
    learner = metaloss.AdaLFL(model, optimizer, metaloss.REPRESENTATIONS["nn"]())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HealthWarning)  # the row has them
        learner.initialize(lambda: next(train), lambda: next(valid), **initialize)
        row["seconds_initialisation"] = time.perf_counter() - started
        row["health"] = {"0": _health(learner)}
        for step in range(1, steps + 1):
            learner.step(lambda: next(train), lambda: next(valid))
            if step in (int(EARLY * steps), 200, steps):
                row["health"][str(step)] = _health(learner)
    return {**row, **errors(model, data), "seconds": time.perf_counter() - started}


def run(model_name: str, cell: Cell, seed: int, method: str, steps: int) -> dict[str, Any]:
    """The same by the Runner, from the gin files that ship; see `train`.

    Its health has a row where the run told of trouble: "0" is the initialisation.
    """
    name, lr, momentum = cell
    bindings = [
        *BACKBONES[model_name],
        f"Runner.base_optimizer = @base_optimizers.{name}",
        f"base_optimizers.{name}.lr = {lr}",
        *([f"base_optimizers.sgd.momentum = {momentum}"] if name == "sgd" else []),
        f"Runner.steps = {steps}",
        f"tasks.digits.batch_size = {BATCH}",
        "Runner.figures = 0",
    ]
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        launch.train(
            gin_file=["tasks/digits_mlp.gin", f"methods/{method}.gin"], gin_param=bindings,
            seed=seed, threads=1, device="cpu", output_dir=folder,
        )  # fmt: skip
        result = read_json(Path(folder) / "result.json")
        lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    health = {"0": {"status": "healthy"}, str(steps): {"status": result["health"]}}
    for told in map(json.loads, lines):
        if "warning" in told:
            step = told["step"] if told["phase"] == "train" else 0
            health[str(step)] = {"status": told["health"], "warnings": [told["warning"]]}
    row = {
        "model": model_name,
        "cell": name_of(cell),
        "seed": seed,
        "method": method,
        "steps": steps,
    }
    return {
        **row, "health": health, "status": result["status"],
        "test": 1.0 if result["test"] is None else result["test"],
        "cross_entropy": (result["test_metrics"] or {}).get("loss"),
        "seconds": time.perf_counter() - started,
    }  # fmt: skip


TRAININGS = {"loop": train, "runner": run}


def _health(learner: metaloss.AdaLFL) -> dict[str, Any]:
    found = learner.health()
    numbers = {name: round(value, 4) for name, value in found.numbers.items()}
    return {"status": found.status, "warnings": list(found.warnings), "numbers": numbers}


def verdict(baseline: dict[str, Any], row: dict[str, Any]) -> str:
    """One of holds; said, if it does not and that was said; silent; untrained (see above)."""
    if not baseline["test"] < TRAINS:
        return "untrained"
    if row["test"] <= FACTOR * baseline["test"] + ADDED:
        return "holds"
    early = [row["health"][step] for step in row["health"] if int(step) <= EARLY * row["steps"]]
    return "said" if any(health["status"] in TROUBLED for health in early) else "silent"


def alarmed(row: dict[str, Any]) -> bool:
    """Whether any part of the training was found unhealthy, after the trial's remedies."""
    return any(health["status"] in TROUBLED for health in row["health"].values())


def pairs(rows: list[dict[str, Any]]) -> dict[tuple[str, str, int], dict[str, dict[str, Any]]]:
    """{(model, cell, seed): {method: row}}, of what is complete."""
    found: dict[tuple[str, str, int], dict[str, dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["model"], row["cell"], row["seed"]), {})[row["method"]] = row
    return {key: both for key, both in found.items() if len(both) == 2}


def table(rows: list[dict[str, Any]]) -> str:
    """A line a cell: mean test errors, and how many seeds hold."""
    head = "| model | optimizer | seeds | cross-entropy | AdaLFL | hold | said | silent | alarms |"
    lines = [head, "|" + "---|" * 9]
    complete = pairs(rows)
    for model in MODELS:
        for cell in map(name_of, CELLS):
            both = [found for (m, c, _), found in complete.items() if (m, c) == (model, cell)]
            if not both:
                continue
            verdicts = [verdict(one["baseline"], one["adalfl"]) for one in both]
            means = [
                f"{statistics.fmean(one[method]['test'] for one in both):.4f}"
                for method in ("baseline", "adalfl")
            ]
            counts = [str(verdicts.count(word)) for word in ("holds", "said", "silent")]
            alarms = str(sum(alarmed(one["adalfl"]) for one in both))
            lines.append("| " + " | ".join([model, cell, str(len(both)), *means, *counts, alarms]))
            lines[-1] += " |"
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """The heat map: AdaLFL's error in cross-entropy's, by cell; the numbers are the errors."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    complete = pairs(rows)
    names = [name_of(cell) for cell in CELLS]
    figure, axes = plt.subplots(figsize=(11, 2.6), layout="constrained")
    grid = np.full((len(MODELS), len(names)), np.nan)
    for i, model in enumerate(MODELS):
        for j, cell in enumerate(names):
            both = [found for (m, c, _), found in complete.items() if (m, c) == (model, cell)]
            if not both:
                continue
            base, ours = (
                statistics.fmean(one[method]["test"] for one in both)
                for method in ("baseline", "adalfl")
            )
            grid[i, j] = np.log2((ours + ADDED) / (base + ADDED))
            axes.text(j, i, f"{ours:.3f}\n({base:.3f})", ha="center", va="center", fontsize=8)
    image = axes.imshow(grid, cmap="RdYlGn_r", vmin=-1.5, vmax=1.5, aspect="auto")
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)
    axes.set_yticks(range(len(MODELS)), list(MODELS))
    axes.set_title("test error of AdaLFL (of cross-entropy), digits, means over seeds", fontsize=9)
    bar = figure.colorbar(image)
    bar.set_label("error + .01, in that of\ncross-entropy", fontsize=8)
    bar.set_ticks([-1, 0, 1], labels=["half", "same", "twice"], fontsize=8)
    figure.savefig(path, dpi=150, metadata={"Software": None})


def main(command_line: list[str] | None = None) -> int:
    """Runs what the file lacks, or shows what it has."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("run", "show"))
    parser.add_argument("--json", type=Path, required=True, help="a line of JSON for each training")
    parser.add_argument("--png", type=Path, help="show: also draw it there")
    parser.add_argument("--model", action="append", choices=list(MODELS), help="default: all")
    parser.add_argument("--cell", action="append", choices=[name_of(cell) for cell in CELLS])
    parser.add_argument("--by", choices=list(TRAININGS), default="loop")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args(command_line)
    text = arguments.json.read_text() if arguments.json.exists() else ""
    rows = [json.loads(line) for line in text.splitlines()]
    if arguments.what == "show":
        print(table(rows))
        if arguments.png:
            draw(rows, arguments.png)
        return 0
    there = {(row["model"], row["cell"], row["seed"], row["method"]) for row in rows}
    models = arguments.model or list(MODELS)
    first = [(0, model) for model in models]  # a seed of all before the others
    order = first + [(s, model) for s in range(1, arguments.seeds) for model in models]
    for seed, model in order:
        for cell in CELLS:
            if arguments.cell and name_of(cell) not in arguments.cell:
                continue
            for method in ("baseline", "adalfl"):
                if (model, name_of(cell), seed, method) in there:
                    continue
                row = TRAININGS[arguments.by](model, cell, seed, method, arguments.steps)
                with arguments.json.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(model, name_of(cell), seed, method, f"{row['test']:.4f}", flush=True)
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
