"""Certification of one's own model: AdaLFL's meta-gradient against a plain training loop.

The reference is made of nothing of metaloss but the loss network: v = ∇_θ' L_T by a backward pass,
and how θ' moves along a direction of φ by finite differences of steps that a plain loop makes. A
step's θ' is smooth in φ whatever the model is made of, so the differences are good to 1e-8.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from metaloss import links
from metaloss.engines.base import ENGINES, Hypergradient, engine_by
from metaloss.errors import InputError
from metaloss.learner import AdaLFL
from metaloss.machine import seeding
from metaloss.meta_optimizers.online_one_step import OnlineOneStep
from metaloss.problem.batches import Batch, call
from metaloss.representations.nn import NN
from metaloss.testing.base import float64

BOUND = 1e-6  #: relative, of a meta-gradient that is right
EPSILON = 1e-4  #: of the finite differences, in units of φ; they are of fourth order
BASE_LR = 0.05

#: A function that gives a model and inputs for it, and labels if they are not to be made up; the
#: same ones each time but for what it draws from torch's, NumPy's and Python's global generators.
Make = Callable[[], tuple[Any, ...]]


@dataclass(frozen=True)
class Verdict:
    """What became of a model's meta-gradient."""

    engine: str  #: that gave it; "" where none did
    error: float  #: relative, from the reference; NaN where there is no meta-gradient
    said: tuple[str, ...]  #: what was refused or warned of

    @property
    def right(self) -> bool:
        """Whether it is the gradient of the step."""
        return self.error <= BOUND

    @property
    def holds(self) -> bool:
        """Whether it is right, or was refused."""
        return self.right or not self.engine

    def __str__(self) -> str:
        found = (
            f"refused: {self.said[-1]}" if not self.engine else f"engine '{self.engine}', off by "
        )
        if self.engine:
            found += f"{self.error:.1e}" + ("" if self.right else f", above {BOUND:g}")
            found += "".join(f" · {line}" for line in self.said)
        return f"{'right' if self.right else 'said' if self.holds else 'WRONG'}: {found}"


def check_model(make: Make, engine: str = "auto") -> Verdict:
    """Compares a model's meta-gradient with that of a plain loop's step, in float64.

    Args:
        make: gives the model, and inputs (see `Make`).
        engine: that gives the meta-gradient.

    Raises:
        InputError: `make` gives something else.
    """
    with float64():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                name, found = _ours(make, engine)
            except InputError as error:
                return Verdict("", float("nan"), (*_lines(caught), str(error)))
        return Verdict(name, _error(make, found), _lines(caught))


def _lines(caught: list[warnings.WarningMessage]) -> tuple[str, ...]:
    return tuple(str(one.message) for one in caught if "meta-gradient" in str(one.message))


def _ours(make: Make, engine: str) -> tuple[str, Tensor]:
    """∇_φ L_T as a learner takes it, and the engine that gave it."""
    model, batch, loss = _made(make)
    adaptation = OnlineOneStep(meta_lr=1e-12, engine=engine_by(engine))
    learner = AdaLFL(
        model, _optimizer(model), loss, _task_loss(batch), link=_link(batch), adaptation=adaptation
    )
    taken: list[Hypergradient] = []
    descend = adaptation.meta_descent.descend

    def keeping(found: Hypergradient, *args: Any, **kwargs: Any) -> Any:
        taken.append(found)
        return descend(found, *args, **kwargs)

    adaptation.meta_descent.descend = keeping  # type: ignore[method-assign]
    learner.step(batch, batch)
    chosen = getattr(adaptation.engine, "chosen", None) or adaptation.engine
    parts = [
        (torch.zeros_like(p) if g is None else g).flatten()
        for g, p in zip(taken[0].phi, adaptation.meta.phi, strict=True)
    ]
    return ENGINES.name_of(chosen), torch.cat(parts)


