"""The paper's base models: parameter counts, initialisation, and where they differ from others."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from metaloss import BACKBONES
from metaloss.errors import ConfigError

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning",
    "ignore::DeprecationWarning",  # of timm's import
)

MNIST, PHOTOGRAPH = (1, 28, 28), (3, 32, 32)


@pytest.mark.parametrize(
    ("name", "arguments", "shape", "outputs", "count"),
    [
        ("logistic", {}, MNIST, 10, 7850),
        ("mlp", {}, MNIST, 10, 785_000 + 1_001_000 + 10_010),
        ("lenet5", {}, MNIST, 10, 156 + 2416 + 30_840 + 10_164 + 850),
        ("vgg16", {}, PHOTOGRAPH, 10, 14_728_266),
        ("allcnn", {}, PHOTOGRAPH, 10, 1_372_254),
        ("resnet18", {}, PHOTOGRAPH, 10, 11_173_962),
        ("squeezenet", {}, PHOTOGRAPH, 10, 734_986),
        ("wide_resnet", {}, PHOTOGRAPH, 10, 36_479_194),
        ("wide_resnet", {}, PHOTOGRAPH, 100, 36_536_884),
        ("wide_resnet", {"depth": 16, "width": 8}, PHOTOGRAPH, 10, 10_961_370),
    ],
)
def test_parameter_count(name, arguments, shape, outputs, count):
    model = BACKBONES[name](shape, outputs, **arguments)
    assert sum(p.numel() for p in model.parameters()) == count


def test_parameter_count_of_squeezenet_by_its_layers():
    """A convolution and its BatchNorm: k² · in · out + 3 out."""

    def fire(channels: int, squeezed: int, width: int) -> int:
        return squeezed * (channels + 3) + width * (5 * squeezed + 3)

    fires = [fire(96, 16, 128), fire(128, 16, 128), fire(128, 32, 256), fire(256, 32, 256)]
    fires += [fire(256, 48, 384), fire(384, 48, 384), fire(384, 64, 512), fire(512, 64, 512)]
    assert 96 * (9 * 3 + 3) + sum(fires) + 513 * 10 == 734_986


def kaiming(weight: Tensor) -> float:
    return math.sqrt(2 / weight[0].numel())


def xavier(weight: Tensor) -> float:
    receptive = weight[0, 0].numel()
    return math.sqrt(2 / (receptive * (weight.shape[0] + weight.shape[1])))


def by_outputs(weight: Tensor) -> float:
    return math.sqrt(2 / (weight[0, 0].numel() * weight.shape[0]))


@pytest.mark.parametrize(
    ("name", "arguments", "deviation"),
    [
        ("lenet5", {}, xavier),
        ("vgg16", {}, kaiming),
        ("allcnn", {}, kaiming),
        ("resnet18", {}, kaiming),
        ("squeezenet", {}, xavier),
        ("wide_resnet", {"depth": 16, "width": 4}, by_outputs),
    ],
)
def test_initialisation(name, arguments, deviation):
    model = BACKBONES[name](PHOTOGRAPH, 10, **arguments)
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    if name == "wide_resnet":
        head = layers.pop().weight
        assert head.std().item() == pytest.approx(xavier(head), rel=0.1)
    for layer in layers:
        weight = layer.weight
        assert weight.std().item() == pytest.approx(
            deviation(weight), rel=6 / math.sqrt(weight.numel())
        )
        bound = math.sqrt(3) * deviation(weight)  # of the uniform distribution
        assert (weight.abs().max() <= bound) == (deviation is xavier)
    for parameter in [m.bias for m in model.modules() if getattr(m, "bias", None) is not None]:
        assert not parameter.any()


@pytest.mark.parametrize("pooling", ["whole", "corner"])
def test_allcnn_averages_batch_normalised_maps(pooling):
    """No ReLU before the average, nor before the dropouts; of the corner, 6x6 of the 8x8."""
    model = BACKBONES["allcnn"](PHOTOGRAPH, 10, pooling=pooling)
    kinds = [type(layer).__name__ for layer in model]
    normalised = ["Conv2d", "BatchNorm2d"]
    rectified = [*normalised, "ReLU"]
    stage = [*rectified, *rectified, *normalised, "Dropout"]
    assert kinds[:-2] == [*stage, *stage, *rectified, *rectified, *normalised]
    maps = model.eval()[:-2](torch.randn(2, *PHOTOGRAPH))
    assert maps.shape == (2, 10, 8, 8)
    assert maps.min() < 0
    seen = maps if pooling == "whole" else maps[:, :, :6, :6]
    torch.testing.assert_close(model[-2:](maps), seen.mean((2, 3)))


@pytest.mark.parametrize("width", [1, 2])
def test_wide_resnet_is_pre_activated(width):
    """BatchNorm and ReLU before each convolution; a shortcut that changes shape starts there."""
    model = BACKBONES["wide_resnet"](PHOTOGRAPH, 10, depth=16, width=width)
    inputs = torch.randn(2, *PHOTOGRAPH)

    def activated(x: Tensor) -> Tensor:
        return nn.functional.batch_norm(x, None, None, training=True).relu()

    x = model.stem(inputs)
    sides = []
    for stage in model.stages:
        assert len(stage.blocks) == 2
        for block in stage.blocks:
            before = activated(x)
            shortcut = x if block.downsample is None else block.downsample.conv(before)
            x = shortcut + block.conv2(activated(block.conv1(before)))
        sides.append(x.shape[-1])
    assert sides == [32, 16, 8]
    expected = model.head.fc(activated(x).mean((2, 3), keepdim=True)).flatten(1)
    torch.testing.assert_close(model(inputs), expected, rtol=1e-4, atol=1e-5)


def test_wide_resnet_drops_between_the_convolutions_of_a_block():
    model = BACKBONES["wide_resnet"](PHOTOGRAPH, 10, depth=10, width=1, dropout=0.3)
    drops = [name for name, m in model.named_modules() if isinstance(m, nn.Dropout) and m.p > 0]
    assert drops == [f"stages.{stage}.blocks.0.norm2.1" for stage in range(3)]


def test_squeezenet_bypasses_every_other_fire_module_but_the_last():
    model = BACKBONES["squeezenet"](PHOTOGRAPH, 10)
    x = model[0](torch.randn(2, *PHOTOGRAPH))
    bypassed, sides = [], []
    for layer in model[1:-3]:
        y = layer(x)
        if isinstance(layer, nn.MaxPool2d):
            sides.append(y.shape[-1])
        else:
            squeezed = layer.squeeze(x)
            plain = torch.cat([layer.expand1x1(squeezed), layer.expand3x3(squeezed)], 1)
            bypassed.append(not plain.equal(y))
            torch.testing.assert_close(y, plain + x if bypassed[-1] else plain)
        x = y
    assert bypassed == [False, True, False, True, False, True, False, False]
    assert sides == [16, 8, 4]


@pytest.mark.parametrize(
    ("name", "shape", "arguments", "message"),
    [
        ("vgg16", MNIST, {}, "at least 32x32"),
        ("allcnn", (3, 16, 16), {"pooling": "corner"}, "at least 24x24"),
        (
            "allcnn",
            PHOTOGRAPH,
            {"pooling": "centre"},
            "pooling = 'centre': give one of",
        ),
        ("squeezenet", (3, 4, 4), {}, "at least 8x8"),
        ("wide_resnet", (10,), {}, "images"),
        ("wide_resnet", PHOTOGRAPH, {"depth": 20}, "6 n \\+ 4"),
        ("wide_resnet", PHOTOGRAPH, {"depth": 4}, "at least 10"),
        ("wide_resnet", PHOTOGRAPH, {"width": 0}, "at least 1"),
    ],
)
def test_sizes_that_a_backbone_cannot_serve(name, shape, arguments, message):
    with pytest.raises(ConfigError, match=message):
        BACKBONES[name](shape, 10, **arguments)
