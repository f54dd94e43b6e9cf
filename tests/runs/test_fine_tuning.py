"""Fine-tuning: a run from pretrained weights of timm, on pictures as these were trained on."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from metaloss import BACKBONES, config, load_model
from metaloss.backbones import timm as recipe
from metaloss.errors import ConfigError
from metaloss.runs import launch
from metaloss.testing.certification.certify import certify, planned_case
from tests.helpers import (
    METHODS,
    QUICK,
    ROOT,
    assert_same_state,
    killed_when,
    rows,
    written_by_wandb,
)

TINY = {"channels": (4, 4, 8, 8), "layers": (1, 1, 1, 1)}
SHAPE = (3, 32, 32)


def small(classes: int, **arguments) -> torch.nn.Module:
    """A ResNet-18 of a few channels, drawn by a seed of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return timm.create_model("resnet18", num_classes=classes, **{**TINY, **arguments})


@pytest.fixture(autouse=True)
def unread(monkeypatch):
    """No weights that another test has read."""
    monkeypatch.setattr(recipe, "_read", {})


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with 48 JPEGs of two classes, and weights of seven other classes."""
    folder = tmp_path_factory.mktemp("fine_tuning")
    random = np.random.default_rng(0)
    for i in range(48):
        path = folder / "pictures" / ("cats", "dogs")[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(100 + 50 * (i % 2), size=(40, 36, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    save_file(small(7).state_dict(), folder / "seven.safetensors")
    return folder


def build(outputs: int = 3, name: str = "resnet18", shape=SHAPE, **arguments) -> torch.nn.Module:
    return BACKBONES["timm"](shape, outputs, name, TINY, **arguments)


def test_weights_come_from_a_file_and_another_head_is_fresh(place):
    source = small(7).state_dict()
    file = str(place / "seven.safetensors")
    model = build(weights=file)
    for name, value in model.state_dict().items():
        assert value.equal(source[name]) or name.startswith("fc.")
    assert "78 of 80 tensors, with a fresh head (theirs is of 7 classes)" in model.notes[0]
    assert model.fc.weight.shape == (3, 8)
    same = build(7, weights=file)
    assert all(v.equal(source[name]) for name, v in same.state_dict().items())
    assert "their head of 7 classes among them" in same.notes[0]
    anew = build(7, weights=file, fresh=["fc.*"])
    assert not anew.fc.weight.equal(source["fc.weight"])
    assert "fresh: fc.bias, fc.weight" in anew.notes[0]
    grey = build(shape=(1, 32, 32), weights=file)  # as timm does
    torch.testing.assert_close(grey.conv1.weight, source["conv1.weight"].sum(1, keepdim=True))


def test_a_checkpoint_of_a_training_script_and_one_without_a_head_will_do(place, monkeypatch):
    state = {f"module.{name}": value for name, value in small(0).state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, place / "headless.pth")
    monkeypatch.setenv("HOME", str(place))
    model = build(weights="~/headless.pth")
    assert model.conv1.weight.equal(state["module.conv1.weight"])
    assert "fresh head (theirs is not there)" in model.notes[0]


def test_the_draws_are_those_of_a_model_drawn_anew(place):
    """So the head of θ_0 does not depend on whether weights were in memory already."""
    heads = []
    for arguments in ({}, {"weights": str(place / "seven.safetensors")}) * 2:
        torch.manual_seed(3)
        heads.append(build(**arguments).fc.weight)
        recipe._read.clear()
    assert all(head.equal(heads[0]) for head in heads)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": "none.pth"}, "weights = 'none.pth': give a .safetensors or .pth file"),
        ({"weights": "bad.pth"}, "cannot read .*bad.pth: "),
        ({"weights": "bad.safetensors"}, "cannot read .*: SafetensorError: "),
        (
            {"weights": "wide.pth"},
            r"wide.pth does not fit resnet18: other shapes: layer1.0.conv1.weight: \[8, 64, 3, 3\],"
            r" the model's \[4, 64, 3, 3\], .* and \d+ more",
        ),
        (
            {"weights": "seven.safetensors", "name": "resnet50"},
            'does not fit resnet50: Missing key.*"layer1.0.conv3.weight".* and 17 more',
        ),
        ({"weights": "seven.safetensors", "fresh": ["fcc.*"]}, "fresh = .'fcc.*'.: give patterns"),
        ({"fresh": ["fc.*"]}, "give pretrained or weights beside it"),
        ({"pretrained": True, "name": "cspresnet50d"}, "no weights of cspresnet50d"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(place, monkeypatch, arguments, message):
    monkeypatch.chdir(place)
    (place / "bad.pth").write_text("no weights")
    (place / "bad.safetensors").write_text("no weights")
    torch.save(small(7, channels=(8, 8, 8, 8)).state_dict(), place / "wide.pth")
    with pytest.raises(ConfigError, match=message) as caught:
        build(**arguments)
    assert "\n" not in str(caught.value)


def test_without_network_it_is_said_at_once(monkeypatch, tmp_path):
    def unreachable(*args, **kwargs):
        raise OSError("nobody there")

    monkeypatch.setattr(recipe.urllib.request, "urlopen", unreachable)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args: None)
    with pytest.raises(ConfigError, match=r"resnet18 are not in .*nobody there.*timm.weights"):
        build(pretrained=True)


def test_the_hubs_cache_needs_no_network(monkeypatch, place):
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache", lambda *args: str(place / "thousand.safetensors")
    )
    source = small(1000).state_dict()
    save_file(source, place / "thousand.safetensors")
    model = build(pretrained=True)
    assert model.conv1.weight.equal(source["conv1.weight"])
    assert "timm's resnet18.a1_in1k: 78 of 80 tensors" in model.notes[0]
    assert "theirs is of 1,000 classes" in model.notes[0]


# --- runs ---


def bindings(place: Path, method: str = "adalfl") -> list[str]:
    """A few steps of fine-tuning on the pictures."""
    return [
        *(line for line in QUICK + METHODS[method] if not line.startswith(("tasks", "backbones"))),
        "Runner.task = @tasks.image_folder()",
        f"tasks.image_folder.path = '{place}/pictures'",
        "tasks.image_folder.batch_size = 8",
        "tasks.image_folder.test_fraction = 0.25",
        "tasks.image_folder.valid_fraction = 0.3",
        "Runner.backbone = @backbones.timm",
        "backbones.timm.name = 'resnet18'",
        f"backbones.timm.arguments = {TINY}",
        f"backbones.timm.weights = '{place}/seven.safetensors'",
    ]


def train(folder: Path, place: Path, *extra: str, method: str = "adalfl", **flags) -> int:
    return launch.train(
        gin_file=["tasks/digits_mlp.gin", f"methods/{method}.gin"],
        gin_param=[*bindings(place, method), *extra],
        output_dir=str(folder),
        device="cpu",
        **flags,
    )


@pytest.fixture(scope="module")
def run(place, tmp_path_factory):
    """A run of AdaLFL from pretrained weights, what it said, and how often it read them."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    read, patch = [], pytest.MonkeyPatch()
    recipe._read.clear()
    original = timm.models.load_state_dict
    patch.setattr(timm.models, "load_state_dict", lambda *a: read.append(a) or original(*a))
    patch.setattr("torch.rand", always_redraws(torch.rand))
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        assert train(folder, place, "tasks.image_folder.size = 32", "Runner.figures = 0") == 0
    patch.undo()
    return folder, said.getvalue(), len(read)


