"""Every registered component keeps its kind's contract; the registry is the list of tests."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from metaloss import BACKBONES, BASE_OPTIMIZERS, META_OPTIMIZERS, REPRESENTATIONS, TASKS, testing
from metaloss.representations.base import Representation

#: Arguments beyond the defaults, by component; those not named are tested with their defaults.
REPRESENTATION_CASES = {
    "nn": [{}, {"activation": "relu", "output": "softplus", "hidden": (50, 50)}, {"hidden": (8,)},
           {"activation": "tanh"}, {"activation": "softplus", "output": "smooth_leaky_relu"}],
    "taylor": [{"order": 2}, {"order": 3}],
}  # fmt: skip
OPTIMIZER_CASES = {
    "sgd": [
        {"lr": 0.1},
        {"lr": 0.1, "momentum": 0.9},
        {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1, "maximize": True},
        {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "maximize": True},
    ],
    "adam": [{}, {"weight_decay": 0.1, "amsgrad": True, "maximize": True}, {"betas": (0.5, 0.6)}],
    "adamw": [{}, {"weight_decay": 0.1, "amsgrad": True, "maximize": True}],
}
META_CASES = {
    "offline_unrolled": [{"meta_lr": 1e-2}, {"meta_lr": 1e-2, "inner_steps": 3},
                         {"meta_lr": 1e-2, "inner_steps": 2, "engine": "unrolled"}],
    "online_one_step": [{"meta_lr": 1e-2}, {"meta_lr": 1e-2, "every": 3},
                        {"meta_lr": 1e-2, "engine": "unrolled"}],
    "meta_lr": [{"meta_lr": 1e-2}, {"meta_lr": 1e-2, "every": 2}],
}  # fmt: skip
BACKBONE_CASES = {
    "mlp": [{"hidden": (16, 8)}],
    "lenet5": [{}, {"activation": "tanh", "pooling": "average"}],
    "allcnn": [{"input_shape": (3, 8, 8)}, {"input_shape": (3, 24, 24), "pooling": "corner"}],
    "resnet18": [{"input_shape": (3, 8, 8), "outputs": 3}],
    "squeezenet": [{"input_shape": (3, 8, 8)}],
    "vgg16": [{"input_shape": (1, 32, 32)}],
    "wide_resnet": [{"input_shape": (1, 8, 8), "depth": 10, "width": 2, "dropout": 0.3}],
    "timm": [
        {"name": "test_efficientnet", "input_shape": (1, 32, 32)},
        {
            "name": "test_vit",
            "input_shape": (3, 8, 8),
            "arguments": {"img_size": 8, "patch_size": 4},
        },
    ],
}
TASK_CASES = {
    "arrays": [{"path": "cifar10_subset.npz", "padding": 2, "flip": True}],
    "table": [
        {"path": "houses.csv", "target": "price", "kind": "regression", "ignore": ("id",)},
        {"path": "houses.csv", "target": "rooms", "kind": "classification", "valid_fraction": 0.2},
    ],
    "image_folder": [{"path": "pictures", "size": 16}],
}


def cases(registry, known):
    return [
        pytest.param(name, arguments, id="-".join([name, *map(str, arguments.values())]))
        for name in registry
        for arguments in known.get(name, [{}])
    ]


@pytest.mark.parametrize(("name", "arguments"), cases(REPRESENTATIONS, REPRESENTATION_CASES))
def test_representation(name, arguments):
    testing.check_representation(REPRESENTATIONS[name], **arguments)


@pytest.mark.parametrize(("name", "arguments"), cases(BASE_OPTIMIZERS, OPTIMIZER_CASES))
def test_base_optimizer(name, arguments):
    testing.check_base_optimizer(BASE_OPTIMIZERS[name], **arguments)


@pytest.mark.parametrize(("name", "arguments"), cases(META_OPTIMIZERS, META_CASES))
def test_meta_optimizer(name, arguments):
    testing.check_meta_optimizer(lambda: META_OPTIMIZERS[name](**arguments))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # timm's import
@pytest.mark.parametrize(("name", "arguments"), cases(BACKBONES, BACKBONE_CASES))
def test_backbone(name, arguments):
    testing.check_backbone(BACKBONES[name], **arguments)


@pytest.mark.parametrize(("name", "arguments"), cases(TASKS, TASK_CASES))
def test_task(name, arguments, few_examples):
    testing.check_task(TASKS[name](**arguments), few_examples)


def test_parameter_counts():
    def count(name, **arguments):
        return sum(p.numel() for p in REPRESENTATIONS[name](**arguments).parameters())

    assert count("nn") == 1720
    assert count("taylor", order=2) == 5
    assert count("taylor", order=3) == 8


class Constant(Representation):
    """Does not depend on its parameter in a way that could be learned."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(()))

    def forward(self, prediction, target):
        return (prediction - target).square().mean(-1) + self.offset


class Reduced(Representation):
    """Averages over the batch."""

    def forward(self, prediction, target):
        return (prediction - target).square().mean()


class Forgetful(Representation):
    """Keeps its argument as an object that cannot be written down."""

    def __init__(self, power: int = 2) -> None:
        super().__init__()
        self.power = torch.tensor(power)

    def forward(self, prediction, target):
        return (prediction - target).pow(2).mean(-1)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Constant, "no parameter can learn"),
        (Reduced, "not one loss per example"),
        (Forgetful, "not plain data"),
    ],
)
def test_a_broken_representation_is_found(broken, message):
    with pytest.raises(testing.ContractError, match=message):
        testing.check_representation(broken)


def test_a_wrong_update_is_found(monkeypatch):
    from metaloss.base_optimizers.sgd import SGDUpdate

    right = SGDUpdate.cotangent
    monkeypatch.setattr(SGDUpdate, "cotangent", lambda *a: [2 * u for u in right(*a)])
    with pytest.raises(testing.ContractError, match="∂θ'/∂g is wrong"):
        testing.check_base_optimizer(BASE_OPTIMIZERS["sgd"], lr=0.1)
