#!/usr/bin/env python
r"""Starts TensorBoard on runs, with every figure kept and the mean of each group of seeds.

    python tools/board.py runs/lenet5 --port=6007
    python tools/board.py runs/mnist_lenet5              # all runs below; seeds are averaged
    python tools/board.py runs/mnist_lenet5 --output_dir=board --write_only

The mean over the seeds of a task, backbone and method, with a margin of one standard deviation,
appears as the run `_summary/TASK_BACKBONE/METHOD`, made anew from the runs' metrics.jsonl at each
start. What this tool does not know goes to TensorBoard (--port, --bind_all, ...). A damaged run
is told and left out; exit code 2 if none is left.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
from pathlib import Path


def parse_arguments(arguments: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The command line, and what is TensorBoard's; before any slow import."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("run", nargs="+", type=Path, metavar="RUN", help="run folders, or folders of them")
    add("--output_dir", type=Path, metavar="DIR", help="keep what TensorBoard is shown")
    add("--write_only", action="store_true", help="do not start TensorBoard; needs --output_dir")
    parsed, rest = parser.parse_known_args(arguments)
    if parsed.write_only and not parsed.output_dir:
        parser.error("--write_only writes nothing without --output_dir")
    return parsed, rest


def main(command_line: list[str] | None = None) -> int:
    """Gathers the runs and starts TensorBoard on them, until it ends."""
    parsed = parse_arguments(command_line)

    from metaloss.errors import answered

    return answered(carry_out, parsed)


def carry_out(parsed: tuple[argparse.Namespace, list[str]]) -> int:
    """Shows the runs; the exit code, which is TensorBoard's where that was started."""
    from metaloss.errors import InputError, first_line
    from metaloss.experiments import records
    from metaloss.experiments.reports import board

    arguments, rest = parsed
    found = []
    for path in [run for given in arguments.run for run in records.find(given)[0] or [given]]:
        try:
            found.append(records.read_whole(path))
        except InputError as error:
            print(f"warning: left out: {first_line(error)}", file=sys.stderr)
    if not found:
        raise InputError("there is no run to show")
    for record in found:
        if record.status != "finished":
            print(f"{record.path}: {record.status}, step {record.steps:,}")
    with tempfile.TemporaryDirectory(prefix="metaloss-board-") as temporary:
        folder = arguments.output_dir or Path(temporary)
        for name, members in board.gather(found, folder).items():
            print(f"_summary/{name}: mean of {len(members)} seeds", flush=True)
        if arguments.write_only:
            return 0
        import tensorboard  # noqa: F401 - where it is missing, it is said

        command = [sys.executable, "-m", "tensorboard.main", f"--logdir={folder}"]
        command.append(f"--samples_per_plugin={board.SAMPLES}")
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # subprocess.run ends its child
        try:
            return subprocess.run([*command, *rest], check=False).returncode
        except KeyboardInterrupt:
            return 0


if __name__ == "__main__":
    sys.exit(main())
