"""What tests/problem/test_shards.py has two processes do with a sharded model, and one with it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import metaloss
from metaloss.errors import InputError, UnsupportedModelError
from metaloss.machine import distributed, processes

STEPS = 20
FEATURES, CLASSES = 8, 3
TRAIN, VALID = 13, 7  #: examples in a batch; neither is even
Results = dict[str, Any]


def mlp() -> nn.Module:
    """No layer has as many rows for one process as for the other."""
    return nn.Sequential(nn.Linear(8, 15), nn.ReLU(), nn.Linear(15, 7), nn.Tanh(), nn.Linear(7, 3))


class Attends(nn.Module):
    """A transformer, whose own parameters are gathered with the head's, and one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(FEATURES, 16)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.place = nn.Parameter(torch.randn(3, 16))
        self.head = nn.Linear(16, CLASSES)
        self.embed.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.embed(x).unsqueeze(1) + self.place).mean(1))


class Convolves(nn.Sequential):
    """With a normalisation, and one layer twice."""

    def __init__(self) -> None:
        twice = nn.Conv2d(4, 4, 1)
        super().__init__(
            nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 4, 2), nn.GroupNorm(2, 4), twice, nn.Tanh(),
            twice, nn.Flatten(), nn.Linear(4, CLASSES),
        )  # fmt: skip


class Doubling(torch.autograd.Function):
    """2x, without a forward derivative."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, bar):
        return 2 * bar


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Doubling.apply(x)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.01),
    "momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
    "rmsprop": partial(torch.optim.RMSprop, lr=1e-3),
}


def in_shards(model: nn.Module, **settings: Any) -> nn.Module:
    """In several processes: layer by layer, and the model last."""
    if distributed.several():
        for layer in dict.fromkeys(model.children()):
            if next(layer.parameters(), None) is not None and not isinstance(layer, FSDPModule):
                fully_shard(layer, **settings)
        fully_shard(model, **settings)
    return model


def batches(examples: int, seed: int):
    """This process's shares of endless batches."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        x = torch.randn(examples, FEATURES, generator=generator)
        y = torch.randint(CLASSES, (examples,), generator=generator)
        taken = distributed.share(examples)
        yield x[taken], y[taken]


def learner(
    model: nn.Module, optimizer: str = "momentum", engine: str = "auto", rate: Any = None, **more
) -> metaloss.AdaLFL:
    torch.manual_seed(1)
    loss = metaloss.REPRESENTATIONS["nn"](hidden=(8,))
    adaptation = metaloss.META_OPTIMIZERS["online_one_step"](1e-3, engine=engine, rate=rate)
    made = OPTIMIZERS[optimizer](filter(lambda p: p.requires_grad, model.parameters()))
    return metaloss.AdaLFL(model, made, loss, F.cross_entropy, adaptation=adaptation, **more)


def train(made: metaloss.AdaLFL, steps: int = STEPS) -> list[Tensor]:
    train_batches, valid_batches = batches(TRAIN, 2), batches(VALID, 3)
    rows = []
    for _ in range(steps):
        row = made.step(next(train_batches), next(valid_batches))
        rows.append(torch.stack([row.learned_loss, row.task_loss, row.gradient_norm]).float())
    return rows


