"""What a model can be asked about: pictures, rows and arrays in whatever form people have them."""

from __future__ import annotations

import csv
import warnings

import numpy as np
import pandas
import polars as pl
import pytest
import torch
from PIL import Image

import metaloss
from metaloss.errors import DataError
from metaloss.runs.trained import model as trained
from tests.helpers import train

MLP = ("Runner.backbone = @backbones.mlp", "backbones.mlp.hidden = (4,)", "Runner.steps = 2")
RUNS = {
    "pictures": (
        *("Runner.task = @tasks.image_folder()", "tasks.image_folder.path = 'pictures'"),
        "tasks.image_folder.size = 8",
    ),
    "deep": ("Runner.task = @tasks.image_folder()", "tasks.image_folder.path = 'deep'"),
    "pixels": ("Runner.task = @tasks.arrays()", "tasks.arrays.path = 'pixels.npz'"),
    "values": ("Runner.task = @tasks.arrays()", "tasks.arrays.path = 'values.npz'"),
    "houses": (
        *("Runner.task = @tasks.table()", "tasks.table.path = 'houses.csv'"),
        *("tasks.table.target = ('price', 'tax')", "tasks.table.kind = 'regression'"),
    ),
}
#: Rows that are none of the training's: a missing number, a missing word, other types.
ROWS = [
    {"area": 31.5, "rooms": 2, "heating": "gas"},
    {"area": None, "rooms": 3, "heating": "oil"},
    {"area": 70.0, "rooms": 1, "heating": None},
]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder of data and of runs of two steps."""
    folder = tmp_path_factory.mktemp("inputs")
    random = np.random.default_rng(0)
    for i in range(40):
        name = f"{'cats' if i % 2 else 'dogs'}/{i}.png"
        for kind in ("pictures", "deep"):
            (folder / kind / name).parent.mkdir(parents=True, exist_ok=True)
        image = random.integers(0, 256, (10 + i % 3, 12, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / "pictures" / name)
        deep = random.integers(0, 1 << 16, (8, 8)).astype(np.uint16)
        Image.fromarray(deep).save(folder / "deep" / name)
    pixels = random.integers(0, 256, (60, 16, 16), dtype=np.uint8)
    words = np.array(["cat", "dog"])[np.arange(60) % 2]
    np.savez(folder / "pixels.npz", x_train=pixels[:40], y_train=words[:40], x_test=pixels[40:],
             y_test=words[40:])  # fmt: skip
    x, y = random.normal(100, 20, (60, 4)), random.normal(1000, 100, 60)
    np.savez(folder / "values.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    lines = ["area,rooms,heating,price,tax"] + [
        f"{random.uniform(20, 90):.1f},{i % 5},{('gas', 'oil', '')[i % 3]},{i * 1000},{i % 7}"
        for i in range(60)
    ]
    (folder / "houses.csv").write_text("\n".join(lines) + "\n")
    for name, extra in RUNS.items():
        run = folder / "runs" / name
        assert train(run, "baseline", (*MLP, *extra), data_dir=str(folder)) == 0
    return folder


@pytest.fixture(scope="module")
def models(here):
    return {name: metaloss.load_model(here / "runs" / name, data_dir=here) for name in RUNS}


def in_order(prediction):
    """The first column by size, to be compared with that of other inputs in another order."""
    return prediction.values[:, 0].sort().values


# --- pictures ---


@pytest.mark.parametrize("name", ["pictures", "deep"])
def test_files_are_prepared_as_the_trainings_were(here, models, name):
    model = models[name]
    stored = torch.cat([x for x, _ in model.data.splits.values()])
    found = model.predict(here / name)
    assert in_order(found).allclose(in_order(model.predict(stored)), atol=1e-6)
    files = sorted((here / name).rglob("*.png"))
    assert found.files == tuple(map(str, files))
    assert found.names == ("cats", "dogs")
    labels = [found.names[i] for i in found.values.argmax(1).tolist()]
    assert found.labels == labels and set(labels) <= {"cats", "dogs"}


def test_pictures_in_every_form(here, models):
    model, folder = models["pictures"], here / "pictures"
    files = sorted(folder.rglob("*.png"))[:5]
    expected = model.predict(files).values
    assert expected.allclose(model.predict(folder).values[:5])
    images = [Image.open(file) for file in files]
    arrays = [np.asarray(image) for image in images]
    given = {
        "words": list(map(str, files)),
        "pillow": images,
        "arrays": arrays,
        "channels first": [torch.from_numpy(x.copy()).permute(2, 0, 1) for x in arrays],
        "an iterator": iter(files),
        "of all kinds": [files[0], images[1], arrays[2], str(files[3]), images[4]],
    }
    for what in given.values():
        assert model.predict(what).values.equal(expected)
    for one in (files[0], str(files[0]), images[0], arrays[0]):
        assert model.predict(one).values.allclose(expected[:1])
    assert model.predict(images).files is None
    gray = model.predict(np.zeros((20, 30), np.uint8)).values
    assert gray.allclose(model.predict(np.zeros((3, 8, 8), np.uint8)).values)
    assert model.predict(np.zeros((2, 20, 30, 3), np.uint8)).values.allclose(gray)


def test_pictures_of_16_bits(here, models, tmp_path):
    """A model of deep pictures takes bytes too, and a model of bytes deep pictures."""
    white, light = np.full((8, 8), 255, np.uint8), np.full((8, 8), 65_535, np.uint16)
    Image.fromarray(light).save(tmp_path / "light.png")
    deep = models["deep"]
    assert deep.predict(white).values.equal(deep.predict(tmp_path / "light.png").values)
    eight = models["pictures"]
    found = eight.predict(tmp_path / "light.png").values
    assert found.equal(eight.predict(np.full((8, 8, 3), 255, np.uint8)).values)


def test_other_sizes_than_all_of_the_trainings_are_told(models):
    """A run that was asked for no size saw one alone."""
    model, picture = models["pixels"], np.full((20, 30, 3), 200, np.uint8)
    with pytest.warns(UserWarning, match="than 16x16 are resized .* the training's grey pictures"):
        found = model.predict([picture, picture])
    grey = np.full((16, 16), 200, np.uint8)
    assert found.values.allclose(model.predict([grey, grey]).values)
    assert found.labels == model.predict(grey[None].repeat(2, 0)).labels


def test_answers_come_as_they_are_asked_for(here, models):
    """Of an iterator no more is taken than the batches that were answered."""
    taken = []

    def camera():
        for file in sorted((here / "pictures").rglob("*.png")):
            taken.append(file)
            yield file

    answers = models["pictures"].stream(camera(), batch=7)
    first = next(answers)
    assert (len(first), len(taken)) == (7, 7)
    rest = list(answers)
    assert [len(answer) for answer in rest] == [7, 7, 7, 7, 5]
    together = torch.cat([answer.values for answer in (first, *rest)])
    assert together.allclose(models["pictures"].predict(here / "pictures").values, atol=1e-6)


def test_pictures_that_cannot_be_used(here, models, tmp_path):
    model = models["pictures"]
    for what, message in (
        (tmp_path / "none.png", "no file .*none.png"),
        ([tmp_path / "none.png"], "none.png: cannot be read"),
        (tmp_path, "no picture is in this folder"),
        ([], "there is nothing to predict for"),
        ([3], "int is no picture: give a file, an image of Pillow, or an array"),
        (np.zeros((20, 30, 3)), r"float64 \[20, 30, 3\], but the model takes \[n, 3, 8, 8\]"),
        ([np.zeros((20, 30, 3))], r"an array float64 \[20, 30, 3\] is no picture"),
    ):
        with pytest.raises(DataError, match=message):
            model.predict(what)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="broken.png: cannot be read"):
        model.predict(tmp_path)
    with pytest.raises(DataError, match=r"inputs are numbers of shape \[4\], and no bytes of pic"):
        models["values"].predict(here / "pictures")


# --- rows ---


def test_rows_in_every_form(models, tmp_path):
    model = models["houses"]
    expected = model.predict(ROWS)
    assert expected.names == ("price", "tax") and expected.kind == "values"
    assert expected.values[:, 0].max() > 10  # in its own unit, not of 0..1
    lines = ["heating,rooms,area", "gas,2,31.5", "oil,3,", ",1,70.0"]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    frame = pl.DataFrame(ROWS)
    frame.write_parquet(tmp_path / "rows.parquet")
    given = {
        "csv": tmp_path / "rows.csv",
        "parquet": str(tmp_path / "rows.parquet"),
        "polars": frame,
        "lazy": frame.lazy(),
        "pandas": pandas.DataFrame(ROWS),
        "arrow": frame.to_arrow(),
        "an iterator": iter(ROWS),
        "words": [{**row, "rooms": str(row["rooms"])} for row in ROWS],
        "of two types": [ROWS[0], {**ROWS[1], "rooms": "3"}, {**ROWS[2], "rooms": 1.0}],
    }
    for name, what in given.items():
        assert model.predict(what).values.equal(expected.values), name
    for number, row in enumerate(ROWS):
        assert model.predict(row).values.allclose(expected.values[number : number + 1])
    small = torch.cat([answer.values for answer in model.stream(frame, batch=2)])
    assert small.allclose(expected.values)


def test_rows_that_cannot_be_used(models):
    model = models["houses"]
    for what, message in (
        ({"area": 1, "room": 2, "heating": "gas"}, "the rows, row 0: no 'rooms'; did you mean 'r"),
        ([*ROWS, {"area": 1, "rooms": 2}], "the rows, row 3: no 'heating' · it has: area, rooms"),
        ({**ROWS[0], "rooms": "many"}, "the rows: column 'rooms', row 0: 'many' is no number"),
        ([ROWS[0], 3], "the rows, row 1: int is no row: give a dict by column"),
        ([], "there is nothing to predict for"),
        (pl.DataFrame(ROWS).head(0), "the rows: none are there"),
        (pandas.DataFrame(ROWS)[["area"]], "the rows, row 0: no 'rooms'|the rows: no column 'room"),
        (3, "int is no table"),
        (np.zeros((2, 3)), "ndarray is no table"),
    ):
        with pytest.raises(DataError, match=message):
            model.predict(what)


def test_words_that_training_never_saw_are_told(models):
    with pytest.warns(UserWarning, match="1 of 1 rows have words that are no category"):
        models["houses"].predict({"area": 1, "rooms": 2, "heating": "wood"})


# --- arrays ---


def test_arrays_in_every_form(here, models, tmp_path):
    model, x = models["values"], np.load(here / "values.npz")["x_test"]
    expected = model.predict(x).values
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", mine=x, other=x[:3])
    for what in (torch.from_numpy(x), x.tolist(), tmp_path / "x.npy", list(x)):
        assert model.predict(what).values.equal(expected)
    assert model.predict(tmp_path / "x.npz", key="mine").values.equal(expected)
    assert model.predict(x[0]).values.allclose(expected[:1])
    assert model.predict(here / "values.npz", key="x_test").values.equal(expected)


# --- the command ---


@pytest.fixture
def evaluate(capsys):
    def run(run, **asked):
        capsys.readouterr()
        with warnings.catch_warnings():
            said = trained.evaluate(run, **asked)
        return said, capsys.readouterr().err

    return run


def test_a_folder_is_predicted_by_the_command(here, models, evaluate, tmp_path):
    """A row for each file, in order; what is no picture is told."""
    (tmp_path / "new").mkdir()
    for i, file in enumerate(sorted((here / "pictures").rglob("*.png"))[:3]):
        (tmp_path / "new" / f"{i}.png").write_bytes(file.read_bytes())
    (tmp_path / "new" / "notes.txt").write_text("mine")
    output = tmp_path / "found.csv"
    run = here / "runs" / "pictures"
    said, told = evaluate(run, predict=tmp_path / "new", output=output)
    assert said.endswith(f"3 predictions in {output}")
    assert told == f"warning: left out in {tmp_path / 'new'}: 1 .txt\n"
    with output.open() as file:
        header, *rows = csv.reader(file)
    assert header == ["file", "predicted", "class", "probability_cats", "probability_dogs"]
    assert [row[0] for row in rows] == [str(tmp_path / "new" / f"{i}.png") for i in range(3)]
    expected = models["pictures"].predict([tmp_path / "new" / f"{i}.png" for i in range(3)])
    assert [row[2] for row in rows] == expected.labels
    values = torch.tensor([[float(cell) for cell in row[3:]] for row in rows])
    assert values.equal(expected.values)
    evaluate(run, predict=tmp_path / "new", output=tmp_path / "found.npz")
    found = np.load(tmp_path / "found.npz")
    assert set(found.files) == {"probabilities", "predicted", "classes", "files"}


def test_a_table_is_predicted_by_the_command(here, models, evaluate, tmp_path):
    pl.DataFrame(ROWS).write_csv(tmp_path / "rows.csv")
    output = tmp_path / "found.csv"
    evaluate(here / "runs" / "houses", predict=tmp_path / "rows.csv", output=output)
    header, *rows = output.read_text().splitlines()
    assert header == "prediction_price,prediction_tax"
    found = torch.tensor([list(map(float, row.split(","))) for row in rows], dtype=torch.float64)
    assert found.equal(models["houses"].predict(ROWS).values)
