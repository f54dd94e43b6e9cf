"""A model that leaves its run: files that another environment reads, and that can run no code."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

import metaloss
from metaloss import BACKBONES
from metaloss.errors import InputError, RunFolderError
from metaloss.machine import sealed
from metaloss.machine.tensors import write_tensors
from metaloss.runs.trained import model_card
from metaloss.runs.trained.saved_model import SavedModel
from tests.helpers import train

STEPS = ("Runner.steps = 6", "Runner.evaluate_every = 2")
RUNS = {
    "digits": ("Runner.ema = 0.5", "Runner.keep_best = 'valid'", "base_optimizers.sgd.lr = 3.0"),
    "plugin": ("Runner.representation = @representations.own_of_a_test()",),
    "values": ("Runner.task = @tasks.arrays()", "tasks.arrays.path = 'values.npz'"),
    "pixels": (
        *("Runner.task = @tasks.arrays()", "tasks.arrays.path = 'pixels.npz'"),
        *("Runner.backbone = @backbones.lenet5", "Runner.memory_format = 'channels_last'"),
    ),
}


#: A loss that the model needs for its training alone.
OWN_LOSS = """
import metaloss
@metaloss.REPRESENTATIONS.register("own_of_a_test")
class Own(metaloss.REPRESENTATIONS["cross_entropy"]):
    'Of a plugin.'
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of a few steps, and their data in a folder that can be taken away."""
    folder = tmp_path_factory.mktemp("saved")
    random = np.random.default_rng(0)
    x = random.normal(100, 20, (60, 4))
    y = x @ random.normal(size=(4, 2)) + 1000
    np.savez(folder / "values.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    bytes_ = random.integers(0, 256, (60, 16, 16), dtype=np.uint8)
    labels = np.array(["cat", "dog"])[np.arange(60) % 2]
    np.savez(folder / "pixels.npz", x_train=bytes_[:40], y_train=labels[:40], x_test=bytes_[40:],
             y_test=labels[40:])  # fmt: skip
    (folder / "own_loss.py").write_text(OWN_LOSS)
    for name, extra in RUNS.items():
        more = {"plugin": [str(folder / "own_loss.py")]} if name == "plugin" else {}
        asked = (*STEPS, *extra)
        assert train(folder / name, "baseline", asked, data_dir=str(folder), **more) == 0
    return folder


def raw(name):
    """Inputs as the task's files hold them."""
    random = torch.Generator().manual_seed(1)
    if name == "pixels":
        return torch.randint(256, (7, 1, 16, 16), generator=random, dtype=torch.uint8)
    shape = (7, 4) if name == "values" else (7, 1, 8, 8)
    return 100 * torch.rand(shape, generator=random, dtype=torch.float64)


def left(runs, name, folder):
    """The files of the model alone, in another folder."""
    folder.mkdir()
    for path in (runs / name).iterdir():
        if path.name == "model.json" or path.suffix == ".safetensors":
            shutil.copy(path, folder)
    return folder


ELSEWHERE = """
import sys
from pathlib import Path
import numpy as np, torch
import metaloss
for folder in map(Path, sys.argv[1:]):
    found = metaloss.load_model(folder).predict(torch.from_numpy(np.load(folder / "x.npy")))
    np.save(folder / "found.npy", found.values.numpy())
"""


def test_models_predict_the_same_in_another_place(runs, tmp_path):
    """In another process and folder, with no data, gin file, checkpoint or plugin of a loss."""
    for name in RUNS:
        np.save(left(runs, name, tmp_path / name) / "x.npy", raw(name).numpy())
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    folders = [tmp_path / name for name in RUNS]
    subprocess.run([sys.executable, "-c", ELSEWHERE, *folders], cwd=elsewhere, check=True)
    for name in RUNS:
        expected = metaloss.load_model(runs / name).predict(raw(name)).values.numpy()
        found = np.load(tmp_path / name / "found.npy")
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", RUNS)
def test_the_files_say_what_the_checkpoint_says(runs, name, tmp_path):
    """The same model is had by both, of each kind of weights, bit for bit."""
    unfinished = tmp_path / "unfinished"
    shutil.copytree(runs / name, unfinished)
    (unfinished / "model.json").unlink()
    kinds = ["tested", "last", "average"] if name == "digits" else ["tested"]
    states = []
    for kind in kinds:
        one, other = (
            metaloss.load_model(f, weights=kind, data_dir=runs) for f in (runs / name, unfinished)
        )
        assert (one.step, one.steps, one.seed) == (other.step, other.steps, other.seed)
        assert one.predict(raw(name)).values.equal(other.predict(raw(name)).values)
        assert one.evaluate("valid") == other.evaluate("valid")
        states.append(torch.cat([p.flatten() for p in one.model.parameters()]))
    assert not any(a.equal(b) for a, b in zip(states, states[1:], strict=False))


