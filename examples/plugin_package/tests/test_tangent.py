"""The plugin keeps metaloss's contract and is what its docstring says."""

import math

import pytest
import torch
from metaloss_tangent.tangent import Tangent

from metaloss import links, testing
from metaloss.errors import ConfigError


def test_contract():
    testing.check_representation(Tangent)
    testing.check_representation(Tangent, scale=3.0)


def test_formula():
    prediction = torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=torch.float64)
    target = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([(2 * math.atan(s) - 1) ** 2 for s in (0.8, -0.6)], dtype=torch.float64)
    torch.testing.assert_close(Tangent(scale=1.0).double()(prediction, target), expected)


def test_it_is_least_before_certainty():
    p = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    outputs = torch.stack([p.logit(), torch.zeros(999)], dim=-1)  # softmax: p and 1 - p
    losses = Tangent(scale=1.0).double()(*links.probabilities(outputs, torch.zeros(999).long()))
    assert p[losses.argmin()].item() == pytest.approx((math.tan(0.5) + 1) / 2, abs=1e-3)


def test_a_scale_that_is_not_positive_is_refused():
    with pytest.raises(ConfigError, match="representations.tangent.scale = -1: give a number"):
        Tangent(scale=-1)
