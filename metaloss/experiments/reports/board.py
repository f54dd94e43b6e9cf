"""What TensorBoard is shown of several runs: each of them, and the mean of each group of seeds."""

from __future__ import annotations

import itertools
import shutil
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from metaloss.errors import RunFolderError
from metaloss.experiments.records import Record
from metaloss.runs.callbacks.parts.numbers import scalars

#: TensorBoard's flag: its default shows a random ten of a run's figures, and 0 (all) none of them
SAMPLES = "images=1000,text=1000"

#: What is averaged: by tag, at each step [mean, lower, upper].
Margins = dict[str, dict[int, tuple[float, float, float]]]


def gather(records: Iterable[Record], folder: Path) -> dict[str, list[Record]]:
    """Makes a log directory of runs, by links, and of the means of their seeds, in `_summary`.

    Args:
        records: of the runs.
        folder: the log directory; one that this function made is made anew.

    Returns:
        The groups that have a mean.

    Raises:
        RunFolderError: the folder cannot be written to, or holds something else.
    """
    records = list(records)
    found = groups(records)
    try:
        shutil.rmtree(folder / "_summary", ignore_errors=True)
        taken = set()
        for record in records:
            place = folder / f"{record.task}_{record.backbone}" / record.method
            names = (f"seed{record.seed}{f'_{i}' if i else ''}" for i in itertools.count())
            link = next(place / name for name in names if place / name not in taken)
            taken.add(link)
            place.mkdir(parents=True, exist_ok=True)
            if link.is_symlink():
                link.unlink()
            link.symlink_to(record.path.resolve(), target_is_directory=True)
        for name, members in found.items():
            write(members, folder / "_summary" / name)
    except OSError as error:
        raise RunFolderError(f"{folder} cannot be made a log directory: {error}") from error
    return found


def groups(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records of several seeds, by "task_backbone/method"; single ones are left out.

    A seed that is there twice counts once, by its first record.
    """
    found: dict[str, dict[int, Record]] = defaultdict(dict)
    for record in records:
        name = f"{record.task}_{record.backbone}/{record.method}"
        found[name].setdefault(record.seed, record)
    return {name: list(seeds.values()) for name, seeds in found.items() if len(seeds) > 1}


def margins(records: Sequence[Record]) -> Margins:
    """Mean, and mean ∓ one standard deviation over the seeds (ddof 1), of every number.

    Only of the steps that every seed has a number for: a mean over those that happen to be there
    would jump when one of them ends, and would flatter a method whose other seeds diverged.
    """
    tables: list[dict[tuple[str, int], float]] = []
    for record in records:
        rows = [row for row in record.rows if row["phase"] == "train"]
        tables.append({(tag, row["step"]): v for row in rows for tag, v in scalars(row).items()})
    found: Margins = defaultdict(dict)
    for tag, step in sorted(set(tables[0]).intersection(*tables[1:])):
        values = np.array([table[tag, step] for table in tables])
        mean, spread = float(values.mean()), float(values.std(ddof=1))
        found[tag][step] = mean, mean - spread, mean + spread
    return dict(found)


def write(records: Sequence[Record], folder: Path) -> None:
    """Writes the margins as a TensorBoard run: `tag`, `tag_lower`, `tag_upper`, and their charts.

    Args:
        records: of one method, several seeds.
        folder: the run's own; a custom-scalars layout has a chart with a margin for each tag.
    """
    from torch.utils.tensorboard import SummaryWriter

    found = margins(records)
    writer = SummaryWriter(str(folder))
    charts: dict[str, dict[str, list]] = defaultdict(dict)
    for tag, steps in found.items():
        names = [tag, f"{tag}_lower", f"{tag}_upper"]
        charts[f"mean of {len(records)} seeds"][tag] = ["Margin", names]
        for step, numbers in steps.items():
            for name, number in zip(names, numbers, strict=True):
                writer.add_scalar(name, number, step)
    writer.add_custom_scalars(charts)
    writer.close()
