"""What tests/runs/test_distributed.py has two processes do, and one alone: the same functions.

As a program it is one of the processes: it computes the cases that are named on its share, or all,
and then carries out every run too; and saves the results and what it wrote to the disk beside them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaloss import DESCENTS, ENGINES, RATES, REPRESENTATIONS, AdaLFL
from metaloss.errors import InputError
from metaloss.machine import distributed, processes
from metaloss.meta_optimizers.offline_unrolled import OfflineUnrolled
from metaloss.meta_optimizers.online_one_step import OnlineOneStep
from metaloss.runs import launch, pictures
from metaloss.runs.run import Run

STEPS = 5
#: Where the defaults are costly.
ENGINE_SETTINGS = {
    "compiled": {"compiler": "none"},
    "evolution": {"pairs": 2},
    "persistent_evolution": {"pairs": 2},
    "conjugate_gradient": {"iterations": 3},
    "neumann": {"iterations": 3},
}
FEATURES, CLASSES = 6, 3
TRAIN, VALID = 13, 7  #: examples in a batch; neither is even

Results = dict[str, Tensor]


class Partly(nn.Module):
    """Few examples use the second part, so that some shares do not; none use the third."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.sometimes, self.never = (nn.Linear(FEATURES, CLASSES) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        outputs, rare = self.always(x), x[:, 0] > 1.5
        if not bool(rare.any()):
            return outputs
        return outputs.index_put((rare,), self.sometimes(x[rare]), accumulate=True)


class Regularised(nn.Module):
    """A learned loss that looks at θ itself."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.loss = REPRESENTATIONS["nn"](hidden=(8,))
        self.strength = nn.Parameter(torch.tensor(0.1))
        self._weight = [weight]  # not a parameter of the loss

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return self.loss(prediction, target) + self.strength * self._weight[0].square().sum()


class EachHalf(nn.BatchNorm1d):
    """What two processes make of BatchNorm, in one: each half by its own statistics."""

    def forward(self, x: Tensor) -> Tensor:
        halves = x[: len(x) // 2], x[len(x) // 2 :]
        with torch.no_grad():
            for name, found in (
                ("mean", [h.mean(0) for h in halves]),
                ("var", [h.var(0) for h in halves]),
            ):
                mean = sum(len(h) * s for h, s in zip(halves, found, strict=True)) / len(x)
                getattr(self, f"running_{name}").lerp_(mean, self.momentum)
            self.num_batches_tracked += 1
        return torch.cat(
            [
                F.batch_norm(h, None, None, self.weight, self.bias, True, 0.0, self.eps)
                for h in halves
            ]
        )


def mlp(norm: Callable[[int], nn.Module] = nn.Identity) -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 16), norm(16), nn.Tanh(), nn.Linear(16, CLASSES))


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    settings = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3}
    return torch.optim.SGD(model.parameters(), **settings)


def batches(examples: int, seed: int, counted: int | None = None):
    """This process's shares of endless batches, of which the first rows alone may count."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        x = torch.randn(examples, FEATURES, generator=generator)
        y = torch.randint(CLASSES, (examples,), generator=generator)
        y[examples if counted is None else counted :] = -100
        taken = distributed.share(examples)
        yield x[taken], y[taken]


def train(learner: AdaLFL, counted: int | None = None) -> Results:
    train, valid = batches(TRAIN, 1, counted), batches(VALID, 2, counted)
    numbers = []
    for _ in range(STEPS):
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
    made = ENGINES[engine](**ENGINE_SETTINGS.get(engine, {}))
    return OnlineOneStep(1e-2, engine=made, **settings)


def by_engine(engine: str) -> Callable[[], Results]:
    def case() -> Results:
        return train(learner(adaptation=adaptation(engine)))

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
        phase = OfflineUnrolled(3, 3, horizon=1, meta_lr=1e-2, engine=ENGINES[engine]())
        phase.attach(made.problem)
        train_batches, valid_batches = batches(TRAIN, 3), batches(VALID, 4)

        def redraw() -> None:
            for layer in (made.problem.model[0], made.problem.model[3]):
                layer.reset_parameters()

        draws = train_batches.__next__, valid_batches.__next__
        for _ in made.initializing(phase, *draws, redraw, trial_steps=0):
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


def batch_norm(engine: str) -> Callable[[], Results]:
    def case() -> Results:
        norm = nn.BatchNorm1d if distributed.several() else EachHalf
        return train(learner(mlp(norm), adaptation=adaptation(engine)))

    return case


def initialized_in_a_loop() -> Results:
    """Processes that start apart, and each draw θ anew by a generator of their own."""
    if distributed.several():
        torch.manual_seed(distributed.rank())
    made = learner(adaptation=adaptation())
    made.initialize(
        batches(TRAIN, 3).__next__, batches(VALID, 4).__next__, 3, 2, 1e-2,
        horizon=1, fit_steps=0, scale_steps=0, trial_steps=0,
    )  # fmt: skip
    return train(made)


