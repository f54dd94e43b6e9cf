#!/usr/bin/env python
r"""Trains another backbone or task with a learned loss, and compares with the baseline.

    python tools/transfer.py runs/lenet5 --gin_file=gin_configs/tasks/mnist_mlp.gin --data_dir=DIR
    python tools/transfer.py runs/lenet5 --gin_file=gin_configs/tasks/mnist_mlp.gin \
        --mode=frozen --mode=schedule --mode=adapt --seed=0 --seed=1 --output_dir=runs/transfer

LOSS is a run folder, or one that LearnedLoss.save_pretrained wrote. The runs are ordinary ones, in
OUTPUT_DIR/METHOD/seedN: those that are there are kept, those that were stopped go on. The table is
printed, and written to OUTPUT_DIR/transfer.md and .json.

Exit codes: 0 done, 2 bad input, 130 or 143 stopped by SIGINT or SIGTERM (saved: the same command
goes on).
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
    add("loss", type=Path, metavar="LOSS", help="run folder, or an exported loss")
    add("--gin_file", action="append", default=[], metavar="FILE", help="the task; may repeat")
    add("--gin_param", action="append", default=[], metavar="'NAME = VALUE'", help="may repeat")
    add("--mode", action="append", metavar="MODE",
        help="frozen (default): the loss as it is; schedule: replayed as it changed; adapt: it "
        "goes on learning; may repeat")  # fmt: skip
    add("--step", type=int, help="of the loss's own training, to take it at; default: its end")
    add("--seed", action="append", type=int, help="may repeat; default: 0, 1 and 2")
    add("--output_dir", metavar="DIR", default="runs/transfer",
        help="default: runs/transfer")  # fmt: skip
    add("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1")
    add("--data_dir", metavar="DIR", help="data sets; default: $METALOSS_DATA, or ./data")
    add("--plugin", action="append", default=[], metavar="MODULE_OR_FILE", help="may repeat")
    add("--threads", type=int, metavar="N", help="CPU threads; default: torch's")
    return parser.parse_args(arguments)


def main(command_line: list[str] | None = None) -> int:
    """Parses, trains, and turns what the user got wrong into one line and exit code 2."""
    asked = parse_arguments(command_line)

    from metaloss.errors import answered

    return answered(carry_out, asked)


def carry_out(asked: argparse.Namespace) -> int:
    """Trains; the exit code."""
    from metaloss.experiments import transfer

    return transfer.command(**vars(asked))


if __name__ == "__main__":
    sys.exit(main())