def always_redraws(rand):
    """The chance by which the initialisation goes on with a model; all else as it is."""
    return lambda *size, **more: rand(*size, **more) * 0 if size == ((),) else rand(*size, **more)


def test_weights_are_read_once_a_run(run):
    assert run[2] == 1


def test_pictures_are_as_the_weights_were_trained_on(run):
    folder, said, _ = run
    text = (folder / "config.gin").read_text()
    assert "tasks.image_folder.size = 32\n" in text  # which was asked for
    assert "tasks.image_folder.interpolation = 'bicubic'\n" in text
    assert "tasks.image_folder.mean = (0.485, 0.456, 0.406)\n" in text
    assert "tasks.image_folder.deviation = (0.229, 0.224, 0.225)\n" in text
    assert "pictures of 32x32: bicubic, mean 0.485, 0.456, 0.406, deviation" in said
    assert "resnet18 starts from" in said


def test_a_model_is_loaded_without_its_weights_file(run, place):
    weights = place / "seven.safetensors"
    hidden = weights.rename(weights.with_suffix(".hidden"))
    try:
        trained = load_model(run[0])
    finally:
        hidden.rename(weights)
    (test,) = (row for row in rows(run[0]) if row.get("split") == "test")
    assert trained.evaluate("test")["error_rate"] == test["error_rate"]


CUT = (
    "Runner.cutmix = 1.0",
    "Runner.grouping = @groupings.layers",
    "groupings.layers.decay = 0.5",
    "Runner.frozen_until = {'*': 5, 'fc.*': 0}",
    "Runner.base_optimizer = @base_optimizers.adamw",
    "base_optimizers.adamw.lr = 0.001",
    "tasks.image_folder.size = 32",
    "tasks.image_folder.flip = True",
    "Runner.figures = 0",
)


#: What the table of the page has beside: transforms of both libraries, and balanced draws.
DRAWN = (
    "tasks.image_folder.augment = (('timm', {'auto_augment': 'rand-m5'}), ('RandomErasing', {}))",
    "tasks.image_folder.class_weights = 'balanced'",
)


@pytest.mark.full  # four lives of a ResNet, 20 s; test_mixing.py resumes a small network
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # timm's import
@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_a_timm_model_resumes_bit_for_bit(method, place, tmp_path):
    """Killed in the initialisation, while its body is frozen and after: with CutMix, by layers."""
    asked = {"method": method}
    assert train(tmp_path / "whole", place, *CUT, *DRAWN, **asked) == 0
    for moment in (4, 12) if method == "baseline" else (4, 12, 18):
        with killed_when(lambda state, moment=moment: state.init_steps + state.steps == moment):
            train(tmp_path / "killed", place, *CUT, *DRAWN, resume=True, **asked)
        recipe._read.clear()  # as in another process
    assert train(tmp_path / "killed", place, *CUT, *DRAWN, resume=True, **asked) == 0
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    assert_same_state(tmp_path / "killed", tmp_path / "whole")


