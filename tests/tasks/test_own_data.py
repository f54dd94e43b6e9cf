"""One's own data: what is read from each format, and the error for whatever cannot be used."""

from __future__ import annotations

import io
import json

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from metaloss import TASKS, testing
from metaloss.errors import ConfigError, DataError
from metaloss.runs.evaluation import evaluate
from metaloss.tasks.base import CLASSIFICATION, REGRESSION


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


RANDOM = np.random.default_rng(0)
TABLE = {
    "x_train": RANDOM.normal(3, 2, (40, 5)),
    "y_train": np.arange(40) % 3,
    "x_test": RANDOM.normal(3, 2, (12, 5)),
    "y_test": np.arange(12) % 3,
}
PIXELS = {
    "x_train": RANDOM.integers(256, size=(40, 8, 6, 3), dtype=np.uint8),
    "x_test": RANDOM.integers(256, size=(12, 8, 6, 3), dtype=np.uint8),
}
AGES = {"y_train": RANDOM.uniform(20, 60, 40), "y_test": RANDOM.uniform(20, 60, 12)}


@pytest.fixture
def arrays(tmp_path):
    """Loads arrays through a file: arrays, arguments of the task -> its data."""

    def load(content, **arguments):
        np.savez(tmp_path / "own.npz", **content)
        return TASKS["arrays"](path="own.npz", **arguments).load(tmp_path, generator())

    return load


# --- arrays ---


def test_a_table_of_classes(arrays):
    data = arrays(TABLE)
    assert {k: len(x) for k, (x, _) in data.splits.items()} == {"train": 36, "valid": 4, "test": 12}
    assert (data.objective, data.outputs, data.input_shape) == (CLASSIFICATION, 3, (5,))
    train, _ = data.splits["train"]
    assert train.dtype == torch.float32 and data.unit is None
    torch.testing.assert_close(train.mean(0), torch.zeros(5), atol=1e-6, rtol=0)
    torch.testing.assert_close(train.std(0, correction=0), torch.ones(5))
    test, labels = data.splits["test"]
    column = np.concatenate([TABLE["x_train"], TABLE["x_test"]])[:, 0]
    assert np.corrcoef(test[:, 0], column[40:])[0, 1] > 1 - 1e-6
    assert labels.tolist() == TABLE["y_test"].tolist()
    plain = arrays(TABLE, standardize=False)
    assert plain.splits["test"][0].equal(torch.from_numpy(TABLE["x_test"]).float())


@pytest.mark.parametrize("words", [["ant", "bee", "cat"], [False, True, True], [0.0, 1.0, 2.0]])
def test_labels_are_words_booleans_or_whole_numbers(arrays, words):
    content = {key: np.array(words)[TABLE[key]] for key in ("y_train", "y_test")}
    data = arrays(TABLE | content, kind="classification")
    classes = sorted(set(words))
    assert data.outputs == len(classes)
    assert [classes[i] for i in data.splits["test"][1]] == content["y_test"].tolist()


@pytest.mark.parametrize("layout", ["last", "first", "gray"])
@pytest.mark.parametrize("as_bytes", [True, False])
def test_images(arrays, layout, as_bytes):
    """Bytes are kept, prepared on the fly and normalised by the training images."""
    content = {key: x if as_bytes else x / 255 for key, x in PIXELS.items()}
    if layout == "first":
        content = {key: x.transpose(0, 3, 1, 2) for key, x in content.items()}
    if layout == "gray":
        content = {key: x[..., 0] for key, x in content.items()}
    data = arrays(TABLE | content, padding=2, flip=True)
    assert data.input_shape == (1 if layout == "gray" else 3, 8, 6)
    stored, _ = data.splits["train"]
    assert stored.dtype == (torch.uint8 if as_bytes else torch.float32)
    prepared = torch.cat([x for x, _ in data.in_order("train", 10)])
    torch.testing.assert_close(prepared.mean((0, 2, 3)), torch.zeros(len(stored[0])), atol=1e-5,
                               rtol=0)  # fmt: skip
    torch.testing.assert_close(prepared.std((0, 2, 3), correction=0), torch.ones(len(stored[0])))
    pixels = torch.from_numpy(PIXELS["x_test"]).permute(0, 3, 1, 2)[:, : len(stored[0])]
    (first, _), *_ = arrays(TABLE | content, standardize=False).in_order("test", 12)
    torch.testing.assert_close(first, pixels / 255)


