"""Bad data: a file that is missing, damaged or cut short is named in one line, exit code 2."""

import gzip
import hashlib

import numpy as np
import pytest
import torch

from metaloss import TASKS
from tests.small_data import write_official


@pytest.fixture
def offline(monkeypatch):
    """Every download fails at once."""
    import urllib.request

    def fail(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", fail)
    monkeypatch.setattr("sklearn.datasets._base.urlretrieve", fail)


@pytest.mark.parametrize(
    ("task", "file"),
    [
        ("mnist_mlp", "MNIST/raw/train-images-idx3-ubyte.gz"),
        ("crime_mlp", "communities_and_crime/communities.data"),
        ("california_mlp", "CaliforniaHousing/cal_housing.data"),
    ],
)
def test_missing_data_names_the_file_and_the_flag(train, tmp_path, offline, task, file):
    code, stderr = train(
        f"--gin_file=tasks/{task}.gin", f"--data_dir={tmp_path}", f"--output_dir={tmp_path / 'run'}"
    )
    assert code == 2
    assert stderr.startswith(f"error: no file {tmp_path / file}, and ")
    assert stderr.endswith("or set --data_dir\n")
    assert stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


DAMAGE = {
    "communities_and_crime/communities.data": {
        "1,2\n": "line 1 has 2 fields, not 128",
        ",".join(["0"] * 128) + "\n": "1 rows, not 1994: the file is cut short or changed",
        (",".join(["0"] * 127 + ["?"]) + "\n") * 1994: "line 1 has no target in its last field",
        (",".join(["0"] * 127 + ["x"]) + "\n") * 1994: "line 1, field 128 is no number: 'x'",
    },
    "CaliforniaHousing/cal_housing.data": {
        "1,2,3\n": "a table of (1, 3), not (20640, 9): the file is cut short",
        "1,2,3\n1,2\n": "cannot be read: the number of columns changed from 3 to 2 at row 2",
        "": "a table of (0, 1), not (20640, 9): the file is cut short",
    },
}


@pytest.mark.parametrize(
    ("file", "content"), [(file, content) for file in DAMAGE for content in DAMAGE[file]],
    ids=range(7),
)  # fmt: skip
def test_a_damaged_table_names_the_file_and_the_line(refused, tmp_path, file, content):
    path = tmp_path / file
    path.parent.mkdir()
    path.write_text(content)
    task = "crime_mlp" if "crime" in file else "california_mlp"
    files = (f"tasks/{task}.gin", "methods/baseline.gin")
    message = refused(f"--data_dir={tmp_path}", files=files)
    assert message == f"{path}: {DAMAGE[file][content]}"


@pytest.mark.parametrize(("task", "dataset"), [("fashion_mnist", "FashionMNIST"),
                                                ("kmnist", "KMNIST")])  # fmt: skip
def test_mnists_kin_have_folders_of_their_own(refused, tmp_path, offline, task, dataset):
    folder = tmp_path / dataset / "raw"
    folder.mkdir(parents=True)
    message = refused(f"--gin_param=Runner.task = @tasks.{task}()", f"--data_dir={tmp_path}")
    assert message.startswith(f"no file {folder / 'train-images-idx3-ubyte.gz'}, and ")
    assert message.endswith(
        f"put {dataset}'s four *-ubyte.gz files into {folder}, or set --data_dir"
    )


ARCHIVES = {
    "cifar10": "cifar-10-batches-py/data_batch_3",
    "cifar100": "cifar-100-python/train",
    "svhn": "test_32x32.mat",
}


@pytest.fixture
def official(tmp_path):
    """Small official image data sets; -> their folder."""
    with pytest.MonkeyPatch.context() as patch:
        write_official(tmp_path, patch)
        yield tmp_path


@pytest.mark.parametrize("task", ARCHIVES)
def test_missing_images_name_the_file_and_the_flag(refused, official, offline, task):
    path = official / ARCHIVES[task]
    path.unlink()
    message = refused(f"--gin_param=Runner.task = @tasks.{task}()", f"--data_dir={official}")
    assert message == (
        f"no file {path}, and torchvision's download failed (no network): put it there, or set "
        "--data_dir"
    )


@pytest.mark.parametrize("also_missing", [False, True])
@pytest.mark.parametrize("task", ARCHIVES)
def test_damaged_images_are_named_and_left_alone(refused, official, offline, task, also_missing):
    path = official / ARCHIVES[task]
    content = path.read_bytes()[:-1]
    path.write_bytes(content)
    if also_missing:  # a download would write over both
        path.with_name({"svhn": "train_32x32.mat"}.get(task, "data_batch_2")).unlink(True)
    message = refused(f"--gin_param=Runner.task = @tasks.{task}()", f"--data_dir={official}")
    assert message.startswith(f"{path}: its md5 is {hashlib.md5(content).hexdigest()}, not ")
    assert message.endswith("damaged or another's; delete it, and it is downloaded again")
    assert path.read_bytes() == content


def test_official_images_are_read_where_nothing_can_be_written(official, offline):
    before = {path: path.stat().st_mtime_ns for path in official.rglob("*")}
    for task in ARCHIVES:
        TASKS[task]().load(official, torch.Generator())
    assert {path: path.stat().st_mtime_ns for path in official.rglob("*")} == before


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "another file"])
def test_a_damaged_mnist_file_is_named(refused, tmp_path, monkeypatch, damage):
    few = {"train": ("train", 20), "test": ("t10k", 20)}
    monkeypatch.setattr("metaloss.tasks.mnist.FILES", few)
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name in ("train", "t10k"):
        images = np.array([0x803, 20, 28, 28], ">i4").tobytes() + bytes(20 * 784)
        labels = np.array([0x801, 20], ">i4").tobytes() + bytes(20)
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    path = folder / "train-labels-idx1-ubyte.gz"
    whole = bytearray(path.read_bytes())
    whole[-6] ^= 1  # of the checksum
    contents = {
        "cut": whole[:-10],
        "empty": b"",
        "flipped": whole,
        "another file": gzip.compress(b"else"),
    }
    path.write_bytes(contents[damage])
    files = ("tasks/mnist_mlp.gin", "methods/baseline.gin")
    message = refused(f"--data_dir={tmp_path}", files=files)
    assert message.startswith(f"{path}: ")
