"""Publishing a report: from paths of runs to a file, or to the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from metaloss.experiments import records
from metaloss.experiments.reports import formats, output, page, raw, report
from metaloss.machine.files import check_output

Form = Literal["md", "latex", "csv", "html"]
#: Formats, and how their files end.
ENDINGS: dict[Form, str] = {"md": ".md", "latex": ".tex", "csv": ".csv", "html": ".html"}


def publish(
    paths: Sequence[Path],
    form: Form | None = None,
    file: Path | None = None,
    plugin: Sequence[str] = (),
    keep: Path | None = None,
) -> None:
    """Reads runs and writes the report over them; warns of what cannot be read.

    Args:
        paths: run folders, or folders that hold some.
        form: None: by the file's ending, or Markdown.
        file: None prints it.
        plugin: modules or files of learned losses that no run remembers.
        keep: a folder for config.gin and result.json of the runs that have ended.

    Raises:
        InputError: there is no usable run, a plugin does not load, or the file cannot be written.
    """
    if file is not None:
        check_output(file, [ENDINGS[form]] if form else list(ENDINGS.values()))
        form = next(name for name, ending in ENDINGS.items() if ending == file.suffix)
    records.load_plugins(plugin, paths)
    reading = records.read(paths)
    for line in reading.problems:
        print(f"warning: {line}", file=sys.stderr)
    found = report.contents(reading)
    if keep is not None:
        count = records.keep(paths, keep)
        print(f"config.gin and result.json of {count} runs are in {keep}", file=sys.stderr)
    if form == "csv":
        text = raw.as_csv(found.filled, found.rest, found.groups)
        output.save_text(text, file) if file else print(text, end="")
    elif file is not None:
        output.save(report.document(found), file)
    elif form == "html":
        print(page.html(report.document(found)), end="")
    else:
        write = formats.latex if form == "latex" else formats.markdown
        print(write(report.document(found), {}), end="")
