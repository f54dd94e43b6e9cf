#!/usr/bin/env python
r"""Draws the figures of runs again, from their folders: no model, no data.

    python tools/figures.py runs/lenet5                     # into runs/lenet5/figures/
    python tools/figures.py runs/adalfl runs/meta_lr --together=DIR    # and side by side, into DIR
    python tools/figures.py --activation=FILE.png           # the loss network's activation

A folder may hold many runs. A run that has not ended is drawn as far as it is. Exit code 2 if a run
could not be drawn; the others are.
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
    add("run", nargs="*", type=Path, metavar="RUN", help="run folders, or folders of them")
    add("--together", type=Path, metavar="DIR", help="also draw the runs side by side")
    add("--activation", type=Path, metavar="FILE", help="draw the smooth leaky ReLU (Figure 6)")
    add("--plugin", action="append", default=[], metavar="MODULE_OR_FILE", help="may repeat")
    parsed = parser.parse_args(arguments)
    if not parsed.run and not parsed.activation:
        parser.error("give a RUN, or --activation=FILE")
    return parsed


def main(command_line: list[str] | None = None) -> int:
    """Draws run after run; what cannot be drawn is a line and exit code 2."""
    arguments = parse_arguments(command_line)

    from metaloss.errors import answered

    return answered(carry_out, arguments)


def carry_out(arguments: argparse.Namespace) -> int:
    """Draws; the exit code."""
    from metaloss.experiments import redraw

    return redraw.carry_out(**vars(arguments))


if __name__ == "__main__":
    sys.exit(main())
