"""A temperature changes how sure a model is, not what it says."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import metaloss
from metaloss.errors import InputError
from metaloss.runs.trained import calibration, exporting
from metaloss.runs.trained import model as trained
from metaloss.runs.trained.calibration import Tempered, temperature
from metaloss.tasks.base import CLASSIFICATION, Data
from tests.helpers import train

SURE = ("Runner.steps = 60", "base_optimizers.sgd.lr = 0.5", "Runner.ema = 0.5")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibration") / "run"
    assert train(folder, "baseline", SURE) == 0
    return folder


def drawn(scale, examples=4000):
    """Outputs, and labels drawn from their softmax; what is seen are the outputs times `scale`."""
    generator = torch.Generator().manual_seed(0)
    outputs = 2 * torch.randn(examples, 4, generator=generator)
    labels = torch.multinomial(outputs.softmax(-1), 1, generator=generator)[:, 0]
    split = (scale * outputs, labels)
    return Data(dict.fromkeys(("train", "valid", "test"), split), 4, CLASSIFICATION)


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_temperature_of_a_model_that_is_too_sure_is_found(scale):
    """Labels are of the outputs at scale 1, so that the scale is the temperature."""
    assert temperature(nn.Identity(), drawn(scale)) == pytest.approx(scale, rel=0.05)


def test_it_has_the_lowest_loss_of_all():
    data = drawn(3.0)
    best = temperature(nn.Identity(), data)
    outputs, labels = data.splits["valid"]

    def loss(t):
        return nn.functional.cross_entropy(outputs.double() / t, labels).item()

    assert loss(best) < min(loss(best * 1.01), loss(best / 1.01))


def test_a_model_that_is_always_right_has_none():
    labels = torch.arange(8) % 4
    split = (nn.functional.one_hot(labels, 4).float(), labels)
    data = Data(dict.fromkeys(("train", "valid", "test"), split), 4, CLASSIFICATION)
    assert temperature(nn.Identity(), data) is None
    assert temperature(Tempered(nn.Identity(), float("nan")), data) is None


def test_a_model_that_is_worse_than_chance_has_none():
    assert temperature(Tempered(nn.Identity(), -1.0), drawn(1.0)) is None


def test_a_run_keeps_the_temperature_of_each_kind_of_weights(run):
    about = json.loads((run / "model.json").read_text())
    for kind in ("tested", "average"):
        model = metaloss.load_model(run, weights=kind)
        kept = about["weights"][kind]["temperature"]
        assert temperature(model.model, model.data) == pytest.approx(kept, rel=1e-5)
        assert metaloss.load_model(run, weights=kind, calibrated=True).temperature == kept
        assert f"| temperature: {kind} | {kept:.4g}: " in (run / "README.md").read_text()


def test_what_it_changes(run, tmp_path):
    plain, cold = metaloss.load_model(run), metaloss.load_model(run, calibrated=True)
    before, after = plain.evaluate("valid"), cold.evaluate("valid")
    assert after["error_rate"] == before["error_rate"]
    assert after["loss"] < before["loss"]
    raw = plain.data.raw("test")
    one, other = plain.predict(raw), cold.predict(raw)
    assert one.classes.equal(other.classes)
    expected = (one.values.double().log() / cold.temperature).softmax(-1).float()
    torch.testing.assert_close(other.values, expected, rtol=1e-4, atol=1e-6)
    exporting.export(cold, tmp_path / "m.pt2", "torch_export")
    graph = torch.export.load(tmp_path / "m.pt2").module()
    assert graph(raw).allclose(other.values, atol=1e-6)


def test_the_command_says_the_temperature(run, tmp_path):
    output = tmp_path / "found.json"
    said = trained.evaluate(run, calibrated=True, output=output)
    cold = metaloss.load_model(run, calibrated=True)
    assert f", temperature {cold.temperature:.4g}: digits, test error_rate" in said
    found = json.loads(output.read_text())
    assert found["temperature"] == cold.temperature and found["loss"] == cold.evaluate()["loss"]


def test_of_a_run_that_knows_none_it_is_fitted_when_asked(run, tmp_path):
    """A checkpoint has none."""
    import shutil

    shutil.copytree(run, tmp_path / "unfinished")
    (tmp_path / "unfinished" / "model.json").unlink()
    found = metaloss.load_model(tmp_path / "unfinished", calibrated=True)
    expected = metaloss.load_model(run, calibrated=True)
    assert found.temperature == pytest.approx(expected.temperature, rel=1e-5)


def test_what_has_no_temperature_is_said(run, tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "temperature", lambda *a: None)
    model = metaloss.load_model(run)
    about = {**model.saved.about, "weights": {"tested": {"step": 1}}}
    with pytest.raises(InputError, match=r"no temperature from 0\.05 to 20 suits the validation"):
        trained.replace(model, saved=trained.replace(model.saved, about=about)).calibrated()
    regression = metaloss.tasks.base.replace(
        model.about, objective=metaloss.tasks.base.OBJECTIVES["regression"]
    )
    with pytest.raises(InputError, match="a temperature is of classes that exclude each other"):
        trained.replace(model, about=regression).calibrated()
