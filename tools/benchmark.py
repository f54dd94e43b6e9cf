"""Measures what a step of meta-learning costs: time and peak tensor memory, against plain training.

    python tools/benchmark.py --model resnet18 --model lenet5 --steps 20 --threads 2

All contenders start from the same weights and see the same batches; their steps alternate within
one run, and a ratio is the median over the steps of (its time / the baseline's time beside it).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    Batch = tuple[Tensor, Tensor]
    Step = Callable[[Batch, Batch], None]

#: Input shape, batch size, and steps for about ten seconds, of each model.
MODELS = {
    "logistic": ((1, 28, 28), 128, 500),
    "mlp": ((1, 28, 28), 128, 100),
    "lenet5": ((1, 28, 28), 128, 200),
    "allcnn": ((3, 32, 32), 32, 15),
    "resnet18": ((3, 32, 32), 16, 15),
}
OUTPUTS = 10
META_LR = 1e-5
WARM_UP = 3


def base_optimizer(model: nn.Module) -> torch.optim.SGD:
    """SGD with Nesterov momentum and weight decay, as the paper trains its larger nets."""
    import torch

    return torch.optim.SGD(
        model.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4
    )


def baseline(model: nn.Module, loss: nn.Module) -> Step:
    """Plain training: cross-entropy, no learned loss."""
    import torch.nn.functional as F

    optimizer = base_optimizer(model)

    def step(train: Batch, valid: Batch) -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(train[0]), train[1]).backward()
        optimizer.step()

    return step


def adalfl(model: nn.Module, loss: nn.Module) -> Step:
    """metaloss.AdaLFL, as in one's own loop."""
    return _online(model, loss, "exact")


def unrolled(model: nn.Module, loss: nn.Module) -> Step:
    """metaloss.AdaLFL with its reference engine: double backward."""
    return _online(model, loss, "unrolled")


def _online(model: nn.Module, loss: nn.Module, engine: Any) -> Step:
    import metaloss
    from metaloss.meta_optimizers.online_one_step import OnlineOneStep

    learner = metaloss.AdaLFL(
        model, base_optimizer(model), loss, adaptation=OnlineOneStep(META_LR, engine=engine)
    )

    def step(train: Batch, valid: Batch) -> None:
        learner.step(train, valid)

    return step


def higher(model: nn.Module, loss: nn.Module) -> Step:
    """higher, one context a step, the parameters copied back (momentum is lost, as is usual)."""
    import higher
    import torch
    import torch.nn.functional as F

    from metaloss.links import by_labels

    optimizer, adam = base_optimizer(model), torch.optim.Adam(loss.parameters(), lr=META_LR)

    def step(train: Batch, valid: Batch) -> None:
        adam.zero_grad()
        with higher.innerloop_ctx(model, optimizer) as (fast, differentiable):
            differentiable.step(loss(*by_labels(fast(train[0]), train[1])).mean())
            F.cross_entropy(fast(valid[0]), valid[1]).backward()
            with torch.no_grad():
                for parameter, value in zip(model.parameters(), fast.parameters(), strict=True):
                    parameter.copy_(value)
        adam.step()

    return step


def torchopt(model: nn.Module, loss: nn.Module) -> Step:
    """TorchOpt's MetaSGD, the graph cut after every step."""
    import torch
    import torch.nn.functional as F
    import torchopt

    from metaloss.links import by_labels

    settings = base_optimizer(model).defaults
    names = ("lr", "momentum", "weight_decay", "nesterov")
    differentiable = torchopt.MetaSGD(model, **{name: settings[name] for name in names})
    adam = torch.optim.Adam(loss.parameters(), lr=META_LR)

    def step(train: Batch, valid: Batch) -> None:
        adam.zero_grad()
        differentiable.step(loss(*by_labels(model(train[0]), train[1])).mean())
        F.cross_entropy(model(valid[0]), valid[1]).backward()
        torchopt.stop_gradient(model)
        torchopt.stop_gradient(differentiable)
        adam.step()

    return step


