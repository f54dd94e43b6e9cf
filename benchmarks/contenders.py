"""The contenders: ways to make one training step, each of them one function.

Each takes a model, a learned loss M_φ and the task loss, and gives back a step: from a training and
a validation batch to a new θ (in the model), and where the loss is learned to a new φ. All train
by the same optimizer, `base_optimizer`, and learn φ by the same Adam.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metaloss.engines import ENGINES
from metaloss.engines.sweep import KEPT_BYTES, Sweep
from metaloss.learner import AdaLFL
from metaloss.links import TaskLoss, by_labels
from metaloss.meta_optimizers.base import META_OPTIMIZERS, MetaOptimizer
from metaloss.meta_optimizers.offline_unrolled import OfflineUnrolled
from metaloss.meta_optimizers.online_one_step import OnlineOneStep
from metaloss.problem.batches import Batch
from metaloss.problem.problem import Problem
from metaloss.problem.tables import Tabulate
from metaloss.stack import Stack

Step = Callable[[Batch, Batch], None]  #: (training batch, validation batch)
META_LR = 1e-5


def base_optimizer(model: nn.Module) -> torch.optim.SGD:
    """SGD with Nesterov momentum and weight decay, as the paper trains its larger nets."""
    return torch.optim.SGD(
        model.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4
    )


def baseline(model: nn.Module, loss: nn.Module, task_loss: TaskLoss) -> Step:
    """Plain training on the task loss: what the others are measured against."""
    optimizer = base_optimizer(model)

    def step(train: Batch, valid: Batch) -> None:
        optimizer.zero_grad()
        task_loss(model(train[0]), train[1]).backward()
        optimizer.step()

    return step


def adalfl(
    model: nn.Module,
    loss: nn.Module,
    task_loss: TaskLoss,
    *,
    engine: str,
    every: int = 1,
    recorded: bool = False,
    tabulate: Tabulate = "auto",
    certify_every: int = 50,
    objective: Literal["valid", "next"] = "valid",
) -> Step:
    """metaloss.AdaLFL as in one's own loop, by an engine with its default arguments."""
    online = OnlineOneStep(
        META_LR, every, objective=objective, engine=engine, certify_every=certify_every
    )
    return _learner(model, loss, task_loss, online, recorded, tabulate)


def base_step(
    model: nn.Module,
    loss: nn.Module,
    task_loss: TaskLoss,
    *,
    engine: str = "auto",
    tabulate: Tabulate = "auto",
) -> Step:
    """A step on the learned loss that no meta-step follows."""
    online = OnlineOneStep(META_LR, stop=0, engine=engine)
    return _learner(model, loss, task_loss, online, tabulate=tabulate)


def recorded_baseline(model: nn.Module, loss: nn.Module, task_loss: TaskLoss) -> Step:
    """Plain training on the task loss, as a CUDA graph."""
    return _learner(model, None, task_loss, None, recorded=True)


def meta_lr(model: nn.Module, loss: nn.Module, task_loss: TaskLoss) -> Step:
    """Learns the base learning rate on the task loss, and no loss (paper, Algorithm 4)."""
    return _learner(model, None, task_loss, META_OPTIMIZERS["meta_lr"](META_LR))


def _learner(
    model: nn.Module,
    loss: nn.Module | None,
    task_loss: TaskLoss,
    adaptation: MetaOptimizer | None,
    recorded: bool = False,
    tabulate: Tabulate = "auto",
) -> Step:
    learner = AdaLFL(
        model,
        base_optimizer(model),
        loss,
        task_loss,
        meta_lr=None,
        adaptation=adaptation,
        cuda_graphs=recorded,
        tabulate=tabulate,
        on_unhealthy="warn",  # φ is at random: the cost is asked, and not the training
    )

    def step(train: Batch, valid: Batch) -> None:
        learner.step(train, valid)

    return step


