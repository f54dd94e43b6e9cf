"""A run's model on its own splits, on other data and on one's own inputs; nothing of it changes."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
import torch

import metaloss
from metaloss import TASKS, config
from metaloss.errors import DataError
from metaloss.machine import sealed
from metaloss.runs import evaluation
from metaloss.runs.folder import RunFolder
from metaloss.runs.lockstep import Lockstep
from metaloss.runs.run import Run
from tests.helpers import killed_when, tool, train
from tests.small_data import write_own

DIGITS = ("tasks/digits_mlp.gin", "methods/adalfl_letter.gin")
RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder of data and of runs of a few steps."""
    folder = tmp_path_factory.mktemp("evaluate")
    write_own(folder)
    x = RANDOM.normal(100, 20, (60, 4))
    y = x @ np.array([[3.0, -1], [0, 2], [1, 1], [0, 0]]) + 1000
    splits = {"train": slice(40), "test": slice(40, 60)}
    both = {f"x_{k}": x[part] for k, part in splits.items()}
    np.savez(folder / "values.npz", **both, **{f"y_{k}": y[part] for k, part in splits.items()})
    # The same test examples, but other training examples, by which the file's own task scales.
    other = {"x_train": 5 * x[:40], "y_train": 7 * y[:40], "x_test": x[40:], "y_test": y[40:]}
    np.savez(folder / "other_values.npz", **other)
    main = tool("train").main
    arrays = ("Runner.task = @tasks.arrays()",)
    mlp = ("Runner.backbone = @backbones.mlp", "backbones.mlp.hidden = (8,)")
    steps = (
        "Runner.steps = 6",
        "meta_optimizers.offline_unrolled.steps = 2",
        "meta_optimizers.offline_unrolled.scale_steps = 2",
    )
    for name, files, bindings in (
        ("digits", DIGITS, ()),
        ("values", ("tasks/digits_mlp.gin", "methods/baseline.gin"),
         (*arrays, "tasks.arrays.path = 'values.npz'")),
        ("pixels", ("own_data/arrays.gin", "methods/baseline.gin"),
         ("Runner.backbone = @backbones.allcnn", "Runner.memory_format = 'channels_last'")),
        ("pictures", ("own_data/image_folder.gin", "methods/baseline.gin"),
         (*mlp, "tasks.image_folder.size = 8")),
        ("table", ("own_data/table.gin", "methods/baseline.gin"), ()),
        ("heating", ("own_data/table.gin", "methods/baseline.gin"),
         ("tasks.table.target = 'heating'", "tasks.table.kind = 'classification'",
          "tasks.table.missing = ('?',)")),
    ):  # fmt: skip
        arguments = [f"--gin_file={file}" for file in files]
        arguments += [f"--gin_param={binding}" for binding in (*bindings, *steps)]
        arguments += [f"--output_dir={folder / 'runs' / name}", f"--data_dir={folder}"]
        assert main([*arguments, "--device=cpu"]) == 0
    return folder


