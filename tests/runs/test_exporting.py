"""Exports give what the model gives, or are not written."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import metaloss
from metaloss import BACKBONES
from metaloss.errors import InputError
from metaloss.runs.folder import RunFolder
from metaloss.runs.precision import process_left_as_it_was
from metaloss.runs.trained import exporting, model_card
from metaloss.runs.trained.exporting import export
from metaloss.runs.trained.model import TrainedModel
from metaloss.tasks.base import CLASSIFICATION, MULTI_LABEL, REGRESSION, Data
from metaloss.tasks.preparation.images import Images, by_channel
from metaloss.tasks.preparation.scaling import Scaling
from tests.helpers import ROOT, tool, train

RANDOM = torch.Generator().manual_seed(0)


def trained(model, data):
    return TrainedModel(model.eval(), data, RunFolder(Path("nowhere")), 0, 3, 3, "float32")


def of_pictures(backbone, channels, side):
    """A model of bytes, drawn from seed 0, and as many pictures as it is checked on."""
    raw = torch.randint(256, (20, channels, side, side), generator=RANDOM, dtype=torch.uint8)
    labels = torch.arange(20) % 4
    images = Images(by_channel((0.4,) * channels), by_channel((0.2,) * channels))
    data = Data(dict.fromkeys(("train", "valid", "test"), (raw, labels)), 4, CLASSIFICATION, images,
                classes=("a", "b", "c", "d"))  # fmt: skip
    torch.manual_seed(0)
    model = BACKBONES[backbone](input_shape=(channels, side, side), outputs=4)
    # So hot that no probability is 0 or 1, where a difference could not be seen.
    found = replace(trained(model, data), temperature=100.0)
    assert found.predict(raw).values.amax() < 0.99
    return found


def of_a_table(model=None):
    """A model of columns whose numbers are far from 0, with targets in thousands."""
    scaling = Scaling(torch.tensor([1e5, -3.0, 0.5]).double(), torch.tensor([1e2, 2, 1]).double())
    targets = Scaling(torch.tensor([2e5, 0.0]).double(), torch.tensor([5e5, 1.0]).double())
    x = scaling.prepare(scaling.undo(torch.randn(20, 3, generator=RANDOM)))
    data = Data(dict.fromkeys(("train", "valid", "test"), (x, torch.zeros(20, 2))), 2, REGRESSION,
                inputs=scaling, targets=targets, target_names=("price", "tax"))  # fmt: skip
    torch.manual_seed(0)
    return trained(model or BACKBONES["mlp"](input_shape=(3,), outputs=2, hidden=(8,)), data)


def by_onnxruntime(path, raw):
    """What it gives, its input's and output's names, and the words kept with it."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (given,), (gives,) = session.get_inputs(), session.get_outputs()
    found = session.run(None, {given.name: raw.numpy()})[0]
    words = session.get_modelmeta().custom_metadata_map
    return torch.from_numpy(found), (given.name, gives.name), words


def by_torch(path, raw):
    return torch.export.load(path).module()(raw)


def test_a_model_of_a_table(tmp_path):
    """On other numbers of rows than it was made with."""
    model = of_a_table()
    raw, unit = model.data.raw("test", 11), model.about.unit
    assert "by 0 at most, on 20 validation" in export(model, tmp_path / "m.pt2", "torch_export")
    found, expected = by_torch(tmp_path / "m.pt2", raw), model.predict(raw).values
    assert ((found - expected) / unit).abs().max() < 1e-6


@pytest.mark.full  # of the exporter to ONNX seconds; torch.export goes the same way
def test_a_model_of_a_table_in_onnx(tmp_path):
    model = of_a_table()
    raw, unit = model.data.raw("test", 11), model.about.unit
    assert re.search(r"by \S+ at most, on 20 valid", export(model, tmp_path / "m.onnx", "onnx"))
    found, names, words = by_onnxruntime(tmp_path / "m.onnx", raw)
    assert ((found - model.predict(raw).values) / unit).abs().max() < 1e-6
    assert names == ("inputs", "values") and json.loads(words["targets"]) == ["price", "tax"]
    assert by_onnxruntime(tmp_path / "m.onnx", raw[:1])[0].shape == (1, 2)


#: Columns of every kind, written as few files have all of them: a missing value of each, other
#: words than the training's, dates with and without a time and a zone.
WORDS = {
    "area": ("12,5 %", "3.000,25 %", "", "n.a.", "-7 %"),
    "grade": ("low", "high", "mid", "?", "low"),
    "built": ("2001-02-03", "1999-12-31 23:59:30.5", "2020-06-01T12:00Z", "2020-06-01 12:00+02:30",
              ""),
    "rooms": ("1", "2", "2.0", "02", "3"),
    "colour": ("red", "blue", "green", "", "grey"),
}  # fmt: skip
ROWS_ALONE = """
import csv, sys
import numpy, torch
from model import ENCODING, encode
assert "metaloss" not in sys.modules
with open("rows.csv", newline="") as file:
    rows = list(csv.DictReader(file, delimiter=";"))
graph = torch.export.load("model.pt2").module()
with torch.no_grad():
    numpy.save("found.npy", graph(torch.from_numpy(encode(rows, ENCODING))))
try:
    encode([{**rows[0], "area": "twelve"}], ENCODING)
except ValueError as error:
    print(error)
"""


