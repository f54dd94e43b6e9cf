"""The learned loss's closed forms against autograd through the network written out."""

from __future__ import annotations

import copy
import pickle
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metaloss.representations.nn import NN, HiddenActivation, OutputActivation

REFERENCE = {
    "smooth_leaky_relu": lambda z, gamma, beta: (
        gamma * z + (1 - gamma) / beta * torch.logaddexp(beta * z, torch.zeros_like(z))
    ),
    "relu": lambda z, gamma, beta: torch.where(z > 0, z, 0.0),
    "tanh": lambda z, gamma, beta: 2 / (1 + torch.exp(-2 * z)) - 1,
    "softplus": lambda z, gamma, beta: torch.logaddexp(z, torch.zeros_like(z)),
    "identity": lambda z, gamma, beta: z,
}


def reference(loss: NN, prediction: Tensor, target: Tensor) -> Tensor:
    """The network by its definition: products and sums, nothing of nn or parts.network."""
    a = torch.stack((prediction, target), dim=-1)
    names = [loss.activation] * len(loss.hidden) + [loss.output]
    for layer, name in zip(loss.layers, names, strict=True):
        z = torch.einsum("oi,bci->bco", layer.weight, a)
        a = REFERENCE[name](z, loss.gamma, loss.beta)
    return a[..., 0].mean(-1)


def derivatives(loss, phi: list[Tensor], prediction: Tensor, target: Tensor) -> list[Tensor]:
    """Value, slope, gradients of the value, and the gradients of <slope, t> in g, f and φ."""
    generator = torch.Generator().manual_seed(1)
    prediction = prediction.clone().requires_grad_()
    values = loss(prediction, target)
    g, t = (
        torch.randn(shape, generator=generator, dtype=prediction.dtype)
        for shape in (values.shape, prediction.shape)
    )
    g.requires_grad_()
    (slope,) = torch.autograd.grad(values, prediction, g, create_graph=True)
    inputs = [g, prediction, *phi]
    second = torch.autograd.grad(slope, inputs, t, retain_graph=True, allow_unused=True)
    first = torch.autograd.grad(values, phi, g.detach())
    zeros = [torch.zeros_like(x) if d is None else d for d, x in zip(second, inputs, strict=True)]
    return [values, slope, *first, *zeros]


def draw(batch: int, outputs: int, dtype=torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch * 100 + outputs)
    size = (batch, outputs)
    return tuple(2 * torch.randn(size, generator=generator, dtype=dtype) for _ in range(2))


def build(**arguments) -> NN:
    torch.manual_seed(0)
    return NN(**arguments).double()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    hidden=st.lists(st.integers(1, 7), max_size=4),
    activation=st.sampled_from(get_args(HiddenActivation)),
    output=st.sampled_from(get_args(OutputActivation)),
    gamma=st.floats(0.0, 0.5),
    beta=st.floats(0.5, 20.0),
    batch=st.integers(0, 5),
    outputs=st.integers(1, 4),
)
def test_closed_forms_are_autograd_s(hidden, activation, output, gamma, beta, batch, outputs):
    loss = build(hidden=hidden, activation=activation, output=output, gamma=gamma, beta=beta)
    phi, (prediction, target) = list(loss.parameters()), draw(batch, outputs)
    found = derivatives(loss, phi, prediction, target)
    expected = derivatives(lambda p, y: reference(loss, p, y), phi, prediction, target)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_the_closed_forms_are_what_runs():
    """Neither the value nor its slope leaves autograd nodes of the single layers behind."""
    loss, (prediction, target) = build(), draw(3, 2)
    prediction.requires_grad_()
    values = loss(prediction, target)
    assert nodes(values).isdisjoint(LAYER_NODES)
    (slope,) = torch.autograd.grad(values.sum(), prediction, create_graph=True)
    assert nodes(slope).isdisjoint(LAYER_NODES)


LAYER_NODES = {"SoftplusBackward0", "MmBackward0", "UnsafeViewBackward0"}