@pytest.fixture
def evaluate(here, capsys):
    """Runs tools/evaluate.py: run, arguments -> exit code, standard output, standard error."""
    main = tool("evaluate").main

    def run(name, *arguments):
        capsys.readouterr()
        code = main([
            str(here / "runs" / name), f"--data_dir={here}", "--device=cpu", *map(str, arguments)
        ])  # fmt: skip
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def refused(evaluate, tmp_path):
    """Asserts exit code 2, one line and no new file; -> what follows "error: "."""

    def run(name, *arguments):
        before = set(tmp_path.rglob("*"))
        code, out, err = evaluate(name, *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert set(tmp_path.rglob("*")) == before
        return err.removeprefix("error: ").strip()

    return run


def saved(here, name):
    return json.loads((here / "runs" / name / "result.json").read_text())


def load(here, name):
    return metaloss.load_model(here / "runs" / name, data_dir=here)


# --- evaluation ---


@pytest.mark.parametrize("name", ["digits", "values", "pixels", "pictures", "table", "heating"])
def test_the_test_split_gives_the_results_own_numbers(here, evaluate, tmp_path, name):
    """Bit for bit, and nothing in the run folder is touched."""
    files = [path for path in (here / "runs" / name).rglob("*") if path.is_file()]
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}
    code, out, err = evaluate(name, f"--output={tmp_path / 'numbers.json'}")
    assert (code, err) == (0, "")
    found, result = json.loads((tmp_path / "numbers.json").read_text()), saved(here, name)
    assert found["value"] == result["test"]
    metrics = {**found, found["metric"]: found["value"]}
    assert {key: metrics[key] for key in result["test_metrics"]} == result["test_metrics"]
    for key in ("task", "backbone", "method", "seed", "metric", "steps"):
        assert found[key] == result[key]
    assert (found["split"], found["step"]) == ("test", 6)
    assert f"step 6 of 6: {result['task']}, test {found['metric']} {found['value']} " in out
    files = [path for path in (here / "runs" / name).rglob("*") if path.is_file()]
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files} == before


def test_the_validation_split_is_the_runs_own(here, evaluate):
    lines = (here / "runs/digits/metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row.get("split") == "valid"]
    code, out, _ = evaluate("digits", "--split=valid")
    assert code == 0 and f"valid error_rate {rows[-1]['error_rate']} (144 examples" in out
    assert "(1293 examples" in evaluate("digits", "--split=train")[1]


def test_a_stopped_run_is_evaluated_where_it_stands(here, evaluate):
    """Its model is that of the checkpoint, and it says at which step that is."""
    text = config.load(("tasks/digits_mlp.gin", "methods/baseline.gin")).text
    folder = RunFolder(here / "runs" / "stopped")
    plan = config.load(("tasks/digits_mlp.gin", "methods/baseline.gin")).build()
    run = Run(plan, 3, torch.device("cpu"), here, folder, text)
    run.stop = True
    with folder.held():
        folder.begin(text, {"seed": 3})
    lockstep = Lockstep([run])
    lockstep.restore()
    assert lockstep.execute()[0]["status"] == "stopped"
    code, out, _ = evaluate("stopped")
    expected = evaluation.examine(run.state.model, run.state.data, "test").numbers
    assert code == 0
    assert f"step 1 of 1000: digits, test error_rate {expected['error_rate']} (360 exam" in out
    assert load(here, "stopped").evaluate() == expected


def test_other_data_is_scaled_as_the_training_was(here, evaluate):
    """The same examples give the same errors, whatever stands beside them in the file."""
    own = load(here, "values")
    numbers = own.evaluate("test")
    _, other = own.other_task(["tasks.arrays.path = 'other_values.npz'"], here)
    for key, value in own.evaluate("test", other).items():
        assert value == pytest.approx(numbers[key], rel=1e-5)
    plain = TASKS["arrays"](path="other_values.npz").load(here, torch.Generator())
    assert not plain.splits["test"][0].allclose(own.data.splits["test"][0], atol=0.1)
    code, out, _ = evaluate("values", "--gin_param=tasks.arrays.path = 'other_values.npz'")
    assert code == 0 and "(20 examples" in out


@pytest.mark.parametrize("standardize", [True, False])
def test_other_images_are_normalised_as_the_trainings_were(here, standardize):
    own = load(here, "pixels")
    _, other = own.other_task([f"tasks.arrays.standardize = {standardize}"], here)
    assert own.evaluate("test", other) == own.evaluate("test")
    (x, _), *_ = other.in_order("test", 5)
    (mine, _), *_ = own.data.in_order("test", 5)
    assert x.equal(mine)


def test_another_task_of_the_same_shape(here, evaluate, tmp_path):
    path = tmp_path / "digits.npz"
    data = load(here, "digits").data
    pixels = {split: data.raw(split) for split in ("train", "test")}
    arrays = {f"x_{split}": x[:, 0].numpy() for split, x in pixels.items()}
    arrays |= {f"y_{split}": data.splits[split][1].numpy() for split in pixels}
    np.savez(path, **arrays)
    code, out, err = evaluate(
        "digits", "--gin_param=Runner.task = @tasks.arrays()",
        f"--gin_param=tasks.arrays.path = '{path}'", f"--output={tmp_path / 'found.json'}",
    )  # fmt: skip
    assert (code, err) == (0, "") and "arrays, test error_rate" in out
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["task"], found["value"]) == ("arrays", saved(here, "digits")["test"])