def test_the_meta_gradient_is_that_of_a_timm_model_by_layers(place):
    files = ["tasks/digits_mlp.gin", "methods/adalfl.gin"]
    parsed = config.load(files, [*bindings(place), *CUT, "base_optimizers.adamw.eps = 1e-3"])
    case = planned_case(parsed.build(), Path(), 0, 4)
    problem = case.make()
    assert problem.theta_names == ["fc.weight", "fc.bias"]
    found = certify(case, "exact", 1, 1)
    assert found.holds, found


def test_the_example_is_a_run_of_fewer_than_twenty_lines(place, tmp_path, monkeypatch):
    """And README shows it as it is."""
    example = ROOT / "examples" / "fine_tuning.gin"
    lines = [line for line in example.read_text().splitlines() if not line.startswith("#")]
    assert len(lines) < 20
    shown = "".join(f"    {line}\n" for line in lines)
    assert shown in (ROOT / "README.md").read_text()
    state = timm.create_model("test_byobnet", num_classes=7).state_dict()
    save_file(state, tmp_path / "pretrained.safetensors")
    monkeypatch.chdir(tmp_path)
    short = ["Runner.epochs = 1", "tasks.image_folder.batch_size = 16", "Runner.figures = 0"]
    flags = {"output_dir": "run", "data_dir": str(place), "device": "cpu"}
    files = [str(example), "methods/baseline.gin"]
    assert launch.train(gin_file=files, gin_param=short, **flags) == 0
    result = json.loads(Path("run", "result.json").read_text())
    assert (result["backbone"], result["steps"]) == ("timm", 3)
    assert "ema_error_rate" in result["test_metrics"]


def told_to_wandb(folder: Path) -> dict[int, float]:
    """By step; wandb's process may end its file a moment after the run, with a record "exit"."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        told = {}
        for record in itertools.chain.from_iterable(map(written_by_wandb, folder.rglob("*.wandb"))):
            items = record.history.item
            row = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
            if "valid/error_rate" in row:
                told[row["step"]] = row["valid/error_rate"]
            if record.WhichOneof("record_type") == "exit":
                return told
        time.sleep(0.1)
    raise AssertionError("wandb's process has not ended its file")


@pytest.mark.full  # wandb starts a process of its own
@pytest.mark.filterwarnings("ignore")  # of the package's own
@pytest.mark.parametrize("method", ["baseline", "adalfl"])
def test_the_example_is_watched_in_two_trackers(method, place, tmp_path, monkeypatch):
    """TensorBoard's and wandb's own files have the validation error of every evaluation."""
    pytest.importorskip("wandb")
    state = timm.create_model("test_byobnet", num_classes=7).state_dict()
    save_file(state, tmp_path / "pretrained.safetensors")
    monkeypatch.chdir(tmp_path)
    bindings = [
        "Runner.callbacks = [@callbacks.tensorboard(), @callbacks.wandb()]",
        "callbacks.wandb.mode = 'offline'",
        "Runner.epochs = 2",
        "Runner.evaluate_every = 2",
        "Runner.figures = 0",
        "tasks.image_folder.batch_size = 16",
    ]
    if method == "adalfl":
        bindings += [
            "meta_optimizers.offline_unrolled.steps = 1",
            "meta_optimizers.offline_unrolled.scale_steps = 2",
            "meta_optimizers.task_fit.steps = 2",
        ]
    flags = {"output_dir": "run", "data_dir": str(place), "device": "cpu"}
    files = [str(ROOT / "examples" / "fine_tuning.gin"), f"methods/{method}.gin"]
    assert launch.train(gin_file=files, gin_param=bindings, **flags) == 0

    folder = tmp_path / "run"
    expected = {
        row["step"]: row["error_rate"]
        for row in rows(folder)
        if row["phase"] == "train" and row.get("split") == "valid"
    }
    assert len(expected) > 2
    assert told_to_wandb(folder) == expected
    board = EventAccumulator(str(folder))
    board.Reload()
    shown = {event.step: event.value for event in board.Scalars("valid/error_rate")}
    assert shown == pytest.approx(expected)


def test_every_line_of_the_documents_table_is_a_configuration():
    table = (
        (ROOT / "docs" / "fine_tuning.md").read_text().partition("## Everything in one table")[2]
    )
    lines = [line for line in re.findall(r"^\| .*? \| `(.*?)` \|", table, re.M) if " = " in line]
    assert len(lines) > 10
    parsed = config.load(
        ["own_data/image_folder.gin", "methods/baseline.gin"],
        ["Runner.backbone = @backbones.timm", "backbones.timm.name = 'resnet18'", *lines],
    )
    runner = parsed.build()
    assert (runner.mixup, runner.cutmix, runner.label_smoothing) == (0.2, 1.0, 0.1)
    assert not [word for word in parsed.unread if "image_folder" in word or "timm" in word]