def nodes(output: Tensor) -> set[str]:
    """The names of the autograd nodes behind a tensor."""
    todo, seen = [output.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [before for before, _ in node.next_functions]
    return {node.name() for node in seen}


def test_third_derivatives_are_autograd_s():
    loss, (prediction, target) = build(hidden=(3, 4)), draw(3, 2)
    thirds = []
    for function in (loss, lambda p, y: reference(loss, p, y)):
        p = prediction.clone().requires_grad_()
        (slope,) = torch.autograd.grad(function(p, target).sum(), p, create_graph=True)
        (second,) = torch.autograd.grad(slope.square().sum(), p, create_graph=True)
        mixed = torch.autograd.grad(second.square().sum(), [p, *loss.parameters()])
        in_phi = torch.autograd.grad(
            function(p, target).sum(), loss.parameters(), create_graph=True
        )
        crossed = torch.autograd.grad(
            sum(d.square().sum() for d in in_phi), [p, *loss.parameters()]
        )
        thirds.append([*mixed, *crossed])
    for ours, theirs in zip(*thirds, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_a_gradient_in_the_target_is_autograd_s():
    loss, (prediction, target) = build(hidden=(3, 4)), draw(3, 2)
    for function in (loss, lambda p, y: reference(loss, p, y)):
        assert torch.autograd.gradcheck(
            function, (prediction.clone().requires_grad_(), target.clone().requires_grad_())
        )


def test_function_transforms_and_forward_mode_pass_through():
    """Many losses at once, as torch.func has it, and a dual number."""
    losses, (prediction, target) = [build(hidden=(3,)), build(hidden=(3,))], draw(4, 2)
    for parameter in losses[1].parameters():
        parameter.data.mul_(0.5)
    phi, _ = torch.func.stack_module_state(losses)
    skeleton = copy.deepcopy(losses[0]).to("meta")

    def slope(phi: dict[str, Tensor], p: Tensor) -> Tensor:
        def total(p: Tensor) -> Tensor:
            return torch.func.functional_call(skeleton, phi, (p, target)).sum()

        return torch.func.grad(total)(p)

    together = torch.func.vmap(slope, (0, None))(phi, prediction)
    free = prediction.clone().requires_grad_()
    for one, loss in zip(together, losses, strict=True):
        (alone,) = torch.autograd.grad(loss(free, target).sum(), free)
        torch.testing.assert_close(one, alone)
    direction = torch.ones_like(prediction)
    _, change = torch.func.jvp(lambda p: losses[0](p, target), (prediction,), (direction,))
    torch.testing.assert_close(
        change, slope(dict(losses[0].named_parameters()), prediction).sum(-1)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_network_in_its_own_precision(dtype):
    loss = build().float()
    prediction, target = draw(6, 3, torch.float32)
    expected = derivatives(loss, list(loss.parameters()), prediction, target)
    with torch.autocast("cpu", dtype):
        found = derivatives(loss, list(loss.parameters()), prediction, target)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.equal(theirs)
    low = derivatives(loss, list(loss.parameters()), prediction.to(dtype), target)
    assert [d.dtype for d in low[:2]] == [torch.float32, dtype]


@pytest.mark.parametrize("beta", [1.0, 10.0])
def test_large_arguments_stay_finite(beta):
    loss = build(beta=beta).float()
    prediction, target = draw(6, 3, torch.float32)
    for scale in (1e3, 1e6):
        for d in derivatives(loss, list(loss.parameters()), scale * prediction, target):
            assert d.isfinite().all()


def test_a_changed_phi_is_noticed_before_the_pullback():
    loss, (prediction, target) = build(), draw(3, 2)
    prediction.requires_grad_()
    (slope,) = torch.autograd.grad(loss(prediction, target).sum(), prediction, create_graph=True)
    with torch.no_grad():
        loss.layers[0].weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        slope.sum().backward()


def test_it_can_be_copied_and_pickled():
    loss, pair = build(), draw(3, 2)
    for again in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert again(*pair).equal(loss(*pair))
    assert list(loss.state_dict()) == [f"layers.{i}.weight" for i in range(3)]


@pytest.mark.parametrize("output", get_args(OutputActivation))
@pytest.mark.parametrize("third", [False, True], ids=["second order", "third order"])
def test_a_prediction_that_itself_depends_on_phi(output, third):
    """As after a step along the loss's own gradient: no path is counted twice."""
    torch.manual_seed(0)
    loss = NN(hidden=(5, 4), output=output).double()
    phi = list(loss.parameters())
    start, target = draw(3, 2)
    start.requires_grad_()
    found = []
    for function in (loss, lambda p, y: reference(loss, p, y)):
        prediction = start
        for _ in range(3):
            (slope,) = torch.autograd.grad(
                function(prediction, target).sum(), prediction, create_graph=True
            )
            prediction = prediction - 0.1 * slope
        ends = function(prediction, target).square().sum()
        gradients = torch.autograd.grad(ends, [start, *phi], create_graph=third)
        if third:
            total = sum(g.square().sum() for g in gradients)
            gradients = torch.autograd.grad(total, [start, *phi])
        found.append(torch.cat([g.detach().flatten() for g in gradients]))
    assert torch.allclose(found[0], found[1], rtol=1e-10, atol=1e-12)
