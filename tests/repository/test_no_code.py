"""No file that is read can run code: a pickle that would is refused, wherever it lies."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest
import torch

import metaloss
from metaloss import TASKS, links
from metaloss.errors import DataError, InputError, RunFolderError
from metaloss.machine import sealed
from metaloss.machine.files import read_json
from metaloss.representations.saved.folder import read_trajectory
from metaloss.representations.saved.learned_loss import LearnedLoss, load_loss
from metaloss.runs.metrics import read_metrics
from metaloss.runs.trained import inputs


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def evil(tmp_path):
    """An object whose unpickling is seen; it must not have been by the end of the test."""
    ran = tmp_path / "ran"
    pickle.loads(pickle.dumps(Evil(ran)))
    ran.rmdir()  # so it does work
    yield Evil(ran)
    assert not ran.exists()


@pytest.mark.parametrize("how", ["sealed", "torch", "torch, as it once was", "pickle"])
def test_a_checkpoint(evil, tmp_path, how):
    path = tmp_path / "checkpoint.pt"
    state = {"state": evil, "phi": torch.zeros(3)}
    if how == "sealed":
        sealed.save(path, state)
    elif how == "pickle":
        path.write_bytes(pickle.dumps(state))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(RunFolderError, match="is no whole checkpoint"):
        sealed.load(path)
    with pytest.raises(RunFolderError, match="is no whole checkpoint"):
        sealed.load_last(path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "trajectory.safetensors"])
def test_an_exported_loss(evil, tmp_path, name):
    LearnedLoss(metaloss.REPRESENTATIONS["taylor"](), links.values).save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(pickle.dumps(evil))
    with pytest.raises(RunFolderError, match=f"{name} cannot be read"):
        read_trajectory(tmp_path) if name.startswith("traj") else load_loss(tmp_path)


def test_notes_and_metrics(evil, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(pickle.dumps(evil) + b"\n")
    with pytest.raises(RunFolderError, match="cannot be read"):
        read_json(path)
    with pytest.raises(RunFolderError, match="is damaged in line 1"):
        read_metrics(path)


@pytest.mark.parametrize("key", ["x_train", "y_train", "x_test", "y_test"])
def test_arrays(evil, tmp_path, key):
    arrays = {"x_train": np.ones((8, 2)), "y_train": np.arange(8) % 2}
    arrays |= {"x_test": arrays["x_train"], "y_test": arrays["y_train"]}
    arrays[key] = np.array([evil] * 8, dtype=object)
    np.savez(tmp_path / "own.npz", **arrays)
    with pytest.raises(DataError, match="own.npz: cannot be read: Object arrays cannot be loaded"):
        TASKS["arrays"](path="own.npz").load(tmp_path, torch.Generator())


def test_inputs_to_predict_for(evil, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.array([evil], dtype=object))
    digits = TASKS["digits"]().load(tmp_path, torch.Generator())
    with pytest.raises(DataError, match="x.npz: cannot be read: Object arrays cannot be loaded"):
        list(inputs.batches(tmp_path / "x.npz", digits, 10))


@pytest.mark.parametrize(
    ("task", "arguments"),
    [
        ("arrays", {"path": "own.npz"}),
        ("table", {"path": "own.csv", "target": "y", "kind": "regression"}),
        ("table", {"path": "own.parquet", "target": "y", "kind": "regression"}),
    ],
)
def test_files_of_ones_own(evil, tmp_path, task, arguments):
    (tmp_path / arguments["path"]).write_bytes(pickle.dumps(evil))
    with pytest.raises(InputError, match="own"):
        TASKS[task](**arguments).load(tmp_path, torch.Generator())


def test_image_files_of_ones_own(evil, tmp_path):
    (tmp_path / "photos" / "a").mkdir(parents=True)
    (tmp_path / "photos" / "b").mkdir()
    for name in ("a/1.png", "b/1.png"):
        (tmp_path / "photos" / name).write_bytes(pickle.dumps(evil))
    with pytest.raises(DataError, match="1.png: cannot be read"):
        TASKS["image_folder"](path="photos").load(tmp_path, torch.Generator())


TASKS_WITH_FILES = [
    "mnist", "fashion_mnist", "kmnist", "cifar10", "cifar100", "svhn", "crime", "california",
]  # fmt: skip


@pytest.mark.parametrize("task", TASKS_WITH_FILES)
def test_official_data(evil, tmp_path, few_examples, task):
    """CIFAR's files are pickles by nature: nothing is read of those with another checksum."""
    folder = tmp_path / "data"
    shutil.copytree(few_examples, folder)
    TASKS[task]().load(folder, torch.Generator())
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(pickle.dumps(evil))
    with pytest.raises(DataError):
        TASKS[task]().load(folder, torch.Generator())


def test_scikit_learns_cache_is_not_read(evil, tmp_path, monkeypatch):
    """It is a pickle without a checksum."""
    import joblib

    def fail(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", fail)
    joblib.dump(evil, tmp_path / "cal_housing_py3.pkz", compress=6)
    with pytest.raises(DataError) as caught:
        TASKS["california"]().load(tmp_path, torch.Generator())
    path = tmp_path / "CaliforniaHousing" / "cal_housing.data"
    assert str(caught.value) == (
        f"no file {path}, and its download failed (no network): put cal_housing.data of StatLib's "
        "'California Housing' there, or set --data_dir"
    )


def test_arguments_of_an_export_are_data(tmp_path):
    """Its config names a registered representation, and nothing else that could be called."""
    LearnedLoss(metaloss.REPRESENTATIONS["taylor"](), links.values).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "representation": "os.mkdir"}))
    with pytest.raises(InputError, match="no 'os.mkdir' in representations"):
        load_loss(tmp_path)
