"""Images that are no files of their own: WebDataset's shards and Hugging Face's data sets."""

from __future__ import annotations

import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from metaloss import TASKS
from metaloss.errors import ArgumentError, DataError
from metaloss.tasks.preparation import streams
from tests.small_data import write_saved, write_shard


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def png(value: int) -> bytes:
    held = io.BytesIO()
    Image.new("RGB", (6, 5), (value, 2 * value, 7)).save(held, "png")
    return held.getvalue()


@pytest.fixture
def shards(tmp_path):
    """Writes shards: name -> members; loads them, with arguments."""

    def load(written, **arguments):
        (tmp_path / "shards").mkdir(exist_ok=True)
        for name, members in written.items():
            write_shard(tmp_path / "shards" / name, members)
        return TASKS["webdataset"]("shards", **arguments).load(tmp_path, generator())

    return load


def examples(numbers, label="cls", text=lambda i: "odd" if i % 2 else "even"):
    return {
        k: v for i in numbers for k, v in ((f"{i:03}.png", png(i)), (f"{i:03}.{label}", text(i)))
    }


@pytest.mark.parametrize("stream", [False, True])
def test_a_shard_holds_what_a_folder_would(shards, tmp_path, stream, monkeypatch):
    """The same bytes, labels and batches, drawn by two worker processes too."""
    monkeypatch.setattr(streams, "_workers", 2)
    data = shards(
        {"a-000.tar": examples(range(30)), "a-001.tar": examples(range(30, 40))}, stream=stream
    )
    for i in range(40):
        path = tmp_path / "folder" / ("odd" if i % 2 else "even") / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i))
    folder = TASKS["image_folder"]("folder").load(tmp_path, generator())
    assert data.classes == folder.classes == ("even", "odd")
    for split in ("train", "valid", "test"):
        assert len(data.splits[split][1]) == len(folder.splits[split][1])
    red = [int(x[0, 0, 0]) for part in ("train", "valid", "test") for x in data.raw(part)]
    assert sorted(red) == list(range(40))
    for split in ("train", "test"):
        assert [int(x[0, 0, 0]) % 2 for x in data.raw(split)] == data.splits[split][1].tolist()
    one, other = (data.draw("train", 8, generator(5)) for _ in range(2))
    assert one[0].equal(other[0]) and one[1].equal(other[1])


def test_shards_and_their_folders_say_splits(shards, tmp_path):
    (tmp_path / "shards" / "Validation").mkdir(parents=True)
    data = shards(
        {
            "imagenet-train-0.tar": examples(range(10)),
            "Validation/0.tar": examples(range(10, 14)),
            "my_test_1.tar": {**examples(range(14, 20)), "014.json": "{}", "readme": "x"},
        }
    )
    assert {name: len(y) for name, (_, y) in data.splits.items()} == {
        "train": 10,
        "valid": 4,
        "test": 6,
    }
    assert "left out in" in data.notes[1] and "1 .json" in data.notes[1]


def test_a_field_of_an_object_is_the_class(shards):
    data = shards(
        {"0.tar": examples(range(20), "json", lambda i: json.dumps({"id": i, "kind": i % 3}))},
        label=".JSON", field="kind",
    )  # fmt: skip
    assert data.classes == ("0", "1", "2")


SHARDS = {
    "no label": ({"0.tar": {"a.png": png(1)}}, "/shards/0.tar: a.png: no a.cls is in the shard"),
    "no image": ({"0.tar": {"a.cls": "x"}}, "/shards/0.tar: a.cls: no image is of this name"),
    "two images": (
        {"0.tar": {"a.png": png(1), "a.jpg": png(1), "a.cls": "x"}},
        "/shards/0.tar: a.jpg: the example has a.png already",
    ),
    "an empty label": (
        {"0.tar": {"a.png": png(1), "a.cls": " "}},
        "/shards/0.tar: a.cls: nothing stands there",
    ),
    "no picture": (
        {"0.tar": {**examples(range(9)), "x.png": b"no", "x.cls": "odd"}},
        "/shards/0.tar: x.png: cannot be read: cannot identify image file",
    ),
    "one split is not said": (
        {"train-0.tar": examples(range(9)), "other.tar": examples(range(9))},
        "/shards/other.tar: its name says no split, as those of others do",
    ),
    "two splits": (
        {"train-test.tar": examples(range(9))},
        "/shards/train-test.tar: its name says train and test",
    ),
    "no training": ({"test.tar": examples(range(9))}, "/shards: no shard is of the train split"),
    "compressed": (
        {"0.tar.gz": examples(range(9))},
        "/shards/0.tar.gz: a compressed shard cannot be drawn from: unpack it to .tar",
    ),
    "none": (
        {"0.zip": examples(range(9))},
        "/shards: no shard is there (a file whose name ends in .tar)",
    ),
}


@pytest.mark.parametrize("case", SHARDS)
def test_what_is_wrong_with_a_shard_is_said(case, shards, tmp_path):
    written, expected = SHARDS[case]
    with pytest.raises(DataError) as raised:
        shards(written)
    assert str(raised.value).startswith(f"{tmp_path}{expected}")


