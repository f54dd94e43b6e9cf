"""Every test starts from the same seed, on one thread."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A folder of small data sets in the on-disk format of the real ones."""
    from tests.small_data import write_all

    folder = tmp_path_factory.mktemp("data")
    write_all(folder)
    return folder
