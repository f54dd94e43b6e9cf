"""Certification: meta-gradients in float64 against double backward and the real optimizer's steps.

A certificate is what two independent computations have to say of an engine's ∇_φ L_T on one
problem: the reference engine, and finite differences of L_T through steps that the torch.optim
object itself makes, without any of our derivatives.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from metaloss.backbones import BACKBONES
from metaloss.base_optimizers import BASE_OPTIMIZERS
from metaloss.base_optimizers.rates.raw import Raw
from metaloss.engines.base import ENGINES, Engine
from metaloss.engines.unrolled import Unrolled
from metaloss.errors import ConfigError
from metaloss.machine import seeding
from metaloss.problem import snapshot
from metaloss.problem.batches import Batch, StepBatch
from metaloss.problem.meta_parameters import MetaParameters
from metaloss.problem.problem import Problem
from metaloss.representations import REPRESENTATIONS
from metaloss.runs.freezing import Freezing
from metaloss.runs.recomputing import recompute
from metaloss.runs.runner import Runner
from metaloss.testing.base import float64

REFERENCE_BOUND = 1e-8  #: relative, of an exact engine from double backward
APPROXIMATE_BOUND = 1e-5  #: relative, of an engine that is exact but for a difference quotient
DIFFERENCE_BOUND = 1e-5  #: relative, from finite differences, which have an error of their own
#: Steps of the finite differences, in units of φ, and directions; the first quotient that agrees is
#: taken, as large steps cross kinks of the model and small ones drown in rounding.
DIRECTIONS = 3
EPSILONS = (1e-4, 3e-5, 3e-4, 1e-5, 1e-3, 1e-6, 1e-7, 1e-8, 1e-9, 3e-10)
BATCHES = 6  #: of a case: two steps before, three gone back through, the objective's


@dataclass(frozen=True)
class Case:
    """A problem to certify an engine on."""

    optimizer: str
    representation: str
    backbone: str
    make: Callable[[], Problem]  #: the same problem every time, in float64
    batches: Sequence[StepBatch]  #: the last is the objective's


@dataclass(frozen=True)
class Certificate:
    """The relative errors of one engine on one problem."""

    engine: str
    case: Case
    warm: int  #: base steps before, which fill the optimizer's state
    inner_steps: int  #: base steps that are gone back through
    reference: float  #: ‖g - r‖ / ‖r‖ against double backward, in φ
    alpha: float  #: the same in the base learning rate
    difference: float  #: |⟨g, d⟩ - dL/dd| / ‖g‖ against finite differences along a direction d of φ
    bound: float  #: of `reference` and `alpha`

    @property
    def holds(self) -> bool:
        """Whether the errors are within their bounds; a NaN is not."""
        return max(self.reference, self.alpha) <= self.bound and (
            self.difference <= max(DIFFERENCE_BOUND, self.bound)
        )


def certify(case: Case, engine: str | Engine, warm: int, inner_steps: int) -> Certificate:
    """Certifies an engine on a problem.

    In float64 throughout: torch.optim keeps scalars of its state in the default precision.
    """
    with float64():
        return _certify(case, engine, warm, inner_steps)


def _certify(case: Case, engine: str | Engine, warm: int, inner_steps: int) -> Certificate:
    built = ENGINES[engine]() if isinstance(engine, str) else engine
    phi, alpha = _gradient(case, built, warm, inner_steps)
    reference, reference_alpha = _gradient(case, Unrolled(), warm, inner_steps)
    return Certificate(
        engine if isinstance(engine, str) else ENGINES.name_of(engine),
        case,
        warm,
        inner_steps,
        float((phi - reference).norm() / reference.norm()),
        abs(alpha - reference_alpha) / abs(reference_alpha) if reference_alpha else abs(alpha),
        _difference(case, warm, inner_steps, phi, reference),
        REFERENCE_BOUND if built.exact else APPROXIMATE_BOUND,
    )


def _difference(case: Case, warm: int, inner_steps: int, phi: Tensor, reference: Tensor) -> float:
    """|⟨g, d⟩ - dL/dd| / ‖g‖ for the first direction d and step that agree, else the least."""
    generator = torch.Generator().manual_seed(0)
    least, size = float("inf"), float(reference.norm())
    for _ in range(DIRECTIONS):
        noise = torch.randn(phi.shape, generator=generator, dtype=phi.dtype)
        direction = reference / reference.norm() + noise / noise.norm()  # a sure signal, and more
        for epsilon in EPSILONS:
            slope = _difference_quotient(case, warm, inner_steps, direction, epsilon)
            least = min(least, abs(float(phi @ direction) - slope) / size)
            if least <= DIFFERENCE_BOUND:
                return least
    return least


def _gradient(case: Case, engine: Engine, warm: int, inner_steps: int) -> tuple[Tensor, float]:
    """∇_φ L_T, flat, and ∂L_T/∂α."""
    problem = _warmed(case, warm)
    meta = MetaParameters(problem, rate=Raw())
    train = case.batches[warm : warm + inner_steps]
    found = engine.hypergradient(problem, meta, train, lambda: case.batches[-1])
    parts = [
        torch.zeros_like(p) if g is None else g for g, p in zip(found.phi, meta.phi, strict=True)
    ]
    flat = torch.cat([part.flatten() for part in parts])
    return flat, 0.0 if found.alpha is None else float(found.alpha)


def _difference_quotient(
    case: Case, warm: int, inner_steps: int, direction: Tensor, epsilon: float
) -> float:
    """dL_T/dd by central differences of fourth order."""
    near, far = (
        _loss_along(case, warm, inner_steps, direction, size)
        - _loss_along(case, warm, inner_steps, direction, -size)
        for size in (epsilon, 2 * epsilon)
    )
    return (8 * near - far) / (12 * epsilon)


def _loss_along(case: Case, warm: int, inner_steps: int, direction: Tensor, size: float) -> float:
    """L_T after the real steps of plain training, φ moved by size · direction before them."""
    problem = _warmed(case, warm)
    with torch.no_grad():
        vector_to_parameters(parameters_to_vector(problem.phi) + size * direction, problem.phi)
    for batch in case.batches[warm : warm + inner_steps]:
        problem.plain_step(batch)
    return snapshot.task_loss(problem, case.batches[-1]).item()


def _warmed(case: Case, warm: int) -> Problem:
    problem = case.make()
    for batch in case.batches[:warm]:
        problem.plain_step(batch)
    torch.manual_seed(1)  # of the dropout masks that follow
    return problem


def planned_case(plan: Runner, data_dir: Path, seed: int, examples: int) -> Case:
    """The problem of a run, on some examples of its task.

    Raises:
        ConfigError: the run has no learned loss.
    """
    if plan.representation is None:
        raise ConfigError("this run has no learned loss (Runner.representation = None)")
    split = seeding.stream(seed, "split")
    data = plan.task.load(data_dir, split)
    mixing = plan.mixing(data)

    def draw(mixed: bool) -> Batch:
        batch = data.draw("train", examples, split)
        inputs, labels = batch if mixing is None or not mixed else mixing(batch, split)
        return inputs.double(), labels.double() if labels.is_floating_point() else labels

    batches = [plan.one_step(lambda: draw(mixed=True)) for _ in range(BATCHES - 1)]
    batches.append(draw(mixed=False))  # the objective's stays as it is
    learned = plan.representation.double()
    theta = seeding.stream(seed, "theta")
    state = theta.get_state()

    def make() -> Problem:
        theta.set_state(state)
        with seeding.drawing_from(theta):
            model = plan.backbone(input_shape=data.input_shape, outputs=data.outputs).double()
        recompute(model, plan.checkpointed)
        optimizer = plan.optimizer(model)
        Freezing(model, plan.frozen_until).apply(0)
        objective = data.objective
        loss = copy.deepcopy(learned)
        return Problem(
            model.train(), optimizer, loss, objective.loss, objective.link,
            gradient_transform=plan.gradient_transform,
        )  # fmt: skip

    return Case(
        BASE_OPTIMIZERS.name_of(plan.base_optimizer),
        REPRESENTATIONS.name_of(plan.representation),
        BACKBONES.name_of(plan.backbone),
        make,
        batches,
    )
