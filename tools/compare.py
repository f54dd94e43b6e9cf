#!/usr/bin/env python
r"""Compares two runs: configuration, results, learning curves and learned losses side by side.

    python tools/compare.py RUN_A RUN_B                          # text, in the terminal
    python tools/compare.py RUN_A RUN_B --output=compare.html    # with figures; or compare.png

A run that is going on, cut short or damaged is compared as far as it can be read.

Exit codes: 0 compared, 2 bad input or a folder that holds no run.
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
    add("run_a", type=Path, metavar="RUN_A", help="a run folder")
    add("run_b", type=Path, metavar="RUN_B", help="another one")
    add("--output", type=Path, metavar="FILE", help=".html, or .png for the figures alone")
    add("--plugin", action="append", default=[], metavar="MODULE_OR_FILE", help="may repeat")
    return parser.parse_args(arguments)


def main(command_line: list[str] | None = None) -> int:
    """Parses, compares, and turns what the user got wrong into one line and exit code 2."""
    arguments = parse_arguments(command_line)

    from metaloss.errors import answered

    return answered(carry_out, arguments)


def carry_out(arguments: argparse.Namespace) -> int:
    """Compares; the exit code."""
    from metaloss.experiments import records
    from metaloss.experiments.reports import comparison, formats, output
    from metaloss.machine.files import check_output

    if arguments.output is not None:
        check_output(arguments.output, (".html", ".png"))
    records.load_plugins(arguments.plugin, [arguments.run_a, arguments.run_b])
    pair, problems = comparison.read(arguments.run_a, arguments.run_b)
    document = comparison.document(pair, problems)
    print(formats.markdown(document, {}), end="")
    if arguments.output is not None:
        output.save(document, arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