#: The contenders, by name. The baseline comes first: the others are measured against it.
ENGINES: dict[str, Callable[[nn.Module, nn.Module], Step]] = {
    "baseline": baseline,
    "adalfl": adalfl,
    "unrolled": unrolled,
    "higher": higher,
    "torchopt": torchopt,
}
OPTIONAL = ("higher", "torchopt")


@dataclass
class Row:
    """One line of the table."""

    model: str
    batch: int
    engine: str
    milliseconds: float | None = None  #: median step
    ratio: float | None = None  #: median over the steps of the time against the baseline's
    peak_bytes: int | None = None  #: of one step
    note: str = ""


def measure(model: str, engines: list[str], steps: int | None, device: torch.device) -> list[Row]:
    """Alternates the contenders' steps on one model; then measures the memory of one step each."""
    import torch

    import metaloss

    shape, size, default_steps = MODELS[model]
    torch.manual_seed(0)
    theta = metaloss.BACKBONES[model](shape, OUTPUTS).to(device)
    phi = metaloss.REPRESENTATIONS["nn"]().to(device)
    rows, contenders = [], []
    for name in engines:
        row = Row(model, size, name)
        rows.append(row)
        try:
            contenders.append((row, ENGINES[name](deepcopy(theta), deepcopy(phi))))
        except ImportError:
            if name not in OPTIONAL:
                raise
            row.note = "not installed (pip install 'metaloss[benchmark]')"

    def draw() -> Batch:
        labels = torch.randint(OUTPUTS, (size,), device=device)
        return torch.randn(size, *shape, device=device), labels

    times: dict[str, list[float]] = {row.engine: [] for row, _ in contenders}
    for _ in range(WARM_UP + (steps or default_steps)):
        train, valid = draw(), draw()
        for row, step in contenders:
            times[row.engine].append(seconds(step, train, valid, device))
    for row, step in contenders:
        own, beside = times[row.engine][WARM_UP:], times["baseline"][WARM_UP:]
        row.milliseconds = 1e3 * statistics.median(own)
        row.ratio = statistics.median(a / b for a, b in zip(own, beside, strict=True))
        row.peak_bytes = peak_bytes(step, draw(), draw(), device)
    return rows


def seconds(step: Step, train: Batch, valid: Batch, device: torch.device) -> float:
    """Wall time of one step, the device's work included."""
    import torch

    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    step(train, valid)
    synchronize()
    return time.perf_counter() - start


def peak_bytes(step: Step, train: Batch, valid: Batch, device: torch.device) -> int:
    """Peak tensor memory of one step, above the weights, optimizer states and gradients before."""
    from metaloss import memory

    with memory.measuring(device) as measured:
        step(train, valid)
    return measured.peak_bytes


def table(rows: list[Row]) -> str:
    """The rows as lines of a markdown table."""
    lines = []
    for row in rows:
        cells = (
            (row.note, "", "")
            if row.milliseconds is None or row.ratio is None or row.peak_bytes is None
            else (f"{row.milliseconds:.2f}", f"{row.ratio:.2f}", f"{row.peak_bytes / 2**20:.1f}")
        )
        lines.append("| " + " | ".join((row.model, str(row.batch), row.engine, *cells)) + " |")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", action="append", choices=MODELS, help="repeatable; default: all")
    parser.add_argument(
        "--engine",
        action="append",
        choices=ENGINES,
        help="repeatable; default: all. The baseline always runs",
    )
    parser.add_argument("--steps", type=int, help="measured steps; default: about ten seconds")
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's")
    parser.add_argument("--device", default="cpu", help="a torch device; default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to FILE")
    return parser.parse_args()


def main() -> None:
    """Measures, and prints a table a model at a time."""
    arguments = parse()
    import torch  # after the arguments, so that --help is immediate

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    chosen = arguments.engine or list(ENGINES)
    engines = [name for name in ENGINES if name == "baseline" or name in chosen]
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads\n")
    print("| model | batch | engine | ms / step | x baseline | peak MiB |\n|---|" + 5 * "---|")
    rows = []
    for model in arguments.model or MODELS:
        rows += measure(model, engines, arguments.steps, device)
        print(table(rows[-len(engines) :]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