def whole(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.clone()


def results(made: metaloss.AdaLFL, **more: Any) -> Results:
    found = {f"theta.{n}": whole(v) for n, v in made.problem.model.state_dict().items()}
    found |= {f"phi.{n}": v.detach().clone() for n, v in made.problem.named_phi.items()}
    engine = made.adaptation.engine
    return found | {"engine": type(getattr(engine, "chosen", engine)).__name__} | more


def case(model: Callable[[], nn.Module], evaluating: bool = False, **settings: Any) -> Results:
    torch.manual_seed(0)
    made = learner(in_shards(model()), **settings)
    rows = train(made, STEPS // 2)
    if evaluating:  # which leaves the outermost parameters whole
        with torch.no_grad():
            made.problem.model(torch.zeros(2, FEATURES))
    rows += train(made, STEPS - STEPS // 2)
    lr = torch.tensor(made.problem.optimizer.param_groups[0]["lr"], dtype=torch.float64)
    numbers = made.health(next(batches(TRAIN, 4))).numbers if evaluating else {}
    return results(made, metrics=torch.stack(rows), lr=lr, numbers=numbers)


RATE = metaloss.RATES["exponential"]
CASES: dict[str, Callable[[], Results]] = {
    "adamw": lambda: case(mlp, optimizer="adamw"),
    "momentum": lambda: case(mlp, evaluating=True),
    "rate": lambda: case(mlp, optimizer="rmsprop", rate=RATE()),
    "clipped": lambda: case(mlp, gradient_transform=metaloss.ClipNorm(0.02)),
    "values": lambda: case(mlp, gradient_transform=metaloss.ClipValue(0.01)),
    "attention": lambda: case(Attends, optimizer="adamw"),
    "convolutions": lambda: case(Convolves),
    "difference": lambda: case(mlp, engine="logit_difference"),
    "no forward mode": lambda: case(lambda: nn.Sequential(mlp(), Doubled())),
}


def compute(name: str) -> Results:
    """A case in float64: what is wrong has nowhere to hide."""
    torch.set_default_dtype(torch.float64)
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found = CASES[name]()
        return found | {"told": sorted({str(w.message) for w in told})}
    finally:
        torch.set_default_dtype(torch.float32)


def interrupted(folder: Path) -> tuple[Results, Results]:
    """Ten steps of AdamW at once; and five, a checkpoint of shards, and five by another learner."""

    def made() -> metaloss.AdaLFL:
        torch.manual_seed(0)
        return learner(in_shards(mlp()), "adamw")

    def state(one: metaloss.AdaLFL) -> dict[str, Any]:
        model, optimizer = get_state_dict(one.problem.model, one.problem.optimizer)
        return {"model": model, "optimizer": optimizer, "learner": one.state_dict()}

    straight = made()
    train(straight, 5)
    dcp.save(state(straight), checkpoint_id=folder)
    train(straight, 5)
    other = made()
    train(other, 1)  # so that there is a state to be overwritten
    kept = state(other)
    dcp.load(kept, checkpoint_id=folder)
    set_state_dict(
        other.problem.model, other.problem.optimizer,
        model_state_dict=kept["model"], optim_state_dict=kept["optimizer"],
    )  # fmt: skip
    other.load_state_dict(kept["learner"])
    train(other, 5)
    return results(straight), results(other)


def refusals() -> list[str]:
    """What is said to what cannot be sharded."""

    def partly() -> nn.Module:
        model = mlp()
        return fully_shard(model, ignored_params={model[0].bias})

    def mixed() -> None:
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
        train(learner(in_shards(mlp(), mp_policy=policy), engine="exact"), 1)

    def looking() -> None:
        model = in_shards(mlp())
        made = learner(model)
        size = model[0].weight.to_local().sum  # with a graph to this process's part
        made.problem.loss.forward = lambda p, t: (p - t).square().mean(-1) + size()
        train(made, 1)

    def layers_alone() -> nn.Module:
        model = mlp()
        fully_shard(model[0])
        return model

    def replicas_of_shards() -> nn.Module:
        mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard"))
        return fully_shard(mlp(), mesh=mesh)

    def tensor_parallel(and_shards: bool) -> nn.Module:
        mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("shard", "parallel"))
        plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
        model = parallelize_module(mlp(), mesh["parallel"], plan)
        return fully_shard(model, mesh=mesh["shard"]) if and_shards else model

    attempts: list[Callable[[], Any]] = [
        lambda: learner(partly()),
        lambda: learner(layers_alone()),
        lambda: learner(replicas_of_shards()),
        lambda: learner(tensor_parallel(and_shards=False)),
        lambda: learner(tensor_parallel(and_shards=True)),
        lambda: learner(in_shards(mlp()), engine="sweep"),
        lambda: train(learner(in_shards(mlp()), gradient_transform=lambda grads: grads), 1),
        lambda: learner(in_shards(mlp())).initialize(batches(TRAIN, 3).__next__, [], 2),
        lambda: learner(in_shards(mlp()), cuda_graphs=True),
        mixed,
        looking,
    ]
    said = []
    for attempt in attempts:
        try:
            attempt()
        except (InputError, UnsupportedModelError) as error:
            said.append(str(error))
    return said


def main(root: Path) -> None:
    torch.set_num_threads(1)
    with processes.joined(120):
        found: dict[str, Any] = {"cases": {name: compute(name) for name in CASES}}
        found["interrupted"] = interrupted(root / "checkpoint")
        found["refusals"] = refusals()
        torch.save(found, root / f"{distributed.rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
