#!/usr/bin/env python
r"""Trains a model by gin files: the baseline, ML³, MetaLR, AdaLFL, or any mix of components.

    python tools/train.py --gin_file=gin_configs/tasks/mnist_lenet5.gin \
        --gin_file=gin_configs/methods/adalfl.gin --data_dir=DIR --seed=0

Exit codes: 0 finished, 2 bad input or a disk that takes no more, 3 diverged, 130 or 143 stopped by
SIGINT or SIGTERM (saved: --resume goes on).
"""

from __future__ import annotations

import argparse
import sys


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; before any slow import, so that --help is quick."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--gin_file", action="append", default=[], metavar="FILE", help="may repeat; later wins")
    add("--gin_param", action="append", default=[], metavar="'NAME = VALUE'", help="may repeat")
    add(
        "--seed",
        type=int,
        action="append",
        metavar="N",
        help="default: 0, or the run's that --resume goes on with; may repeat: all at once",
    )
    add("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1")
    add("--data_dir", metavar="DIR", help="data sets; default: $METALOSS_DATA, or ./data")
    add(
        "--output_dir",
        metavar="DIR",
        help="default: runs/TASK_BACKBONE/METHOD/seedN; of several seeds: DIR/seedN",
    )
    add("--resume", action="store_true", help="go on with the run in --output_dir, if there is one")
    add("--plugin", action="append", default=[], metavar="MODULE_OR_FILE", help="may repeat")
    add("--strict", action="store_true", help="bindings that nobody reads are an error")
    add("--dry_run", action="store_true", help="build, make one step, print the config; no files")
    add("--threads", type=int, metavar="N", help="CPU threads; default: torch's")
    add(
        "--workers",
        type=int,
        metavar="N",
        help="processes that read data ahead where they do not fit into memory; changes no bit",
    )
    add(
        "--max_seconds",
        type=float,
        metavar="SECONDS",
        help="save and stop (143) once the run has taken so long, resumptions included",
    )
    add("--cuda_graphs", action="store_true", help="on a GPU: record steps once and replay them")
    add("--sharded", action="store_true", help="started by torchrun: train in shards (FSDP2)")
    add(
        "--patience",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="started by torchrun: how long a process waits for another one; default: 600",
    )
    return parser.parse_args(arguments)


def main(command_line: list[str] | None = None) -> int:
    """Parses, runs, and turns what the user got wrong into one line and exit code 2."""
    arguments = parse_arguments(command_line)

    from metaloss.errors import answered

    return answered(carry_out, arguments)


def carry_out(arguments: argparse.Namespace) -> int:
    """Trains; the exit code."""
    from metaloss.machine import processes
    from metaloss.runs import launch

    flags = vars(arguments)
    try:
        with processes.joined(flags.pop("patience")):
            return launch.train(**flags)
    except KeyboardInterrupt:  # the second one: the first lets the run save itself
        print(
            "interrupted: --resume goes on from the last checkpoint, if there is one",
            file=sys.stderr,
        )
        return 130


if __name__ == "__main__":
    sys.exit(main())
