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
    from metaloss.analysis import indices, paper_figures
    from metaloss.config import plugins
    from metaloss.errors import InputError, first_line
    from metaloss.experiments import records
    from metaloss.machine.files import writing
    from metaloss.runs import pictures

    failed = False
    drawn: list[Path] = []
    plugins.load_all(arguments.plugin)
    if arguments.activation:
        with writing(arguments.activation):
            paper_figures.activation().savefig(arguments.activation, dpi=pictures.DPI)
        print(arguments.activation)
    for path in [found for given in arguments.run for found in records.find(given)[0] or [given]]:
        try:
            record = records.read_whole(path)
            title = record.title
            pictures.draw(path, title)
        except InputError as error:
            message = first_line(error)
            message = message if str(path) in message else f"{path}: {message}"
            print(f"error: {message}", file=sys.stderr)
            failed = True
            continue
        drawn.append(path)
        state = "" if record.status == "finished" else f" ({record.status}, step {record.steps:,})"
        print(f"{path}/figures: {title}{state}")
        latest = next((row for row in reversed(record.rows) if "scale" in row), {})
        for warning in indices.warnings(latest):
            print(f"warning: {path}: the loss at step {latest['step']:,}: {warning}")
    if arguments.together and drawn:
        for file in pictures.draw_together(records.names(drawn), arguments.together):
            print(file)
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