def test_kinds_of_weights(runs):
    result = json.loads((runs / "digits" / "result.json").read_text())
    about = json.loads((runs / "digits" / "model.json").read_text())
    assert {kind: held["step"] for kind, held in about["weights"].items()} == {
        "tested": result["best_step"], "last": 6, "average": result["best_step"],
    }  # fmt: skip
    assert result["best_step"] < 6
    for kind, error in (("tested", "error_rate"), ("average", "ema_error_rate")):
        model = metaloss.load_model(runs / "digits", weights=kind)
        assert model.evaluate()["error_rate"] == result["test_metrics"][error]
    with pytest.raises(InputError, match="no last weights: the tested ones are the last, since "):
        metaloss.load_model(runs / "values", weights="last")
    with pytest.raises(InputError, match="no lst weights: no such kind; did you mean 'last'?"):
        metaloss.load_model(runs / "values", weights="lst")


def test_a_model_alone_cannot_be_evaluated(runs, tmp_path):
    model = metaloss.load_model(left(runs, "digits", tmp_path / "there"))
    with pytest.raises(RunFolderError, match="has no config.gin, which names the data"):
        model.evaluate()


#: A model of a plugin, and data with an objective of their own: no file can say what they are.
OWN_MODEL = """
from dataclasses import replace
import torch
import metaloss
from metaloss.tasks.base import CLASSIFICATION
@metaloss.BACKBONES.register("net_of_a_test")
def net(input_shape, outputs):
    'Of a plugin.'
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, outputs))
@metaloss.TASKS.register("task_of_a_test")
class Own(metaloss.TASKS["digits"]):
    'Of a plugin.'
    def load(self, data_dir, generator):
        return replace(super().load(data_dir, generator), objective=replace(CLASSIFICATION))
"""
WITHOUT = """
import sys
import metaloss
try: print(metaloss.load_model(sys.argv[1]).evaluate()["error_rate"])
except metaloss.errors.InputError as error: print(error)
"""


