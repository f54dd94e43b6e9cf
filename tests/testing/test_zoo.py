"""The zoo: each unusual model's meta-gradient is right, or it is refused by what it does."""

from __future__ import annotations

import pytest

from metaloss.testing.certification.model import check_model
from tests.zoo import REFUSED, ZOO


def is_dear(name: str) -> bool:
    """Other people's models, whose import alone takes seconds; but for two."""
    kept = {"timm_deit_tiny_patch16_224", "timm_test_resnet"}
    return name.startswith(("timm_", "transformers_")) and name not in kept


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # others' own
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.full if is_dear(name) else ()) for name in ZOO]
)
def test_right_or_refused(name):
    verdict = check_model(ZOO[name])
    if name in REFUSED:
        assert verdict.holds
        assert REFUSED[name] in verdict.said[-1]
    else:
        assert verdict.right, str(verdict)


def test_the_zoo_is_large():
    assert len(ZOO) >= 60
