r"""Data that are large: a table of a gigabyte, and a folder of 50,000 pictures.

    python -m benchmarks.large_data table --output=DIR     # writes it, and reads it as a run does
    python -m benchmarks.large_data pictures --output=DIR  # a training on them, streamed and not
    python -m benchmarks.large_data resume --output=DIR    # a run of them, killed and resumed

`table` gives the seconds and the memory that `tasks.table` takes. `pictures` times steps of AdaLFL
by turns, on pictures that two processes decode and on tensors that are there. `resume` kills a run
of them, goes on with another number of processes, and compares with one that was left in peace. The
pictures are 500 noisy ones of 256 x 256 under a hundred names each.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import metaloss
from metaloss.meta_optimizers.online_one_step import OnlineOneStep
from metaloss.tasks.preparation import streams

ROWS, BLOCK = 10_000_000, 100_000
PICTURES, DISTINCT, CLASSES, SIDE = 50_000, 500, 10, 256
CLOCKS = ("seconds", "seconds_by_part")
SIZE, BATCH = 32, 32  #: of what is trained on


def write_table(path: Path, rows: int) -> None:
    """Numbers, words and dates in 13 columns, and a target of two classes; 107 bytes a row."""
    random = np.random.default_rng(0)
    words = np.array(["red", "green", "blue", "yellow", "violet", "black", "white", "grey"])
    names = [f"x{i}" for i in range(9)]
    with path.open("w") as file:
        file.write(",".join([*names, "colour", "place", "day", "target"]) + "\n")
        for start in range(0, rows, BLOCK):
            count = min(BLOCK, rows - start)
            numbers = random.normal(size=(count, len(names)))
            target = (numbers[:, 0] + random.normal(size=count) > 0).astype(int)
            colours, places = (words[random.integers(len(words), size=count)] for _ in range(2))
            days = np.datetime64("2001-01-01") + random.integers(9000, size=count)
            for x, colour, place, day, y in zip(
                numbers, colours, places, days, target, strict=True
            ):
                fields = [*(f"{value:.5f}" for value in x), colour, place, str(day), str(y)]
                file.write(",".join(fields) + "\n")
            print(f"rows {start + count:,} of {rows:,}", end="\r", flush=True)
    print()


def write_pictures(folder: Path, count: int) -> None:
    """JPEGs of so many names, in a folder for each class."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    for i in range(count):
        path = folder / f"class{i % CLASSES}" / f"{i:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if i >= DISTINCT:
            os.link(folder / f"class{i % CLASSES}" / f"{i % DISTINCT:06}.jpg", path)
            continue
        waves = np.sin(2 * np.pi * (i % CLASSES + 1) * (x + random.random()) + 3 * y)
        pixels = 128 + 60 * waves[..., None] + 20 * random.normal(size=(SIDE, SIDE, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def peak_megabytes() -> float:
    """Of this process's resident memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def table(folder: Path, rows: int) -> None:
    """Prints what it takes to prepare a table."""
    path = folder / "table.csv"
    if not path.exists():
        write_table(path, rows)
    before, started = peak_megabytes(), time.perf_counter()
    task = metaloss.TASKS["table"](path=str(path), target="target", kind="classification")
    data = task.load(folder, torch.Generator().manual_seed(0))
    seconds = time.perf_counter() - started
    shapes = {split: list(inputs.shape) for split, (inputs, _) in data.splits.items()}
    print(f"{path.stat().st_size / 1e9:.2f} GB, prepared in {seconds:.1f} s: {shapes}")
    print(f"memory at most {peak_megabytes():.0f} MB, {before:.0f} MB before")


def learner() -> metaloss.AdaLFL:
    """ResNet-18, a meta-step at every step."""
    torch.manual_seed(0)
    model = metaloss.BACKBONES["timm"]((3, SIZE, SIZE), CLASSES, "resnet18")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    loss = metaloss.REPRESENTATIONS["nn"]()
    return metaloss.AdaLFL(model, optimizer, loss, adaptation=OnlineOneStep(1e-5))


def pictures(folder: Path, count: int, turns: int, steps: int) -> None:
    """Prints the seconds a step takes on pictures and on tensors, by turns."""
    root = pictures_below(folder, count)
    streams.set_workers(2)
    started = time.perf_counter()
    task = metaloss.TASKS["image_folder"](path=str(root), size=SIZE, stream=True, batch_size=BATCH)
    data = task.load(folder, torch.Generator().manual_seed(0))
    print(f"{count} pictures listed in {time.perf_counter() - started:.1f} s", flush=True)
    tensors = torch.randn(64 * BATCH, 3, SIZE, SIZE), torch.arange(64 * BATCH) % CLASSES
    # Each source has its own: a draw from a stream's generator voids what it has read ahead.
    generators = {split: torch.Generator().manual_seed(1) for split in ("train", "valid")}
    others = torch.Generator().manual_seed(1)

    def streamed(split: str) -> tuple[torch.Tensor, torch.Tensor]:
        return data.draw(split, BATCH, generators[split])

    def there(_: str) -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.randint(len(tensors[1]), (BATCH,), generator=others)
        return tensors[0][rows], tensors[1][rows]

    sources = {"tensors": there, "streamed": streamed}
    learners = {name: learner() for name in sources}
    seconds: dict[str, list[float]] = {name: [] for name in sources}
    peaks = {}
    for turn in range(turns + 1):  # the first of each warms up
        for name, draw in sources.items():
            started = time.perf_counter()
            for _ in range(steps):
                learners[name].step(partial(draw, "train"), partial(draw, "valid"))
            if turn:
                seconds[name].append((time.perf_counter() - started) / steps)
            peaks.setdefault(name, peak_megabytes())
    data.close()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, values in seconds.items():
        told = " ".join(f"{value:.3f}" for value in values)
        print(f"{name}: {told} s a step, median {medians[name]:.3f}")
    print(f"speed of the streamed one: {medians['tensors'] / medians['streamed']:.2f}")
    print(f"memory beyond the model's: {peaks['streamed'] - peaks['tensors']:.0f} MB")


def resume(folder: Path, count: int) -> None:
    """Compares a run that was killed, and went on with other workers, with one left in peace.

    Raises:
        SystemExit: their metrics differ.
    """
    root = pictures_below(folder, count)
    runs = Path(tempfile.mkdtemp(prefix="runs", dir=folder))
    peace, killed = runs / "peace", runs / "killed"
    lines = {}
    for run, workers in ((peace, 2), (killed, 1)):
        command = train(root, run, workers)
        if run is killed:
            process = subprocess.Popen(command)
            checkpoint = run / "checkpoint.pt"
            while process.poll() is None and not checkpoint.exists():
                time.sleep(0.1)
            process.send_signal(signal.SIGKILL)
            process.wait()
            command = [*train(root, run, workers=3), "--resume"]
        subprocess.run(command, check=True)
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        lines[run] = [{k: v for k, v in row.items() if k not in CLOCKS} for row in rows]
    if lines[peace] != lines[killed]:
        raise SystemExit("the metrics differ")
    print(f"{len(lines[peace])} lines of metrics are the same")


def train(root: Path, run: Path, workers: int) -> list[str]:
    """The command of a short training."""
    bindings = [
        "Runner.task = @tasks.image_folder()",
        f"tasks.image_folder.path = '{root}'",
        f"tasks.image_folder.size = {SIZE}",
        "tasks.image_folder.stream = True",
        f"tasks.image_folder.batch_size = {BATCH}",
        "Runner.backbone = @backbones.lenet5",
        "Runner.base_optimizer = @base_optimizers.sgd",
        "base_optimizers.sgd.lr = 0.01",
        "Runner.steps = 60",
        "Runner.log_every = 5",
        "Runner.evaluate_every = 1000",
        "Runner.checkpoint_every = 20",
        "meta_optimizers.task_fit.steps = 20",
        "meta_optimizers.offline_unrolled.steps = 2",
        "meta_optimizers.offline_unrolled.scale_steps = 2",
    ]
    command = [sys.executable, "tools/train.py", "--gin_file=methods/adalfl.gin"]
    command += [f"--gin_param={binding}" for binding in bindings]
    return [*command, f"--output_dir={run}", f"--workers={workers}"]


def pictures_below(folder: Path, count: int) -> Path:
    """The folder of pictures, written if it is not there."""
    root = folder / f"pictures{count}"
    if not root.exists():
        write_pictures(root, count)
    return root


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("table", "pictures", "resume"))
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="for the data")
    parser.add_argument("--count", type=int, help=f"default: {ROWS:,} rows, {PICTURES:,} pictures")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="a turn")
    asked = parser.parse_args()
    asked.output.mkdir(parents=True, exist_ok=True)
    folder = asked.output.resolve()
    if asked.what == "table":
        table(folder, asked.count or ROWS)
    elif asked.what == "pictures":
        pictures(folder, asked.count or PICTURES, asked.turns, asked.steps)
    else:
        resume(folder, asked.count or PICTURES)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
