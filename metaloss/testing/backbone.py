"""The contract of backbones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metaloss import links
from metaloss.engines.base import Engine
from metaloss.engines.exact import Exact
from metaloss.engines.unrolled import Unrolled
from metaloss.problem.meta_parameters import MetaParameters
from metaloss.problem.problem import Problem
from metaloss.representations.nn import NN
from metaloss.testing.base import float64, require


def check_backbone(
    recipe: Callable[..., nn.Module],
    input_shape: tuple[int, ...] = (1, 28, 28),
    outputs: int = 10,
    **arguments: Any,
) -> None:
    """Holds a backbone recipe to the contract in `metaloss.backbones.base`.

    Args:
        recipe: the function or class.
        input_shape, outputs: sizes that it serves.
        arguments: further arguments.
    """

    def draw(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return recipe(input_shape=input_shape, outputs=outputs, **arguments)

    with float64():
        model, same, other = draw(0), draw(0), draw(1)
        pairs = zip(model.state_dict().values(), same.state_dict().values(), strict=True)
        require(all(a.equal(b) for a, b in pairs), "equal global seeds give other parameters")
        pairs = zip(model.parameters(), other.parameters(), strict=True)
        require(any(not a.equal(b) for a, b in pairs), "does not draw from the global generator")
        inputs = torch.randn(4, *input_shape)
        shape = list(model(inputs).shape)
        require(shape == [4, outputs], f"gives outputs {shape}, not {[4, outputs]}")
        model.eval()
        require(
            functional_call(model, dict(model.named_parameters()), (inputs,)).equal(model(inputs)),
            "functional_call does not equal the forward pass",
        )
        model.train()
        exact, reference = (
            _meta_gradient(copy.deepcopy(model), inputs, outputs, engine)
            for engine in (Exact(), Unrolled())
        )
        require(
            (exact - reference).norm() <= 1e-10 * reference.norm(),
            "the forward-mode meta-gradient differs from double backward by "
            f"{(exact - reference).norm() / reference.norm():.1e}",
        )


def _meta_gradient(model: nn.Module, inputs: Tensor, outputs: int, engine: Engine) -> Tensor:
    torch.manual_seed(0)
    labels = torch.randint(outputs, (len(inputs),))
    loss = NN(hidden=(8,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    problem = Problem(model, optimizer, loss, nn.functional.cross_entropy, links.probabilities)
    found = engine.hypergradient(
        problem, MetaParameters(problem), [(inputs, labels)], lambda: (inputs.flip(0), labels)
    )
    return torch.cat([g.flatten() for g in found.phi if g is not None])
