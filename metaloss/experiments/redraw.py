"""What `tools/figures.py` is asked for: the figures of runs, drawn again from their folders."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from metaloss.analysis import indices, paper_figures
from metaloss.errors import InputError, first_line
from metaloss.experiments import records
from metaloss.machine.files import writing
from metaloss.runs import pictures


def carry_out(
    run: Sequence[Path],
    together: Path | None = None,
    activation: Path | None = None,
    plugin: Sequence[str] = (),
) -> int:
    """Draws; the arguments are the tool's flags.

    Returns:
        The exit code: 0, or 2 if a run could not be drawn, which a line says.

    Raises:
        InputError: a plugin does not load, or a file cannot be written.
    """
    failed = False
    drawn: list[Path] = []
    records.load_plugins(plugin, run)
    if activation:
        with writing(activation):
            paper_figures.activation().savefig(activation, dpi=pictures.DPI)
        print(activation)
    for path in [found for given in run for found in records.find(given)[0] or [given]]:
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
    if together and drawn:
        for file in pictures.draw_together(records.names(drawn), together):
            print(file)
    return 2 if failed else 0
