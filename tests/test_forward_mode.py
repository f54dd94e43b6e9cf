"""The rules of the forward-mode pass against torch's own dual numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

from metaloss.forward_mode import ForwardMode, KeepPrimals

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
    assert primals.next() is None
