#!/usr/bin/env python
r"""Certifies meta-gradients against double backward and the real optimizer's steps, in float64.

    python tools/check_gradients.py                  # the built-in components; 20 minutes
    python tools/check_gradients.py --backbone=mlp   # some of them, in seconds
    python tools/check_gradients.py --gin_file=gin_configs/tasks/digits_mlp.gin \
        --gin_file=gin_configs/methods/adalfl.gin --plugin=my_loss.py \
        --gin_param='Runner.representation = @representations.my_loss()'
    python tools/check_gradients.py --model=my_models:make   # a function that gives a model of
                                                             # one's own, and inputs for it

Prints a line a certificate; of a model, whether its meta-gradient is right, refused, or wrong.
Exit codes: 0 all hold, 1 one does not, 2 bad input.
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
    add("--model", action="append", default=[], metavar="MODULE:FUNCTION", help="may repeat")
    add("--gin_file", action="append", default=[], metavar="FILE", help="a run to certify")
    add("--gin_param", action="append", default=[], metavar="'NAME = VALUE'", help="may repeat")
    add("--plugin", action="append", default=[], metavar="MODULE_OR_FILE", help="may repeat")
    add("--data_dir", metavar="DIR", help="data sets; default: $METALOSS_DATA, or ./data")
    add("--seed", type=int, default=0, help="of a run's φ, θ and batches; default: %(default)s")
    add("--examples", type=int, default=8, metavar="N", help="in a run's batches; default: 8")
    add("--engine", action="append", default=[], help="only this; may repeat")
    add("--optimizer", action="append", default=[], help="of the built-ins only this; may repeat")
    add("--loss", action="append", default=[], help="of the built-ins only this; may repeat")
    add("--backbone", action="append", default=[], help="of the built-ins only this; may repeat")
    add("--markdown", type=Path, metavar="FILE", help="also write the tables to FILE")
    add("--threads", type=int, metavar="N", help="CPU threads; default: torch's")
    return parser.parse_args(arguments)


def main(command_line: list[str] | None = None) -> int:
    """Parses, certifies, and turns what the user got wrong into one line and exit code 2."""
    arguments = parse_arguments(command_line)

    from metaloss.errors import answered

    return answered(carry_out, arguments)


def carry_out(arguments: argparse.Namespace) -> int:
    """Certifies; the exit code."""
    from metaloss.testing.certification import commands

    return commands.carry_out(**vars(arguments))


if __name__ == "__main__":
    sys.exit(main())
