"""tools/data.py: what is found in one's own data before anybody trains on it."""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers import tool


@pytest.fixture
def look(capsys, tmp_path):
    """Runs tools/data.py on a CSV file's text: -> exit code, output, standard error."""

    def run(text, *bindings, target="y", kind="classification"):
        (tmp_path / "own.csv").write_text(text)
        bindings = [
            "Runner.task = @tasks.table()", "tasks.table.path = 'own.csv'",
            f"tasks.table.target = '{target}'", f"tasks.table.kind = '{kind}'", *bindings,
        ]  # fmt: skip
        code = tool("data").main(
            [f"--gin_param={binding}" for binding in bindings] + [f"--data_dir={tmp_path}"]
        )
        return code, *capsys.readouterr()

    return run


RANDOM = np.random.default_rng(0)
NOISE = RANDOM.normal(size=300)  # no number twice
LABELS = ["yes" if v else "no" for v in RANDOM.integers(2, size=300)]


def lines(**columns):
    names = ",".join(columns)
    return names + "\n" + "".join(",".join(map(str, r)) + "\n" for r in zip(*columns.values()))  # noqa: B905


def test_sound_data_has_nothing_to_look_at(look):
    code, out, err = look(lines(x=NOISE, y=LABELS))
    assert (code, err) == (0, "") and "look:" not in out
    assert "300 rows" in out and "2 classes: " in out and "train 216, valid 24, test 60" in out


@pytest.mark.parametrize(
    ("columns", "finding"),
    [
        (
            {"leak": [f"is {word}" for word in LABELS]},
            "column 'leak' alone gives 100.0% of the lab",
        ),
        (
            {"leak": [len(word) for word in LABELS]},
            "column 'leak' alone gives 100.0% of the labels",
        ),
        ({"same": ["x"] * 300}, "column 'same' is the same in every training row"),
        ({"row": range(300)}, "column 'row' numbers the rows: is it a name, to be ignored?"),
    ],
)
def test_suspicious_columns_are_named(look, columns, finding):
    code, out, _ = look(lines(x=NOISE, **columns, y=LABELS))
    assert code == 0 and f"look: {finding}" in out
    assert out.count("look:") == 1


def test_rows_in_two_splits_are_counted(look):
    _, out, _ = look(lines(x=np.repeat(NOISE[:30], 10), y=np.repeat(LABELS[:30], 10)))
    assert "test examples stand in train too" in out and "training examples stand there" in out


def test_rare_and_large_classes_are_named(look):
    _, out, _ = look(lines(x=NOISE, y=["rare"] * 4 + ["usual"] * 296))
    assert "1 classes have fewer than 10 training examples (rare)" in out
    assert "98.7% of all examples are of the class usual" in out


def test_a_target_that_a_column_follows_is_named(look):
    text = lines(x=NOISE, twice=2 * NOISE + 1, y=NOISE)
    _, out, _ = look(text, kind="regression")
    assert "column 'twice' follows the target (correlation 1.000)" in out


def test_what_cannot_be_read_ends_with_one_line(look):
    code, out, err = look('x,y\n1,"a\n2,b\n')
    assert (code, out) == (2, "") and err.count("\n") == 1 and "line 2: a quote opens here" in err