def _error(make: Make, found: Tensor) -> float:
    """|⟨found, d⟩ - ⟨v, dθ'/dd⟩| by the length of `found`, along a direction d."""
    noise = torch.randn(found.shape, generator=torch.Generator().manual_seed(5), dtype=found.dtype)
    length = float(found.norm())
    direction = found / max(length, 1e-300) + noise / noise.norm()
    v = _slope_after(make)
    near, far = (
        _theta_after(make, size * direction) - _theta_after(make, -size * direction)
        for size in (EPSILON, 2 * EPSILON)
    )
    slope = float(v @ (8 * near - far)) / (12 * EPSILON)
    return abs(float(found @ direction) - slope) / max(length, abs(slope), 1e-300)


def _theta_after(make: Make, shift: Tensor) -> Tensor:
    """θ' of a plain loop's step, φ moved before it."""
    return _flat(_plain_step(make, shift)[0])


def _slope_after(make: Make) -> Tensor:
    """v = ∇_θ' L_T in a plain loop, flat; by the masks that the learner's own pass has."""
    model, batch = _plain_step(make, None)
    with seeding.aside(torch.device("cpu")):
        loss = _task_loss(batch)(call(model, batch[0]), batch[1])
        grads = torch.autograd.grad(loss, _trained(model), materialize_grads=True)
    return torch.cat([grad.flatten() for grad in grads])


def _plain_step(make: Make, shift: Tensor | None) -> tuple[nn.Module, Batch]:
    model, batch, loss = _made(make)
    if shift is not None:
        with torch.no_grad():
            phi = [*loss.parameters()]
            vector_to_parameters(parameters_to_vector(phi) + shift, phi)
    optimizer = _optimizer(model)
    prediction, target, *weights = _link(batch)(call(model, batch[0]), batch[1])
    torch.autograd.backward(links.mean(loss(prediction, target), *weights))
    optimizer.step()
    return model, batch


def _made(make: Make) -> tuple[nn.Module, Batch, NN]:
    """The model, a batch and a loss, from the same seeds."""
    model, inputs, *labels = _from_seeds(make)
    if not labels:  # by a model of their own: a copy of this one may share its state
        labels = [_made_up(model, inputs)]
        model, inputs, *_ = _from_seeds(make)
    with seeding.drawing_from(torch.Generator().manual_seed(6)):
        loss = NN(hidden=(8, 8)).double()
    return model.double(), (_double(inputs), _double(labels[0])), loss


def _from_seeds(make: Make) -> tuple[Any, ...]:
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(3)
    made = make()
    if not isinstance(made, tuple) or len(made) not in (2, 3) or not isinstance(made[0], nn.Module):
        raise InputError("the function gives (model, inputs) or (model, inputs, labels)")
    return made


def _made_up(model: nn.Module, inputs: Any) -> Tensor:
    """Labels for what a model gives: classes of outputs [batch, C], else values."""
    with torch.no_grad():
        outputs = call(model.double(), _double(inputs))
    generator = torch.Generator().manual_seed(4)
    if outputs.ndim == 2 and outputs.shape[1] > 1:
        return torch.randint(outputs.shape[1], (len(outputs),), generator=generator)
    return torch.randn(outputs.shape, generator=generator, dtype=torch.float64)


def _double(value: Any) -> Any:
    if torch.is_tensor(value):
        return value.double() if value.is_floating_point() else value
    if type(value) in (tuple, list):
        return type(value)(map(_double, value))
    return {k: _double(v) for k, v in value.items()} if isinstance(value, dict) else value


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(_trained(model), lr=BASE_LR)


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _flat(model: nn.Module) -> Tensor:
    return parameters_to_vector(_trained(model)).detach()


def _task_loss(batch: Batch) -> Callable[..., Tensor]:
    return F.mse_loss if batch[1].is_floating_point() else F.cross_entropy


def _link(batch: Batch) -> links.Link:
    return links.values if batch[1].is_floating_point() else links.probabilities