def test_a_damaged_shard_and_an_unknown_field_are_said(shards, tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "0.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(DataError, match=r"shards/0.tar: cannot be read: "):
        shards({})
    written = {"0.tar": examples(range(3), "json", lambda i: '{"kind": 1, "id": 2}')}
    with pytest.raises(DataError, match=r"000.json: no field 'label' · it has: kind, id$"):
        shards(written, label="json", field="label")


# --- datasets ---

CLASS = {"names": ["no", "yes"], "_type": "ClassLabel"}
FLOAT = {"dtype": "float64", "_type": "Value"}


def pictures(path, count=30, label=CLASS, labels=None):
    images = [{"bytes": png(i), "path": f"{i}.png"} for i in range(count)]
    labels = [i % 2 for i in range(count)] if labels is None else labels
    write_saved(path, {"image": {"_type": "Image"}, "label": label}, image=images, label=labels)


def table(path, count=40):
    random = np.random.default_rng(0)
    x = random.normal(size=count)
    v = random.normal(size=(count, 3))
    vector = {"feature": FLOAT, "length": -1, "_type": "List"}
    write_saved(
        path, {"x": FLOAT, "v": vector, "y": FLOAT, "label": {"dtype": "string", "_type": "Value"}},
        x=x.tolist(), v=v.tolist(), y=(3 * x).tolist(), label=["ab"[i % 2] for i in range(count)],
    )  # fmt: skip
    return np.column_stack([x, v])


def load(folder, **arguments):
    return TASKS["hf_dataset"]("saved", **arguments).load(folder, generator())


@pytest.mark.parametrize("stream", [False, True])
def test_saved_images_are_drawn_as_files_are(tmp_path, stream, monkeypatch):
    monkeypatch.setattr(streams, "_workers", 2)
    pictures(tmp_path / "saved")
    data = load(tmp_path, stream=stream)
    assert data.classes == ("no", "yes") and data.input_shape == (3, 5, 6)
    assert sum(len(y) for _, y in data.splits.values()) == 30
    for split in ("train", "valid", "test"):
        assert [int(x[0, 0, 0]) % 2 for x in data.raw(split)] == data.splits[split][1].tolist()
    one, other = (data.draw("train", 8, generator(5)) for _ in range(2))
    assert one[0].equal(other[0]) and one[1].equal(other[1])


def test_splits_go_by_their_names_and_others_are_told(tmp_path):
    for split in ("train", "validation", "test", "extra"):
        pictures(tmp_path / "saved" / split, 12)
    splits = ["train", "validation", "test", "extra"]
    (tmp_path / "saved" / "dataset_dict.json").write_text(json.dumps({"splits": splits}))
    data = load(tmp_path)
    assert {name: len(y) for name, (_, y) in data.splits.items()} == {
        "train": 12,
        "valid": 12,
        "test": 12,
    }
    assert data.notes[1] == "left out: split 'extra' (12 rows)"


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_columns_of_numbers_are_standardised_by_the_training_rows(kind, tmp_path):
    raw = table(tmp_path / "saved")
    label = "label" if kind == "classification" else "y"
    data = load(tmp_path, kind=kind, label=label, features=("x", "v"))
    found = np.concatenate([data.raw(split).numpy() for split in data.splits])
    np.testing.assert_allclose(found[found[:, 0].argsort()], raw[raw[:, 0].argsort()], atol=1e-6)
    train = data.splits["train"][0]
    assert train.mean(0).abs().max() < 1e-6 and train.shape[1] == 4
    if kind == "classification":
        assert data.classes == ("a", "b")
        return
    x, y = data.raw("test")[:, 0].double(), data.targets.undo(data.splits["test"][1])[:, 0]
    torch.testing.assert_close(y, 3 * x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            {"label": "lable"},
            "no column 'lable'; did you mean 'label'? · it has: x, v, y, label",
        ),
        (
            {},
            "tasks.hf_dataset.image must name a column of images · it has: none; of numbers, set "
            "tasks.hf_dataset.features",
        ),
        (
            {"features": ("label",)},
            "train, column 'label' holds no numbers, or vectors of several lengths",
        ),
    ],
)
def test_what_is_wrong_with_a_data_set_is_said(arguments, expected, tmp_path):
    table(tmp_path / "saved")
    with pytest.raises(DataError) as raised:
        load(tmp_path, **arguments)
    assert re.fullmatch(f"saved[:,] {re.escape(expected)}", str(raised.value))


def test_a_missing_label_and_one_class_are_said(tmp_path):
    pictures(tmp_path / "saved", 4, labels=[0, -1, 1, 0])
    with pytest.raises(DataError, match=r"^saved, train, column 'label', row 1: no label$"):
        load(tmp_path)
    pictures(tmp_path / "other" / "saved", 4, {"dtype": "int64", "_type": "Value"}, [5] * 4)
    with pytest.raises(DataError, match="every example is of the class 5: nothing can be learned"):
        load(tmp_path / "other")


def test_what_is_no_data_set_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError) as raised:
        TASKS["hf_dataset"]("nobody/nothing").load(tmp_path, generator())
    place = re.escape(f"(no folder {tmp_path / 'nobody/nothing'}, nor a data set of the hub")
    assert re.match(f"tasks.hf_dataset.path 'nobody/nothing' {place}", str(raised.value))


def test_arguments_that_contradict_each_other_are_refused():
    for arguments in ({"features": ("x",), "image": "i"}, {"kind": "regression"}):
        with pytest.raises(ArgumentError):
            TASKS["hf_dataset"]("saved", **arguments)
