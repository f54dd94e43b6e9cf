#!/usr/bin/env python
"""Lists the components that gin files can name: what each one is, its parameters and defaults.

python tools/list.py
python tools/list.py representations 'backbones.l*'
python tools/list.py --plugin=my_losses.py representations
"""

from __future__ import annotations

import argparse
import sys


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; before any slow import, so that --help is quick."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pattern", nargs="*", help="kinds, or patterns of kind.name; default: all")
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="MODULE_OR_FILE", help="may repeat"
    )
    return parser.parse_args(arguments)


def main(command_line: list[str] | None = None) -> int:
    """Parses, prints, and turns what the user got wrong into one line and exit code 2."""
    arguments = parse_arguments(command_line)

    from metaloss.errors import answered

    return answered(carry_out, arguments)


def carry_out(arguments: argparse.Namespace) -> int:
    """Lists; the exit code."""
    from metaloss.config import plugins
    from metaloss.config.catalogue import catalogue

    plugins.load_all(arguments.plugin)
    print(catalogue(arguments.pattern), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