def test_what_other_data_cannot_be(here, refused):
    line = refused("digits", "--gin_param=Runner.task = @tasks.diabetes()")
    assert line == "the model's inputs: [1, 8, 8], but the other data set's: [10]"
    line = refused("digits", "--gin_param=backbones.mlp.hidden = (5,)")
    assert line == "backbones.mlp.hidden belongs to the trained model: only its task can change"
    assert refused("digits", "--gin_param=tasks.kmnist.valid_fraction = 0.2").startswith(
        "nobody reads: tasks.kmnist.valid_fraction"
    )
    line = refused("pixels", "--gin_param=tasks.arrays.path = 'values.npz'",
                   "--gin_param=tasks.arrays.valid_keys = None")  # fmt: skip
    assert line == "the model's inputs: [3, 32, 32], but the other data set's: [4]"


def test_a_table_with_other_categories_is_no_other_data_set(here, refused, tmp_path):
    text = (here / "houses.csv").read_text()
    (tmp_path / "renamed.csv").write_text(text.replace("gas", "wood"))
    line = refused("table", f"--gin_param=tasks.table.path = '{tmp_path / 'renamed.csv'}'")
    assert line.startswith("the model's inputs have 'heating =gas' where the other data set's 'hea")


# --- predictions ---


def test_predictions_are_those_of_the_evaluation(here, evaluate, tmp_path):
    """Raw images of 0..16 in any layout: the share of wrong classes is the test's error rate."""
    data = load(here, "digits").data
    raw, labels = data.raw("test").numpy(), data.splits["test"][1].numpy()
    found = []
    for i, x in enumerate((raw, raw[:, 0], raw.transpose(0, 2, 3, 1), raw.astype(np.uint8))):
        np.savez(tmp_path / f"{i}.npz", x=x, unread=np.zeros(2))
        output = tmp_path / f"found{i}.npz"
        code, out, err = evaluate("digits", f"--predict={tmp_path / f'{i}.npz'}",
                                  f"--output={output}")  # fmt: skip
        assert (code, err) == (0, "") and "360 predictions in" in out
        found.append(np.load(output))
        assert set(found[-1].files) == {"probabilities", "predicted"}
        np.testing.assert_array_equal(found[-1]["probabilities"], found[0]["probabilities"])
    probabilities, predicted = found[0]["probabilities"], found[0]["predicted"]
    assert (predicted != labels).mean() == pytest.approx(saved(here, "digits")["test"], abs=1e-12)
    assert probabilities.shape == (360, 10) and predicted.dtype == np.int64
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(probabilities.argmax(1), predicted)


@pytest.mark.parametrize("name", ["pixels", "pictures"])
def test_bytes_are_normalised_as_the_trainings_were(here, name, tmp_path, evaluate):
    model = load(here, name)
    x, labels = model.data.splits["test"]
    np.savez(tmp_path / "x.npz", x_test=x.permute(0, 2, 3, 1).numpy(), other=np.zeros(3))
    code, *_ = evaluate(name, f"--predict={tmp_path / 'x.npz'}", f"--output={tmp_path / 'y.csv'}")
    assert code == 0
    with (tmp_path / "y.csv").open() as file:
        header, *rows = csv.reader(file)
    wrong = np.mean([int(row[0]) != label for row, label in zip(rows, labels, strict=True)])
    assert wrong == pytest.approx(saved(here, name)["test"], abs=1e-12)
    if name == "pictures":
        assert header == ["predicted", "class", "probability_cats", "probability_dogs"]
        assert all(row[1] == ("cats", "dogs")[int(row[0])] for row in rows)
    else:
        assert header == ["predicted", *(f"probability_{c}" for c in range(10))]


