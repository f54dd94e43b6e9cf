"""The contract of engines."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import repeat

import torch
from torch import Tensor, nn

from metaloss import links
from metaloss.base_optimizers.rates.raw import Raw
from metaloss.engines.base import Engine, Hypergradient
from metaloss.engines.unrolled import Unrolled
from metaloss.machine import seeding
from metaloss.problem.batches import Batch
from metaloss.problem.meta_parameters import MetaParameters
from metaloss.problem.problem import Problem
from metaloss.representations.nn import NN
from metaloss.testing.base import float64, require


def check_engine(make: Callable[[], Engine], inner_steps: int = 1) -> None:
    """Holds an engine to the contract in `metaloss.engines.base`.

    Args:
        make: builds one.
        inner_steps: base steps per call.
    """
    with float64():
        problem, batches = _problem(), _batches(inner_steps)
        plain = copy.deepcopy(problem)
        engine = make()
        first = _call(engine, problem, batches)
        for batch in batches:
            plain.base_step(batch)
        same = torch.equal if engine.bitwise else _up_to_rounding
        for ours, theirs in zip(problem.theta, plain.theta, strict=True):
            require(same(ours, theirs), "its base steps are not those of plain training")
        for name, value in problem.model.named_buffers():
            require(same(value, plain.model.get_buffer(name)), f"buffer {name} moved otherwise")
        gradients = [g for g in (*first.phi, first.alpha) if g is not None]
        require(bool(gradients), "gives no gradient")
        require(all(g.isfinite().all() for g in gradients), "gives a gradient that is not finite")
        for g, p in zip(first.phi, problem.phi, strict=True):
            require(g is None or g.shape == p.shape, "gives a gradient of another shape than φ")
        if engine.exact:
            reference = _call(Unrolled(), _problem(), batches)
            error = _distance(first, reference)
            require(error <= 1e-8, f"differs from double backward by {error:.1e}")

        state, again = copy.deepcopy(engine.state_dict()), make()
        restored = copy.deepcopy(problem)
        again.load_state_dict(state)
        random_state = seeding.global_state(problem.device)
        one = _call(engine, problem, batches)
        seeding.set_global_state(random_state, problem.device)
        other = _call(again, restored, batches)
        require(_distance(one, other) == 0, "goes on otherwise after save and load")


def _problem() -> Problem:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    loss = NN(hidden=(8,))
    return Problem(model, optimizer, loss, nn.functional.cross_entropy, links.probabilities)


def _batches(count: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(16, 3, generator=generator), torch.randint(3, (16,), generator=generator))
        for _ in range(count)
    ]


def _call(engine: Engine, problem: Problem, batches: list[Batch]) -> Hypergradient:
    meta = MetaParameters(problem, rate=Raw())
    return engine.hypergradient(problem, meta, batches, repeat(batches[0]).__next__)


def _distance(a: Hypergradient, b: Hypergradient) -> float:
    """‖a - b‖ / ‖b‖ over φ and α, None standing for zero."""
    return float((_flat(a) - _flat(b)).norm() / _flat(b).norm())


def _up_to_rounding(ours: Tensor, theirs: Tensor) -> bool:
    """Whether they differ by some units in the last place of the numbers that make them."""
    return torch.allclose(ours, theirs, rtol=1e-13, atol=1e-16)


def _flat(found: Hypergradient) -> Tensor:
    parts = [
        torch.zeros_like(p) if g is None else g
        for g, p in zip(found.phi, _problem().phi, strict=True)
    ]
    alpha = torch.zeros(()) if found.alpha is None else found.alpha
    return torch.cat([*(part.flatten() for part in parts), alpha[None]])