def through_steps(
    model: nn.Module,
    loss: nn.Module,
    task_loss: TaskLoss,
    *,
    steps: int,
    kept_bytes: int = KEPT_BYTES,
) -> Step:
    """A meta-step through so many base steps, as an initialisation makes them.

    All the work is in every `steps`-th call.
    """
    problem = Problem(model, base_optimizer(model), loss, task_loss, by_labels)
    meta = OfflineUnrolled(
        inner_steps=steps, meta_lr=META_LR, engine=Sweep(kept_bytes), certify_every=0
    )
    meta.attach(problem)
    waiting: list[Batch] = []

    def step(train: Batch, valid: Batch) -> None:
        waiting.append(train)
        if len(waiting) == steps:
            meta.meta_step(waiting, lambda: valid)
            waiting.clear()

    return step


def seeds_at_once(
    model: nn.Module,
    loss: nn.Module,
    task_loss: TaskLoss,
    *,
    seeds: int,
    learning: bool = True,
    recorded: bool = False,
) -> Step:
    """The steps of so many seeds at once, by the exact engine, or of as many baselines."""
    pairs = [(model, loss), *((deepcopy(model), deepcopy(loss)) for _ in range(seeds - 1))]
    learners = [
        AdaLFL(
            own_model,
            base_optimizer(own_model),
            own_loss if learning else None,
            task_loss,
            meta_lr=None,
            adaptation=OnlineOneStep(META_LR, engine="exact") if learning else None,
            cuda_graphs=recorded,
            on_unhealthy="warn",
        )
        for own_model, own_loss in pairs
    ]
    stack = Stack(learners)

    def step(train: Batch, valid: Batch) -> None:
        both = (tuple(torch.stack([part] * seeds) for part in batch) for batch in (train, valid))
        stack.step(*both)

    return step


def by_hand(model: nn.Module, loss: nn.Module, task_loss: TaskLoss) -> Step:
    """Double backward in plain torch: the optimizer's step written out, θ' by functional_call."""
    settings = base_optimizer(model).defaults
    lr, momentum, decay = (settings[name] for name in ("lr", "momentum", "weight_decay"))
    theta = dict(model.named_parameters())
    velocities = [torch.zeros_like(p) for p in theta.values()]
    phi = list(loss.parameters())
    adam = torch.optim.Adam(phi, lr=META_LR)

    def step(train: Batch, valid: Batch) -> None:
        learned_loss = loss(*by_labels(model(train[0]), train[1])).mean()
        grads = torch.autograd.grad(learned_loss, list(theta.values()), create_graph=True)
        moved: list[Tensor] = []
        for k, (parameter, grad) in enumerate(zip(theta.values(), grads, strict=True)):
            decayed = grad + decay * parameter.detach()
            velocity = momentum * velocities[k] + decayed
            moved.append(parameter.detach() - lr * (decayed + momentum * velocity))
            velocities[k] = velocity.detach()
        outputs = functional_call(model, dict(zip(theta, moved, strict=True)), (valid[0],))
        phi_grads = torch.autograd.grad(task_loss(outputs, valid[1]), phi)
        for weight, grad in zip(phi, phi_grads, strict=True):
            weight.grad = grad
        adam.step()
        with torch.no_grad():
            torch._foreach_copy_(list(theta.values()), moved)

    return step


def higher(model: nn.Module, loss: nn.Module, task_loss: TaskLoss) -> Step:
    """higher, one context a step, the parameters copied back (momentum is lost, as is usual)."""
    import higher

    optimizer, adam = base_optimizer(model), torch.optim.Adam(loss.parameters(), lr=META_LR)

    def step(train: Batch, valid: Batch) -> None:
        adam.zero_grad()
        with higher.innerloop_ctx(model, optimizer) as (fast, differentiable):
            differentiable.step(loss(*by_labels(fast(train[0]), train[1])).mean())
            task_loss(fast(valid[0]), valid[1]).backward()
            with torch.no_grad():
                for parameter, value in zip(model.parameters(), fast.parameters(), strict=True):
                    parameter.copy_(value)
        adam.step()

    return step


