"""Data sets of the right format and size with made-up content, for the loaders to read."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import scipy.io
from PIL import Image
from torchvision import datasets

from metaloss.tasks import california, crime, mnist


def write_all(folder: Path, patch: pytest.MonkeyPatch, photographs: int = 40) -> None:
    """Writes every data set that does not ship inside scikit-learn.

    Args:
        folder: what --data_dir names.
        patch: has torchvision expect the md5 sums of what was written.
        photographs: in each of CIFAR-10's six files; the other photographs are more.
    """
    for dataset in ("MNIST", "FashionMNIST", "KMNIST"):
        write_mnist(folder, dataset)
    write_crime(folder)
    write_california(folder)
    write_official(folder, patch, photographs)
    write_own(folder)


def write_official(folder: Path, patch: pytest.MonkeyPatch, photographs: int = 40) -> None:
    """Writes the data sets whose md5 sums are checked."""
    write_cifar(folder, patch, datasets.CIFAR10, "labels", per_file=photographs)
    write_cifar(folder, patch, datasets.CIFAR100, "fine_labels", per_file=5 * photographs)
    write_svhn(folder, patch)


def random_images(count: int, classes: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Random pixels, uint8 [count, 3, 32, 32], and labels [count] of all classes; by name."""
    random = np.random.default_rng(list(name.encode()))
    labels = random.permutation(np.arange(count) % classes)
    return random.integers(256, size=(count, 3, 32, 32), dtype=np.uint8), labels


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_cifar(folder, patch, dataset, key, per_file):
    """Pickled batches of torchvision's CIFAR10 or CIFAR100, `per_file` images in each."""
    base = folder / dataset.base_folder
    base.mkdir()
    for attribute in ("train_list", "test_list"):
        listed = []
        for name, _ in getattr(dataset, attribute):
            images, labels = random_images(per_file, 100 if key == "fine_labels" else 10, name)
            content = {"data": images.reshape(per_file, -1), key: labels.tolist()}
            (base / name).write_bytes(pickle.dumps(content))
            listed.append([name, md5(base / name)])
        patch.setattr(dataset, attribute, listed)
    path = base / dataset.meta["filename"]
    path.write_bytes(pickle.dumps({dataset.meta["key"]: [str(c) for c in range(100)]}))
    patch.setattr(dataset, "meta", {**dataset.meta, "md5": md5(path)})


def write_svhn(folder, patch):
    """MATLAB files with images [32, 32, 3, n], and 10 for the digit 0."""
    files = {}
    for split, (url, name, _) in datasets.SVHN.split_list.items():
        images, labels = random_images(100, 10, name)
        labels = np.where(labels == 0, 10, labels)[:, None].astype(np.uint8)
        content = {"X": images.transpose(2, 3, 1, 0), "y": labels}
        scipy.io.savemat(folder / name, content)
        files[split] = [url, name, md5(folder / name)]
    patch.setattr(datasets.SVHN, "split_list", files)


def write_mnist(folder: Path, dataset: str) -> None:
    raw = folder / dataset / "raw"
    raw.mkdir(parents=True)
    for split, (prefix, count) in mnist.FILES.items():
        random = np.random.default_rng(len(split))
        labels = random.integers(10, size=count).astype(np.uint8)
        # Dark but for a row of random pixels, at the label's place: quick to write, easy to learn.
        images = np.zeros((count, 28, 28), np.uint8)
        images[np.arange(count), labels * 2] = random.integers(256, size=(count, 28))
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = np.array([0x0800 + array.ndim, *array.shape], dtype=">i4").tobytes()
            path = raw / f"{prefix}-{name}-ubyte.gz"
            path.write_bytes(gzip.compress(header + array.tobytes(), compresslevel=1))


def write_crime(folder: Path) -> None:
    random = np.random.default_rng(0)
    rows = []
    for row in random.random((crime.ROWS, crime.FIELDS)).round(2):
        fields = [f"{value:.2f}" for value in row]
        fields[3] = "Sometownname"
        fields[101:123] = ["?"] * 22
        rows.append(",".join(fields))
    path = folder / "communities_and_crime" / "communities.data"
    path.parent.mkdir()
    path.write_text("\n".join(rows) + "\n")


def write_california(folder: Path) -> None:
    path = folder / "CaliforniaHousing" / "cal_housing.data"
    path.parent.mkdir()
    table = np.random.default_rng(0).random((california.ROWS, california.FIELDS)) + 1
    np.savetxt(path, table, fmt="%.4f", delimiter=",")


def write_own(folder):
    """What gin_configs/own_data names."""
    images, labels = random_images(80, 10, "own")
    splits = {"train": slice(40), "test": slice(40, 60), "heldout": slice(60, 80)}
    arrays = {f"x_{name}": images[part].transpose(0, 2, 3, 1) for name, part in splits.items()}
    arrays |= {f"y_{name}": labels[part] for name, part in splits.items()}
    np.savez(folder / "cifar10_subset.npz", **arrays)

    for i, image in enumerate(images[:60]):
        path = folder / "pictures" / ("cats", "dogs")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)[:, : 24 + i % 8]).save(path)
    rows = [f"{('cats', 'dogs')[i % 2]}/{i}.png,{('cats', 'dogs')[i % 2]}" for i in range(60)]
    (folder / "pictures.csv").write_text("\n".join(["file,label", *rows]) + "\n")
    files = sorted((folder / "pictures").rglob("*.png"))
    (folder / "shards").mkdir()
    for split, part in {
        "train": files[:20] + files[30:50],
        "test": files[20:30] + files[50:],
    }.items():
        members = {}
        for path in part:
            members |= {f"{path.stem}.png": path.read_bytes(), f"{path.stem}.cls": path.parent.name}
        write_shard(folder / "shards" / f"{split}-000000.tar", members)
    write_saved(
        folder / "saved",
        {"image": {"_type": "Image"}, "label": {"names": ["cats", "dogs"], "_type": "ClassLabel"}},
        image=[{"bytes": path.read_bytes(), "path": path.name} for path in files],
        label=[int(path.parent.name == "dogs") for path in files],
    )

    random = np.random.default_rng(0)
    lines = ["id,area,rooms,heating,price"]
    for i in range(60):
        area = "?" if i % 20 == 3 else f"{random.uniform(30, 200):.1f}"
        heating = random.choice(["gas", "oil", "electric", ""])
        lines.append(f"{i},{area},{random.integers(1, 8)},{heating},{random.integers(50, 900)}000")
    (folder / "houses.csv").write_text("\n".join(lines) + "\n")


def write_shard(path: Path, members: dict[str, bytes | str]) -> None:
    """A tar file of these members, in their order."""
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            held = content if isinstance(content, bytes) else content.encode()
            info = tarfile.TarInfo(name)
            info.size = len(held)
            tar.addfile(info, io.BytesIO(held))


def write_saved(path: Path, features: dict[str, object], **columns: list) -> None:
    """What `datasets.Dataset.save_to_disk` writes, without its library."""
    path.mkdir(parents=True)
    name = "data-00000-of-00001.arrow"
    rows = pa.table(columns)
    with pa.OSFile(str(path / name), "wb") as file, pa.ipc.new_stream(file, rows.schema) as stream:
        stream.write_table(rows)
    state = {
        "_data_files": [{"filename": name}], "_fingerprint": path.name, "_format_columns": None,
        "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False, "_split": None,
    }  # fmt: skip
    (path / "state.json").write_text(json.dumps(state))
    (path / "dataset_info.json").write_text(json.dumps({"features": features}))