def test_channels_can_be_told(arrays):
    cube = {key: RANDOM.random((len(x), 3, 8, 3)) for key, x in PIXELS.items()}
    with pytest.raises(DataError, match=r"x_train is \[40, 3, 8, 3\], which does not tell its ch"):
        arrays(TABLE | cube)
    assert arrays(TABLE | cube, channels="first").input_shape == (3, 8, 3)
    assert arrays(TABLE | cube, channels="last").input_shape == (3, 3, 8)


def test_regression_is_scaled_and_keeps_its_unit(arrays):
    data = arrays(TABLE | AGES)
    assert (data.objective, data.outputs) == (REGRESSION, 1)
    labels = data.splits["train"][1]
    assert labels.shape == (36, 1) and (labels.min(), labels.max()) == (0, 1)
    own = data.splits["test"][1] * data.unit
    assert np.ptp(own.numpy()) == pytest.approx(np.ptp(AGES["y_test"]), rel=1e-5)
    plain = arrays(TABLE | AGES, standardize=False)
    np.testing.assert_allclose(plain.splits["test"][1][:, 0], AGES["y_test"], rtol=1e-6)
    both = {key: np.stack([y, 10 * y], 1) for key, y in AGES.items()}
    wide = arrays(TABLE | both)
    assert wide.outputs == 2 and wide.unit[1] == pytest.approx(10 * wide.unit[0])
    assert arrays(TABLE, kind="regression").objective is REGRESSION


def test_metrics_in_the_targets_own_unit(arrays):
    """A model that is off by 3 years has a mean absolute error of 3, whatever the scale."""
    data = arrays(TABLE | AGES | {"x_test": np.zeros((12, 5))})

    class Off(torch.nn.Module):
        def forward(self, x):
            return data.splits["test"][1] + 3 / data.unit.float()

    numbers = evaluate(Off(), data, "test")
    assert numbers["mae"] == pytest.approx(3, rel=1e-5)
    assert numbers["rmse"] == pytest.approx(3, rel=1e-5)
    assert numbers["mse"] == pytest.approx((3 / data.unit.item()) ** 2, rel=1e-5)
    assert "mae" not in evaluate(torch.nn.Linear(5, 3), arrays(TABLE), "test")


def test_given_validation_arrays_are_used_whatever_the_seed(arrays, tmp_path):
    held = {"x_held": TABLE["x_test"] + 1, "y_held": TABLE["y_test"]}
    data = arrays(TABLE | held, valid_keys=("x_held", "y_held"))
    sizes = {k: len(x) for k, (x, _) in data.splits.items()}
    assert sizes == {"train": 40, "valid": 12, "test": 12}
    task = TASKS["arrays"](path="own.npz", valid_keys=("x_held", "y_held"))
    testing.check_task(task, tmp_path, own_validation=True)
    with pytest.raises(testing.ContractError, match="validation ignores the seed"):
        testing.check_task(task, tmp_path)
    default = {"x_valid": held["x_held"], "y_valid": held["y_held"]}
    assert len(arrays(TABLE | default).splits["valid"][0]) == 12


NAN = TABLE["x_test"].copy()
NAN[7, 2] = np.nan
HUGE = np.where(np.arange(40) == 31, 1e60, AGES["y_train"])