@pytest.mark.full  # a process of its own, and torch's compiler
def test_an_export_takes_rows_where_there_is_no_metaloss(tmp_path):
    lines = [";".join([*WORDS, "price"])]
    for i in range(60):
        cells = [
            words[(i * (k % 4 + 1) + k) % (4 if k == 4 else 5)]
            for k, words in enumerate(WORDS.values())
        ]
        lines.append(";".join([*cells, str(i * 1000)]))
    (tmp_path / "houses.csv").write_text("\n".join(lines) + "\n")
    asked = (
        "Runner.steps = 3", "Runner.task = @tasks.table()", "tasks.table.path = 'houses.csv'",
        "tasks.table.target = 'price'", "tasks.table.kind = 'regression'",
        "tasks.table.delimiter = ';'", "tasks.table.decimal = ','", "tasks.table.thousands = '.'",
        "tasks.table.percent = True", "tasks.table.ordered = {'grade': ('low', 'mid', 'high')}",
        "tasks.table.dates = ('built',)", "tasks.table.categorical = ('rooms',)",
        "tasks.table.max_categories = 3",
    )  # fmt: skip
    run, alone = tmp_path / "run", tmp_path / "alone"
    assert train(run, "baseline", asked, data_dir=str(tmp_path)) == 0
    model = metaloss.load_model(run)
    alone.mkdir()
    said = export(model, alone / "model.pt2", "torch_export")
    assert said.endswith(
        f"rows become its inputs by encode(rows, ENCODING) of {alone / 'model.py'}"
    )
    rows = [";".join(WORDS), *(";".join(cells) for cells in zip(*WORDS.values(), strict=True))]
    (alone / "rows.csv").write_text("\n".join(rows) + "\n")
    done = subprocess.run(
        [sys.executable, "-c", ROWS_ALONE], cwd=alone, capture_output=True, text=True, check=True
    )
    assert done.stdout == "row 0, area: 'twelve' is no number\n"
    with pytest.warns(UserWarning, match="no category of the training"):
        expected = model.predict(alone / "rows.csv").values
    np.testing.assert_allclose(np.load(alone / "found.npy"), expected, rtol=1e-6)
    card = re.findall(r"```python\n(.*?)```", (run / "README.md").read_text(), re.S)
    names: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(run)
        exec(card[1], names)
        exec(card[2], names)
    with (alone / "rows.csv").open(newline="") as file:
        raw = names["encode"](
            csv.DictReader(file, delimiter=";"), names["about"]["data"]["encoding"]
        )
    np.testing.assert_allclose(names["predict"](torch.from_numpy(raw)), expected, rtol=1e-6)


@pytest.mark.full  # of torch's compiler seconds each; the table's model is the proof
@pytest.mark.parametrize("case", [("lenet5", 1, 28), ("resnet18", 3, 32), ("timm", 3, 32)])
def test_models_of_pictures(case, tmp_path, monkeypatch):
    backbone, channels, side = case
    if backbone == "timm":
        recipe = BACKBONES["timm"]
        monkeypatch.setitem(BACKBONES._components, "timm",
                            lambda **sizes: recipe(name="resnet10t", **sizes))  # fmt: skip
    model = of_pictures(backbone, channels, side)
    raw = torch.randint(256, (7, channels, side, side), generator=RANDOM, dtype=torch.uint8)
    expected = model.predict(raw).values
    for format, path in (("onnx", tmp_path / "m.onnx"), ("torch_export", tmp_path / "m.pt2")):
        export(model, path, format)
        again = by_torch(path, raw) if format == "torch_export" else by_onnxruntime(path, raw)[0]
        assert (again - expected).abs().max() < 1e-6
    assert json.loads(by_onnxruntime(tmp_path / "m.onnx", raw)[2]["classes"]) == list("abcd")


@pytest.mark.parametrize("left", ["ieee", "tf32"])
def test_a_process_that_was_left_in_two_precisions(left, tmp_path):
    """torch.export refuses one where convolutions and recurrent layers differ; it stays so."""
    cudnn = torch.backends.cudnn
    with process_left_as_it_was():
        cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = left, "none"
        export(of_a_table(), tmp_path / "m.pt2", "torch_export")
        assert (cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision) == (left, "none")


