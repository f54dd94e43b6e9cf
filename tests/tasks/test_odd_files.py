"""A hundred odd files: each gives the right value, or one line that says what is wrong with it."""

from __future__ import annotations

import csv
import gzip
import os

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from metaloss import TASKS
from metaloss.errors import DataError
from metaloss.runs.trained import plain_rows
from metaloss.tasks.preparation.columns import typed
from metaloss.tasks.preparation.dialect import Dialect
from metaloss.tasks.preparation.encoding import Category, Date, Encoding, Number
from metaloss.tasks.preparation.image_files import Decoder
from metaloss.tasks.preparation.tables import read

MISSING = ("", "?", "NA", "N/A", "NaN", "nan", "null")


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def rows_of(path, **dialect):
    """The fields of a table, row by row."""
    found = read(path, Dialect(MISSING, **dialect))
    frame = found.frame.collect()
    return found.names, frame.rows()


# --- CSV: what stands in the fields ---

FIELDS = {
    "plain": (b"a,b\n1,x\n", [("1", "x")], {}),
    "carriage returns": (b"a,b\r\n1,x\r\n", [("1", "x")], {}),
    "no last line feed": (b"a,b\n1,x", [("1", "x")], {}),
    "byte order mark": (b"\xef\xbb\xbfa,b\n1,x\n", [("1", "x")], {}),
    "utf-16 little": ("\ufeffa,b\n1,é\n".encode("utf-16-le"), [("1", "é")], {}),
    "utf-16 big": ("\ufeffa,b\n1,é\n".encode("utf-16-be"), [("1", "é")], {}),
    "cp1252": ("a,b\n1,é\n".encode("cp1252"), [("1", "é")], {"encoding": "cp1252"}),
    "empty lines": (b"\n\na,b\n\n1,x\n\n\n2,y\n\n", [("1", "x"), ("2", "y")], {}),
    "lines of spaces": (b"a,b\n   \n1,x\n", [("1", "x")], {}),
    "semicolons": (b"a;b\n1;x\n", [("1", "x")], {"delimiter": ";"}),
    "tabs": (b"a\tb\n1\tx\n", [("1", "x")], {"delimiter": "\t"}),
    "bars": (b"a|b\n1|x\n", [("1", "x")], {"delimiter": "|"}),
    "quoted": (b'a,b\n"1","x"\n', [("1", "x")], {}),
    "quoted header": (b'"a","b"\n1,x\n', [("1", "x")], {}),
    "delimiter in quotes": (b'a,b\n1,"x, y"\n', [("1", "x, y")], {}),
    "quotes in quotes": (b'a,b\n1,"say ""x"""\n', [("1", 'say "x"')], {}),
    "empty quotes": (b'a,b\n1,""\n', [("1", "")], {}),
    "line break in quotes": (b'a,b\n1,"x\ny"\n2,z\n', [("1", "x\ny"), ("2", "z")], {}),
    "empty line in quotes": (b'a,b\n1,"x\n\ny"\n', [("1", "x\n\ny")], {}),
    "rows in quotes, allowed": (
        b'a,b\n1,"x\n7,8\ny"\n', [("1", "x\n7,8\ny")], {"line_breaks": True},
    ),
    "no quotes": (b'a,b\n1,5" pipe\n', [("1", '5" pipe')], {"quote": ""}),
    "single quotes": (b"a,b\n1,'x, y'\n", [("1", "x, y")], {"quote": "'"}),
    "apostrophes": (b"a,b\n1,it's\n", [("1", "it's")], {}),
    "hash": (b"a,b\n#1,x\n", [("#1", "x")], {}),
    "backslash": (b"a,b\n1,x\\\n2,y\n", [("1", "x\\"), ("2", "y")], {}),
    "null byte": (b"a,b\n1,x\x00y\n", [("1", "x\x00y")], {}),
    "empty fields": (b"a,b\n,\n1,\n", [("", ""), ("1", "")], {}),
    "an empty name": (b",b\n1,x\n", [("1", "x")], {}),
    "emoji": ("a,b\n1,🦊\n".encode(), [("1", "🦊")], {}),
    "zeros in front": (b"a,b\n007,0x10\n", [("007", "0x10")], {}),
    "long numbers": (b"a,b\n12345678901234567890,1\n", [("12345678901234567890", "1")], {}),
    "one column": (b"a\n1\n\n2\n", [("1",), ("2",)], {}),
}  # fmt: skip