def natural() -> Results:
    """A metric of φ that is a mean over the pairs of all processes."""
    return train(learner(meta_lr=1e-1, descent=DESCENTS["natural"]))


def ignored(engine: str) -> Callable[[], Results]:
    """Rows that do not count, as all of the second process are."""

    def case() -> Results:
        return train(learner(adaptation=adaptation(engine), health_every=2), counted=2)

    return case


CASES: dict[str, Callable[[], Results]] = {
    "baseline": baseline,
    "meta_lr": meta_lr,
    "looks at theta": looks_at_theta,
    "partly": lambda: train(learner(Partly(), adaptation=adaptation())),
    "convolutions": convolutions,
    "batch norm exact": batch_norm("exact"),
    "batch norm unrolled": batch_norm("unrolled"),
    "initialized in a loop": initialized_in_a_loop,
    "natural": natural,
    **{f"ignored {engine}": ignored(engine) for engine in ("exact", "unrolled", "neumann")},
    **{f"online {engine}": by_engine(engine) for engine in ENGINES},
    **{f"rate {engine}": rate_by_engine(engine) for engine in ("exact", "sweep", "unrolled")},
    **{f"offline {engine}": offline(engine) for engine in ("exact", "unrolled")},
}


def compute(case: str) -> Results:
    """A case from its own seed, in float64: what is wrong has nowhere to hide."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    try:
        return CASES[case]()
    finally:
        torch.set_default_dtype(torch.float32)


# --- runs ---

QUICK = [
    "Runner.steps = 20",
    "Runner.log_every = 3",
    "Runner.evaluate_every = 9",
    "Runner.samples = 3",
    "Runner.figures = 1",
    "tasks.digits.batch_size = 17",
    "tasks.digits.valid_fraction = 0.07",  # 101 examples, fewer than a batch of the objective
    "backbones.mlp.hidden = (8,)",
]
#: An initialisation of seven meta-steps; in Adam's first ones rounding moves φ by some of η.
SHORT = [
    "meta_optimizers.task_fit.steps = 2",
    "meta_optimizers.task_fit.meta_lr = 1e-3",
    "meta_optimizers.offline_unrolled.meta_lr = 1e-3",
    "meta_optimizers.offline_unrolled.steps = 5",
    "meta_optimizers.offline_unrolled.scale_steps = 2",
    "meta_optimizers.offline_unrolled.inner_steps = 2",
]
METHODS = {
    # With what the first process alone finds and all go by: nothing is below a threshold of 0.
    "baseline": [
        "Runner.schedule = @schedules.plateau",
        "schedules.plateau.patience = 0",
        "schedules.plateau.threshold = 1.0",
        "Runner.clip_norm = 0.5",
        "Runner.micro_batches = 2",
        "Runner.ema = 0.9",
        "Runner.keep_best = 'valid'",
        "Runner.patience = 1",
        "Runner.evaluate_every = 4",
    ],
    "ml3": SHORT,
    "adalfl": [
        *SHORT,
        "meta_optimizers.offline_unrolled.scale_steps = 0",  # the trial of a larger one rounds more
        "meta_optimizers.online_one_step.objective_batch_size = 200",
        "base_optimizers.sgd.momentum = 0.9",
    ],
    "meta_lr": [
        "meta_optimizers.offline_unrolled.steps = 7",
        "meta_optimizers.offline_unrolled.scale_steps = 2",
        "meta_optimizers.offline_unrolled.inner_steps = 2",
    ],
}
#: What people train with, beside a method of any kind.
USUAL = {
    "usual": [
        "Runner.schedule = @schedules.cosine",
        "schedules.cosine.warm_up = 4",
        "Runner.clip_norm = 0.5",
        "Runner.micro_batches = 2",
        "Runner.ema = 0.9",
        "Runner.keep_best = 'valid'",
        "Runner.checkpointed = ('2',)",
    ],
    "mixed": [
        "Runner.schedule = @schedules.plateau",  # by the metric, which both must know
        "schedules.plateau.patience = 0",
        "schedules.plateau.threshold = 0.5",
        "Runner.clip_norm = None",
        "Runner.clip_value = 0.05",
        "Runner.mixup = 0.4",
        "Runner.label_smoothing = 0.1",
        "Runner.frozen_until = {'1.*': 7}",
        "Runner.grouping = @groupings.patterns",
        "groupings.patterns.rates = {'1.*': 0.5}",
        "groupings.patterns.no_decay = ('*.bias',)",
    ],
    "one_cycle": [
        "Runner.schedule = @schedules.one_cycle",
        "Runner.ema = None",
        "Runner.swa = 0.5",
    ],
    "steps": ["Runner.schedule = @schedules.steps", "schedules.steps.at = (5, 11)"],
    "polynomial": ["Runner.schedule = @schedules.polynomial"],
}
IMAGES = [
    "Runner.task = @tasks.arrays()",
    "tasks.arrays.path = 'images.npz'",
    "tasks.arrays.batch_size = 9",
    "tasks.arrays.padding = 2",
    "tasks.arrays.flip = True",
    "base_optimizers.sgd.lr = 0.1",  # its trial's share is a quotient of falls: not of tiny ones
]
STREAMED = [
    "Runner.task = @tasks.image_folder()",
    "tasks.image_folder.path = 'pictures'",
    "tasks.image_folder.size = 8",
    "tasks.image_folder.batch_size = 9",
    "tasks.image_folder.stream = True",
    "tasks.image_folder.flip = True",
    "tasks.image_folder.augment = (('RandomErasing', {'p': 0.5}),)",
    "base_optimizers.sgd.lr = 0.1",
]
DROPPING = """
from torch import nn
from metaloss.backbones import BACKBONES

