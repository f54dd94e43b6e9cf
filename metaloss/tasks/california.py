"""California Housing."""

from __future__ import annotations

import hashlib
import io
import tarfile
import urllib.request
import warnings
from pathlib import Path

import numpy as np

from metaloss.errors import DataError, RunFolderError
from metaloss.machine.files import write_atomically
from metaloss.tasks.base import TASKS
from metaloss.tasks.preparation.splits import SplitTable

URL = "https://ndownloader.figshare.com/files/5976036"  # as in scikit-learn
SHA256 = "aaa5c9a6afe2225cc2aed2723682ae403280c4a3695a2ddda4ffb5d8215ea681"
ROWS, FIELDS = 20640, 9


@TASKS.register("california")
class California(SplitTable):
    """House values of 20,640 census block groups, 8 inputs (Pace & Barry, 1997; section 4.2)."""

    def table(self, data_dir: Path) -> tuple[np.ndarray, np.ndarray]:
        return read(data_dir)


def read(data_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    """Inputs [20640, 8] and target [20640], as scikit-learn's loader gives them.

    From the plain file `CaliforniaHousing/cal_housing.data`, downloaded if it is not there. The
    cache of scikit-learn's loader, `cal_housing_py3.pkz`, is a pickle: it can run code, and is not
    read.
    """
    path = data_dir / "CaliforniaHousing" / "cal_housing.data"
    if not path.is_file():
        _download(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of an empty file; the shape says it
            table = np.loadtxt(path, delimiter=",", ndmin=2)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {str(error).split(';')[0]}") from None
    if table.shape != (ROWS, FIELDS):
        raise DataError(
            f"{path}: a table of {table.shape}, not {(ROWS, FIELDS)}: the file is cut short"
        )
    longitude, latitude, age, rooms, bedrooms, population, households, income, value = table.T
    inputs = [
        income,
        age,
        rooms / households,
        bedrooms / households,
        population,
        population / households,
        latitude,
        longitude,
    ]
    return np.stack(inputs, axis=1), value / 100_000


def _download(path: Path) -> None:
    try:
        with urllib.request.urlopen(URL, timeout=30) as answer:
            archive = answer.read()
        if (found := hashlib.sha256(archive).hexdigest()) != SHA256:
            raise OSError(f"its SHA-256 is {found}, not {SHA256}")
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            member = files.extractfile("CaliforniaHousing/cal_housing.data")
            assert member is not None, "it is a file in the archive of that checksum"
            table = member.read()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda temporary: temporary.write_bytes(table))
    except (OSError, RunFolderError) as error:
        raise DataError(
            f"no file {path}, and its download failed ({error}): put cal_housing.data of StatLib's "
            "'California Housing' there, or set --data_dir"
        ) from None