@pytest.mark.parametrize("case", FIELDS)
def test_fields_are_what_stands_there(tmp_path, case):
    content, expected, dialect = FIELDS[case]
    (tmp_path / "own.csv").write_bytes(content)
    assert rows_of(tmp_path / "own.csv", **dialect)[1] == expected


REFUSED = {
    "nothing": (b"", ": no rows"),
    "empty lines alone": (b"\n\n", ": no rows"),
    "a header alone": (b"a,b\n", ": no rows"),
    "a short row": (b"a,b\n1,x\n2\n", ", line 3: 1 fields, not 2"),
    "a long row": (b"a,b\n1,x,y\n", ", line 2: 3 fields, not 2"),
    "short after an empty line": (b"a,b\n\n1,x\n2\n", ", line 4: 1 fields, not 2"),
    "short after a line break": (b'a,b\n1,"x\ny"\n2\n', ", line 4: 1 fields, not 2"),
    "twice one name": (b"a,a\n1,2\n", ": two columns are named 'a'"),
    "an open quote": (b'a,b\n1,"x\n2,y\n', ", line 2: a quote opens here that is never closed"),
    "an open quote at the end": (b'a,b\n1,x\n2,"y', ", line 3: a quote opens here that is never"),
    "two open quotes": (
        b'a,b\n1,"x\n2,y\n3,z"\n', ", line 2: the quoted field that opens here holds 1 lines that",
    ),
    "a quote within": (b'a,b\n1,5" pipe\n', ", line 2: a quote stands within a field"),
    "two quotes within": (b'a,b\n1,5" p\n2,6" p\n', ", line 2: a quote stands within a field"),
    "after a quote": (b'a,b\n1,"x"y\n', ", line 2: a quote stands within a field"),
    "a space before a quote": (b'a,b\n1, "x"\n', ", line 2: a quote stands within a field"),
    "latin-1": (b"a,b\n1,\xe9\n", ": cannot be read: it is no UTF-8 text, line 2 has the byte"),
    "old line ends": (b"a,b\r1,x\r", ": its lines end in \\r alone"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_files_that_would_lose_rows_are_refused(tmp_path, case):
    content, message = REFUSED[case]
    (tmp_path / "own.csv").write_bytes(content)
    with pytest.raises(DataError) as caught:
        rows_of(tmp_path / "own.csv")
    assert str(caught.value).startswith(f"{tmp_path / 'own.csv'}{message}")
    assert "\n" not in str(caught.value)


# --- what a column becomes ---

MANY = [str(i / 4) for i in range(20)]
COLUMNS = {
    "numbers": (MANY, Number, {}),
    "exponents": (["1e3", "2.5E-4", "-3e+2"], Number, {}),
    "signs and points": (["+1", "-2", ".5", "3."], Number, {}),
    "spaces": ([" 1 ", "2 "], Number, {}),
    "of text, quoted": (['"1"', '"2"'], Number, {}),
    "NULL": ([*MANY, "NULL"], Number, {}),
    "None": ([*MANY, "None"], Number, {}),
    "n.a.": ([*MANY, "n.a."], Number, {}),
    "a dash": ([*MANY, "-"], Number, {}),
    "#N/A": ([*MANY, "#N/A"], Number, {}),
    "late NULL": ([*map(str, range(1500)), "NULL"], Number, {}),
    "decimal commas": (["1,5", "2,25"], Number, {"decimal": ",", "delimiter": ";"}),
    "decimal commas unasked": (["1,5", "2,25"], Category, {"delimiter": ";"}),
    "per cent": (["12 %", "3%"], Number, {"percent": True}),
    "per cent unasked": (["12 %", "3%"], Category, {}),
    "thousands": (["1'000", "2'500.5"], Number, {"thousands": "'"}),
    "underscores": (["1_1", "11"], Category, {}),
    "hexadecimal": (["0x10", "0x11"], Category, {}),
    "booleans": (["True", "False"], Category, {}),
    "words": (["red", "blue", "None"], Category, {}),
    "a late word": ([*map(str, range(1500)), "high"], Category, {}),
    "wide digits": (["１", "２"], Category, {}),
    "dates": (["2024-01-05", "2023-12-31"], Date, {}),
    "times": (["2024-01-05 10:30", "2023-12-31T08:00:59.5"], Date, {}),
    "time zones": (["2024-01-05T10:30:00Z", "2024-01-05T10:30:00+02:00"], Date, {}),
    "late times": ([*["2024-01-05"] * 1500, "2024-01-05 10:30"], Date, {}),
    "dates with gaps": (["2024-01-05", "", "2024-01-07"], Date, {}),
    "no dates": (["2024-13-05", "2024-01-07"], Category, {}),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_what_a_column_becomes(tmp_path, case):
    words, kind, dialect = COLUMNS[case]
    delimiter = dialect.get("delimiter", ",")
    text = f"x{delimiter}y\n" + "".join(f"{word}{delimiter}0\n" for word in words)
    (tmp_path / "own.csv").write_text(text)
    rows = read(tmp_path / "own.csv", Dialect(MISSING, **dialect))
    found, frame = typed(rows, ["x"], {}, Dialect(MISSING, **dialect))
    assert isinstance(found["x"], kind)
    assert len(frame) == len(words)


@pytest.mark.parametrize(
    ("words", "days"),
    [
        (["1970-01-02", "1970-01-02 12:00"], [1.0, 1.5]),
        (["1970-01-02T00:00:00Z", "1970-01-02T00:00:00+06:00"], [1.0, 0.75]),
        (["1970-01-02 00:00:00-0600", "1969-12-31 00:00"], [1.25, -1.0]),
    ],
)
def test_dates_are_days(tmp_path, words, days):
    (tmp_path / "own.csv").write_text("x\n" + "\n".join(words) + "\n")
    rows = read(tmp_path / "own.csv", Dialect(MISSING))
    _, frame = typed(rows, ["x"], {}, Dialect(MISSING))
    assert frame["x"].to_list() == days


def table(path, text, **arguments):
    path.write_text(text)
    arguments = {"target": "y", "kind": "classification"} | arguments
    return TASKS["table"](path=str(path), **arguments).load(path.parent, generator())


CLASSES = {
    "underscores": (["1_1", "11", "12"], ("11", "1_1", "12")),
    "zeros in front": (["007", "7", "12"], ("007", "7", "12")),
    "large": (["1234567", "1234568"], ("1234567", "1234568")),
    "beyond float64": (["9007199254740993", "9007199254740992"],
                       ("9007199254740992", "9007199254740993")),
    "halves": (["1.0", "1", "1.5"], ("1", "1.0", "1.5")),
    "in order": (["10", "9", "8"], ("8", "9", "10")),
    "cases": (["Yes", "yes", "no"], ("Yes", "no", "yes")),
    "None is a word": (["None", "some"], ("None", "some")),
    "signs": (["+", "-"], ("+", "-")),
}  # fmt: skip


@pytest.mark.parametrize("case", CLASSES)
def test_labels_are_the_text_that_stands_there(tmp_path, case):
    words, classes = CLASSES[case]
    labels = [words[i % len(words)] for i in range(60)]
    text = "x,y\n" + "".join(f"{i},{label}\n" for i, label in enumerate(labels))
    data = table(tmp_path / "own.csv", text)
    assert data.classes == classes and data.outputs == len(classes)
    counts = sum(torch.bincount(y, minlength=len(classes)) for _, y in data.splits.values())
    assert counts.tolist() == [labels.count(name) for name in classes]


TABLES = {
    "one class": ("x,y\n" + "1,yes\n" * 20, {}, "every example is of the class yes"),
    "a missing label": ("x,y\n1,a\n2,NA\n", {}, "line 3: no target .'NA' stands for a missing one"),
    "another delimiter": ("x;y\n1;a\n", {}, "no column 'y'.*set tasks.table.delimiter = ';'"),
    "an order's word": (
        "x,y\n" + "S,a\nXL,b\n" * 9, {"ordered": {"x": ("S", "M")}}, "'XL' is no word of its ord",
    ),
    "a date's word": ("x,y\n" + "2024-01-05,a\nsoon,b\n" * 9, {"dates": ("x",)}, "'soon' is no"),
    "a negative weight": ("x,w,y\n" + "1,-1,a\n2,1,b\n" * 9, {"weight": "w"}, "a weight below 0"),
    "an unknown class": (
        "x,y\n" + "1,a\n2,b\n" * 9, {"class_weights": {"c": 2.0}}, "class_weights name no class",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLES)
def test_tables_that_cannot_be_used(tmp_path, case):
    text, arguments, message = TABLES[case]
    with pytest.raises(DataError, match=message):
        table(tmp_path / "own.csv", text, **arguments)


def test_the_run_says_what_each_column_became(tmp_path):
    text = "id,x,y\n" + "".join(f"{i},{i}%,{'ab'[i % 2]}\n" for i in range(40))
    notes = "\n".join(table(tmp_path / "own.csv", text, ignore=("id",)).notes)
    assert "40 rows" in notes and "ignored" in notes and "target, classification" in notes
    assert "note: column 'x' would be of numbers" in notes and "tasks.table.percent = True" in notes


# --- Parquet, Arrow ---

TYPES = {
    "int8": pl.Series("x", [1, 2, None], dtype=pl.Int8),
    "uint64": pl.Series("x", [1, 2, None], dtype=pl.UInt64),
    "float32": pl.Series("x", [1.5, 2.0, None], dtype=pl.Float32),
    "nan": pl.Series("x", [1.5, float("nan"), 2.0]),
    "decimal": pl.Series("x", ["1.5", "2.5", None]).cast(pl.Decimal(10, 2)),
    "boolean": pl.Series("x", [True, False, None]),
    "text": pl.Series("x", ["a", "b", None]),
    "text of numbers": pl.Series("x", ["1", "2.5", None]),
    "categorical": pl.Series("x", ["a", "b", None], dtype=pl.Categorical),
    "enum": pl.Series("x", ["a", "b", None], dtype=pl.Enum(["a", "b"])),
    "date": pl.Series("x", ["2024-01-05", "2024-01-07", None]).str.to_date(),
    "datetime": pl.Series("x", ["2024-01-05 10:30:00", "2024-01-07 09:00:00", None])
    .str.to_datetime(),
}  # fmt: skip


@pytest.mark.parametrize("ending", ["parquet", "arrow", "stream.arrow", "csv"])
@pytest.mark.parametrize("kind", TYPES)
def test_types_are_read_alike(tmp_path, kind, ending):
    """Every format gives the inputs that the CSV file of the same rows gives."""
    frame = pl.DataFrame([TYPES[kind]] * 1).with_row_index("i")
    frame = pl.concat([frame] * 4)
    frame.write_csv(tmp_path / "own.csv")
    path = tmp_path / f"own.{ending}"
    if ending == "parquet":
        frame.write_parquet(path)
    elif ending == "arrow":
        frame.write_ipc(path)
    elif ending == "stream.arrow":
        frame.write_ipc_stream(path)
    arguments = {"target": "i", "kind": "regression", "max_categories": 9, "valid_fraction": 0.3}
    one, other = (
        TASKS["table"](path=str(p), **arguments).load(tmp_path, generator())
        for p in (tmp_path / "own.csv", path)
    )
    for split, (x, y) in one.splits.items():
        torch.testing.assert_close(other.splits[split][0], x)
        assert other.splits[split][1].equal(y)


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_damaged_tables_are_refused(tmp_path, ending, damage):
    path = tmp_path / f"own.{ending}"
    frame = pl.DataFrame({"a": [1, 2]})
    frame.write_parquet(path) if ending == "parquet" else frame.write_ipc(path)
    content = {"cut": path.read_bytes()[:-9], "text": b"a,b\n1,2\n", "empty": b""}[damage]
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read: "):
        read(path, Dialect(MISSING)).frame.collect()


def test_lists_are_no_inputs(tmp_path):
    pl.DataFrame({"x": [[1], [2]] * 9, "y": ["a", "b"] * 9}).write_parquet(tmp_path / "own.parquet")
    with pytest.raises(DataError, match=r"column 'x' holds list.*not words or numbers; ignore it"):
        TASKS["table"](path=str(tmp_path / "own.parquet"), target="y", kind="classification").load(
            tmp_path, generator()
        )


# --- npz ---


@pytest.mark.parametrize(
    "labels",
    [
        np.array(["a", "b"] * 10),
        np.array([b"a", b"b"] * 10),
        np.array([0, 1] * 10, np.uint8),
        np.array([0.0, 1.0] * 10, np.float16).astype(np.float32).astype(int),
        np.array([[0], [1]] * 10),
        np.array([False, True] * 10),
    ],
    ids=["text", "bytes", "uint8", "whole", "column", "bool"],
)
def test_labels_of_any_type(tmp_path, labels):
    x = np.arange(20.0)[:, None]
    np.savez(tmp_path / "own.npz", x_train=x, y_train=labels, x_test=x, y_test=labels)
    data = TASKS["arrays"](path="own.npz").load(tmp_path, generator())
    assert data.outputs == 2 and data.splits["test"][1].tolist() == [0, 1] * 10


@pytest.mark.parametrize("kind", [np.float64, np.int64, np.uint32])
def test_large_numbers_are_centred_before_they_are_rounded(tmp_path, kind):
    x = (1.7e9 + np.arange(40.0)).astype(kind)[:, None]
    np.savez(tmp_path / "own.npz", x_train=x, y_train=x, x_test=x, y_test=x)
    data = TASKS["arrays"](path="own.npz", kind="regression").load(tmp_path, generator())
    for tensor in data.splits["test"]:
        assert len(tensor.unique()) == 40


# --- images ---


def gray16(low: int) -> Image.Image:
    return Image.fromarray(np.full((4, 4), low, np.uint16))


RED = (255, 0, 0)
IMAGES = {
    "png": ("png", Image.new("RGB", (4, 4), RED), (255, 0, 0)),
    "bmp": ("bmp", Image.new("RGB", (4, 4), RED), (255, 0, 0)),
    "gif": ("gif", Image.new("RGB", (4, 4), RED), (255, 0, 0)),
    "tiff": ("tiff", Image.new("RGB", (4, 4), RED), (255, 0, 0)),
    "capital ending": ("PNG", Image.new("RGB", (4, 4), RED), (255, 0, 0)),
    "ppm": ("ppm", Image.new("RGB", (4, 4), RED), (255, 0, 0)),
    "gray": ("png", Image.new("L", (4, 4), 70), (70, 70, 70)),
    "one bit": ("png", Image.new("1", (4, 4), 1), (255, 255, 255)),
    "palette": ("png", Image.new("RGB", (4, 4), RED).quantize(4), (255, 0, 0)),
    "opaque": ("png", Image.new("RGBA", (4, 4), (*RED, 255)), (255, 0, 0)),
    "transparent": ("png", Image.new("RGBA", (4, 4), (*RED, 0)), (255, 255, 255)),
    "gray and transparent": ("png", Image.new("LA", (4, 4), (9, 0)), (255, 255, 255)),
    "cmyk": ("tiff", Image.new("CMYK", (4, 4), (0, 255, 255, 0)), (255, 0, 0)),
    "16 bits": ("png", gray16(6554), (6554 / 65535,) * 3),
    "16 bits, tiff": ("tiff", gray16(60000), (60000 / 65535,) * 3),
    "floats": ("tiff", Image.fromarray(np.full((4, 4), 0.25, np.float32)), (0.25,) * 3),
    "32 bits": ("tiff", Image.fromarray(np.full((4, 4), 2**30, np.int32)), (0.5,) * 3),
}  # fmt: skip


@pytest.mark.parametrize("case", IMAGES)
def test_images_in_their_own_depth(tmp_path, case):
    ending, image, expected = IMAGES[case]
    path = tmp_path / f"x.{ending}"
    image.save(path)
    pixels = Decoder()(path)
    assert pixels.shape == (3, 4, 4)
    np.testing.assert_allclose(pixels[:, 1, 1].tolist(), expected, rtol=1e-5)
    assert Decoder(grayscale=True, size=2)(path).shape == (1, 2, 2)


def test_the_background_is_seen_through(tmp_path):
    Image.new("RGBA", (4, 4), (200, 0, 0, 128)).save(tmp_path / "x.png")
    pixels = Decoder(background=(0, 0, 100))(tmp_path / "x.png")[:, 0, 0].tolist()
    np.testing.assert_allclose(pixels, (100, 0, 50), atol=1)


@pytest.mark.parametrize("largest", [300, 1023, 65535])
def test_a_portable_graymap_of_more_than_8_bits_has_its_own_depth(tmp_path, largest):
    values = np.linspace(0, largest, 16).round().astype(">u2")
    (tmp_path / "x.pgm").write_bytes(b"P5 4 4 %d\n" % largest + values.tobytes())
    pixels = Decoder()(tmp_path / "x.pgm")[0].flatten()
    expected = torch.from_numpy(values / largest).float()
    torch.testing.assert_close(pixels, expected, atol=1e-5, rtol=0)


def test_images_are_turned_as_they_are_shown(tmp_path):
    image = Image.new("RGB", (6, 4))
    image.putpixel((5, 0), RED)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn to the right
    image.save(tmp_path / "x.png", exif=exif)
    pixels = Decoder()(tmp_path / "x.png")
    assert pixels.shape == (3, 6, 4) and pixels[0, 5, 3] == 255


@pytest.fixture
def pictures(tmp_path):
    """Writes images into folders: paths -> the folder."""

    def write(*names):
        for i, name in enumerate(names):
            path = tmp_path / "own" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix in (".txt", ".heic", ""):
                path.write_text("no image")
            else:
                Image.new("RGB", (4, 4), (i % 256, 0, 0)).save(path)
        return tmp_path / "own"

    return write


def several(*folders, n=6):
    return [f"{folder}/{i}.png" for folder in folders for i in range(n)]


def load(path, **arguments):
    return TASKS["image_folder"](path=str(path), **arguments).load(path, generator())


@pytest.mark.parametrize("train", ["train", "Train", "TRAINING"])
@pytest.mark.parametrize("valid", ["val", "valid", "Validation", "dev"])
@pytest.mark.parametrize("test", ["test", "Testing"])
def test_split_folders_in_peoples_words(pictures, train, valid, test):
    data = load(pictures(*several(f"{train}/a", f"{train}/b", n=5),
                         *several(f"{valid}/a", f"{valid}/b", n=3),
                         *several(f"{test}/a", f"{test}/b", n=2)))  # fmt: skip
    sizes = {split: len(y) for split, (_, y) in data.splits.items()}
    assert sizes == {"train": 10, "valid": 6, "test": 4} and data.classes == ("a", "b")


FOLDERS = {
    "too deep": (several("x/a", "x/b"), "the one folder in"),
    "hidden": ([*several("a", "b"), ".ipynb_checkpoints/1.png", "__MACOSX/a/1.png"], "12 images"),
    "hidden files": ([*several("a", "b"), "a/._1.png", "b/.DS_Store"], "12 images"),
    "text": ([*several("a", "b"), "a/notes.txt", "b/x.heic"], "left out in .*: 1 .txt, 1 .heic"),
    "loose": ([*several("a", "b"), "loose.png"], "left out: 1 images in .* in no class's folder"),
    "beside splits": ([*several("train/a", "train/b", "test/a"), "more/1.png"], "left out: more/"),
    "nested in a class": (several("a/2023", "a/2024", "b"), "18 images"),
}  # fmt: skip


@pytest.mark.parametrize("case", FOLDERS)
def test_what_is_left_out_is_told(pictures, case):
    import re

    names, message = FOLDERS[case]
    data = load(pictures(*names))
    assert data.classes == ("a", "b")
    assert re.search(message, "\n".join(data.notes)), data.notes


@pytest.mark.skipif(os.name == "nt", reason="links and pipes are made otherwise there")
def test_a_link_to_a_folder_around_it_and_a_pipe_are_left_out(pictures):
    """Images were read forty times, until the path was too long; of the pipe there is no end."""
    folder = pictures(*several("a", "b"))
    (folder / "a" / "again").symlink_to(folder / "a", target_is_directory=True)
    os.mkfifo(folder / "b" / "pipe.png")
    data = load(folder)
    assert data.notes[0].startswith(f"{folder}: 12 images")
    assert f"left out in {folder}: 1 no ending, 1 .png (no images that Pillow reads)" in data.notes
    (folder / "b" / "broken.png").symlink_to(folder / "nothing")
    with pytest.raises(DataError, match=r"broken\.png: cannot be read: .*No such file"):
        load(folder)


NO_FOLDERS = {
    "one class": (several("a"), "every example is of the class a"),
    "no test": (several("train/a", "train/b"), "there is train/, but no test/"),
    "twice": (several("train/a", "val/a", "valid/a", "test/a"), "val/ and valid/ are both a valid"),
    "a class without images": ([*several("a", "b"), "c/x.heic"], "c/ has no image .1 .heic."),
}  # fmt: skip


@pytest.mark.parametrize("case", NO_FOLDERS)
def test_folders_that_cannot_be_used(pictures, case):
    names, message = NO_FOLDERS[case]
    with pytest.raises(DataError, match=message):
        load(pictures(*names))


def test_the_first_of_several_pictures_is_read(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(5):
            frames = [Image.new("RGB", (4, 4), (0, j * 80, i)) for j in range(3)]
            path = tmp_path / name / f"{i}.gif"
            frames[0].save(path, save_all=True, append_images=frames[1:])
    data = load(tmp_path)
    assert "10 of 10 images hold several pictures: the first of each is read" in data.notes
    assert all((x[:, 1] == 0).all() for x, _ in data.splits.values())


def image_table(tmp_path, text, **arguments):
    for i in range(12):
        Image.new("RGB", (4, 4), (20 * i, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "own.csv").write_text(text)
    return TASKS["image_table"](path=str(tmp_path / "own.csv"), **arguments).load(
        tmp_path, generator()
    )


def test_a_table_of_images(tmp_path):
    text = "file,kind,where\n" + "".join(
        f"{i}.png,{'ab'[i % 2]},{('Train', 'val', 'testing')[i // 4]}\n" for i in range(12)
    )
    data = image_table(tmp_path, text, label="kind", split="where")
    assert data.classes == ("a", "b")
    for split, first in (("train", 0), ("valid", 4), ("test", 8)):
        x, y = data.splits[split]
        assert (x[:, 0, 0, 0] // 20).tolist() == [first, first + 1, first + 2, first + 3]
        assert y.tolist() == [0, 1, 0, 1]


def test_several_labels_of_an_image(tmp_path):
    words = ["cat|dog", "cat", "", "dog|bird"]
    text = "file,tags\n" + "".join(f"{i}.png,{words[i % 4]}\n" for i in range(12))
    data = image_table(tmp_path, text, label="tags", kind="multi_label")
    assert data.classes == ("bird", "cat", "dog") and data.outputs == 3
    for x, y in data.splits.values():
        for image, labels in zip(x, y, strict=True):
            of = words[int(image[0, 0, 0]) // 20 % 4]
            assert [name for name, there in zip(data.classes, labels, strict=True) if there] == [
                name for name in data.classes if name in of
            ]
    outputs = torch.where(y > 0, 3.0, -3.0)
    assert data.objective.errors(outputs, y).tolist() == [0.0] * len(y)


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("file,y\n0.png,a\nnone.png,b\n", {}, "line 3: no file"),
        ("file,y\n0.png,a\n0.png,b\n", {}, "is named twice"),
        ("file,y\n0.png,a\n1.png,\n", {}, "line 3: nothing stands there"),
        ("file,y\n0.png,a\n1.png,a\n", {}, "every example is of the class a"),
        ("file,y\n0.png,2\n1.png,0\n", {"kind": "multi_label", "label": ("y",) * 2}, "no 0 or 1"),
        ("file,y\n0.png,a\n1.png,b\n", {"split": "y"}, "'a' is no split"),
    ],
)
def test_tables_of_images_that_cannot_be_used(tmp_path, text, arguments, message):
    with pytest.raises(DataError, match=message):
        image_table(tmp_path, text, **({"label": "y"} | arguments))


# --- properties ---

WORD = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\u2028\u2029\x85"),
    max_size=6,
)
NUMBER = st.one_of(
    st.integers(-(2**40), 2**40).map(str),
    st.floats(-1e6, 1e6, allow_nan=False).map(repr),
)
DELIMITERS = st.sampled_from([",", ";", "\t", "|"])
QUIET = settings(
    max_examples=60, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip


@QUIET
@given(st.lists(st.tuples(WORD, WORD), min_size=1, max_size=12), DELIMITERS, st.booleans(),
       st.sampled_from(["\n", "\r\n"]))  # fmt: skip
def test_no_row_and_no_word_is_lost(tmp_path, rows, delimiter, quote_all, end):
    """Whatever Python's csv module writes comes out again, row by row."""
    import io

    out = io.StringIO()
    quoting = csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL
    writer = csv.writer(out, delimiter=delimiter, lineterminator=end, quoting=quoting)
    writer.writerow(["a", "b"])
    writer.writerows(rows)
    (tmp_path / "own.csv").write_bytes(out.getvalue().encode())
    _, found = rows_of(tmp_path / "own.csv", delimiter=delimiter)
    assert found == rows


@settings(QUIET, max_examples=12)  # each reads nine files
@given(
    st.lists(
        st.tuples(st.one_of(st.none(), NUMBER), st.sampled_from(["red", "blue", "7", "007", ""]),
                  st.booleans(), st.one_of(st.none(), st.dates())),
        min_size=8, max_size=30,
    ),
    DELIMITERS,
)  # fmt: skip
def test_every_format_gives_equal_inputs(tmp_path, rows, delimiter):
    numbers, words, flags, dates = zip(*rows, strict=True)
    frame = pl.DataFrame(
        {
            "number": pl.Series(
                [None if n is None else float(n) for n in numbers], dtype=pl.Float64
            ),
            "word": pl.Series([word or None for word in words], dtype=pl.String),
            "flag": pl.Series(flags, dtype=pl.Boolean),
            "date": pl.Series(dates, dtype=pl.Date),
            "y": [i % 2 for i in range(len(rows))],
        }
    )
    frame.write_csv(tmp_path / "own.csv", separator=delimiter)
    frame.write_parquet(tmp_path / "own.parquet")
    frame.write_ipc(tmp_path / "own.arrow")
    found = []
    for ending in ("csv", "parquet", "arrow"):
        path = tmp_path / f"own.{ending}"
        task = TASKS["table"](
            path=str(path), target="y", kind="classification", delimiter=delimiter,
            dates=("date",), numeric=("number",), categorical=("word",), valid_fraction=0.3,
        )  # fmt: skip
        try:
            found.append(task.load(tmp_path, generator()))
        except DataError as error:
            found.append(str(error).split(": ", 1)[1].split(", line")[0].split(", row")[0])
    if isinstance(found[0], str):
        assert found[1] == found[2] == found[0]
        return
    for data in found[1:]:
        for split, (x, y) in found[0].splits.items():
            torch.testing.assert_close(data.splits[split][0], x)
            assert data.splits[split][1].equal(y)
    # What one format was trained on is applied to any other.
    encodings = [Encoding.of(data.encoding.plain()) for data in found]
    same = encodings[0].read(tmp_path / "own.csv")
    for encoding in encodings:
        for ending in ("csv", "parquet", "arrow"):
            torch.testing.assert_close(encoding.read(tmp_path / f"own.{ending}"), same)
        # So it is by the code that an export carries along.
        with (tmp_path / "own.csv").open(newline="") as file:
            found = plain_rows.encode(csv.DictReader(file, delimiter=delimiter), encoding.plain())
        torch.testing.assert_close(torch.from_numpy(found), same)


@QUIET
@given(st.lists(st.text("0123456789._eE+-", min_size=1, max_size=4), min_size=2, max_size=6,
                unique=True))  # fmt: skip
def test_no_labels_are_merged(tmp_path, words):
    words = [word for word in words if word not in MISSING]
    if len(words) < 2:
        return
    text = "x,y\n" + "".join(f"{i},{word}\n" for word in words for i in range(9))
    data = table(tmp_path / "own.csv", text)
    assert sorted(data.classes) == sorted(words)


def test_compressed_files_are_read_or_refused(tmp_path):
    """A CSV file that gzip wrote is read as it is: polars knows it."""
    (tmp_path / "own.csv").write_bytes(gzip.compress(b"a,b\n1,x\n2,y\n"))
    assert rows_of(tmp_path / "own.csv")[1] == [("1", "x"), ("2", "y")]