def test_values_come_in_the_targets_own_unit(here, evaluate, tmp_path):
    arrays = np.load(here / "values.npz")
    np.savez(tmp_path / "x.npz", mine=arrays["x_test"])  # the only array
    for ending in ("npz", "csv"):
        output = f"--output={tmp_path / f'y.{ending}'}"
        assert evaluate("values", f"--predict={tmp_path / 'x.npz'}", output)[0] == 0
    found = np.load(tmp_path / "y.npz")["predictions"]
    mae, rmse = (saved(here, "values")["test_metrics"][key] for key in ("mae", "rmse"))
    assert np.abs(found - arrays["y_test"]).mean() == pytest.approx(mae, rel=1e-4)
    assert np.square(found - arrays["y_test"]).mean() ** 0.5 == pytest.approx(rmse, rel=1e-4)
    header, *rows = (tmp_path / "y.csv").read_text().splitlines()
    assert header == "prediction_0,prediction_1"
    np.testing.assert_array_equal([list(map(float, row.split(","))) for row in rows], found)


def test_rows_of_a_table_need_no_target(here, evaluate, tmp_path):
    """The columns may stand in another order; each row is predicted as in the training's file."""
    with (here / "houses.csv").open() as file:
        rows = list(csv.DictReader(file))
    columns = ["heating", "rooms", "area", "new"]
    lines = [",".join(columns)] + [",".join(row.get(c, "7") for c in columns) for row in rows]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    output = tmp_path / "prices.csv"
    code, _, err = evaluate("table", f"--predict={tmp_path / 'rows.csv'}", f"--output={output}")
    assert (code, err) == (0, "")
    header, *prices = output.read_text().splitlines()
    assert header == "prediction"
    model = load(here, "table")
    every = map(tuple, model.data.encoding.read(here / "houses.csv").tolist())
    found = dict(zip(every, map(float, prices), strict=True))
    labels = model.data.targets.undo(model.data.splits["test"][1]).flatten().tolist()
    raw = model.data.raw("test").round(decimals=4)
    found = {tuple(np.round(row, 4)): price for row, price in found.items()}
    errors = [found[tuple(x)] - y for x, y in zip(raw.tolist(), labels, strict=True)]
    mae = saved(here, "table")["test_metrics"]["mae"]
    assert np.abs(errors).mean() == pytest.approx(mae, rel=1e-5)


def test_classes_of_a_table_have_names(here, evaluate, tmp_path):
    output = tmp_path / "found.npz"
    evaluate("heating", f"--predict={here / 'houses.csv'}", f"--output={output}")
    found = np.load(output)
    assert found["classes"].tolist() == ["", "electric", "gas", "oil"]
    assert found["probabilities"].shape == (60, 4)


@pytest.mark.parametrize("task", ["crime", "california", "diabetes", "mnist", "fashion_mnist"])
def test_shipped_tasks_keep_how_raw_inputs_are_prepared(few_examples, task):
    data = TASKS[task]().load(few_examples, torch.Generator().manual_seed(0))
    for split, (stored, _) in data.splits.items():
        prepared = data.preparation.prepare(data.raw(split))
        torch.testing.assert_close(prepared, stored, rtol=1e-5, atol=1e-5)
    if data.targets is not None:
        labels = torch.cat([data.targets.undo(y) for _, y in data.splits.values()])
        assert labels.max() - labels.min() == pytest.approx(data.unit.item(), rel=1e-6)


def test_a_task_that_says_nothing_of_its_preparation_is_refused(here):
    from dataclasses import replace

    model = load(here, "digits")
    silent = replace(model, about=replace(model.about, inputs=None))
    with pytest.raises(DataError, match="does not say how raw inputs become the model's"):
        silent.predict(torch.zeros(1, 1, 8, 8))


# --- what cannot be used ---

