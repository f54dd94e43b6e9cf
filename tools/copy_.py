#!/usr/bin/env python
r"""Copies a shipped gin file, to be changed; without a name, lists them.

    python tools/copy_.py                                  # all, with their first lines
    python tools/copy_.py methods/adalfl.gin               # into ./adalfl.gin
    python tools/copy_.py methods/adalfl.gin --output=mine.gin

No file is overwritten. (The tool's own name ends in _ since Python finds its module `copy` beside a
tool that is run.) Exit codes: 0 done, 2 bad input.
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
    add("name", nargs="?", metavar="NAME", help="a shipped file, as methods/adalfl.gin")
    add("--output", type=Path, metavar="FILE", help="default: the same name, here")
    return parser.parse_args(arguments)


def main(command_line: list[str] | None = None) -> int:
    """Parses, copies, and turns what the user got wrong into one line and exit code 2."""
    arguments = parse_arguments(command_line)

    from metaloss.errors import answered

    return answered(carry_out, arguments)


def carry_out(arguments: argparse.Namespace) -> int:
    """Copies or lists; the exit code."""
    from metaloss.config import gin_files
    from metaloss.machine.files import write_new

    if arguments.name is None:
        for name in gin_files.shipped():
            first = (gin_files.CONFIG_DIR / name).read_text(encoding="utf-8").split("\n")[0]
            print(f"{name:40} {first.lstrip('# ')}")
        return 0
    source = gin_files.find(arguments.name, gin_files.CONFIG_DIR)
    output = arguments.output or Path(source.name)
    write_new(output, source.read_text(encoding="utf-8"))
    print(f"{output}: a copy of {arguments.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