BAD_ARRAYS = {
    "missing key": (
        {"x_test": None, "x_tests": TABLE["x_test"]},
        "no array x_test; did you mean 'x_tests'? · it holds: x_train, y_train, y_test, x_tests",
    ),
    "half a validation": ({"x_valid": TABLE["x_test"]}, "no array y_valid"),
    "nan": ({"x_test": NAN}, "x_test, row 7: nan is no finite number"),
    "too large": (AGES | {"y_train": HUGE}, "y_train, row 31: 1e+60 is no finite number"),
    "rows": (
        {"y_test": TABLE["y_test"][1:]},
        "x_test is [12, 5], but y_test [11]: give as many rows, and not none",
    ),
    "no array": ({"y_test": np.array(1)}, "x_test is [12, 5], but y_test []: give as many rows"),
    "no rows": (
        {"x_test": TABLE["x_test"][:0], "y_test": TABLE["y_test"][:0]},
        "x_test is [0, 5], but y_test [0]: give as many rows, and not none",
    ),
    "shape": (
        {"x_test": TABLE["x_test"][:, 1:]},
        "x_test is float64 [12, 4], but x_train float64 [40, 5]: only the first dimension may",
    ),
    "bytes and floats": (
        {"x_test": np.zeros((12, 5), np.uint8)},
        "x_test is uint8 [12, 5], but x_train float64 [40, 5]",
    ),
    "flat": (
        {"x_train": np.zeros(40), "x_test": np.zeros(12)},
        "x_train is float64 [40]: give numbers [n, features], or images [n, height, width]",
    ),
    "words as inputs": (
        {"x_train": np.full((40, 2), "a"), "x_test": np.full((12, 2), "b")},
        "x_train is <U1 [40, 2]: give numbers",
    ),
    "objects": ({"y_train": np.array([{}] * 40)}, "cannot be read: Object arrays cannot be loaded"),
    "label out of range": (
        {"y_test": np.arange(12)},
        "y_test, row 3: label 3 is none of the 3 classes, 0 to 2",
    ),
    "negative label": (
        {"y_train": np.arange(40) % 3 - 1},
        "y_train, row 0: label -1 is none of the 2 classes, 0 to 1",
    ),
    "class missing": ({"y_train": np.arange(40) % 2 * 2}, "y_train: no training example is of cl"),
    "labels from an id": ({"y_train": np.arange(40) + 90}, "y_train: label 129 in 40 rows: classe"),
    "unknown word": (
        {"y_train": np.array(["a", "b"] * 20), "y_test": np.array(["a", "c"] * 6)},
        "y_test, row 1: label c is none of the 2 classes, a to b",
    ),
    "words and numbers": ({"y_train": np.array(["a", "b"] * 20)}, "y_test: labels are int64, but "),
    "wide labels": ({"y_train": np.zeros((40, 2), int)}, "y_train is int64 [40, 2]: give one inte"),
    "deep targets": (
        {"y_train": np.zeros((40, 2, 2)), "y_test": np.zeros((12, 2, 2))},
        "y_train is float64 [40, 2, 2]: give numbers [n] or [n, outputs]",
    ),
    "other targets": (
        {"y_train": np.zeros((40, 2)), "y_test": np.zeros(12)},
        "y_test: rows of shape [], but y_train [2]",
    ),
    "one row": (
        {"x_train": TABLE["x_train"][:1], "y_train": np.ones(1)},
        "y_train: no row is left for training",
    ),
    "one row of a class": (
        {"x_train": TABLE["x_train"][:1], "y_train": np.zeros(1, int), "y_test": np.zeros(12, int)},
        "y_train: every example is of the class 0: nothing can be learned from one class",
    ),
    "constant target": (
        {"y_train": np.full(40, 0.5), "y_test": np.full(12, 0.5)},
        "y_train: the target is the same in every training row",
    ),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays_are_named(arrays, tmp_path, case):
    change, message = BAD_ARRAYS[case]
    content = {key: value for key, value in (TABLE | change).items() if value is not None}
    with pytest.raises(DataError) as caught:
        arrays(content)
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'own.npz'}: {message}") and "\n" not in text


