#!/usr/bin/env python
r"""Evaluates the model of a run on a split or another data set, or predicts with it.

    python tools/evaluate.py runs/mnist_lenet5/adalfl/seed0 --split=valid
    python tools/evaluate.py RUN --gin_param="tasks.arrays.path = 'other.npz'" --output=other.json
    python tools/evaluate.py RUN --predict=inputs.npz --output=predictions.csv
    python tools/evaluate.py RUN --predict=photos --output=predictions.csv --weights=average

Nothing in the run folder is changed. Exit codes: 0 done, 2 bad input.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; before any slow import, so that --help is quick."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="run folder; the run may still go on")
    add("--split", help="test (default), valid, train or select, all of its examples")
    add("--gin_param", action="append", default=[], metavar="'NAME = VALUE'",
        help="another data set: of the task only; may repeat")  # fmt: skip
    add("--predict", type=Path, metavar="PATH",
        help="picture, or a folder of them; .npz of arrays; .csv or .parquet")  # fmt: skip
    add("--key", help="array in --predict; default: x, the only one, or x_test")
    add("--output", type=Path, metavar="FILE", help=".json; of predictions .npz or .csv")
    add("--overwrite", action="store_true", help="write --output even if it is there")
    add("--weights", default="tested", choices=["tested", "last", "average"],
        help="those of the result (default), of the last step, or their running mean")  # fmt: skip
    add("--calibrated", action="store_true",
        help="divide outputs by the temperature that suits the validation data")  # fmt: skip
    add("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1")
    add("--data_dir", metavar="DIR", help="data sets; default: where the run had them")
    add("--plugin", action="append", default=[], metavar="MODULE_OR_FILE", help="may repeat")
    add("--threads", type=int, metavar="N", help="CPU threads; default: torch's")
    return parser.parse_args(arguments)


def main(command_line: list[str] | None = None) -> int:
    """Parses, evaluates, and turns what the user got wrong into one line and exit code 2."""
    arguments = parse_arguments(command_line)

    from metaloss.errors import answered

    return answered(carry_out, arguments)


def carry_out(arguments: argparse.Namespace) -> int:
    """Evaluates; the exit code."""
    from metaloss.runs.trained import model

    print(model.evaluate(**vars(arguments)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
