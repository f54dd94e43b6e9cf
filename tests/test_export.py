"""Learned losses on disk, and the numbers that representations give."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F

import metaloss
from metaloss import links
from metaloss.errors import RunFolderError
from metaloss.export import Trajectory, flat, load_loss, load_trajectory, save_loss
from metaloss.registry import UnknownComponentError


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("nn", {"hidden": (6, 5), "activation": "relu", "output": "softplus"}),
        ("taylor", {"order": 2}),
    ],
)
def test_a_saved_loss_loads_back(tmp_path, name, arguments):
    loss = metaloss.REPRESENTATIONS[name](**arguments)
    phi = flat(loss)
    trajectory = Trajectory(torch.tensor([0, 10]), torch.stack([phi, phi + 1]))
    save_loss(tmp_path / "loss", loss, links.probabilities, trajectory, {"seed": 3})
    for place in (tmp_path, tmp_path / "loss"):  # the run's folder, or the loss's own
        loaded = load_loss(place)
        outputs, labels = torch.randn(4, 3), torch.randint(3, (4,))
        expected = loss(*links.probabilities(outputs, labels)).mean()
        assert loaded(outputs, labels).equal(expected)
        assert loaded.representation.arguments() == loss.arguments() or name == "nn"
        again = load_trajectory(place)
        assert again.steps.equal(trajectory.steps) and again.phi.equal(trajectory.phi)
    config = json.loads((tmp_path / "loss" / "config.json").read_text())
    assert config["provenance"] == {"seed": 3} and config["format"] == 1


def test_a_loss_that_cannot_be_loaded_says_why(tmp_path):
    with pytest.raises(RunFolderError, match="config.json cannot be read"):
        load_loss(tmp_path)
    loss = metaloss.REPRESENTATIONS["taylor"]()
    save_loss(tmp_path, loss, links.values)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "format": 2}))
    with pytest.raises(RunFolderError, match="has format 2; this version reads 1"):
        load_loss(tmp_path)
    path.write_text(json.dumps({**config, "representation": "mine"}))
    with pytest.raises(UnknownComponentError, match="no 'mine' in representations"):
        load_loss(tmp_path)
    path.write_text(json.dumps({**config, "arguments": {"order": 2}}))
    with pytest.raises(RunFolderError, match="does not fit"):
        load_loss(tmp_path)
    path.write_text(json.dumps(config))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    with pytest.raises(RunFolderError, match="model.safetensors cannot be read"):
        load_loss(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "trajectory.safetensors"])
def test_a_damaged_export_is_refused_or_harmless(tmp_path, name):
    """A bit of every byte: the format has no checksum of its own."""
    loss = metaloss.REPRESENTATIONS["taylor"]()
    trajectory = Trajectory(torch.tensor([0, 3]), torch.stack([flat(loss), flat(loss) + 1]))
    save_loss(tmp_path, loss, links.values, trajectory)
    path = tmp_path / name
    content = path.read_bytes()
    values = content.rindex(b"}") + 1
    for at in range(len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        try:
            if name.startswith("model"):
                assert flat(load_loss(tmp_path).representation).equal(flat(loss))
            else:
                found = load_trajectory(tmp_path)
                assert found.steps.equal(trajectory.steps) and found.phi.equal(trajectory.phi)
            assert at < values  # in the header, a word that says nothing of the values
        except RunFolderError as error:
            assert "\n" not in str(error)


def test_a_flipped_bit_of_phi_is_named(tmp_path):
    save_loss(tmp_path, metaloss.REPRESENTATIONS["taylor"](), links.values)
    path = tmp_path / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunFolderError) as caught:
        load_loss(tmp_path)
    assert str(caught.value) == f"{path} is damaged: its checksum does not match"


def test_weights_of_another_program_need_no_checksum(tmp_path):
    from safetensors.torch import save_file

    loss = metaloss.REPRESENTATIONS["taylor"]()
    save_loss(tmp_path, loss, links.values)
    save_file(loss.state_dict(), tmp_path / "model.safetensors")
    assert flat(load_loss(tmp_path).representation).equal(flat(loss))


def test_the_network_is_the_papers():
    """Eqs. 3, 4 and 12 by hand for one hidden unit: ℓ = w₂·φ(w₀f + w₁y), the mean over outputs."""
    loss = metaloss.REPRESENTATIONS["nn"](hidden=(1,))
    with torch.no_grad():
        loss.layers[0].weight.copy_(torch.tensor([[2.0, -1.0]]))
        loss.layers[1].weight.fill_(3.0)
    prediction, target = torch.tensor([[0.3, 0.7]]), torch.tensor([[1.0, 0.0]])

    def phi(x: float) -> float:
        return math.log1p(math.exp(10 * x)) / 10 * 0.99 + 0.01 * x

    expected = 3 * (phi(2 * 0.3 - 1) + phi(2 * 0.7)) / 2
    assert loss(prediction, target).item() == pytest.approx(expected, rel=1e-6)


def test_smooth_leaky_relu_far_from_zero():
    loss = metaloss.REPRESENTATIONS["nn"](hidden=(1,)).double()
    with torch.no_grad():
        loss.layers[0].weight.copy_(torch.tensor([[1.0, 0.0]]))
        loss.layers[1].weight.fill_(1.0)
    far = torch.tensor([[-1e4], [1e4]], dtype=torch.float64, requires_grad=True)
    values = loss(far, torch.zeros(2, 1, dtype=torch.float64))
    assert values.tolist() == pytest.approx([-100.0, 1e4])
    (slope,) = torch.autograd.grad(values.sum(), far, create_graph=True)
    assert slope.flatten().tolist() == pytest.approx([0.01, 1.0])
    (curvature,) = torch.autograd.grad(slope.sum(), far)
    assert curvature.isfinite().all()


def test_taylor_by_hand():
    """With x = target - c₀ = 0.9, y = f - c₁ = 0.3: 1..6 times y, y²/2, y³/6, xy, xy²/2, x²y/2."""
    loss = metaloss.REPRESENTATIONS["taylor"](order=3).double()
    with torch.no_grad():
        loss.centre.copy_(torch.tensor([0.1, 0.2]))
        loss.coefficients.copy_(torch.arange(1.0, 7.0))
    x, y = 0.9, 0.3
    expected = y + y**2 + 3 * y**3 / 6 + 4 * x * y + 5 * x * y**2 / 2 + 6 * x**2 * y / 2
    value = loss(torch.tensor([[0.5]]).double(), torch.tensor([[1.0]]).double())
    assert value.item() == pytest.approx(expected)


def test_handcrafted_losses_are_torchs():
    logits, labels = torch.randn(5, 4), torch.randint(4, (5,))
    own = metaloss.REPRESENTATIONS["cross_entropy"]()(*links.probabilities(logits, labels))
    torch.testing.assert_close(own, F.cross_entropy(logits, labels, reduction="none"))
    values = metaloss.REPRESENTATIONS["squared_error"]()(*links.values(logits, logits + 2))
    torch.testing.assert_close(values, torch.full((5,), 4.0))