def test_half_a_class_is_no_class(arrays):
    for value, text in ((2.5, r"2\.5"), (np.inf, "inf"), (np.nan, "nan")):
        labels = np.where(np.arange(40) == 5, value, 1)
        with pytest.raises(DataError, match=f"y_train, row 5: {text} is no class"):
            arrays(TABLE | {"y_train": labels}, kind="classification")


@pytest.mark.parametrize("damage", ["cut", "flipped", "one array", "text"])
def test_a_damaged_archive_is_refused(refused, tmp_path, damage):
    path = tmp_path / "own.npz"
    np.savez_compressed(path, **TABLE)
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[len(content) // 4] ^= 255
    single = io.BytesIO()
    np.save(single, TABLE["x_train"])
    others = {"cut": content[:-30], "one array": single.getvalue(), "text": b"1,2,3\n"}
    path.write_bytes(others.get(damage, content))
    message = refused(
        "--gin_param=Runner.task = @tasks.arrays()",
        f"--gin_param=tasks.arrays.path = '{path}'",
    )
    assert message.startswith(str(path)) and "\n" not in message


def test_data_that_is_not_there_is_named(refused, tmp_path):
    for task, arguments in (
        ("arrays", []),
        ("image_folder", []),
        ("table", ["tasks.table.target = 'y'", "tasks.table.kind = 'regression'"]),
    ):
        bindings = [f"Runner.task = @tasks.{task}()", f"tasks.{task}.path = 'mine'", *arguments]
        message = refused(*(f"--gin_param={b}" for b in bindings), f"--data_dir={tmp_path}")
        assert message == (
            f"no file {tmp_path / 'mine'}: set tasks.{task}.path, absolute or inside --data_dir"
        )


# --- table ---

CSV = """\ufeffname, size ,kind,price
a,1.0,red,10
b,2.0,blue,20

"c, the ""third"" one",?,red,30
d,4.0,,40
e,5.0,green,50
f,6.0,blue,60
g,7.0,red,70
h,8.0,red,80
i,9.0,blue,90
j,10.0,red,100
"""


@pytest.fixture
def table(tmp_path):
    """Loads a table through a file: text, arguments of the task -> its data."""

    def load(text=CSV, name="own.csv", **arguments):
        if text is not None:
            (tmp_path / name).write_text(text, encoding="utf-8")
        arguments = {"target": "price", "kind": "regression", "ignore": ("name",)} | arguments
        return TASKS["table"](path=name, **arguments).load(tmp_path, generator())

    return load


def test_a_table_is_standardised_filled_and_one_hot(table):
    data = table(test_fraction=0.2, valid_fraction=0.25)
    sizes = {k: len(x) for k, (x, _) in data.splits.items()}
    assert sizes == {"train": 6, "valid": 2, "test": 2}
    price = {k: (y * data.unit).flatten() for k, (_, y) in data.splits.items()}
    low = 100 - max(p.max() for p in price.values())  # scaling moved all by the same
    order = torch.cat(list(price.values())).add(low).div(10).round().long() - 1
    assert sorted(order.tolist()) == list(range(10))
    size = torch.tensor([1, 2, torch.nan, 4, 5, 6, 7, 8, 9, 10.0])
    train = size[order[:6]]
    mean, deviation = train.nanmean(), train.nan_to_num(train.nanmean()).std(correction=0)
    inputs = torch.cat([x for x, _ in data.splits.values()])
    torch.testing.assert_close(inputs[:, 0], ((size - mean) / deviation).nan_to_num(0)[order])
    words = np.array(["red", "blue", "red", "", "green", "blue", "red", "red", "blue", "red"])
    categories = sorted(set(words[order[:6].numpy()]))
    expected = words[order.numpy()][:, None] == np.array(categories)
    assert inputs[:, 1:].equal(torch.from_numpy(expected).float())


def test_columns_can_be_told(table):
    digits = CSV.replace("red", "1").replace("blue", "2").replace("green", "3")
    assert table(digits).input_shape == (2,)
    assert table(digits, categorical=("kind",)).input_shape[0] > 3
    with pytest.raises(DataError, match=r"column 'kind', line 2: 'red' is no number"):
        table(numeric=("kind",))
    assert table(max_categories=2, valid_fraction=0.2).input_shape == (3,)
    assert table(ignore=("name", "kind")).input_shape == (1,)
    assert table(CSV.replace(",", ";"), delimiter=";").input_shape == table().input_shape
    assert (
        table(CSV.replace("?", "-"), missing=("-", ""))
        .splits["train"][0]
        .equal(table().splits["train"][0])
    )


def test_the_target_of_a_table_can_be_classes(table):
    text = CSV.replace("d,4.0,,", "d,4.0,red,").replace("green", "blue")
    data = table(text, target="kind", kind="classification", test_fraction=0.3)
    assert (data.objective, data.outputs) == (CLASSIFICATION, 2)
    assert sorted(data.splits["test"][1].tolist()) == [0, 1, 1]  # blue, red: stratified
    numbers = CSV.replace("100", "10")
    with pytest.raises(DataError, match="column 'price': no training example is of class"):
        table(numbers, target="price", kind="classification")


BAD_TABLES = {
    "a,b\n1,2\n": ": no column 'price' · it has: a, b",
    "prices,name\n1,2\n": ": no column 'price'; did you mean 'prices'? · it has: prices, name",
    "": ": no rows",
    "name,price\n": ": no rows",
    "name,price\na,1\nb\n": ", line 3: 1 fields, not 2",
    "name,price,price\na,1,2\n": ": two columns are named 'price'",
    "name,x,price\na,1,2\nb,1,\n": ": column 'price', line 3: no target",
    "name,x,price\na,1,2\nb,1,high\n": ": column 'price', line 3: 'high' is no number",
    "name,x,price\na,1,2\nb,inf,3\nc,2,4\n": ": column 'x', line 3: 'inf' is no finite number",
    "name,price\na,2\nb,3\nc,4\n": ": no column is left for the inputs",
    "name,x,price\na,1,2\n": ": 1 rows are too few to split",
    "name,x,price\n" + "a,1,2\n" * 9: ": column 'price': the target is the same in every training",
    "name,x,price\n" + "a,?,2\n" * 9: ": column 'x': every training row misses it; ignore it",
    "name,x,price\na,1," + "9" * 200_000: ": column 'price', line 2: '"
    + "9" * 40
    + "...' is no finite",
}


@pytest.mark.parametrize("text", BAD_TABLES, ids=range(len(BAD_TABLES)))
def test_bad_tables_are_named(table, tmp_path, text):
    with pytest.raises(DataError) as caught:
        table(text)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'own.csv'}{BAD_TABLES[text]}") and "\n" not in message


