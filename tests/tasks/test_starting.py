"""`metaloss init` and `metaloss copy`: gin files to begin with, which train as they are."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image

from metaloss import __main__ as command
from metaloss.config import gin_files
from metaloss.runs import launch

#: A run as short as can be, with every phase.
SHORT = (
    "Runner.steps = 2",
    "Runner.figures = 0",
    "meta_optimizers.task_fit.steps = 2",
    "meta_optimizers.offline_unrolled.steps = 1",
    "meta_optimizers.offline_unrolled.scale_steps = 2",
    "meta_optimizers.online_one_step.every = 1",
)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_houses(folder):
    """A table with a name of each row, words, numbers, a price of many values and an age of two."""
    draw = random.Random(0)
    rows = [
        f"h{i};{draw.uniform(30, 200):.1f};{draw.choice(['gas', 'oil'])};"
        f"{draw.choice(['new', 'old'])};{draw.randint(50, 900)}"
        for i in range(60)
    ]
    (folder / "houses.csv").write_text("name;area;heating;age;price\n" + "\n".join(rows) + "\n")


def write_pictures(folder, side=16):
    """Three pictures in each of two classes."""
    random_ = np.random.default_rng(0)
    for kind in ("cats", "dogs"):
        (folder / "pets" / kind).mkdir(parents=True)
        for i in range(6):
            pixels = random_.integers(256, size=(side, side + 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "pets" / kind / f"{i}.png")


def trains(file, *bindings):
    """Whether a run of the file and nothing else ends, and whether nobody reads a line of it."""
    code = launch.train(
        gin_file=[file], gin_param=[*SHORT, *bindings], output_dir="run", device="cpu", strict=True
    )
    return code == 0


def test_a_table_trains(here, capsys):
    write_houses(here)
    assert command.main(["init", "houses.csv"]) == 0
    text = (here / "houses.gin").read_text()
    assert "tasks.table.target = 'price'  # to be predicted; else: name, area" in text
    assert "tasks.table.kind = 'regression'" in text
    assert "tasks.table.ignore = ('name',)" in text
    assert "tasks.table.delimiter = ';'" in text
    assert trains("houses.gin")
    assert "finished, table + mlp, adalfl" in capsys.readouterr().out


def test_a_column_of_few_words_is_of_classes(here):
    write_houses(here)
    assert command.main(["init", "houses.csv", "--target=age", "--output=age.gin"]) == 0
    assert (
        "tasks.table.kind = 'classification'  # 2 different values"
        in (here / "age.gin").read_text()
    )
    assert trains("age.gin", "backbones.mlp.hidden = (4,)")


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_arrays_train(here, kind):
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    y = x[:, 0] if kind == "regression" else (x[:, 0] > 0).astype(int)
    np.savez("own.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    assert command.main(["init", "own.npz"]) == 0
    assert f"tasks.arrays.kind = '{kind}'" in (here / "own.gin").read_text()
    assert trains("own.gin", "backbones.mlp.hidden = (4,)")


def test_a_folder_of_pictures_is_described(here):
    write_pictures(here)
    assert command.main(["init", "pets"]) == 0
    text = (here / "pets.gin").read_text()
    assert "tasks.image_folder.size = 32  # pixels a side, of about 16 that there are" in text
    assert "tasks.image_folder.grayscale = False" in text


@pytest.mark.full  # a residual net
def test_a_folder_of_pictures_trains(here):
    write_pictures(here)
    assert command.main(["init", "pets"]) == 0
    assert trains("pets.gin", "tasks.image_folder.batch_size = 4")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["nowhere.csv"], "no file or folder nowhere.csv"),
        (["houses.csv", "--target=prise"], "no column 'prise'; did you mean 'price'?"),
        (["note.md"], "note.md is none of: a table (.csv, "),
        (["empty.npz"], "name its arrays x_train, y_train, x_test, y_test; it has other"),
        (["empty.npz", "--target=y"], "--target=y: empty.npz is no table, so it has no columns"),
    ],
)
def test_what_cannot_be_described_is_one_line(here, capsys, words, error):
    write_houses(here)
    (here / "note.md").write_text("")
    np.savez("empty.npz", other=np.ones(3))
    assert command.main(["init", *words]) == 2
    told = capsys.readouterr().err
    assert error in told
    assert told.count("\n") == 1
    assert not list(here.glob("*.gin"))


def test_no_file_is_overwritten(here, capsys):
    write_houses(here)
    for words in (
        ["init", "houses.csv", "--output=own.gin"],
        ["copy", "quickstart.gin", "--output=own.gin"],
    ):
        (here / "own.gin").write_text("# mine")
        assert command.main(words) == 2
        assert "error: own.gin is there already" in capsys.readouterr().err
        assert (here / "own.gin").read_text() == "# mine"


def test_a_shipped_file_is_copied_and_says_the_same(here):
    assert command.main(["copy", "methods/adalfl.gin"]) == 0
    shipped = gin_files.CONFIG_DIR / "methods" / "adalfl.gin"
    assert (here / "adalfl.gin").read_text() == shipped.read_text()


def test_without_a_name_the_shipped_files_are_listed(capsys):
    assert command.main(["copy"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == gin_files.shipped()


def test_a_name_that_does_not_ship_is_one_line_with_the_nearest(capsys):
    assert command.main(["copy", "metods/adalfl.gin"]) == 2
    expected = "error: no gin file 'metods/adalfl.gin'; did you mean 'methods/adalfl.gin'?\n"
    assert capsys.readouterr().err == expected
