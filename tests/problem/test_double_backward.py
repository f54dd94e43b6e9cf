"""Convolutions with quick second derivatives: torch's bits below, torch's numbers above."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metaloss.problem.double_backward import Convolution, DoubleBackward

LAYERS = {
    "conv1d": (lambda: nn.Conv1d(2, 4, 3, stride=2, padding=1), (3, 2, 7)),
    "conv2d": (lambda: nn.Conv2d(2, 3, (3, 2), padding=(1, 0)), (3, 2, 5, 4)),
    "groups": (lambda: nn.Conv2d(4, 4, 3, groups=2, dilation=2, bias=False), (2, 4, 6, 6)),
    "conv3d": (lambda: nn.Conv3d(1, 2, 2), (2, 1, 3, 3, 3)),
    "transposed": (
        lambda: nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1), (2, 2, 3, 3),
    ),
    "channels_last": (
        lambda: nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last), (3, 2, 5, 4),
    ),
}  # fmt: skip


def derivatives(layer, input):
    """Output, gradients, and second derivatives along a direction."""
    leaves = [input, *layer.parameters()]
    output = layer(input)
    first = torch.autograd.grad(output.sin().sum(), leaves, create_graph=True)
    second = torch.autograd.grad(first, leaves, [torch.cos(1 + x.detach()) for x in leaves])
    return [output, *first], second


@pytest.mark.parametrize("name", LAYERS)
def test_the_bits_below_and_the_numbers_above_are_torchs(name, float64):
    build, shape = LAYERS[name]
    layer, input = build(), torch.randn(shape, requires_grad=True)
    below, above = derivatives(layer, input)
    with DoubleBackward():
        quick_below, quick_above = derivatives(layer, input)
    assert "ConvolutionBackward0" in type(below[0].grad_fn).__name__
    assert type(quick_below[0].grad_fn) is not type(below[0].grad_fn)
    assert all(map(torch.equal, below, quick_below))
    for theirs, ours in zip(above, quick_above, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_third_derivative_is_right_too(float64):
    input, weight, bias = (
        torch.randn(shape, requires_grad=True) for shape in ((2, 1, 3, 3), (2, 1, 2, 2), (2,))
    )

    def squared_gradient(input, weight, bias):
        with DoubleBackward():
            output = F.conv2d(input, weight, bias, padding=1).tanh().sum()
            grads = torch.autograd.grad(output, (input, weight, bias), create_graph=True)
        return sum(grad.square().sum() for grad in grads)

    assert torch.autograd.gradcheck(squared_gradient, (input, weight, bias))
    assert torch.autograd.gradgradcheck(squared_gradient, (input, weight, bias))


@pytest.mark.parametrize(
    "call",
    [
        lambda x, w: F.conv2d(x, w, padding="same"),
        lambda x, w: F.conv2d(x[0], w),
        lambda x, w: torch.func.grad(lambda v: F.conv2d(x, v).sum())(w),
        lambda x, w: torch.func.vmap(lambda v: F.conv2d(v[None], w))(x),
        lambda x, w: torch.func.jvp(lambda v: F.conv2d(x, v), (w,), (w,))[1],
        lambda x, w: F.conv2d(input=x, weight=w, stride=2),
    ],
    ids=["same", "no_batch", "grad", "vmap", "jvp", "by_name"],
)
def test_other_calls_are_torchs_own_or_right(call):
    x, w = torch.randn(2, 1, 4, 4), torch.randn(1, 1, 3, 3, requires_grad=True)
    with DoubleBackward():
        found = call(x, w)
    assert torch.equal(found, call(x, w))


def test_autocast_is_left_to_torch(monkeypatch):
    monkeypatch.setattr(Convolution, "apply", None)
    layer, x = nn.Conv2d(1, 1, 3), torch.randn(1, 1, 4, 4)
    with DoubleBackward(), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