def test_a_table_that_is_no_text_is_refused(table, tmp_path):
    (tmp_path / "own.csv").write_bytes(b"name,x,price\n\xff\xfe,1,2\n")
    with pytest.raises(DataError, match=r"no UTF-8 text, line 2 has the byte 0xff: set"):
        table(text=None)


def test_parquet_is_read_as_csv_is(table, tmp_path):
    columns = {
        "name": list("abcdefghij"),
        "size": [1.0, 2.0, None, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0],
        "kind": ["red", "blue", "red", None, "green", "blue", "red", "red", "blue", "red"],
        "price": range(10, 101, 10),
    }
    pl.DataFrame(columns).write_parquet(tmp_path / "own.parquet")
    data, same = table(None, "own.parquet"), table()
    for split, (inputs, labels) in data.splits.items():
        assert inputs.equal(same.splits[split][0]) and labels.equal(same.splits[split][1])
    content = (tmp_path / "own.parquet").read_bytes()
    (tmp_path / "own.parquet").write_bytes(content[:-9])
    with pytest.raises(DataError, match=r"own\.parquet: cannot be read: "):
        table(None, "own.parquet")


# --- image_folder ---


@pytest.fixture
def pictures(tmp_path):
    """Twenty images, dark of class a and light of class b, in a folder for each class."""
    for i in range(20):
        path = tmp_path / "own" / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 10), (i % 2 * 200 + i, i, 0)).save(path)
    return tmp_path / "own"


