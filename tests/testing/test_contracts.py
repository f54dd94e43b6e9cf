"""Every registered component keeps its kind's contract; the registry is the list of tests."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from metaloss import (
    BACKBONES,
    BASE_OPTIMIZERS,
    DESCENTS,
    ENGINES,
    GROUPINGS,
    LAUNCHERS,
    META_OPTIMIZERS,
    RATES,
    REPRESENTATIONS,
    SCHEDULES,
    TASKS,
    testing,
)
from metaloss.representations.base import Representation
from tests.helpers import FORMAT_1

#: Arguments beyond the defaults, by component; those not named are tested with their defaults.
REPRESENTATION_CASES = {
    "nn": [{}, {"activation": "relu", "output": "softplus", "hidden": (50, 50)}, {"hidden": (8,)},
           {"activation": "tanh"}, {"activation": "softplus", "output": "smooth_leaky_relu"}],
    "taylor": [{"order": 2}, {"order": 3}, {"order": 6}],
    "poly": [{}, {"terms": 3, "epsilon": (0.5, -0.4, 1.0)}],
    "focal": [{}, {"gamma": 2.0, "alpha": 0.25}, {"gamma": -0.5}],
    "label_smoothing": [{}, {"epsilon": 1e-3}],
    "robust": [{}, {"alpha": 1.999}, {"alpha": 0.0, "c": 0.1}, {"alpha": -1e5}],
    "monotone_spline": [{}, {"intervals": 1}, {"start": "squared_error"}],
    "class_set": [{}, {"context": "attention", "hidden": (8,)}],
    "residual": [{}, {"base": "squared_error", "correction": "taylor", "factor": 0.1}],
    "step_conditioned": [{}, {"of": "focal", "degree": 3}],
    "scale_shape": [{}, {"of": "taylor", "settings": {"order": 2}, "limit": 2.0},
                    {"of": "cross_entropy"}],
    "terms": [{}, {"terms": ("y*log(f)", "(1-y)*f^2", "e^4", "log(cosh(e))"),
                   "coefficients": (-1.0, 0.5, 0.2, 0.1)}],
    "pretrained": [{"path": str(FORMAT_1)}, {"path": str(FORMAT_1), "step": 5}],
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
    "rmsprop": [
        {},
        {"eps": 0.1, "weight_decay": 0.1, "maximize": True},
        {"alpha": 0.9, "eps": 0.1, "centered": True},
        {"momentum": 0.9, "eps": 0.1, "centered": True, "weight_decay": 0.1, "maximize": True},
    ],
    "adagrad": [
        {},
        {"lr_decay": 0.1, "initial_accumulator_value": 0.5, "weight_decay": 0.1, "maximize": True},
    ],
    "adadelta": [{}, {"rho": 0.5, "eps": 0.1, "weight_decay": 0.1, "maximize": True}],
    "adamax": [{}, {"betas": (0.5, 0.6), "eps": 0.1, "weight_decay": 0.1, "maximize": True}],
    "nadam": [
        {},
        {"eps": 0.1, "weight_decay": 0.1, "momentum_decay": 0.1, "maximize": True},
        {"eps": 0.1, "weight_decay": 0.1, "decoupled_weight_decay": True},
    ],
    "radam": [
        {},
        {"betas": (0.8, 0.9), "eps": 0.1, "weight_decay": 0.1, "maximize": True},
        {"eps": 0.1, "weight_decay": 0.1, "decoupled_weight_decay": True},
    ],
    "asgd": [{}, {"lambd": 0.1, "t0": 2.0, "weight_decay": 0.1, "maximize": True}],
    "rprop": [{}, {"etas": (0.3, 2.0), "step_sizes": (1e-3, 0.02), "maximize": True}],
}
META_CASES = {
    "offline_unrolled": [{"meta_lr": 1e-2}, {"meta_lr": 1e-2, "inner_steps": 3},
                         {"meta_lr": 1e-2, "inner_steps": 2, "engine": "unrolled"}],
    "online_one_step": [{"meta_lr": 1e-2}, {"meta_lr": 1e-2, "every": 3},
                        {"meta_lr": 1e-2, "engine": "unrolled"},
                        {"meta_lr": 1e-2, "rate": RATES["bounded"](), "rate_meta_lr": 1e-1},
                        {"meta_lr": 1e-2, "engine": "persistent_evolution"}],
    "meta_lr": [{"meta_lr": 1e-2}, {"meta_lr": 1e-2, "every": 2},
                {"meta_lr": 1e-1, "rate": RATES["exponential"]()}],
    "in_turn": [{"phases": [META_OPTIMIZERS["offline_unrolled"](steps=steps, inner_steps=2)
                            for steps in (3, 60)]}],
    "replay": [{"path": str(FORMAT_1)}, {"path": str(FORMAT_1), "over": 100}],
}  # fmt: skip
ENGINE_CASES = {
    "exact": [{}, {"inner_steps": 3}],
    "sweep": [{}, {"inner_steps": 3}],
    "unrolled": [{}, {"inner_steps": 3}],
    "auto": [{}, {"inner_steps": 3}],
    "conjugate_gradient": [{"inner_steps": 3, "damping": 0.1}],
    "neumann": [{"inner_steps": 3, "lr": 0.01}, {}],
    "evolution": [{"inner_steps": 2, "pairs": 2}],
    "persistent_evolution": [{"inner_steps": 2, "pairs": 2}, {"horizon": 1}],
}
DESCENT_CASES = {
    "adam": [
        {},
        {"clip_norm": 0.1, "trust_radius": 0.1},
        {"warm_up": 5, "schedule": "cosine", "schedule_steps": 50},
        {"schedule": "linear", "schedule_steps": 50},
    ],
    "sgd": [{}, {"momentum": 0.0, "clip_norm": 1.0, "trust_radius": 0.1}],
    "rmsprop": [{}, {"warm_up": 5, "schedule": "cosine", "schedule_steps": 50}],
}
WARM = {"warm_up": 0.25}  # 3 of 12 steps
SCHEDULE_CASES = {
    "chain": [
        {
            "parts": [SCHEDULES["warm_up"], SCHEDULES["constant"], SCHEDULES["cosine"]],
            "at": (2, 0.5),
        }
    ],
    "cosine": [{}, WARM],
    "plateau": [{"patience": 1}],
    "steps": [{}, WARM],
    "warm_up": [{}, {"length": 4}],
}
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
    "image_table": [
        {"path": "pictures.csv", "label": "label", "folder": "pictures", "size": 16},
    ],
    "webdataset": [{"path": "shards", "size": 16}],
    "hf_dataset": [{"path": "saved", "size": 16}],
}
LAUNCHER_CASES = {
    "local": [{"parallel": 2}],
    "slurm": [{"cluster": "local", "poll": 0.1, "threads": 1, "memory": 1}],
    "ray": [{"parallel": 2}],
}


def _word(value):
    """An argument in a test's name, which must be the same in every process."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(_word, value))
    return type(value).__name__ if hasattr(value, "__dict__") else str(value)


