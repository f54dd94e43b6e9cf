"""Communities and Crime."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import numpy as np

from metaloss.errors import DataError
from metaloss.tasks.base import TASKS
from metaloss.tasks.preparation.splits import SplitTable

URL = "https://archive.ics.uci.edu/ml/machine-learning-databases/communities/communities.data"
ROWS, FIELDS, NOT_PREDICTIVE = 1994, 128, 5


@TASKS.register("crime")
class Crime(SplitTable):
    """Violent crimes per head in 1994 US communities (Redmond, 2009; paper, section 4.2).

    100 inputs: without the 5 fields that identify a community and the 22 that are missing for 84 %
    of the rows; the one other missing value becomes its column's mean.
    """

    def table(self, data_dir: Path) -> tuple[np.ndarray, np.ndarray]:
        table = read(data_dir / "communities_and_crime" / "communities.data")
        inputs, target = table[:, NOT_PREDICTIVE:-1], table[:, -1]
        inputs = inputs[:, np.isnan(inputs).mean(0) < 0.5]
        return np.where(np.isnan(inputs), np.nanmean(inputs, axis=0), inputs), target


def read(path: Path) -> np.ndarray:
    """The file as numbers [1994, 128], NaN where a field is missing or is a name."""
    if not path.is_file():
        _download(path)
    try:
        rows = [line.split(",") for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    for number, row in enumerate(rows, start=1):
        if len(row) != FIELDS:
            raise DataError(f"{path}: line {number} has {len(row)} fields, not {FIELDS}")
    if len(rows) != ROWS:
        raise DataError(f"{path}: {len(rows)} rows, not {ROWS}: the file is cut short or changed")
    table = np.full((ROWS, FIELDS), np.nan)
    for i, row in enumerate(rows):
        for j in range(NOT_PREDICTIVE, FIELDS):
            if row[j] != "?":
                try:
                    table[i, j] = float(row[j])
                except ValueError:
                    raise DataError(
                        f"{path}: line {i + 1}, field {j + 1} is no number: {row[j]!r}"
                    ) from None
    unlabelled = np.isnan(table[:, -1]).nonzero()[0]
    if len(unlabelled):
        raise DataError(f"{path}: line {unlabelled[0] + 1} has no target in its last field")
    return table


def _download(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(URL, timeout=30) as answer:
            path.write_bytes(answer.read())
    except OSError as error:
        raise DataError(
            f"no file {path}, and its download failed ({error}): put communities.data of UCI's "
            f"'Communities and Crime' there, or set --data_dir"
        ) from None
