"""The rules of the forward-mode pass against torch's own dual numbers."""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call

from metaloss.problem import forward_mode
from metaloss.problem.forward_mode import ForwardMode, KeepPrimals

POOLINGS = {
    "max_pool1d": (lambda x: F.max_pool1d(x, 3, stride=2, padding=1), (2, 3, 9)),
    "max_pool2d": (lambda x: F.max_pool2d(x, (2, 3), stride=2, ceil_mode=True), (2, 3, 7, 8)),
    "unbatched": (lambda x: F.max_pool2d(x, 2, dilation=2), (3, 7, 8)),
    "max_pool3d": (lambda x: F.max_pool3d(x, 2), (2, 3, 4, 5, 6)),
    "adaptive_max_pool1d": (lambda x: F.adaptive_max_pool1d(x, 4), (2, 3, 9)),
    "adaptive_max_pool2d": (lambda x: F.adaptive_max_pool2d(x, (2, 3)), (2, 3, 7, 8)),
    "adaptive_max_pool3d": (lambda x: F.adaptive_max_pool3d(x, 2), (2, 3, 4, 5, 6)),
    "with indices": (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], (2, 3, 7, 8)),
    "channels last": (
        lambda x: F.max_pool2d(x.contiguous(memory_format=torch.channels_last), 2),
        (2, 3, 7, 8),
    ),
    "changed in place": (lambda x: F.max_pool2d(x, 2).mul_(2.0), (2, 3, 7, 8)),
    "twice": (lambda x: F.max_pool2d(F.max_pool2d(x, 2), 2), (2, 3, 8, 8)),
}


@pytest.mark.parametrize("name", POOLINGS)
def test_max_pooling(name):
    pooling, shape = POOLINGS[name]
    torch.manual_seed(0)
    x, direction = torch.randn(2, *shape).unbind()
    x.requires_grad_()
    with KeepPrimals() as primals:
        first = pooling(x)
    (slope,) = torch.autograd.grad(first.sum(), x)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.detach(), direction)
        with ForwardMode(primals):
            ours = forward_ad.unpack_dual(pooling(dual))
        theirs = forward_ad.unpack_dual(pooling(dual))
        assert ours.primal.equal(theirs.primal)
        assert ours.primal.equal(first)
        torch.testing.assert_close(ours.tangent, theirs.tangent)
        assert slope.equal(torch.autograd.grad(pooling(x).sum(), x)[0])
    assert primals.next(None, (x,), None) is None


def test_dropout_by_the_mask_of_the_base_pass(monkeypatch):
    """As on a GPU, where F.dropout is the kernel that gives its mask: nothing is drawn again."""
    monkeypatch.setattr(forward_mode, "is_one_kernel", lambda *args, **kwargs: True)
    torch.manual_seed(0)
    x, direction = torch.randn(2, 5, 7, dtype=torch.float64).unbind()
    with KeepPrimals() as primals:
        first = F.dropout(x, 0.3).mul_(1.0)
        F.dropout(input=x, p=0.6, training=True)
    state = torch.get_rng_state()
    with forward_ad.dual_level(), ForwardMode(primals):
        ours = forward_ad.unpack_dual(F.dropout(forward_ad.make_dual(x, direction), 0.3))
        second = forward_ad.unpack_dual(F.dropout(input=x, p=0.6, training=True))
    assert torch.equal(state, torch.get_rng_state())
    torch.testing.assert_close(ours.primal, first)
    torch.testing.assert_close(ours.tangent, direction * first / x)
    assert second.tangent is None
    assert primals.next(None, (x,), None) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("inplace", [False, True])
def test_on_a_gpu_the_base_pass_is_the_dropout_of_torch_bit_for_bit(inplace):
    x = torch.randn(1000, device="cuda")
    torch.manual_seed(0)
    expected = F.dropout(x.clone(), 0.3)
    torch.manual_seed(0)
    with KeepPrimals():
        assert F.dropout(x.clone(), 0.3, inplace=inplace).equal(expected)


BATCH_NORMS = {
    "1d": (lambda: nn.BatchNorm1d(3), (5, 3)),
    "sequences": (lambda: nn.BatchNorm1d(3), (2, 3, 7)),
    "2d": (lambda: nn.BatchNorm2d(3, eps=1e-2, momentum=0.3), (2, 3, 4, 5)),
    "3d": (lambda: nn.BatchNorm3d(3), (2, 3, 2, 3, 4)),
    "without gain and shift": (lambda: nn.BatchNorm2d(3, affine=False), (2, 3, 4, 5)),
    "without running statistics": (
        lambda: nn.BatchNorm2d(3, track_running_stats=False),
        (2, 3, 4, 5),
    ),
    "evaluating": (lambda: nn.BatchNorm2d(3).eval(), (2, 3, 4, 5)),
    "channels last": (
        lambda: nn.Sequential(ChannelsLast(), nn.BatchNorm2d(3)),
        (2, 3, 4, 5),
    ),
    "changed in place": (
        lambda: nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(inplace=True)),
        (2, 3, 4, 5),
    ),
    "twice": (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Tanh(), nn.BatchNorm2d(3)), (2, 3, 4, 5)),
}


class ChannelsLast(nn.Module):
    def forward(self, x):
        return x.contiguous(memory_format=torch.channels_last)


def dual_outputs(model, x, direction, directions, mode):
    """Primal and tangent of the model's output, the parameters moving too."""
    with forward_ad.dual_level():
        parameters = {
            name: forward_ad.make_dual(p.detach(), directions[name])
            for name, p in model.named_parameters()
        }
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        with mode:
            output = functional_call(
                model, {**parameters, **buffers}, (forward_ad.make_dual(x, direction),)
            )
        return forward_ad.unpack_dual(output)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("name", BATCH_NORMS)
def test_batch_norm(name, kept):
    """With the base pass's statistics and without them; the base pass itself is bit for bit."""
    make, shape = BATCH_NORMS[name]
    torch.manual_seed(0)
    model = make().double()
    x, direction = torch.randn(2, *shape, dtype=torch.float64).unbind()
    x = 3 * x + 5
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    directions = {key: torch.randn_like(p) for key, p in model.named_parameters()}
    plain = deepcopy(model)
    with KeepPrimals() as primals:
        first = model(x)
    assert first.equal(plain(x))
    for own, other in zip(model.buffers(), plain.buffers(), strict=True):
        assert own.equal(other)
    mode = ForwardMode(primals if kept else KeepPrimals())
    ours = dual_outputs(model, x, direction, directions, mode)
    theirs = dual_outputs(plain, x, direction, directions, nullcontext())
    torch.testing.assert_close(ours.primal, theirs.primal, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.tangent, theirs.tangent, rtol=1e-10, atol=1e-10)
    assert not kept or primals.next(None, (x,), None) is None


def test_batch_norm_of_a_single_value_is_refused_as_ever():
    with KeepPrimals(), pytest.raises(ValueError, match="more than 1 value per channel"):
        nn.BatchNorm1d(3)(torch.zeros(1, 3))