@pytest.mark.full  # two processes of their own
def test_a_model_loads_the_plugins_that_its_run_remembers(tmp_path, capsys):
    """Where model.json names a backbone of a plugin, and where there is no model.json at all."""
    plugin = tmp_path / "net_of_a_test.py"
    plugin.write_text(OWN_MODEL)
    runs = {"files": (), "checkpoint": ("Runner.task = @tasks.task_of_a_test()",)}
    for name, extra in runs.items():
        asked = (*STEPS, "Runner.backbone = @backbones.net_of_a_test", *extra)
        assert train(tmp_path / name, "baseline", asked, plugin=[str(plugin)]) == 0
    said = "WARNING there is no model.json: its task task_of_a_test has an objective of its own; "
    assert capsys.readouterr().err.count(said) == 1
    assert not (tmp_path / "checkpoint" / "model.json").exists()

    def elsewhere(name):
        command = [sys.executable, "-c", WITHOUT, tmp_path / name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    for name in runs:
        result = json.loads((tmp_path / name / "result.json").read_text())
        assert float(elsewhere(name)) == result["test"]
    plugin.unlink()
    for name in runs:
        line = elsewhere(name)
        assert "\n" not in line and "net_of_a_test.py (of the run)' did not load: File" in line
    assert "or by metaloss.load_plugins(['net_of_a_test.py'])" in elsewhere("files")


# --- without metaloss ---


@pytest.mark.parametrize("name", RUNS)
def test_the_cards_snippet_predicts_the_same(runs, name, monkeypatch):
    """It runs as it stands, and says no word of metaloss."""
    card = (runs / name / "README.md").read_text()
    with_it, without = re.findall(r"```python\n(.*?)```", card, re.S)
    assert "metaloss.load_model" in with_it and "metaloss" not in without
    monkeypatch.chdir(runs / name)
    names: dict = {}
    exec(without, names)
    expected = metaloss.load_model(".").predict(raw(name)).values
    torch.testing.assert_close(names["predict"](raw(name)).double(), expected.double(),
                               rtol=1e-6, atol=1e-6)  # fmt: skip


@pytest.mark.full  # timm takes two seconds to import
def test_the_snippet_of_a_model_of_timm(runs, tmp_path, monkeypatch):
    about = json.loads((runs / "pixels" / "model.json").read_text())
    about["data"]["input_shape"] = [1, 32, 32]
    about["weights"] = {"tested": about["weights"]["tested"]}
    about |= {
        "backbone": "timm",
        "arguments": {"name": "resnet10t", "arguments": {"drop_rate": 0.1}},
    }
    model = BACKBONES["timm"](input_shape=(1, 32, 32), outputs=2, **about["arguments"])
    SavedModel(about, {"tested": model.state_dict()}).write(tmp_path)
    pixels = torch.randint(256, (3, 1, 32, 32), dtype=torch.uint8)
    without = re.findall(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(), re.S)[1]
    assert "timm.create_model('resnet10t', drop_rate=0.1, in_chans=1, num_classes=2)" in without
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(without, names)
    expected = metaloss.load_model(".").predict(pixels).values
    torch.testing.assert_close(names["predict"](pixels), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["allcnn", "lenet5", "logistic", "mlp", "vgg16"])
def test_chains_of_torchs_layers_are_code(name):
    with torch.device("meta"):
        model = BACKBONES[name](input_shape=(3, 32, 32), outputs=4)
        again = eval(model_card.chain(model), {"nn": torch.nn})
    assert repr(again) == repr(model)


def test_other_models_are_none():
    with torch.device("meta"):
        squeezenet = BACKBONES["squeezenet"](input_shape=(3, 32, 32), outputs=4)
    assert model_card.chain(squeezenet) is None

    class Own(torch.nn.Linear):
        """Not torch's."""

    assert model_card.chain(torch.nn.Sequential(Own(2, 2))) is None


# --- what cannot be read ---


@pytest.fixture
def damaged(runs, tmp_path):
    """Changes model.json; -> the error's line."""
    folder = left(runs, "values", tmp_path / "there")
    about = json.loads((folder / "model.json").read_text())

    def change(**changes):
        (folder / "model.json").write_text(json.dumps({**about, **changes}))
        with pytest.raises(InputError) as caught:
            metaloss.load_model(folder)
        assert "\n" not in str(caught.value)
        return str(caught.value).replace(str(folder), "DIR")

    change.folder = folder
    return change


def test_a_model_json_that_cannot_be_used(damaged):
    assert damaged(format=2) == (
        "DIR/model.json has format 2, of a newer metaloss; this one reads formats up to 1"
    )
    assert "is not that of a model" in damaged(format="1")
    assert "is damaged: backbone = 3" in damaged(backbone=3)
    assert "is damaged: KeyError" in damaged(data={"inputs": None})
    assert damaged(arguments={"hidden": -1}).startswith("backbones.mlp.hidden = -1: give a list")
    assert damaged(arguments={"width": 3}).startswith("backbones.mlp has no parameter 'width'")
    assert "weights do not fit mlp" in damaged(arguments={"hidden": [5]})
    origin = {"module": "my.nets", "distribution": "my", "version": "1"}
    line = damaged(backbone="mlpp", origin=origin)
    assert line.startswith("no 'mlpp' in backbones; did you mean 'mlp'? · known: ")
    assert line.endswith("saved from my.nets of my 1: load it by --plugin=my.nets, or by "
                         "metaloss.load_plugins(['my.nets'])")  # fmt: skip


def test_weights_that_are_damaged_or_could_run_code(damaged):
    path = damaged.folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert damaged() == "DIR/weights.safetensors is damaged: its checksum does not match"
    write_tensors(path, {"0.weight": torch.zeros(2)})
    assert "the tested weights do not fit mlp" in damaged()
    path.write_bytes(pickle.dumps({"weights": 1}))
    assert "DIR/weights.safetensors cannot be read" in damaged()
    path.unlink()
    assert "DIR/weights.safetensors cannot be read" in damaged()


def test_a_run_of_an_earlier_version(runs, tmp_path):
    """Its checkpoint has no decoder and no names of targets; or, still earlier, no preparation."""
    folder = tmp_path / "old"
    shutil.copytree(runs / "values", folder)
    (folder / "model.json").unlink()
    expected = metaloss.load_model(folder).predict(raw("values")).values
    content = sealed.load(folder / "checkpoint.pt")
    for name in ("decoder", "target_names"):
        del content["state"]["data"][name]
    sealed.save(folder / "checkpoint.pt", content)
    assert metaloss.load_model(folder).predict(raw("values")).values.equal(expected)
    metaloss.load_model(folder).write(tmp_path / "written")
    assert metaloss.load_model(tmp_path / "written").predict(raw("values")).values.equal(expected)
    del content["state"]["data"]
    sealed.save(folder / "checkpoint.pt", content)
    model = metaloss.load_model(folder, data_dir=runs)
    torch.testing.assert_close(model.predict(raw("values")).values, expected)
    model.write(tmp_path / "again")
    again = metaloss.load_model(tmp_path / "again").predict(raw("values")).values
    torch.testing.assert_close(again, expected)
    with pytest.raises(InputError, match="no file .*values.npz"):
        metaloss.load_model(folder, data_dir=tmp_path)
