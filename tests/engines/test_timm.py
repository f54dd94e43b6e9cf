"""The exact engine on timm's families of models, each by its smallest member on tiny images."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metaloss import BACKBONES, REPRESENTATIONS, links
from metaloss.errors import ConfigError
from metaloss.machine import seeding
from metaloss.problem.problem import Problem
from tests.helpers import meta_gradient, relative, thinned

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings(
        "ignore::FutureWarning",
        "ignore::DeprecationWarning",  # of timm's import
    ),
]

STAGES = {"depths": (1, 1, 1, 1), "embed_dims": (8, 8, 8, 8), "num_heads": (1, 1, 1, 1)}
VIT = {"img_size": 32, "depth": 1, "embed_dim": 12}

#: One model of each family: image size and arguments.
FAMILIES = {
    "resnet10t": (32, {"layers": (1, 1, 1, 1), "channels": (8, 16, 16, 16)}),
    "resnext50_32x4d": (32, {"layers": (1, 1, 1, 1), "channels": (32, 32, 32, 32)}),
    "resnetv2_18": (32, {"layers": (1, 1), "channels": (8, 8), "stem_chs": 8}),
    "regnetx_002": (32, {}),
    "densenet121": (32, {"growth_rate": 4, "block_config": (1, 1, 1, 1)}),
    "test_efficientnet": (32, {}),
    "mobilenetv2_035": (32, {}),
    "test_nfnet": (32, {}),
    "test_byobnet": (32, {}),
    "rexnet_100": (64, {"width_mult": 0.25, "depth_mult": 0.25}),
    "starnet_s050": (32, {}),
    "test_mambaout": (32, {}),
    "convnext_atto": (32, {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}),
    "inception_next_atto": (32, {}),
    "edgenext_xx_small": (32, {}),
    "mobilevit_xxs": (32, {}),
    "poolformer_s12": (32, {}),
    "gmlp_ti16_224": (32, {"img_size": 32}),
    "vit_tiny_patch16_224": (32, VIT),
    "deit_tiny_distilled_patch16_224": (32, VIT),
    "beit_base_patch16_224": (32, {**VIT, "num_heads": 2}),
    "cait_xxs24_224": (32, {**VIT, "num_heads": 2}),
    "convit_tiny": (32, {**VIT, "depth": 2, "local_up_to_layer": 1, "num_heads": 2}),
    "xcit_nano_12_p16_224": (32, {**VIT, "num_heads": 2}),
    "levit_128s": (32, {"img_size": 32}),
    "swin_tiny_patch4_window7_224": (
        32,
        {"img_size": 32, "window_size": 4, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 1)},
    ),
    "twins_svt_small": (32, {**STAGES, "img_size": 32, "wss": (4, 2, 1, 1)}),
    "pvt_v2_b0": (32, {**STAGES, "mlp_ratios": (2, 2, 2, 2)}),
    "crossvit_tiny_240": (48, {"img_size": 48, "img_scale": (1.0, 2 / 3)}),
    "coat_lite_tiny": (32, {"img_size": 32}),  # holds some of its modules twice
    "test_maxvit": (32, {"img_size": 32}),
}

#: Convolutions, normalised in two ways, and attention.
FEW = ("resnet10t", "convnext_atto", "vit_tiny_patch16_224")

#: Those of which torch has no second derivative, that of hardsigmoid.
WITHOUT_DOUBLE_BACKWARD = {
    "mobilenetv3_small_050": (64, {}),
    "lcnet_035": (48, {}),
    "ghostnet_050": (48, {}),
    "ese_vovnet19b_slim_dw": (48, {}),
    "hardcorenas_a": (64, {}),
}


def make_problem(name: str, side: int, arguments: dict) -> Problem:
    model = BACKBONES["timm"]((3, side, side), 3, name=name, arguments=arguments)
    with torch.no_grad():
        for parameter in model.parameters():  # residual branches that start at 0 sit on a kink
            parameter.add_(0.02 * torch.randn_like(parameter))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True)
    loss = REPRESENTATIONS["nn"](hidden=(8,))
    return Problem(model, optimizer, loss, F.cross_entropy, links.probabilities)


def make_batches(side: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.randn(4, 3, side, side), torch.randint(3, (4,))) for _ in range(2)]


@pytest.mark.parametrize(
    "name", thinned(((name,) for name in FAMILIES), keep=lambda name: name in FEW)
)
def test_exact_equals_double_backward(name):
    side, arguments = FAMILIES[name]
    problem, batches = make_problem(name, side, arguments), make_batches(side)
    exact, reference = (
        meta_gradient(copy.deepcopy(problem), batches, 0, engine)
        for engine in ("exact", "unrolled")
    )
    assert relative(exact, reference) <= 1e-9


@pytest.mark.parametrize("name", WITHOUT_DOUBLE_BACKWARD)
def test_exact_equals_a_difference_of_the_real_step(name):
    side, arguments = WITHOUT_DOUBLE_BACKWARD[name]
    problem, batches = make_problem(name, side, arguments), make_batches(side)
    gradient = meta_gradient(copy.deepcopy(problem), batches, 0, "exact")

    def task_loss(shift: float) -> float:
        other = copy.deepcopy(problem)
        phi = nn.utils.parameters_to_vector(other.phi).detach()
        nn.utils.vector_to_parameters(phi + shift * gradient / gradient.norm(), other.phi)
        torch.manual_seed(2)
        (x, y), (x_valid, y_valid) = batches
        other.learned_loss(other.model(x), y).backward()
        other.optimizer.step()
        with torch.no_grad(), seeding.aside(torch.device("cpu")):  # by the same masks
            return float(F.cross_entropy(other.model(x_valid), y_valid))

    difference = (task_loss(1e-6) - task_loss(-1e-6)) / 2e-6
    assert float(gradient.norm()) == pytest.approx(difference, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("vit_tiny_patch16_224", {}, r"cannot take inputs of shape \[3, 32, 32\].*'img_size': 32"),
        ("inception_v3", {}, r"cannot take inputs of shape \[3, 32, 32\].*actual input size"),
        ("test_resnet", {"features_only": True}, r"does not give \[batch, 3\] outputs"),
        ("test_resnett", {}, "did you mean 'test_resnet'"),
    ],
)
def test_what_a_model_cannot_serve_is_refused(name, arguments, message):
    with pytest.raises(ConfigError, match=message):
        BACKBONES["timm"]((3, 32, 32), 3, name=name, arguments=arguments)