def load_folder(path, **arguments):
    return TASKS["image_folder"](path=str(path), **arguments).load(path, generator())


def test_a_folder_of_classes_is_split(pictures):
    data = load_folder(pictures, padding=1)
    sizes = {k: len(x) for k, (x, _) in data.splits.items()}
    assert sizes == {"train": 14, "valid": 2, "test": 4}
    assert data.outputs == 2 and data.input_shape == (3, 10, 12)
    for stored, labels in data.splits.values():
        assert ((stored[:, 0, 0, 0] >= 200).long()).equal(labels)
    greens = torch.cat([stored[:, 1, 0, 0] for stored, _ in data.splits.values()])
    assert sorted(greens.tolist()) == list(range(20))
    assert load_folder(pictures, size=6, grayscale=True).input_shape == (1, 6, 6)


def test_pictures_are_resized_and_scaled_as_asked(pictures):
    for path in pictures.rglob("*.png"):
        Image.linear_gradient("L").resize((12, 10)).save(path)
    asked = {"size": 6, "mean": (0.5, 0.4, 0.3), "deviation": (0.1, 0.2, 0.3)}
    linear = load_folder(pictures, **asked)
    cubic = load_folder(pictures, **asked, interpolation="bicubic")
    stored, _ = cubic.splits["test"]
    assert not stored.equal(linear.splits["test"][0])
    pixels = (stored / 255).permute(0, 2, 3, 1)
    expected = (pixels - torch.tensor(asked["mean"])) / torch.tensor(asked["deviation"])
    seen, _ = next(cubic.in_order("test", 99))
    torch.testing.assert_close(seen.permute(0, 2, 3, 1), expected)
    assert "6x6: bicubic, mean 0.5, 0.4, 0.3, deviation 0.1, 0.2, 0.3" in cubic.notes[-1]


def test_classes_are_drawn_as_their_weights_say(pictures):
    for file in sorted((pictures / "b").iterdir())[4:]:
        file.unlink()
    balanced = load_folder(pictures, class_weights="balanced")
    many = torch.cat([balanced.draw("train", 8, generator(i))[1] for i in range(100)])
    assert abs(many.float().mean() - 0.5) < 5 * 0.5 / 800**0.5
    # What is said of it: the mean over draws is torch's loss with weights, over the data.
    weighted = load_folder(pictures, class_weights={"a": 3.0})
    labels = weighted.splits["train"][1]
    drawn, outputs = weighted.weights["train"], torch.randn(len(labels), 2)
    mean = (drawn / drawn.sum()) @ F.cross_entropy(outputs, labels, reduction="none").double()
    torchs = F.cross_entropy(outputs, labels, weight=torch.tensor([3.0, 1.0]))
    assert float(mean) == pytest.approx(float(torchs), rel=1e-6)
    one = load_folder(pictures, class_weights={"a": 0.0})
    assert one.draw("train", 99, generator())[1].all()
    with pytest.raises(DataError, match="class_weights name no class 'c'"):
        load_folder(pictures, class_weights={"c": 1.0})


def test_folders_of_splits_are_used(pictures):
    for split, numbers in {"train": range(12), "valid": range(12, 16), "test": (16, 18)}.items():
        for i in numbers:
            path = pictures / split / "ab"[i % 2] / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            (pictures / "ab"[i % 2] / path.name).rename(path)
    data = load_folder(pictures)
    greens = {k: sorted(x[:, 1, 0, 0].tolist()) for k, (x, _) in data.splits.items()}
    assert greens == {"train": list(range(12)), "valid": [12, 13, 14, 15], "test": [16, 18]}
    assert data.splits["test"][1].tolist() == [0, 0]  # a split may lack a class
    (pictures / "test" / "c").mkdir()
    (pictures / "b" / "19.png").rename(pictures / "test" / "c" / "19.png")
    with pytest.raises(DataError, match=r"test/c/19\.png: no training image is of class c"):
        load_folder(pictures)