@BACKBONES.register("dropping")
def dropping(input_shape, outputs):
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, outputs))
"""


def run(folder: Path, method: str = "adalfl", extra=(), stop_at: int | None = None, **flags) -> int:
    """A run, which SIGTERM reaches after a step of the training, on the last process alone.

    Without pictures, which take most of its time, unless it is called "ml3".
    """
    draw, pictures.draw = pictures.draw, pictures.draw if folder.name == "ml3" else lambda *_: None
    after_step = Run._record

    def stopping(self: Run, phase: str, step: int, *rest: Any) -> None:
        last = distributed.rank() == distributed.count() - 1
        self.stop = self.stop or (last and (phase, step) == ("train", stop_at))
        after_step(self, phase, step, *rest)

    Run._record = stopping
    try:
        return launch.train(
            gin_file=["tasks/digits_mlp.gin", f"methods/{method}.gin"],
            gin_param=[*QUICK, *METHODS[method], *extra],
            output_dir=str(folder),
            device="cpu",
            **flags,
        )
    finally:
        Run._record, pictures.draw = after_step, draw


def run_all(root: Path) -> list[int]:
    """Every run of two processes; the exit codes."""
    codes = [run(root / method, method) for method in METHODS]
    codes += [
        run(root / f"{method} {name}", method, extra)
        for method in METHODS
        for name, extra in USUAL.items()
    ]
    codes.append(run(root / "images", extra=IMAGES, data_dir=str(root)))
    codes.append(run(root / "two then one", stop_at=7))
    codes.append(run(root / "one then two", resume=True))
    drops = {"extra": ["Runner.backbone = @backbones.dropping"], "plugin": [str(root / "drops.py")]}
    codes.append(run(root / "drops", **drops))
    codes.append(run(root / "drops and stops", stop_at=7, **drops))
    codes.append(run(root / "drops and stops", resume=True, **drops))
    codes.append(run(root / "diverged", "baseline", ["base_optimizers.sgd.lr = 1e30"]))
    return codes


def refusals(root: Path) -> list[str]:
    """What is said to what cannot be done in several processes; nothing is left of it."""
    synchronised = mlp(nn.SyncBatchNorm)
    asked: list[Callable[[], Any]] = [
        lambda: run(root / "refused", extra=["tasks.digits.batch_size = 1"]),
        lambda: run(root / "refused", seed=distributed.rank()),
        lambda: learner(synchronised),
        lambda: learner(nn.Linear(2 + distributed.rank(), 2)),
        lambda: processes.own_device("cuda:1"),
    ]
    said = []
    for attempt in asked:
        try:
            attempt()
        except InputError as error:
            said.append(str(error))
    return said


def main(root: Path, *cases: str) -> None:
    torch.set_num_threads(1)
    written: set[str] = set()

    def remember(event: str, arguments: tuple) -> None:
        writes = (
            event == "open"
            and isinstance(arguments[2], int)
            and (arguments[2] & (os.O_WRONLY | os.O_RDWR))
        )
        if "__pycache__" in str(arguments[:1]):  # Python's, of the plugin that both import
            return
        if writes or event in ("os.mkdir", "os.rename", "os.remove", "os.truncate", "os.chmod"):
            written.add(str(arguments[0]))

    sys.addaudithook(remember)
    with processes.joined(120):
        found: dict[str, Any] = {"cases": {case: compute(case) for case in cases or CASES}}
        if not cases:
            found |= {"codes": run_all(root), "refusals": refusals(root)}
        found["written"] = sorted(path for path in written if path.startswith(str(root)))
        torch.save(found, root / f"{distributed.rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
