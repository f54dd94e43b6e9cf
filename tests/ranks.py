"""What tests/test_distributed.py has two processes compute, and one alone: the same functions.

As a module it is one of the processes: it computes every case on its share and saves the results.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaloss import ENGINES, RATES, REPRESENTATIONS, AdaLFL, distributed, processes
from metaloss.meta_optimizers.offline_unrolled import OfflineUnrolled
from metaloss.meta_optimizers.online_one_step import OnlineOneStep

STEPS = 20
FEATURES, CLASSES = 6, 3
TRAIN, VALID = 13, 7  #: examples in a batch; neither is even

Results = dict[str, Tensor]


class Partly(nn.Module):
    """A model of which some batches use a part that others leave alone, and nobody uses a third."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.sometimes, self.never = (nn.Linear(FEATURES, CLASSES) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.always(x)
        return outputs + self.sometimes(x) if bool((x[:, 0] > 1.5).any()) else outputs


class Regularised(nn.Module):
    """A learned loss that looks at θ itself."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.loss = REPRESENTATIONS["nn"](hidden=(8,))
        self.strength = nn.Parameter(torch.tensor(0.1))
        self._weight = [weight]  # not a parameter of the loss

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return self.loss(prediction, target) + self.strength * self._weight[0].square().sum()


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 16), nn.Tanh(), nn.Linear(16, CLASSES))


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    settings = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3}
    return torch.optim.SGD(model.parameters(), **settings)


def batches(examples: int, seed: int):
    """This process's shares of endless batches."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        x = torch.randn(examples, FEATURES, generator=generator)
        y = torch.randint(CLASSES, (examples,), generator=generator)
        taken = distributed.share(examples)
        yield x[taken], y[taken]


def train(learner: AdaLFL, steps: int = STEPS) -> Results:
    train, valid = batches(TRAIN, 1), batches(VALID, 2)
    numbers = []
    for _ in range(steps):
        result = learner.step(train.__next__, valid.__next__)
        given = (result.learned_loss, result.task_loss, result.gradient_norm)
        numbers.append(torch.stack([torch.zeros(()) if x is None else x.float() for x in given]))
    return results(learner) | {"metrics": torch.stack(numbers)}


def results(learner: AdaLFL) -> Results:
    problem = learner.problem
    found = {f"theta.{name}": value for name, value in problem.model.state_dict().items()}
    found |= {f"phi.{name}": value.detach() for name, value in problem.named_phi.items()}
    lr = torch.tensor(problem.optimizer.param_groups[0]["lr"], dtype=torch.float64)
    return {name: value.clone() for name, value in found.items()} | {"lr": lr}


def learner(
    model: nn.Module | None = None, loss: nn.Module | None = None, make=optimizer, **settings
) -> AdaLFL:
    model = mlp() if model is None else model
    loss = REPRESENTATIONS["nn"](hidden=(8,)) if loss is None else loss
    return AdaLFL(model, make(model), loss, F.cross_entropy, **settings)


def adaptation(engine: str = "auto", **settings) -> OnlineOneStep:
    return OnlineOneStep(1e-2, engine=ENGINES[engine](), **settings)


def by_engine(engine: str) -> Callable[[], Results]:
    def case() -> Results:
        few = 3 if "evolution" in engine else STEPS
        return train(learner(adaptation=adaptation(engine)), few)

    return case


def rate_by_engine(engine: str) -> Callable[[], Results]:
    """α beside φ, by an optimizer whose step is not linear in g."""

    def case() -> Results:
        made = adaptation(engine, rate=RATES["exponential"]())
        return train(learner(make=lambda m: torch.optim.RMSprop(m.parameters()), adaptation=made))

    return case


def offline(engine: str) -> Callable[[], Results]:
    """Three inner steps per meta-step, θ drawn anew; then online."""

    def case() -> Results:
        made = learner(adaptation=adaptation())
        phase = OfflineUnrolled(5, 3, 1e-2, engine=ENGINES[engine]())
        phase.attach(made.problem)
        train_batches, valid_batches = batches(TRAIN, 3), batches(VALID, 4)

        def redraw() -> None:
            for layer in (made.problem.model[0], made.problem.model[2]):
                layer.reset_parameters()

        for _ in made.initializing(phase, train_batches.__next__, valid_batches.__next__, redraw):
            pass
        return train(made)

    return case


def baseline() -> Results:
    model = mlp()
    return train(AdaLFL(model, optimizer(model), None, F.cross_entropy, meta_lr=None))


def meta_lr() -> Results:
    model = mlp()
    made = OnlineOneStep(1e-2, learn=(), rate=RATES["raw"]())
    return train(AdaLFL(model, optimizer(model), None, F.cross_entropy, adaptation=made))


def looks_at_theta() -> Results:
    model = mlp()
    return train(learner(model, Regularised(model[0].weight), adaptation=adaptation()))


def convolutions() -> Results:
    """In channels_last, with a parameter that needs no gradient."""
    model = nn.Sequential(
        nn.Unflatten(1, (2, 3, 1)), nn.Conv2d(2, 4, (2, 1)), nn.Tanh(), nn.Flatten(),
        nn.Linear(8, CLASSES),
    ).to(memory_format=torch.channels_last)  # fmt: skip
    model[1].bias.requires_grad_(False)
    return train(learner(model, adaptation=adaptation()))


CASES: dict[str, Callable[[], Results]] = {
    "baseline": baseline,
    "meta_lr": meta_lr,
    "looks at theta": looks_at_theta,
    "partly": lambda: train(learner(Partly(), adaptation=adaptation())),
    "convolutions": convolutions,
    **{f"online {engine}": by_engine(engine) for engine in ENGINES},
    **{f"rate {engine}": rate_by_engine(engine) for engine in ("exact", "sweep", "unrolled")},
    **{f"offline {engine}": offline(engine) for engine in ("exact", "unrolled")},
}


def compute(case: str) -> Results:
    """A case from its own seed."""
    torch.manual_seed(0)
    return CASES[case]()


def main(folder: str) -> None:
    torch.set_num_threads(1)
    with processes.joined(60):
        found = {case: compute(case) for case in CASES}
        torch.save(found, f"{folder}/{distributed.rank()}.pt")


if __name__ == "__main__":
    main(sys.argv[1])