def test_several_labels_at_once(tmp_path):
    model = of_pictures("logistic", 1, 4)
    about = replace(model.about, objective=MULTI_LABEL)
    model = trained(model.model, about)
    export(model, tmp_path / "m.pt2", "torch_export")
    raw = model.data.raw("test")
    assert by_torch(tmp_path / "m.pt2", raw).allclose(model.predict(raw).values)


# --- what is not written ---


class Noisy(nn.Linear):
    """Something else each time."""

    def forward(self, x):
        return super().forward(x) + torch.rand(x.shape[0], 2)


class Deciding(nn.Linear):
    """Looks at the numbers to decide what to do."""

    def forward(self, x):
        return super().forward(x) if x.sum().item() > 0 else super().forward(-x)


def test_an_export_that_is_another_model_is_not_written(tmp_path):
    with pytest.raises(InputError, match=r"is not the model: it differs by 0\.\d+ on 20 valid"):
        export(of_a_table(Noisy(3, 2)), tmp_path / "m.pt2", "torch_export")
    with pytest.raises(InputError, match="torch cannot export this model as torch_export: ") as e:
        export(of_a_table(Deciding(3, 2)), tmp_path / "m.pt2", "torch_export")
    assert "\n" not in str(e.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"\({package} is not there\): pip install 'metaloss\[o"):
        export(of_a_table(), tmp_path / "m.onnx", "onnx")


# --- the command ---


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exporting") / "run"
    asked = ("Runner.steps = 3", "Runner.ema = 0.5", "Runner.backbone = @backbones.squeezenet")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    labels = np.arange(40) % 2
    np.savez(folder.parent / "p.npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    task = ("Runner.task = @tasks.arrays()", "tasks.arrays.path = 'p.npz'")
    assert train(folder, "baseline", (*asked, *task), data_dir=str(folder.parent)) == 0
    return folder


def test_a_folder_of_one_kind_of_weights(run, tmp_path, capsys):
    asked = [str(run), "--format=safetensors", f"--output={tmp_path / 'mean'}", "--weights=average"]
    assert tool("export").main(asked) == 0
    assert capsys.readouterr().out.startswith(
        f"{run}, step 3 of 3: {tmp_path / 'mean'}: model.json"
    )
    mean = metaloss.load_model(run, weights="average").model.state_dict()
    again = metaloss.load_model(tmp_path / "mean")
    assert all(value.equal(mean[name]) for name, value in again.model.state_dict().items())
    assert again.step == 3
    assert tool("export").main(asked) == 2
    assert "is there already: --overwrite replaces it" in capsys.readouterr().err
    assert tool("export").main([str(run), "--format=safetensors", f"--output={run}",
                                "--overwrite"]) == 2  # fmt: skip
    assert "stays as it is" in capsys.readouterr().err


def test_what_the_command_refuses(run, tmp_path, capsys):
    for words, line in (
        (["--format=onnx", f"--output={tmp_path / 'm.pt2'}"], "let its name end in .onnx"),
        (["--format=onnx", f"--output={tmp_path / 'no' / 'm.onnx'}"], "there is no folder"),
        (["--format=onnx", f"--output={tmp_path / 'm.onnx'}", "--weights=last"], "no last weights"),
    ):
        assert tool("export").main([str(run), *words]) == 2
        err = capsys.readouterr().err
        assert line in err and err.count("\n") == 1


@pytest.mark.full  # of torch's compiler seconds
def test_the_cards_snippet_runs_an_export(run, monkeypatch, capsys):
    """Where the backbone is no chain of torch's layers; the check is on made-up inputs."""
    card = (run / "README.md").read_text()
    _, without = re.findall(r"```python\n(.*?)```", card, re.S)
    assert "metaloss" not in without
    command = re.search(r"`metaloss export \. (.*?)`", card)[1].split()
    monkeypatch.chdir(run)
    assert tool("export").main([".", *command, "--data_dir=nowhere"]) == 0
    out = capsys.readouterr().out
    assert "on 64 made-up inputs, as there are no data (no file nowhere/p.npz" in out
    names: dict = {}
    exec(without, names)
    raw = torch.randint(256, (5, 1, 8, 8), generator=RANDOM, dtype=torch.uint8)
    expected = metaloss.load_model(".").predict(raw).values
    torch.testing.assert_close(names["predict"](raw), expected, rtol=0, atol=1e-6)


def test_a_card_says_what_is_known(run):
    about = json.loads((run / "model.json").read_text())
    card = model_card.text(about, metaloss.load_model(run).model)
    assert card == (run / "README.md").read_text()
    assert "| outputs | 2, classification |" in card


def test_exports_name_the_formats_that_the_tool_offers():
    source = (ROOT / "tools" / "export.py").read_text()
    offered = re.search(r"choices=\[(.*?)\]", source)[1].replace('"', "").split(", ")
    assert offered == list(exporting.Format.__args__)
