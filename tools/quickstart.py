#!/usr/bin/env python
"""Trains two baselines and AdaLFL on handwritten digits, and says where to look.

    python tools/quickstart.py

No download; under a minute on two cores. Run again, it shows the results that are there.
"""

from __future__ import annotations

import argparse
import sys

BASELINE = ["tasks/digits_mlp.gin", "methods/baseline.gin"]
TUNED = "base_optimizers.sgd.lr = 0.1"  # chosen among seven rates: docs/protocol.md
#: gin files and bindings, by the folder of the run.
RUNS: dict[str, tuple[list[str], list[str]]] = {
    "baseline": (BASELINE, []),
    "baseline_tuned": (BASELINE, [TUNED]),
    "adalfl": (["quickstart.gin"], []),
}
TOLD = {"baseline": "baseline", "baseline_tuned": "baseline, rate tuned", "adalfl": "AdaLFL"}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; before any slow import, so that --help is quick."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output_dir", default="runs/quickstart", metavar="DIR")
    return parser.parse_args(arguments)


def main(command_line: list[str] | None = None) -> int:
    """All runs, then a table."""
    arguments = parse_arguments(command_line)

    from metaloss.errors import answered

    return answered(carry_out, arguments.output_dir)


def carry_out(folder: str) -> int:
    """Trains, and tells what came of it; the exit code."""
    from pathlib import Path

    from metaloss.machine.files import read_json
    from metaloss.runs import launch
    from metaloss.runs.folder import RunFolder

    for method, (files, bindings) in RUNS.items():
        # One thread: models this small gain nothing from two, and the numbers repeat.
        code = launch.train(
            gin_file=files,
            gin_param=bindings,
            output_dir=f"{folder}/{method}",
            device="cpu",
            threads=1,
            resume=True,
        )
        if code:
            return code
    results = {name: read_json(RunFolder(Path(folder, name)).result) for name in RUNS}
    print("\nHandwritten digits, after 1000 steps of an MLP 100-100 (360 test images, one seed):\n")
    print(f"    {'':20}  error  cross-entropy  seconds")
    for method, result in results.items():
        cross_entropy = result["test_metrics"]["loss"]
        numbers = f"{result['test']:.4f} {cross_entropy:14.3f} {result['seconds']:8.0f}"
        print(f"    {TOLD[method]:20} {numbers}")
    print(
        "\nThe second baseline's learning rate was chosen among seven. Cross-entropy is lower "
        "where\nprobabilities are better; a learned loss may have few errors and bad probabilities."
    )
    print(
        f"\nThe learned loss:     {folder}/adalfl/figures/loss.png"
        f"\nThe learning curves:  {folder}/*/figures/learning_curve.png"
        f"\nTensorBoard:          .venv/bin/tensorboard --logdir {folder}"
        "  (or `tensorboard`, in your own environment)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
