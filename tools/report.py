#!/usr/bin/env python
r"""Reports on many runs: the paper's tables and learning curves, and all other runs.

    python tools/report.py runs                                  # Markdown, to the terminal
    python tools/report.py runs more/runs --output=report.html   # one file, figures inside
    python tools/report.py runs --keep=results                   # and what its tables are made of

RUNS are run folders, or folders that hold run folders at any depth. Runs that are going on, cut
short or damaged are named with the reason, and the rest is reported. See docs/reports.md.

Exit codes: 0 the report was made, 2 bad input or no usable run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

FORMATS = ("md", "latex", "csv", "html")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; before any slow import, so that --help is quick."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUNS", help="run folders, or folders that hold some")
    add("--format", choices=FORMATS, help="default: by --output, or md")
    add("--output", type=Path, metavar="FILE", help="default: the terminal; figures need a file")
    add(
        "--keep",
        type=Path,
        metavar="FOLDER",
        help="also copy each config.gin and result.json there",
    )
    add("--plugin", action="append", default=[], metavar="MODULE_OR_FILE", help="may repeat")
    return parser.parse_args(arguments)


def main(command_line: list[str] | None = None) -> int:
    """Parses, reports, and turns what the user got wrong into one line and exit code 2."""
    arguments = parse_arguments(command_line)

    from metaloss.errors import answered

    return answered(carry_out, arguments)


def carry_out(arguments: argparse.Namespace) -> int:
    """Reports; the exit code."""
    from metaloss.experiments.reports.publish import publish

    publish(arguments.runs, arguments.format, arguments.output, arguments.plugin, arguments.keep)
    return 0


if __name__ == "__main__":
    sys.exit(main())