def cases(registry, known, full=()):
    """Every component with its arguments; those named in `full` are left to that run."""
    return [
        pytest.param(
            name,
            arguments,
            id="-".join([name, *map(_word, arguments.values())]),
            marks=pytest.mark.full if name in full else (),
        )
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
    testing.check_meta_optimizer(lambda: META_OPTIMIZERS[name](**copy.deepcopy(arguments)))


@pytest.mark.filterwarnings("ignore:engine 'compiled' does not compile this step")
@pytest.mark.parametrize(("name", "arguments"), cases(ENGINES, ENGINE_CASES))
def test_engine(name, arguments):
    arguments = dict(arguments)
    steps = arguments.pop("inner_steps", 1)
    testing.check_engine(lambda: ENGINES[name](**arguments), inner_steps=steps)


@pytest.mark.parametrize(
    ("name", "arguments"), cases(GROUPINGS, {"patterns": [{"rates": {"fc.*": 10.0}}]})
)
def test_grouping(name, arguments):
    """timm's warnings at import are its own."""
    model = BACKBONES["timm"]((3, 32, 32), 2, "resnet18", {"channels": (4, 4, 8, 8)})
    testing.check_grouping(GROUPINGS[name], model, **arguments)


@pytest.mark.parametrize(("name", "arguments"), cases(RATES, {}))
def test_rate(name, arguments):
    testing.check_rate(RATES[name](**arguments))


@pytest.mark.parametrize(("name", "arguments"), cases(DESCENTS, DESCENT_CASES))
def test_descent(name, arguments):
    testing.check_descent(DESCENTS[name], **arguments)


@pytest.mark.parametrize(("name", "arguments"), cases(SCHEDULES, SCHEDULE_CASES))
def test_schedule(name, arguments):
    testing.check_schedule(SCHEDULES[name], **arguments)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # timm's import
@pytest.mark.parametrize(
    ("name", "arguments"), cases(BACKBONES, BACKBONE_CASES, full=["vgg16", "resnet18"])
)
def test_backbone(name, arguments):
    testing.check_backbone(BACKBONES[name], **arguments)


@pytest.mark.parametrize(("name", "arguments"), cases(TASKS, TASK_CASES))
def test_task(name, arguments, few_examples):
    testing.check_task(TASKS[name](**arguments), few_examples)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::ResourceWarning")  # of Ray's own
@pytest.mark.parametrize(("name", "arguments"), cases(LAUNCHERS, LAUNCHER_CASES, full=["ray"]))
def test_launcher(name, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # submitit's own files
    testing.check_launcher(LAUNCHERS[name](**arguments))


def test_parameter_counts():
    def count(name, **arguments):
        return sum(p.numel() for p in REPRESENTATIONS[name](**arguments).parameters())

    assert count("nn") == 1720
    assert count("taylor", order=2) == 5
    assert count("taylor", order=3) == 8
    assert count("taylor", order=5) == 17
    assert count("monotone_spline") == 36
    assert count("class_set") == 1720 + 40 * 40 + 40
    assert count("class_set", context="attention") == count("class_set") + 4 * 40 * 40
    assert count("residual") == 1721
    assert count("step_conditioned", degree=2) == 3 * 1720


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


class Infinite(Representation):
    """log 0 where a probability is 0."""

    def forward(self, prediction, target):
        return -(prediction * target).sum(-1).log()


class Absent(Representation):
    """Keeps what it is told where neither a checkpoint nor an export finds it."""

    progress = 0.0

    def observe(self, step, steps):
        self.progress = step / steps

    def forward(self, prediction, target):
        return (prediction - target).square().mean(-1) * (1 + self.progress)


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
        (Infinite, r"its value is not finite on probabilities of 0 and 1 in float32"),
        (Absent, r"arguments\(\) and state_dict lose something"),
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


def test_a_task_whose_raw_inputs_are_others_is_found(tmp_path, monkeypatch):
    from metaloss.tasks.preparation.scaling import Scaling

    right = Scaling.undo
    monkeypatch.setattr(Scaling, "undo", lambda self, scaled: right(self, scaled) + 1)
    with pytest.raises(testing.ContractError, match="raw inputs, prepared, are not the inputs"):
        testing.check_task(TASKS["digits"](), tmp_path)
