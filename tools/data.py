#!/usr/bin/env python
r"""Checks one's own data without training: columns, classes, and what looks wrong.

    python tools/data.py --gin_file=gin_configs/own_data/table.gin --data_dir=DIR
    python tools/data.py --gin_param="Runner.task = @tasks.image_folder()" \
        --gin_param="tasks.image_folder.path = 'pictures'" --data_dir=DIR

The task is the one that a run of these gin files has. Exit codes: 0 done, whatever was found; 2 bad
input.
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
    add("--seed", type=int, default=0, metavar="N", help="of the validation split; default: 0")
    add("--data_dir", metavar="DIR", help="data sets; default: $METALOSS_DATA, or ./data")
    add("--plugin", action="append", default=[], metavar="MODULE_OR_FILE", help="may repeat")
    add("--threads", type=int, metavar="N", help="CPU threads; default: torch's")
    return parser.parse_args(arguments)


def main(command_line: list[str] | None = None) -> int:
    """Parses, looks, and turns what the user got wrong into one line and exit code 2."""
    arguments = parse_arguments(command_line)

    from metaloss.errors import answered

    return answered(carry_out, arguments)


def carry_out(arguments: argparse.Namespace) -> int:
    """Looks; the exit code."""
    from metaloss.runs import launch

    print("\n".join(launch.check_data(**vars(arguments))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
