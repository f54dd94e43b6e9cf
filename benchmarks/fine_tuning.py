r"""Fine-tuning as a user meets it: pretrained weights in a file, and a folder of 600 JPEGs.

    python -m benchmarks.fine_tuning prepare --images=cifar10.npz --output=DIR
    python -m benchmarks.fine_tuning show DIR/runs

`prepare` takes CIFAR-10 as arrays (`x_train` [n, 32, 32, 3] of bytes and `y_train`, `x_test` and
`y_test`, `x_heldout` and `y_heldout`), trains a small model of timm on the first five classes, and
leaves its weights, `pretrained.safetensors`, beside `pictures/`: of each of the other five classes
120 training pictures, and all of the other two parts as `test`. `show` makes the table of the runs
that were then made in them by `gin_configs/training/fine_tuning.gin`, all seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

MODEL = "test_byobnet"  #: 0.2 million parameters; the smallest of timm's convolutional networks
CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
KNOWN = 5  #: classes that the weights are of; the others are fine-tuned on
EACH = 120  #: training pictures of a class
STEPS, BATCH = 1500, 64  #: of the pretraining


def prepare(images: Path, folder: Path) -> None:
    """Writes the weights and the pictures."""
    with np.load(images, allow_pickle=False) as arrays:
        parts = {part: (arrays[f"x_{part}"], arrays[f"y_{part}"]) for part in PARTS}
    folder.mkdir(parents=True, exist_ok=True)
    x, y = parts["train"]
    for label in range(KNOWN, len(CLASSES)):
        write(x[y == label][:EACH], folder / "pictures" / "train" / CLASSES[label])
        others = [x[y == label] for x, y in (parts["heldout"], parts["test"])]
        write(np.concatenate(others), folder / "pictures" / "test" / CLASSES[label])
    save_file(pretrained(x[y < KNOWN], y[y < KNOWN]), folder / "pretrained.safetensors")


PARTS = ("train", "test", "heldout")


def write(pixels: np.ndarray, folder: Path) -> None:
    """Writes pictures [n, 32, 32, 3] as JPEGs."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"{i:04}.jpg", quality=95)


def pretrained(x: np.ndarray, y: np.ndarray) -> dict[str, torch.Tensor]:
    """The weights of the model but for its head, trained on pictures scaled as timm's own are."""
    torch.manual_seed(0)
    model = timm.create_model(MODEL, num_classes=KNOWN)
    mean, deviation = (torch.tensor(model.default_cfg[name]) for name in ("mean", "std"))
    pixels = (torch.from_numpy(x).float() / 255 - mean) / deviation
    inputs, labels = pixels.movedim(-1, 1).contiguous(), torch.from_numpy(y)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, STEPS)
    for step in range(STEPS):
        rows = torch.randint(len(labels), (BATCH,))
        batch = inputs[rows].flip(-1) if step % 2 else inputs[rows]
        loss = F.cross_entropy(model(batch), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"pretraining {step}/{STEPS}: loss {loss.item():.3f}", flush=True)
    head = model.default_cfg["classifier"]
    return {k: v for k, v in model.state_dict().items() if not k.startswith(f"{head}.")}


def show(runs: Path) -> None:
    """Prints the table of the runs below a folder, `NAME/seedN`: every seed's numbers."""
    found: dict[str, dict[int, dict]] = {}
    for path in sorted(runs.glob("*/seed*/result.json")):
        result = json.loads(path.read_text())
        found.setdefault(path.parent.parent.name, {})[result["seed"]] = result
    seeds = sorted({seed for results in found.values() for seed in results})
    print(
        "| run | " + " | ".join(f"seed {seed}" for seed in seeds) + " | mean | mean's | NLL | s |"
    )
    print("|---" * (len(seeds) + 5) + "|")
    for name, results in found.items():
        told = [f"{results[s]['test']:.3f}" if s in results else "-" for s in seeds]
        test = [result["test_metrics"] for result in results.values()]
        means = [statistics.mean(one[key] for one in test) for key in COLUMNS if key in test[0]]
        seconds = statistics.mean(result["seconds"] for result in results.values())
        numbers = [*told, *(f"{mean:.3f}" for mean in means), f"{seconds:.0f}"]
        print(f"| {name} | " + " | ".join(numbers) + " |")


COLUMNS = ("error_rate", "ema_error_rate", "loss")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    preparing = commands.add_parser("prepare", help="write weights and pictures")
    preparing.add_argument("--images", type=Path, required=True, metavar="FILE", help=".npz")
    preparing.add_argument("--output", type=Path, required=True, metavar="DIR")
    showing = commands.add_parser("show", help="the table of runs")
    showing.add_argument("runs", type=Path, metavar="RUNS", help="holds NAME/seedN")
    asked = parser.parse_args()
    if asked.command == "prepare":
        prepare(asked.images, asked.output)
    else:
        show(asked.runs)


if __name__ == "__main__":
    main()