def test_bad_image_folders_are_named(pictures, tmp_path):
    file = pictures / "b" / "07.png"
    Image.new("RGB", (5, 4)).save(file)
    with pytest.raises(DataError, match=r"07\.png has 4x5 pixels, but .*00\.png 10x12: set task"):
        load_folder(pictures)
    whole = (pictures / "b" / "09.png").read_bytes()
    for content in (whole[:50], b"", b"GIF"):
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"b/07\.png: cannot be read: "):
            load_folder(pictures)
    file.unlink()
    (pictures / "c").mkdir()
    with pytest.raises(DataError, match=r"own: no folder of classes: c/ has no image .nothing"):
        load_folder(pictures)
    (tmp_path / "bare").mkdir()
    with pytest.raises(DataError, match="bare: no folder of classes: it holds no folders"):
        load_folder(tmp_path / "bare")
    (pictures / "train").mkdir()
    with pytest.raises(DataError, match="own: there is train/, but no test/"):
        load_folder(pictures)


# --- arguments, and a whole run ---


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        ("arrays", {"kind": "regresion"}, "arrays.kind = 'regresion': give one of "),
        ("arrays", {"channels": "middle"}, "arrays.channels"),
        ("arrays", {"valid_keys": ("x",)}, "arrays.valid_keys"),
        ("arrays", {"padding": -1}, "arrays.padding"),
        ("table", {"target": "y", "kind": "ranking"}, "table.kind"),
        ("table", {"target": "y", "kind": "regression", "delimiter": ""}, "table.delimiter"),
        ("table", {"target": "y", "kind": "regression", "max_categories": 1}, "max_categories"),
        ("table", {"target": "y", "kind": "regression", "test_fraction": 0}, "test_fraction"),
        ("image_folder", {"size": 0}, "image_folder.size"),
        ("image_folder", {"mean": (0.5, 0.5, 0.5)}, "mean = .*give deviation beside it"),
        ("image_folder", {"deviation": (1, 1, 0), "mean": (0, 0, 0)}, "a number above 0 for each"),
        ("image_folder", {"mean": (0.5,), "deviation": (0.5,)}, "for each of 3 channels"),
        ("image_folder", {"interpolation": "cubic"}, "give one of 'nearest', 'bilinear'"),
        ("image_folder", {"test_fraction": 1.5}, "test_fraction"),
    ],
)
def test_arguments_are_checked(task, arguments, message):
    with pytest.raises(ConfigError, match=message):
        TASKS[task](path="own", **arguments)


def test_a_run_tells_the_targets_own_unit(train, tmp_path, table):
    table()
    bindings = ["Runner.steps = 4", "Runner.evaluate_every = 2", "backbones.mlp.hidden = (4,)",
                "tasks.table.path = 'own.csv'", "tasks.table.ignore = ('name',)"]  # fmt: skip
    code, stderr = train(
        "--gin_file=own_data/table.gin", f"--data_dir={tmp_path}", f"--output_dir={tmp_path / 'r'}",
        *(f"--gin_param={binding}" for binding in bindings),
    )  # fmt: skip
    assert code == 0, stderr
    result = json.loads((tmp_path / "r" / "result.json").read_text())
    assert set(result["test_metrics"]) == {"loss", "mse", "rmse", "mae", "r2"}
    assert (result["metric"], result["test"]) == ("mse", result["test_metrics"]["mse"])
    assert 0 < result["test_metrics"]["mae"] <= result["test_metrics"]["rmse"]
    row = json.loads((tmp_path / "r" / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["split"] == "test" and row["rmse"] == result["test_metrics"]["rmse"]
