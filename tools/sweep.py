#!/usr/bin/env python
r"""Carries out a grid of runs: tasks x methods x parameters x seeds, on one machine or on many.

    python tools/sweep.py plan paper/cpu.gin                      # what it would be, and its cost
    python tools/sweep.py run paper/cpu.gin --data_dir=DIR        # starts what is not done yet
    python tools/sweep.py status paper/cpu.gin                    # done, running, failed, time left
    python tools/sweep.py retry paper/cpu.gin --data_dir=DIR      # also what has failed
    python tools/sweep.py report paper/cpu.gin --output=cpu.html  # the paper's tables from it
    python tools/sweep.py choose baselines/digits.gin             # the best of what was tried
    python tools/sweep.py references paper/cpu.gin                # a constant, a linear model
    python tools/sweep.py search SEARCH.gin                       # numbers, by Optuna
    python tools/sweep.py run paper/table1.gin --launcher=slurm \
        --gin_param="launchers.slurm.partition = 'gpu'"

SPEC is a gin file with a `Sweep`, also one of the shipped gin_configs/paper; several are one sweep.
A run's folder is named by its complete configuration and seed, so a sweep that is run again fills
the gaps only. See docs/sweeps.md.

Exit codes: 0 all is well, 1 a run has failed or was interrupted, 2 bad input, 130 or 143 stopped by
SIGINT or SIGTERM.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

COMMANDS = ("plan", "run", "status", "retry", "report", "choose", "references", "search")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; before any slow import, so that --help is quick."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("command", choices=COMMANDS)
    add("spec", nargs="+", metavar="SPEC", help="gin files with a Sweep")
    add("--output_dir", default="runs", metavar="DIR", help="default: runs")
    add("--launcher", metavar="NAME", help="local, slurm, ray; default: the spec's, or local")
    add("--gin_param", action="append", default=[], metavar="'NAME = VALUE'", help="may repeat")
    add("--only", action="append", default=[], metavar="PATTERN", help="of run folders; may repeat")
    add("--limit", type=int, metavar="N", help="the first N of them")
    add("--data_dir", metavar="DIR", help="data sets; default: $METALOSS_DATA, or ./data")
    add("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1")
    add("--cuda_graphs", action="store_true", help="on a GPU: steps are recorded and replayed")
    add("--plugin", action="append", default=[], metavar="MODULE_OR_FILE", help="may repeat")
    add("--output", type=Path, metavar="FILE", help="of the report; default: the terminal")
    return parser.parse_args(arguments)


def main(command_line: list[str] | None = None) -> int:
    """Parses, acts, and turns what the user got wrong into one line and exit code 2."""
    arguments = parse_arguments(command_line)

    from metaloss.errors import answered

    return answered(carry_out, arguments)


def carry_out(arguments: argparse.Namespace) -> int:
    """Acts; the exit code."""
    from metaloss.experiments.sweeps import commands

    try:
        return commands.carry_out(Path(__file__).with_name("train.py"), **vars(arguments))
    except KeyboardInterrupt as stopped:
        print("stopped: what had begun is saved; run it again to go on", file=sys.stderr)
        return 128 + (stopped.args[0] if stopped.args else signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main())