NAN = np.zeros((3, 8, 8))
NAN[2, 1, 1] = np.nan

BAD_INPUTS = {
    "shape": ("digits", {"x": np.zeros((5, 9, 9))}, "x is float64 [5, 9, 9], but the model takes "
              "[n, 1, 8, 8] or [n, 8, 8, 1] or [n, 8, 8]"),
    "no rows": ("values", {"x": np.zeros((0, 4))}, "x is float64 [0, 4], but the model takes [n"),
    "scalar": ("values", {"x": np.array(1.0)}, "x is float64 [], but the model takes [n, 4]"),
    "nan": ("digits", {"x": NAN}, "x, row 2: nan is no finite number"),
    "words": ("values", {"x": np.full((2, 4), "a")}, "x is <U1: give numbers"),
    "two": ("digits", {"a": NAN, "b": NAN}, "no array x · it holds: a, b; see --key"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_inputs_that_cannot_be_used(refused, tmp_path, case):
    name, arrays, message = BAD_INPUTS[case]
    np.savez(tmp_path / "bad.npz", **arrays)
    output = f"--output={tmp_path / 'found.npz'}"
    line = refused(name, f"--predict={tmp_path / 'bad.npz'}", output)
    assert line.startswith(f"{tmp_path / 'bad.npz'}: {message}")


def test_bytes_and_floats_are_not_taken_for_each_other(here, refused, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 32, 32, 3)))
    line = refused("pixels", f"--predict={tmp_path / 'x.npz'}", f"--output={tmp_path / 'y.npz'}")
    assert line == "inputs are torch.float64, but the run's images are bytes (uint8)"
    with pytest.raises(DataError, match=r"float32 \[2, 3, 8, 8\], but the model takes \[n, 3, 32"):
        load(here, "pixels").predict(torch.zeros(2, 3, 8, 8))


def test_a_key_is_looked_up(refused, evaluate, tmp_path):
    np.savez(tmp_path / "x.npz", x=NAN[:2], images=NAN[:1])
    arguments = f"--predict={tmp_path / 'x.npz'}", f"--output={tmp_path / 'found.csv'}"
    line = refused("digits", *arguments, "--key=image")
    assert line.endswith(
        ": no array image; did you mean 'images'? · it holds: x, images; see --key"
    )
    assert "1 predictions" in evaluate("digits", *arguments, "--key=images")[1]


def test_rows_that_cannot_be_used(here, refused, tmp_path):
    output, path = f"--output={tmp_path / 'found.csv'}", tmp_path / "rows.csv"
    path.write_text("area,room,heating\n30,2,gas\n")
    line = refused("table", f"--predict={path}", output)
    assert line.endswith("no column 'rooms'; did you mean 'room'? · it has: area, room, heating")
    path.write_text("area,rooms,heating\n30,2,gas\n30,many,gas\n")
    line = refused("table", f"--predict={path}", output)
    assert line == f"{path}: column 'rooms', line 3: 'many' is no number"
    line = refused("table", f"--predict={here / 'values.npz'}", output)
    assert line.endswith("the run's rows are a table's: give a CSV, Parquet or Arrow file")
    line = refused("values", f"--predict={path}", output)
    assert line.endswith("the run's inputs are arrays: give an .npz file")


def test_an_output_is_never_lost(here, refused, evaluate, tmp_path):
    output = tmp_path / "found.json"
    output.write_text("mine")
    assert refused("digits", f"--output={output}").endswith("--overwrite replaces it")
    assert output.read_text() == "mine"
    assert evaluate("digits", f"--output={output}", "--overwrite")[0] == 0
    assert json.loads(output.read_text())["split"] == "test"
    result = here / "runs/digits/result.json"
    assert "stays as it is" in refused("digits", f"--output={result}", "--overwrite")
    rows = tmp_path / "rows.csv"
    rows.write_text("area,rooms,heating\n30,2,gas\n")
    line = refused("table", f"--predict={rows}", f"--output={rows}", "--overwrite")
    assert "stays as it is" in line