def torchopt(model: nn.Module, loss: nn.Module, task_loss: TaskLoss) -> Step:
    """TorchOpt's MetaSGD, the graph cut after every step."""
    import torchopt

    settings = base_optimizer(model).defaults
    names = ("lr", "momentum", "weight_decay", "nesterov")
    differentiable = torchopt.MetaSGD(model, **{name: settings[name] for name in names})
    adam = torch.optim.Adam(loss.parameters(), lr=META_LR)

    def step(train: Batch, valid: Batch) -> None:
        adam.zero_grad()
        differentiable.step(loss(*by_labels(model(train[0]), train[1])).mean())
        task_loss(model(valid[0]), valid[1]).backward()
        torchopt.stop_gradient(model)
        torchopt.stop_gradient(differentiable)
        adam.step()

    return step


@dataclass(frozen=True)
class Contender:
    """How to start, and what a turn is."""

    start: Callable[[nn.Module, nn.Module, TaskLoss], Step]
    steps: int = 1  #: in a turn, which is timed as a whole
    plain_network: bool = False  #: whether M_φ is a `PlainNetwork`
    package: str | None = None  #: that must be installed for it
    compiled: bool = False  #: whether its steps are, whose memory no operator shows
    recorded: bool = False  #: whether its steps are CUDA graphs, which takes a GPU


_PEERS = {
    "torch": Contender(by_hand),
    "higher": Contender(higher, package="higher"),
    "torchopt": Contender(torchopt, package="torchopt"),
}

#: By name. The peers come twice: by the closed-form derivatives of `representations.nn`, which are
#: this project's, and by a network that leaves everything to autograd, which is what they bring.
CONTENDERS: dict[str, Contender] = {
    "baseline": Contender(baseline),
    "base_step": Contender(base_step),
    "base_step_from_a_table": Contender(partial(base_step, tabulate="always")),
    "base_step_compiled": Contender(partial(base_step, engine="compiled"), compiled=True),
    "exact": Contender(partial(adalfl, engine="exact")),
    "exact_next": Contender(partial(adalfl, engine="exact", objective="next")),
    "exact_every_pair": Contender(partial(adalfl, engine="exact", tabulate="never")),
    **{
        f"exact_every_{k}": Contender(partial(adalfl, engine="exact", every=k), steps=k)
        for k in (4, 20)
    },
    "exact_every_20_from_a_table": Contender(
        partial(adalfl, engine="exact", every=20, tabulate="always"), steps=20
    ),
    "exact_uncertified": Contender(partial(adalfl, engine="exact", certify_every=0)),
    "exact_all_certified": Contender(partial(adalfl, engine="exact", certify_every=1)),
    "unrolled_uncertified": Contender(partial(adalfl, engine="unrolled", certify_every=0)),
    "unrolled_all_certified": Contender(partial(adalfl, engine="unrolled", certify_every=1)),
    "through_10_steps": Contender(partial(through_steps, steps=10), steps=10),
    "through_10_steps_run_again": Contender(
        partial(through_steps, steps=10, kept_bytes=0), steps=10
    ),
    "compiled": Contender(partial(adalfl, engine="compiled"), compiled=True),
    "compiled_every_4": Contender(
        partial(adalfl, engine="compiled", every=4), steps=4, compiled=True
    ),
    "baseline_recorded": Contender(recorded_baseline, recorded=True),
    "exact_recorded": Contender(partial(adalfl, engine="exact", recorded=True), recorded=True),
    **{
        f"{name}_{seeds}_seeds": Contender(
            partial(seeds_at_once, seeds=seeds, learning=name == "exact")
        )
        for name in ("baseline", "exact")
        for seeds in (3, 10)
    },
    "exact_10_seeds_recorded": Contender(
        partial(seeds_at_once, seeds=10, recorded=True), recorded=True
    ),
    "exact_plain_network": Contender(partial(adalfl, engine="exact"), plain_network=True),
    "meta_lr": Contender(meta_lr),
    **_PEERS,
    **{
        f"{name}_plain_network": Contender(peer.start, plain_network=True, package=peer.package)
        for name, peer in _PEERS.items()
    },
    **{
        name: Contender(partial(adalfl, engine=name))
        for name in ENGINES
        if name not in ("exact", "auto", "compiled")
    },
}
