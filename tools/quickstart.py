#!/usr/bin/env python
"""Trains the baseline and AdaLFL on handwritten digits, and says where to look at what was learned.

    python tools/quickstart.py

No download; under a minute on two cores. Run again, it shows the results that are there.
"""

from __future__ import annotations

import argparse
import sys

RUNS = {
    "baseline": ["tasks/digits_mlp.gin", "methods/baseline.gin"],
    "adalfl": ["quickstart.gin"],
}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; before any slow import, so that --help is quick."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output_dir", default="runs/quickstart", metavar="DIR")
    return parser.parse_args(arguments)


def main() -> int:
    """Both runs, then a table."""
    arguments = parse_arguments()

    from metaloss.errors import answered

    return answered(carry_out, arguments.output_dir)


def carry_out(folder: str) -> int:
    """Trains, and tells what came of it; the exit code."""
    from pathlib import Path

    from metaloss.machine.files import read_json
    from metaloss.runs import launch
    from metaloss.runs.folder import RunFolder

    for method, files in RUNS.items():
        # One thread: models this small gain nothing from two, and the numbers repeat.
        code = launch.train(
            gin_file=files,
            output_dir=f"{folder}/{method}",
            device="cpu",
            threads=1,
            resume=True,
        )
        if code:
            return code
    results = {name: read_json(RunFolder(Path(folder, name)).result) for name in RUNS}
    print("\nTest error rate on handwritten digits, after 1000 steps of an MLP 100-100:\n")
    for method, result in results.items():
        print(f"    {method:9} {result['test']:.4f}   ({result['seconds']:.0f} s)")
    print(
        f"\nThe learned loss:     {folder}/adalfl/figures/loss.png"
        f"\nThe learning curves:  {folder}/*/figures/learning_curve.png"
        f"\nTensorBoard:          .venv/bin/tensorboard --logdir {folder}"
        "  (or `tensorboard`, in your own environment)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