def test_arguments_that_do_not_go_together(refused, tmp_path):
    assert refused("digits", "--key=x") == "--key is of the arrays in --predict FILE"
    assert "leave out --split" in refused("digits", "--predict=x.npz", "--split=test")
    assert refused("digits", "--predict=x.npz").startswith("--predict needs --output FILE")
    assert "end in .json" in refused("digits", f"--output={tmp_path / 'found.csv'}")
    assert refused("digits", "--split=tset") == (
        "no split 'tset'; did you mean 'test'? · there are: train, valid, test"
    )
    output = f"--output={tmp_path / 'found.npz'}"
    assert refused("digits", f"--predict={tmp_path / 'none.npz'}", output).startswith("no file ")


def test_runs_that_have_no_model(here, refused):
    assert "is no run folder" in refused("")
    folder = here / "runs" / "young"
    folder.mkdir()
    for name in ("config.gin", "meta.json"):
        (folder / name).write_bytes((here / "runs/digits" / name).read_bytes())
    assert "has no checkpoint yet" in refused("young")
    whole = (here / "runs/digits/checkpoint.pt").read_bytes()
    (folder / "checkpoint.pt").write_bytes(whole[: len(whole) // 2])
    assert "is no whole checkpoint" in refused("young")
    content = sealed.load(here / "runs/digits/checkpoint.pt")
    content["state"]["init_steps"] = 1
    sealed.save(folder / "checkpoint.pt", content)
    assert "is at meta-step 1 of 2 of its initialisation" in refused("young")
    del content["state"]["init_steps"]
    sealed.save(folder / "checkpoint.pt", content)
    assert "of another version" in refused("young")
    content["config"] = ""
    sealed.save(folder / "checkpoint.pt", content)
    assert "is of another configuration" in refused("young")


def test_a_damaged_checkpoint_gives_way_to_the_one_before(here, tmp_path):
    folder = tmp_path / "unfinished"
    shutil.copytree(here / "runs" / "digits", folder)
    (folder / "model.json").unlink()
    path = folder / "checkpoint.pt"
    whole = path.read_bytes()
    content = sealed.load(path)
    sealed.save(path, content)  # there are two now, and equal
    path.write_bytes(whole[:-1])
    with pytest.warns(UserWarning) as caught:
        model = metaloss.load_model(folder, data_dir=here)
    assert [str(warning.message) for warning in caught] == [
        f"{path} is no whole checkpoint (its checksum does not match): the model is of the one "
        "before"
    ]
    assert model.step == 6


def test_a_run_knows_where_its_data_were(tmp_path, monkeypatch):
    """It is resumed and evaluated with them, wherever one stands; given ones go before."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("METALOSS_DATA", raising=False)
    draw = np.random.default_rng(0)
    arrays = {f"x_{s}": draw.random((40, 6), np.float32) for s in ("train", "test")}
    labels = {f"y_{s}": np.arange(40) % 4 for s in ("train", "test")}
    (tmp_path / "elsewhere").mkdir()
    np.savez(tmp_path / "elsewhere" / "own.npz", **arrays, **labels)
    folder, task = tmp_path / "run", ("Runner.task = @tasks.arrays()",)
    extra = (*task, "tasks.arrays.path = 'own.npz'", "tasks.arrays.batch_size = 8")
    with killed_when(lambda state: state.steps == 9):
        train(folder, "baseline", extra, data_dir="elsewhere")
    assert train(folder, "baseline", extra, resume=True) == 0
    monkeypatch.chdir("/")
    assert metaloss.load_model(folder).evaluate("valid")["loss"] > 0
    with pytest.raises(DataError, match=r"no file .*nowhere/own\.npz"):
        metaloss.load_model(folder, data_dir=tmp_path / "nowhere").evaluate("valid")
    shutil.move(tmp_path / "elsewhere", tmp_path / "moved")
    with pytest.raises(DataError, match=r"no file data/own\.npz"):
        metaloss.load_model(folder).evaluate("valid")
