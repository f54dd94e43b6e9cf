#!/usr/bin/env python
r"""Writes a first gin file for one's own data, by a look at them, with a comment on each line.

    python tools/init.py houses.csv --target=price     # a table: CSV, Parquet or Arrow
    python tools/init.py pictures                      # a folder of pictures in a folder a class
    python tools/init.py mine.npz --output=mine.gin    # arrays x_train, y_train, x_test, y_test

The file says how to train by it. It is a guess to begin with; no file is overwritten. See
docs/own_data.md. Exit codes: 0 written, 2 bad input.
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
    add("data", type=Path, metavar="DATA", help="a table, a folder of pictures, or arrays")
    add("--target", metavar="COLUMN", help="of a table, what is to be predicted; default: the last")
    add("--output", type=Path, metavar="FILE", help="default: the data's name, with .gin, here")
    return parser.parse_args(arguments)


def main(command_line: list[str] | None = None) -> int:
    """Parses, looks, and turns what the user got wrong into one line and exit code 2."""
    arguments = parse_arguments(command_line)

    from metaloss.errors import answered

    return answered(carry_out, arguments)


def carry_out(arguments: argparse.Namespace) -> int:
    """Looks and writes; the exit code."""
    from metaloss.machine.files import write_new
    from metaloss.tasks.preparation import starting

    output = arguments.output or Path(f"{arguments.data.resolve().stem}.gin")
    write_new(output, starting.gin_file(arguments.data, str(output), arguments.target))
    print(f"{output}: look at it, then metaloss train --gin_file={output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
